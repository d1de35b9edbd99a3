// Package recordtest compares docs/records.md with the types of records, and checks
// that operations leave records of a newer version unchanged.
package recordtest

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Documented checks the section of docs/records.md with this heading: each of its
// JSON examples must be a valid T without members that T does not have, and each
// member of T must be in one of the examples. root is the path of the repository.
func Documented[T any](t *testing.T, root, heading string) {
	t.Helper()
	page, err := os.ReadFile(root + "/docs/records.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "# "+heading+"\n")
	if !ok {
		t.Fatalf("docs/records.md has no section %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n#")
	shown := map[string]bool{}
	for i, block := range strings.Split(section, "```json\n")[1:] {
		example, _, _ := strings.Cut(block, "```")
		d := json.NewDecoder(strings.NewReader(example))
		d.DisallowUnknownFields()
		if err := d.Decode(new(T)); err != nil {
			t.Errorf("%s, example %d: %v", heading, i+1, err)
		}
		if _, err := record.Decode[T](store.Key(heading), []byte(example)); err != nil {
			t.Errorf("%s, example %d: %v", heading, i+1, err)
		}
		var v any
		if err := json.Unmarshal([]byte(example), &v); err != nil {
			t.Errorf("%s, example %d: %v", heading, i+1, err)
		}
		members(v, "", shown)
	}
	all := map[string]bool{}
	membersOf(reflect.TypeFor[T](), "", all)
	for _, m := range slices.Sorted(maps.Keys(all)) {
		if !shown[m] {
			t.Errorf("%s: no example has the member %s", heading, m)
		}
	}
}

// members adds the paths of the members of a JSON value to found.
func members(v any, at string, found map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for name, m := range v {
			found[at+"."+name] = true
			members(m, at+"."+name, found)
		}
	case []any:
		for _, m := range v {
			members(m, at, found)
		}
	}
}

// membersOf adds the paths of the members that typ has in JSON to found.
func membersOf(typ reflect.Type, at string, found map[string]bool) {
	for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
		typ = typ.Elem()
	}
	text, _ := json.Marshal(reflect.New(typ).Interface())
	if typ.Kind() != reflect.Struct || !bytes.HasPrefix(text, []byte("{")) {
		return // time.Time is a struct, but a string in JSON
	}
	for f := range typ.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous:
			membersOf(f.Type, at, found)
		case f.IsExported() && name != "-":
			if name == "" {
				name = f.Name
			}
			found[at+"."+name] = true
			membersOf(f.Type, at+"."+name, found)
		}
	}
}

// Refused stores a record of a newer version at key and checks that do then changes no
// record or blob of the catalog root, except that it may add events.
func Refused(t *testing.T, root store.Root, key store.Key, do func()) {
	t.Helper()
	objects := func() map[store.Key]string {
		all := map[store.Key]string{}
		for _, prefix := range []string{
			layout.DigestPrefix, layout.EntryPrefix, layout.ExportPrefix, layout.FetchedPrefix, layout.ContentPrefix, layout.MetadataPrefix, layout.UploadPrefix, layout.HashJobPrefix,
			layout.CheckJobPrefix, layout.DiskJobPrefix, layout.FetchJobPrefix, layout.RenameJobPrefix, layout.BlobPrefix, layout.DiskPrefix, "auth/",
		} {
			for info, err := range root.List(t.Context(), prefix, "") {
				if err != nil {
					t.Fatal(err)
				}
				all[info.Key] = info.ETag
			}
		}
		return all
	}
	const newer = `{"schema": 99, "nonce": {"has": "another type"}}`
	if _, err := root.Put(t.Context(), key, strings.NewReader(newer), int64(len(newer))); err != nil {
		t.Fatal(err)
	}
	before := objects()
	do()
	if after := objects(); before[key] == "" || !maps.Equal(after, before) {
		t.Errorf("with a newer record at %s, the objects became %v; they were %v", key, after, before)
	}
}

package contract

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/checksum"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/source/scheme"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// TestValues tests that lists of values and limits are those of the code.
func TestValues(t *testing.T) {
	d := load(t)
	schema := func(path string) object {
		t.Helper()
		o, err := d.find("#/components/schemas/" + path)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	const file = "docs/openapi.yaml"
	enum := func(what string, s object, want []string) {
		t.Helper()
		var got []string
		for _, v := range list(s, "enum") {
			got = append(got, fmt.Sprint(v))
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %s has %v, the code %v", what, file, got, want)
		}
	}
	var formats, sorts []string
	codes := constants(t, "problem/problem.go", "Code")
	for _, f := range image.Formats() {
		formats = append(formats, string(f))
	}
	for _, s := range inventory.Sorts() {
		sorts = append(sorts, s, "-"+s)
	}
	query := func(name string) object {
		return child(d.ops["GET /catalog"].param("query", name), "schema")
	}
	enum("formats", schema("ImageFormat"), formats)
	enum("sorts", query("sort"), sorts)
	enum("architectures", query("arch"), metadata.Architectures)
	enum("states", query("state"), inventory.States())
	enum("origins of metadata", schema("MetadataOrigin"), constants(t, "metadata/metadata.go", "Origin"))
	enum("formats of the first start", schema("MetadataPatch/properties/init_format"), append(slices.Clone(metadata.InitFormats), fmt.Sprint(nil)))
	for _, a := range metadata.Architectures {
		if !strings.Contains(text(schema("MetadataPatch/properties/architecture"), "description"), "`"+a+"`") {
			t.Errorf("%s leaves out the architecture %s", file, a)
		}
	}
	for _, key := range append(metadata.Keys(), "name") {
		if child(schema("MetadataPatch"), "properties")[key] == nil || child(schema("Metadata"), "properties")[key] == nil {
			t.Errorf("%s leaves out the field %s of metadata", file, key)
		}
	}
	enum("kinds of contents", schema("CatalogRow/properties/content"), append(constants(t, "content/content.go", "Kind"), fmt.Sprint(nil)))
	enum("codes", schema("Problem/properties/code"), codes)
	enum("kinds of events", schema("EventKind"), activity.Kinds())
	enum("kinds of subjects", schema("SubjectKind"), activity.SubjectKinds())
	enum("scopes of tokens", schema("Scope"), names(auth.Scopes()))
	actors := regexp.MustCompile(text(schema("Actor"), "pattern"))
	for _, a := range append(activity.Actors(), activity.TokenPrefix+"ci-7.lab") {
		if !actors.MatchString(a) {
			t.Errorf("%s leaves out the actor %s", file, a)
		}
	}
	enum("kinds of sources", schema("Source/properties/kind"), []string{inventory.Local, inventory.Manifest, inventory.URL})
	enum("job statuses", schema("JobStatus"), []string{
		string(job.Queued), string(job.Running), string(job.Completed), string(job.Cancelled), string(job.Failed),
	})
	enum("hash states", schema("CatalogRow/properties/hash_state"), []string{
		inventory.Unhashed, inventory.Hashed, inventory.Published, string(job.Queued), string(job.Running), string(job.Failed),
	})

	for _, l := range []struct {
		what      string
		got, want any
	}{
		{"tokens", child(child(child(child(child(d.ops["GET /tokens"].responses["200"], "content"), "application/json"), "schema"), "properties"), "tokens")["maxItems"], auth.MaxTokens},
		{"bytes of a name", schema("ImageName")["maxLength"], image.MaxNameBytes},
		{"devices", schema("MetadataPatch/properties/devices")["maxItems"], metadata.MaxDevices},
		{"rows with the same disk", schema("CatalogRow/properties/same_disk")["maxItems"], inventory.MaxSameDisk},
		{"rows of a page", query("limit")["maximum"], inventory.MaxLimit},
		{"rows of a page if none are asked for", query("limit")["default"], inventory.DefaultLimit},
		{"parts of an upload", schema("Upload/properties/parts")["maxItems"], store.MaxParts},
		{"number of a part", schema("Part/properties/number")["maximum"], store.MaxParts},
		{"number of a part in a path", child(d.ops["PUT /uploads/{id}/parts/{number}"].param("path", "number"), "schema")["maximum"], store.MaxParts},
	} {
		if l.got != l.want {
			t.Errorf("%s: %s has %v, the code %v", l.what, file, l.got, l.want)
		}
	}
	info := text(child(d.root, "info"), "description")
	put := text(d.ops["PUT /catalog.toml"].object, "description")
	for _, l := range []struct {
		what, in string
		n        int
	}{
		{"a body", info, web.MaxBody},
		{"a stranger's body", info, web.MaxOpenBody},
		{"a head", info, web.MaxHeaderBytes},
		{"a manifest", put, manifest.MaxBytes},
		{"a manifest", put, manifest.MaxImages},
		{"metadata", text(schema("MetadataPatch"), "description"), metadata.MaxBytes},
		{"labels", text(schema("MetadataPatch/properties/labels"), "description"), metadata.MaxLabels},
		{"a checksum list", text(schema("EntryRequest/properties/sha_url"), "description"), checksum.MaxBytes},
	} {
		if !slices.Contains(strings.Fields(l.in), strconv.Itoa(l.n)) {
			t.Errorf("the limit of %s is %d, and %s does not say so: %s", l.what, l.n, file, l.in)
		}
	}
	raw := text(d.ops["GET /raw/{key}"].object, "description")
	for _, c := range image.Compressions {
		if !strings.Contains(raw, c.Name) {
			t.Errorf("GET /raw/{key} of %s does not name %s", file, c.Name)
		}
	}
	for _, l := range []struct{ what, in string }{
		{"image_url of an EntryRequest", text(schema("EntryRequest/properties/image_url"), "description")},
		{"PUT /catalog.toml", put},
		{"url of a ListedImage", text(schema("ListedImage/properties/url"), "description")},
	} {
		for _, s := range scheme.All {
			if !strings.Contains(l.in, "`"+s.Name+"`") && !strings.Contains(l.in, "`"+s.Name+"://") {
				t.Errorf("the description of %s leaves out the scheme %s: %s", l.what, s.Name, l.in)
			}
		}
	}
	about := text(schema("Problem/properties/code"), "description")
	for _, c := range codes {
		if want := fmt.Sprintf("`%s` %d", c, problem.Code(c).Status()); !strings.Contains(about, want) {
			t.Errorf("%s does not say %s", file, want)
		}
	}
}

func names[T ~string](list []T) []string {
	all := make([]string, len(list))
	for i, s := range list {
		all[i] = string(s)
	}
	return all
}

// TestEventExample tests that the event of the file is consistent: its ID has
// its time.
func TestEventExample(t *testing.T) {
	op := load(t).ops["GET /events"]
	example := child(child(child(op.responses["200"], "content"), "application/json"), "example")
	events := list(example, "events")
	if len(events) == 0 {
		t.Fatal("there is none")
	}
	e := events[0].(object)
	at, ok := layout.EventID(text(e, "id")).Time()
	if got := at.Format(time.RFC3339Nano); !ok || got != e["ts"] {
		t.Errorf("the ID is of %s, the event of %s", got, e["ts"])
	}
}

// constants returns the values of the constants of a string type, from the
// source: name is the file in shared.
func constants(t *testing.T, name, typ string) []string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../shared/"+name, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Type == nil || !isNamed(spec.Type, typ) {
			return true
		}
		for _, v := range spec.Values {
			s, err := strconv.Unquote(v.(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, s)
		}
		return false
	})
	return all
}

package layout

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/store"
)

// A parser parses one kind of key, and build reverses that.
type parser struct {
	kind  string
	parse func(key store.Key) (string, bool)
	build func(string) store.Key
}

// of returns the parser of a kind whose keys hold a T.
func of[T ~string](kind string, parse func(key store.Key) (T, bool), build func(T) store.Key) parser {
	return parser{
		kind,
		func(key store.Key) (string, bool) { v, ok := parse(key); return string(v), ok },
		func(s string) store.Key { return build(T(s)) },
	}
}

// parsers has the parser of each kind.
var parsers = []parser{
	of("digest", DigestName, DigestKey),
	of("entry", EntryRef, EntryKey),
	of("export", ExportOf, ExportKey),
	of("fetched", FetchedRef, FetchedKey),
	of("blob", BlobSHA256, BlobKey),
	of("published map", PublishedSHA256, PublishedKey),
	of("content", ContentSHA256, ContentKey),
	of("metadata", MetadataSHA256, MetadataKey),
	of("served", ServedSHA256, ServedKey),
	of("check job", CheckJobSHA256, CheckJobKey),
	of("staging", StagingID, StagingKey),
	of("upload", UploadID, UploadKey),
	of("hash job", HashJobName, HashJobKey),
	of("fetch job", FetchJobRef, FetchJobKey),
	of("event", ParseEventKey, EventKey),
	of("journal entry", ParseJournalKey, JournalKey),
	of("checkpoint", CheckpointID, CheckpointKey),
	{
		"sidecar",
		func(key store.Key) (string, bool) {
			name, alg, ok := ImageOfSidecar(key)
			return string(name) + "." + alg, ok
		},
		func(s string) store.Key { return store.Key(s) },
	},
}

func TestBmap(t *testing.T) {
	for name, want := range map[image.Name]string{
		"x.img": "[x.img.bmap]", "x.img.gz": "[x.img.gz.bmap x.img.bmap]", "x.qcow2": "[x.qcow2.bmap]", image.Name(strings.Repeat("n", 251)) + ".img": "[]",
	} {
		got := BmapSidecars(name)
		if fmt.Sprint(got) != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
		for _, key := range got {
			if !slices.Contains(ImagesOfBmap(key), name) {
				t.Errorf("%s is no block map of %s", key, name)
			}
		}
	}
	for _, key := range []store.Key{"x.bmap", "x.img", "x.img.sha256.bmap", ""} {
		if names := ImagesOfBmap(key); names != nil {
			t.Errorf("%s is a block map of %v", key, names)
		}
	}
}

func kindOf(t *testing.T, key store.Key) string {
	t.Helper()
	kind := ""
	for _, p := range parsers {
		v, ok := p.parse(key)
		if !ok {
			continue
		}
		if kind != "" {
			t.Errorf("the key %q is both %s and %s", key, kind, p.kind)
		}
		kind = p.kind
		if back := p.build(v); back != key {
			t.Errorf("the %s key %q is %q when built again", p.kind, key, back)
		}
	}
	return kind
}

const (
	ref   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	id    = "0123456789abcdef0123456789abcdef"
	event = "7fffffffffffffff-0123456789abcdef"
)

func TestKeys(t *testing.T) {
	long := strings.Repeat("n", 251) + ".img"
	tests := []struct {
		key  store.Key
		kind string
	}{
		{"digests/x.img", "digest"},
		{"digests/ a+b 50% #?Ü.img", "digest"},
		{store.Key("digests/" + long), "digest"},
		{"digests/x.img.sha256", ""},
		{"digests/x", ""},
		{"digests/", ""},
		{"digests/a/x.img", ""},
		{"digests/../x.img", ""},
		{"digests//x.img", ""},
		{"digests", ""},
		{"entries/" + ref, "entry"},
		{store.Key("entries/" + strings.ToUpper(ref)), ""},
		{store.Key("entries/" + ref[1:]), ""},
		{"entries/" + ref + "0", ""},
		{"entries/" + ref + ".json", ""},
		{"exports/debian-12.img", "export"},
		{"exports/" + ref, "export"},
		{"exports/" + ref + "0", ""},
		{"exports/a/b", ""},
		{"exports/..", ""},
		{"exports/-a", ""},
		{"exports/a b", ""},
		{"exports/ä", ""},
		{"exports/a\n", ""},
		{"exports/", ""},
		{"fetched/" + ref, "fetched"},
		{"blobs/" + ref, "blob"},
		{store.Key("blobs/" + strings.Repeat("g", 64)), ""},
		{"staging/" + ref, "staging"},
		{"uploads/" + id, "upload"},
		{"uploads/" + ref, ""},
		{"jobs/hash/x.img", "hash job"},
		{"jobs/fetch/" + ref, "fetch job"},
		{"jobs/fetch/x.img", ""},
		{"jobs/x.img", ""},
		{"events/" + event, "event"},
		{store.Key("events/" + event[1:]), ""},
		{store.Key("events/" + strings.ToUpper(event)), ""},
		{store.Key("events/" + strings.Replace(event, "-", "0", 1)), ""},
		{store.Key("journal/" + event), "journal entry"},
		{store.Key("journal/" + event[1:]), ""},
		{store.Key("journal/f" + event[1:]), ""},
		{store.Key("journal/" + strings.ToUpper(event)), ""},
		{"index/0123456789abcdef", "checkpoint"},
		{"index/0123456789abcdeg", ""},
		{IndexKey, ""},
		{TrimmedKey, ""},
		{"x.img.sha256", "sidecar"},
		{"X.IMG.sha512", "sidecar"},
		{"x.img.md5", ""},
		{".img.sha256", ""},
		{"x.sha256", ""},
		{"x.img", ""},
		{"", ""},
		{ManifestKey, ""},
		{GoodManifestKey, ""},
		{PasswordKey, ""},
		{SessionKeyKey, ""},
	}
	for _, tt := range tests {
		if got := kindOf(t, tt.key); got != tt.kind {
			t.Errorf("the key %q is %q, want %q", tt.key, got, tt.kind)
		}
	}
}

func TestImageOfSidecar(t *testing.T) {
	for _, alg := range []string{"sha256", "sha512"} {
		if name, got, ok := ImageOfSidecar(store.Key("a b.img.xz." + alg)); !ok || name != "a b.img.xz" || got != alg {
			t.Errorf("ImageOfSidecar = %q, %q, %v", name, got, ok)
		}
	}
}

func TestRef(t *testing.T) {
	// echo -n https://example.org/x.img | sha256sum
	const want = "76811c141dc7db3557e5ad8fc8488d6c234d58c9ba20dbe3c3f3261fac2516b1"
	if got := RefOf("https://example.org/x.img"); got != want || !SHA256(got).Valid() {
		t.Errorf("Ref = %s, want %s", got, want)
	}
	if IsUploadID(ref) || !IsUploadID(id) || SHA256(id).Valid() {
		t.Error("IsUploadID and Valid do not distinguish lengths")
	}
}

func TestEventIDs(t *testing.T) {
	const nonce = "0123456789abcdef"
	times := []time.Time{ // oldest first
		{},
		time.Unix(-1, 0),
		time.UnixMicro(-1),
		time.Unix(0, 0),
		time.UnixMicro(1),
		time.Date(2026, 11, 24, 1, 2, 3, 4000, time.UTC),
		time.Date(2026, 11, 24, 1, 2, 3, 5000, time.UTC),
		time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	var keys []string
	for _, at := range times {
		key := EventKey(NewEventID(at, nonce))
		keys = append(keys, string(key))
		got, ok := ParseEventKey(key)
		if back, okTime := got.Time(); !ok || !okTime || !back.Equal(at) {
			t.Errorf("%v is parsed as %v", at, back)
		}
	}
	slices.Reverse(keys)
	if !slices.IsSorted(keys) {
		t.Errorf("the newest is not first in byte order: %q", keys)
	}
}

func FuzzKeys(f *testing.F) {
	for _, s := range []string{"digests/x.img", "entries/" + ref, "events/" + event, "uploads/" + id, "jobs/hash/Ü 1+2 50%.img.xz", "x.img.sha512", "jobs/fetch/" + ref, "blobs/../x"} {
		f.Add(s, "a+b 50% #?Ü.img", int64(0), uint64(1))
	}
	f.Add("", "x.\u0130MG", int64(math.MinInt64), uint64(math.MaxUint64))
	f.Add("", strings.Repeat("n", 255), int64(math.MaxInt64), uint64(0))
	f.Fuzz(func(t *testing.T, key, s string, micro int64, nonce uint64) {
		kindOf(t, store.Key(key))
		if name := image.Name(s); name.Valid() {
			for _, k := range []struct {
				key  store.Key
				kind string
			}{
				{DigestKey(name), "digest"}, {HashJobKey(name), "hash job"}, {store.Key(name + ".sha256"), "sidecar"}, {ImageKey(name), ""},
			} {
				if got := kindOf(t, k.key); got != k.kind {
					t.Errorf("the key %q is %q, want %q", k.key, got, k.kind)
				}
			}
		}
		for _, k := range []struct {
			key  store.Key
			kind string
		}{
			{EntryKey(RefOf(s)), "entry"},
			{FetchedKey(RefOf(s)), "fetched"},
			{StagingKey(string(RefOf(s))), "staging"},
			{FetchJobKey(RefOf(s)), "fetch job"},
			{BlobKey(SHA256(RefOf(s))), "blob"},
			{ContentKey(SHA256(RefOf(s))), "content"},
			{MetadataKey(SHA256(RefOf(s))), "metadata"},
			{ServedKey(SHA256(RefOf(s))), "served"},
			{CheckJobKey(SHA256(RefOf(s))), "check job"},
		} {
			if got := kindOf(t, k.key); got != k.kind {
				t.Errorf("the key %q is %q, want %q", k.key, got, k.kind)
			}
		}
		// Events keep their time, and a newer one is listed first.
		suffix := strings.Repeat("0", 16)
		at := time.UnixMicro(micro)
		eid := NewEventID(at, suffix)
		if back, ok := eid.Time(); !ok || back.UnixMicro() != micro || kindOf(t, EventKey(eid)) != "event" {
			t.Errorf("%d is parsed as %v, %v", micro, back, ok)
		}
		if other := int64(nonce); other > micro && NewEventID(time.UnixMicro(other), suffix) >= eid {
			t.Errorf("the event at %d is not before the one at %d", other, micro)
		}
	})
}

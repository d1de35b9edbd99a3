package metadata

import (
	"encoding/json"
	"errors"
	"maps"
	"reflect"
	"strings"
	"testing"

	"imageroot/shared/disk"
)

func TestMerge(t *testing.T) {
	m := Merge(
		Source{Operator, &Fields{Title: "Lab", Labels: map[string]string{"rack": "3"}}},
		Source{Manifest, &Fields{Title: "Debian", System: "debian", Labels: map[string]string{"rack": "1", "channel": "stable"}, Devices: []string{"pi5"}}},
		Source{Annotation, nil},
		Source{Inspection, FromInside(&disk.Inside{Title: "Ubuntu 24.04", System: "ubuntu", Version: "24.04", Architecture: disk.ARM64})},
		Source{Name, FromName("debian-12-amd64.img")},
	)
	data, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	// The version of Ubuntu is none of Debian.
	const want = `{"title":{"value":"Lab","from":"operator"},"system":{"value":"debian","from":"manifest"},"version":{"value":"12","from":"name"},` +
		`"architecture":{"value":"arm64","from":"inspection"},"devices":{"value":["pi5"],"from":"manifest"},` +
		`"labels":{"value":{"channel":"stable","rack":"3"},"from":"operator"}}`
	if string(data) != want {
		t.Errorf("%s\nwant\n%s", data, want)
	}
	if said := m.Said(); said.Version != "" || said.Architecture != "arm64" || said.Labels["channel"] != "stable" {
		t.Errorf("%+v", said)
	}
	if m := Merge(); !reflect.DeepEqual(m, Merged{}) || m.Title.Get() != "" {
		t.Errorf("nothing: %+v", m)
	}
}

func TestCheck(t *testing.T) {
	for field, bad := range map[string][]Fields{
		"title":        {{Title: strings.Repeat("x", 257)}, {Title: "a\nb"}, {Title: "a\u202eb"}, {Title: "\x00"}, {Title: "a\xff"}, {Title: "\u200b"}},
		"description":  {{Description: strings.Repeat("x", 4097)}, {Description: "a\rb"}, {Description: "\x1b[31m"}},
		"system":       {{System: "Debian GNU/Linux"}, {System: "-"}, {System: strings.Repeat("x", 65)}},
		"version":      {{Version: "12\t"}, {Version: strings.Repeat("1", 65)}},
		"architecture": {{Architecture: "z80"}, {Architecture: "arm"}},
		"release_date": {{ReleaseDate: "2026-02-30"}, {ReleaseDate: "28.11.2026"}},
		"icon":         {{Icon: "javascript:alert(1)"}, {Icon: "https://"}, {Icon: "https://user:secret@h/"}, {Icon: "/i.svg"}, {Icon: "https://h/\u200b"}, {Icon: "https://h/" + strings.Repeat("x", 2048)}},
		"home_page":    {{HomePage: "ftp://h/"}},
		"init_format":  {{InitFormat: "cloud-init"}},
		"devices":      {{Devices: []string{""}}, {Devices: make([]string, 65)}, {Devices: []string{strings.Repeat("x", 65)}}, {Devices: []string{"a\nb"}}},
		"labels":       {{Labels: map[string]string{"": "x"}}, {Labels: map[string]string{"a b": "x"}}, {Labels: map[string]string{"a\n": "x"}}, {Labels: many(65)}},
		"labels.k":     {{Labels: map[string]string{"k": "a\nb"}}, {Labels: map[string]string{"k": strings.Repeat("x", 257)}}},
		"metadata":     {{Labels: large()}},
	} {
		for _, f := range bad {
			e, ok := errors.AsType[*Error](f.Check())
			if !ok || e.Field != field {
				t.Errorf("%s: %v", field, e)
			}
		}
	}
	good := Fields{
		Title: "Ü 日本 עברית", Description: "a\n\tb", System: "opensuse-leap", Version: "15.6", Architecture: "X86_64", ReleaseDate: "2026-11-28",
		Icon: "https://h/i.svg", Devices: []string{"pi5-64bit"}, InitFormat: "none", HomePage: "http://h", Labels: map[string]string{"example.org/a-b_c": ""},
	}
	if err := good.Check(); err != nil || good.Architecture != "amd64" {
		t.Errorf("%v, %s", err, good.Architecture)
	}
	if err := (&Fields{Labels: many(64)}).Check(); err != nil {
		t.Error(err)
	}
}

func many(n int) map[string]string {
	labels := map[string]string{}
	for range n {
		labels["k"+strings.Repeat("x", len(labels)%60)+strings.Repeat("y", len(labels)/60)] = "v"
	}
	return labels
}

func large() map[string]string {
	labels := many(64)
	for key := range labels {
		labels[key] = strings.Repeat("<", 250) // six bytes each in JSON
	}
	return labels
}

func TestPatch(t *testing.T) {
	old := Words{Fields{Title: "Lab", Devices: []string{"a", "b"}, Labels: map[string]string{"rack": "3", "row": "1"}}, "x.img"}
	was := old
	was.Labels = maps.Clone(old.Labels)
	for _, tt := range []struct{ patch, want string }{
		{`{}`, `{"title":"Lab","devices":["a","b"],"labels":{"rack":"3","row":"1"},"name":"x.img"}`},
		{`{"title": null, "labels": {"rack": null, "new": "y"}, "devices": ["c"]}`, `{"devices":["c"],"labels":{"new":"y","row":"1"},"name":"x.img"}`},
		{`{"labels": null, "devices": null, "name": null, "arch": null}`, `metadata has no field "arch"`},
		{`{"labels": null, "devices": null, "name": null, "icon": null}`, `{"title":"Lab"}`},
		{`{"labels": {"rack": {"deep": null}}}`, `labels must be an object of strings, not an object`},
		{`{"labels": {"rack": 3}}`, `labels must be an object of strings, not a number`},
		{`{"labels": "x"}`, `labels must be an object of strings, not a string`},
		{`{"title": ["x"]}`, `title must be a string, not an array`},
		{`{"title": true}`, `title must be a string, not true or false`},
		{`{"devices": [null]}`, `devices has an empty value`},
		{`{"devices": "pi5"}`, `devices must be an array of strings, not a string`},
		{`{"Title": "x"}`, `metadata has no field "Title"`},
		{`{"name": "../x"}`, `name is no name of an image`},
		{`{"title": ""}`, `{"devices":["a","b"],"labels":{"rack":"3","row":"1"},"name":"x.img"}`},
	} {
		var patch map[string]any
		if err := json.Unmarshal([]byte(tt.patch), &patch); err != nil {
			t.Fatal(err)
		}
		next, err := old.Patch(patch)
		got := ""
		if err != nil {
			got = err.Error()
		} else if data, err := json.Marshal(next); err == nil {
			got = string(data)
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%s: %s, want %s", tt.patch, got, tt.want)
		}
		if !reflect.DeepEqual(old, was) {
			t.Fatalf("%s changed what it was given: %+v", tt.patch, old)
		}
	}
}

func TestFromAnnotations(t *testing.T) {
	f := FromAnnotations(map[string]string{
		"org.opencontainers.image.title": "Debian", "org.opencontainers.image.description": "For the lab", "org.opencontainers.image.version": "12.8",
		"org.opencontainers.image.created": "2026-11-28T20:15:10Z", "org.opencontainers.image.url": "javascript:x", "org.opencontainers.image.vendor": "Ada",
		"org.opencontainers.image.source": "https://h/",
	}, "arm", "v7")
	want := &Fields{Title: "Debian", Description: "For the lab", Version: "12.8", ReleaseDate: "2026-11-28", Architecture: "armhf", Labels: map[string]string{"vendor": "Ada"}}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("%+v", f)
	}
	if f := FromAnnotations(map[string]string{"org.opencontainers.image.title": "\u202e", "org.opencontainers.image.created": "yesterday"}, "wasm", ""); f != nil {
		t.Errorf("%+v", f)
	}
	if f := FromAnnotations(nil, "amd64", "v3"); f == nil || f.Architecture != "amd64" {
		t.Errorf("%+v", f)
	}
}

package catalog

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/record"
)

// ofARM64 is the SHA-256 of the tarball for arm64.
const ofARM64 layout.SHA256 = "3337bf13247bbbc71e139d003b6f8824e90443dc361ac41dece369d2b220af78"

// Only qcow2 images with the fingerprint of their architecture's tarball are listed, and each
// file that the list names has the size and the digest that it says.
func TestSimplestreams(t *testing.T) {
	s := newRawServer(t, false)
	if got := string(s.want(s.ask("GET", "/streams/v1/images.json"), 200).body); !json.Valid([]byte(got)) || !strings.Contains(got, `"products":{}`) {
		t.Errorf("the empty list is %s", got)
	}
	qcow2 := func(name image.Name, kind content.Kind, f *content.Fingerprint) layout.SHA256 {
		return s.hashed(name, []byte(name+"\x00"), content.Record{
			Content: content.Content{Kind: kind}, Check: &content.Check{Verdict: content.Good}, Fingerprint: f, SniffedAt: time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC),
		})
	}
	good := content.Fingerprint{Metadata: ofARM64, SHA256: layout.SHA256(strings.Repeat("ab", 32))}
	lab := qcow2("lab-arm64.qcow2", content.QCOW2, &good)
	words := metadata.Record{SHA256: lab, Words: metadata.Words{Fields: metadata.Fields{Title: `The "lab"`, System: "debian", Version: "12", ReleaseDate: "2026-10-31"}}}
	if _, err := record.Swap(t.Context(), s.f.Catalog, layout.MetadataKey(lab), &words, ""); err != nil {
		t.Fatal(err)
	}
	odd := qcow2("a, b%-arm64.qcow2", content.QCOW2, &good)
	qcow2("no-architecture.qcow2", content.QCOW2, &good)
	qcow2("other-amd64.qcow2", content.QCOW2, &good)
	qcow2("none-arm64.qcow2", content.QCOW2, nil)
	qcow2("given-up-arm64.qcow2", content.QCOW2, &content.Fingerprint{GivenUp: true})
	qcow2("disk-arm64.vmdk", content.VMDK, &good)

	var index struct {
		Format string
		Index  map[string]struct {
			Datatype, Path, Format string
			Products               []layout.SHA256
		}
	}
	var images struct {
		Datatype, Format string
		Products         map[layout.SHA256]struct {
			Aliases, Arch, OS, Release string
			Versions                   map[string]struct {
				Label string
				Items map[string]struct {
					Ftype, Path string
					SHA256      layout.SHA256
					Size        int
					Combined    layout.SHA256 `json:"combined_disk-kvm-img_sha256"`
				}
			}
		}
	}
	for path, into := range map[string]any{"/streams/v1/index.json": &index, "/streams/v1/images.json": &images} {
		r := s.want(s.ask("GET", path), 200)
		if err := json.Unmarshal(r.body, into); err != nil {
			t.Fatal(err)
		}
		s.want(s.ask("GET", path, "If-None-Match", r.header.Get("Etag")), 304)
	}
	listed := slices.Sorted(maps.Keys(images.Products))
	if in := index.Index["images"]; index.Format != "index:1.0" || in.Datatype != "image-downloads" || in.Format != "products:1.0" || in.Path != "streams/v1/images.json" ||
		!slices.Equal(slices.Sorted(slices.Values(in.Products)), listed) || images.Format != in.Format || images.Datatype != in.Datatype {
		t.Errorf("the index is %+v", index)
	}
	if want := slices.Sorted(slices.Values([]layout.SHA256{lab, odd})); !slices.Equal(listed, want) {
		t.Fatalf("listed are %v, want %v", listed, want)
	}
	p, q := images.Products[lab], images.Products[odd]
	if p.Aliases != "lab-arm64,debian/12" || p.Arch != "arm64" || p.OS != "debian" || p.Release != "12" || p.Versions["20261031"].Label != `The "lab"` {
		t.Errorf("%+v", p)
	}
	if q.Aliases != "" || q.OS != "a, b%-arm64.qcow2" || len(q.Versions) != 1 {
		t.Errorf("%+v", q)
	}
	for sha, p := range images.Products {
		for date, v := range p.Versions {
			if _, err := time.Parse("20060102", date); err != nil || len(v.Items) != 3 {
				t.Errorf("%s: version %s with %v", sha, date, v.Items)
			}
			for name, item := range v.Items {
				body := s.want(s.ask("GET", "/"+item.Path), 200).body
				if sum(body) != item.SHA256 || len(body) != item.Size || strings.Contains(item.Path, "%") || (item.Ftype == name) != (item.Combined == good.SHA256) {
					t.Errorf("%s: %+v", name, item)
				}
			}
		}
	}
	s.want(s.ask("GET", fmt.Sprintf("/streams/v1/metadata/%s/metadata.tar", lab)), 404)
}

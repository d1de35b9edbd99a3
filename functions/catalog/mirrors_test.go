package catalog

import (
	"slices"
	"testing"

	"imageroot/shared/inventory"
)

// Only URLs that any client may know and reach are mirrors.
func TestMirrors(t *testing.T) {
	sources := []inventory.Source{
		{Kind: inventory.Local, Location: "a.img"},
		{Kind: inventory.URL, Location: "https://publisher.example/a%20b.img"},
		{Kind: inventory.Manifest, Location: "http://mirror.example:8080/a.img"},
		{Kind: inventory.URL, Location: "https://publisher.example/a.img?token=secret"},
		{Kind: inventory.URL, Location: "https://ada:secret@publisher.example/a.img"},
		{Kind: inventory.URL, Location: "oras://registry.example/a:1"},
		{Kind: inventory.URL, Location: "http://10.0.0.1/a.img"},
		{Kind: inventory.URL, Location: "http://[2001:db8::1]/a.img"},
		{Kind: inventory.URL, Location: "http://nas/a.img"},
		{Kind: inventory.URL, Location: "http://nas.local/a.img"},
	}
	want := []string{"<https://publisher.example/a%20b.img>; rel=duplicate", "<http://mirror.example:8080/a.img>; rel=duplicate"}
	if got := mirrors(sources); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

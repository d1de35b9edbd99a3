package inventory_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

// Checksum files whose events were lost are noticed too.
func TestUnsettledSidecars(t *testing.T) {
	images, catalog := memstore.New(), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	put := func(key, data string) store.Version {
		t.Helper()
		v, err := images.Put(t.Context(), key, strings.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	expect := func(when string, want ...string) {
		t.Helper()
		got, err := inv.Unsettled(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: unsettled are %q, %v; want %q", when, got, err, want)
		}
	}
	version := put("a.img", "bytes")
	expect("without a record", "a.img")
	said := func(publishers ...digest.Publisher) {
		t.Helper()
		_, _, err := record.Change(t.Context(), catalog, layout.DigestKey("a.img"), func(rec *digest.Record, _ bool) error {
			*rec = digest.Record{Meta: rec.Meta, Name: "a.img", Version: version, SHA256: strings.Repeat("ab", 32), By: digest.ByHash, Publishers: publishers}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	said()
	expect("hashed")
	sidecar := put("a.img.sha256", "one")
	expect("a checksum file that nobody has read", "a.img")
	said(digest.Publisher{Algorithm: "sha256", SidecarVersion: sidecar})
	expect("read")
	put("a.img.sha256", "another")
	expect("replaced", "a.img")
	if err := images.Delete(t.Context(), "a.img.sha256"); err != nil {
		t.Fatal(err)
	}
	expect("removed", "a.img")
}

package inventory_test

import (
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

// Listing the image root finds images that are new, removed or without a job.
func TestChanged(t *testing.T) {
	images, catalog := faultstore.New(memstore.New(), nil), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	observed := inv.ObserveCatalog(catalog)
	put := func(key store.Key, data string) store.Version {
		t.Helper()
		v, err := images.Put(t.Context(), key, strings.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	expect := func(when string, want ...image.Name) {
		t.Helper()
		images.Reset(nil)
		got, err := inv.Changed(t.Context())
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: changed are %q, %v; want %q", when, got, err, want)
		}
		for _, c := range images.Calls() {
			if c.Op != "List" {
				t.Errorf("%s: it takes more than listing the image root: %v", when, c)
			}
		}
	}
	is := func(name image.Name, status job.Status, v store.Version) {
		t.Helper()
		_, _, err := record.Change(t.Context(), observed, layout.HashJobKey(name), func(j *job.Job, _ bool) error {
			*j = job.Job{Meta: j.Meta, Name: name, Version: &v, Status: status}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	expect("nothing")
	a, b := put("a.img", "a"), put("b.img", "b")
	put("notes.txt", "no image")
	expect("new", "a.img", "b.img")
	is("a.img", job.Queued, a)
	is("b.img", job.Failed, b)
	expect("a job has one, and has given up the other")
	is("a.img", job.Completed, a)
	expect("a job without an outcome", "a.img")
	_, _, err := record.Change(t.Context(), observed, layout.DigestKey("a.img"), func(rec *digest.Record, _ bool) error {
		*rec = digest.Record{Meta: rec.Meta, Name: "a.img", Version: a, SHA256: layout.SHA256(strings.Repeat("ab", 32)), By: digest.ByHash}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	expect("hashed")
	put("b.img", "another b")
	put("a.img.sha256", "a checksum file")
	expect("replaced, and a checksum file", "a.img", "b.img")
	for _, s := range []job.Status{job.Queued, job.Running, job.Cancelled} {
		is("a.img", s, a)
		expect("a job that reads it for the checksum file is "+string(s), "b.img")
	}
	for _, key := range []string{"a.img", "a.img.sha256", "b.img"} {
		if err := images.Delete(t.Context(), store.Key(key)); err != nil {
			t.Fatal(err)
		}
	}
	expect("gone, and one had a digest", "a.img")
}

// Sidecars whose events were lost are found, too.
func TestUnsettledSidecars(t *testing.T) {
	images, catalog := memstore.New(), memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	put := func(key store.Key, data string) store.Version {
		t.Helper()
		v, err := images.Put(t.Context(), key, strings.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	expect := func(when string, want ...image.Name) {
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
			*rec = digest.Record{Meta: rec.Meta, Name: "a.img", Version: version, SHA256: layout.SHA256(strings.Repeat("ab", 32)), By: digest.ByHash, Publishers: publishers}
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

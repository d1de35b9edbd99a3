package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// stored returns the objects of the stored index by key.
func (s *Server) stored(t testing.TB) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, prefix := range []string{"index/", "journal/"} {
		for _, key := range s.objects(t, s.CatalogBuck, prefix) {
			out, err := s.program(t).GetObject(t.Context(), &s3.GetObjectInput{Bucket: &s.CatalogBuck, Key: &key})
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(out.Body)
			_ = out.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			all[key] = data
		}
	}
	return all
}

// store puts objects in the place of the stored index.
func (s *Server) store(t testing.TB, objects map[string][]byte) {
	t.Helper()
	for key := range s.stored(t) {
		if objects[key] != nil {
			continue
		}
		if _, err := s.program(t).DeleteObject(t.Context(), &s3.DeleteObjectInput{Bucket: &s.CatalogBuck, Key: &key}); err != nil {
			t.Fatal(err)
		}
	}
	for key, data := range objects {
		if _, err := s.program(t).PutObject(t.Context(), &s3.PutObjectInput{Bucket: &s.CatalogBuck, Key: &key, Body: bytes.NewReader(data)}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestIndexDamaged damages the stored index of two runners. A start over it
// answers at once with the whole catalog, or, if the index is an old copy, once
// it has reconciled. Both runners then see each other's changes.
func TestIndexDamaged(t *testing.T) {
	t.Parallel()
	a := Start(t, Options{})
	b := Start(t, Options{Over: a})
	p := publish(t)
	b.AddEntry(t, p.File("/entry.img", content(1, 1000)), "").Must(t, http.StatusCreated)
	a.Put(t, "0.img", content(2, 1000))
	b.WaitHashed(t, "0.img", sum(content(2, 1000)))
	a.WaitRow(t, "entry.img", "is there", nil)
	names := []string{"0.img", "entry.img"}
	const pointer = "index/current"
	checkpointed := func() {
		t.Helper()
		eventually(t, within, "there is a checkpoint", func() error {
			if keys := a.objects(t, a.CatalogBuck, pointer); len(keys) == 0 {
				return errors.New("no pointer to one")
			}
			return nil
		})
	}
	checkpointed()
	old := a.stored(t)
	// edited returns the index with other bytes in all files of checkpoints.
	edited := func(edit func([]byte) []byte) map[string][]byte {
		all := a.stored(t)
		for key, data := range all {
			if strings.HasPrefix(key, "index/") && key != pointer && key != "index/trimmed" {
				all[key] = edit(data)
			}
		}
		return all
	}
	for i, damage := range []struct {
		what string
		to   func() map[string][]byte
		late bool // only a comparison with the store finds what is missing
	}{
		{"deleted", func() map[string][]byte { return nil }, false},
		{"truncated", func() map[string][]byte { return edited(func(b []byte) []byte { return b[:len(b)/2] }) }, false},
		{"garbled", func() map[string][]byte {
			return edited(func(b []byte) []byte { b[len(b)/2] ^= 0x55; return b })
		}, false},
		{"without its files", func() map[string][]byte { return map[string][]byte{pointer: a.stored(t)[pointer]} }, false},
		{"without its pointer", func() map[string][]byte { all := a.stored(t); all[pointer] = []byte{}; return all }, false},
		{"an old copy", func() map[string][]byte { return old }, true},
	} {
		checkpointed()
		b.Kill(t)
		a.store(t, damage.to())
		b.start(t)
		if rows := b.Rows(t); !damage.late {
			for _, name := range names {
				if !slices.ContainsFunc(rows, func(r row) bool { return slices.Contains(r.Names, name) }) {
					t.Errorf("%s: the first answer lacks %q: %+v", damage.what, name, rows)
				}
			}
		}
		for _, name := range names {
			b.WaitRow(t, name, "is there after "+damage.what, nil)
		}
		at, bt := content(uint64(10+i), 1000), content(uint64(20+i), 1000)
		an, bn := fmt.Sprintf("a-%d.img", i), fmt.Sprintf("b-%d.img", i)
		a.Put(t, an, at)
		b.Put(t, bn, bt)
		b.WaitHashed(t, an, sum(at))
		a.WaitHashed(t, bn, sum(bt))
		names = append(names, an, bn)
	}
}

package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

const benchBytes = 256 << 20

func BenchmarkPut(b *testing.B) {
	g := start(b, b.TempDir())
	data := pattern(1, benchBytes)
	r := root(b, g.Endpoint(), "images")
	b.Run("Network", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			put(b, r, "a.img", data)
		}
	})
	b.Run("Inside", func(b *testing.B) {
		b.SetBytes(benchBytes)
		for b.Loop() {
			if _, err := g.Put(b.Context(), "images", "a.img", bytes.NewReader(data), benchBytes, false); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkGet(b *testing.B) {
	g := start(b, b.TempDir())
	r := root(b, g.Endpoint(), "images")
	put(b, r, "a.img", pattern(1, benchBytes))
	buf := make([]byte, 1<<20)
	for name, rg := range map[string]store.Range{"Whole": store.All, "Range": {Offset: 1, Length: benchBytes - 1}} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchBytes)
			for b.Loop() {
				body, _, err := r.Get(b.Context(), "a.img", rg, "")
				if err != nil {
					b.Fatal(err)
				}
				if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, buf); err != nil {
					b.Fatal(err)
				}
				body.Close()
			}
		})
	}
}

func BenchmarkRecord(b *testing.B) {
	g := start(b, b.TempDir())
	for name, r := range map[string]*s3store.Root{"Network": root(b, g.Endpoint(), "catalog"), "Inside": within(b, g, "catalog")} {
		b.Run(name, func(b *testing.B) {
			tag, err := r.CreateRecord(b.Context(), store.Key(name), []byte("{}"))
			for b.Loop() {
				if err != nil {
					b.Fatal(err)
				}
				tag, err = r.ReplaceRecord(b.Context(), store.Key(name), []byte("{}"), tag)
			}
		})
	}
}

func BenchmarkList(b *testing.B) {
	dir := b.TempDir()
	g := start(b, dir)
	r := root(b, g.Endpoint(), "images")
	for i := range 1000 {
		write(b, filepath.Join(dir, "images", fmt.Sprint(i, ".img")), "x")
	}
	for b.Loop() {
		if n := len(keys(b, r)); n != 1000 {
			b.Fatalf("%d keys", n)
		}
	}
}

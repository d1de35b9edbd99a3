package inventory

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
)

var images = flag.Int("images", 10_000, "the number of images in BenchmarkStart")

// BenchmarkStart measures the first answer of a process that starts from a checkpoint,
// and the live heap after its parts.
func BenchmarkStart(b *testing.B) {
	cfg := Config{Images: memstore.New(), Catalog: checkpoint(b, *images), Now: time.Now, Log: slog.New(slog.DiscardHandler)}
	before := heap()
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		inv := New(cfg)
		section := func(err error) {
			if err != nil {
				b.Fatal(err)
			}
		}
		began, busy := time.Now(), cpu(b)
		part := func(what string) {
			b.ReportMetric(time.Since(began).Seconds()*1000, what+"-ms")
			b.ReportMetric((cpu(b)-busy).Seconds()*1000, what+"-cpu-ms")
			b.StopTimer()
			b.ReportMetric(float64(heap()-before)/(1<<20), what+"-MiB")
			b.StartTimer()
			began, busy = time.Now(), cpu(b)
		}
		_, err := inv.blobs.All(b.Context())
		section(err)
		part("1-table")
		s, err := inv.Snapshot(b.Context())
		section(err)
		part("2-snapshot")
		if s.Len() != *images {
			b.Fatalf("%d rows", s.Len())
		}
		runtime.KeepAlive(inv)
	}
}

// cpu returns the processor time that the process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// heap returns the size of the live heap in bytes.
func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// checkpoint returns a catalog root that has only an index, with n images that are
// hashed, inspected and checked.
func checkpoint(b *testing.B, n int) *memstore.Root {
	images, records := memstore.New(), memstore.New()
	write := func(key store.Key, v record.Validator) {
		data, err := json.Marshal(v)
		if err == nil {
			_, err = records.CreateRecord(b.Context(), key, data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range n {
		name := image.Name(fmt.Sprintf("debian-%d-generic-amd64-%06d.%s", 10+i%4, i, [...]string{"qcow2", "img.xz", "iso", "img"}[i%4]))
		version, err := images.Put(b.Context(), layout.ImageKey(name), strings.NewReader(fmt.Sprint(i)), -1)
		if err != nil {
			b.Fatal(err)
		}
		sha := func(salt string) layout.SHA256 {
			return layout.SHA256(fmt.Sprintf("%x", sha256.Sum256(fmt.Append(nil, salt, i))))
		}
		at := time.Date(2026, 1, 1, 0, 0, i, i*1000, time.UTC)
		meta := record.Meta{Format: record.Format{Schema: 1}, Nonce: string(sha("nonce")[:26])}
		write(layout.DigestKey(name), &digest.Record{Meta: meta, Name: name, Version: version, SHA256: sha("bytes"), HashedAt: at, By: digest.ByHash})
		size, raw := int64(i)<<20, int64(i)<<22
		c := content.Record{
			Meta: meta, SHA256: sha("bytes"), SizeBytes: size, SniffedAt: at,
			Content: content.Content{Kind: content.GPT, What: "a disk with a GPT partition table", VirtualSize: &raw},
		}
		if i%4 < 2 {
			c.Kind, c.What = content.QCOW2, "a qcow2 image of version 3"
			c.Check = &content.Check{Verdict: content.Good, RawSizeBytes: &raw, RawSHA256: sha("raw"), At: at}
		}
		write(layout.ContentKey(sha("bytes")), &c)
	}
	inv := New(Config{Images: images, Catalog: records, Compact: true, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	_, err := inv.Snapshot(b.Context())
	if err = cmp.Or(err, inv.Flush(context.Background())); err != nil {
		b.Fatal(err)
	}
	catalog := memstore.New()
	for info := range records.List(b.Context(), layout.IndexPrefix, "") {
		body, _, err := records.Get(b.Context(), info.Key, store.All, "")
		if err == nil {
			var data []byte
			data, err = io.ReadAll(body)
			if err == nil {
				_, err = catalog.Put(b.Context(), info.Key, strings.NewReader(string(data)), -1)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	return catalog
}

package inventory_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/metadata"
	"imageroot/shared/store"
)

// Names and URLs of the random catalogs: few, so that changes concern the same rows.
var (
	randomNames = []image.Name{
		"a.img", "A.IMG", "b.img", "b.img.gz", "b.img.xz", "b.qcow2", "c.iso", "\u00fc.img.gz", "u\u0308.img.gz", "\u00dc.img",
	}
	randomURLs = []string{src("a.img"), src("b.img.xz"), src("e.qcow2"), src("2/a.img")}
	randomSums = []layout.SHA256{sha("a"), sha("b"), sha("c"), sha("d"), sha("e")}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// A random changes a catalog at random.
type random struct {
	*bench
	r  *rand.Rand
	at time.Time
}

// put writes a record, or sometimes deletes or damages it.
func (w *random) put(key store.Key, v any) {
	switch w.r.IntN(8) {
	case 0, 1:
		if err := w.catalog.Delete(w.t.Context(), key); err != nil {
			w.t.Fatal(err)
		}
	case 2:
		w.record(key, "damaged")
	default:
		w.record(key, v)
	}
	w.TouchCatalog(key)
}

func (w *random) sum() layout.SHA256 { return pick(w.r, randomSums) }

func (w *random) size() *int64 { return pick(w.r, []*int64{nil, bytes(0), bytes(3), bytes(4)}) }

func (w *random) time() time.Time { return w.at.Add(time.Duration(w.r.IntN(5)) * time.Hour) }

// change makes one change and returns what it was.
func (w *random) change() string {
	r := w.r
	name, url, sum := pick(r, randomNames), pick(r, randomURLs), w.sum()
	ref := layout.RefOf(url)
	status := pick(r, []job.Status{job.Queued, job.Running, job.Failed, job.Cancelled, job.Completed})
	j := job.Job{Name: name, Status: status, Error: pick(r, []string{"one", "two"}), BytesDone: int64(r.IntN(3)), QueuedAt: w.time()}
	switch n := r.IntN(14); n {
	case 0, 1, 2:
		key := layout.ImageKey(name)
		switch r.IntN(6) {
		case 0:
			key += ".sha256"
		case 1:
			key = pick(r, []store.Key{"notes.txt", "x.tar.gz", "dir.vma"})
		}
		if r.IntN(3) == 0 {
			if err := w.images.Delete(w.t.Context(), key); err != nil {
				w.t.Fatal(err)
			}
		} else {
			w.image(image.Name(key), strings.Repeat("x", 1+r.IntN(4)))
		}
		w.TouchImage(key)
		return "image " + string(key)
	case 3, 4:
		info, err := w.images.Head(w.t.Context(), layout.ImageKey(name))
		if err != nil {
			info.ETag = "another"
		}
		rec := digest.Record{Name: name, Version: info.Version, SHA256: sum, HashedAt: w.time(), By: digest.ByHash}
		if r.IntN(3) == 0 {
			rec.Publishers = []digest.Publisher{{Algorithm: "sha256", Expected: string(w.sum()), Match: r.IntN(2) == 0}}
		}
		w.put(layout.DigestKey(name), rec)
		return "digest " + string(name)
	case 5:
		kind := pick(r, []content.Kind{content.MBR, content.Gzip, content.QCOW2, content.Text})
		rec := content.Record{SHA256: sum, SizeBytes: 3, Content: content.Content{Kind: kind, What: "what " + string(kind) + " is", VirtualSize: w.size()}}
		if r.IntN(2) == 0 {
			rec.Check = &content.Check{Verdict: pick(r, []content.Verdict{content.Good, content.Damaged}), Reason: "it ends early", RawSizeBytes: w.size(), RawSHA256: w.sum()}
		}
		w.put(layout.ContentKey(sum), rec)
		return "content " + string(sum[:1])
	case 6:
		w.put(layout.BlobKey(sum), "bytes")
		return "blob " + string(sum[:1])
	case 7:
		w.put(layout.EntryKey(ref), entry.Entry{
			URL: url, Name: name, Format: "img", SHA256: pick(r, []layout.SHA256{"", sum}), SizeBytes: w.size(), AddedAt: w.time(), Changed: pick(r, []string{"", "it has changed"}),
		})
		return "entry " + url
	case 8:
		w.put(layout.FetchedKey(ref), entry.Fetched{Src: url, SHA256: sum, SizeBytes: 3, At: w.time()})
		return "fetched " + url
	case 9:
		w.put(layout.HashJobKey(name), j)
		return "hash job " + string(name)
	case 10:
		j.Src = url
		w.put(layout.FetchJobKey(ref), j)
		return "fetch job " + url
	case 11:
		w.put(layout.MetadataKey(sum), metadata.Record{SHA256: sum, Words: metadata.Words{Name: name, Fields: metadata.Fields{
			Title: pick(r, []string{"", "Zwölf", "b"}), Labels: pick(r, []map[string]string{nil, {"rack": "3"}}),
		}}})
		return "metadata " + string(sum[:1])
	case 12:
		w.put(pick(r, []store.Key{layout.CheckJobKey(sum), layout.DiskJobKey(sum)}), j)
		return "content job " + string(sum[:1])
	default:
		var list []manifest.Image
		for i, u := range randomURLs {
			if r.IntN(2) == 0 {
				list = append(list, manifest.Image{Name: randomNames[2+i], Src: u, SHA256: pick(r, []layout.SHA256{"", w.sum()}), SizeBytes: w.size()})
			}
		}
		if r.IntN(4) == 0 {
			w.image(image.Name(layout.ManifestKey), "nonsense")
		} else {
			w.manifest(list...)
		}
		w.TouchImage(layout.ManifestKey)
		return "manifest"
	}
}

// described returns all that a snapshot answers, a line each.
func described(t *testing.T, s *inventory.Snapshot) (lines []string) {
	t.Helper()
	say := func(what string, v any) {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, what+" "+string(data))
	}
	name := func(r *inventory.Row, ok bool) string {
		if !ok {
			return "-"
		}
		return string(r.Names[0]) + " " + string(r.Digest()) + " " + r.Sources[0].Location
	}
	say("problem", s.Problem)
	say("others", s.Others)
	say("numbers", []int64{int64(s.Len()), s.StoredBytes, int64(s.Attention)})
	for r := range s.Rows(nil) {
		say("row", r)
		say("more", []any{r.Known, r.Blob, r.FetchFailed, r.Head, r.Head.Format(), s.Said(r.Head), s.Publishers(r)})
		if len(r.Warnings) > 0 && !r.Head.Attention {
			t.Errorf("%v needs no attention: %q", r.Names, r.Warnings)
		}
	}
	for _, n := range randomNames {
		row, ok := s.ByName(n)
		spelled, _ := s.Spelled(n)
		say("name "+string(n), []any{name(row, ok), spelled, s.ByDisk(n), s.ByDisk(image.DiskName(n))})
	}
	for _, u := range randomURLs {
		row, ok := s.BySource(layout.RefOf(u))
		added, ok2 := s.ByEntry(layout.RefOf(u))
		say("source "+u, []string{name(row, ok), name(added, ok2)})
	}
	for _, sum := range randomSums {
		row, ok := s.BySHA256(sum)
		byRef, ok2 := s.ByRef(string(sum[:20]))
		say("digest "+string(sum[:1]), []string{name(row, ok), name(byRef, ok2)})
	}
	for i, text := range []string{"", "b", "\u00dc img", string(sha("a")[:8]), "zw\u00f6lf", "one", "rack="} {
		for _, field := range inventory.Sorts() {
			for _, sort := range []string{field, "-" + field} {
				q := inventory.Query{Text: text, Sort: sort, Limit: 3}
				if i > 0 {
					q.States = []string{inventory.Attention, inventory.Cached, inventory.Available}[:i%4]
				}
				for {
					page, err := s.Query(q)
					if err != nil {
						t.Fatal(err)
					}
					var names []string
					for _, r := range page.Rows {
						names = append(names, name(r, true))
					}
					say("query "+text+" "+sort, []any{names, page.Total, page.Next})
					if q.Cursor = page.Next; q.Cursor == "" {
						break
					}
				}
			}
		}
	}
	return lines
}

// A snapshot that was made from the previous one is the same as one that is made from
// nothing, whatever has changed.
func TestSnapshotFollows(t *testing.T) {
	for seed := range uint64(6) {
		w := &random{newBench(t), rand.New(rand.NewPCG(seed, 0)), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		for step := range 40 {
			var changes []string
			for range 1 + w.r.IntN(3) {
				changes = append(changes, w.change())
			}
			s, err := w.Snapshot(t.Context())
			fresh, err2 := w.restart().Snapshot(t.Context())
			if err != nil || err2 != nil {
				t.Fatalf("seed %d, step %d: %v, %v", seed, step, err, err2)
			}
			got, want := described(t, s), described(t, fresh)
			if slices.Equal(got, want) {
				continue
			}
			at := 0
			for at < min(len(got), len(want))-1 && got[at] == want[at] {
				at++
			}
			t.Fatalf("seed %d, step %d, after the changes %q, the snapshot says\n\t%s\none that is made from nothing\n\t%s",
				seed, step, changes, got[at], want[at])
		}
	}
}

// A query has each matching row once, in the order of the field, then of name, digest and
// source, however many rows are on a page.
func TestQueryOrder(t *testing.T) {
	values := map[string]func(r *inventory.Row) (string, int64){
		"name":   func(r *inventory.Row) (string, int64) { return strings.ToLower(string(r.Names[0])), 0 },
		"format": func(r *inventory.Row) (string, int64) { return string(r.Format), 0 },
		"sha256": func(r *inventory.Row) (string, int64) { return string(r.Digest()), 0 },
		"state":  func(r *inventory.Row) (string, int64) { return r.HashState, 0 },
		"added":  func(r *inventory.Row) (string, int64) { return "", max(0, r.Added.Unix()) },
		"size": func(r *inventory.Row) (string, int64) {
			if r.SizeBytes == nil {
				return "", -1
			}
			return "", *r.SizeBytes
		},
	}
	say := func(r *inventory.Row) string {
		return fmt.Sprint(r.Names[0], " ", r.Digest(), " ", r.Sources[0].Kind, " ", r.Sources[0].Location)
	}
	for seed := range uint64(5) {
		w := &random{newBench(t), rand.New(rand.NewPCG(seed, 1)), time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
		for range 60 {
			w.change()
		}
		s, err := w.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range inventory.Sorts() {
			for _, sort := range []string{field, "-" + field} {
				rows := slices.SortedFunc(s.Rows(nil), func(a, b *inventory.Row) int {
					text, number := values[field](a)
					text2, number2 := values[field](b)
					c := cmp.Or(cmp.Compare(text, text2), cmp.Compare(number, number2))
					if sort != field {
						c = -c
					}
					return cmp.Or(c, cmp.Compare(a.Names[0], b.Names[0]), cmp.Compare(say(a), say(b)))
				})
				var want, got []string
				for _, r := range rows {
					want = append(want, say(r))
				}
				q := inventory.Query{Sort: sort, Limit: 1 + w.r.IntN(4)}
				for {
					page, err := s.Query(q)
					if err != nil || page.Total != len(want) {
						t.Fatalf("seed %d: by %s, %d of %d rows are found: %v", seed, sort, page.Total, len(want), err)
					}
					for _, r := range page.Rows {
						got = append(got, say(r))
					}
					if q.Cursor = page.Next; q.Cursor == "" {
						break
					}
				}
				if !slices.Equal(got, want) {
					t.Fatalf("seed %d: by %s, on pages of %d, the rows are\n\t%s\nwant\n\t%s", seed, sort, q.Limit, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
				}
			}
		}
	}
}

package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"imageroot/shared/store"
	"imageroot/test/need"
)

const mib = 1 << 20

// assembly returns the path of an upload's assembly.
func assembly(dir, bucket, key, id string) string {
	return filepath.Join(uploadDir(dir, bucket, key), id, "object")
}

// inode returns the inode of a file and the number of bytes that it occupies on the
// disk.
func inode(t *testing.T, path string) (number uint64, used int64) {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino, st.Blocks * 512
}

// A sent is a part to send.
type sent struct {
	n    int32
	data []byte
}

// A sender sends parts, through S3 or from within the process.
type sender interface {
	UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error)
}

// send sends parts one after another and returns the last of each number.
func send(t *testing.T, r sender, key, id string, parts ...sent) map[int32]store.Part {
	t.Helper()
	all := map[int32]store.Part{}
	for _, p := range parts {
		part, err := r.UploadPart(t.Context(), store.Key(key), id, p.n, bytes.NewReader(p.data), int64(len(p.data)))
		if err != nil {
			t.Fatal(err)
		}
		all[p.n] = part
	}
	return all
}

// TestPutTogether completes uploads whose parts arrived in various orders. The
// object has the requested parts. If the parts have the usual sizes, it is the
// assembly.
func TestPutTogether(t *testing.T) {
	a, b, c := pattern(1, 6*mib), pattern(2, 6*mib), pattern(3, 6*mib)
	long, short, tail := pattern(4, 9*mib), pattern(5, 5*mib), pattern(6, 1000)
	dir := t.TempDir()
	g := start(t, dir)
	var buckets atomic.Int32
	for name, test := range map[string]struct {
		sent  []sent
		asked []int32
		kept  bool // the object is the assembly
	}{
		"in order":               {[]sent{{1, a}, {2, b}, {3, tail}}, []int32{1, 2, 3}, true},
		"last first":             {[]sent{{3, tail}, {2, b}, {1, a}}, []int32{1, 2, 3}, true},
		"a short one in between": {[]sent{{1, a}, {2, short}, {3, tail}}, []int32{1, 2, 3}, true},
		"a short one shifts":     {[]sent{{1, a}, {2, short}, {3, c}}, []int32{1, 2, 3}, false},
		"the short one first":    {[]sent{{2, short}, {1, a}, {3, c}}, []int32{1, 2, 3}, false},
		"a long one":             {[]sent{{1, a}, {2, long}}, []int32{1, 2}, true},
		"a long one shifts":      {[]sent{{1, a}, {2, long}, {3, c}}, []int32{1, 2, 3}, false},
		"sent again":             {[]sent{{1, a}, {2, b}, {1, c}}, []int32{1, 2}, true},
		"sent again and shorter": {[]sent{{1, a}, {2, b}, {1, short}}, []int32{1, 2}, false},
		"sent three times":       {[]sent{{1, a}, {1, b}, {1, c}, {2, tail}}, []int32{1, 2}, false},
		"a part left out":        {[]sent{{1, a}, {2, b}, {3, c}}, []int32{1, 3}, false},
		"the last left out":      {[]sent{{1, a}, {2, b}, {3, c}}, []int32{1, 2}, false},
		"numbers with gaps":      {[]sent{{10, a}, {20, b}, {9999, c}}, []int32{10, 20, 9999}, false},
		"one":                    {[]sent{{1, a}}, []int32{1}, true},
		"one tail":               {[]sent{{1, tail}}, []int32{1}, false},
		"one that is not first":  {[]sent{{7, a}}, []int32{7}, false},
	} {
		complete := func(t *testing.T, within bool) {
			t.Parallel()
			bucket := fmt.Sprintf("images-%d", buckets.Add(1))
			r := root(t, g.Endpoint(), bucket)
			var from sender = r
			if within {
				from = insider{g, bucket}
			}
			put(t, r, "a.img", []byte("old"))
			before, _ := get(t, r, "a.img")
			id, err := r.CreateUpload(t.Context(), "a.img")
			if err != nil {
				t.Fatal(err)
			}
			etags := send(t, from, "a.img", id, test.sent...)
			data := map[int32][]byte{}
			for _, p := range test.sent {
				data[p.n] = p.data
			}
			var parts []store.Part
			var want []byte
			for _, n := range test.asked {
				parts = append(parts, etags[n])
				want = append(want, data[n]...)
			}
			if listed, err := r.ListParts(t.Context(), "a.img", id); err != nil || len(listed) != len(etags) {
				t.Fatalf("%d parts are listed (%v)", len(listed), err)
			} else {
				for _, p := range listed {
					if !p.Equal(etags[p.Number]) {
						t.Errorf("part %d is listed as %+v, and was answered as %+v", p.Number, p, etags[p.Number])
					}
				}
			}
			if string(before) != "old" {
				t.Errorf("the object was %q before the upload was completed", before)
			}
			var into uint64
			if _, err := os.Stat(assembly(dir, bucket, "a.img", id)); err == nil {
				into, _ = inode(t, assembly(dir, bucket, "a.img", id))
			}
			v, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
			if err != nil {
				t.Fatal(err)
			}
			if got, now := get(t, r, "a.img"); !bytes.Equal(got, want) || !now.Equal(v) {
				t.Errorf("the object has %d bytes of %d, others: %v", len(got), len(want), now)
			}
			if is, _ := inode(t, filepath.Join(dir, bucket, "a.img")); (is == into) != test.kept {
				t.Errorf("the object is the file that parts were put into: %v, want %v", is == into, test.kept)
			}
			if left := debris(t, filepath.Join(dir, bucket)); len(left) > 0 {
				t.Errorf("left %q", left)
			}
			if again, err := r.CompleteUpload(t.Context(), "a.img", id, parts); err != nil || !again.Equal(v) {
				t.Errorf("the repeat: %+v (%v), the first: %+v", again, err, v)
			}
		}
		t.Run(name, func(t *testing.T) { complete(t, false) })
		t.Run(name+", from within", func(t *testing.T) { complete(t, true) })
	}
}

// TestPartsOnce: the disk holds the bytes of an upload once, before and after its
// completion, and needs no more space.
func TestPartsOnce(t *testing.T) {
	dir := t.TempDir()
	var disk disk
	g := start(t, dir, disk.under)
	r := root(t, g.Endpoint(), "images")
	id, parts := begin(t, r, "a.img", pattern(1, 16*mib), pattern(2, 16*mib), pattern(3, 100))
	path := assembly(dir, "images", "a.img", id)
	for _, n := range []string{"1", "2"} {
		if _, used := inode(t, filepath.Join(filepath.Dir(path), n)); used > 64<<10 {
			t.Errorf("part %s has %d bytes on the disk", n, used)
		}
	}
	if _, used := inode(t, path); used < 32*mib || used > 33*mib {
		t.Errorf("what was put together has %d bytes on the disk", used)
	}
	disk.set(4096)
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, parts); err != nil {
		t.Error(err)
	}
}

// TestSamePartAtOnce sends one part many times concurrently, through two processes,
// each time with other bytes. The object has the bytes of the ETag that completes
// it.
func TestSamePartAtOnce(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	endpoints := []string{g.Endpoint(), startChild(t, dir).endpoint}
	r := root(t, g.Endpoint(), "images")
	for round := range 6 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			key := store.Key(fmt.Sprint(round, ".img"))
			id, err := r.CreateUpload(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var mu sync.Mutex
			sent := map[string][]byte{}
			for side := range 4 {
				r := client(t, endpoints[side%2]).Root("images", "")
				for n := int32(1); n <= 3; n++ {
					wg.Go(func() {
						data := pattern(round*100+side*10+int(n), 5*mib)
						p, err := r.UploadPart(context.Background(), key, id, n, bytes.NewReader(data), int64(len(data)))
						if err != nil {
							t.Error(err)
							return
						}
						mu.Lock()
						sent[p.ETag] = data
						mu.Unlock()
					})
				}
			}
			wg.Wait()
			parts, err := r.ListParts(t.Context(), key, id)
			if err != nil || len(parts) != 3 {
				t.Fatalf("%d parts are listed (%v)", len(parts), err)
			}
			var want []byte
			for _, p := range parts {
				want = append(want, sent[p.ETag]...)
			}
			if _, err := r.CompleteUpload(t.Context(), key, id, parts); err != nil {
				t.Fatal(err)
			}
			if got, _ := get(t, r, string(key)); !bytes.Equal(got, want) {
				t.Errorf("%s: the object has %d bytes of %d, others", key, len(got), len(want))
			}
		})
	}
}

// TestLateParts sends more parts during and after the completion. The object keeps
// the bytes that it was completed with.
func TestLateParts(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	endpoints := []string{g.Endpoint(), startChild(t, dir).endpoint}
	r := root(t, g.Endpoint(), "images")
	for round := range 4 {
		key := store.Key(fmt.Sprint(round, ".img"))
		first, second := pattern(round, 8*mib), pattern(round+50, 8*mib)
		id, parts := begin(t, r, string(key), first, second)
		var completed atomic.Bool
		var wg sync.WaitGroup
		for side := range 2 {
			late := client(t, endpoints[side]).Root("images", "")
			wg.Go(func() {
				data := pattern(99, 8*mib)
				for n := int32(0); ; n++ {
					over := completed.Load()
					_, err := late.UploadPart(t.Context(), key, id, 3+n%20+int32(side)*20, bytes.NewReader(data), int64(len(data)))
					if errors.Is(err, store.ErrNotFound) {
						return
					}
					if over {
						t.Errorf("%s: a part after the completion: %v", key, err)
						return
					}
				}
			})
		}
		_, err := r.CompleteUpload(t.Context(), key, id, parts)
		completed.Store(true)
		got, v := get(t, r, string(key))
		if err != nil || !bytes.Equal(got, slices.Concat(first, second)) {
			t.Errorf("%s: the object has %d bytes, others (%v)", key, len(got), err)
		}
		wg.Wait()
		if now := version(t, g.Endpoint(), "images", string(key)); !now.Equal(v) {
			t.Errorf("%s: it went from %+v to %+v", key, v, now)
		}
		if got, _ := get(t, r, string(key)); !bytes.Equal(got, slices.Concat(first, second)) {
			t.Errorf("%s: the object changed behind its ETag", key)
		}
	}
}

// TestDeepFailedCompletion interrupts a completion with a full disk. Another one,
// of other parts, then has the bytes of each.
func TestDeepFailedCompletion(t *testing.T) {
	dir := need.Mount(t, "tmpfs", "size=96m")
	var disk disk
	g := start(t, dir, disk.under)
	r := root(t, g.Endpoint(), "images")
	id, err := r.CreateUpload(t.Context(), "a.img")
	if err != nil {
		t.Fatal(err)
	}
	disk.set(1 << 40) // as if others filled the disk after the check
	a, b, long := pattern(1, 5*mib), pattern(2, 5*mib), pattern(3, 50*mib)
	etags := send(t, r, "a.img", id, sent{1, a}, sent{2, b}, sent{2, a}, sent{3, long})
	all := []store.Part{etags[1], etags[2], etags[3]}
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, all); !errors.Is(err, store.ErrFull) {
		t.Errorf("completing what does not fit: %v", err)
	}
	for n, p := range send(t, r, "a.img", id, sent{2, b}) {
		etags[n] = p
	}
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, []store.Part{etags[1], etags[2]}); err != nil {
		t.Fatal(err)
	}
	if got, _ := get(t, r, "a.img"); !bytes.Equal(got, slices.Concat(a, b)) {
		t.Errorf("the object has %d bytes, others", len(got))
	}
}

// TestKilledAfterPublishing resumes an upload whose process was killed after the
// object had its name. Operations on the upload do not change the object's copy,
// which is the same file.
func TestKilledAfterPublishing(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	r := root(t, g.Endpoint(), "images")
	first, tail := pattern(1, 6*mib), pattern(2, 3*mib)
	id, parts := begin(t, r, "a.img", first, tail)
	path := filepath.Join(uploadDir(dir, "images", "a.img"), id)
	saved := mkdir(t, dir, "saved")
	for _, name := range []string{"1", "2", "object"} {
		if err := os.Link(filepath.Join(path, name), filepath.Join(saved, name)); err != nil {
			t.Fatal(err)
		}
	}
	made, err := r.CompleteUpload(t.Context(), "a.img", id, parts)
	if err != nil {
		t.Fatal(err)
	}
	f, err := g.Rename("images", "a.img", "b.img", made.ETag)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	want, v := get(t, r, "b.img")
	mkdir(t, filepath.Dir(path))
	if err := os.Rename(saved, path+".0123456789abcdef-2.inprogress"); err != nil {
		t.Fatal(err)
	}
	unchanged := func(after string) {
		t.Helper()
		if got, now := get(t, r, "b.img"); !bytes.Equal(got, want) || !now.Equal(v) {
			t.Errorf("after %s the copy went from %+v to %+v", after, v, now)
		}
	}
	wrong := []store.Part{{Number: 1, ETag: parts[1].ETag}, parts[1]}
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, wrong); err == nil {
		t.Error("completed with a wrong ETag") // the upload is released
	}
	send(t, r, "a.img", id, sent{3, pattern(3, 6*mib)})
	unchanged("a part")
	if _, err := r.CompleteUpload(t.Context(), "a.img", id, parts[:1]); err != nil {
		t.Fatal(err)
	}
	unchanged("a completion")
	if got, _ := get(t, r, "a.img"); !bytes.Equal(got, first) {
		t.Errorf("the object has %d bytes, others", len(got))
	}
}

// TestKilledWhilePartsArrive kills the process repeatedly, also during a part and
// during the completion, and resumes from the parts that it lists.
func TestKilledWhilePartsArrive(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	const n, size = 6, 5 * mib
	for round := range 3 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			dir, rnd := t.TempDir(), rand.New(rand.NewPCG(seed, uint64(round)))
			key := store.Key(fmt.Sprint(round, ".img"))
			var id string
			done := false
			for starts := 1; !done; starts++ {
				if starts > 100 {
					t.Fatalf("%s: it is not completed after %d starts", key, starts)
				}
				p := startChild(t, dir)
				r := root(t, p.endpoint, "images")
				if id == "" {
					var err error
					if id, err = r.CreateUpload(t.Context(), key); err != nil {
						t.Fatal(err)
					}
				}
				ctx, stop := context.WithCancel(t.Context())
				var wg sync.WaitGroup
				acts := 1 + rnd.IntN(3)
				killed := make(chan struct{})
				kill := sync.OnceFunc(func() { close(killed) })
				wg.Go(func() {
					defer stop()
					<-killed
					p.kill()
				})
				listed, err := r.ListParts(ctx, key, id)
				if errors.Is(err, store.ErrNotFound) { // it was completed, and the answer was lost
					kill()
					wg.Wait()
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				have := map[int32]store.Part{}
				for _, part := range listed {
					have[part.Number] = part
				}
				wg.Go(func() {
					defer kill()
					for i := int32(1); i <= n; i++ {
						if _, ok := have[i]; ok {
							continue
						}
						if acts--; acts == 0 {
							go kill() // during this part
						}
						data := pattern(round*10+int(i), size)
						part, err := r.UploadPart(ctx, key, id, i, bytes.NewReader(data), size)
						if err != nil {
							if acts > 0 {
								t.Errorf("%s: part %d, before the process was killed: %v", key, i, err)
							}
							return
						}
						have[i] = part
					}
					if acts > 0 {
						if rnd.IntN(2) == 0 {
							acts = 0
							go kill() // during the completion
						}
						parts := make([]store.Part, n)
						for i := range parts {
							parts[i] = have[int32(i+1)]
						}
						_, err := r.CompleteUpload(ctx, key, id, parts)
						done = err == nil
						if err != nil && acts > 0 {
							t.Errorf("%s: completing, before the process was killed: %v", key, err)
						}
					}
				})
				wg.Wait()
			}
			p := startChild(t, dir)
			var want []byte
			for i := range n {
				want = append(want, pattern(round*10+i+1, size)...)
			}
			if got, _ := get(t, root(t, p.endpoint, "images"), string(key)); !bytes.Equal(got, want) {
				t.Errorf("%s: the object has %d bytes of %d, others", key, len(got), len(want))
			}
			if left := debris(t, filepath.Join(dir, "images")); len(left) > 0 {
				t.Errorf("left %q", left)
			}
		})
	}
}

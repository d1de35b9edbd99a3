package storetest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing/iotest"
	"time"

	"imageroot/shared/store"
)

func (s *suite) missing() {
	s.isMissing("none.img")
	s.isMissing("none/none.img")
	s.lists("", "")
	s.lists("none/", "")
}

func (s *suite) putAndGet() {
	began := time.Now().Add(-time.Minute)
	for _, n := range []int{0, 1, 1000, 3 << 20} {
		data := pattern(1, n)
		key := store.Key(fmt.Sprintf("%d.img", n))
		v := s.puts(key, plain{bytes.NewReader(data)}, int64(n), data)
		if v.LastModified.Before(began) || v.LastModified.After(time.Now().Add(time.Minute)) {
			s.Errorf("%q was last modified at %v", key, v.LastModified)
		}
	}
	// A reader may return one byte at a time.
	data := pattern(2, 1000)
	s.puts("bytes.img", iotest.OneByteReader(bytes.NewReader(data)), 1000, data)

	// Another content has another version, even with the same size and in the same
	// second.
	old := s.put("again.img", pattern(3, 1000))
	v := s.put("again.img", pattern(4, 1000))
	if v.Equal(old) || v.ETag == old.ETag {
		s.Errorf("two contents have one version: %+v, %+v", old, v)
	}
	s.holds("again.img", pattern(4, 1000))
	s.put("again.img", nil)
	s.holds("again.img", nil)
	s.put("again.img", pattern(5, 10))
	s.holds("again.img", pattern(5, 10))
}

func (s *suite) ranges() {
	data := pattern(1, 1000)
	v := s.put("x.img", data)
	for _, tt := range []struct {
		r    store.Range
		want []byte
	}{
		{store.All, data},
		{store.Range{Offset: 0, Length: 1}, data[:1]},
		{store.Range{Offset: 0, Length: 1000}, data},
		{store.Range{Offset: 1, Length: -1}, data[1:]},
		{store.Range{Offset: 10, Length: 20}, data[10:30]},
		{store.Range{Offset: 999, Length: 1}, data[999:]},
		{store.Range{Offset: 999, Length: -1}, data[999:]},
		{store.Range{Offset: 990, Length: 100}, data[990:]}, // up to the end
		{store.Range{Offset: 0, Length: 5000}, data},
	} {
		if info := s.hasRange("x.img", tt.r, "", tt.want); !info.Equal(v) || info.Key != "x.img" {
			s.Errorf("range %+v: of %+v, want the whole object's version %+v", tt.r, info, v)
		}
	}
	for _, r := range []store.Range{{Offset: 1000, Length: -1}, {Offset: 1000, Length: 1}, {Offset: 5000, Length: 10}, {Offset: 0, Length: 0}} {
		if got, _, err := s.read("x.img", r, ""); err == nil || errors.Is(err, store.ErrNotFound) {
			s.Errorf("range %+v: %d bytes, %v; want an error that is not ErrNotFound", r, len(got), err)
		}
	}
	_, _, err := s.read("none.img", store.Range{Offset: 5, Length: 5}, "")
	s.fails("range of nothing", err, store.ErrNotFound)

	// A body may be closed before its end.
	body, _, err := s.root.Get(s.ctx, "x.img", store.All, "")
	s.must("get", err)
	if _, err := io.ReadFull(body, make([]byte, 10)); err != nil {
		s.Errorf("first bytes: %v", err)
	}
	s.must("close early", body.Close())
}

func (s *suite) ifMatch() {
	old := s.put("x.img", pattern(1, 100))
	s.hasRange("x.img", store.All, old.ETag, pattern(1, 100))
	v := s.put("x.img", pattern(2, 100))
	_, _, err := s.read("x.img", store.All, old.ETag)
	s.fails("get of the version before", err, store.ErrChanged)
	_, _, err = s.read("x.img", store.Range{Offset: 10, Length: 10}, old.ETag)
	s.fails("range of the version before", err, store.ErrChanged)
	s.hasRange("x.img", store.Range{Offset: 10, Length: 10}, v.ETag, pattern(2, 100)[10:20])
	s.must("delete", s.root.Delete(s.ctx, "x.img"))
	_, _, err = s.read("x.img", store.All, v.ETag)
	s.fails("get of a version that is gone", err, store.ErrNotFound)
}

func (s *suite) unknownSize() {
	for _, n := range []int{0, 1, 1000, 100_000} {
		data := pattern(1, n)
		s.puts("x.img", plain{bytes.NewReader(data)}, -1, data)
	}
	// The last bytes may be returned with io.EOF.
	data := pattern(2, 1000)
	s.puts("x.img", iotest.DataErrReader(bytes.NewReader(data)), -1, data)
	s.noUploads()
}

// large is larger than the parts in which implementations buffer a body.
const large = 20<<20 + 12345

func (s *suite) largeOfUnknownSize() {
	data := pattern(1, large)
	s.puts("x.img", plain{bytes.NewReader(data)}, -1, data)
	broken := errors.New("broken")
	_, err := s.root.Put(s.ctx, "x.img", breaks(large, broken), -1)
	s.fails("put of a body that breaks", err, broken)
	s.holds("x.img", data)
	s.noUploads()
}

// noUploads checks that no multipart upload is pending.
func (s *suite) noUploads() {
	s.Helper()
	for u, err := range s.root.PendingUploads(s.ctx, "") {
		s.must("list uploads", err)
		s.Errorf("an upload of %q is left over", u.Key)
	}
}

func (s *suite) failedPut() {
	broken := errors.New("broken")
	data := pattern(1, 1000)
	for _, tt := range []struct {
		name string
		body func() io.Reader
		size int64
		want error // nil: any
	}{
		{"broken at once", func() io.Reader { return iotest.ErrReader(broken) }, 100_000, broken},
		{"broken in the middle", func() io.Reader { return breaks(50_000, broken) }, 100_000, broken},
		{"broken after the last byte but one", func() io.Reader { return breaks(99_999, broken) }, 100_000, broken},
		{"broken, of unknown size", func() io.Reader { return breaks(50_000, broken) }, -1, broken},
		{"cut, of unknown size", func() io.Reader { return breaks(50_000, io.ErrUnexpectedEOF) }, -1, io.ErrUnexpectedEOF},
		{"too short", func() io.Reader { return plain{bytes.NewReader(pattern(2, 50_000))} }, 100_000, nil},
		{"empty", func() io.Reader { return plain{bytes.NewReader(nil)} }, 100_000, nil},
	} {
		old := s.put("x.img", data)
		v, err := s.root.Put(s.ctx, "x.img", tt.body(), tt.size)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
			s.Errorf("%s: Put returned %+v, %v; want an error (%v)", tt.name, v, err, tt.want)
		}
		if got := s.holds("x.img", data); !got.Equal(old) {
			s.Errorf("%s: the old object went from %+v to %+v", tt.name, old, got)
		}
		if _, err := s.root.Put(s.ctx, "new.img", tt.body(), tt.size); err == nil {
			s.Errorf("%s: Put of a new object succeeded", tt.name)
		}
		s.isMissing("new.img")
		s.lists("", "", "x.img")
	}
	s.noUploads()

	// Bytes beyond the size are an error or not read, and never stored.
	_, err := s.root.Put(s.ctx, "x.img", plain{bytes.NewReader(pattern(3, 2000))}, 1500)
	if got, _ := s.get("x.img"); !bytes.Equal(got, pattern(3, 2000)[:1500]) && (err == nil || !bytes.Equal(got, data)) {
		s.Errorf("put of a body that is too long: %v, and the object has %d bytes", err, len(got))
	}
}

func (s *suite) cancelledPut() {
	data := pattern(1, 1000)
	old := s.put("x.img", data)
	for _, size := range []int64{4 << 20, -1} {
		ctx, cancel := context.WithCancel(s.ctx)
		hang := make(chan struct{})
		body := io.MultiReader(bytes.NewReader(pattern(2, 1<<20)), reader(func([]byte) (int, error) {
			cancel()
			<-hang
			return 0, errors.New("released")
		}))
		result := make(chan error, 1)
		go func() {
			_, err := s.root.Put(ctx, "x.img", body, size)
			result <- err
		}()
		<-ctx.Done()
		close(hang) // like the body of a request, which ends with its context
		if err := <-result; err == nil {
			s.Error("a put whose context ended in the middle succeeded")
		}
		if got := s.holds("x.img", data); !got.Equal(old) {
			s.Errorf("the old object went from %+v to %+v", old, got)
		}
	}
	s.noUploads()
}

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

func (s *suite) delete() {
	s.put("x.img", pattern(1, 10))
	s.put("y.img", pattern(2, 10))
	s.must("delete", s.root.Delete(s.ctx, "x.img"))
	s.isMissing("x.img")
	s.lists("", "", "y.img")
	s.must("delete again", s.root.Delete(s.ctx, "x.img"))
	s.must("delete what never was", s.root.Delete(s.ctx, "none.img"))
	s.must("delete below what never was", s.root.Delete(s.ctx, "none/none.img"))
	s.holds("y.img", pattern(2, 10))
	s.put("x.img", pattern(3, 10))
	s.holds("x.img", pattern(3, 10))
}

// createObject: an object is not replaced, also by a body that is sent in parts.
func (s *suite) createObject() {
	for _, tt := range []struct {
		key  store.Key
		data []byte
		size int64
	}{{"known.img", pattern(1, 1000), 1000}, {"unknown.img", pattern(2, 1000), -1}, {"parts.img", pattern(3, 17<<20), -1}} {
		v, err := s.root.Create(s.ctx, tt.key, plain{bytes.NewReader(tt.data)}, tt.size)
		s.must("create "+string(tt.key), err)
		if got := s.holds(tt.key, tt.data); !got.Equal(v) {
			s.Errorf("Create returned %+v, and the object is %+v", v, got)
		}
		_, err = s.root.Create(s.ctx, tt.key, plain{bytes.NewReader(tt.data)}, tt.size)
		s.fails("create "+string(tt.key)+" again", err, store.ErrConflict)
		s.holds(tt.key, tt.data)
	}
	_, err := s.root.Create(s.ctx, "cut.img", bytes.NewReader(pattern(1, 500)), 1000)
	if err == nil {
		s.Error("a body that is too short was stored")
	}
	s.isMissing("cut.img")
}

// createObjectRace: of many creations of one key, one wins.
func (s *suite) createObjectRace() {
	won := s.oneWins(8, func(i int) error {
		_, err := s.root.Create(s.ctx, "x.img", bytes.NewReader(pattern(byte(i), 1000)), 1000)
		return err
	})
	s.holds("x.img", pattern(byte(won), 1000))
}

// oneWins calls create n times at once, and returns which call succeeded: one only.
func (s *suite) oneWins(n int, create func(i int) error) (won int) {
	s.Helper()
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() { errs[i] = create(i) })
	}
	wg.Wait()
	won = -1
	for i, err := range errs {
		switch {
		case err == nil && won < 0:
			won = i
		case !errors.Is(err, store.ErrConflict):
			s.Errorf("creation %d: %v, after that of %d", i, err, won)
		}
	}
	if won < 0 {
		s.Fatal("no creation won")
	}
	return won
}

func (s *suite) move() {
	data := pattern(1, 100_000)
	v := s.put("staging/a b+c%41#?.img", data)
	moved, err := s.root.Move(s.ctx, "blobs/x ü+.img", "staging/a b+c%41#?.img", v)
	s.must("move", err)
	if got := s.holds("blobs/x ü+.img", data); !got.Equal(moved) {
		s.Errorf("Move returned %+v for %+v", moved, got)
	}
	if info, err := s.root.Head(s.ctx, "staging/a b+c%41#?.img"); err == nil && !info.Equal(v) {
		s.Errorf("the source of a move went from %+v to %+v", v, info.Version)
	}
	s.must("delete the source", s.root.Delete(s.ctx, "staging/a b+c%41#?.img"))
	s.holds("blobs/x ü+.img", data)

	other := s.put("other.img", pattern(2, 10))
	_, err = s.root.Move(s.ctx, "blobs/x ü+.img", "other.img", other)
	s.fails("move over another", err, store.ErrConflict)
	_, err = s.root.Move(s.ctx, "other.img", "other.img", other)
	s.fails("move to the same key", err, store.ErrConflict)
	s.holds("blobs/x ü+.img", data)
	s.holds("other.img", pattern(2, 10))

	_, err = s.root.Move(s.ctx, "blobs/new", "none.img", other)
	s.fails("move of nothing", err, store.ErrNotFound)
	_, err = s.root.Move(s.ctx, "blobs/new", "other.img", v)
	s.fails("move of another version", err, store.ErrChanged)
	s.isMissing("blobs/new")
	s.holds("other.img", pattern(2, 10))
}

// moveRace: of many moves to one key, one wins, and no object is lost.
func (s *suite) moveRace() {
	from := func(i int) store.Key { return store.Key(fmt.Sprintf("from%d.img", i)) }
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		v := s.put(from(i), pattern(byte(i), 1000))
		wg.Go(func() { _, errs[i] = s.root.Move(s.ctx, "to.img", from(i), v) })
	}
	wg.Wait()
	won := 0
	for i, err := range errs {
		switch {
		case err == nil:
			won++
		case !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrChanged):
			s.Errorf("move of %s: %v", from(i), err)
		default:
			s.holds(from(i), pattern(byte(i), 1000))
		}
	}
	if won == 0 {
		s.Error("no move to a free key won")
	}
}

// hostileKeys has keys that encodings easily damage.
var hostileKeys = []store.Key{
	"a b.img", "a  b.img", "a+b.img", "50%.img", "%41.img", "%2F.img", "%2b.img", "a%20b.img", "a#b.img", "a?b=c&d.img",
	"a&amp;b.img", `quote"'<b>.img`, "semi;colon,comma.img", "x=y@z:!$*()~_-[]{}|^`.img", "-rf.img", "tail.img ", "UPPER.img", "upper.img",
	"\u00fc.img", "u\u0308.img", "\u65e5\u672c.img", "\U0001f642.img", "\uff21.img", "a..img", "null", "index.html",
	store.Key(strings.Repeat("n", 251) + ".img"),
	store.Key(strings.Repeat("\u65e5", 83) + "12.img"), // 255 bytes
}

func (s *suite) hostile() {
	versions := map[store.Key]store.Version{}
	for i, key := range hostileKeys {
		versions[key] = s.put(key, pattern(byte(i), 100+i))
	}
	for i, key := range hostileKeys {
		if got := s.holds(key, pattern(byte(i), 100+i)); !got.Equal(versions[key]) {
			s.Errorf("%q is %+v, was written as %+v", key, got, versions[key])
		}
	}
	sorted := slices.Sorted(slices.Values(hostileKeys))
	s.lists("", "", sorted...)
	for i, key := range sorted {
		if got := s.keys("", key); !slices.Equal(got, sorted[i+1:]) {
			s.Errorf("listing after %q has %d keys, want %d", key, len(got), len(sorted)-i-1)
		}
		if got := s.keys(string(key), ""); len(got) == 0 || got[0] != key {
			s.Errorf("listing of the prefix %q begins with %q", key, got)
		}
	}
	for _, key := range hostileKeys {
		s.must("delete "+string(key), s.root.Delete(s.ctx, key))
		s.isMissing(key)
	}
	s.lists("", "")
	for i, key := range hostileKeys {
		key = "digests/" + key
		tag := s.wins("create "+string(key), key, pattern(byte(i), 100), "")
		s.wins("replace "+string(key), key, pattern(byte(i), 101), tag)
		s.holds(key, pattern(byte(i), 101))
	}
	if got := s.keys("digests/", ""); len(got) != len(hostileKeys) {
		s.Errorf("%d records are listed, want %d", len(got), len(hostileKeys))
	}
}

func (s *suite) list() {
	want := map[store.Key]store.Version{}
	for i, key := range []store.Key{
		"a-b", "a/x", "a/y/z", "a0", "ab", "b.img", "jobs/hash/a", "jobs/hash/b", "jobs/hashes", "jobsx", "Z.img", "é.img",
	} {
		want[key] = s.put(key, pattern(byte(i), i))
	}
	s.lists("", "", "Z.img", "a-b", "a0", "ab", "b.img", "jobsx", "é.img")
	s.lists("a", "", "a-b", "a0", "ab")
	s.lists("a/", "", "a/x")
	s.lists("a/y", "")
	s.lists("a/y/", "", "a/y/z")
	s.lists("jobs", "", "jobsx")
	s.lists("jobs/", "", "jobs/hashes")
	s.lists("jobs/hash", "", "jobs/hashes")
	s.lists("jobs/hash/", "", "jobs/hash/a", "jobs/hash/b")
	s.lists("none", "")
	s.lists("b.img", "", "b.img")

	s.lists("", "a0", "ab", "b.img", "jobsx", "é.img")
	s.lists("", "a00", "ab", "b.img", "jobsx", "é.img") // after a key that does not exist
	s.lists("", "a/x", "a0", "ab", "b.img", "jobsx", "é.img")
	s.lists("", "é.img")
	s.lists("a", "a-b", "a0", "ab")
	s.lists("a", "Z", "a-b", "a0", "ab")
	s.lists("a", "b")
	s.lists("jobs/hash/", "jobs/hash/a", "jobs/hash/b")
	s.lists("jobs/hash/", "jobs/hash/b")

	// A listing and a HEAD agree on versions.
	for info, err := range s.root.List(s.ctx, "", "") {
		s.must("list", err)
		head, err := s.root.Head(s.ctx, info.Key)
		s.must("head", err)
		if !info.Equal(head.Version) || !info.Equal(want[info.Key]) {
			s.Errorf("%q is listed as %+v, Head returns %+v, was written as %+v", info.Key, info.Version, head.Version, want[info.Key])
		}
	}
}

func (s *suite) listPages() {
	const n = 1050 // a page has 1,000
	var want []store.Key
	for i := range n {
		want = append(want, store.Key(fmt.Sprintf("p/%04d", i)))
	}
	var wg sync.WaitGroup
	errs := make(chan error, n)
	next := make(chan store.Key)
	for range 8 {
		wg.Go(func() {
			for key := range next {
				_, err := s.root.Put(s.ctx, key, strings.NewReader(string(key)), int64(len(key)))
				errs <- err
			}
		})
	}
	for _, key := range want {
		next <- key
	}
	close(next)
	wg.Wait()
	for range n {
		s.must("put", <-errs)
	}
	s.lists("p/", "", want...)
	s.lists("p/", "p/0020", want[21:]...)
	seen := 0
	for _, err := range s.root.List(s.ctx, "p/", "") {
		s.must("list", err)
		if seen++; seen == 1010 {
			break
		}
	}
	if seen != 1010 {
		s.Errorf("a listing that stops at 1,010 saw %d", seen)
	}
}

func (s *suite) endedContext() {
	s.put("x.img", pattern(1, 10))
	ctx, cancel := context.WithCancel(s.ctx)
	cancel()
	if _, err := s.root.Head(ctx, "x.img"); err == nil || errors.Is(err, store.ErrNotFound) {
		s.Errorf("Head: %v", err)
	}
	if body, _, err := s.root.Get(ctx, "x.img", store.All, ""); err == nil {
		body.Close()
		s.Error("Get has no error")
	}
	if _, err := s.root.Put(ctx, "y.img", strings.NewReader("y"), 1); err == nil {
		s.Error("Put has no error")
	}
	failed := false
	for _, err := range s.root.List(ctx, "", "") {
		failed = failed || err != nil
	}
	if !failed {
		s.Error("List has no error")
	}
	if _, _, err := s.root.ReadRecord(ctx, "x.img"); err == nil || errors.Is(err, store.ErrNotFound) {
		s.Errorf("ReadRecord: %v", err)
	}
	if _, err := s.root.CreateRecord(ctx, "z", []byte("z")); err == nil || errors.Is(err, store.ErrConflict) {
		s.Errorf("CreateRecord: %v", err)
	}
	s.lists("", "", "x.img")

	// The end of the context ends a body too.
	s.put("large.img", pattern(1, 8<<20))
	ctx, cancel = context.WithCancel(s.ctx)
	body, _, err := s.root.Get(ctx, "large.img", store.All, "")
	s.must("get", err)
	defer body.Close()
	cancel()
	if n, err := io.Copy(io.Discard, body); err == nil {
		s.Errorf("the body of a context that has ended gave %d bytes and no error", n)
	}
}

// oneVersionWhole reads an object while replacing it repeatedly.
func (s *suite) oneVersionWhole() {
	const rounds = 40
	content := func(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%20)}, 200_000+i%20*1000) }
	s.put("x.img", content(0))
	var done atomic.Bool
	var mu sync.Mutex
	etags := map[string]byte{} // the content of each ETag
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for !done.Load() {
				data, info, err := s.read("x.img", store.All, "")
				if err != nil {
					if errors.Is(err, store.ErrNotFound) {
						s.Errorf("an object that is being replaced is missing: %v", err)
					}
					continue // an error is allowed
				}
				if len(data) == 0 || int64(len(data)) != info.Size || !bytes.Equal(data, content(int(data[0]-'a'))) {
					s.Errorf("a reader got %d bytes of an object of %d bytes, or two versions in one", len(data), info.Size)
					continue
				}
				mu.Lock()
				first := cmp.Or(etags[info.ETag], data[0])
				etags[info.ETag] = first
				mu.Unlock()
				if first != data[0] {
					s.Errorf("the ETag %s has two contents, %c and %c", info.ETag, first, data[0])
				}
			}
		})
	}
	for i := 1; i <= rounds; i++ {
		s.put("x.img", content(i))
	}
	done.Store(true)
	wg.Wait()
	s.holds("x.img", content(rounds))

	// After concurrent writes, the bytes of one remain, whole.
	errs := make(chan error, 8)
	for i := range 8 {
		go func() {
			_, err := s.root.Put(s.ctx, "y.img", bytes.NewReader(content(i)), int64(len(content(i))))
			errs <- err
		}()
	}
	for range 8 {
		if err := <-errs; err != nil && !errors.Is(err, store.ErrChanged) {
			s.Errorf("put beside others: %v", err)
		}
	}
	data, _ := s.get("y.img")
	if len(data) == 0 || !bytes.Equal(data, content(int(data[0]-'a'))) {
		s.Errorf("after writes at once the object has %d bytes of more than one", len(data))
	}
}

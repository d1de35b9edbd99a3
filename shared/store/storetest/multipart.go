package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"imageroot/shared/store"
)

const partBytes = store.MinPartBytes

func (s *suite) create(key store.Key) string {
	s.Helper()
	id, err := s.root.CreateUpload(s.ctx, key)
	s.must("begin upload of "+string(key), err)
	if id == "" {
		s.Fatal("an upload has no ID")
	}
	return id
}

func (s *suite) part(key store.Key, id string, n int32, data []byte) store.Part {
	s.Helper()
	p, err := s.root.UploadPart(s.ctx, key, id, n, plain{bytes.NewReader(data)}, int64(len(data)))
	s.must(fmt.Sprintf("send part %d", n), err)
	if p.Number != n || p.Size != int64(len(data)) || p.ETag == "" {
		s.Errorf("part %d of %d bytes is %+v", n, len(data), p)
	}
	return p
}

func (s *suite) hasParts(key store.Key, id string, want ...store.Part) {
	s.Helper()
	got, err := s.root.ListParts(s.ctx, key, id)
	s.must("list parts", err)
	for i := range got {
		if time.Since(got[i].LastModified).Abs() > time.Hour {
			s.Errorf("part %d arrived at %v", got[i].Number, got[i].LastModified)
		}
	}
	if !slices.EqualFunc(got, want, store.Part.Equal) {
		s.Errorf("the parts are %+v, want %+v", got, want)
	}
}

// completes completes an upload, and checks that the object has data.
func (s *suite) completes(key store.Key, id string, data []byte, parts ...store.Part) store.Version {
	s.Helper()
	v, err := s.root.CompleteUpload(s.ctx, key, id, parts)
	s.must("complete", err)
	if got := s.holds(key, data); !got.Equal(v) {
		s.Errorf("CompleteUpload returned %+v, and the object is %+v", v, got)
	}
	return v
}

func (s *suite) multipart() {
	const key = "staging/a b+ü%.img"
	one, two, replaced, three := pattern(1, partBytes), pattern(2, partBytes), pattern(3, partBytes+7), pattern(4, 1000)
	id := s.create(key)
	s.hasParts(key, id)
	// Parts arrive in any order and repeatedly.
	p3 := s.part(key, id, 3, three)
	s.part(key, id, 2, two)
	p1 := s.part(key, id, 1, one)
	p2 := s.part(key, id, 2, replaced)
	s.hasParts(key, id, p1, p2, p3)
	s.isMissing(key)
	s.lists("staging/", "")
	v := s.completes(key, id, slices.Concat(one, replaced, three), p1, p2, p3)
	s.hasRange(key, store.Range{Offset: partBytes - 10, Length: 20}, v.ETag, slices.Concat(one[partBytes-10:], replaced[:10]))
	s.lists("staging/", "", key)
	s.noUploads()

	// One small part suffices, and numbers may have gaps.
	id = s.create("small.img")
	p := s.part("small.img", id, 7, three)
	s.completes("small.img", id, three, p)

	// A completed upload is not pending.
	_, err := s.root.UploadPart(s.ctx, "small.img", id, 8, bytes.NewReader(three), 1000)
	s.fails("a part of an upload that is completed", err, store.ErrNotFound)
	s.must("abort what is completed", s.root.AbortUpload(s.ctx, "small.img", id))
	s.holds("small.img", three)
}

func (s *suite) multipartOverwrites() {
	old := s.put("x.img", pattern(1, 1000))
	id := s.create("x.img")
	p1 := s.part("x.img", id, 1, pattern(2, partBytes))
	p2 := s.part("x.img", id, 2, pattern(3, 10))
	if got := s.holds("x.img", pattern(1, 1000)); !got.Equal(old) {
		s.Errorf("parts alone changed the object from %+v to %+v", old, got)
	}
	if v := s.completes("x.img", id, slices.Concat(pattern(2, partBytes), pattern(3, 10)), p1, p2); v.Equal(old) {
		s.Errorf("two contents have one version: %+v", v)
	}

	// Two uploads of one key are independent.
	a, b := s.create("x.img"), s.create("x.img")
	if a == b {
		s.Fatalf("two uploads have one ID: %s", a)
	}
	pa, pb := s.part("x.img", a, 1, pattern(4, 100)), s.part("x.img", b, 1, pattern(5, 200))
	s.hasParts("x.img", a, pa)
	s.hasParts("x.img", b, pb)
	s.completes("x.img", b, pattern(5, 200), pb)
	s.completes("x.img", a, pattern(4, 100), pa)
}

// completeNew: an upload creates an object, and replaces none. One that is refused can be
// completed later.
func (s *suite) completeNew() {
	one, two := pattern(1, partBytes), pattern(2, 1000)
	id := s.create("x.img")
	parts := []store.Part{s.part("x.img", id, 1, one), s.part("x.img", id, 2, two)}
	v, err := s.root.CompleteNew(s.ctx, "x.img", id, parts)
	s.must("create by parts", err)
	if got := s.holds("x.img", slices.Concat(one, two)); !got.Equal(v) {
		s.Errorf("CompleteNew returned %+v, and the object is %+v", v, got)
	}

	id = s.create("x.img")
	p := s.part("x.img", id, 1, two)
	_, err = s.root.CompleteNew(s.ctx, "x.img", id, []store.Part{p})
	s.fails("create by parts what exists", err, store.ErrConflict)
	if got := s.holds("x.img", slices.Concat(one, two)); !got.Equal(v) {
		s.Errorf("a refused creation changed the object from %+v to %+v", v, got)
	}
	s.hasParts("x.img", id, p)
	s.must("delete", s.root.Delete(s.ctx, "x.img"))
	_, err = s.root.CompleteNew(s.ctx, "x.img", id, []store.Part{p})
	s.must("create by parts what was deleted", err)
	s.holds("x.img", two)
	s.noUploads()
}

// completeNewRace: of many creations of one key by parts, one wins.
func (s *suite) completeNewRace() {
	ids, parts := make([]string, 6), make([]store.Part, 6)
	for i := range ids {
		ids[i] = s.create("x.img")
		parts[i] = s.part("x.img", ids[i], 1, pattern(byte(i), 1000))
	}
	won := s.oneWins(len(ids), func(i int) error {
		_, err := s.root.CompleteNew(s.ctx, "x.img", ids[i], parts[i:i+1])
		return err
	})
	s.holds("x.img", pattern(byte(won), 1000))
	for _, id := range ids {
		s.must("abort", s.root.AbortUpload(s.ctx, "x.img", id))
	}
	s.holds("x.img", pattern(byte(won), 1000))
	s.noUploads()
}

func (s *suite) failedPart() {
	broken := errors.New("broken")
	id := s.create("x.img")
	p := s.part("x.img", id, 1, pattern(1, 1000))
	_, err := s.root.UploadPart(s.ctx, "x.img", id, 1, breaks(50_000, broken), 100_000)
	s.fails("a part that breaks", err, broken)
	if _, err := s.root.UploadPart(s.ctx, "x.img", id, 2, plain{bytes.NewReader(pattern(2, 50_000))}, 100_000); err == nil {
		s.Error("a part that is too short was taken")
	}
	s.hasParts("x.img", id, p)
	s.completes("x.img", id, pattern(1, 1000), p)
}

func (s *suite) wrongComplete() {
	old := s.put("x.img", pattern(1, 1000))
	id := s.create("x.img")
	p1 := s.part("x.img", id, 1, pattern(2, partBytes))
	before := s.part("x.img", id, 2, pattern(3, 100))
	p2 := s.part("x.img", id, 2, pattern(4, 100))
	none := store.Part{Number: 3, ETag: p2.ETag, Size: 100}
	for name, parts := range map[string][]store.Part{
		"a part that was replaced":  {p1, before},
		"a part that was not sent":  {p1, p2, none},
		"parts in descending order": {p2, p1},
		"no parts":                  nil,
	} {
		if v, err := s.root.CompleteUpload(s.ctx, "x.img", id, parts); err == nil {
			s.Errorf("complete with %s: %+v, want an error", name, v)
		}
		if got := s.holds("x.img", pattern(1, 1000)); !got.Equal(old) {
			s.Errorf("complete with %s: the object went from %+v to %+v", name, old, got)
		}
		s.hasParts("x.img", id, p1, p2)
	}
	s.completes("x.img", id, slices.Concat(pattern(2, partBytes), pattern(4, 100)), p1, p2)
}

func (s *suite) abort() {
	old := s.put("x.img", pattern(1, 1000))
	for _, key := range []store.Key{"x.img", "new.img"} {
		id := s.create(key)
		p := s.part(key, id, 1, pattern(2, 1000))
		s.must("abort", s.root.AbortUpload(s.ctx, key, id))
		s.must("abort again", s.root.AbortUpload(s.ctx, key, id))
		_, err := s.root.UploadPart(s.ctx, key, id, 2, bytes.NewReader(pattern(2, 1000)), 1000)
		s.fails("a part of what was aborted", err, store.ErrNotFound)
		_, err = s.root.ListParts(s.ctx, key, id)
		s.fails("the parts of what was aborted", err, store.ErrNotFound)
		_, err = s.root.CompleteUpload(s.ctx, key, id, []store.Part{p})
		s.fails("complete what was aborted", err, store.ErrNotFound)
	}
	if got := s.holds("x.img", pattern(1, 1000)); !got.Equal(old) {
		s.Errorf("an aborted upload changed the object from %+v to %+v", old, got)
	}
	s.isMissing("new.img")
	s.noUploads()
	s.lists("", "", "x.img")
}

func (s *suite) pendingUploads() {
	a, b := s.create("a/x ü+%.img"), s.create("a/x ü+%.img")
	c := s.create("b.img")
	s.part("b.img", c, 1, pattern(1, 100))
	keys := map[string]store.Key{a: "a/x ü+%.img", b: "a/x ü+%.img", c: "b.img"}
	check := func(prefix string, want ...string) {
		s.Helper()
		left := slices.Clone(want)
		for u, err := range s.root.PendingUploads(s.ctx, prefix) {
			s.must("list uploads", err)
			if i := slices.Index(left, u.ID); i < 0 || u.Key != keys[u.ID] || u.Initiated.IsZero() {
				s.Errorf("pending with prefix %q: %+v", prefix, u)
			} else {
				left = slices.Delete(left, i, i+1)
			}
		}
		if len(left) > 0 {
			s.Errorf("not pending with prefix %q: %q of %q", prefix, left, want)
		}
	}
	check("", a, b, c)
	check("a/", a, b)
	check("a/x ü+%.img", a, b)
	check("b", c)
	check("c")
	s.must("abort", s.root.AbortUpload(s.ctx, "a/x ü+%.img", a))
	check("", b, c)
	s.must("abort", s.root.AbortUpload(s.ctx, "a/x ü+%.img", b))
	s.must("abort", s.root.AbortUpload(s.ctx, "b.img", c))
	s.noUploads()
}

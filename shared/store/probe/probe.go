// Package probe checks that an S3 server has the features that imageroot depends on.
// Without the check, a server that ignores conditional writes would silently lose jobs
// and digests.
package probe

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

const (
	// patience is the time limit of a probe, tidyTime that of removing its objects, and
	// hurried that of removing them if the caller's context has ended. A later probe
	// removes the rest.
	patience, tidyTime, hurried = 30 * time.Second, 10 * time.Second, time.Second
	// leftAfter is the age at which objects of another probe are removed, which must
	// have been killed.
	leftAfter = time.Hour
	// racers is the number of writers that race for one record.
	racers = 8
)

// A LackError describes a feature that imageroot needs and the server lacks.
type LackError struct{ Lacks []string }

func (e *LackError) Error() string {
	return "the S3 server does not do what imageroot needs: " + strings.Join(e.Lacks, "; ")
}

// Check checks the server of a catalog root. It returns a [*LackError] if a feature is
// missing, and any other error if the check could not be completed. It sends about
// sixty small requests. It writes only its own keys, and removes them. Probes may run
// concurrently.
func Check(ctx context.Context, catalog store.Root) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := &probe{root: catalog, id: rand.Text()}
	defer p.tidy(ctx)
	methods := []func(*check){(*check).create, (*check).replace, (*check).read, (*check).list, (*check).multipart, (*check).race}
	checks := make([]*check, len(methods))
	var wg sync.WaitGroup
	for i, run := range methods {
		checks[i] = p.check(ctx)
		wg.Go(func() { run(checks[i]) })
	}
	wg.Wait()
	if checks[0].err != nil || checks[1].err != nil {
		checks = checks[:len(checks)-1] // the race depends on both
	}
	var lack LackError
	for _, c := range checks {
		l, ok := errors.AsType[lacks](c.err)
		switch {
		case ok && !slices.Contains(lack.Lacks, string(l)):
			lack.Lacks = append(lack.Lacks, string(l))
		case !ok && c.err != nil:
			return fmt.Errorf("the S3 server could not be tried: %w", c.err)
		}
	}
	if lack.Lacks != nil {
		return &lack
	}
	return nil
}

// A lacks is the error of a check that the server does not pass.
type lacks string

func (l lacks) Error() string { return string(l) }

// The features that servers may lack.
const (
	noCreate    = lacks("conditional create (If-None-Match: * on PUT)")
	noReplace   = lacks("conditional replace (If-Match on PUT)")
	noRace      = lacks("conditional writes that hold under concurrency (of several writers at once not exactly one won)")
	noWrites    = lacks("reading what was just written")
	noRange     = lacks("ranges (Range on GET)")
	noIfMatch   = lacks("conditional reads (If-Match on GET)")
	noList      = lacks("listing what was just written (ListObjectsV2 with prefix, delimiter and start-after, of one mind with HEAD)")
	noDelete    = lacks("deleting")
	noCopy      = lacks("copying an object (x-amz-copy-source)")
	noMultipart = lacks("multipart uploads (create, send, list, complete, abort)")
)

type probe struct {
	root store.Root
	id   string

	mu      sync.Mutex
	keys    []store.Key // keys that may exist
	uploads []string    // uploads of the key "multipart" that may be pending
}

// A check is a sequence of requests. The first one that fails decides its outcome and
// ends its context, so that the others fail at once.
type check struct {
	*probe
	ctx    context.Context
	cancel context.CancelFunc
	err    error
}

func (p *probe) check(ctx context.Context) *check {
	ctx, cancel := context.WithCancel(ctx)
	return &check{probe: p, ctx: ctx, cancel: cancel}
}

// end ends c with err, unless err is nil or c has ended.
func (c *check) end(err error) {
	if err != nil && c.err == nil {
		c.err = err
		c.cancel()
	}
}

// ok ends c if err is not nil: with err if that says nothing about the server's
// features, and otherwise with lack.
func (c *check) ok(lack lacks, err error) {
	if err == nil {
		return
	}
	for _, other := range []error{store.ErrUnavailable, store.ErrDenied, store.ErrFull, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, other) {
			c.end(err)
		}
	}
	c.end(lack)
}

// refused ends c unless err is want.
func (c *check) refused(lack lacks, err, want error) {
	if !errors.Is(err, want) {
		c.ok(lack, cmp.Or(err, error(lack)))
	}
}

// is ends c with lack unless holds is true.
func (c *check) is(lack lacks, holds bool) {
	if !holds {
		c.end(lack)
	}
}

// key returns a key that tidy removes.
func (p *probe) key(what string) store.Key {
	key := layout.ProbeKey(p.id, what)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, key)
	return key
}

// content returns content that no other write has.
func (p *probe) content(what string) []byte { return []byte(p.id + " " + what) }

func (c *check) holds(key store.Key, want []byte, tag string, lack lacks) {
	data, got, err := c.root.ReadRecord(c.ctx, key)
	c.ok(noWrites, err)
	c.is(lack, bytes.Equal(data, want) && got == tag)
}

func (c *check) create() {
	key, first := c.key("create"), c.content("first")
	tag, err := c.root.CreateRecord(c.ctx, key, first)
	c.ok(noCreate, err)
	c.holds(key, first, tag, noWrites)
	_, err = c.root.CreateRecord(c.ctx, key, c.content("again"))
	c.refused(noCreate, err, store.ErrConflict)
	c.holds(key, first, tag, noCreate)
}

func (c *check) replace() {
	key, second := c.key("replace"), c.content("second")
	one, err := c.root.CreateRecord(c.ctx, key, c.content("first"))
	c.ok(noCreate, err)
	two, err := c.root.ReplaceRecord(c.ctx, key, second, one)
	c.ok(noReplace, err)
	_, err = c.root.ReplaceRecord(c.ctx, key, c.content("stale"), one)
	c.refused(noReplace, err, store.ErrConflict)
	c.holds(key, second, two, noReplace)
	c.ok(noDelete, c.root.Delete(c.ctx, key))
	_, err = c.root.ReplaceRecord(c.ctx, key, c.content("gone"), two)
	c.refused(noReplace, err, store.ErrConflict)
	_, err = c.root.Head(c.ctx, key)
	c.refused(noReplace, err, store.ErrNotFound)
}

func (c *check) race() {
	key := c.key("race")
	tag := c.won("create", func(data []byte) (string, error) { return c.root.CreateRecord(c.ctx, key, data) })
	c.won("replace", func(data []byte) (string, error) { return c.root.ReplaceRecord(c.ctx, key, data, tag) })
}

// won runs several writes at once and returns the winner's tag.
func (c *check) won(what string, write func(data []byte) (string, error)) (tag string) {
	tags, errs := make([]string, racers), make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { tags[i], errs[i] = write(c.content(fmt.Sprint(what, i))) })
	}
	wg.Wait()
	winners := 0
	var failed error
	for i, err := range errs {
		switch {
		case err == nil:
			winners++
			tag = tags[i]
		case !errors.Is(err, store.ErrConflict):
			failed = err
		}
	}
	if winners == 0 { // otherwise the outcome of the failed ones may be unknown
		c.ok(noRace, failed)
	}
	c.is(noRace, winners == 1)
	return tag
}

func (c *check) read() {
	key := c.key("read")
	old := c.put(key, c.content("old"))
	data := c.content("new")
	v := c.put(key, data)
	part := store.Range{Offset: 2, Length: 5}
	got, info, err := c.get(key, part, v.ETag)
	c.ok(noRange, err)
	c.is(noRange, bytes.Equal(got, data[2:7]) && info.Equal(v))
	_, _, err = c.get(key, part, old.ETag)
	c.refused(noIfMatch, err, store.ErrChanged)
	to := c.key("copy")
	_, err = c.root.Move(c.ctx, to, key, v)
	c.ok(noCopy, err)
	got, _, err = c.get(to, store.All, "")
	c.ok(noCopy, err)
	c.is(noCopy, bytes.Equal(got, data))
}

func (c *check) put(key store.Key, data []byte) store.Version {
	v, err := c.root.Put(c.ctx, key, bytes.NewReader(data), int64(len(data)))
	c.ok(noWrites, err)
	return v
}

func (c *check) get(key store.Key, r store.Range, ifMatch string) ([]byte, store.Info, error) {
	body, info, err := c.root.Get(c.ctx, key, r, ifMatch)
	if err != nil {
		return nil, info, err
	}
	data, err := io.ReadAll(io.LimitReader(body, store.MaxRecordBytes))
	return data, info, errors.Join(err, body.Close())
}

func (c *check) list() {
	want := map[store.Key]store.Version{}
	first := c.key("list-a")
	for _, key := range []store.Key{first, c.key("list-b"), c.key("list-c")} {
		want[key] = c.put(key, c.content(string(key)))
	}
	delete(want, first) // the listing begins after first
	for info, err := range c.root.List(c.ctx, string(layout.ProbeKey(c.id, "list-")), first) {
		c.ok(noList, err)
		v, ok := want[info.Key]
		c.is(noList, ok && v.Equal(info.Version))
		delete(want, info.Key)
	}
	for _, err := range c.root.List(c.ctx, strings.TrimSuffix(layout.ProbePrefix, "/"), "") {
		c.ok(noList, err)
		c.end(noList) // their keys have a slash
	}
	c.is(noList, len(want) == 0)
}

func (c *check) begin(key store.Key) (id string) {
	id, err := c.root.CreateUpload(c.ctx, key)
	if c.ok(noMultipart, err); err == nil {
		c.uploads = append(c.uploads, id)
	}
	return id
}

func (c *check) multipart() {
	key, data := c.key("multipart"), c.content("part")
	id := c.begin(key)
	part, err := c.root.UploadPart(c.ctx, key, id, 1, bytes.NewReader(data), int64(len(data)))
	c.ok(noMultipart, err)
	parts, err := c.root.ListParts(c.ctx, key, id)
	c.ok(noMultipart, err)
	c.is(noMultipart, len(parts) == 1 && parts[0].Equal(part))
	v, err := c.root.CompleteUpload(c.ctx, key, id, parts)
	c.ok(noMultipart, err)
	got, _, err := c.get(key, store.All, v.ETag)
	c.ok(noMultipart, err)
	c.is(noMultipart, bytes.Equal(got, data))
	gone := c.begin(key)
	c.ok(noMultipart, c.root.AbortUpload(c.ctx, key, gone))
	_, err = c.root.ListParts(c.ctx, key, gone)
	c.refused(noMultipart, err, store.ErrNotFound)
	if c.err == nil {
		c.uploads = nil
	}
}

// tidy removes the objects of this probe and of killed ones. It ignores errors, since
// the next probe tries again.
func (p *probe) tidy(ctx context.Context) {
	limit := tidyTime
	if ctx.Err() != nil {
		limit = hurried
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	var now time.Time // by the clock of the server
	var old []store.Info
	for info, err := range p.root.List(ctx, layout.ProbePrefix, "") {
		if err != nil {
			break
		}
		if strings.HasPrefix(string(info.Key), string(layout.ProbeKey(p.id, ""))) {
			now = info.LastModified
		} else if info.Key != layout.PassedKey {
			old = append(old, info)
		}
	}
	var wg sync.WaitGroup
	for _, key := range p.keys {
		wg.Go(func() { _ = p.root.Delete(ctx, key) })
	}
	for _, id := range p.uploads {
		wg.Go(func() { _ = p.root.AbortUpload(ctx, layout.ProbeKey(p.id, "multipart"), id) })
	}
	wg.Wait()
	for _, info := range old {
		if now.Sub(info.LastModified) > leftAfter {
			_ = p.root.Delete(ctx, info.Key)
		}
	}
}

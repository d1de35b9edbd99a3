// Package probe checks that an S3 server has the features imageroot depends on,
// before anything relies on them. Servers differ: one that ignores conditional
// writes would lose jobs and digests silently.
package probe

import (
	"bytes"
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
	// patience is the longest time for a probe, tidyTime for removing what it
	// wrote, and hurried for that if the caller's context has ended. A later probe
	// removes what is left.
	patience, tidyTime, hurried = 30 * time.Second, 10 * time.Second, time.Second
	// leftAfter is the age at which objects of another probe are removed, because
	// that must have been killed.
	leftAfter = time.Hour
	// racers is the number of writers that race for one record.
	racers = 8
)

// A LackError describes a feature that imageroot needs and the server lacks.
type LackError struct{ Lacks []string }

func (e *LackError) Error() string {
	return "the S3 server does not do what imageroot needs: " + strings.Join(e.Lacks, "; ")
}

// Check checks the server of a catalog root. It returns a [*LackError] if a
// feature is missing, and any other error if that could not be found out. It takes
// about forty small requests. What it writes has keys of its own, which it
// removes; probes may run at the same time.
func Check(ctx context.Context, catalog store.Root) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p := &probe{root: catalog, id: rand.Text()}
	defer p.tidy(ctx)
	checks := []func(context.Context) error{p.create, p.replace, p.read, p.list, p.multipart}
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, check := range checks {
		wg.Go(func() { errs[i] = check(ctx) })
	}
	wg.Wait()
	if errs[0] == nil && errs[1] == nil {
		errs = append(errs, p.race(ctx))
	}
	var lack LackError
	for _, err := range errs {
		l, ok := errors.AsType[lacks](err)
		switch {
		case ok && !slices.Contains(lack.Lacks, string(l)):
			lack.Lacks = append(lack.Lacks, string(l))
		case !ok && err != nil:
			return fmt.Errorf("the S3 server could not be tried: %w", err)
		}
	}
	if lack.Lacks != nil {
		return &lack
	}
	return nil
}

// lacks returns the error of a check that the server does not pass.
type lacks string

func (l lacks) Error() string { return string(l) }

// What servers are known to lack.
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

// or returns lack if err is the server's response to a request, and err if it says
// nothing about the server's features.
func or(lack lacks, err error) error {
	for _, other := range []error{store.ErrUnavailable, store.ErrDenied, store.ErrFull, context.Canceled, context.DeadlineExceeded} {
		if err == nil || errors.Is(err, other) {
			return err
		}
	}
	return lack
}

// refused returns nil if a conditional write was refused.
func refused(lack lacks, err error) error {
	switch {
	case errors.Is(err, store.ErrConflict):
		return nil
	case err == nil:
		return lack
	}
	return or(lack, err)
}

type probe struct {
	root store.Root
	id   string

	mu   sync.Mutex
	keys []string // that may have been written
}

// key returns a key that tidy removes.
func (p *probe) key(what string) string {
	key := layout.ProbeKey(p.id, what)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.keys = append(p.keys, key)
	return key
}

// content returns the content of a write, which no other write has.
func (p *probe) content(what string) []byte { return []byte(p.id + " " + what) }

func (p *probe) holds(ctx context.Context, key string, want []byte, tag string, lack lacks) error {
	data, got, err := p.root.ReadRecord(ctx, key)
	if err != nil {
		return or(noWrites, err)
	}
	if !bytes.Equal(data, want) || got != tag {
		return lack
	}
	return nil
}

func (p *probe) create(ctx context.Context) error {
	key, first := p.key("create"), p.content("first")
	tag, err := p.root.CreateRecord(ctx, key, first)
	if err != nil {
		return or(noCreate, err)
	}
	if err := p.holds(ctx, key, first, tag, noWrites); err != nil {
		return err
	}
	_, err = p.root.CreateRecord(ctx, key, p.content("again"))
	if err := refused(noCreate, err); err != nil {
		return err
	}
	return p.holds(ctx, key, first, tag, noCreate)
}

func (p *probe) replace(ctx context.Context) error {
	key, second := p.key("replace"), p.content("second")
	one, err := p.root.CreateRecord(ctx, key, p.content("first"))
	if err != nil {
		return or(noCreate, err)
	}
	two, err := p.root.ReplaceRecord(ctx, key, second, one)
	if err != nil {
		return or(noReplace, err)
	}
	_, err = p.root.ReplaceRecord(ctx, key, p.content("stale"), one)
	if err := refused(noReplace, err); err != nil {
		return err
	}
	if err := p.holds(ctx, key, second, two, noReplace); err != nil {
		return err
	}
	if err := p.root.DeleteRecord(ctx, key); err != nil {
		return or(noDelete, err)
	}
	_, err = p.root.ReplaceRecord(ctx, key, p.content("gone"), two)
	if err := refused(noReplace, err); err != nil {
		return err
	}
	_, err = p.root.Head(ctx, key)
	return missing(noReplace, err)
}

// missing returns nil if an object was not found.
func missing(lack lacks, err error) error {
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil:
		return lack
	}
	return or(lack, err)
}

func (p *probe) race(ctx context.Context) error {
	key := p.key("race")
	tag, err := p.won("create", func(data []byte) (string, error) { return p.root.CreateRecord(ctx, key, data) })
	if err != nil {
		return err
	}
	_, err = p.won("replace", func(data []byte) (string, error) { return p.root.ReplaceRecord(ctx, key, data, tag) })
	return err
}

// won runs several writes at once and returns the tag of the one that won.
func (p *probe) won(what string, write func(data []byte) (string, error)) (tag string, err error) {
	tags, errs := make([]string, racers), make([]error, racers)
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() { tags[i], errs[i] = write(p.content(fmt.Sprint(what, i))) })
	}
	wg.Wait()
	winners := 0
	for i, e := range errs {
		switch {
		case e == nil:
			winners++
			tag = tags[i]
		case !errors.Is(e, store.ErrConflict):
			err = or(noRace, e)
		}
	}
	switch {
	case winners == 1:
		return tag, nil // the outcome of the others may be unknown
	case winners == 0 && err != nil:
		return "", err
	}
	return "", noRace
}

func (p *probe) read(ctx context.Context) error {
	key := p.key("read")
	old, err := p.put(ctx, key, p.content("old"))
	if err != nil {
		return err
	}
	data := p.content("new")
	v, err := p.put(ctx, key, data)
	if err != nil {
		return err
	}
	got, info, err := p.get(ctx, key, store.Range{Offset: 2, Length: 5}, v.ETag)
	if err != nil {
		return or(noRange, err)
	}
	if !bytes.Equal(got, data[2:7]) || !info.Equal(v) {
		return noRange
	}
	if _, _, err = p.get(ctx, key, store.Range{Offset: 2, Length: 5}, old.ETag); err == nil {
		return noIfMatch
	}
	if !errors.Is(err, store.ErrChanged) {
		return or(noIfMatch, err)
	}
	to := p.key("copy")
	if err := p.root.Copy(ctx, to, key, int64(len(data))); err != nil {
		return or(noCopy, err)
	}
	if got, _, err = p.get(ctx, to, store.All, ""); err != nil {
		return or(noCopy, err)
	}
	if !bytes.Equal(got, data) {
		return noCopy
	}
	return nil
}

func (p *probe) put(ctx context.Context, key string, data []byte) (store.Version, error) {
	v, err := p.root.Put(ctx, key, bytes.NewReader(data), int64(len(data)))
	return v, or(noWrites, err)
}

func (p *probe) get(ctx context.Context, key string, r store.Range, ifMatch string) ([]byte, store.Info, error) {
	body, info, err := p.root.Get(ctx, key, r, ifMatch)
	if err != nil {
		return nil, info, err
	}
	data, err := io.ReadAll(io.LimitReader(body, store.MaxRecordBytes))
	return data, info, errors.Join(err, body.Close())
}

func (p *probe) list(ctx context.Context) error {
	want := map[string]store.Version{}
	first := p.key("list-a")
	for _, key := range []string{first, p.key("list-b"), p.key("list-c")} {
		v, err := p.put(ctx, key, p.content(key))
		if err != nil {
			return err
		}
		want[key] = v
	}
	delete(want, first) // the listing begins after it
	for info, err := range p.root.List(ctx, layout.ProbeKey(p.id, "list-"), first) {
		if err != nil {
			return or(noList, err)
		}
		if v, ok := want[info.Key]; !ok || !v.Equal(info.Version) {
			return noList
		}
		delete(want, info.Key)
	}
	for _, err := range p.root.List(ctx, strings.TrimSuffix(layout.ProbePrefix, "/"), "") {
		if err != nil {
			return or(noList, err)
		}
		return noList // they are below a slash
	}
	if len(want) > 0 {
		return noList
	}
	return nil
}

func (p *probe) multipart(ctx context.Context) error {
	key, data := p.key("multipart"), p.content("part")
	id, err := p.root.CreateUpload(ctx, key)
	if err != nil {
		return or(noMultipart, err)
	}
	completed := false
	defer func() {
		if !completed {
			ctx, cancel := afterwards(ctx)
			defer cancel()
			_ = p.root.AbortUpload(ctx, key, id)
		}
	}()
	part, err := p.root.UploadPart(ctx, key, id, 1, bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return or(noMultipart, err)
	}
	parts, err := p.root.ListParts(ctx, key, id)
	if err != nil {
		return or(noMultipart, err)
	}
	if len(parts) != 1 || !parts[0].Equal(part) {
		return noMultipart
	}
	v, err := p.root.CompleteUpload(ctx, key, id, parts)
	if err != nil {
		return or(noMultipart, err)
	}
	completed = true
	got, _, err := p.get(ctx, key, store.All, v.ETag)
	if err != nil {
		return or(noMultipart, err)
	}
	if !bytes.Equal(got, data) {
		return noMultipart
	}
	gone, err := p.root.CreateUpload(ctx, key)
	if err != nil {
		return or(noMultipart, err)
	}
	if err := p.root.AbortUpload(ctx, key, gone); err != nil {
		return or(noMultipart, err)
	}
	_, err = p.root.ListParts(ctx, key, gone)
	return missing(noMultipart, err)
}

// afterwards returns the context for removing what a probe wrote.
func afterwards(ctx context.Context) (context.Context, context.CancelFunc) {
	limit := tidyTime
	if ctx.Err() != nil {
		limit = hurried
	}
	return context.WithTimeout(context.WithoutCancel(ctx), limit)
}

// tidy removes what this probe and killed ones wrote. It ignores errors: the next
// probe tries again.
func (p *probe) tidy(ctx context.Context) {
	ctx, cancel := afterwards(ctx)
	defer cancel()
	var now time.Time // by the clock of the server
	var old []store.Info
	for info, err := range p.root.List(ctx, layout.ProbePrefix, "") {
		if err != nil {
			break
		}
		if strings.HasPrefix(info.Key, layout.ProbeKey(p.id, "")) {
			now = info.LastModified
		} else {
			old = append(old, info)
		}
	}
	var wg sync.WaitGroup
	for _, key := range p.keys {
		wg.Go(func() { _ = p.root.Delete(ctx, key) })
	}
	wg.Wait()
	for _, info := range old {
		if now.Sub(info.LastModified) > leftAfter {
			_ = p.root.Delete(ctx, info.Key)
		}
	}
}

package catalog

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
)

// disk returns the object that has the expanded disk in c, or nil if there is none.
func (f *Function) disk(ctx context.Context, c *object) (*object, error) {
	if c.known == nil || c.known.Disk == nil {
		return nil, nil
	}
	key := layout.DiskKey(c.sha256)
	info, err := f.Catalog.Head(ctx, key)
	if notFound(err) || err == nil && info.Size != c.known.Disk.SizeBytes {
		return nil, nil // it was removed
	}
	if err != nil {
		return nil, err
	}
	d := *c
	d.Place = inventory.Place{Root: f.Catalog, Info: info}
	return &d, nil
}

// linkedDisk is disk for a client that reads the disk from the store, which this records as
// a use.
func (f *Function) linkedDisk(r *http.Request, c *object) (*object, error) {
	if c.known == nil || c.known.Disk == nil {
		return nil, nil
	}
	f.useOnce(r.Context(), c) // before it is looked up, so that it is not removed after that
	return f.disk(r.Context(), c)
}

// useOnce records that the disk in c is used now.
func (f *Function) useOnce(ctx context.Context, c *object) {
	if f.Now().Sub(c.known.Disk.UsedAt) >= content.UseStep {
		f.record(ctx, c)
	}
}

// record records a use of the disk in c, or logs why it could not.
func (f *Function) record(ctx context.Context, c *object) {
	if err := f.used(context.WithoutCancel(ctx), c.sha256); err != nil {
		f.Log.Warn("the use of a disk was not recorded", "sha256", c.sha256, "error", err)
	}
}

// use records that the disk in c is in use until the returned function is called, so that
// no process removes it.
func (f *Function) use(ctx context.Context, c *object) (end func()) {
	f.useOnce(ctx, c)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(content.UseStep / 2)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				f.record(ctx, c)
			}
		}
	}()
	return func() { cancel(); <-done }
}

// used records a use, unless the last one is recent.
func (f *Function) used(ctx context.Context, sha256 layout.SHA256) error {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, _, err := record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		now := f.Now().UTC()
		if !exists || rec.Disk == nil || now.Sub(rec.Disk.UsedAt) < content.UseStep {
			return record.ErrKeep
		}
		rec.Disk.UsedAt = now
		return nil
	})
	return err
}

// makeDisk queues the job that makes the disk of an image for a request of a range, which
// only a disk can answer. It returns nil if the client should have the whole stream
// instead.
func (f *Function) makeDisk(r *http.Request, sha256 layout.SHA256, name image.Name) error {
	asked := strings.ReplaceAll(r.Header.Get("Range"), " ", "")
	if asked == "" || asked == "bytes=0-" || ignoredRange(r) {
		return nil
	}
	return f.expand(r.Context(), sha256, name)
}

// expand queues the job that makes the disk of an image, and returns the problem that says
// so. It returns nil if no disk is made.
func (f *Function) expand(ctx context.Context, sha256 layout.SHA256, name image.Name) error {
	if f.MakeDisk == nil || sha256 == "" {
		return nil
	}
	active, written, err := f.MakeDisk(ctx, sha256, name)
	if errors.Is(err, record.ErrNewer) {
		return nil
	}
	if err != nil {
		return err
	}
	if !active {
		return nil
	}
	return problem.Newf(problem.Unavailable, "%s is expanded first, so that any part of its disk can be read; %d bytes are written: try again soon", name, written)
}

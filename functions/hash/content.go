package hash

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
	"imageroot/shared/unpack"
)

// A place is where bytes are stored, their primary name, and the architecture that the catalog
// says.
type place struct {
	inventory.Place
	name         image.Name
	architecture string
}

// imageAt returns the place of an image.
func (f *Function) imageAt(name image.Name, v store.Version) place {
	return place{inventory.Place{Root: f.Images, Local: true, Info: store.Info{Key: layout.ImageKey(name), Version: v}}, name, ""}
}

// find returns the place of the bytes with this SHA-256, or [store.ErrNotFound] if
// neither root has them.
func (f *Function) find(ctx context.Context, sha256 layout.SHA256) (place, error) {
	at, err := f.listed(ctx, sha256)
	if errors.Is(err, store.ErrNotFound) {
		// Another process may have stored them.
		if err := f.Inventory.Refresh(ctx); err != nil {
			return place{}, err
		}
		at, err = f.listed(ctx, sha256)
	}
	return at, err
}

func (f *Function) listed(ctx context.Context, sha256 layout.SHA256) (place, error) {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return place{}, err
	}
	row, ok := s.BySHA256(sha256)
	if !ok {
		return place{}, store.ErrNotFound
	}
	at, ok := s.Locate(row, f.Images, f.Catalog)
	if !ok {
		return place{}, store.ErrNotFound
	}
	name := row.Names[0]
	if at.Local {
		name, _ = layout.ImageName(at.Info.Key)
	}
	return place{at, name, row.Metadata.Architecture.Get()}, nil
}

// inspectContent detects the format of the bytes with this SHA-256, wherever they are
// stored, inspects the disk in them, and queues checks. In a record of an earlier version it
// adds what that lacks.
func (f *Function) inspectContent(ctx context.Context, sha256 layout.SHA256) error {
	rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
	missing := errors.Is(err, store.ErrNotFound)
	if err != nil && !missing {
		return err
	}
	at, err := f.find(ctx, sha256)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if missing || rec.Inspectable() {
		if rec, err = f.learn(ctx, sha256, at, rec); err != nil {
			return err
		}
	}
	if rec.SHA256 != "" {
		if _, err := f.inspectMap(ctx, rec, at); err != nil {
			return err
		}
	}
	return f.fillChecks(ctx)
}

const (
	// seeks limits the reads for a virtual size if each is a request to the store,
	// and fileSeeks if none is: enough for 10 GB of zstd.
	seeks, fileSeeks = 512, 100_000
)

// inspect detects the format of the bytes with this SHA-256 and queues their
// check, unless either was done before.
func (f *Function) inspect(ctx context.Context, sha256 layout.SHA256, at place) error {
	rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
	if errors.Is(err, store.ErrNotFound) {
		rec, err = f.learn(ctx, sha256, at, rec)
	}
	if err == nil && rec.SHA256 != "" {
		rec, err = f.inspectMap(ctx, rec, at)
	}
	if err != nil || f.runner(job.Check).Off() || !rec.Pending() {
		return err
	}
	_, err = f.enqueueCheck(ctx, sha256, at.name, at.Info.Size, activity.System, "")
	return err
}

// learn records the format of the bytes with this SHA-256, unless it is known, and what an
// inspection finds in the disk. known is zero or the record. The result is zero if the bytes
// were replaced meanwhile, which causes another event.
func (f *Function) learn(ctx context.Context, sha256 layout.SHA256, at place, known content.Record) (content.Record, error) {
	found, err := f.detect(ctx, at, known)
	if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
		f.Inventory.Touch(at.Place)
		return content.Record{}, nil
	}
	if err != nil {
		return content.Record{}, fmt.Errorf("inspect %s: %w", at.name, err)
	}
	rec, _, err := record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		if exists && !rec.Inspectable() {
			return record.ErrKeep
		}
		if !exists {
			rec.SHA256, rec.SizeBytes, rec.Content, rec.SniffedAt = sha256, at.Info.Size, found.Content, f.Now().UTC()
			rec.Bmap = found.Bmap
		}
		if rec.Boot == nil {
			rec.Boot = found.Boot
		}
		if rec.Stale() && found.Inside != nil {
			rec.Inside = found.Inside
		}
		return nil
	})
	return rec, err
}

// detect returns a record with the format of the bytes at a place, unless known has it, and
// with what an inspection finds in the disk.
func (f *Function) detect(ctx context.Context, at place, known content.Record) (content.Record, error) {
	r, err := reader.Open(ctx, at.Root, at.Info.Key, at.Info.Version)
	if err != nil {
		return known, err
	}
	defer r.Close()
	n := seeks
	if r.Local() {
		n = fileSeeks
	}
	if known.Kind == "" {
		if known.Content, err = content.Sniff(r, at.Info.Size, n); err != nil {
			return known, err
		}
	}
	if err := f.inspectDisk(ctx, at, r, &known); err != nil {
		return known, err
	}
	if !f.runner(job.Check).Off() && known.Kind.Raw() && known.NoDisk() == "" && r.OwnHoles() {
		stored, hole, err := r.Extent(0, at.Info.Size)
		if err != nil {
			return known, err
		}
		if hole || stored < at.Info.Size {
			known.Bmap = &content.Bmap{Pending: true}
		}
	}
	return known, at.Unchanged(ctx)
}

const (
	// headBytes is the part of a compressed disk in which firmware must find what it
	// starts: the boot catalog of an ISO image may be behind partition tables.
	headBytes = 1 << 20
	// packedBytes limits what is read for it: several blocks of bzip2.
	packedBytes = 4 << 20
)

// unpackHead returns the first headBytes of a compressed disk, or fewer if it is shorter,
// damaged, or takes more than packedBytes for them. It unpacks one image at a time, since
// each takes the memory of its window.
func (f *Function) unpackHead(ctx context.Context, at place, kind content.Kind) ([]byte, error) {
	f.heads.Lock()
	defer f.heads.Unlock()
	packed, info, err := at.Root.Get(ctx, at.Info.Key, store.Range{Length: packedBytes}, at.Info.ETag)
	if err != nil {
		return nil, err
	}
	defer packed.Close()
	if info.Size != at.Info.Size {
		return nil, store.ErrChanged
	}
	var head []byte
	// Without Spare, blocks of xz and bzip2 are not decoded in parallel, beyond what is needed.
	u, err := unpack.NewReader(kind, packed, unpack.Limit{Spare: func(int64) bool { return false }})
	if err == nil {
		defer u.Close()
		head, err = io.ReadAll(io.LimitReader(u, headBytes))
	}
	if _, bad := errors.AsType[*unpack.Error](err); bad {
		err = nil
	}
	return head, err
}

// CheckPending queues the check of a content that needs one, as reconciling does.
func (f *Function) CheckPending(ctx context.Context, sha256 layout.SHA256) error {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return err
	}
	row, ok := s.BySHA256(sha256)
	if !ok || !row.Cached || !row.Head.Pending || f.runner(job.Check).Off() {
		return nil
	}
	_, err = f.enqueueCheck(ctx, sha256, row.Names[0], row.Known.SizeBytes, activity.System, "")
	return err
}

// enqueueCheck queues a check job, unless it is active. A job that has ended
// without a verdict is queued again.
func (f *Function) enqueueCheck(ctx context.Context, sha256 layout.SHA256, name image.Name, size int64, actor, ip string) (job.Job, error) {
	return f.runner(job.Check).Enqueue(ctx, string(sha256), func(job.Job) bool { return false }, func(j *job.Job) {
		j.Name, j.Stage, j.SHA256, j.BytesTotal, j.Actor, j.SourceIP = name, job.Check.Name, sha256, &size, actor, ip
	})
}

const (
	// maxInspections limits the inspections that one reconciliation queues, and
	// maxChecks the check jobs that are active: after an upgrade, many contents may
	// need both.
	maxInspections, maxChecks = 1000, 20
	// maxTurns replaces maxChecks if checks share a queue with hashes, which must
	// not wait for them.
	maxTurns = 2
	// forgetAfter is how long the content record of bytes that are gone is kept.
	forgetAfter = 24 * time.Hour
)

// reconcileContents queues inspections of bytes without a content record and checks
// of contents without a verdict. It removes old records of bytes that are gone.
func (f *Function) reconcileContents(ctx context.Context) error {
	unknown, gone, err := f.Inventory.Unknown(ctx, forgetAfter)
	if err != nil {
		return err
	}
	for _, sha := range unknown[:min(len(unknown), maxInspections)] {
		if err := f.Inspections.Send(ctx, queue.InspectContent(sha).Encode(), 0); err != nil {
			return err
		}
	}
	for _, sha := range gone {
		if err := record.Delete[content.Record](ctx, f.Catalog, layout.ContentKey(sha)); err != nil {
			return err
		}
		if err := f.Catalog.Delete(ctx, layout.BmapKey(sha)); err != nil {
			return err
		}
	}
	return f.fillChecks(ctx)
}

// fillChecks queues check jobs until maxChecks are active, or maxTurns on a shared
// queue.
func (f *Function) fillChecks(ctx context.Context) error {
	if f.runner(job.Check).Off() {
		return nil
	}
	jobs, err := f.Inventory.Jobs(ctx, job.Check)
	if err != nil {
		return err
	}
	active := map[layout.SHA256]bool{}
	for _, j := range jobs {
		if j.Status.Active() {
			active[j.SHA256] = true
		}
	}
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return err
	}
	most := maxChecks
	if f.Jobs.Queues[job.Check] == f.Jobs.Queues[job.Hash] {
		most = maxTurns
	}
	for h := range s.Heads() {
		if len(active) >= most {
			break
		}
		if !h.Cached || !h.Pending || active[h.SHA256] {
			continue
		}
		active[h.SHA256] = true
		if _, err := f.enqueueCheck(ctx, h.SHA256, h.Name, s.Row(h).Known.SizeBytes, activity.System, ""); err != nil && !errors.Is(err, record.ErrNewer) {
			return err
		}
	}
	return nil
}

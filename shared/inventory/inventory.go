// Package inventory merges the two roots into the catalog: one row for each content,
// with all its names and sources.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/export"
	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// Kinds of sources.
const (
	Local    = "local"    // an image in the image root
	Manifest = "manifest" // an image of the operator's manifest
	URL      = "url"      // an operator's entry
)

// A Source is an origin of a row's bytes.
type Source struct {
	Kind     string `json:"kind"`
	Location string `json:"location"`

	Name  image.Name `json:"-"`
	Ref   layout.Ref `json:"-"` // of the URL; "" for a local image
	Title string     `json:"-"` // that the manifest or the entry gives the image; or ""
	// What the manifest or the entry says about the bytes; "" or nil if nothing.
	SHA256    layout.SHA256 `json:"-"`
	SHA512    string        `json:"-"`
	SizeBytes *int64        `json:"-"`
}

// States of a row's digest.
const (
	Unhashed  = "unhashed"
	Hashed    = "hashed"
	Published = "published" // known from the source; not computed here
	// Otherwise the status of the hash job: queued, running or failed.
)

// A Row is one line of the catalog: one content, or one source that is not hashed.
// Sizes are in bytes.
type Row struct {
	Ref    *string        `json:"ref"` // the first MinRef hex digits of SHA256
	SHA256 *layout.SHA256 `json:"sha256"`
	// Names begins with the primary name: the one that the operator chose, else a name
	// from the manifest if there is one, else the name known longest.
	Names     []image.Name `json:"names"`
	Format    image.Format `json:"format"`
	SizeBytes *int64       `json:"size_bytes"`
	Sources   []Source     `json:"sources"`
	Cached    bool         `json:"cached"`
	HashState string       `json:"hash_state"`
	// Content is the kind of the bytes, VirtualSizeBytes the size of the drive that
	// they need. RawSizeBytes and RawSHA256 are those of the disk, which /raw serves.
	// All are nil until they are known.
	Content          *content.Kind  `json:"content"`
	VirtualSizeBytes *int64         `json:"virtual_size_bytes"`
	RawSizeBytes     *int64         `json:"raw_size_bytes"`
	RawSHA256        *layout.SHA256 `json:"raw_sha256"`
	// SameDisk are other contents with the same disk, in other wrappers, at most
	// [MaxSameDisk] of them.
	SameDisk []SameDisk      `json:"same_disk"`
	Metadata metadata.Merged `json:"metadata"`
	Warnings []string        `json:"warnings"`

	// Head is that of the row in its snapshot.
	Head *Head `json:"-"`
	// Known is the content record, or nil before the inspection.
	Known *content.Record `json:"-"`
	// Blob is true if the catalog root has the bytes.
	Blob bool `json:"-"`
	// Added is the time at which the first of the sources became known here; zero if
	// that is unknown. The time of a source in the manifest is unknown until a fetch.
	Added time.Time `json:"-"`
	// FetchFailed is true if the bytes are missing because a fetch failed.
	FetchFailed bool `json:"-"`
}

// Digest returns the row's SHA-256, or "".
func (r *Row) Digest() layout.SHA256 {
	if r.SHA256 == nil {
		return ""
	}
	return *r.SHA256
}

// Local returns the name of an image in the image root that has the row's bytes, and
// false if there is none.
func (r *Row) Local() (name image.Name, ok bool) {
	for _, s := range r.Sources {
		if s.Kind == Local {
			return s.Name, true
		}
	}
	return "", false
}

// Config configures an [Inventory]. All fields are required except Hidden and Compact.
type Config struct {
	Images, Catalog store.Root
	// Hidden returns the files of the image root that S3 does not list. Nil: S3 lists
	// everything.
	Hidden func() []Other
	// Compact is that of [index.Config].
	Compact bool
	Now     func() time.Time
	Log     *slog.Logger
}

// An Inventory merges the catalog from the index over both roots. It is safe for
// concurrent use.
type Inventory struct {
	*index.Index
	cfg      Config
	images   *index.Section[store.Key, struct{}]
	blobs    *index.Section[layout.SHA256, struct{}]
	digests  *index.Section[image.Name, digest.Record]
	entries  *index.Section[layout.Ref, entry.Entry]
	fetched  *index.Section[layout.Ref, entry.Fetched]
	contents *index.Section[layout.SHA256, content.Record]
	metadata *index.Section[layout.SHA256, metadata.Record]
	exports  *index.Section[layout.ExportName, export.Record]
	jobs     map[*job.Kind]*jobs
	manifest manifestFile

	mu           sync.Mutex
	last         *Snapshot
	logged       map[Other]bool
	subscription Subscription
}

// New returns an inventory. It does not read the roots.
func New(cfg Config) *Inventory {
	ix := index.New(index.Config{
		Images: cfg.Images, Catalog: cfg.Catalog, Quiet: job.Quiet, Live: job.Live, Compact: cfg.Compact, Now: cfg.Now, Log: cfg.Log,
	})
	inv := &Inventory{
		Index: ix, cfg: cfg,
		images:   index.Images(ix),
		blobs:    index.Blobs(ix, layout.BlobPrefix, layout.BlobSHA256),
		digests:  index.Records[digest.Record](ix, layout.DigestPrefix, layout.DigestName),
		entries:  index.Records[entry.Entry](ix, layout.EntryPrefix, layout.EntryRef),
		fetched:  index.Records[entry.Fetched](ix, layout.FetchedPrefix, layout.FetchedRef),
		contents: index.Records[content.Record](ix, layout.ContentPrefix, layout.ContentSHA256),
		metadata: index.Records[metadata.Record](ix, layout.MetadataPrefix, layout.MetadataSHA256),
		exports:  index.Records[export.Record](ix, layout.ExportPrefix, layout.ExportOf),
		jobs:     map[*job.Kind]*jobs{},
	}
	for _, k := range job.Kinds {
		inv.jobs[k] = &jobs{Section: index.Records[job.Job](ix, k.Prefix, k.ParseKey)}
	}
	inv.manifest = manifestFile{images: cfg.Images, catalog: cfg.Catalog, log: cfg.Log}
	return inv
}

// Reconcile compares the index with the store and corrects it. It finds changes of
// writers that died, changes without an event, and damage.
func (inv *Inventory) Reconcile(ctx context.Context) error {
	errs := []error{inv.Refresh(ctx)}
	inv.exports.LeftOut(nil) // logs damage, since nothing else may read them for long
	for _, k := range job.Kinds {
		errs = append(errs, inv.jobs[k].Refresh(ctx))
	}
	if err := errors.Join(errs...); err != nil || !inv.cfg.Compact {
		return err
	}
	return inv.Check(ctx)
}

// Unsettled calls [Inventory.Reconcile]. It returns the sorted names of images whose
// digest record is missing, of another version or based on other sidecars, or whose block
// map is another one, and of
// digest records without an image, including damaged ones.
func (inv *Inventory) Unsettled(ctx context.Context) ([]image.Name, error) {
	if err := inv.Reconcile(ctx); err != nil {
		return nil, err
	}
	return inv.unsettled(ctx, func(image.Name, store.Version) bool { return false })
}

// Changed is [Inventory.Unsettled], but lists only the image root. It omits images
// whose current version has a hash job that is not completed.
func (inv *Inventory) Changed(ctx context.Context) ([]image.Name, error) {
	if err := inv.images.Refresh(ctx); err != nil {
		return nil, err
	}
	jobs, err := inv.jobs[job.Hash].All(ctx)
	if err != nil {
		return nil, err
	}
	return inv.unsettled(ctx, func(name image.Name, v store.Version) bool {
		j, ok := jobs.Value(string(name))
		return ok && j.Status != job.Completed && j.Version != nil && j.Version.Equal(v)
	})
}

// unsettled compares images and digest records. It omits images for which inHand
// returns true.
func (inv *Inventory) unsettled(ctx context.Context, inHand func(name image.Name, v store.Version) bool) ([]image.Name, error) {
	images, err := inv.images.All(ctx)
	if err != nil {
		return nil, err
	}
	digests, err := inv.digests.All(ctx)
	if err != nil {
		return nil, err
	}
	contents, err := inv.contents.All(ctx)
	if err != nil {
		return nil, err
	}
	var names []image.Name
	for key, info := range images.All() {
		name, ok := layout.ImageName(key)
		if !ok {
			continue
		}
		rec, ok := digests.Value(name)
		ok = ok && rec.Version.Equal(info.Version) && sameSidecars(images, name, rec.Publishers)
		if known, found := contents.Value(rec.SHA256); ok && found {
			ok = sameMap(images, name, known.Bmap)
		}
		if !ok && !inHand(name, info.Version) {
			names = append(names, name)
		}
	}
	damaged := inv.digests.LeftOut(record.ErrDamaged)
	for name := range digests.All() {
		if _, ok := images.Info(layout.ImageKey(name)); ok {
			continue
		}
		if _, ok := digests.Value(name); ok || slices.Contains(damaged, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// sameSidecars reports whether publishers come from the current sidecars of the image.
func sameSidecars(images index.Items[store.Key, struct{}], name image.Name, publishers []digest.Publisher) bool {
	n := 0
	for _, algorithm := range []string{"sha256", "sha512"} {
		for _, spelling := range image.Spellings(name) {
			info, ok := images.Info(layout.SidecarKey(spelling, algorithm))
			if !ok {
				continue
			}
			n++
			if !slices.ContainsFunc(publishers, func(p digest.Publisher) bool { return p.SidecarVersion.Equal(info.Version) }) {
				return false
			}
		}
	}
	return n == len(publishers)
}

// sameMap reports whether known is of the current block map beside the image, or of another
// one that exists. One that was fetched gives way to one beside the image.
func sameMap(images index.Items[store.Key, struct{}], name image.Name, known *content.Bmap) bool {
	if known != nil && known.File != "" && !known.Fetched() {
		info, ok := images.Info(known.File)
		return ok && info.Version.Equal(known.Version)
	}
	return !slices.ContainsFunc(layout.BmapSidecars(name), func(key store.Key) bool {
		_, ok := images.Info(key)
		return ok
	})
}

// Refresh compares everything except jobs with the store: see [index.Section.Refresh].
func (inv *Inventory) Refresh(ctx context.Context) error {
	return errors.Join(inv.images.Refresh(ctx), inv.digests.Refresh(ctx), inv.entries.Refresh(ctx),
		inv.fetched.Refresh(ctx), inv.blobs.Refresh(ctx), inv.contents.Refresh(ctx), inv.metadata.Refresh(ctx), inv.exports.Refresh(ctx))
}

// Unknown returns the digests of cached bytes without a content record that has all that
// an inspection finds, and of content records older than age without a row. It lists
// nothing, so call it after [Inventory.Unsettled]. records is nil if the catalog is
// [Inventory.Incomplete].
func (inv *Inventory) Unknown(ctx context.Context, age time.Duration) (bytes, records []layout.SHA256, err error) {
	s, err := inv.Snapshot(ctx)
	if err != nil {
		return nil, nil, err
	}
	for h := range s.Heads() {
		if h.SHA256 != "" && h.Cached && (!h.Inspected || h.Missing) {
			bytes = append(bytes, h.SHA256)
		}
	}
	if inv.Incomplete(s) {
		return bytes, nil, nil
	}
	return bytes, unused(s.in.contents, inv.before(age), func(sha layout.SHA256) bool { return s.headOf(sha) != nil }), nil
}

// Incomplete reports whether the snapshot may lack sources, because the manifest has an
// error or records cannot be decoded. Then bytes without a row may still be in use.
func (inv *Inventory) Incomplete(s *Snapshot) bool {
	return s.Problem != "" || len(inv.digests.LeftOut(nil))+len(inv.entries.LeftOut(nil))+len(inv.fetched.LeftOut(nil)) > 0
}

// Unnamed returns the digests of blobs and the refs of fetched records that are older
// than age and that no source names. Before it returns any, it calls
// [Inventory.Refresh]. Both are nil if the catalog is [Inventory.Incomplete].
func (inv *Inventory) Unnamed(ctx context.Context, age time.Duration) (blobs []layout.SHA256, fetched []layout.Ref, err error) {
	if err := inv.jobs[job.Fetch].Refresh(ctx); err != nil {
		return nil, nil, err
	}
	blobs, fetched, err = inv.unnamed(ctx, age)
	if err != nil || len(blobs)+len(fetched) == 0 {
		return nil, nil, err
	}
	if err := inv.Refresh(ctx); err != nil {
		return nil, nil, err
	}
	return inv.unnamed(ctx, age)
}

func (inv *Inventory) unnamed(ctx context.Context, age time.Duration) (blobs []layout.SHA256, fetched []layout.Ref, err error) {
	s, err := inv.Snapshot(ctx)
	if err != nil || inv.Incomplete(s) {
		return nil, nil, err
	}
	blobs = unused(s.in.blobs, inv.before(age), func(sha layout.SHA256) bool { return s.headOf(sha) != nil })
	fetched = unused(s.in.fetched, inv.before(age), func(ref layout.Ref) bool { return s.sourced(ref) != nil })
	return blobs, fetched, nil
}

func (inv *Inventory) before(age time.Duration) time.Time { return inv.cfg.Now().Add(-age) }

// unused returns the IDs of the objects from before a time that are not in use.
func unused[ID ~string, T any](items index.Items[ID, T], before time.Time, used func(ID) bool) (ids []ID) {
	for id, info := range items.All() {
		if !info.LastModified.Before(before) || used(id) {
			continue
		}
		if _, ok := items.Value(id); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// Entries returns all entries.
func (inv *Inventory) Entries(ctx context.Context) ([]entry.Entry, error) {
	items, err := inv.entries.All(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]entry.Entry, 0, items.Len())
	for _, e := range items.Values() {
		list = append(list, e)
	}
	return list, nil
}

// Exports returns the exports that operators have named.
func (inv *Inventory) Exports(ctx context.Context) (index.Items[layout.ExportName, export.Record], error) {
	return inv.exports.All(ctx)
}

// logOthers logs each object that is not an image, once while it exists. The caller
// holds mu.
func (inv *Inventory) logOthers() {
	const most = 100
	logged := make(map[Other]bool, len(inv.last.Others))
	for _, o := range inv.last.Others {
		if logged[o] = true; !inv.logged[o] && len(logged) <= most {
			inv.cfg.Log.Warn("not an image", "name", o.Name, "reason", o.Reason)
		}
	}
	inv.logged = logged
}

// Snapshot returns the current catalog, as recent as [index.Section.All]. It returns
// the previous snapshot if nothing has changed.
func (inv *Inventory) Snapshot(ctx context.Context) (*Snapshot, error) {
	var in inputs
	var err error
	get := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	get(func() (e error) { in.images, e = inv.images.All(ctx); return })
	get(func() (e error) { in.blobs, e = inv.blobs.All(ctx); return })
	get(func() (e error) { in.digests, e = inv.digests.All(ctx); return })
	get(func() (e error) { in.entries, e = inv.entries.All(ctx); return })
	get(func() (e error) { in.fetched, e = inv.fetched.All(ctx); return })
	get(func() (e error) { in.contents, e = inv.contents.All(ctx); return })
	get(func() (e error) { in.metadata, e = inv.metadata.All(ctx); return })
	get(func() (e error) { in.hashJobs, e = inv.jobs[job.Hash].byID(ctx); return })
	get(func() (e error) { in.fetchJobs, e = inv.jobs[job.Fetch].byID(ctx); return })
	for i, of := range contentJobs {
		get(func() (e error) { in.contentJobs[i], e = inv.jobs[of.kind].byID(ctx); return })
	}
	get(func() (e error) { in.manifest, in.problem, e = inv.manifest.read(ctx, in.images); return })
	if inv.cfg.Hidden != nil {
		in.hidden = inv.cfg.Hidden()
	}
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	in.subscription = inv.subscription
	if next := inv.last.next(in); next != inv.last {
		inv.last = next
		inv.logOthers()
	}
	return inv.last, nil
}

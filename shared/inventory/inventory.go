// Package inventory merges the two roots into the catalog: one row for each content,
// with all its names and sources.
package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/job"
	"imageroot/shared/layout"
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

	Name image.Name `json:"-"`
	Ref  layout.Ref `json:"-"` // of the URL; "" for a local image
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
	// Names begins with the primary name: a name from the manifest if there is one,
	// else the name known longest.
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
	Warnings         []string       `json:"warnings"`

	// Known is the content record, or nil before the inspection.
	Known *content.Record `json:"-"`
	// Blob is true if the catalog root has the bytes.
	Blob bool `json:"-"`
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

// A Snapshot is the catalog at one moment. Callers must not modify it. It is safe for
// concurrent use.
type Snapshot struct {
	Rows []Row // sorted by primary name without case, then digest
	// Problem is the error of the manifest, or "".
	Problem string
	// Others are the objects in the image root that are not images, sorted by name.
	Others []Other

	bySHA  map[layout.SHA256]int
	byName map[image.Name]int          // names are exact
	byDisk map[image.Name][]image.Name // names by their image.DiskName, if it differs
	byRef  map[layout.Ref]int          // of URL sources
	images map[store.Key]index.Item[struct{}]
	blobs  map[layout.SHA256]index.Item[struct{}] // by digest
	gen    generations
	failed map[layout.Ref]string // errors of fetches, by ref
	hidden []Other

	textOnce sync.Once
	texts    []string // the text that a search matches, by row
}

// generations are those of a snapshot's inputs.
type generations struct{ images, blobs, digests, entries, fetched, hashJobs, contents, manifest uint64 }

// BySHA256 returns the row with this digest.
func (s *Snapshot) BySHA256(sha layout.SHA256) (*Row, bool) { return lookUp(s, s.bySHA, sha) }

// An Other is an object or file in the image root that is not an image.
type Other struct {
	Name   string `json:"name"`
	Reason string `json:"reason"` // the reason that it is not an image, and what to do
}

// MinRef is the minimum number of hex digits in the ref of a row.
const MinRef = 12

// ByRef returns the row whose digest begins with ref, which must have at least [MinRef]
// digits.
func (s *Snapshot) ByRef(ref string) (*Row, bool) {
	if row, ok := s.BySHA256(layout.SHA256(ref)); ok {
		return row, true
	}
	if len(ref) < MinRef {
		return nil, false
	}
	for i := range s.Rows {
		if strings.HasPrefix(string(s.Rows[i].Digest()), ref) {
			return &s.Rows[i], true
		}
	}
	return nil, false
}

// ByName returns the row with this name. A row whose image is in the image root is
// preferred, then a cached one. If there is none, it tries the other [image.Spellings].
func (s *Snapshot) ByName(name image.Name) (*Row, bool) {
	for _, spelling := range image.Spellings(name) {
		if row, ok := lookUp(s, s.byName, spelling); ok {
			return row, true
		}
	}
	return nil, false
}

// Spelled returns the first of the name's [image.Spellings] that exists in the image
// root. The name itself is tried first.
func (s *Snapshot) Spelled(name image.Name) (image.Name, bool) {
	for _, spelling := range image.Spellings(name) {
		if _, ok := s.images[layout.ImageKey(spelling)]; ok {
			return spelling, true
		}
	}
	return "", false
}

// ByDisk returns the names of the images that may hold the disk of this name: the image
// of exactly this name, else one image for each distinct disk with this
// [image.DiskName]. Images that are not cached count only if no image is cached. If
// there is none, it tries the other [image.Spellings].
func (s *Snapshot) ByDisk(disk image.Name) []image.Name {
	for _, spelling := range image.Spellings(disk) {
		if names := s.byDiskSpelled(spelling); names != nil {
			return names
		}
	}
	return nil
}

func (s *Snapshot) byDiskSpelled(disk image.Name) (names []image.Name) {
	if _, ok := s.byName[disk]; ok {
		return []image.Name{disk}
	}
	for _, cached := range []bool{true, false} {
		seen := map[string]bool{}
		for _, n := range s.byDisk[disk] {
			row := &s.Rows[s.byName[n]]
			raw := cmp.Or(string(row.Digest()), string(n))
			if row.RawSHA256 != nil {
				raw = string(*row.RawSHA256)
			}
			if row.Cached == cached && !seen[raw] {
				seen[raw] = true
				names = append(names, n)
			}
		}
		if names != nil {
			break
		}
	}
	return names
}

// rawPath returns the path of /raw for the image of this name in row, which must have a
// digest.
func (s *Snapshot) rawPath(row *Row, name image.Name) string {
	disk := image.DiskName(name)
	if names := s.ByDisk(disk); len(names) == 1 && &s.Rows[s.byName[names[0]]] == row {
		return "/raw/" + url.PathEscape(string(disk))
	}
	return "/raw/" + string(row.Digest()) + "/" + url.PathEscape(string(disk))
}

// BySource returns the row that has the source with this ref: see [layout.RefOf].
func (s *Snapshot) BySource(ref layout.Ref) (*Row, bool) { return lookUp(s, s.byRef, ref) }

// Image returns the image root's object with this name.
func (s *Snapshot) Image(name image.Name) (store.Info, bool) {
	it, ok := s.images[layout.ImageKey(name)]
	return it.Info, ok
}

// Blob returns the blob with this digest.
func (s *Snapshot) Blob(sha256 layout.SHA256) (store.Info, bool) {
	it, ok := s.blobs[sha256]
	return it.Info, ok
}

func lookUp[ID ~string](s *Snapshot, index map[ID]int, id ID) (*Row, bool) {
	i, ok := index[id]
	if !ok {
		return nil, false
	}
	return &s.Rows[i], true
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
	jobs     map[*job.Kind]*index.Section[string, job.Job]
	manifest manifestFile

	mu     sync.Mutex
	last   *Snapshot
	logged map[Other]bool
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
		jobs:     map[*job.Kind]*index.Section[string, job.Job]{},
	}
	for _, k := range job.Kinds {
		inv.jobs[k] = index.Records[job.Job](ix, k.Prefix, k.ParseKey)
	}
	inv.manifest = manifestFile{images: cfg.Images, catalog: cfg.Catalog, log: cfg.Log}
	return inv
}

// Reconcile compares the index with the store and corrects it. It finds changes of
// writers that died, changes without an event, and damage.
func (inv *Inventory) Reconcile(ctx context.Context) error {
	errs := []error{inv.Refresh(ctx)}
	for _, k := range job.Kinds {
		errs = append(errs, inv.jobs[k].Refresh(ctx))
	}
	if err := errors.Join(errs...); err != nil || !inv.cfg.Compact {
		return err
	}
	return inv.Check(ctx)
}

// Unsettled calls [Inventory.Reconcile]. It returns the sorted names of images whose
// digest record is missing, of another version or based on other sidecars, and of
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
	jobs, _, err := inv.jobs[job.Hash].All(ctx)
	if err != nil {
		return nil, err
	}
	return inv.unsettled(ctx, func(name image.Name, v store.Version) bool {
		it, ok := jobs[string(name)]
		return ok && it.Value.Status != job.Completed && it.Value.Version != nil && it.Value.Version.Equal(v)
	})
}

// unsettled compares images and digest records. It omits images for which inHand
// returns true.
func (inv *Inventory) unsettled(ctx context.Context, inHand func(name image.Name, v store.Version) bool) ([]image.Name, error) {
	images, _, err := inv.images.All(ctx)
	if err != nil {
		return nil, err
	}
	digests, _, err := inv.digests.All(ctx)
	if err != nil {
		return nil, err
	}
	var names []image.Name
	for key, it := range images {
		name, ok := layout.ImageName(key)
		if !ok {
			continue
		}
		rec, ok := digests[name]
		if !ok || !rec.Value.Version.Equal(it.Info.Version) {
			ok = inHand(name, it.Info.Version)
		} else {
			ok = sameSidecars(images, name, rec.Value.Publishers) || inHand(name, it.Info.Version)
		}
		if !ok {
			names = append(names, name)
		}
	}
	for _, name := range slices.AppendSeq(inv.digests.LeftOut(record.ErrDamaged), maps.Keys(digests)) {
		if _, ok := images[layout.ImageKey(name)]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// sameSidecars reports whether publishers come from the current sidecars of the image.
func sameSidecars(images map[store.Key]index.Item[struct{}], name image.Name, publishers []digest.Publisher) bool {
	n := 0
	for _, algorithm := range []string{"sha256", "sha512"} {
		for _, spelling := range image.Spellings(name) {
			it, ok := images[layout.SidecarKey(spelling, algorithm)]
			if !ok {
				continue
			}
			n++
			if !slices.ContainsFunc(publishers, func(p digest.Publisher) bool { return p.SidecarVersion.Equal(it.Info.Version) }) {
				return false
			}
		}
	}
	return n == len(publishers)
}

// Refresh compares everything except jobs with the store: see [index.Section.Refresh].
func (inv *Inventory) Refresh(ctx context.Context) error {
	return errors.Join(inv.images.Refresh(ctx), inv.digests.Refresh(ctx), inv.entries.Refresh(ctx),
		inv.fetched.Refresh(ctx), inv.blobs.Refresh(ctx), inv.contents.Refresh(ctx))
}

// Unknown returns the digests of cached bytes without a content record, and of content
// records older than age without a row. It lists nothing, so call it after
// [Inventory.Unsettled]. records is nil if the catalog is [Inventory.Incomplete].
func (inv *Inventory) Unknown(ctx context.Context, age time.Duration) (bytes, records []layout.SHA256, err error) {
	s, err := inv.Snapshot(ctx)
	if err != nil {
		return nil, nil, err
	}
	for i := range s.Rows {
		if r := &s.Rows[i]; r.SHA256 != nil && r.Cached && r.Known == nil {
			bytes = append(bytes, *r.SHA256)
		}
	}
	known, _, err := inv.contents.All(ctx)
	if err != nil || inv.Incomplete(s) {
		return bytes, nil, err
	}
	for sha, it := range known {
		if _, ok := s.BySHA256(sha); !ok && inv.cfg.Now().Sub(it.Info.LastModified) > age {
			records = append(records, sha)
		}
	}
	slices.Sort(records)
	return bytes, records, nil
}

// Incomplete reports whether the snapshot may lack sources, because the manifest has an
// error or records cannot be decoded. Then bytes without a row may still be in use.
func (inv *Inventory) Incomplete(s *Snapshot) bool {
	return s.Problem != "" || len(inv.digests.LeftOut(nil))+len(inv.entries.LeftOut(nil))+len(inv.fetched.LeftOut(nil)) > 0
}

// Unnamed calls [Inventory.Refresh]. It returns the digests of blobs and the refs of
// fetched records that are older than age and that no source names. Both are nil if the
// catalog is [Inventory.Incomplete].
func (inv *Inventory) Unnamed(ctx context.Context, age time.Duration) (blobs []layout.SHA256, fetched []layout.Ref, err error) {
	if err := errors.Join(inv.Refresh(ctx), inv.jobs[job.Fetch].Refresh(ctx)); err != nil {
		return nil, nil, err
	}
	s, err := inv.Snapshot(ctx)
	if err != nil || inv.Incomplete(s) {
		return nil, nil, err
	}
	records, _, err := inv.fetched.All(ctx)
	if err != nil {
		return nil, nil, err
	}
	old := func(info store.Info) bool { return inv.cfg.Now().Sub(info.LastModified) > age }
	for sha, it := range s.blobs {
		if _, ok := s.BySHA256(sha); !ok && old(it.Info) {
			blobs = append(blobs, sha)
		}
	}
	for ref, it := range records {
		if _, ok := s.BySource(ref); !ok && old(it.Info) {
			fetched = append(fetched, ref)
		}
	}
	slices.Sort(blobs)
	slices.Sort(fetched)
	return blobs, fetched, nil
}

// Entries returns all entries in no particular order.
func (inv *Inventory) Entries(ctx context.Context) ([]entry.Entry, error) {
	items, _, err := inv.entries.All(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]entry.Entry, 0, len(items))
	for _, it := range items {
		list = append(list, it.Value)
	}
	return list, nil
}

// NewerFetchJobs reports whether a newer version of imageroot has written fetch jobs.
// Their checkpoints cannot be read.
func (inv *Inventory) NewerFetchJobs() bool {
	return len(inv.jobs[job.Fetch].LeftOut(record.ErrNewer)) > 0
}

// Jobs returns the jobs of these kinds: running ones first, then queued ones, then
// ended ones with the newest end first.
func (inv *Inventory) Jobs(ctx context.Context, kinds ...*job.Kind) ([]job.Job, error) {
	var list []job.Job
	for _, k := range kinds {
		items, _, err := inv.jobs[k].All(ctx)
		if err != nil {
			return nil, err
		}
		list = slices.Grow(list, len(items))
		for _, it := range items {
			list = append(list, it.Value)
		}
	}
	rank := map[job.Status]int{job.Running: 0, job.Queued: 1}
	order := func(j job.Job) int {
		if r, ok := rank[j.Status]; ok {
			return r
		}
		return 2
	}
	slices.SortFunc(list, func(a, b job.Job) int {
		if c := cmp.Compare(order(a), order(b)); c != 0 {
			return c
		}
		if a.FinishedAt != nil && b.FinishedAt != nil {
			if c := b.FinishedAt.Compare(*a.FinishedAt); c != 0 {
				return c
			}
		}
		if c := a.QueuedAt.Compare(b.QueuedAt); c != 0 {
			return c
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return list, nil
}

// failedFetches returns the errors of failed fetches by ref. No other state of a fetch
// job affects a row.
func (inv *Inventory) failedFetches(ctx context.Context) (map[layout.Ref]string, error) {
	items, _, err := inv.jobs[job.Fetch].All(ctx)
	if err != nil {
		return nil, err
	}
	failed := map[layout.Ref]string{}
	for ref, it := range items {
		if it.Value.Status == job.Failed {
			failed[layout.Ref(ref)] = it.Value.Error
		}
	}
	return failed, nil
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
	var gen generations
	var err error
	get := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	get(func() (e error) { in.images, gen.images, e = inv.images.All(ctx); return })
	get(func() (e error) { in.blobs, gen.blobs, e = inv.blobs.All(ctx); return })
	get(func() (e error) { in.digests, gen.digests, e = inv.digests.All(ctx); return })
	get(func() (e error) { in.entries, gen.entries, e = inv.entries.All(ctx); return })
	get(func() (e error) { in.fetched, gen.fetched, e = inv.fetched.All(ctx); return })
	get(func() (e error) { in.hashJobs, gen.hashJobs, e = inv.jobs[job.Hash].All(ctx); return })
	get(func() (e error) { in.contents, gen.contents, e = inv.contents.All(ctx); return })
	get(func() (e error) {
		in.manifest, in.problem, gen.manifest, e = inv.manifest.read(ctx, in.images)
		return
	})
	get(func() (e error) { in.failedFetches, e = inv.failedFetches(ctx); return })
	if inv.cfg.Hidden != nil {
		in.hidden = inv.cfg.Hidden()
	}
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	inv.mu.Lock()
	defer inv.mu.Unlock()
	if inv.last == nil || inv.last.gen != gen || !maps.Equal(inv.last.failed, in.failedFetches) || !slices.Equal(inv.last.hidden, in.hidden) {
		inv.last = in.merge()
		inv.last.gen, inv.last.failed, inv.last.hidden = gen, in.failedFetches, in.hidden
		inv.logOthers()
	}
	return inv.last, nil
}

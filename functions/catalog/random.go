package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"golang.org/x/sync/semaphore"

	"imageroot/shared/content"
	"imageroot/shared/guest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/problem"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
)

const (
	// openBytes limits the memory of all open disks: the tables of virtual images, and what
	// is cached of objects that are not on this machine's disk.
	openBytes                = 96 << 20
	tableBytes, chunkedBytes = 1 << 20, 8 << 20
	// flightBytes limits the memory of all reads in flight, beside their buffers.
	flightBytes = 64 << 20
)

// A Disk is the disk in one version of an image, which can be read at any offset. It is
// safe for concurrent use, but for Close.
type Disk struct {
	*sharedDisk
	f   *Function
	ctx context.Context
	end func() // of the use of an expanded disk
}

// OpenDisk opens the disk in the image that key names: a SHA-256, its first 12 hex digits
// or more, or the name of an image or of its disk. It returns a problem if there is no
// image of that name, or its disk cannot be read at any offset: a compressed one is
// expanded first, which this begins. ctx must not end before the disk is closed.
func (f *Function) OpenDisk(ctx context.Context, key string) (*Disk, error) {
	var disk *Disk
	err := f.withObject(ctx, key, f.findRandom, func(c *object) error {
		if c.known != nil {
			if no := c.known.NoDisk(); no != "" {
				return problem.New(problem.Malformed, no)
			}
		}
		expanded, err := f.disk(ctx, c)
		if err != nil {
			return err
		}
		end := func() {}
		if expanded != nil {
			c, end = expanded, f.use(ctx, expanded)
		}
		open, err := f.disks.open(c, expanded != nil)
		if errors.Is(err, errPacked) {
			if making := f.expand(ctx, c.sha256, c.name); making != nil {
				err = making
			}
		}
		if err != nil {
			end()
			return unreadable(err)
		}
		disk = &Disk{open, f, ctx, end}
		if err := disk.unchanged(); err != nil {
			disk.Close()
			return err
		}
		return nil
	})
	return disk, err
}

// findRandom is findDisk, but also accepts the beginning of a SHA-256.
func (f *Function) findRandom(s *inventory.Snapshot, key string) (*object, error) {
	if row, ok := s.ByRef(key); ok {
		return f.cached(s, row, row.Names[0])
	}
	return f.findDisk(s, key)
}

// DiskNames yields the primary names of the images that OpenDisk can open, sorted
// without case. An error is yielded last. It yields an image that is not inspected yet
// according to its name.
func (f *Function) DiskNames(ctx context.Context) iter.Seq2[image.Name, error] {
	return func(yield func(image.Name, error) bool) {
		s, err := f.Inventory.Snapshot(ctx)
		if err != nil {
			yield("", err)
			return
		}
		var last image.Name
		for h := range s.Heads() {
			packed := h.Packed || !h.Inspected && content.KindOf(h.Format()).Compressed()
			if !h.Cached || h.NoDisk || packed && !h.Disk || h.Name == last {
				continue
			}
			last = h.Name
			if !yield(h.Name, nil) {
				return
			}
		}
	}
}

// Close closes the disk.
func (d *Disk) Close() error {
	d.f.disks.close(d.sharedDisk)
	d.end()
	return nil
}

// ReadAt implements [io.ReaderAt]. It returns [store.ErrChanged], and no bytes, if the
// image was replaced, edited or removed since the disk was opened.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if d.flight > 0 {
		all := d.f.disks.inFlight()
		if err := all.Acquire(d.ctx, d.flight); err != nil {
			return 0, err
		}
		defer all.Release(d.flight)
	}
	n, err := d.section.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) {
		if changed := d.unchanged(); changed != nil {
			return 0, changed
		}
	}
	return n, err
}

// Extent returns the number of bytes from off to limit at most that are all stored, or
// all known to be zero. The run may continue behind it. off must be less than limit, and
// both within the disk. The errors are those of ReadAt.
func (d *Disk) Extent(off, limit int64) (n int64, zeros bool, err error) {
	n, zeros, err = d.section.Extent(off, limit)
	if err == nil && zeros {
		err = d.unchanged()
	}
	return n, zeros, err
}

// unchanged returns [store.ErrChanged] unless what was read until now is of the version
// that was opened.
func (d *Disk) unchanged() error {
	if !d.file.Local() || d.file.Same() {
		return nil // checkedObjects compares the version of what is not on this disk
	}
	err := d.place.Unchanged(d.ctx)
	if notFound(err) {
		err = store.ErrChanged
	}
	return err
}

// disks holds the open disks. Clients that read the same one share it, and its memory.
type disks struct {
	mu     sync.Mutex
	all    map[diskKey]*sharedDisk
	held   int64 // bytes
	flight *semaphore.Weighted
}

type diskKey struct {
	local bool
	key   store.Key
	etag  string
	size  int64
}

// A sharedDisk is the disk in one version of an object.
type sharedDisk struct {
	section
	key    diskKey
	place  inventory.Place
	file   *reader.Reader
	cancel context.CancelFunc // of the reads of file
	held   int64              // bytes, while it is open
	flight int64              // bytes, for each read

	opening sync.Once
	err     error
	users   int // guarded by disks.mu
}

func (d *disks) inFlight() *semaphore.Weighted {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.flight == nil {
		d.flight = semaphore.NewWeighted(flightBytes)
	}
	return d.flight
}

// open returns the disk in c, which is an expanded disk or an image. The caller must call
// close. It returns an error that wraps errPacked if the image is compressed.
func (d *disks) open(c *object, expanded bool) (*sharedDisk, error) {
	key := diskKey{c.Local, c.Info.Key, c.Info.ETag, c.Info.Size}
	d.mu.Lock()
	o := d.all[key]
	if o == nil {
		o = &sharedDisk{key: key, place: c.Place}
		if d.all == nil {
			d.all = map[diskKey]*sharedDisk{}
		}
		d.all[key] = o
	}
	o.users++
	d.mu.Unlock()
	o.opening.Do(func() { o.err = d.fill(o, c, expanded) })
	if o.err != nil {
		d.close(o)
		return nil, o.err
	}
	return o, nil
}

// close ends one use of o.
func (d *disks) close(o *sharedDisk) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if o.users--; o.users > 0 {
		return
	}
	delete(d.all, o.key)
	d.held -= o.held
	if o.file != nil {
		o.cancel()
		_ = o.file.Close()
	}
}

var errPacked = errors.New("the image is compressed")

// fill opens the disk in c.
func (d *disks) fill(o *sharedDisk, c *object, expanded bool) error {
	var ctx context.Context
	ctx, o.cancel = context.WithCancel(context.Background()) // not that of one of the clients
	var err error
	if o.file, err = reader.Open(ctx, checkedObjects{c.Root, c.Place}, c.Info.Key, c.Info.Version); err != nil {
		o.cancel()
		return err
	}
	var held int64
	if !o.file.Local() {
		held, o.flight = chunkedBytes, chunkedBytes/4
	}
	var what content.Content // of an expanded disk: raw, whatever it is made of
	if expanded {
		what.Kind = c.known.Inner
	} else {
		if what, err = content.Detect(o.file, c.Info.Size); err != nil {
			return err
		}
	}
	switch no := what.NoDisk(); {
	case no != "":
		return problem.New(problem.Malformed, no)
	case what.Kind.Compressed():
		detail := fmt.Sprintf("%s is compressed, so it can be read from its beginning only: /raw/%s serves the disk in it", c.name, image.DiskName(c.name))
		return problem.Wrap(problem.Conflict, detail, errPacked)
	case what.Kind.Virtual():
		disk, err := guest.Open(guest.Format(what.Kind), o.file, o.file.Size())
		if err != nil {
			return err
		}
		o.section = diskSection{disk}
		held += tableBytes + disk.Buffer()
		o.flight += 3 * disk.Buffer()
	default:
		o.section = newObjectSection(o.file)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.held+held > openBytes {
		return problem.New(problem.Unavailable, "as many disks are open as there is memory for: close one and try again")
	}
	o.held = held
	d.held += held
	return nil
}

// checkedObjects reads the version of an object again after each range that is not read
// from this machine's disk: a file that another runner has may be edited in place.
type checkedObjects struct {
	store.Objects
	place inventory.Place
}

// Get implements [store.Objects].
func (c checkedObjects) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	body, info, err := c.Objects.Get(ctx, key, r, ifMatch)
	if _, direct := body.(store.Direct); err != nil || direct {
		return body, info, err
	}
	left := info.Size - r.Offset
	if r.Length >= 0 {
		left = min(left, r.Length)
	}
	return &checkedBody{body, left, func() error { return c.place.Unchanged(ctx) }}, info, nil
}

// A checkedBody holds back the last bytes of a range until unchanged has returned nil.
type checkedBody struct {
	io.ReadCloser
	left      int64
	unchanged func() error
}

func (b *checkedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.left <= 0 && n > 0 {
		if changed := b.unchanged(); changed != nil {
			return 0, changed
		}
	}
	return n, err
}

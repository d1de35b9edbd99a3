package catalog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/guest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/problem"
	"imageroot/shared/served"
	"imageroot/shared/store/reader"
	"imageroot/shared/unpack"
	"imageroot/shared/web"
)

// raw answers GET and HEAD of /raw/{key}[/{name}]: the bytes to write to a disk.
// Plain images are sent unchanged, compressed ones decompressed, and those of virtual machines
// as the guest's disk. If no bytes pass through this server, it redirects: see
// [Function.linkRaw].
func (f *Function) raw(w http.ResponseWriter, r *http.Request) error {
	if d, ok := below(r); ok {
		return f.sendBelow(w, r, d)
	}
	if key, name, ok := beside(r, checksumEnd); ok {
		return f.rawChecksum(w, r, key, name)
	}
	if key, _, ok := beside(r, bmapEnd); ok {
		return f.blockMap(w, r, key, f.findDisk, func(*object) bool { return true })
	}
	return f.serve(w, r, f.findDisk, f.sendRaw)
}

// findDisk is find, but also accepts the name of a disk; see
// [inventory.Snapshot.ByDisk].
func (f *Function) findDisk(s *inventory.Snapshot, key string) (*object, error) {
	switch names := s.ByDisk(image.Name(key)); len(names) {
	case 0:
		return f.find(s, key) // a SHA-256, or its error
	case 1:
		return f.find(s, string(names[0]))
	default:
		return nil, problem.Newf(problem.Conflict, "%s may be the disk in any of these images: %s; ask for one by the image's name or SHA-256", key, image.Join(names))
	}
}

// sendRaw answers with the disk in c. It returns [store.ErrChanged], before
// anything is written, if the object has another version now.
func (f *Function) sendRaw(w http.ResponseWriter, r *http.Request, c *object) error {
	// Refuse it now rather than when the client's disk is half written.
	if err := c.readable(r.Context()); err != nil {
		return err
	}
	c.what = served.Disk
	if f.links(c) != nil {
		return f.linkRaw(w, r, c)
	}
	disk, err := f.disk(r.Context(), c)
	if err != nil {
		return err
	}
	inner := content.Kind("") // of the expanded disk, unless that is the disk itself
	if c.known != nil {
		inner = c.known.Inner
	}
	switch {
	case disk != nil:
		defer f.use(r.Context(), disk)()
		c = disk
	case inner != "":
		return f.noDiskYet(r, c, c.known.Kind)
	}
	name := c.name
	c.name = image.DiskName(nameFor(r, c.name))
	zstd := web.Coding(r, "zstd") != ""
	if plain := disk != nil && inner == "" || disk == nil && c.known != nil && !c.known.Kind.Compressed() && !c.known.Kind.Virtual(); plain && !zstd {
		return f.sendPlain(w, r, c, disk != nil)
	}
	file, err := reader.Open(r.Context(), c.Root, c.Info.Key, c.Info.Version)
	if err != nil {
		return err
	}
	defer file.Close()
	what := content.Content{Kind: inner} // of a disk: raw, whatever it is made of
	if disk == nil {
		if what, err = content.Detect(file, c.Info.Size); err != nil {
			return err
		}
	}
	rc := http.NewResponseController(w)
	place := f.places.enter(web.ClientIP(r), f.Now, func() { _ = rc.SetWriteDeadline(time.Unix(1, 0)) })
	defer place.leave()
	w = place.writer(w, zstd)
	w.Header().Set("Vary", "Accept-Encoding")
	switch no := what.NoDisk(); {
	case no != "":
		return problem.New(problem.Malformed, no)
	case what.Kind.Compressed():
		file.Close()
		if !zstd { // which has no ranges
			if err := f.makeDisk(r, c.sha256, name); err != nil {
				return err
			}
		}
		return f.sendUnpacked(w, r, c, what.Kind, zstd, place)
	case what.Kind.Virtual():
		if err := place.grow(r.Context(), 0); err != nil {
			return unreadable(err)
		}
		disk, err := openDisk(what.Kind, file, r)
		if err != nil {
			return unreadable(err)
		}
		if err := place.grow(r.Context(), frameBuffers+diskBlocks*disk.Buffer()); err != nil {
			return unreadable(err)
		}
		if zstd {
			return f.sendEncoded(w, r, c, frames(disk))
		}
		body := newAheadReader(disk)
		defer body.Close()
		if r.Header.Get("Range") == "" {
			if _, err := body.Read(nil); err != nil && !errors.Is(err, io.EOF) {
				return unreadable(err)
			}
		}
		describe(w.Header(), c, "-raw", c.rawSHA256)
		return f.sendRanges(w, r, c, disk.Size(), body)
	}
	if zstd {
		if err := place.grow(r.Context(), frameBuffers); err != nil {
			return unreadable(err)
		}
		return f.sendEncoded(w, r, c, frames(newObjectSection(file)))
	}
	file.Close() // the answer may take hours
	return f.sendPlain(w, r, c, disk != nil)
}

// sendPlain answers with an object that is a disk: a plain image, or an expanded disk.
func (f *Function) sendPlain(w http.ResponseWriter, r *http.Request, c *object, expanded bool) error {
	body := &objectReader{ctx: r.Context(), object: c}
	defer body.Close()
	sum := c.sha256
	if expanded {
		sum = c.rawSHA256
	}
	w.Header().Set("Vary", "Accept-Encoding")
	describe(w.Header(), c, "-raw", sum)
	return f.sendRanges(w, r, c, c.Info.Size, body)
}

// diskBlocks is the maximum number of compressed blocks of a virtual image in memory at
// once: those that are read ahead, and the data that they were decompressed from.
const diskBlocks = 16

// maxWalk limits the bytes of tables that are read to check that an image is
// complete before its first byte is sent. It suffices for 128 GiB in blocks of 64
// KiB.
const maxWalk = 16 << 20

// openDisk opens a virtual image. If the tables are within maxWalk, it refuses a
// truncated image, which would leave the client's disk half written.
func openDisk(kind content.Kind, file *reader.Reader, r *http.Request) (diskSection, error) {
	disk, err := guest.Open(guest.Format(kind), file, file.Size())
	if err == nil && r.Header.Get("Range") == "" && disk.Size()/disk.Header().Block*8 <= maxWalk {
		err = disk.Check()
	}
	return diskSection{disk}, err
}

// unreadable returns err as a problem if it is about the image or about memory.
func unreadable(err error) error {
	if e, ok := errors.AsType[*guest.Error](err); ok {
		return problem.Wrap(problem.Malformed, e.Detail, err)
	}
	if e, ok := errors.AsType[*unpack.Error](err); ok {
		return problem.Wrap(problem.Malformed, e.Reason, err)
	}
	if errors.Is(err, errNoPlace) {
		return problem.New(problem.Unavailable, "this server is unpacking as many images as it has memory for: try again, or get this one from /images/... and unpack it there")
	}
	return err
}

// sendUnpacked answers with a compressed image, decompressed. It does not support
// ranges, since decompression begins at the first byte.
func (f *Function) sendUnpacked(w http.ResponseWriter, r *http.Request, c *object, kind content.Kind, zstd bool, place *place) error {
	encoding := int64(0)
	if zstd {
		encoding = frameBuffers
	}
	grow := func(window int64) error { return place.grow(r.Context(), encoding+window) }
	if err := grow(0); err != nil {
		return unreadable(err)
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	packed := &objectReader{ctx: ctx, object: c}
	defer packed.Close()
	unpacked, err := unpack.NewReader(kind, packed, unpack.Limit{
		Grow:   grow,
		Spare:  func(n int64) bool { return place.spare(encoding + n) },
		Intact: c.rawSHA256 != "",
	})
	if err != nil {
		return unreadable(err)
	}
	defer func() {
		cancel() // Close waits for a read of packed
		unpacked.Close()
	}()
	if err := grow(unpacked.Window()); err != nil {
		return unreadable(err)
	}
	var sum *digest.Hasher // nil if the digest is known
	if c.rawSHA256 == "" && !zstd {
		sum = digest.New(false)
	}
	var size int64
	stream := digest.NewReader(unpacked, sum, func(*digest.Hasher) error {
		if c.rawSHA256 != "" && size != c.rawSize {
			return fmt.Errorf("%d bytes came out, and %d did before", size, c.rawSize)
		}
		return nil
	}, func(n int) { size += int64(n) })
	defer stream.Stop(cancel)

	// Read the first bytes before the head is sent, so that an error has a status.
	first, err := stream.Peek()
	if err != nil {
		return unreadable(err)
	}
	if len(first) == 0 {
		return problem.Newf(problem.Malformed, "there is nothing in the %s data", kind)
	}
	inside := content.Head(first, math.MaxInt64)
	if inside.Kind.Virtual() && c.known == nil && f.MakeDisk != nil {
		return problem.Newf(problem.Unavailable, "%s is not inspected yet, and its disk is made after that: try again soon", c.name)
	}
	if no := inside.NoDiskInside(); no != "" {
		return problem.New(problem.Malformed, no)
	}
	if zstd {
		return f.sendEncoded(w, r, c, streamFrames(stream))
	}
	h := w.Header()
	describe(h, c, "-raw", c.rawSHA256)
	return f.sendStream(w, r, c, func() {
		if c.rawSHA256 != "" {
			h.Set("Content-Length", strconv.FormatInt(c.rawSize, 10))
		} else {
			h.Set("Trailer", "Repr-Digest")
		}
	}, stream.Blocks(), func() {
		if sum != nil {
			h.Set("Repr-Digest", digest.FormatReprDigest(sum.Sum256()))
		}
	})
}

package hash

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"imageroot/shared/bmap"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/disk"
	"imageroot/shared/guest"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
	"imageroot/shared/unpack"
)

const (
	// maxCrashes is how often a check may kill the process before it is given up.
	maxCrashes = 5
	// enoughTime is the duration of a run after which its deadline ends the check:
	// another run would get no further.
	enoughTime = 5 * time.Minute
	// maxRawBytes is the largest disk in a virtual image that is hashed. A larger one
	// is almost all zeros: only the blocks that the image has are read.
	maxRawBytes = 32 << 30
	// A check ends after maxRawBytes plus workRatio bytes for each byte of the
	// image. An image that expands further is zeros, or made to keep this program
	// busy.
	workRatio = 100
)

// maxWork returns the maximum number of expanded bytes that a check reads of an image
// of size bytes.
func maxWork(size int64) int64 { return maxRawBytes + workRatio*min(size, 1<<50) }

// beyond returns the verdict on an image that expands to more than most bytes.
func beyond(most, off int64) content.Check {
	return content.Check{Verdict: content.Unchecked, Offset: off, Reason: fmt.Sprintf("the image was not checked: it expands to more than %d GiB, which takes too long for images of its size", most>>30)}
}

const reasonTime = "the image was not checked: that takes longer than a function at AWS may run"

// beginCheck waits for the turn of a check. It is the Begin of a [job.Runner].
func (f *Function) beginCheck(ctx context.Context) (job.Work, func(), error) {
	turn, err := f.turns.begin(ctx, f.Now)
	if err != nil {
		return nil, nil, err
	}
	work := func(ctx context.Context, id string, r *job.Run) (func(*job.Job), error) {
		verdict, err := f.check(ctx, layout.SHA256(id), r, turn)
		if err == nil && verdict.Verdict == content.Good {
			err = f.fingerprint(ctx, layout.SHA256(id), r, turn)
		}
		return func(j *job.Job) {
			switch {
			case verdict.Verdict != content.Good:
				// Not an error of the run, which would be retried if ctx has
				// ended.
				j.Status, j.Error = job.Failed, verdict.Reason
			case j.BytesTotal != nil:
				j.BytesDone = *j.BytesTotal
			}
		}, err
	}
	return work, turn.end, nil
}

// checked records that a check was given up because each try failed, and queues
// other checks.
func (f *Function) checked(ctx context.Context, _ string, j job.Job) error {
	if j.Status == job.Failed && !j.FailingSince.IsZero() {
		if _, err := f.recordVerdict(ctx, j.SHA256, content.Check{Verdict: content.Unchecked, Reason: "the image was not checked: " + j.Error}); err != nil {
			return err
		}
	}
	return errors.Join(f.fillChecks(ctx), f.fillDisks(ctx))
}

// tries is the checkpoint of a check. Each run begins at the first byte: the
// checkpoint has the number of runs that began and neither ended nor stopped, and
// whether the check is known to be long.
type tries struct {
	Begun int  `json:"begun"`
	Long  bool `json:"long,omitempty"`
}

// check reads the bytes with this SHA-256 to their end and records the verdict.
func (f *Function) check(ctx context.Context, sha256 layout.SHA256, r *job.Run, turn *turn) (_ content.Check, err error) {
	started := f.Now()
	var before tries
	_ = json.Unmarshal(r.Job().Checkpoint, &before) // zero if there is none
	rec, _, err := record.Read[content.Record](ctx, f.Catalog, layout.ContentKey(sha256))
	switch {
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return content.Check{}, job.StoreFailed(err)
	case err != nil:
		return content.Check{}, errDeleted
	case !rec.Pending() && rec.Check != nil:
		return *rec.Check, nil
	case !rec.Pending():
		return content.Check{Verdict: content.Good}, nil // of the block map of a plain image
	case before.Begun >= maxCrashes:
		return f.recordVerdict(ctx, sha256, content.Check{Verdict: content.Unchecked, Reason: fmt.Sprintf("the image was not checked: given up after %d tries, each of which ended this program", maxCrashes)})
	}
	mark := func(t tries) json.RawMessage {
		data, err := json.Marshal(t)
		if err != nil {
			panic(err) // a tries always encodes
		}
		return data
	}
	if err := r.Save(ctx, 0, rec.SizeBytes, mark(tries{before.Begun + 1, before.Long})); err != nil {
		return content.Check{}, err
	}
	defer func() {
		if err != nil {
			before.Long = before.Long || errors.Is(err, errTurn)
			r.Report(0, rec.SizeBytes, mark(before))
		}
	}()
	if before.Long && !turn.lengthen() {
		return content.Check{}, &queue.Retry{After: turnTime, Err: errTurn, Free: true}
	}
	at, err := f.find(ctx, sha256)
	if errors.Is(err, store.ErrNotFound) {
		return content.Check{}, errDeleted
	}
	if err != nil {
		return content.Check{}, job.StoreFailed(err)
	}
	var p *published
	if rec.Bmap != nil {
		if p, err = f.publishedMap(ctx, rec.Bmap); err != nil {
			return content.Check{}, job.StoreFailed(err)
		}
	}
	found, err := f.examine(ctx, at, &rec, p, r, turn)
	if err == nil {
		err = at.Unchanged(ctx)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && f.Now().Sub(started) > enoughTime:
		// The next run would begin at the first byte, too.
		return f.recordVerdict(context.WithoutCancel(ctx), sha256, content.Check{Verdict: content.Unchecked, Reason: reasonTime})
	case ctx.Err() != nil:
		return content.Check{}, ctx.Err()
	case errors.Is(err, store.ErrChanged), errors.Is(err, store.ErrNotFound):
		f.Inventory.Touch(at.Place) // the other root may have the same bytes
		return content.Check{}, replaced()
	case errors.Is(err, errTurn):
		return content.Check{}, &queue.Retry{After: turnTime, Err: err, Free: true}
	case err != nil:
		return content.Check{}, job.StoreFailed(err)
	}
	if found.verdict.Verdict == content.Good {
		if err := f.storeMap(ctx, sha256, found.made, p); err != nil {
			return content.Check{}, err
		}
	}
	return f.replaceVerdict(ctx, sha256, found.verdict, found.inside, p, func(*content.Check) bool { return false })
}

// recordVerdict records the verdict of a run that did not read the disk to its end, unless
// there is one, and returns the recorded one.
func (f *Function) recordVerdict(ctx context.Context, sha256 layout.SHA256, verdict content.Check) (content.Check, error) {
	return f.replaceVerdict(ctx, sha256, verdict, nil, nil, func(*content.Check) bool { return false })
}

// replaceVerdict is recordVerdict, but replaces a verdict for which replace returns true. It
// also records what is inside the disk and what is wrong with the publisher's block map; nil:
// the run did not find out. It needs no fence: all are of content, which does not change.
func (f *Function) replaceVerdict(ctx context.Context, sha256 layout.SHA256, verdict content.Check, inside *disk.Inside, p *published, replace func(*content.Check) bool) (content.Check, error) {
	verdict.At = f.Now().UTC()
	rec, _, err := record.Change(ctx, f.Catalog, layout.ContentKey(sha256), func(rec *content.Record, exists bool) error {
		kept := !exists || !rec.Checkable() || rec.Check != nil && !replace(rec.Check)
		if kept && rec.Check != nil && rec.Check.Verdict == content.Good && verdict.Verdict != content.Good && rec.Kind == content.QCOW2 {
			rec.Fingerprint = &content.Fingerprint{GivenUp: true} // the run was to compute it
		} else if kept && !rec.Pending() {
			return record.ErrKeep
		}
		if rec.Bmap != nil {
			settle(rec.Bmap, verdict, p)
		}
		if inside == nil && rec.Check != nil && rec.Kind.Compressed() {
			inside = disk.Unread() // a second run would not get further
		}
		if rec.Stale() && inside != nil {
			rec.Inside = inside
		}
		if !kept {
			rec.Check = &verdict
		}
		return nil
	})
	switch {
	case err != nil:
		return content.Check{}, job.StoreFailed(err)
	case rec.Check != nil:
		return *rec.Check, nil
	case rec.SHA256 != "":
		return verdict, nil // plain images have none
	}
	return content.Check{}, errDeleted
}

// examined is what a check has found.
type examined struct {
	verdict content.Check
	inside  *disk.Inside // of a compressed image; nil: unknown
	made    *bmap.Map    // of a good disk with holes, else nil
}

// examine reads the bytes at a place to their end, inspects the disk in a compressed
// image on the way, and sets the problem of the publisher's block map, which may be nil. The
// error is the store's, that of ctx, or errTurn; a fault of the image is a verdict.
func (f *Function) examine(ctx context.Context, at place, rec *content.Record, p *published, r *job.Run, turn *turn) (found examined, err error) {
	var comparing *bmap.Reading
	if p != nil && p.m != nil {
		comparing = p.m.Verify()
		defer func() {
			if found.verdict.Verdict == content.Good {
				p.Problem = comparing.Wrong()
			}
		}()
	}
	kind, most := rec.Kind, maxWork(at.Info.Size)
	switch {
	case !kind.Compressed():
		found.verdict, found.made, err = f.examineDisk(ctx, at, kind, comparing, r, turn)
		return found, err
	case rec.Inner == "" && rec.VirtualSize != nil && *rec.VirtualSize > most: // by its own metadata
		found.verdict = beyond(most, 0)
		return found, nil
	}
	passing := disk.NewStream(unpackXZ)
	defer passing.Stop()
	found.verdict, err = f.examinePacked(ctx, at, rec, most, passing, comparing, r, turn)
	if err != nil {
		return found, err
	}
	if rec.Inner != "" {
		return found, nil // inside what passed is a virtual image
	}
	inside := passing.End(found.verdict.Verdict == content.Good)
	if found.verdict.NoDisk != "" {
		inside = disk.Inside{Inspector: disk.Version}
	}
	found.inside = &inside
	return found, nil
}

// examinePacked is examine for a compressed image. What it expands to goes to passing as well.
func (f *Function) examinePacked(ctx context.Context, at place, rec *content.Record, most int64, passing *disk.Stream, comparing *bmap.Reading, r *job.Run, turn *turn) (content.Check, error) {
	body, info, err := at.Root.Get(ctx, at.Info.Key, store.All, at.Info.ETag)
	if err != nil {
		return content.Check{}, err
	}
	defer body.Close()
	if info.Size != at.Info.Size {
		return content.Check{}, store.ErrChanged
	}
	in := &counted{r: body}
	u, err := unpack.NewReader(rec.Kind, in, unpack.Limit{})
	if err != nil {
		return unpackVerdict(err)
	}
	// u is not closed, since blocks may still read it. It holds only memory.
	h := newMappedHasher(nil, comparing)
	var ends ends
	for block, err := range blocks(u, blockBytes) {
		ends.add(block)
		_, _ = h.Write(block) // neither fails
		_, _ = passing.Write(block)
		r.Report(in.n.Load(), at.Info.Size, nil)
		switch {
		case ctx.Err() != nil:
			return content.Check{}, ctx.Err()
		case errors.Is(err, io.EOF):
			return unpacked(rec.Kind, rec.Inner, h.Hasher, ends, u.Trailing()), nil
		case err != nil:
			return unpackVerdict(err)
		case h.Offset() > most:
			return beyond(most, in.n.Load()), nil
		case !turn.keep():
			return content.Check{}, errTurn
		}
	}
	return content.Check{}, io.ErrUnexpectedEOF // blocks ends with an error
}

// ends has the first and the last bytes of a stream.
type ends struct{ head, foot []byte }

// add adds the next bytes.
func (e *ends) add(block []byte) {
	if len(e.head) < content.HeadBytes {
		e.head = append(e.head, block[:min(len(block), content.HeadBytes-len(e.head))]...)
	}
	e.foot = append(e.foot, block[max(0, len(block)-content.FootBytes):]...)
	e.foot = e.foot[max(0, len(e.foot)-content.FootBytes):]
}

// unpacked returns the verdict on a stream that is whole. If it is a virtual image of the
// kind inner, the verdict is of the stream alone.
func unpacked(kind, inner content.Kind, h *digest.Hasher, ends ends, trailing int64) content.Check {
	size := h.Offset()
	verdict := content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: h.Sum256()}
	if trailing > 0 {
		verdict.Warnings = append(verdict.Warnings, fmt.Sprintf("%d bytes after the end of the %s data are ignored, as %s itself does; some publishers put a signature there", trailing, kind, kind))
	}
	if inner != "" {
		verdict.RawSizeBytes, verdict.RawSHA256 = nil, ""
		return verdict
	}
	inside := content.Head(ends.head, size)
	inside.Foot(ends.foot, size)
	for _, w := range inside.Warnings {
		verdict.Warnings = append(verdict.Warnings, "decompressed: "+w)
	}
	verdict.NoDisk = inside.NoDiskInside()
	if !inside.Kind.Raw() && inside.Kind != content.Text && inside.Kind != content.HTML {
		verdict.Warnings = append(verdict.Warnings, "decompressed, it is "+inside.What+": a disk it is written to like that does not boot")
	}
	return verdict
}

func unpackVerdict(err error) (content.Check, error) {
	wrong, ok := errors.AsType[*unpack.Error](err)
	if !ok {
		return content.Check{}, err
	}
	verdict := map[unpack.Problem]content.Verdict{unpack.Truncated: content.Truncated, unpack.Damaged: content.Damaged, unpack.Refused: content.Refused}[wrong.Problem]
	return content.Check{Verdict: verdict, Reason: wrong.Reason, Offset: wrong.Offset}, nil
}

// A counted reader counts the bytes read. The count is safe for concurrent use.
type counted struct {
	r io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

// examineDisk reads the disk in a plain or a virtual image to its end, which expands every
// compressed block, and compares it with the publisher's block map if comparing is not nil.
// The block map that it returns is nil unless a good disk has holes.
func (f *Function) examineDisk(ctx context.Context, at place, kind content.Kind, comparing *bmap.Reading, r *job.Run, turn *turn) (content.Check, *bmap.Map, error) {
	file, err := reader.Open(ctx, at.Root, at.Info.Key, at.Info.Version)
	if err != nil {
		return content.Check{}, nil, err
	}
	defer file.Close()
	var disk holedDisk = plainDisk{file}
	virtual := (*guest.Image)(nil)
	if kind.Virtual() {
		if virtual, err = guest.Open(guest.Format(kind), file, at.Info.Size); err != nil {
			verdict, err := diskVerdict(err, 0)
			return verdict, nil, err
		}
		disk = virtual
	}
	m, err := mapHoles(ctx, disk)
	if err != nil {
		return content.Check{}, nil, err
	}
	var verdict content.Check
	if virtual != nil && virtual.Size() > maxRawBytes {
		verdict, err = f.readBlocks(ctx, virtual, m, at.Info.Size, r, turn)
	} else {
		verdict, err = f.readDisk(ctx, disk, newMappedHasher(m, comparing), r, turn)
	}
	if verdict.Verdict != content.Good {
		m = nil
	}
	return verdict, m, err
}

// readDisk reads a disk to its end into h.
func (f *Function) readDisk(ctx context.Context, disk holedDisk, h mappedHasher, r *job.Run, turn *turn) (content.Check, error) {
	size := disk.Size()
	// After an early return, a read in flight fails, at the latest when the file is
	// closed.
	for block, err := range blocks(io.NewSectionReader(disk, 0, size), blockBytes) {
		_, _ = h.Write(block) // a hash does not fail
		r.Report(h.Offset(), size, nil)
		switch {
		case ctx.Err() != nil:
			return content.Check{}, ctx.Err()
		case errors.Is(err, io.EOF):
			return content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: h.Sum256()}, nil
		case err != nil:
			return diskVerdict(err, h.Offset())
		case !turn.keep():
			return content.Check{}, errTurn
		}
	}
	return content.Check{}, io.ErrUnexpectedEOF // blocks ends with an error
}

// readBlocks is readDisk for a disk above maxRawBytes, of which it reads what the image of
// size bytes stores. It sets the digests of m, which may be nil.
func (f *Function) readBlocks(ctx context.Context, disk *guest.Image, m *bmap.Map, image int64, r *job.Run, turn *turn) (content.Check, error) {
	size, most, buf := disk.Size(), maxWork(image), make([]byte, blockBytes)
	ranges := cmp.Or(m, bmap.New(size)).Sums()
	var off, read int64
	for off < size {
		n, err := disk.Zeros(off)
		if err == nil && n == 0 {
			var got int
			got, err = disk.ReadAt(buf[:min(blockBytes, size-off)], off)
			n = int64(got)
			_, _ = ranges.Write(buf[:got])
			read += n
		} else {
			ranges.Skip(n)
		}
		switch {
		case read > most:
			return beyond(most, off), nil
		case ctx.Err() != nil:
			return content.Check{}, ctx.Err()
		case err != nil:
			return diskVerdict(err, off)
		}
		if !turn.keep() {
			return content.Check{}, errTurn
		}
		off += n
		r.Report(off, size, nil)
	}
	return content.Check{Verdict: content.Good, RawSizeBytes: &size}, nil
}

func diskVerdict(err error, off int64) (content.Check, error) {
	wrong, ok := errors.AsType[*guest.Error](err)
	if !ok {
		return content.Check{}, err
	}
	verdict := content.Check{Verdict: content.Damaged, Reason: wrong.Detail, Offset: off}
	switch {
	case errors.Is(wrong, guest.ErrTruncated):
		verdict.Verdict = content.Truncated
	case errors.Is(wrong, guest.ErrUnsupported):
		verdict.Verdict = content.Refused
	}
	return verdict, nil
}

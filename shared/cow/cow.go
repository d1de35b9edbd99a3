// Package cow gives a disk that is read-only a private layer for writes. The layer is a
// sparse file that is removed when it is made, so that nothing remains of it, also if the
// process is killed.
package cow

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// A Base is the disk below a layer. Its methods are safe for concurrent use, but for
// Close.
type Base interface {
	io.ReaderAt
	Size() int64
	// Extent returns the number of bytes from off to limit at most that are all stored,
	// or all a hole, which is known to be zero.
	Extent(off, limit int64) (n int64, hole bool, err error)
	Close() error
}

// A Budget limits what all its layers take on the disk. It is safe for concurrent use.
type Budget struct {
	dir  string
	max  int64
	used atomic.Int64
}

// NewBudget returns a budget of max bytes for layers in the file system of a directory.
func NewBudget(dir string, max int64) *Budget { return &Budget{dir: dir, max: max} }

// Used returns the bytes that all layers take.
func (b *Budget) Used() int64 { return b.used.Load() }

// reserve takes n bytes of the budget.
func (b *Budget) reserve(n int64) error {
	if b.used.Add(n) > b.max {
		b.used.Add(-n)
		return fmt.Errorf("the writes of all layers have %d bytes together, the most there may be: %w", b.max, syscall.ENOSPC)
	}
	return nil
}

// block is the unit in which the layer holds bytes of its own: what file systems use.
const block = 4096

// A Disk is a base with a layer. It is safe for concurrent use, but for Close. A write
// for which there is no room fails with an error that wraps [syscall.ENOSPC]. Then it may
// have taken effect in part.
type Disk struct {
	base   Base
	budget *Budget
	// file has the blocks of the layer at their offsets in the disk, and behind the end
	// of the disk a bitmap that says which ones those are. The others are the base's.
	file   *os.File
	bitmap int64 // its offset
	punch  func(fd int, mode uint32, off, length int64) error

	mu   sync.RWMutex // the file
	held int64        // bytes of the budget
}

// Open returns base with an empty layer. Closing it closes base, which the caller must do
// if Open fails.
func (b *Budget) Open(base Base) (*Disk, error) {
	file, err := os.OpenFile(b.dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		if file, err = os.CreateTemp(b.dir, ".imageroot-layer-*"); err == nil {
			err = os.Remove(file.Name())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("make a layer: %w", err)
	}
	d := &Disk{base: base, budget: b, file: file, punch: unix.Fallocate}
	blocks := (base.Size() + block - 1) / block
	d.bitmap = blocks * block
	if err := file.Truncate(d.bitmap + blocks/8 + 1); err != nil {
		file.Close()
		return nil, fmt.Errorf("make a layer: %w", err)
	}
	return d, nil
}

// Size returns the size of the disk in bytes.
func (d *Disk) Size() int64 { return d.base.Size() }

// Close drops the layer and closes the base.
func (d *Disk) Close() error {
	d.budget.used.Add(-d.held)
	return errors.Join(d.file.Close(), d.base.Close())
}

// maxRun limits the bytes of the bitmap that one call of run reads.
const maxRun = 4096

// run returns the number of bytes from off to limit at most that are all in the layer,
// or all in the base. The run may continue behind it. The caller holds mu.
func (d *Disk) run(off, limit int64) (n int64, own bool, err error) {
	first := off / block
	last := min((limit-1)/block, first+8*(maxRun-1))
	bits := make([]byte, last/8-first/8+1)
	if _, err := d.file.ReadAt(bits, d.bitmap+first/8); err != nil {
		return 0, false, err
	}
	has := func(b int64) bool { return bits[b/8-first/8]>>(b%8)&1 == 1 }
	own = has(first)
	next := first + 1
	for next <= last && has(next) == own {
		next++
	}
	return min(next*block, limit) - off, own, nil
}

// ReadAt implements [io.ReaderAt].
func (d *Disk) ReadAt(p []byte, off int64) (n int, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	end := min(off+int64(len(p)), d.Size())
	for at := off; at < end; {
		length, own, err := d.run(at, end)
		if err != nil {
			return n, err
		}
		from := io.ReaderAt(d.base)
		if own {
			from = d.file
		}
		m, err := from.ReadAt(p[n:n+int(length)], at)
		n += m
		if int64(m) < length {
			return n, err
		}
		at += length
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent returns the number of bytes from off to limit at most that are all stored, or
// all a hole.
func (d *Disk) Extent(off, limit int64) (n int64, hole bool, err error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	n, own, err := d.run(off, limit)
	if err != nil || own {
		return n, false, err
	}
	return d.base.Extent(off, off+n)
}

// WriteAt implements [io.WriterAt]. The bytes must be within the disk.
func (d *Disk) WriteAt(p []byte, off int64) (n int, err error) {
	err = d.change(int64(len(p)), func() error { n, err = d.write(p, off); return err })
	return n, err
}

// Zero makes n bytes from off on zero, which must be within the disk, and frees the room
// of whole blocks in the layer.
func (d *Disk) Zero(off, n int64) error {
	end := off + n
	from, to := (off+block-1)/block, end/block // whole blocks
	if end == d.Size() {
		to = d.bitmap / block
	}
	return d.change(2*block+n/block/8, func() error {
		if from >= to {
			_, err := d.write(make([]byte, n), off)
			return err
		}
		if _, err := d.write(make([]byte, from*block-off), off); err != nil {
			return err
		}
		if err := d.clear(from*block, to*block); err != nil {
			return err
		}
		if err := d.own(from, to); err != nil {
			return err
		}
		_, err := d.write(make([]byte, max(0, end-to*block)), to*block)
		return err
	})
}

// clear makes bytes of the layer zero. A file system without holes keeps their room.
func (d *Disk) clear(from, to int64) error {
	err := d.punch(int(d.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, from, to-from)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	var zeros [16 * block]byte
	for from < to {
		n, own, err := d.run(from, min(to, from+int64(len(zeros))))
		if err != nil {
			return err
		}
		if own { // what was never written is zero
			if _, err := d.file.WriteAt(zeros[:n], from); err != nil {
				return err
			}
		}
		from += n
	}
	return nil
}

// change calls do, which writes at most n bytes and the blocks around them.
func (d *Disk) change(n int64, do func() error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	n += 4 * block
	if err := d.budget.reserve(n); err != nil {
		return err
	}
	defer d.budget.used.Add(-n)
	err := do()
	var st unix.Stat_t
	if failed := unix.Fstat(int(d.file.Fd()), &st); failed != nil {
		return errors.Join(err, failed)
	}
	held := st.Blocks * 512
	d.budget.used.Add(held - d.held)
	d.held = held
	return err
}

// write writes p at off into the layer.
func (d *Disk) write(p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	end := off + int64(len(p))
	first, last := off/block, (end-1)/block
	for _, b := range []int64{first, last} {
		if whole := off <= b*block && (end >= (b+1)*block || end == d.Size()); whole {
			continue
		}
		if err := d.copyUp(b); err != nil {
			return 0, err
		}
	}
	n, err := d.file.WriteAt(p, off)
	if err != nil {
		return n, err
	}
	return n, d.own(first, last+1)
}

// copyUp copies a block of the base into the layer unless the layer has it.
func (d *Disk) copyUp(b int64) error {
	from, to := b*block, min((b+1)*block, d.Size())
	_, own, err := d.run(from, to)
	if err != nil || own {
		return err
	}
	p := make([]byte, to-from)
	if n, err := d.base.ReadAt(p, from); n < len(p) {
		return err
	}
	if _, err := d.file.WriteAt(p, from); err != nil {
		return err
	}
	return d.own(b, b+1)
}

// own records that the layer has the blocks from one to before another.
func (d *Disk) own(from, to int64) error {
	for from < to {
		end := min(to, from/8*8+8*maxRun)
		bits := make([]byte, (end-1)/8-from/8+1)
		at := d.bitmap + from/8
		for i := range bits {
			bits[i] = 0xff
		}
		// The bits beside those of the range stay.
		for _, edge := range []struct {
			i    int
			mask byte
		}{{0, 1<<(from%8) - 1}, {len(bits) - 1, ^byte(0xff >> (7 - (end-1)%8))}} {
			var old [1]byte
			if _, err := d.file.ReadAt(old[:], at+int64(edge.i)); err != nil {
				return err
			}
			bits[edge.i] = bits[edge.i]&^edge.mask | old[0]&edge.mask
		}
		if _, err := d.file.WriteAt(bits, at); err != nil {
			return err
		}
		from = end
	}
	return nil
}

package guest

import (
	"encoding/binary"
	"slices"
	"sync"
)

type kind int

const (
	zero       kind = iota // unallocated, or marked as zero
	data                   // uncompressed
	compressed             // one block or part of one
)

// An extent is a run of bytes of the disk that are stored contiguously.
type extent struct {
	kind   kind
	length int64 // bytes of the disk
	host   int64 // offset in the file, of the data or the compressed block
	method method
	bytes  int64 // compressed: the maximum size of the block in the file; 0: see method
	within int64 // compressed: offset of the extent in the block
	need   int64 // grain: the least number of bytes that it expands to
	hole   bool  // zero: unallocated, not marked as zero; of the result of lookup only
}

// A method is how a compressed block is stored.
type method int

const (
	deflate method = iota // without a checksum
	zstandard
	grain // of a VMDK: behind a marker with its size, with a checksum
)

const sector = 512

// extent returns the run that begins at off and ends at limit or before, which must be
// within the disk. It reads only the table entries up to the end of the run.
func (i *Image) extent(off, limit int64) (extent, error) {
	run, err := i.header.mapping.lookup(&i.tables, off)
	if err != nil {
		return extent{}, err
	}
	for off+run.length < limit && run.kind != compressed {
		next, err := i.header.mapping.lookup(&i.tables, off+run.length)
		if err != nil || next.kind != run.kind || next.kind == data && next.host != run.host+run.length {
			break // a call for that offset returns the error
		}
		run.length += next.length
	}
	run.length = min(run.length, limit-off)
	if run.kind != zero && run.host >= i.file.size {
		return extent{}, i.file.truncated("byte %d of the disk is at byte %d of a file of %d", off, run.host, i.file.size)
	}
	if run.kind == data {
		run.length = min(run.length, i.file.size-run.host) // up to the end of the file
	}
	return run, nil
}

const (
	minPage  = 4 << 10
	maxPage  = 64 << 10
	maxPages = 16
)

// tables is a cache of the parts of the file that have tables. It is safe for concurrent
// use.
type tables struct {
	file  *file
	bytes int64 // of a page

	mu  sync.Mutex
	all []page // least recently used first
}

type page struct {
	number int64
	data   []byte
}

// entry returns the table entry of n bytes at an offset in the file, a multiple of n. The
// caller must not change it.
func (t *tables) entry(at, n int64) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	data, err := t.page(at / t.bytes)
	if err != nil {
		return nil, err
	}
	within := at % t.bytes
	if within+n > int64(len(data)) {
		return nil, t.file.truncated("a table is at byte %d of a file of %d", at, t.file.size)
	}
	return data[within : within+n], nil
}

// u64 returns the big-endian entry at an offset in the file, a multiple of 8.
func (t *tables) u64(at int64) (uint64, error) {
	b, err := t.entry(at, 8)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(b), nil
}

// page returns the page with this number. A new page may replace the least recently
// used one.
func (t *tables) page(number int64) ([]byte, error) {
	last := len(t.all) - 1
	if last >= 0 && t.all[last].number == number {
		return t.all[last].data, nil
	}
	used := page{number: number}
	if n := slices.IndexFunc(t.all, func(q page) bool { return q.number == number }); n >= 0 {
		used = t.all[n]
		t.all = slices.Delete(t.all, n, n+1)
	} else {
		from := number * t.bytes
		used.data = make([]byte, max(0, min(t.bytes, t.file.size-from)))
		if err := t.file.full(used.data, from); err != nil {
			return nil, err
		}
		if len(t.all) == maxPages {
			t.all = slices.Delete(t.all, 0, 1)
		}
	}
	t.all = append(t.all, used)
	return used.data, nil
}

// A flat mapping is one table with an entry for each block.
type flat struct {
	file  *file
	table int64 // offset in the file, a multiple of width
	width int64 // bytes of an entry, 4 or 8
	size  int64 // bytes of the disk
	block int64
	// slot returns the number of the entry of a block; nil: that of the block.
	slot func(block int64) int64
	// host returns the offset in the file that an entry has, 0 if the block is zero, and a
	// negative one if there can be no such entry. hole: it is unallocated.
	host func(entry []byte) (at int64, hole bool)
}

func (m *flat) slotOf(block int64) int64 {
	if m.slot != nil {
		return m.slot(block)
	}
	return block
}

// check implements mapping.
func (m *flat) check(*tables) error {
	if m.size <= 0 {
		return nil
	}
	last := m.slotOf((m.size - 1) / m.block)
	if m.table > m.file.size || last >= (m.file.size-m.table)/m.width {
		return m.file.truncated("its table of %d blocks is not within the file of %d bytes", last+1, m.file.size)
	}
	return nil
}

// lookup implements mapping.
func (m *flat) lookup(t *tables, off int64) (extent, error) {
	entry, err := t.entry(m.table+m.slotOf(off/m.block)*m.width, m.width)
	if err != nil {
		return extent{}, err
	}
	e := extent{length: m.block - off%m.block}
	host, hole := m.host(entry)
	e.hole = hole
	switch {
	case host < 0:
		return extent{}, m.file.corrupt("the entry %x of block %d is none that is known", entry, off/m.block)
	case host > 0:
		e.kind, e.host = data, host+off%m.block
	}
	return e, nil
}

package qcow2

import (
	"encoding/binary"
	"io"
	"slices"
	"sync"
)

type kind int

const (
	zero       kind = iota // unallocated, or marked as zero
	data                   // uncompressed
	compressed             // one cluster or part of one
)

// An extent is a run of bytes of the disk that are stored contiguously.
type extent struct {
	kind   kind
	length int64 // bytes of the disk
	host   int64 // offset in the file, of the data or the compressed cluster
	bytes  int64 // compressed: the maximum size of the cluster in the file
	within int64 // compressed: offset of the extent in the cluster
	hole   bool  // zero: unallocated, not marked as zero; of the result of lookup only
}

// Parts of table entries (section "Cluster mapping").
const (
	offsetMask     = 0x00ff_ffff_ffff_fe00 // bits 9 to 55, of L1 entries and standard clusters
	flagCompressed = 1 << 62
	flagZero       = 1 << 0
	sector         = 512
)

// extent returns the run that begins at off and ends at limit or before, which must be
// within the disk. It reads only the table entries up to the end of the run.
func (i *Image) extent(off, limit int64) (extent, error) {
	run, err := i.lookup(off)
	if err != nil {
		return extent{}, err
	}
	for off+run.length < limit && run.kind != compressed {
		next, err := i.lookup(off + run.length)
		if err != nil || next.kind != run.kind || next.kind == data && next.host != run.host+run.length {
			break // a call for that offset returns the error
		}
		run.length += next.length
	}
	run.length = min(run.length, limit-off)
	if run.kind != zero && run.host >= i.size {
		return extent{}, truncated("byte %d of the disk is at byte %d of a file of %d", off, run.host, i.size)
	}
	if run.kind == data {
		run.length = min(run.length, i.size-run.host) // up to the end of the file
	}
	return run, nil
}

// lookup returns the extent from off to the end of the cluster, or, without an L2
// table, to the end of what the L1 entry maps.
func (i *Image) lookup(off int64) (extent, error) {
	size := i.header.ClusterSize
	entries := size / 8 // of an L2 table, which is one cluster
	cluster := off / size
	l1, err := i.pages.entry(i.header.l1Offset + cluster/entries*8)
	if err != nil {
		return extent{}, err
	}
	l2 := int64(l1 & offsetMask)
	if l2 == 0 {
		span := size * entries
		return extent{kind: zero, hole: true, length: span - off%span}, nil
	}
	entry, err := i.pages.entry(l2 + cluster%entries*8)
	if err != nil {
		return extent{}, err
	}
	e := extent{length: size - off%size}
	if entry&flagCompressed != 0 {
		// "Compressed Clusters Descriptor".
		shift := 62 - (i.header.clusterBits - 8)
		at := entry & (1<<shift - 1)
		sectors := entry>>shift&(1<<(i.header.clusterBits-8)-1) + 1
		if at > offsetMask|sector-1 {
			return extent{}, corrupt("byte %d of the disk would be at byte %d of the file", off, at)
		}
		e.kind, e.host, e.within = compressed, int64(at), off%size
		e.bytes = int64(sectors*sector - at%sector)
		return e, nil
	}
	// "Standard Cluster Descriptor".
	at := int64(entry & offsetMask)
	switch {
	case at%size != 0:
		return extent{}, corrupt("byte %d of the disk would be in a cluster at byte %d of the file, where none begins", off, at)
	case entry&flagZero != 0 && i.header.Version < 3:
		return extent{}, corrupt("byte %d of the disk is in a cluster marked as zero, which version 2 does not have", off)
	case entry&flagZero != 0, at == 0:
		e.hole = entry&flagZero == 0
		return e, nil
	}
	e.kind, e.host = data, at+off%size
	return e, nil
}

// checkL1 checks that every L2 table is aligned and within the file, and that there are
// no more tables than clusters in the file. This bounds the time to read all entries.
func (i *Image) checkL1() error {
	h := &i.header
	if h.l1Offset+h.l1Entries*8 > i.size {
		return truncated("its L1 table ends at byte %d of a file of %d", h.l1Offset+h.l1Entries*8, i.size)
	}
	room := i.size / h.ClusterSize
	for n := range h.l1Entries {
		entry, err := i.pages.entry(h.l1Offset + n*8)
		if err != nil {
			return err
		}
		at := int64(entry & offsetMask)
		if at == 0 {
			continue
		}
		room--
		switch {
		case at%h.ClusterSize != 0:
			return corrupt("L2 table %d would be at byte %d of the file, where no cluster begins", n, at)
		case at+h.ClusterSize > i.size:
			return truncated("L2 table %d is at byte %d of a file of %d", n, at, i.size)
		case room < 0:
			return corrupt("it has more L2 tables than the file has clusters")
		}
	}
	return nil
}

const (
	minPage  = 4 << 10
	maxPage  = 64 << 10
	maxPages = 16
)

// pages is a cache of the parts of the file that have tables. It is safe for concurrent
// use.
type pages struct {
	file  io.ReaderAt
	size  int64 // of the file
	bytes int64 // of a page

	mu  sync.Mutex
	all []page // least recently used first
}

type page struct {
	number int64
	data   []byte
}

// entry returns the table entry at an offset in the file, a multiple of 8.
func (p *pages) entry(at int64) (uint64, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	data, err := p.page(at / p.bytes)
	if err != nil {
		return 0, err
	}
	within := at % p.bytes
	if within+8 > int64(len(data)) {
		return 0, truncated("a table is at byte %d of a file of %d", at, p.size)
	}
	return binary.BigEndian.Uint64(data[within:]), nil
}

// page returns the page with this number. A new page may replace the least recently
// used one.
func (p *pages) page(number int64) ([]byte, error) {
	last := len(p.all) - 1
	if last >= 0 && p.all[last].number == number {
		return p.all[last].data, nil
	}
	used := page{number: number}
	if n := slices.IndexFunc(p.all, func(q page) bool { return q.number == number }); n >= 0 {
		used = p.all[n]
		p.all = slices.Delete(p.all, n, n+1)
	} else {
		from := number * p.bytes
		used.data = make([]byte, max(0, min(p.bytes, p.size-from)))
		if err := readFull(p.file, used.data, from); err != nil {
			return nil, err
		}
		if len(p.all) == maxPages {
			p.all = slices.Delete(p.all, 0, 1)
		}
	}
	p.all = append(p.all, used)
	return used.data, nil
}

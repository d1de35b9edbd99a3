package disk

import (
	"bytes"
	"iter"
	"math"
	"math/bits"
	"slices"
)

// A Stream inspects a disk that passes once, in order: what is written to it. It keeps, within
// limits, the beginning of the disk and of its partitions, the tables that say where files
// are, and what looks like directories or the beginnings of files that an inspection reads.
// If it needs more, that is unknown. It is not safe for concurrent use.
type Stream struct {
	block []byte // being written
	off   int64  // of block
	ended bool   // nothing follows

	pages  map[int64]page // by number
	room   int            // bytes that may be kept
	wanted []extent

	next   func() (struct{}, bool) // runs the inspection until it needs what follows
	stop   func()
	wait   func(struct{}) bool // lets Write continue; false: nothing follows
	inside Inside
}

const (
	pageBytes = 4 << 10
	granule   = pageBytes / 64
	// keptBytes limits what a Stream keeps.
	keptBytes = 24 << 20
	// headBytes of the disk, and partitionBytes of each partition, are kept.
	headBytes, partitionBytes = 2 << 20, 128 << 10
	// maxWanted limits the extents that are kept.
	maxWanted = 1 << 10
)

// A page is the first size bytes of a page of the disk: of its 64 granules, those that are
// not zero.
type page struct {
	size int
	has  uint64
	data []byte
}

type extent struct{ start, end int64 }

// NewStream returns a Stream whose inspection reads squashfs with xz.
func NewStream(xz Unpacker) *Stream {
	s := &Stream{pages: map[int64]page{}, room: keptBytes}
	s.keep(0, headBytes)
	s.next, s.stop = iter.Pull(func(yield func(struct{}) bool) {
		s.wait = yield
		s.inside = inspect(&source{stream: s, size: math.MaxInt64 / 2}, xz)
	})
	s.resume()
	return s
}

// Write takes the next bytes of the disk. It returns len(p) and nil.
func (s *Stream) Write(p []byte) (int, error) {
	s.block = p
	if s.next != nil {
		s.resume()
	}
	if s.next != nil {
		s.keepPages()
	}
	s.off += int64(len(p))
	s.block = nil
	return len(p), nil
}

// End returns what was found in the disk, of which nothing follows. whole is false if it has
// more, which could not be read.
func (s *Stream) End(whole bool) Inside {
	s.ended = true
	for s.next != nil {
		s.resume()
	}
	if !whole {
		unread := Unread()
		s.inside.Unknown, s.inside.Partial = unread.Unknown, true
		return s.inside
	}
	s.inside.measure(s.off)
	return s.inside
}

// Stop ends the inspection. It may be called after End.
func (s *Stream) Stop() {
	s.ended = true
	s.stop()
	s.next, s.pages = nil, nil
}

func (s *Stream) resume() {
	if _, more := s.next(); !more {
		s.next, s.pages = nil, nil
	}
}

// keep asks for the bytes of an extent, which has not passed yet.
func (s *Stream) keep(start, size int64) {
	n := len(s.wanted)
	switch {
	case n > 0 && s.wanted[n-1].end == start:
		s.wanted[n-1].end += size
	case n < maxWanted && start+size > s.off:
		s.wanted = append(s.wanted, extent{start, start + size})
	}
}

// read fills b with the bytes at an offset. It waits for what has not passed yet.
func (s *Stream) read(b []byte, off int64) error {
	for n := 0; len(b) > 0; b, off = b[n:], off+int64(n) {
		switch passed := s.off + int64(len(s.block)); {
		case off >= passed:
			if s.ended || !s.wait(struct{}{}) {
				return errEnd
			}
			n = 0
		case off >= s.off:
			n = copy(b, s.block[off-s.off:])
		default:
			at := int(off % pageBytes)
			n = int(min(int64(len(b)), pageBytes-int64(at), s.off-off))
			p := s.pages[off/pageBytes]
			if at+n > p.size {
				return errPassed
			}
			p.copy(b[:n], at)
		}
	}
	return nil
}

// keepPages keeps the pages of the block that are wanted.
func (s *Stream) keepPages() {
	s.wanted = slices.DeleteFunc(s.wanted, func(e extent) bool { return e.end <= s.off })
	for off := s.off; off < s.off+int64(len(s.block)); off = (off/pageBytes + 1) * pageBytes {
		p := s.block[off-s.off:]
		p = p[:min(len(p), pageBytes-int(off%pageBytes))]
		n := 0
		switch {
		case s.wants(off, int64(len(p))):
			n = len(p)
		case len(p) == pageBytes:
			n = interesting(p)
		}
		if n > 0 {
			s.add(off, p[:n])
		}
	}
}

func (s *Stream) wants(off, n int64) bool {
	for _, e := range s.wanted {
		if off < e.end && off+n > e.start {
			return true
		}
	}
	return false
}

// add keeps the bytes at an offset of a page, unless there is no room for them. What two
// writes have of one page is joined.
func (s *Stream) add(off int64, b []byte) {
	number, at := off/pageBytes, int(off%pageBytes)
	old := s.pages[number]
	if old.size != at {
		return
	}
	whole := make([]byte, pageBytes)
	old.copy(whole[:at], 0)
	copy(whole[at:], b)
	p := page{size: at + len(b)}
	for i := range 64 {
		if g := whole[i*granule : (i+1)*granule]; !zeros(g) {
			p.has |= 1 << i
		}
	}
	const overhead = 80 // of an entry of the map
	p.data = make([]byte, 0, bits.OnesCount64(p.has)*granule)
	for i := range 64 {
		if p.has&(1<<i) != 0 {
			p.data = append(p.data, whole[i*granule:(i+1)*granule]...)
		}
	}
	cost := len(p.data) + overhead - len(old.data)
	if cost > s.room {
		return
	}
	s.room -= cost
	s.pages[number] = p
}

// copy fills b with the bytes at an offset of the page.
func (p page) copy(b []byte, at int) {
	clear(b)
	data := p.data
	for i := 0; i < 64 && len(data) > 0; i++ {
		if p.has&(1<<i) == 0 {
			continue
		}
		g := data[:granule]
		data = data[granule:]
		if to := i*granule - at; to >= 0 && to < len(b) {
			copy(b[to:], g)
		} else if to < 0 && -to < granule {
			copy(b, g[-to:])
		}
	}
}

func zeros(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// beginnings are those of files that an inspection reads, with the bytes that it needs of
// them. They only say what is worth keeping: what a file is, the file system says.
var beginnings = []struct {
	magic string
	keep  int
}{
	{"\x7fELF", 64},
	{"MZ", 1024},
	{"Raspberry Pi reference", pageBytes},
	{"build_name:", pageBytes},
	{"# Created by", pageBytes},
	{"PRETTY_NAME=", pageBytes},
	{"NAME=", pageBytes},
	{"ID=", pageBytes},
	{".          \x10", pageBytes}, // a directory of FAT
}

// interesting returns how many bytes of a page are worth keeping.
func interesting(p []byte) int {
	for _, b := range beginnings {
		if string(p[:len(b.magic)]) == b.magic {
			return b.keep
		}
	}
	for block := p; len(block) > 0; block = block[1024:] { // a block may be smaller than a page
		if extDirectory(block) {
			return pageBytes
		}
	}
	return 0
}

// extDirectory reports whether the first entries of a block may be those of a directory of
// ext4.
func extDirectory(b []byte) bool {
	for range 3 {
		if len(b) == 0 {
			break
		}
		if len(b) < 8 {
			return false
		}
		n, name, kind := int(le.Uint16(b[4:])), int(b[6]), b[7]
		if n < 8 || n > len(b) || n%4 != 0 || n < 8+name || kind > 7 && kind != 0xde || name == 0 && le.Uint32(b) != 0 || bytes.ContainsAny(b[8:8+name], "\x00/") {
			return false
		}
		b = b[n:]
	}
	return true
}

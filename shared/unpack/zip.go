package unpack

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/flate"

	"imageroot/shared/content"
	"imageroot/shared/image"
)

// A zipStream is the first image in a ZIP archive, whose other files it skips (PKWARE's
// APPNOTE.TXT 6.3.10, sections 4.3.7 and 4.3.9). It is read in order, by the local headers.
// Other programs read the directory at the end, so that must name the same file: package
// content refuses an archive of two images.
type zipStream struct {
	in    *bufio.Reader
	at    func() int64 // the offset of the next byte of in
	file  zipFile
	data  io.Reader // of the file
	head  int64     // the offset of the file's header
	begin int64     // and of its data
	crc   uint32    // of what was read
	n     uint64    // bytes that were read
}

// A zipFile is a local header.
type zipFile struct {
	name         string
	method       uint16
	later        bool // the checksum and the sizes follow the data
	wide         bool // and have 8 bytes
	crc          uint32
	packed, size uint64
}

const (
	zipLocal      = "PK\x03\x04"
	zipDescriptor = "PK\x07\x08"
	zipStored     = 0
	zipDeflated   = 8
	zipEncrypted  = 1 << 0
	zipLater      = 1 << 3
	zip64         = 1 // the extra field with sizes of 8 bytes

	// maxSkipped limits the bytes of the files in front of the image.
	maxSkipped = 64 << 20
)

func newZip(in *bufio.Reader, m memory) (stream, int64, error) {
	z := &zipStream{in: in, at: m.at}
	for skipped := int64(0); ; {
		if err := z.next(); err != nil {
			return nil, 0, err
		}
		if image.Packed(z.file.name) {
			return z, -1, nil
		}
		n, err := io.CopyN(io.Discard, z, maxSkipped-skipped+1)
		if skipped += n; skipped > maxSkipped {
			return nil, 0, refusedZip("more than %d MiB of other files precede the image", maxSkipped>>20)
		}
		if !errors.Is(err, io.EOF) {
			return nil, 0, err
		}
	}
}

func refusedZip(format string, args ...any) error {
	return &Error{Refused, 0, "the ZIP archive is not read: " + fmt.Sprintf(format, args...) + "; unpack it and upload the image"}
}

// next reads the header of the next file.
func (z *zipStream) next() error {
	const length = 30
	z.head = z.at()
	h := make([]byte, length)
	if _, err := io.ReadFull(z.in, h); err != nil {
		return unexpected(err)
	}
	if string(h[:4]) != zipLocal {
		return refusedZip("there is no image in it")
	}
	u16 := func(at int) uint16 { return binary.LittleEndian.Uint16(h[at:]) }
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(h[at:]) }
	flags := u16(6)
	z.file = zipFile{method: u16(8), later: flags&zipLater != 0, crc: u32(14), packed: uint64(u32(18)), size: uint64(u32(22))}
	rest := make([]byte, int(u16(26))+int(u16(28)))
	if _, err := io.ReadFull(z.in, rest); err != nil {
		return unexpected(err)
	}
	z.file.name = string(rest[:u16(26)])
	z.file.widen(rest[u16(26):])
	switch {
	case flags&zipEncrypted != 0:
		return refusedZip("it is encrypted")
	case z.file.method == zipStored && z.file.later && z.file.packed == 0:
		return refusedZip("it does not say where a file ends that is not compressed")
	}
	z.crc, z.n, z.begin = 0, 0, z.at()
	switch z.file.method {
	case zipStored:
		z.data = io.LimitReader(z.in, int64(min(z.file.packed, 1<<62)))
	case zipDeflated:
		z.data = flate.NewReader(z.in) // which reads no further than the data
	default:
		return refusedZip("a file in it is compressed by a method (number %d) that is not known here", z.file.method)
	}
	return nil
}

// widen takes the sizes of a ZIP64 extra field (section 4.5.3).
func (f *zipFile) widen(extra []byte) {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		if extra = extra[4:]; n > len(extra) {
			return
		}
		if id == zip64 {
			f.wide = true
			if field := extra[:n]; len(field) >= 16 && f.size == 1<<32-1 && f.packed == 1<<32-1 {
				f.size, f.packed = binary.LittleEndian.Uint64(field), binary.LittleEndian.Uint64(field[8:])
			}
		}
		extra = extra[n:]
	}
}

func (z *zipStream) Read(p []byte) (int, error) {
	n, err := z.data.Read(p)
	z.crc = crc32.Update(z.crc, crc32.IEEETable, p[:n])
	z.n += uint64(n)
	if errors.Is(err, io.EOF) {
		if err = z.end(); errors.Is(err, io.EOF) && image.Packed(z.file.name) {
			err = z.listed()
		}
	}
	return n, err
}

// listed reads the archive to its end, and returns io.EOF if its directory names the file.
func (z *zipStream) listed() error {
	end := end{block: make([]byte, content.ZipEnd)}
	if _, err := io.Copy(&end, z.in); err != nil {
		return err
	}
	end.size = z.at()
	f, ok, err := content.ZipImage(&end, end.size)
	if !ok || err != nil || f != (content.ZipFile{CRC: z.crc, Packed: z.file.packed, Size: z.n, Header: uint64(z.head)}) {
		return errors.New("its directory does not name the first image in it")
	}
	return io.EOF
}

// An end keeps the last bytes of a file, as many as its block has.
type end struct {
	block []byte
	n     int64 // bytes that were written
	size  int64 // of the file
}

func (e *end) Write(p []byte) (int, error) {
	n := len(p)
	for p = p[max(0, n-len(e.block)):]; len(p) > 0; {
		m := copy(e.block[e.n%int64(len(e.block)):], p)
		e.n += int64(m)
		p = p[m:]
	}
	return n, nil
}

// ReadAt implements io.ReaderAt. Bytes that are not kept are zero.
func (e *end) ReadAt(p []byte, off int64) (int, error) {
	for i := range p {
		p[i] = 0
		if at := off + int64(i) - (e.size - e.n); at >= max(0, e.n-int64(len(e.block))) && at < e.n {
			p[i] = e.block[at%int64(len(e.block))]
		}
	}
	return len(p), nil
}

// end compares the size and the checksum of the file, and returns io.EOF if they are right.
func (z *zipStream) end() error {
	f := &z.file
	packed := uint64(z.at() - z.begin)
	if f.later {
		if err := z.descriptor(packed); err != nil {
			return err
		}
	}
	switch {
	case f.method == zipStored && z.n < f.packed:
		return io.ErrUnexpectedEOF
	case f.crc != z.crc || f.size != z.n || f.packed != packed:
		return errors.New("wrong checksum or size of a file")
	}
	return io.EOF
}

// descriptor reads the checksum and the sizes behind a file (section 4.3.9). Their signature
// may be missing.
func (z *zipStream) descriptor(packed uint64) error {
	if b, err := z.in.Peek(4); err == nil && string(b) == zipDescriptor {
		_, _ = z.in.Discard(4) // it was peeked
	}
	width := 4
	if z.file.wide || z.n >= 1<<32 || packed >= 1<<32 {
		width = 8
	}
	b := make([]byte, 4+2*width)
	if _, err := io.ReadFull(z.in, b); err != nil {
		return unexpected(err)
	}
	z.file.crc = binary.LittleEndian.Uint32(b)
	if width == 8 {
		z.file.packed, z.file.size = binary.LittleEndian.Uint64(b[4:]), binary.LittleEndian.Uint64(b[12:])
		return nil
	}
	z.file.packed, z.file.size = uint64(binary.LittleEndian.Uint32(b[4:])), uint64(binary.LittleEndian.Uint32(b[8:]))
	return nil
}

func (z *zipStream) Close() {
	if c, ok := z.data.(io.Closer); ok {
		_ = c.Close()
	}
}

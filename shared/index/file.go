package index

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// A file is the content of a journal entry or of one file of a checkpoint. It is
// encoded as lines of tab-separated fields, compressed with zstd:
//
//	imageroot-index	1
//	entry	ID                                     an entry that the checkpoint contains
//	+	ROOT	KEY	BEFORE	ETAG	SIZE	TIME	DATA   the key's state
//	-	ROOT	KEY	BEFORE			TIME	           the key was deleted
//	end	LINES	CRC                                of all lines before, CRC-32C
//
// A field that contains a tab, a line break or a quote is quoted as in Go. TIME is in
// Unix seconds. DATA is "=" and the bytes of a record, or "~" and their base64 if they
// contain a line break, or empty.
type file struct {
	entries []layout.JournalID
	changes []change
}

// errDamaged says that a file is truncated, corrupt or of another format.
var errDamaged = errors.New("the file of the index is damaged")

const fileHead = "imageroot-index\t1\n"

// maxFile is the largest decompressed size of a file, in bytes.
const maxFile = 2 << 30

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunkBytes is about the size of the pieces in which a file is encoded and decoded.
const chunkBytes = 128 << 10

// A codec encodes and decodes files, and packs blocks. It is safe for concurrent use.
type codec struct {
	once     sync.Once
	enc      *zstd.Encoder // for blocks
	dec      *zstd.Decoder
	cache    cache
	encoders sync.Pool // of *zstd.Encoder, for files
	decoders sync.Pool // of *zstd.Decoder
}

func newEncoder(concurrency int) *zstd.Encoder {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(concurrency), zstd.WithEncoderLevel(zstd.SpeedFastest),
		zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(1<<20))
	if err != nil {
		panic(err) // the options are constant
	}
	return enc
}

func newDecoder(concurrency int) *zstd.Decoder {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(concurrency), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFile))
	if err != nil {
		panic(err) // the options are constant
	}
	return dec
}

func (z *codec) open() {
	z.once.Do(func() {
		cores := runtime.GOMAXPROCS(0)
		z.enc, z.dec = newEncoder(cores), newDecoder(cores)
		z.encoders.New = func() any { return newEncoder(1) }
		z.decoders.New = func() any { return newDecoder(1) }
	})
}

// pack compresses a block, and appends it to packed.
func (z *codec) pack(raw, packed []byte) []byte {
	z.open()
	return z.enc.EncodeAll(raw, packed)
}

// unpack decompresses a block that pack has returned, and appends it to raw.
func (z *codec) unpack(packed, raw []byte) []byte {
	z.open()
	raw, err := z.dec.DecodeAll(packed, raw)
	if err != nil {
		panic(err) // the memory is damaged
	}
	return raw
}

// encode writes a file to w, and returns the number of its changes.
func (z *codec) encode(w io.Writer, entries []layout.JournalID, changes iter.Seq[change]) (items int, err error) {
	z.open()
	enc := z.encoders.Get().(*zstd.Encoder)
	defer z.encoders.Put(enc)
	enc.Reset(w)
	sum, lines := uint32(0), 1
	b := append(make([]byte, 0, 2*chunkBytes), fileHead...)
	flush := func() {
		sum = crc32.Update(sum, castagnoli, b)
		_, _ = enc.Write(b) // Close returns the error
		b = b[:0]
	}
	for _, id := range entries {
		b = fmt.Appendf(b, "entry\t%s\n", id)
		lines++
	}
	for c := range changes {
		if b = c.append(b); len(b) >= chunkBytes {
			flush()
		}
		items++
	}
	flush()
	b = fmt.Appendf(b, "end\t%d\t%08x\n", lines+items, sum)
	flush()
	return items, enc.Close()
}

func (c *change) append(b []byte) []byte {
	op := byte('+')
	if c.gone {
		op = '-'
	}
	b = append(b, op, '\t', byte(c.root), '\t')
	b = append(appendField(b, string(c.key)), '\t')
	b = append(appendField(b, c.before), '\t')
	if c.gone {
		b = append(b, '\t')
	} else {
		b = append(appendField(b, c.version.ETag), '\t')
		b = strconv.AppendInt(b, c.version.Size, 10)
	}
	b = append(b, '\t')
	b = strconv.AppendInt(b, c.version.LastModified.Unix(), 10)
	b = append(b, '\t')
	switch {
	case c.data == "":
	case strings.Contains(c.data, "\n"):
		b = append(b, '~')
		b = base64.StdEncoding.AppendEncode(b, []byte(c.data))
	default:
		b = append(append(b, '='), c.data...)
	}
	return append(b, '\n')
}

// appendField appends a field, quoted if necessary.
func appendField(b []byte, s string) []byte {
	if strings.ContainsAny(s, "\t\n\"") {
		return strconv.AppendQuote(b, s)
	}
	return append(b, s...)
}

func parseField(s string) (string, error) {
	if strings.HasPrefix(s, `"`) {
		return strconv.Unquote(s)
	}
	return s, nil
}

// decode reads a file. The error matches errDamaged if the content is damaged.
func (z *codec) decode(r io.Reader) (f file, err error) {
	err = z.scan(r, func(lines string) error {
		more, err := parse(lines)
		f.entries, f.changes = append(f.entries, more.entries...), append(f.changes, more.changes...)
		return err
	})
	if err != nil {
		return file{}, err
	}
	return f, nil
}

// scan decompresses a file and calls each for every few hundred lines of it. The lines
// are what was written only if scan returns nil. The error matches errDamaged if the
// content is damaged, and may be that of each or of r.
func (z *codec) scan(r io.Reader, each func(lines string) error) error {
	z.open()
	dec := z.decoders.Get().(*zstd.Decoder)
	defer z.decoders.Put(dec)
	in := &input{r: r}
	damaged := func(err error) error {
		if in.err != nil {
			return in.err
		}
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	if err := dec.Reset(in); err != nil {
		return damaged(err)
	}
	defer func() { _ = dec.Reset(nil) }() // it must not hold r
	sum, lines, total := uint32(0), 0, int64(0)
	b := make([]byte, 0, chunkBytes)
	for ended := false; !ended; {
		if len(b) == cap(b) {
			b = slices.Grow(b, cap(b))
		}
		n, err := io.ReadFull(dec, b[len(b):cap(b)])
		b = b[:len(b)+n]
		total += int64(n)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && in.ended:
			ended = true
		case err != nil:
			return damaged(err)
		case total > maxFile:
			return damaged(errors.New("it is too large"))
		}
		// The last line is held back: it may be the end.
		body := b[:bytes.LastIndexByte(b[:max(0, len(b)-1)], '\n')+1]
		if len(body) == 0 {
			continue
		}
		sum = crc32.Update(sum, castagnoli, body)
		text := string(body)
		if lines == 0 {
			var ok bool
			if text, ok = strings.CutPrefix(text, fileHead); !ok {
				return damaged(errors.New("it has no head of this version"))
			}
		}
		lines += bytes.Count(body, []byte("\n"))
		if err := each(text); err != nil {
			return err
		}
		b = append(b[:0], b[len(body):]...)
	}
	if string(b) != fmt.Sprintf("end\t%d\t%08x\n", lines, sum) {
		return damaged(errors.New("it has no end, or another than it says"))
	}
	return nil
}

// An input remembers the error of a reader.
type input struct {
	r     io.Reader
	ended bool
	err   error // except io.EOF
}

func (in *input) Read(p []byte) (int, error) {
	n, err := in.r.Read(p)
	if errors.Is(err, io.EOF) {
		in.ended = true
	} else if err != nil {
		in.err = err
	}
	return n, err
}

// parse parses lines of a file except the first and the last. The strings of the
// changes share the memory of lines. The error matches errDamaged.
func parse(lines string) (f file, err error) {
	f.changes = make([]change, 0, strings.Count(lines, "\n"))
	for line := range strings.Lines(lines) {
		line = line[:len(line)-1]
		if id, ok := strings.CutPrefix(line, "entry\t"); ok {
			f.entries = append(f.entries, layout.JournalID(strings.Clone(id)))
			continue
		}
		c, err := parseChange(line)
		if err != nil {
			return f, fmt.Errorf("%w: %w", errDamaged, err)
		}
		f.changes = append(f.changes, c)
	}
	return f, nil
}

func parseChange(line string) (c change, err error) {
	var field [8]string
	rest, ok := line, true
	for i := range field[:7] {
		if field[i], rest, ok = strings.Cut(rest, "\t"); !ok {
			return c, errors.New("a line has too few fields")
		}
		if field[i], err = parseField(field[i]); err != nil {
			return c, fmt.Errorf("a quoted field: %w", err)
		}
	}
	if field[0] != "+" && field[0] != "-" || len(field[1]) != 1 {
		return c, errors.New("a line is of no kind")
	}
	seconds, err := strconv.ParseInt(field[6], 10, 64)
	if err != nil {
		return c, err
	}
	c = change{place: place{rootID(field[1][0]), store.Key(field[2])}, before: field[3], gone: field[0] == "-"}
	c.version = store.Version{ETag: field[4], LastModified: time.Unix(seconds, 0).UTC()}
	if !c.gone {
		if c.version.Size, err = strconv.ParseInt(field[5], 10, 64); err != nil {
			return c, err
		}
	}
	switch {
	case strings.HasPrefix(rest, "="):
		c.data = rest[1:]
	case strings.HasPrefix(rest, "~"):
		var data []byte
		if data, err = base64.StdEncoding.DecodeString(rest[1:]); err != nil {
			return c, err
		}
		c.data = string(data)
	case rest != "":
		return c, errors.New("the data of a line is of no kind")
	}
	return c, nil
}

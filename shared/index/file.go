package index

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
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

// A codec encodes and decodes files. It is safe for concurrent use.
type codec struct {
	once sync.Once
	enc  *zstd.Encoder
	dec  *zstd.Decoder
}

func (z *codec) open() {
	z.once.Do(func() {
		var err, err2 error
		z.enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithLowerEncoderMem(true))
		z.dec, err2 = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxFile))
		if err = errors.Join(err, err2); err != nil {
			panic(err) // the options are constant
		}
	})
}

// encode returns the bytes of a file.
func (z *codec) encode(entries []layout.JournalID, changes iter.Seq[change]) []byte {
	b := append([]byte(nil), fileHead...)
	lines := 1
	for _, id := range entries {
		b = fmt.Appendf(b, "entry\t%s\n", id)
		lines++
	}
	for c := range changes {
		b = c.append(b)
		lines++
	}
	b = fmt.Appendf(b, "end\t%d\t%08x\n", lines, crc32.Checksum(b, castagnoli))
	z.open()
	return z.enc.EncodeAll(b, nil)
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

// decode parses the bytes of a file. The strings of its changes share memory. The error
// matches errDamaged.
func (z *codec) decode(data []byte) (file, error) {
	z.open()
	raw, err := z.dec.DecodeAll(data, nil)
	if err != nil {
		return file{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	at := bytes.LastIndex(raw, []byte("\nend\t")) + 1
	body, end := raw[:at], string(raw[at:])
	lines := bytes.Count(body, []byte("\n"))
	if end != fmt.Sprintf("end\t%d\t%08x\n", lines, crc32.Checksum(body, castagnoli)) {
		return file{}, fmt.Errorf("%w: it has no end, or another than it says", errDamaged)
	}
	text, ok := strings.CutPrefix(string(body), fileHead)
	if !ok {
		return file{}, fmt.Errorf("%w: it has no head of this version", errDamaged)
	}
	f := file{changes: make([]change, 0, lines)}
	for line := range strings.Lines(text) {
		line = line[:len(line)-1]
		if id, ok := strings.CutPrefix(line, "entry\t"); ok {
			f.entries = append(f.entries, layout.JournalID(id))
			continue
		}
		c, err := parseChange(line)
		if err != nil {
			return file{}, fmt.Errorf("%w: %w", errDamaged, err)
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

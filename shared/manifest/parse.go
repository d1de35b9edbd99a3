package manifest

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2/unstable"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/source/scheme"
)

const version = 1

// Parse parses a manifest, which may begin with a byte order mark. The error is an
// [*Error]. Time and memory grow linearly with data.
//
// Parse walks go-toml's syntax tree instead of decoding into a struct: that gives each
// problem a line, several problems at once, and linear time for a hostile document of
// many keys.
func Parse(data []byte) (*Manifest, error) {
	if len(data) > MaxBytes {
		return nil, &Error{[]Problem{{1, fmt.Sprintf("the manifest is larger than %d MiB", MaxBytes>>20)}}}
	}
	p := parser{data: slices.Clip(bytes.TrimPrefix(data, []byte("\ufeff"))), names: map[string]int{}}
	p.parse()
	byLine := func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) }
	slices.SortStableFunc(p.manifest.Warnings, byLine)
	if len(p.problems) > 0 {
		slices.SortStableFunc(p.problems, byLine)
		return nil, &Error{p.problems}
	}
	return &p.manifest, nil
}

type parser struct {
	data     []byte
	toml     unstable.Parser
	problems []Problem
	manifest Manifest

	version bool           // the version key was read
	array   bool           // "images = [...]" was read
	row     *row           // of the current [[images]] table
	labels  bool           // below [images.labels], of that row
	skip    bool           // below an unknown table of that row
	names   map[string]int // name in lower case to the index of its row

	// The last offset of lineAt and its line. Offsets mostly ascend, so finding
	// all lines takes linear time.
	offset, line int
}

// A row is an image that is being parsed.
type row struct {
	index  int
	line   int
	lines  map[string]int // of the keys that were read
	image  Image
	format string // as given
	// unknown has the values of unknown keys, which become labels.
	unknown map[string]string
}

func (p *parser) full() bool { return len(p.problems) >= maxProblems }

func (p *parser) fail(line int, format string, args ...any) {
	if !p.full() {
		p.problems = append(p.problems, Problem{line, fmt.Sprintf(format, args...)})
	}
}

// warn adds a warning about a row, or about the manifest if r is nil.
func (p *parser) warn(r *row, line int, format string, args ...any) {
	if len(p.manifest.Warnings) >= maxProblems {
		return
	}
	reason := fmt.Sprintf(format, args...)
	if r != nil {
		reason = r.String() + ": " + reason
	}
	p.manifest.Warnings = append(p.manifest.Warnings, Problem{line, reason})
}

// lineOf returns the first line of a node that is a key or an inline table. Other
// kinds of nodes have no offset.
func (p *parser) lineOf(n *unstable.Node) int { return p.lineAt(int(n.Raw.Offset)) }

func (p *parser) lineAt(offset int) int {
	if offset < p.offset || p.line == 0 {
		p.offset, p.line = 0, 1
	}
	p.line += bytes.Count(p.data[p.offset:offset], []byte("\n"))
	p.offset = offset
	return p.line
}

func (p *parser) parse() {
	if !utf8.Valid(p.data) {
		p.fail(1, "the manifest is not UTF-8 text")
		return
	}
	p.toml.Reset(p.data)
	inTable := false // below any header
	for !p.full() && p.toml.NextExpression() {
		switch e := p.toml.Expression(); e.Kind {
		case unstable.KeyValue:
			switch {
			case p.skip:
			case p.labels:
				p.label(p.row, e, false)
			case p.row != nil:
				p.rowValue(p.row, e)
			case !inTable:
				p.topValue(e)
			}
		case unstable.Table, unstable.ArrayTable:
			inTable = true
			key, line := p.key(e)
			switch p.skip = false; {
			case key == "images.labels" && e.Kind == unstable.Table && p.row != nil && !p.labels:
				p.labelTable(p.row, line)
			case strings.HasPrefix(key, "images.") && key != "images.labels" && p.row != nil:
				p.warn(p.row, line, "unknown table %.100q", key)
				p.labels, p.skip = false, true
			default:
				p.finish(p.row)
				p.row, p.labels = nil, false
				p.header(e)
			}
		}
	}
	p.finish(p.row)
	if err := p.toml.Error(); err != nil {
		p.syntax(err)
		return
	}
	if !p.version && !p.full() {
		p.fail(1, "the key version is missing; the manifest must begin with version = %d", version)
	}
}

func (p *parser) syntax(err error) {
	line := 1
	if perr, ok := errors.AsType[*unstable.ParserError](err); ok && perr.Highlight != nil {
		line = p.lineAt(int(p.toml.Range(perr.Highlight).Offset))
	}
	p.fail(line, "not TOML: %s", strings.TrimPrefix(err.Error(), "toml: "))
}

// header parses [key] or [[key]].
func (p *parser) header(e *unstable.Node) {
	key, line := p.key(e)
	switch {
	case key == "images.labels":
		p.fail(line, "unknown table %.100q; the labels of an image are below its [[images]], once", key)
	case key != "images":
		p.warn(nil, line, "unknown table %.100q", key)
	case e.Kind == unstable.Table:
		p.fail(line, "images must be [[images]], with two brackets")
	case p.array:
		p.fail(line, "images was given already, as an array")
	default:
		p.row = p.newRow(line)
	}
}

// topValue parses a key and value before the first table.
func (p *parser) topValue(e *unstable.Node) {
	key, line := p.key(e)
	v := e.Value()
	switch key {
	case "version":
		if p.version {
			p.fail(line, "version is given twice")
		}
		p.version = true
		if n, err := integer(v); err != nil || n != version {
			p.fail(line, "version must be %d, the only one there is", version)
		}
	case "images":
		if p.array {
			p.fail(line, "images is given twice")
			return
		}
		p.array = true
		p.inlineRows(v, line)
	default:
		p.warn(nil, line, "unknown key %.100q", key)
	}
}

// inlineRows parses images = [{...}, ...].
func (p *parser) inlineRows(v *unstable.Node, line int) {
	if v.Kind != unstable.Array {
		p.fail(line, "images must be an array of tables")
		return
	}
	for it := v.Children(); it.Next() && !p.full(); {
		n := it.Node()
		if n.Kind != unstable.InlineTable {
			p.fail(line, "images must be an array of tables")
			return
		}
		r := p.newRow(p.lineOf(n))
		if r == nil {
			return
		}
		for kv := n.Children(); kv.Next(); {
			p.rowValue(r, kv.Node())
		}
		p.finish(r)
	}
}

func (p *parser) newRow(line int) *row {
	n := len(p.manifest.Images)
	if n == MaxImages {
		p.fail(line, "the manifest has more than %d images", MaxImages)
		return nil
	}
	p.manifest.Images = append(p.manifest.Images, Image{})
	return &row{index: n, line: line, lines: map[string]int{}, unknown: map[string]string{}}
}

// key returns a key, with its dots, and its line.
func (p *parser) key(e *unstable.Node) (key string, line int) {
	var b strings.Builder
	for it := e.Key(); it.Next(); {
		if line == 0 {
			line = p.lineOf(it.Node())
		} else {
			b.WriteByte('.')
		}
		b.Write(it.Node().Data)
		if it.Node().Next().Valid() && b.Len() > 200 {
			break // an unknown key, whatever its value
		}
	}
	return b.String(), line
}

// String returns the place of a row. Rows count from 0, as in a path into the document.
func (r *row) String() string {
	name := ""
	if r.image.Name != "" {
		name = fmt.Sprintf(" %.300q", r.image.Name)
	}
	return fmt.Sprintf("images[%d]%s", r.index, name)
}

// failRow reports a problem of a row.
func (p *parser) failRow(r *row, line int, format string, args ...any) {
	p.fail(line, "%s: %s", r, fmt.Sprintf(format, args...))
}

// maxUnknown limits the unknown keys of an image that are kept.
const maxUnknown = 32

// elsewhere are keys that mean something to other programs.
var elsewhere = []string{"netboot_ref", "resolved_src"}

func (p *parser) rowValue(r *row, e *unstable.Node) {
	key, line := p.key(e)
	if strings.HasPrefix(key, "labels.") {
		p.label(r, e, true)
		return
	}
	if key == "arch" {
		key = "architecture"
	}
	if _, twice := r.lines[key]; twice {
		p.failRow(r, line, "%s is given twice", key)
		return
	}
	v := e.Value()
	text := func() string {
		if v.Kind != unstable.String {
			p.failRow(r, line, "%s must be a string", key)
			return ""
		}
		if len(v.Data) == 0 {
			p.failRow(r, line, "%s is empty", key)
		}
		return string(v.Data)
	}
	switch key {
	case "name":
		r.image.Name = image.Name(text())
	case "src":
		r.image.Src = text()
		if s := r.image.Src; s != "" {
			if err := checkSrc(s); err != nil {
				p.failRow(r, line, "%s", err)
			}
		}
	case "sha256":
		r.image.SHA256 = layout.SHA256(p.digest(r, line, key, text(), 64))
	case "sha512":
		r.image.SHA512 = p.digest(r, line, key, text(), 128)
	case "format":
		r.format = text()
	case "size_bytes":
		n, err := integer(v)
		if err != nil || n < 0 {
			p.failRow(r, line, "size_bytes must be a whole number, 0 or more")
			break
		}
		r.image.SizeBytes = &n
	case "devices":
		r.image.Devices = p.strings(r, line, key, v)
	case "labels":
		if v.Kind != unstable.InlineTable {
			p.failRow(r, line, "labels must be a table of strings")
			break
		}
		for kv := v.Children(); kv.Next(); {
			p.label(r, kv.Node(), false)
		}
	default:
		to, ok := r.image.Text(key)
		if !ok {
			if !slices.Contains(elsewhere, key) {
				p.warn(r, line, "unknown key %.100q", key)
			}
			switch v.Kind {
			case unstable.String, unstable.Integer, unstable.Float, unstable.Bool:
				if len(r.unknown) < maxUnknown {
					r.unknown[key] = string(v.Data)
				}
			}
			return // not added to lines: the number of unknown keys is unbounded
		}
		if _, err := integer(v); err == nil && key == "version" {
			p.failRow(r, line, "version must stand before the first [[images]] if it is the manifest's, and be a string if it is the image's")
			break
		}
		*to = text()
	}
	r.lines[key] = line
}

// strings returns an array of strings.
func (p *parser) strings(r *row, line int, key string, v *unstable.Node) (all []string) {
	for it := v.Children(); v.Kind == unstable.Array && it.Next(); {
		if it.Node().Kind != unstable.String || len(all) == metadata.MaxDevices {
			all = nil
			break
		}
		all = append(all, string(it.Node().Data))
	}
	if len(all) == 0 {
		p.failRow(r, line, "%s must be an array of strings, at most %d", key, metadata.MaxDevices)
	}
	return all
}

// labelTable begins [images.labels].
func (p *parser) labelTable(r *row, line int) {
	p.labels = true
	if _, twice := r.lines["labels"]; twice {
		p.failRow(r, line, "labels is given twice")
	}
	r.lines["labels"] = line
}

// label parses a label of a row: a key and value in an inline table or below
// [images.labels], or, if dotted is true, one whose key begins with "labels.".
func (p *parser) label(r *row, e *unstable.Node, dotted bool) {
	_, line := p.key(e)
	var parts []string
	for it := e.Key(); it.Next() && len(parts) < 3; {
		parts = append(parts, string(it.Node().Data))
	}
	if dotted {
		parts = parts[1:]
	}
	key := parts[0]
	_, twice := r.image.Labels[key]
	switch v := e.Value(); {
	case len(parts) > 1:
		p.failRow(r, line, "put the key of a label that has a dot in quotes")
	case v.Kind != unstable.String:
		p.failRow(r, line, "the label %.100q must be a string", key)
	case twice:
		p.failRow(r, line, "the label %.100q is given twice", key)
	case len(r.image.Labels) == metadata.MaxLabels:
		p.failRow(r, line, "labels has more than %d labels", metadata.MaxLabels)
	case r.image.Labels == nil:
		r.image.Labels = map[string]string{key: string(v.Data)}
	default:
		r.image.Labels[key] = string(v.Data)
	}
}

func (p *parser) digest(r *row, line int, key, s string, digits int) string {
	if s == "" {
		return ""
	}
	if len(s) != digits {
		p.failRow(r, line, "%s has %d digits, needs %d", key, len(s), digits)
		return ""
	}
	if _, err := hex.DecodeString(s); err != nil {
		p.failRow(r, line, "%s must be hexadecimal digits", key)
		return ""
	}
	return strings.ToLower(s)
}

// finish checks a row after its last key and adds it to the manifest.
func (p *parser) finish(r *row) {
	if r == nil {
		return
	}
	if line, ok := r.lines["name"]; !ok {
		p.failRow(r, r.line, "name is missing")
	} else if r.image.Name != "" { // an empty name has been refused
		p.finishName(r, line)
	}
	if _, ok := r.lines["src"]; !ok {
		p.failRow(r, r.line, "src is missing")
	}
	if a := r.image.Architecture; a != "" {
		if _, ok := metadata.Architecture(a); !ok {
			p.warn(r, r.lines["architecture"], "%.40q is none of the architectures %s", a, strings.Join(metadata.Architectures, ", "))
			r.unknown["arch"], r.image.Architecture = a, ""
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.unknown)) {
		r.image.AddLabel(key, r.unknown[key])
	}
	if e, ok := errors.AsType[*metadata.Error](r.image.Check()); ok {
		field, _, _ := strings.Cut(e.Field, ".")
		p.failRow(r, cmp.Or(r.lines[field], r.line), "%s", e)
	}
	p.manifest.Images[r.index] = r.image
}

func (p *parser) finishName(r *row, line int) {
	given := string(r.image.Name)
	name, format, err := image.Named(given, r.format)
	if err != nil {
		p.failRow(r, cmp.Or(r.lines["format"], line), "%s", err)
		return
	}
	if !format.Image() {
		p.warn(r, cmp.Or(r.lines["format"], line), "%s is no format of disk images: the file is listed, and not offered for flashing", format)
	}
	if r.image.Title == "" && given != string(name) {
		r.image.Title = given
	}
	r.image.Name, r.image.Format = name, format
	folded := strings.ToLower(string(r.image.Name))
	if first, taken := p.names[folded]; taken {
		p.failRow(r, line, "images[%d] has that name already; names compare without case", first)
		return
	}
	p.names[folded] = r.index
}

// integer returns the value of a TOML integer. Go's syntax of integers with
// underscores and prefixes includes TOML's.
func integer(v *unstable.Node) (int64, error) {
	if v.Kind != unstable.Integer {
		return 0, errors.New("not an integer")
	}
	return strconv.ParseInt(string(v.Data), 0, 64)
}

// checkSrc checks that s can be the URL of a source, without any request.
func checkSrc(s string) error {
	u, err := url.Parse(s)
	if err != nil {
		if uerr, ok := errors.AsType[*url.Error](err); ok {
			err = uerr.Err // without the URL, which the row has
		}
		return fmt.Errorf("src is not a URL: %.200s", err)
	}
	if _, ok := scheme.Of(s); !ok {
		return fmt.Errorf("src must be an absolute %s URL, not %.20s", scheme.List(""), cmp.Or(u.Scheme, "a relative one"))
	}
	if u.Hostname() == "" {
		return errors.New("src names no host")
	}
	if u.User != nil {
		return errors.New("src holds a user name or password, which the catalog would show: use a URL that needs none")
	}
	return nil
}

package inventory

import (
	"cmp"
	"iter"
	"net/url"
	"slices"
	"strings"
	"unique"

	"golang.org/x/text/unicode/norm"

	"imageroot/shared/boot"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/sorted"
	"imageroot/shared/store"
)

// A Snapshot is the catalog at one moment. It is immutable and safe for concurrent use.
// It keeps the [Head] of each row, and makes a [Row] when one is asked for. Snapshots
// share what has not changed.
type Snapshot struct {
	// Problem is the error of the manifest, or "".
	Problem string
	// Others are the objects in the image root that are not images, sorted by name.
	Others []Other
	// StoredBytes is the number of bytes of all rows that are cached.
	StoredBytes int64
	// Attention is the number of rows that have warnings, of failed jobs among others.
	Attention int

	in      inputs
	rows    sorted.List[*Head]
	bySHA   sorted.List[*Head]
	byName  sorted.List[labelled]
	byDisk  sorted.List[labelled] // by image.DiskName, if it differs from the name
	byRef   sorted.List[labelled] // by the refs of URL sources
	byRaw   sorted.List[*Head]    // by RawSHA256, those that are not their own disk
	objects []Other               // those of Others that are objects
	orders  orders
}

// A Head is what a snapshot keeps of a row.
type Head struct {
	Name      image.Name    // the primary name
	SHA256    layout.SHA256 // "" if it is unknown
	SizeBytes int64         // negative if it is unknown
	HashState string
	Cached    bool
	// Attention is true if the row has warnings.
	Attention bool
	added     uint32 // the Unix time of Row.Added; 0 if unknown. A longer type would need more memory.
	findings

	lower string // Name in lower case
	text  string // what a search matches, in lower case
	facts unique.Handle[facts]
	more  *more // nil for one image in the image root of this name
}

// findings are those of the content record of a row. The zero value is that of a row
// without one.
type findings struct {
	Inspected bool // there is a content record
	Missing   bool // an inspection: see content.Record.Inspectable
	Pending   bool // a check: see content.Record.Pending and incus.Missing
	NoDisk    bool // it is known that the image holds no disk that can be read
	Disk      bool // its expanded disk is in the catalog root
	Packed    bool // the image is compressed
	Virtual   bool // the image is one of a virtual machine
	// Boot is which firmware can start the disk, as far as that is known.
	Boot      boot.Ways
	RawSHA256 layout.SHA256 // of the disk; "" if it is unknown
}

// more is what only some heads have.
type more struct {
	format   image.Format
	names    []image.Name
	members  []member
	kind     string // of the first source
	location string // of the first source
}

// A labelled is a head by one of its names, disks or refs.
type labelled struct {
	label string
	head  *Head
	at    int // in its names or members
}

// Format returns the format of the row.
func (h *Head) Format() image.Format {
	if h.more != nil {
		return h.more.format
	}
	format, _ := image.FormatOf(h.Name)
	return format
}

// Names returns all names of the row, the primary one first.
func (h *Head) Names() []image.Name {
	if h.more != nil {
		return h.more.names
	}
	return []image.Name{h.Name}
}

func (h *Head) members() []member {
	if h.more != nil {
		return h.more.members
	}
	return []member{{local: h.Name}}
}

func (h *Head) hasLocal(name image.Name) bool {
	if h.more == nil {
		return h.Name == name
	}
	for _, m := range h.more.members {
		if m.local == name {
			return true
		}
	}
	return false
}

// Source returns the kind and the location of the first source. It is an image in the
// image root if the row has one.
func (h *Head) Source() (kind, location string) {
	if h.more != nil {
		return h.more.kind, h.more.location
	}
	return Local, string(h.Name)
}

// Sources returns the sources of a row in their order.
func (s *Snapshot) Sources(h *Head) []Source {
	if h.more == nil { // most rows: without making the row
		return []Source{{Kind: Local, Location: string(h.Name), Name: h.Name}}
	}
	return s.Row(h).Sources
}

// byRowName is the order of rows. It is that of a [Query] by name.
func byRowName(a, b *Head) int {
	return cmp.Or(strings.Compare(a.lower, b.lower), compareHeads(a, b))
}

// compareHeads is the order of rows that are equal by the field that a query sorts by.
func compareHeads(a, b *Head) int {
	if c := cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.SHA256, b.SHA256)); c != 0 {
		return c
	}
	kind, location := a.Source()
	kind2, location2 := b.Source()
	return cmp.Or(strings.Compare(kind, kind2), strings.Compare(location, location2))
}

// byRawSHA256 puts the contents with one disk beside each other.
func byRawSHA256(a, b *Head) int {
	return cmp.Or(cmp.Compare(a.RawSHA256, b.RawSHA256), bySHA256(a, b))
}

func bySHA256(a, b *Head) int { return cmp.Compare(a.SHA256, b.SHA256) }

// byLabel puts the heads with one label in the order of rows.
func byLabel(a, b labelled) int {
	if c := strings.Compare(a.label, b.label); c != 0 {
		return c
	}
	return cmp.Or(byRowName(a.head, b.head), cmp.Compare(a.at, b.at))
}

// under yields what has this label, in the order of rows.
func under(list sorted.List[labelled], label string) iter.Seq[labelled] {
	return func(yield func(labelled) bool) {
		for l := range list.From(func(l labelled) int { return strings.Compare(l.label, label) }) {
			if l.label != label || !yield(l) {
				return
			}
		}
	}
}

// Len returns the number of rows.
func (s *Snapshot) Len() int { return s.rows.Len() }

// Heads returns the heads of all rows, sorted by primary name without case, then by
// digest.
func (s *Snapshot) Heads() iter.Seq[*Head] { return s.rows.All() }

// Rows returns the rows for whose heads want returns true, or all if want is nil, in the order of
// [Snapshot.Heads]. It reads the records of many contents at a time, in the order in which the index
// compresses them, so that costs less than [Snapshot.Row] for each.
func (s *Snapshot) Rows(want func(*Head) bool) iter.Seq[*Row] {
	const atOnce = 2000
	return func(yield func(*Row) bool) {
		var heads []*Head
		for h := range s.Heads() {
			if want == nil || want(h) {
				heads = append(heads, h)
			}
		}
		for batch := range slices.Chunk(heads, atOnce) {
			knowledge := make(map[*Head]known, len(batch))
			for _, h := range slices.SortedFunc(slices.Values(batch), func(a, b *Head) int { return cmp.Compare(a.SHA256, b.SHA256) }) {
				knowledge[h] = s.known(h)
			}
			for _, h := range batch {
				if !yield(s.row(h, knowledge[h])) {
					return
				}
			}
		}
	}
}

func (s *Snapshot) rowOf(h *Head) (*Row, bool) {
	if h == nil {
		return nil, false
	}
	return s.Row(h), true
}

// BySHA256 returns the row with this digest.
func (s *Snapshot) BySHA256(sha layout.SHA256) (*Row, bool) { return s.rowOf(s.headOf(sha)) }

// headOf returns the head with this digest, or nil.
func (s *Snapshot) headOf(sha layout.SHA256) *Head {
	h, _ := s.bySHA.Find(func(h *Head) int { return cmp.Compare(h.SHA256, sha) })
	return h
}

// An Other is an object or file in the image root that is not an image.
type Other struct {
	Name   string `json:"name"`
	Reason string `json:"reason"` // the reason that it is not an image, and what to do
}

// MinRef is the minimum number of hex digits in the ref of a row.
const MinRef = 12

// ByRef returns the row whose digest begins with ref, which must have at least [MinRef]
// digits.
func (s *Snapshot) ByRef(ref string) (*Row, bool) {
	if len(ref) < MinRef {
		return nil, false
	}
	for h := range s.bySHA.From(func(h *Head) int { return cmp.Compare(string(h.SHA256), ref) }) {
		if !strings.HasPrefix(string(h.SHA256), ref) {
			break
		}
		return s.Row(h), true
	}
	return nil, false
}

// ByName returns the row with this name. A row whose image is in the image root is
// preferred, then a cached one. If there is none, it tries the other [image.Spellings].
func (s *Snapshot) ByName(name image.Name) (*Row, bool) {
	for _, spelling := range image.Spellings(name) {
		if h := s.Named(spelling); h != nil {
			return s.Row(h), true
		}
	}
	return nil, false
}

// Named returns the head with exactly this name, or nil: the one that ByName prefers.
func (s *Snapshot) Named(name image.Name) (best *Head) {
	for l := range under(s.byName, string(name)) {
		h := l.head
		if best == nil || !best.hasLocal(name) && (h.hasLocal(name) || h.Cached && !best.Cached) {
			best = h
		}
	}
	return best
}

// AllNamed yields the heads with exactly this name, in the order of rows.
func (s *Snapshot) AllNamed(name image.Name) iter.Seq[*Head] {
	return func(yield func(*Head) bool) {
		for l := range under(s.byName, string(name)) {
			if !yield(l.head) {
				return
			}
		}
	}
}

// Spelled returns the first of the name's [image.Spellings] that exists in the image
// root. The name itself is tried first.
func (s *Snapshot) Spelled(name image.Name) (image.Name, bool) {
	for _, spelling := range image.Spellings(name) {
		if _, ok := s.Image(spelling); ok {
			return spelling, true
		}
	}
	return "", false
}

// ByDisk returns the names of the images that may hold the disk of this name: the image
// of exactly this name, else one image for each distinct disk with this
// [image.DiskName]. Images that are not cached count only if no image is cached. If
// there is none, it tries the other [image.Spellings].
func (s *Snapshot) ByDisk(disk image.Name) []image.Name {
	for _, spelling := range image.Spellings(disk) {
		if names := s.byDiskSpelled(spelling); names != nil {
			return names
		}
	}
	return nil
}

func (s *Snapshot) byDiskSpelled(disk image.Name) (names []image.Name) {
	if s.Named(disk) != nil {
		return []image.Name{disk}
	}
	for _, cached := range []bool{true, false} {
		seen := map[string]bool{}
		for l := range under(s.byDisk, string(disk)) {
			name := l.head.Names()[l.at]
			h := s.Named(name)
			raw := cmp.Or(string(h.RawSHA256), string(h.SHA256), string(name))
			if h.Cached == cached && !seen[raw] {
				seen[raw] = true
				names = append(names, name)
			}
		}
		if names != nil {
			break
		}
	}
	return names
}

// rawPath returns the path of /raw for the image of this name in a row, which must have
// a digest.
func (s *Snapshot) rawPath(sha layout.SHA256, name image.Name) string {
	disk := image.DiskName(name)
	if names := s.ByDisk(disk); len(names) == 1 && s.Named(names[0]).SHA256 == sha {
		return "/raw/" + url.PathEscape(string(disk))
	}
	return "/raw/" + string(sha) + "/" + url.PathEscape(string(disk))
}

// BySource returns the row that has the source with this ref: see [layout.RefOf].
func (s *Snapshot) BySource(ref layout.Ref) (*Row, bool) { return s.rowOf(s.sourced(ref)) }

// ByEntry returns the row that has the entry with this ref.
func (s *Snapshot) ByEntry(ref layout.Ref) (*Row, bool) {
	for l := range under(s.byRef, string(ref)) {
		if l.head.members()[l.at].entry == ref {
			return s.Row(l.head), true
		}
	}
	return nil, false
}

// sourced returns the head that has the source with this ref, or nil.
func (s *Snapshot) sourced(ref layout.Ref) (last *Head) {
	for l := range under(s.byRef, string(ref)) {
		last = l.head
	}
	return last
}

// Image returns the image root's object with this name.
func (s *Snapshot) Image(name image.Name) (store.Info, bool) {
	return s.in.images.Info(layout.ImageKey(name))
}

// Blob returns the blob with this digest.
func (s *Snapshot) Blob(sha256 layout.SHA256) (store.Info, bool) { return s.in.blobs.Info(sha256) }

// fold returns s as searches compare it: in lower case and in Unicode's composed form.
func fold(s string) string { return strings.ToLower(norm.NFC.String(s)) }

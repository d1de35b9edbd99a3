package inventory

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/sorted"
	"imageroot/shared/store"
)

// inputs are what a snapshot is made of.
type inputs struct {
	images    index.Items[store.Key, struct{}]
	blobs     index.Items[layout.SHA256, struct{}]
	digests   index.Items[image.Name, digest.Record]
	entries   index.Items[layout.Ref, entry.Entry]
	fetched   index.Items[layout.Ref, entry.Fetched]
	contents  index.Items[layout.SHA256, content.Record]
	hashJobs  sorted.List[*jobHead]
	fetchJobs sorted.List[*jobHead]
	hidden    []Other
	manifest  *manifest.Manifest // nil: none
	problem   string
}

// A member identifies one source: an image in the image root, an image of the manifest
// by its place in it, or an entry.
type member struct {
	local  image.Name
	listed int // 1 is the first; 0: not of the manifest
	entry  layout.Ref
}

// compareMembers is the order of a row's sources.
func compareMembers(a, b member) int {
	kind := func(m member) int {
		switch {
		case m.local != "":
			return 0
		case m.listed != 0:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(kind(a), kind(b)), cmp.Compare(a.local, b.local), cmp.Compare(a.listed, b.listed), cmp.Compare(a.entry, b.entry))
}

// A piece is one source and what is known about its bytes.
type piece struct {
	member    member
	source    Source
	name      image.Name
	format    image.Format
	sha256    layout.SHA256
	size      int64 // negative if unknown
	cached    bool
	hashState string
	warnings  []string
	// since is the time at which the name became known for these bytes. It is zero for
	// names from the manifest, so that they sort first.
	since time.Time
}

// pieces returns all pieces in the order of their members.
func (in *inputs) pieces() []*piece {
	pieces := make([]*piece, 0, in.images.Len()+in.entries.Len())
	// Images and digests have the same order.
	next, stop := iter.Pull2(in.digests.Values())
	defer stop()
	name, rec, more := next()
	for key, info := range in.images.All() {
		local, ok := layout.ImageName(key)
		if !ok {
			continue
		}
		for more && name < local {
			name, rec, more = next()
		}
		var found *digest.Record
		if more && name == local {
			found = &rec
		}
		p := in.local(local, info, found)
		pieces = append(pieces, &p)
	}
	if in.manifest != nil {
		for i := range in.manifest.Images {
			p := in.listed(i + 1)
			pieces = append(pieces, &p)
		}
	}
	for ref, e := range in.entries.Values() {
		p := in.added(ref, e)
		pieces = append(pieces, &p)
	}
	return pieces
}

// piece returns the piece of a member, and false if it does not exist.
func (in *inputs) piece(m member) (piece, bool) {
	switch {
	case m.local != "":
		info, ok := in.images.Info(layout.ImageKey(m.local))
		if !ok {
			return piece{}, false
		}
		var found *digest.Record
		if rec, ok := in.digests.Value(m.local); ok {
			found = &rec
		}
		return in.local(m.local, info, found), true
	case m.listed != 0:
		return in.listed(m.listed), true
	}
	e, ok := in.entries.Value(m.entry)
	if !ok {
		return piece{}, false
	}
	return in.added(m.entry, e), true
}

// local returns the piece of an image in the image root. rec is its digest record, or
// nil.
func (in *inputs) local(name image.Name, info store.Info, rec *digest.Record) piece {
	format, _ := image.FormatOf(name)
	p := piece{
		member: member{local: name},
		source: Source{Kind: Local, Location: string(name), Name: name},
		name:   name, format: format, size: info.Size, cached: true, hashState: Unhashed,
	}
	if rec != nil && rec.Version.Equal(info.Version) {
		p.sha256, p.hashState, p.since = rec.SHA256, Hashed, rec.Since()
		if len(rec.Publishers) == 0 {
			return p
		}
		known, _ := in.contents.Value(p.sha256)
		_, raw := known.Raw()
		for _, publisher := range rec.Publishers {
			if w := publisher.Warning(name, raw); w != "" {
				p.warnings = append(p.warnings, w)
			}
		}
	} else if j, ok := findJob(in.hashJobs, string(name)); ok {
		switch j.status {
		case job.Queued, job.Running, job.Failed:
			p.hashState = string(j.status)
		}
		if j.status == job.Failed {
			p.warnings = append(p.warnings, "hashing failed: "+j.failure)
		}
	}
	return p
}

// listed returns the piece of the n-th image of the manifest.
func (in *inputs) listed(n int) piece {
	im := &in.manifest.Images[n-1]
	p := piece{
		member: member{listed: n},
		source: Source{Kind: Manifest, Location: im.Src, Name: im.Name, Ref: layout.RefOf(im.Src), SHA256: im.SHA256, SHA512: im.SHA512, SizeBytes: im.SizeBytes},
		name:   im.Name, format: im.Format, sha256: im.SHA256, size: -1, hashState: Unhashed,
	}
	if im.SizeBytes != nil {
		p.size = *im.SizeBytes
	}
	in.learn(&p)
	p.since = time.Time{}
	return p
}

// added returns the piece of an entry.
func (in *inputs) added(ref layout.Ref, e entry.Entry) piece {
	p := piece{
		member: member{entry: ref},
		source: Source{Kind: URL, Location: e.URL, Name: e.Name, Ref: ref, SHA256: e.SHA256, SHA512: e.SHA512, SizeBytes: e.SizeBytes},
		name:   e.Name, format: image.Format(e.Format), sha256: e.SHA256, size: -1, hashState: Unhashed, since: e.Since(),
	}
	if e.SizeBytes != nil {
		p.size = *e.SizeBytes
	}
	if e.Changed != "" {
		p.warnings = append(p.warnings, e.Changed)
	}
	in.learn(&p)
	return p
}

// learn adds the digest and size that a fetch found, if the source publishes no digest.
func (in *inputs) learn(p *piece) {
	if !p.sha256.Valid() {
		p.sha256 = ""
	}
	f, ok := in.fetched.Value(p.source.Ref)
	if ok && p.sha256 == "" {
		p.sha256, p.since = f.SHA256, f.Since()
		if p.size < 0 {
			p.size = f.SizeBytes
		}
	}
	switch {
	case p.sha256 == "":
	case ok && p.sha256 == f.SHA256:
		p.hashState = Hashed
	default:
		p.hashState = Published
	}
}

// row returns the row of pieces that have the same digest, or of one piece. The pieces
// are in the order of their members. It lacks what the content record says, and
// failures to fetch.
func (in *inputs) row(pieces []*piece) Row {
	p := pieces[0]
	r := Row{HashState: p.hashState, Warnings: []string{}}
	if sha := p.sha256; sha != "" {
		ref := sha.Short()
		r.Ref, r.SHA256 = &ref, &sha
		_, r.Blob = in.blobs.Info(sha)
		r.Cached = r.Blob
	}
	for _, p := range pieces {
		r.add(p)
	}
	oldest := slices.Clone(pieces) // oldest first
	slices.SortStableFunc(oldest, func(a, b *piece) int { return a.since.Compare(b.since) })
	for _, p := range oldest {
		r.name(p)
	}
	return r
}

// name adds a name. The first one is the primary name.
func (r *Row) name(p *piece) {
	if len(r.Names) == 0 {
		r.Format = p.format
	}
	if !slices.Contains(r.Names, p.name) {
		r.Names = append(r.Names, p.name)
	}
}

func (r *Row) add(p *piece) {
	r.Sources = append(r.Sources, p.source)
	r.Cached = r.Cached || p.cached
	if r.HashState == Published && (r.Cached || p.hashState == Hashed) {
		r.HashState = Hashed
	}
	r.Warnings = append(r.Warnings, p.warnings...)
	switch {
	case p.size < 0:
	case r.SizeBytes == nil:
		size := p.size
		r.SizeBytes = &size
	case *r.SizeBytes != p.size:
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s %s says %d bytes, the image has %d", p.source.Kind, p.source.Location, p.size, *r.SizeBytes))
	}
}

func findingsOf(known *content.Record) findings {
	f := findings{Inspected: true, Pending: known.Pending(), NoDisk: known.NoDisk() != "", Disk: known.Disk != nil, Packed: known.Kind.Compressed(), QCOW2: known.Kind == content.QCOW2}
	if f.BootKnown = known.Boot != nil; f.BootKnown {
		f.Boot = *known.Boot
	}
	_, f.RawSHA256 = known.Raw()
	return f
}

// head returns the head of the row of pieces.
func (in *inputs) head(pieces []*piece, f findings) *Head {
	r := in.row(pieces)
	h := &Head{Name: r.Names[0], SHA256: r.Digest(), SizeBytes: -1, HashState: r.HashState, Cached: r.Cached, findings: f}
	if h.RawSHA256 == h.SHA256 {
		h.RawSHA256 = h.SHA256 // shares its memory
	}
	if r.SizeBytes != nil {
		h.SizeBytes = *r.SizeBytes
	}
	if h.lower = strings.ToLower(string(h.Name)); h.lower == string(h.Name) {
		h.lower = string(h.Name) // shares its memory
	}
	if first := pieces[0].member; len(pieces) == 1 && first.local != "" {
		if h.text = fold(string(h.Name)); h.text == h.lower {
			h.text = h.lower
		}
	} else {
		h.more = &more{format: r.Format, names: r.Names, kind: r.Sources[0].Kind, location: r.Sources[0].Location}
		var text strings.Builder
		for _, n := range r.Names {
			text.WriteString(string(n) + "\n")
		}
		for _, s := range r.Sources {
			text.WriteString(s.Location + "\n")
		}
		h.text = fold(text.String())
		for _, p := range pieces {
			h.more.members = append(h.more.members, p.member)
		}
	}
	return h
}

// Row returns the row of a head of this snapshot.
func (s *Snapshot) Row(h *Head) *Row {
	members := h.members()
	pieces := make([]*piece, 0, len(members))
	for _, m := range members {
		p, _ := s.in.piece(m) // it exists: the head was made of it
		pieces = append(pieces, &p)
	}
	r := s.in.row(pieces)
	r.Head = h
	s.noteFailures(&r)
	if h.Inspected {
		known, _ := s.in.contents.Value(h.SHA256)
		s.describe(&r, &known)
	}
	return &r
}

// noteFailures adds warnings of failed fetches to a row that is not cached, one for
// each URL: an entry and the manifest may have the same URL.
func (s *Snapshot) noteFailures(r *Row) {
	if r.Cached {
		return
	}
	for _, src := range r.Sources {
		j, ok := findJob(s.in.fetchJobs, string(src.Ref))
		if !ok || j.status != job.Failed {
			continue
		}
		r.FetchFailed = true
		if w := "fetching " + src.Location + " failed: " + j.failure; !slices.Contains(r.Warnings, w) {
			r.Warnings = append(r.Warnings, w)
		}
	}
}

// describe adds the content record to a row.
func (s *Snapshot) describe(r *Row, known *content.Record) {
	r.Known, r.Content, r.VirtualSizeBytes = known, &known.Kind, known.Virtual()
	var sha layout.SHA256
	if r.RawSizeBytes, sha = known.Raw(); sha != "" {
		r.RawSHA256 = &sha
	}
	for _, name := range r.Names {
		raw := ""
		if known.NoDisk() == "" {
			raw = s.rawPath(r.Digest(), name)
		}
		if m := known.Mismatch(name, raw); m != "" {
			r.Warnings = append(r.Warnings, string(name)+" is "+m)
		}
	}
	r.Warnings = append(r.Warnings, known.AllWarnings()...)
}

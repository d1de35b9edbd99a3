package inventory

import (
	"cmp"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/entry"
	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/index"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/metadata"
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
	metadata  index.Items[layout.SHA256, metadata.Record]
	hashJobs  sorted.List[*jobHead]
	fetchJobs sorted.List[*jobHead]
	// contentJobs are those of the kinds in contentJobs.
	contentJobs [len(contentJobs)]sorted.List[*jobHead]
	hidden      []Other
	manifest    *manifest.Manifest // nil: none
	problem     string
	// subscription is that of the last call of Subscribed.
	subscription Subscription
}

// contentJobs are the kinds of jobs whose IDs are digests, and whose failure a row has to
// say.
var contentJobs = [...]struct {
	kind  *job.Kind
	doing string
}{{job.Check, "checking"}, {job.Disk, "making the disk"}}

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
	said      metadata.Source  // what the source says about the image
	words     *metadata.Fields // of the operator, with the URL; nil: none
	// since is the time at which the name became known for these bytes. It is zero for
	// names from the manifest, so that they sort first.
	since time.Time
	// added is the time at which the source became known here; zero if that is unknown.
	added time.Time
}

// pieces returns all pieces in the order of their members.
func (in *inputs) pieces() []*piece {
	pieces := make([]*piece, 0, in.images.Len()+in.entries.Len())
	// Images and digests have the same order.
	digestOf, stop := ascending(in.digests)
	defer stop()
	for key, info := range in.images.All() {
		local, ok := layout.ImageName(key)
		if !ok {
			continue
		}
		rec, _ := digestOf(local)
		p := in.local(local, info, rec)
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

// ascending returns a function that finds values by IDs that ascend from call to call, and
// costs less than [index.Items.Value] then. It returns nil for a value that does not exist
// or cannot be decoded, else the ID in the memory of the index. stop must be called.
func ascending[ID ~string, T any](items index.Items[ID, T]) (find func(ID) (*T, ID), stop func()) {
	next, stop := iter.Pull2(items.Values())
	at, value, more := next()
	return func(id ID) (*T, ID) {
		for more && at < id {
			at, value, more = next()
		}
		if !more || at != id {
			return nil, id
		}
		found := value
		return &found, at
	}, stop
}

// lookUp returns the value with this ID, or nil.
func lookUp[ID ~string, T any](items index.Items[ID, T], id ID) *T {
	if v, ok := items.Value(id); ok {
		return &v
	}
	return nil
}

// piece returns the piece of a member, and false if it does not exist.
func (in *inputs) piece(m member) (piece, bool) {
	switch {
	case m.local != "":
		info, ok := in.images.Info(layout.ImageKey(m.local))
		if !ok {
			return piece{}, false
		}
		return in.local(m.local, info, lookUp(in.digests, m.local)), true
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
		name:   name, format: format, size: info.Size, cached: true, hashState: Unhashed, added: info.LastModified,
	}
	if rec != nil && rec.Version.Equal(info.Version) {
		p.sha256, p.hashState, p.since = rec.SHA256, Hashed, rec.Since()
		p.added = p.since
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
		source: Source{Kind: Manifest, Location: im.Src, Name: im.Name, Ref: layout.RefOf(im.Src), SHA256: im.SHA256, SHA512: im.SHA512, SizeBytes: im.SizeBytes, Title: im.Title},
		name:   im.Name, format: im.Format, sha256: im.SHA256, size: -1, hashState: Unhashed,
	}
	if im.SizeBytes != nil {
		p.size = *im.SizeBytes
	}
	p.said = metadata.Source{From: metadata.Manifest, Fields: &im.Fields}
	in.learn(&p)
	p.since = time.Time{}
	return p
}

// added returns the piece of an entry.
func (in *inputs) added(ref layout.Ref, e entry.Entry) piece {
	p := piece{
		member: member{entry: ref},
		source: Source{Kind: URL, Location: e.URL, Name: e.Name, Ref: ref, SHA256: e.SHA256, SHA512: e.SHA512, SizeBytes: e.SizeBytes},
		name:   e.Name, format: image.Format(e.Format), sha256: e.SHA256, size: -1, hashState: Unhashed, since: e.Since(), added: e.Since(),
	}
	if e.SizeBytes != nil {
		p.size = *e.SizeBytes
	}
	if e.Changed != "" {
		p.warnings = append(p.warnings, e.Changed)
	}
	if e.Words != nil {
		p.words, p.source.Title = &e.Words.Fields, e.Words.Title
	}
	p.said = metadata.Source{From: metadata.Annotation, Fields: e.Metadata}
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
		p.added = cmp.Or(p.added, p.since)
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

// known is what the records of a content say; the zero value if it is not known.
type known struct {
	content *content.Record
	words   *metadata.Record // of the operator
}

// row returns the row of pieces that have the same digest, or of one piece. The pieces
// are in the order of their members. raw is that of [Row.describe].
func (in *inputs) row(pieces []*piece, k known, raw func(image.Name) string) Row {
	p := pieces[0]
	r := Row{HashState: p.hashState, SameDisk: []SameDisk{}, Warnings: []string{}}
	if sha := p.sha256; sha != "" {
		ref := sha.Short()
		r.Ref, r.SHA256 = &ref, &sha
		_, r.Blob = in.blobs.Info(sha)
		r.Cached = r.Blob
	}
	for _, p := range pieces {
		r.add(p)
	}
	ordered := slices.Clone(pieces)
	slices.SortStableFunc(ordered, func(a, b *piece) int { return k.compareNames(a, b) })
	for _, p := range ordered {
		r.name(p)
	}
	in.noteFailures(&r)
	if !r.Format.Image() {
		r.Warnings = append(r.Warnings, noImage(r.Format))
	}
	if k.content != nil {
		r.describe(k.content, raw)
	}
	in.noteContentFailures(&r)
	r.Metadata = metadata.Merge(k.sources(pieces, r.Names)...)
	if k.words != nil && k.words.Name == r.Names[0] {
		r.Metadata.Name = &metadata.Value[image.Name]{Value: r.Names[0], From: metadata.Operator}
	}
	return r
}

// noImage returns the warning of a row of a format that disk images do not have.
func noImage(f image.Format) string {
	return string(f) + " is no format of disk images: the file is not offered for flashing"
}

// compareNames puts the name that the operator chose first, then the one known longest.
func (k known) compareNames(a, b *piece) int {
	if k.words != nil && a.name != b.name {
		switch k.words.Name {
		case a.name:
			return -1
		case b.name:
			return 1
		}
	}
	return a.since.Compare(b.since)
}

// sources returns what all origins say, in their order of precedence.
func (k known) sources(pieces []*piece, names []image.Name) []metadata.Source {
	sources := make([]metadata.Source, 0, 3+len(pieces)+len(names))
	if k.words != nil {
		sources = append(sources, metadata.Source{From: metadata.Operator, Fields: &k.words.Fields})
	}
	for _, p := range pieces {
		sources = append(sources, metadata.Source{From: metadata.Operator, Fields: p.words})
	}
	for _, p := range pieces { // the manifest is before entries
		sources = append(sources, p.said)
	}
	if k.content != nil {
		sources = append(sources, metadata.Source{From: metadata.Inspection, Fields: metadata.FromInside(k.content.Inside)})
	}
	for _, n := range names {
		sources = append(sources, metadata.Source{From: metadata.Name, Fields: metadata.FromName(n)})
	}
	return sources
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
	if !p.added.IsZero() && (r.Added.IsZero() || p.added.Before(r.Added)) {
		r.Added = p.added
	}
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
	f := findings{Inspected: true, Missing: known.Inspectable(), Pending: known.Pending(), NoDisk: known.NoDisk() != "", Disk: known.Disk != nil, Packed: known.Kind.Compressed(), Virtual: known.Kind.Virtual()}
	if known.Boot != nil {
		f.Boot = *known.Boot
	}
	_, f.RawSHA256 = known.Raw()
	return f
}

// head returns the head of the row of pieces.
func (in *inputs) head(pieces []*piece, k known) *Head {
	r := in.row(pieces, k, func(image.Name) string { return "" })
	h := &Head{Name: r.Names[0], SHA256: r.Digest(), SizeBytes: -1, HashState: r.HashState, Cached: r.Cached, added: seconds(r.Added)}
	if k.content != nil {
		h.findings = findingsOf(k.content)
		h.Pending = h.Pending || incus.Missing(k.content, r.Metadata.Architecture.Get()) != nil
	}
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
	h.Attention = slices.ContainsFunc(r.Warnings, func(w string) bool { return w != noImage(r.Format) })
	h.NoDisk = h.NoDisk || !r.Format.Image()
	h.facts = factsOf(&r, h.text)
	return h
}

// seconds returns the Unix time of t, or 0 if t is zero or outside of the range.
func seconds(t time.Time) uint32 {
	if s := t.Unix(); s > 0 && s <= math.MaxUint32 {
		return uint32(s)
	}
	return 0
}

// Row returns the row of a head of this snapshot.
func (s *Snapshot) Row(h *Head) *Row { return s.row(h, s.known(h)) }

// known returns what the records of a head's content say.
func (s *Snapshot) known(h *Head) known {
	k := known{words: lookUp(s.in.metadata, h.SHA256)}
	if h.Inspected {
		k.content = lookUp(s.in.contents, h.SHA256)
	}
	return k
}

// row returns the row of a head of which k is known.
func (s *Snapshot) row(h *Head, k known) *Row {
	members := h.members()
	pieces := make([]*piece, 0, len(members))
	for _, m := range members {
		p, _ := s.in.piece(m) // it exists: the head was made of it
		pieces = append(pieces, &p)
	}
	r := s.in.row(pieces, k, func(name image.Name) string { return s.rawPath(h.SHA256, name) })
	r.Head, r.SameDisk = h, s.sameDisk(h)
	return &r
}

// noteContentFailures adds warnings of failed jobs of [contentJobs] to a row, unless the
// content record says the same: the verdict of a check is the error of its job.
func (in *inputs) noteContentFailures(r *Row) {
	for i, jobs := range in.contentJobs {
		if j, ok := findJob(jobs, string(r.Digest())); ok && j.status == job.Failed && !slices.Contains(r.Warnings, j.failure) {
			r.Warnings = append(r.Warnings, contentJobs[i].doing+" failed: "+j.failure)
		}
	}
}

// noteFailures adds warnings of failed fetches to a row that is not cached, one for
// each URL: an entry and the manifest may have the same URL.
func (in *inputs) noteFailures(r *Row) {
	if r.Cached {
		return
	}
	for _, src := range r.Sources {
		j, ok := findJob(in.fetchJobs, string(src.Ref))
		if !ok || j.status != job.Failed {
			continue
		}
		r.FetchFailed = true
		if w := "fetching " + src.Location + " failed: " + j.failure; !slices.Contains(r.Warnings, w) {
			r.Warnings = append(r.Warnings, w)
		}
	}
}

// describe adds the content record to a row. raw returns the path of /raw for an image of
// this name, or "".
func (r *Row) describe(known *content.Record, raw func(image.Name) string) {
	r.Known, r.Content, r.VirtualSizeBytes = known, &known.Kind, known.Virtual()
	var sha layout.SHA256
	if r.RawSizeBytes, sha = known.Raw(); sha != "" {
		r.RawSHA256 = &sha
	}
	for _, name := range r.Names {
		path := ""
		if known.NoDisk() == "" {
			path = raw(name)
		}
		if m := known.Mismatch(name, path); m != "" {
			r.Warnings = append(r.Warnings, string(name)+" is "+m)
		}
	}
	r.Warnings = append(r.Warnings, known.AllWarnings()...)
}

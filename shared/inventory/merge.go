package inventory

import (
	"cmp"
	"fmt"
	"maps"
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
	"imageroot/shared/store"
)

type inputs struct {
	images        map[store.Key]index.Item[struct{}]
	blobs         map[layout.SHA256]index.Item[struct{}]
	digests       map[image.Name]index.Item[digest.Record]
	entries       map[layout.Ref]index.Item[entry.Entry]
	fetched       map[layout.Ref]index.Item[entry.Fetched]
	contents      map[layout.SHA256]index.Item[content.Record]
	hashJobs      map[string]index.Item[job.Job]
	failedFetches map[layout.Ref]string // errors by ref
	hidden        []Other
	manifest      *manifest.Manifest // nil: none
	problem       string
}

// A piece is one source and what is known about its bytes.
type piece struct {
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
	row   int
}

// merge returns the rows of all pieces. Pieces with the same digest are one row. A
// piece without a digest is a row of its own.
func (in *inputs) merge() *Snapshot {
	pieces := in.localPieces()
	pieces = in.manifestPieces(pieces)
	pieces = in.entryPieces(pieces)
	s := &Snapshot{
		Problem: in.problem, images: in.images, blobs: in.blobs,
		bySHA: map[layout.SHA256]int{}, byName: map[image.Name]int{}, byDisk: map[image.Name][]image.Name{}, byRef: map[layout.Ref]int{},
		Rows: make([]Row, 0, len(pieces)),
	}
	oldest := make([]*piece, 0, len(pieces)) // oldest first
	for i := range pieces {
		p := &pieces[i]
		oldest = append(oldest, p)
		row, ok := s.bySHA[p.sha256]
		if p.sha256 == "" || !ok {
			row = len(s.Rows)
			s.Rows = append(s.Rows, Row{HashState: p.hashState, Warnings: []string{}})
			if p.sha256 != "" {
				s.bySHA[p.sha256] = row
				ref := p.sha256.Short()
				s.Rows[row].Ref, s.Rows[row].SHA256 = &ref, &p.sha256
				_, s.Rows[row].Blob = in.blobs[p.sha256]
				s.Rows[row].Cached = s.Rows[row].Blob
			}
		}
		p.row = row
		s.Rows[row].add(p)
	}
	slices.SortStableFunc(oldest, func(a, b *piece) int { return a.since.Compare(b.since) })
	for _, p := range oldest {
		s.Rows[p.row].name(p)
	}
	for i := range s.Rows {
		s.Rows[i].noteFailures(in.failedFetches)
	}
	slices.SortFunc(s.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(strings.ToLower(string(a.Names[0])), strings.ToLower(string(b.Names[0]))),
			cmp.Compare(a.Names[0], b.Names[0]), cmp.Compare(a.Digest(), b.Digest()),
			cmp.Compare(a.Sources[0].Location, b.Sources[0].Location))
	})
	s.Others = in.others()
	clear(s.bySHA)
	for i := range s.Rows {
		s.index(i)
	}
	for sha, i := range s.bySHA {
		if it, ok := in.contents[sha]; ok {
			s.describe(&s.Rows[i], &it.Value)
		}
	}
	return s
}

func (s *Snapshot) index(i int) {
	r := &s.Rows[i]
	if r.SHA256 != nil {
		s.bySHA[*r.SHA256] = i
	}
	for _, n := range r.Names {
		old, ok := s.byName[n]
		if disk := image.DiskName(n); !ok && disk != n {
			s.byDisk[disk] = append(s.byDisk[disk], n)
		}
		if !ok || !s.Rows[old].hasLocal(n) && (r.hasLocal(n) || r.Cached && !s.Rows[old].Cached) {
			s.byName[n] = i
		}
	}
	for _, src := range r.Sources {
		if src.Ref != "" {
			s.byRef[src.Ref] = i
		}
	}
}

func (r *Row) hasLocal(name image.Name) bool {
	return slices.ContainsFunc(r.Sources, func(s Source) bool { return s.Kind == Local && s.Name == name })
}

// others returns the objects that are not images, sidecars or the manifest.
func (in *inputs) others() []Other {
	list := slices.Clone(in.hidden)
	for key := range in.images {
		_, err := image.ParseName(string(key))
		if _, _, ok := layout.ImageOfSidecar(key); ok || err == nil || key == layout.ManifestKey {
			continue
		}
		list = append(list, Other{string(key), err.Error()})
	}
	slices.SortFunc(list, func(a, b Other) int { return strings.Compare(a.Name, b.Name) })
	return list
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

// noteFailures adds warnings of failed fetches to a row that is not cached, one for
// each URL: an entry and the manifest may have the same URL.
func (r *Row) noteFailures(failed map[layout.Ref]string) {
	if r.Cached {
		return
	}
	for _, s := range r.Sources {
		reason, ok := failed[s.Ref]
		if !ok {
			continue
		}
		r.FetchFailed = true
		if w := "fetching " + s.Location + " failed: " + reason; !slices.Contains(r.Warnings, w) {
			r.Warnings = append(r.Warnings, w)
		}
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
		r.SizeBytes = &p.size
	case *r.SizeBytes != p.size:
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s %s says %d bytes, the image has %d", p.source.Kind, p.source.Location, p.size, *r.SizeBytes))
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
			raw = s.rawPath(r, name)
		}
		if m := known.Mismatch(name, raw); m != "" {
			r.Warnings = append(r.Warnings, string(name)+" is "+m)
		}
	}
	r.Warnings = append(r.Warnings, known.AllWarnings()...)
}

func (in *inputs) localPieces() []piece {
	pieces := make([]piece, 0, len(in.images)+len(in.entries))
	for _, key := range slices.Sorted(maps.Keys(in.images)) {
		it := in.images[key]
		name, ok := layout.ImageName(key)
		if !ok {
			continue
		}
		format, _ := image.FormatOf(name)
		p := piece{
			source: Source{Kind: Local, Location: string(name), Name: name},
			name:   name, format: format, size: it.Info.Size, cached: true, hashState: Unhashed,
		}
		rec, ok := in.digests[name]
		if ok && rec.Value.Version.Equal(it.Info.Version) {
			p.sha256, p.hashState, p.since = rec.Value.SHA256, Hashed, rec.Value.Since()
			known := in.contents[p.sha256].Value
			_, raw := known.Raw()
			for _, publisher := range rec.Value.Publishers {
				if w := publisher.Warning(name, raw); w != "" {
					p.warnings = append(p.warnings, w)
				}
			}
		} else if j, ok := in.hashJobs[string(name)]; ok {
			switch j.Value.Status {
			case job.Queued, job.Running, job.Failed:
				p.hashState = string(j.Value.Status)
			}
			if j.Value.Status == job.Failed {
				p.warnings = append(p.warnings, "hashing failed: "+j.Value.Error)
			}
		}
		pieces = append(pieces, p)
	}
	return pieces
}

func (in *inputs) manifestPieces(pieces []piece) []piece {
	if in.manifest == nil {
		return pieces
	}
	for _, im := range in.manifest.Images {
		p := piece{
			source: Source{Kind: Manifest, Location: im.Src, Name: im.Name, Ref: layout.RefOf(im.Src), SHA256: im.SHA256, SHA512: im.SHA512, SizeBytes: im.SizeBytes},
			name:   im.Name, format: im.Format, sha256: im.SHA256, size: -1, hashState: Unhashed,
		}
		if im.SizeBytes != nil {
			p.size = *im.SizeBytes
		}
		in.learn(&p)
		p.since = time.Time{}
		pieces = append(pieces, p)
	}
	return pieces
}

func (in *inputs) entryPieces(pieces []piece) []piece {
	for _, ref := range slices.Sorted(maps.Keys(in.entries)) {
		e := in.entries[ref].Value
		p := piece{
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
		pieces = append(pieces, p)
	}
	return pieces
}

// learn adds the digest and size that a fetch found, if the source publishes no digest.
func (in *inputs) learn(p *piece) {
	if !p.sha256.Valid() {
		p.sha256 = ""
	}
	f, ok := in.fetched[p.source.Ref]
	if ok && p.sha256 == "" {
		p.sha256, p.since = f.Value.SHA256, f.Value.Since()
		if p.size < 0 {
			p.size = f.Value.SizeBytes
		}
	}
	switch {
	case p.sha256 == "":
	case ok && p.sha256 == f.Value.SHA256:
		p.hashState = Hashed
	default:
		p.hashState = Published
	}
}

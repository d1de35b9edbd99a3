package inventory

import (
	"cmp"
	"iter"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/sorted"
	"imageroot/shared/store"
)

// next returns the snapshot of other inputs. It returns s if nothing has changed. It
// makes only the heads that a change affects, unless the manifest has changed or s is
// nil.
func (s *Snapshot) next(in inputs) *Snapshot {
	if s == nil || s.in.manifest != in.manifest {
		return in.merge()
	}
	images := in.images.Changes(s.in.images)
	changed := !in.blobs.Same(s.in.blobs) || !in.contents.Same(s.in.contents) || !in.entries.Same(s.in.entries) ||
		!in.fetched.Same(s.in.fetched) || !in.digests.Same(s.in.digests) || !in.metadata.Same(s.in.metadata)
	u := update{before: s, in: &in, members: map[member]bool{}, heads: map[*Head]bool{}}
	for _, key := range images {
		if name, ok := layout.ImageName(key); ok {
			u.touch(member{local: name})
		}
	}
	for _, name := range in.digests.Changes(s.in.digests) {
		u.touch(member{local: name})
	}
	for _, id := range changedJobs(in.hashJobs, s.in.hashJobs) {
		changed = true
		u.touch(member{local: image.Name(id)})
	}
	for _, ref := range in.entries.Changes(s.in.entries) {
		u.touch(member{entry: ref})
	}
	for _, ref := range in.fetched.Changes(s.in.fetched) {
		u.touch(member{entry: ref})
		u.dropSourced(ref)
	}
	for _, sha := range in.blobs.Changes(s.in.blobs) {
		u.drop(s.headOf(sha))
	}
	for _, sha := range in.contents.Changes(s.in.contents) {
		u.drop(s.headOf(sha))
	}
	for _, sha := range in.metadata.Changes(s.in.metadata) {
		u.drop(s.headOf(sha))
	}
	for _, ref := range changedJobs(in.fetchJobs, s.in.fetchJobs) {
		changed = true
		u.dropSourced(layout.Ref(ref))
	}
	for i := range contentJobs {
		for _, sha := range changedJobs(in.contentJobs[i], s.in.contentJobs[i]) {
			changed = true
			u.drop(s.headOf(layout.SHA256(sha)))
		}
	}
	if !changed && len(images) == 0 && s.Problem == in.problem && s.in.subscription == in.subscription && slices.Equal(s.in.hidden, in.hidden) {
		return s
	}
	next := &Snapshot{
		Problem: in.problem, StoredBytes: s.StoredBytes, Attention: s.Attention, in: in, objects: s.objects,
		rows: s.rows, bySHA: s.bySHA, byName: s.byName, byDisk: s.byDisk, byRef: s.byRef, byRaw: s.byRaw,
	}
	added := u.made()
	removed := slices.Collect(maps.Keys(u.heads))
	next.replace(removed, added)
	next.orders.follow(&s.orders, removed, added)
	next.others(images)
	return next
}

// changedJobs returns the IDs of the jobs whose status or failure has changed.
func changedJobs(now, before sorted.List[*jobHead]) (ids []string) {
	added, removed := now.Diff(byJobID, before)
	for _, h := range added {
		if old, ok := findJob(before, h.id); !ok || old.status != h.status || old.failure != h.failure {
			ids = append(ids, h.id)
		}
	}
	for _, h := range removed {
		if _, ok := findJob(now, h.id); !ok {
			ids = append(ids, h.id)
		}
	}
	return ids
}

// An update collects what a change affects.
type update struct {
	before  *Snapshot
	in      *inputs
	heads   map[*Head]bool  // of before, which are made again
	members map[member]bool // sources whose pieces are made again
}

// touch marks a source that may have changed, and the row that has it.
func (u *update) touch(m member) {
	u.members[m] = true
	if m.local == "" {
		u.dropSourced(m.entry)
		return
	}
	for l := range under(u.before.byName, string(m.local)) {
		if l.head.hasLocal(m.local) {
			u.drop(l.head)
		}
	}
}

// dropSourced marks the rows that have a source of this ref. An entry and an image of
// the manifest may have the same one, and different digests.
func (u *update) dropSourced(ref layout.Ref) {
	for l := range under(u.before.byRef, string(ref)) {
		u.drop(l.head)
	}
}

// drop marks a row, which may be nil, to be made again.
func (u *update) drop(h *Head) {
	if h == nil || u.heads[h] {
		return
	}
	u.heads[h] = true
	for _, m := range h.members() {
		u.members[m] = true
	}
}

// made returns the heads of all marked sources.
func (u *update) made() []*Head {
	var pieces []*piece
	done := map[member]bool{}
	for len(done) < len(u.members) {
		// A source may now belong to a row that was not marked.
		for m := range u.members {
			if done[m] {
				continue
			}
			done[m] = true
			if p, ok := u.in.piece(m); ok {
				pieces = append(pieces, &p)
				if p.sha256 != "" {
					u.drop(u.before.headOf(p.sha256))
				}
			}
		}
	}
	heads := make([]*Head, 0, len(pieces))
	for group := range groups(pieces) {
		sha := group[0].sha256
		heads = append(heads, u.in.head(group, known{lookUp(u.in.contents, sha), lookUp(u.in.metadata, sha)}))
	}
	return heads
}

// groups yields the pieces of each row, sorted by digest. It reorders pieces.
func groups(pieces []*piece) iter.Seq[[]*piece] {
	slices.SortFunc(pieces, func(a, b *piece) int {
		return cmp.Or(cmp.Compare(a.sha256, b.sha256), compareMembers(a.member, b.member))
	})
	return func(yield func([]*piece) bool) {
		for len(pieces) > 0 {
			n := 1
			for pieces[0].sha256 != "" && n < len(pieces) && pieces[n].sha256 == pieces[0].sha256 {
				n++
			}
			if !yield(pieces[:n]) {
				return
			}
			pieces = pieces[n:]
		}
	}
}

// merge makes a snapshot from nothing.
func (in *inputs) merge() *Snapshot {
	s := &Snapshot{Problem: in.problem, in: *in}
	rows := slices.Collect(groups(in.pieces()))
	contentOf, stop := ascending(in.contents) // in the order of rows
	defer stop()
	wordsOf, stop := ascending(in.metadata)
	defer stop()
	heads := make([]*Head, len(rows))
	const most = 4096 // records that are decoded at once
	for from := 0; from < len(rows); from += most {
		part := rows[from:min(from+most, len(rows))]
		records := make([]known, len(part))
		for i, pieces := range part {
			sha := &pieces[0].sha256
			records[i].words, _ = wordsOf(*sha)
			records[i].content, *sha = contentOf(*sha) // shares its memory
		}
		var wg sync.WaitGroup
		each := max(len(part)/runtime.GOMAXPROCS(0), 100)
		for at := 0; at < len(part); at += each {
			wg.Go(func() {
				for i := at; i < min(at+each, len(part)); i++ {
					heads[from+i] = in.head(part[i], records[i])
				}
			})
		}
		wg.Wait()
	}
	s.replace(nil, heads)
	keys := make([]store.Key, 0)
	for key := range in.images.All() {
		if _, ok := layout.ImageName(key); !ok {
			keys = append(keys, key)
		}
	}
	s.others(keys)
	return s
}

// replace removes heads from the lists and adds others.
func (s *Snapshot) replace(removed, added []*Head) {
	for _, h := range removed {
		s.count(h, -1)
	}
	for _, h := range added {
		s.count(h, 1)
	}
	var wg sync.WaitGroup
	for _, l := range []struct {
		list   *sorted.List[labelled]
		labels func(*Head) []labelled
	}{{&s.byName, (*Head).labelNames}, {&s.byDisk, (*Head).labelDisks}, {&s.byRef, s.labelRefs}} {
		all := func(heads []*Head) (all []labelled) {
			for _, h := range heads {
				all = append(all, l.labels(h)...)
			}
			return all
		}
		wg.Go(func() { *l.list = l.list.With(byLabel, all(removed), all(added)) })
	}
	hashed := func(heads []*Head) []*Head {
		return slices.DeleteFunc(slices.Clone(heads), func(h *Head) bool { return h.SHA256 == "" })
	}
	wg.Go(func() { s.bySHA = s.bySHA.With(bySHA256, hashed(removed), hashed(added)) })
	unlike := func(heads []*Head) []*Head {
		return slices.DeleteFunc(hashed(heads), func(h *Head) bool { return h.RawSHA256 == "" || h.RawSHA256 == h.SHA256 })
	}
	wg.Go(func() { s.byRaw = s.byRaw.With(byRawSHA256, unlike(removed), unlike(added)) })
	wg.Go(func() { s.rows = s.rows.With(byRowName, slices.Clone(removed), slices.Clone(added)) })
	wg.Wait()
}

func (s *Snapshot) count(h *Head, sign int64) {
	if h.Cached && h.SizeBytes > 0 {
		s.StoredBytes += sign * h.SizeBytes
	}
	if h.Attention {
		s.Attention += int(sign)
	}
}

func (h *Head) labelNames() (all []labelled) {
	for i, n := range h.Names() {
		all = append(all, labelled{string(n), h, i})
	}
	return all
}

func (h *Head) labelDisks() (all []labelled) {
	for i, n := range h.Names() {
		if disk := image.DiskName(n); disk != n {
			all = append(all, labelled{string(disk), h, i})
		}
	}
	return all
}

func (s *Snapshot) labelRefs(h *Head) (all []labelled) {
	for i, m := range h.members() {
		switch {
		case m.entry != "":
			all = append(all, labelled{string(m.entry), h, i})
		case m.listed != 0:
			all = append(all, labelled{string(layout.RefOf(s.in.manifest.Images[m.listed-1].Src)), h, i})
		}
	}
	return all
}

// others updates the objects that are not images. keys are those that may have changed.
func (s *Snapshot) others(keys []store.Key) {
	byName := func(a, b Other) int { return strings.Compare(a.Name, b.Name) }
	if len(keys) > 0 {
		stale := map[string]bool{}
		var found []Other
		for _, key := range keys {
			stale[string(key)] = true
			if o, ok := s.other(key); ok {
				found = append(found, o)
			}
		}
		kept := slices.DeleteFunc(slices.Clone(s.objects), func(o Other) bool { return stale[o.Name] })
		s.objects = append(kept, found...)
		slices.SortFunc(s.objects, byName)
	}
	s.Others = slices.Concat(s.in.hidden, s.objects)
	slices.SortStableFunc(s.Others, byName)
}

// other returns the object of this key if it exists and is no image, sidecar, block
// map or the manifest.
func (s *Snapshot) other(key store.Key) (Other, bool) {
	if _, ok := s.in.images.Info(key); !ok {
		return Other{}, false
	}
	_, err := image.ParseName(string(key))
	if _, _, ok := layout.ImageOfSidecar(key); ok || err == nil || key == layout.ManifestKey || layout.ImagesOfBmap(key) != nil {
		return Other{}, false
	}
	return Other{string(key), err.Error()}, true
}

package index

import (
	"strings"

	"imageroot/shared/store"
)

// A change is what happened to a key.
type change struct {
	place
	// before is the ETag of the content of a record that the change replaced or
	// removed; "" for a creation, and unknown if it is not known. It says nothing of
	// other objects.
	before  string
	gone    bool          // the key was deleted
	version store.Version // if it is gone, LastModified is when that was known
	data    string        // of a record
}

// unknown is the ETag of no content.
const unknown = "?"

// after returns the version that the key has after the change, nil for none.
func (c *change) after() *store.Version {
	if c.gone {
		return nil
	}
	return &c.version
}

// tagETag returns the ETag of the content that a tag of store.Records identifies.
func tagETag(tag string) string { return strings.Trim(tag, `"`) }

// A quiet is a run of changes that were not journalled: from the ETag that others
// know to the last one.
type quiet struct{ from, to string }

// wrote notes that this process has written a record. The next content follows the
// one with the ETag before.
func (ix *Index) wrote(key store.Key, before string, v store.Version, data []byte) {
	p := place{catalogRoot, key}
	s := ix.section(p)
	if s == nil {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	c := change{place: p, before: before, version: v, data: string(data)}
	it := s.table[key]
	isQuiet := it.exists() && it.version.ETag == before && ix.cfg.Quiet(key, []byte(it.data), data)
	if ix.keeps && ix.table.apply(s, c, true) == doubt {
		ix.doubt(p, question{expected: []change{c}})
	}
	if q, ok := ix.quiet[p]; ok && q.to == before {
		c.before = q.from
	}
	delete(ix.quiet, p)
	if isQuiet && len(ix.quiet) < maxQuiet {
		ix.quiet[p] = quiet{c.before, v.ETag}
		return
	}
	ix.tell(c)
}

// maxQuiet bounds the runs of quiet changes. More are journalled.
const maxQuiet = 10_000

// tell has a change written to the journal. A change that follows one that waits
// replaces it. The caller holds mu.
func (ix *Index) tell(c change) {
	if n := len(ix.pending); n > 0 {
		last := &ix.pending[n-1]
		if last.place == c.place && !last.gone && !c.gone && last.version.ETag == c.before {
			c.before = last.before
			*last = c
			return
		}
	}
	ix.pending = append(ix.pending, c)
}

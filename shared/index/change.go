package index

import (
	"strings"

	"imageroot/shared/store"
)

// A change is one creation, replacement or deletion of a key.
type change struct {
	place
	// before is the ETag of the record that the change replaced or removed: "" for a
	// creation, unknown if it is not known. It has no meaning for objects that are not
	// records.
	before  string
	gone    bool          // the key was deleted
	version store.Version // if gone, LastModified is when the deletion was seen
	data    string        // of a record
}

// unknown is no object's ETag.
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

// A quiet is a run of changes that the journal omits. from is the last ETag in the
// journal, to the current one.
type quiet struct{ from, to string }

// wrote notes that this process has replaced the record whose ETag was before.
func (ix *Index) wrote(key store.Key, before string, v store.Version, data []byte) {
	p := place{catalogRoot, key}
	s := ix.section(p)
	if s == nil {
		return
	}
	ix.mu.Lock()
	defer ix.mu.Unlock()
	c := change{place: p, before: before, version: v, data: string(data)}
	it := s.get(key)
	isQuiet := it.exists() && it.etag == before && ix.cfg.Quiet(key, it.data.bytes(), data)
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
	ix.toJournal(c)
}

// maxQuiet bounds the number of runs. Further quiet changes are journalled.
const maxQuiet = 10_000

// toJournal queues a change for the journal. It merges the change with the last one in
// the queue if it follows that one. The caller holds mu.
func (ix *Index) toJournal(c change) {
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

package inventory

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"imageroot/shared/image"
	"imageroot/shared/sorted"
)

// Limits of [Query.Limit].
const (
	DefaultLimit = 100
	MaxLimit     = 500
)

// A sortField is a field that a [Query] can sort by. value returns the value of a head.
type sortField struct {
	name  string
	value func(h *Head) (text string, number int64)
}

var sortFields = []sortField{
	{"name", func(h *Head) (string, int64) { return h.lower, 0 }},
	{"size", func(h *Head) (string, int64) { return "", h.SizeBytes }},
	{"format", func(h *Head) (string, int64) { return string(h.Format()), 0 }},
	{"sha256", func(h *Head) (string, int64) { return string(h.SHA256), 0 }},
	{"state", func(h *Head) (string, int64) { return h.HashState, 0 }},
	{"added", func(h *Head) (string, int64) { return "", int64(h.added) }},
}

// Sorts returns the fields that a [Query] can sort by. A "-" before a field reverses
// the order.
func Sorts() []string {
	names := make([]string, 0, len(sortFields))
	for _, f := range sortFields {
		names = append(names, f.name)
	}
	return names
}

// A Query selects rows of a snapshot.
type Query struct {
	// Text is words separated by spaces. A row matches if each word is part of a name,
	// of a source's location, of the metadata, of the kind of the content or of a
	// warning, or a prefix of the row's SHA-256 or of its disk's. Case and Unicode normal
	// form are ignored.
	Text string
	Filter
	Sort   string // one of [Sorts], or "" for name
	Limit  int    // 1 to MaxLimit; 0: DefaultLimit
	Cursor string // Page.Next of the previous page; "": the first page
}

// A Page is the result of a [Query].
type Page struct {
	Rows  []*Row
	Total int    // the number of rows on all pages
	Next  string // the cursor of the next page, "" on the last
}

// A QueryError is the error of an invalid query. Reason is a sentence for users.
type QueryError struct{ Reason string }

func (e *QueryError) Error() string { return e.Reason }

// cursor identifies the last row of a page, so that rows added or removed between two
// pages do not shift the next one.
type cursor struct {
	Sort string `json:"s"`
	Key  key    `json:"k"`
}

// key is the place of a row: the value of the sorted field, then name, digest and source.
type key struct {
	Text   string     `json:"t,omitempty"`
	Number int64      `json:"n,omitempty"`
	Name   image.Name `json:"a"`
	ID     string     `json:"i"`
}

func (f sortField) key(h *Head) key {
	text, number := f.value(h)
	return key{text, number, h.Name, id(h)}
}

func id(h *Head) string {
	kind, location := h.Source()
	return string(h.SHA256) + " " + kind + " " + location
}

// order puts heads with equal values in the order of rows.
func (f sortField) order(a, b *Head) int {
	if c := f.compare(a, b); c != 0 {
		return c
	}
	return compareHeads(a, b)
}

// compare compares the values of two heads.
func (f sortField) compare(a, b *Head) int {
	text, number := f.value(b)
	return f.compareTo(a, text, number)
}

func (f sortField) compareTo(h *Head, text string, number int64) int {
	t, n := f.value(h)
	return cmp.Or(strings.Compare(t, text), cmp.Compare(n, number))
}

// isAfter reports whether h is after k among the heads with the same value.
func isAfter(h *Head, k key) bool {
	if h.Name != k.Name {
		return h.Name > k.Name
	}
	return id(h) > k.ID
}

// orders are the lists of heads that are sorted by other fields than the name. Each is
// made when it is needed first, and kept from then on.
type orders struct {
	mu    sync.Mutex
	lists map[string]sorted.List[*Head] // by the name of the field
}

// by returns the heads sorted by a field.
func (s *Snapshot) by(f sortField) sorted.List[*Head] {
	if f.name == "name" {
		return s.rows
	}
	s.orders.mu.Lock()
	defer s.orders.mu.Unlock()
	if list, ok := s.orders.lists[f.name]; ok {
		return list
	}
	if s.orders.lists == nil {
		s.orders.lists = map[string]sorted.List[*Head]{}
	}
	list := sorted.List[*Head]{}.With(f.order, nil, slices.Collect(s.rows.All()))
	s.orders.lists[f.name] = list
	return list
}

// follow makes the lists that before has.
func (o *orders) follow(before *orders, removed, added []*Head) {
	before.mu.Lock()
	lists := maps.Clone(before.lists)
	before.mu.Unlock()
	for _, f := range sortFields {
		if list, ok := lists[f.name]; ok {
			lists[f.name] = list.With(f.order, slices.Clone(removed), slices.Clone(added))
		}
	}
	o.lists = lists
}

// inOrderOf yields the heads in the order of a query, from the value of after on, or
// all if that is nil. In reverse, heads with equal values stay in the order of rows.
func inOrderOf(list sorted.List[*Head], f sortField, reverse bool, after *key) iter.Seq[*Head] {
	compare := func(h *Head) int {
		if after == nil {
			return 0
		}
		return f.compareTo(h, after.Text, after.Number)
	}
	if !reverse {
		return list.From(compare)
	}
	return func(yield func(*Head) bool) {
		var equal []*Head
		flush := func() bool {
			for _, h := range slices.Backward(equal) {
				if !yield(h) {
					return false
				}
			}
			equal = equal[:0]
			return true
		}
		for h := range list.Backward(compare) {
			if len(equal) > 0 && f.compare(equal[0], h) != 0 && !flush() {
				return
			}
			equal = append(equal, h)
		}
		flush()
	}
}

// Query returns a page of rows. If the query is invalid, the error is a [*QueryError].
func (s *Snapshot) Query(q Query) (Page, error) {
	by, reverse := strings.CutPrefix(cmp.Or(q.Sort, "name"), "-")
	field := slices.IndexFunc(sortFields, func(f sortField) bool { return f.name == by })
	if field < 0 {
		return Page{}, &QueryError{fmt.Sprintf("cannot sort by %.40q: use one of %s, or one with - before it", q.Sort, strings.Join(Sorts(), ", "))}
	}
	if q.Limit < 0 || q.Limit > MaxLimit {
		return Page{}, &QueryError{fmt.Sprintf("the limit must be from 1 to %d", MaxLimit)}
	}
	limit := cmp.Or(q.Limit, DefaultLimit)
	var after *key
	if q.Cursor != "" {
		c, err := parseCursor(q.Cursor)
		if err != nil || c.Sort != cmp.Or(q.Sort, "name") {
			return Page{}, &QueryError{"the cursor is not one of this query's: begin without"}
		}
		after = &c.Key
	}
	words := strings.Fields(fold(q.Text))
	tests, err := q.tests()
	if err != nil {
		return Page{}, err
	}
	all := len(words)+len(tests) == 0
	list, f := s.by(sortFields[field]), sortFields[field]
	var p Page
	from := after
	if all {
		p.Total = s.Len()
	} else {
		from = nil // all matches count
	}
	var last *Head
	for h := range inOrderOf(list, f, reverse, from) {
		if !all {
			if !h.matches(words, tests) {
				continue
			}
			p.Total++
		}
		if after != nil {
			c := f.compareTo(h, after.Text, after.Number)
			if reverse {
				c = -c
			}
			if c < 0 || c == 0 && !isAfter(h, *after) {
				continue
			}
		}
		if len(p.Rows) < limit {
			p.Rows = append(p.Rows, s.Row(h))
			last = h
			continue
		}
		if p.Next == "" {
			data, err := json.Marshal(cursor{cmp.Or(q.Sort, "name"), f.key(last)})
			if err != nil {
				return Page{}, err
			}
			p.Next = base64.RawURLEncoding.EncodeToString(data)
		}
		if all {
			break
		}
	}
	return p, nil
}

func parseCursor(s string) (c cursor, err error) {
	data, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return c, err
	}
	return c, json.Unmarshal(data, &c)
}

// matches reports whether a row has all words, which are in lower case, and passes all
// tests.
func (h *Head) matches(words []string, tests []test) bool {
	f := h.facts.Value()
	for _, t := range tests {
		if !t(h, f) {
			return false
		}
	}
	for _, w := range words {
		if !strings.Contains(h.text, w) && !strings.Contains(f.text, w) && !strings.HasPrefix(string(h.SHA256), w) && !strings.HasPrefix(string(h.RawSHA256), w) {
			return false
		}
	}
	return true
}

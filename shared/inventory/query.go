package inventory

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/text/unicode/norm"

	"imageroot/shared/image"
)

// Limits of [Query.Limit].
const (
	DefaultLimit = 100
	MaxLimit     = 500
)

// A sortField is a field that a [Query] can sort by. set sets Text or Number of a row's
// key to its value.
type sortField struct {
	name string
	set  func(k *key, r *Row)
}

var sortFields = []sortField{
	{"name", func(k *key, r *Row) { k.Text = strings.ToLower(string(r.Names[0])) }},
	{"size", func(k *key, r *Row) {
		k.Number = -1
		if r.SizeBytes != nil {
			k.Number = *r.SizeBytes
		}
	}},
	{"format", func(k *key, r *Row) { k.Text = string(r.Format) }},
	{"sha256", func(k *key, r *Row) { k.Text = string(r.Digest()) }},
	{"state", func(k *key, r *Row) { k.Text = r.HashState }},
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
	// Text is words separated by spaces. A row matches if each word is part of a name
	// or of a source's location, or a prefix of the row's SHA-256 or of its disk's.
	// Case and Unicode normal form are ignored.
	Text   string
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

// key orders rows by the sorted field, then by name, digest and source.
type key struct {
	Text   string     `json:"t,omitempty"`
	Number int64      `json:"n,omitempty"`
	Name   image.Name `json:"a"`
	ID     string     `json:"i"`
}

func keyOf(r *Row, by sortField) key {
	k := key{Name: r.Names[0], ID: string(r.Digest()) + " " + r.Sources[0].Kind + " " + r.Sources[0].Location}
	by.set(&k, r)
	return k
}

func (k key) compare(l key, reverse bool) int {
	c := cmp.Or(cmp.Compare(k.Text, l.Text), cmp.Compare(k.Number, l.Number))
	if reverse {
		c = -c
	}
	return cmp.Or(c, cmp.Compare(k.Name, l.Name), cmp.Compare(k.ID, l.ID))
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
	words := strings.Fields(strings.ToLower(norm.NFC.String(q.Text)))
	type keyed struct {
		key
		row *Row
	}
	found := make([]keyed, 0, len(s.Rows))
	for i := range s.Rows {
		if r := &s.Rows[i]; s.matches(i, words) {
			found = append(found, keyed{keyOf(r, sortFields[field]), r})
		}
	}
	order := func(a, b keyed) int { return a.compare(b.key, reverse) }
	if !slices.IsSortedFunc(found, order) {
		slices.SortFunc(found, order)
	}
	p := Page{Total: len(found)}
	start := 0
	if after != nil {
		i, at := slices.BinarySearchFunc(found, *after, func(e keyed, t key) int { return e.compare(t, reverse) })
		if start = i; at {
			start++
		}
	}
	rest := found[start:]
	if len(rest) > limit {
		rest = rest[:limit]
		data, err := json.Marshal(cursor{cmp.Or(q.Sort, "name"), rest[limit-1].key})
		if err != nil {
			return Page{}, err
		}
		p.Next = base64.RawURLEncoding.EncodeToString(data)
	}
	for _, e := range rest {
		p.Rows = append(p.Rows, e.row)
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

func (s *Snapshot) matches(i int, words []string) bool {
	for _, w := range words {
		r := &s.Rows[i]
		raw := r.RawSHA256 != nil && strings.HasPrefix(string(*r.RawSHA256), w)
		if !raw && !strings.Contains(s.text(i), w) && !strings.HasPrefix(string(r.Digest()), w) {
			return false
		}
	}
	return true
}

// text returns the text that a search matches, in lower case. It is computed once for
// each snapshot.
func (s *Snapshot) text(i int) string {
	s.textOnce.Do(func() {
		s.texts = make([]string, len(s.Rows))
		for i := range s.Rows {
			var b strings.Builder
			for _, n := range s.Rows[i].Names {
				b.WriteString(string(n) + "\n")
			}
			for _, src := range s.Rows[i].Sources {
				b.WriteString(src.Location + "\n")
			}
			s.texts[i] = strings.ToLower(norm.NFC.String(b.String()))
		}
	})
	return s.texts[i]
}

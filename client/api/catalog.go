package api

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"imageroot/client/exit"
	"imageroot/shared/image"
	"imageroot/shared/visible"
)

// A Row is an image of the catalog: CatalogRow of docs/openapi.yaml. What is null there is
// empty or nil here.
type Row struct {
	Ref              string            `json:"ref"`
	SHA256           string            `json:"sha256"`
	Names            []string          `json:"names"` // the primary name first
	Format           string            `json:"format"`
	SizeBytes        *int64            `json:"size_bytes"`
	Sources          []Source          `json:"sources"`
	Cached           bool              `json:"cached"`
	HashState        string            `json:"hash_state"`
	Content          string            `json:"content"`
	VirtualSizeBytes *int64            `json:"virtual_size_bytes"`
	RawSizeBytes     *int64            `json:"raw_size_bytes"`
	RawSHA256        string            `json:"raw_sha256"`
	SameDisk         []Same            `json:"same_disk"`
	Metadata         map[string]Stated `json:"metadata"`
	Warnings         []string          `json:"warnings"`

	// Only [Client.Details] has these.
	Inside     *Inside     `json:"inside"` // nil if the server has not looked yet
	Check      *Check      `json:"check"`  // nil if the server has not read it whole
	Publishers []Publisher `json:"publishers"`
	Served     []Delivery  `json:"served"` // the newest first

	JSON json.RawMessage `json:"-"` // the row as the server sent it
}

// Inside is what the server found in the disk of an image.
type Inside struct {
	Table      string `json:"table"`
	Partitions []struct {
		Number     int    `json:"number"`
		Type       string `json:"type"`
		Label      string `json:"label"`
		SizeBytes  int64  `json:"size_bytes"`
		Filesystem string `json:"filesystem"`
		FSLabel    string `json:"fs_label"`
	} `json:"partitions"`
	Boot []struct {
		Kind string `json:"kind"`
		Arch string `json:"arch"`
	} `json:"boot"`
	CloudInit *bool    `json:"cloud_init"`
	Unknown   []string `json:"unknown"`
}

// Same is another image with the same disk.
type Same struct {
	Name   string `json:"name"`
	SHA256 string `json:"sha256"`
}

// A Check is the result of reading an image whole.
type Check struct {
	Verdict string    `json:"verdict"`
	Reason  string    `json:"reason"`
	At      time.Time `json:"at"`
}

// A Delivery says who got an image, or the disk in it.
type Delivery struct {
	To    string    `json:"to"` // an IP address
	What  string    `json:"what"`
	At    time.Time `json:"at"`
	Token string    `json:"token"` // the name of the client's, or ""
	Link  bool      `json:"link"`  // got a URL of the bytes, and may have used it
}

// A Publisher is what a source says of the digest of its bytes.
type Publisher struct {
	List      string `json:"list"`
	Algorithm string `json:"algorithm"`
	Match     *bool  `json:"match"` // nil: not compared
	At        string `json:"at"`
	Error     string `json:"error"`
}

// A Source is where the bytes of an image are: kind local, manifest or url.
type Source struct {
	Kind     string `json:"kind"`
	Location string `json:"location"`
}

// Stated is a value of the metadata, and who states it.
type Stated struct {
	Value any    `json:"value"`
	From  string `json:"from"`
}

// Name returns the primary name.
func (r *Row) Name() string {
	if len(r.Names) == 0 {
		return ""
	}
	return r.Names[0]
}

// Text returns a value of the metadata as text, or "" if it is not known.
func (r *Row) Text(field string) string {
	switch v := r.Metadata[field].Value.(type) {
	case nil:
		return ""
	case string:
		return v
	case []any:
		words := make([]string, len(v))
		for i := range v {
			words[i] = fmt.Sprint(v[i])
		}
		return strings.Join(words, ", ")
	case map[string]any:
		var words []string
		for _, k := range slices.Sorted(maps.Keys(v)) {
			words = append(words, fmt.Sprintf("%s=%v", k, v[k]))
		}
		return strings.Join(words, " ")
	default:
		return fmt.Sprint(v)
	}
}

// HasName reports whether name is one of the image's names, in any Unicode normal form.
func (r *Row) HasName(name string) bool {
	return slices.ContainsFunc(r.Names, func(n string) bool { return SameName(n, name) })
}

// SameName reports whether two names differ at most in Unicode's normal form.
func SameName(a, b string) bool {
	return slices.Contains(image.Spellings(image.Name(a)), image.Name(b))
}

// Decode replaces the row by that in a document of the server's.
func (r *Row) Decode(doc json.RawMessage) error {
	*r = Row{JSON: doc}
	return json.Unmarshal(doc, r)
}

// Local reports whether the image root has the image under name.
func (r *Row) Local(name string) bool {
	return slices.ContainsFunc(r.Sources, func(s Source) bool {
		return s.Kind == "local" && SameName(s.Location, name)
	})
}

// Stored returns the image that the image root has under name, or nil if there is none.
func (c *Client) Stored(ctx context.Context, name string) (*Row, error) {
	for r, err := range c.Catalog(ctx, url.Values{"q": {name}}) {
		if err != nil {
			return nil, err
		}
		if r.Local(name) {
			return r, nil
		}
	}
	return nil, nil
}

// Catalog iterates over the rows that a query of GET /catalog selects. It needs the operator.
func (c *Client) Catalog(ctx context.Context, query url.Values) iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		q := maps.Clone(query)
		if q == nil {
			q = url.Values{}
		}
		q.Set("limit", "500")
		for {
			var page struct {
				Images []json.RawMessage `json:"images"`
				Next   string            `json:"next"`
			}
			if err := c.JSON(ctx, http.MethodGet, "/catalog", q, nil, &page); err != nil {
				yield(nil, err)
				return
			}
			for _, raw := range page.Images {
				r := new(Row)
				if err := r.Decode(raw); err != nil {
					yield(nil, fmt.Errorf("%s did not answer as imageroot does: %w", c.URL(), err))
					return
				}
				if !yield(r, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Set("cursor", page.Next)
		}
	}
}

// Details returns all that the server knows of the bytes with a SHA-256.
func (c *Client) Details(ctx context.Context, sha256 string) (*Row, error) {
	var doc json.RawMessage
	if err := c.JSON(ctx, http.MethodGet, "/catalog/images/"+sha256, nil, nil, &doc); err != nil {
		return nil, err
	}
	r := new(Row)
	return r, r.Decode(doc)
}

// minPrefix is the least number of digits that select an image by the beginning of its SHA-256.
const minPrefix = 4

// IsPrefix reports whether s may be the beginning of a SHA-256 by which to find an image.
func IsPrefix(s string) bool {
	return len(s) >= minPrefix && len(s) <= 64 && strings.Trim(strings.ToLower(s), "0123456789abcdef") == ""
}

// Find returns the image with this name, SHA-256, or beginning of a SHA-256, which must be
// that of one image only. A name takes precedence. It needs the operator.
func (c *Client) Find(ctx context.Context, key string) (*Row, error) {
	var named, begun []*Row
	for r, err := range c.Catalog(ctx, url.Values{"q": {key}}) {
		switch {
		case err != nil:
			return nil, err
		case r.HasName(key):
			named = append(named, r)
		case IsPrefix(key) && strings.HasPrefix(r.SHA256, strings.ToLower(key)):
			begun = append(begun, r)
		}
	}
	if len(named) == 0 {
		named = begun
	}
	switch len(named) {
	case 0:
		return nil, &Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("%s has no image %q (imageroot ls lists the images)", c.URL(), visible.Text(key))}
	case 1:
		return named[0], nil
	}
	var which strings.Builder
	for i, r := range named {
		if i == 10 {
			fmt.Fprintf(&which, "\n  and %d more", len(named)-i)
			break
		}
		fmt.Fprintf(&which, "\n  %-12s  %s", visible.Line(r.Ref), visible.Line(r.Name()))
	}
	return nil, exit.With(exit.Usage, fmt.Errorf("%q is several images; give more of the SHA-256 of one:%s", visible.Text(key), which.String()))
}

package catalog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/disk"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/metadata"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/served"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// A Described is all that is known about the bytes with one SHA-256.
type Described struct {
	*inventory.Row
	Inside     *disk.Inside          `json:"inside"`
	Check      *content.Check        `json:"check"`
	Publishers []inventory.Publisher `json:"publishers"`
	// Served are the last deliveries, the newest first.
	Served []served.Delivery `json:"served"`
	// Operator are the words of the operator, which a PATCH changes.
	Operator metadata.Words `json:"operator"`

	tag string // entity tag of Operator
}

// unsaid is the entity tag of words that were never said.
const unsaid = `"none"`

func tagOf(r *metadata.Record) string {
	if r.Nonce == "" {
		return unsaid
	}
	return `"` + r.Nonce + `"`
}

// describe answers GET /catalog/images/{sha256}.
func (f *Function) describe(w http.ResponseWriter, r *http.Request) error {
	d, err := f.Describe(r.Context(), r.PathValue("sha256"))
	if err != nil {
		return err
	}
	w.Header().Set("ETag", d.tag)
	return web.JSON(w, http.StatusOK, d)
}

// Describe returns what is known about the bytes with this SHA-256. It returns a problem if
// the catalog does not have them.
func (f *Function) Describe(ctx context.Context, sha256 string) (*Described, error) {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	sha, _ := layout.ParseSHA256(strings.ToLower(sha256))
	row, ok := s.BySHA256(sha)
	if sha == "" || !ok {
		return nil, problem.New(problem.NotFound, "the catalog has no image with this SHA-256")
	}
	words, _, err := record.Read[metadata.Record](ctx, f.Catalog, layout.MetadataKey(sha))
	if err != nil && !errors.Is(err, store.ErrNotFound) && !errors.Is(err, record.ErrNewer) {
		return nil, err
	}
	deliveries, err := f.Served.List(ctx, sha)
	if err != nil {
		return nil, err
	}
	d := &Described{Row: row, Served: deliveries, Publishers: s.Publishers(row), Operator: words.Words, tag: tagOf(&words)}
	if row.Known != nil {
		d.Inside, d.Check = row.Known.Inside, row.Known.Check
	}
	return d, nil
}

// patch answers PATCH /catalog/images/{sha256}.
func (f *Function) patch(w http.ResponseWriter, r *http.Request) error {
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if kind == "application/merge-patch+json" { // RFC 7396
		r.Header.Set("Content-Type", "application/json")
	}
	var patch map[string]any
	if err := web.Decode(w, r, &patch); err != nil {
		return err
	}
	if patch == nil {
		return problem.New(problem.Malformed, "the body must be a JSON object of the fields to change")
	}
	d, err := f.Describe(r.Context(), r.PathValue("sha256"))
	if err != nil {
		return err
	}
	if kind == "application/x-www-form-urlencoded" {
		fromForm(patch, d.Operator)
	}
	if err := f.change(r, d, patch); err != nil {
		return err
	}
	if f.CheckPending != nil {
		if err := f.CheckPending(r.Context(), d.Digest()); err != nil {
			f.Log.Warn("the check of an image is left to the next reconciliation", "sha256", d.Digest(), "error", err)
		}
	}
	if d, err = f.Describe(r.Context(), r.PathValue("sha256")); err != nil {
		return err
	}
	w.Header().Set("ETag", d.tag)
	return web.Answer(w, r, http.StatusOK, d, string(d.Names[0])+" was changed")
}

// fromForm makes a merge patch of the fields of a form, which are strings: an empty one
// removes the field, devices are separated by commas, and labels are KEY=VALUE, one a line,
// instead of all that there are.
func fromForm(patch map[string]any, now metadata.Words) {
	for name, value := range patch {
		text, _ := value.(string)
		text = strings.TrimSpace(strings.ReplaceAll(text, "\r\n", "\n"))
		switch {
		case text == "" && name != "labels":
			patch[name] = nil
		case name == "devices":
			devices := []any{}
			for d := range strings.SplitSeq(text, ",") {
				if d = strings.TrimSpace(d); d != "" {
					devices = append(devices, d)
				}
			}
			patch[name] = devices
		case name == "labels":
			labels := map[string]any{}
			for key := range now.Labels {
				labels[key] = nil
			}
			for line := range strings.Lines(text) {
				if key, value, _ := strings.Cut(strings.TrimSpace(line), "="); key != "" {
					labels[strings.TrimSpace(key)] = strings.TrimSpace(value)
				}
			}
			patch[name] = labels
		default:
			patch[name] = text
		}
	}
}

// change changes the words of the operator, and writes an event.
func (f *Function) change(r *http.Request, d *Described, patch map[string]any) error {
	var changed bool
	_, _, err := record.Change(r.Context(), f.Catalog, layout.MetadataKey(d.Digest()), func(rec *metadata.Record, _ bool) error {
		if want := r.Header.Get("If-Match"); want != "" && want != "*" && !slices.Contains(tags(want), tagOf(rec)) {
			return problem.New(problem.Precondition, "the image was described anew since the request's If-Match: read it again")
		}
		next, err := rec.Words.Patch(patch)
		if e, ok := errors.AsType[*metadata.Error](err); ok {
			return problem.New(problem.Malformed, e.Error())
		}
		if err != nil {
			return err
		}
		if next.Name != "" && next.Name != rec.Name && !slices.Contains(d.Names, next.Name) {
			return problem.Newf(problem.Invalid, "the image has no name %.300q: it has %s", next.Name, list(d.Names))
		}
		if changed = !reflect.DeepEqual(next, rec.Words); !changed {
			return record.ErrKeep
		}
		rec.SHA256, rec.Words, rec.ChangedAt = d.Digest(), next, f.Now().UTC()
		return nil
	})
	if err != nil || !changed {
		return err
	}
	fields := slices.Sorted(maps.Keys(patch))
	f.Activity.ByOperator(r, activity.ImageDescribed, string(d.Names[0]), fmt.Sprintf("changed %s of %s", strings.Join(fields, ", "), d.Names[0]),
		map[string]any{"sha256": d.Digest(), "fields": fields})
	return nil
}

// tags returns the entity tags in If-Match (RFC 9110 §13.1.1).
func tags(field string) []string {
	var all []string
	for t := range strings.SplitSeq(field, ",") {
		all = append(all, strings.TrimSpace(t))
	}
	return all
}

// list returns names for a sentence, at most five.
func list[T ~string](names []T) string {
	const most = 5
	var all []string
	for _, n := range names[:min(len(names), most)] {
		all = append(all, fmt.Sprintf("%.300q", n))
	}
	if len(names) > most {
		all = append(all, "...")
	}
	return strings.Join(all, ", ")
}

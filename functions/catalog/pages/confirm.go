package pages

import (
	"context"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/web"
	"imageroot/templates"
)

// confirm answers GET /ui/images/confirm: the question before something is deleted
// or replaced. If that no longer exists, confirm answers 204, or redirects a plain
// form to the images.
func (p *Pages) confirm(w http.ResponseWriter, r *http.Request) error {
	what, key := r.URL.Query().Get("what"), r.URL.Query().Get("key")
	c, err := p.question(r.Context(), what, key)
	if err != nil {
		return err
	}
	if c == nil {
		if r.Header.Get("HX-Request") != "" || !web.WantsPage(r) {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		http.Redirect(w, r, imagesPath, http.StatusSeeOther)
		return nil
	}
	c.Frame = p.frame(w, r, c.Question, "images")
	c.Back = pageOr(web.Back(r))
	after := c.Back
	if strings.HasPrefix(after, imagesPath+"/") { // the page of what may be gone then
		after = imagesPath
	}
	c.Action = addBack(c.Action, after)
	return p.show(w, r, http.StatusOK, *c)
}

// addBack returns action, the URL of a form, with the page to return to; see
// [web.Back].
func addBack(action, page string) string {
	separator := "?"
	if strings.Contains(action, "?") {
		separator = "&"
	}
	return action + separator + url.Values{"_back": {page}}.Encode()
}

// deleteImage returns the URL that deletes an image of the image root.
func deleteImage(name image.Name) string {
	return "/images/" + url.PathEscape(string(name)) + "?_method=DELETE"
}

// deleteEntry returns the URL that deletes the entry of a source.
func deleteEntry(src string) string {
	return "/catalog/entries?" + url.Values{"_method": {"DELETE"}, "src": {src}}.Encode()
}

// question returns the question about key, or nil if key does not exist.
func (p *Pages) question(ctx context.Context, what, key string) (*templates.Confirm, error) {
	s, err := p.Inventory.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	name := image.Name(key)
	switch what {
	case "image":
		if _, ok := s.Image(name); !ok {
			return nil, nil
		}
		c := &templates.Confirm{
			Question: "Delete " + key + "?", Text: "The object is removed from the image root. This cannot be undone.",
			Action: deleteImage(name), Button: "Delete", Done: key + " was deleted.",
		}
		if row, ok := s.ByName(name); ok {
			c.Facts = facts(row, name)
			if len(row.Sources) > 1 {
				c.Text = "The object is removed from the image root. The image stays in the catalog, from its other sources."
			}
		}
		return c, nil
	case "replace":
		old, ok := s.Spelled(name)
		if !ok || !name.Valid() {
			return nil, nil // nothing to replace, or the upload is refused
		}
		if old != name {
			return &templates.Confirm{
				Question: "Upload another " + key + "?", Text: "The image root has an image whose name looks the same, but is composed of other characters (Unicode NFC and NFD). The upload does not replace it: both will be listed.",
				Action: imagesPath, Button: "Upload", Choice: true,
			}, nil
		}
		c := &templates.Confirm{
			Question: "Replace " + key + "?", Text: "The image root has an image of this name. The upload replaces it when it is complete.",
			Action: imagesPath, Button: "Replace", Choice: true,
		}
		if row, ok := s.ByName(name); ok {
			c.Facts = facts(row, name)
		}
		return c, nil
	case "beside":
		return &templates.Confirm{
			Question: "Upload another " + key + "?",
			Text:     "Another upload of this name is in progress, in this browser or elsewhere. Both can run. If the other one completes first, this one replaces its image.",
			Action:   imagesPath, Button: "Upload this one too", Choice: true,
		}, nil
	case "entry":
		row, ok := s.ByEntry(layout.RefOf(key))
		if !ok {
			return nil, nil
		}
		c := &templates.Confirm{
			Question: "Delete the entry " + string(row.Names[0]) + "?",
			Text:     "The URL is removed from the catalog. Bytes that were fetched from it are dropped unless another source names them.",
			Facts:    append([]templates.Detail{{Name: "URL", Value: key}}, facts(row, row.Names[0])...),
			Action:   deleteEntry(key),
			Button:   "Delete", Done: "The entry " + string(row.Names[0]) + " was deleted.",
		}
		return c, nil
	case "cache":
		row, ok := s.BySHA256(layout.SHA256(key))
		if !ok || !row.Blob {
			return nil, nil
		}
		return &templates.Confirm{
			Question: "Drop the fetched bytes of " + string(row.Names[0]) + "?",
			Text:     "The bytes are removed from this server. The entry stays, and the bytes can be fetched again while the source has them.",
			Facts:    facts(row, row.Names[0]), Action: "/catalog/cache/" + key + "?_method=DELETE", Button: "Drop",
			Done: "The fetched bytes of " + string(row.Names[0]) + " were dropped.",
		}, nil
	}
	return nil, problem.New(problem.Invalid, "this page asks about an image, an entry or a cache")
}

// facts returns the facts about a row for a question about one of its names.
func facts(row *inventory.Row, name image.Name) []templates.Detail {
	var list []templates.Detail
	if row.SizeBytes != nil {
		s := sizeOf(*row.SizeBytes)
		list = append(list, templates.Detail{Name: "Size", Value: s.Text + " (" + s.Exact + ")"})
	}
	if row.SHA256 != nil {
		list = append(list, templates.Detail{Name: "SHA-256", Value: string(*row.SHA256)})
	}
	if others := slices.DeleteFunc(slices.Clone(row.Names), func(n image.Name) bool { return n == name }); len(others) > 0 {
		list = append(list, templates.Detail{Name: "Also", Value: image.Join(others)})
	}
	return list
}

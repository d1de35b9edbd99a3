package catalog

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"net/http"
	"strings"
	"unicode/utf8"

	"imageroot/shared/activity"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/problem"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// maxManifestBody lets replaceManifest read one byte more than a manifest may have.
const maxManifestBody = manifest.MaxBytes + 1

// encodeManifest writes GET /catalog.toml: the whole catalog as a manifest for another
// server.
func encodeManifest(to io.Writer, s *inventory.Snapshot, base string) error {
	return manifest.Encode(to, exported(s, base))
}

// exported yields the images of s for a manifest.
func exported(s *inventory.Snapshot, base string) iter.Seq[manifest.Image] {
	return func(yield func(manifest.Image) bool) {
		used := map[string]bool{} // names in a manifest differ by more than case
		for h := range s.Heads() {
			src, ok := publicURL(base, h)
			if !ok {
				continue
			}
			name := h.Name
			if used[strings.ToLower(string(name))] {
				if h.SHA256 == "" {
					continue // a client could not distinguish the two
				}
				name = apart(h.SHA256.Short(), name)
			}
			used[strings.ToLower(string(name))] = true
			im := manifest.Image{Name: name, Src: src, SHA256: h.SHA256, Format: h.Format(), Fields: s.Said(h)}
			if h.SizeBytes >= 0 {
				im.SizeBytes = &h.SizeBytes
			}
			if !h.Cached {
				for _, source := range s.Row(h).Sources {
					if source.Location == src {
						im.SHA512 = source.SHA512
					}
				}
			}
			if !yield(im) {
				return
			}
		}
	}
}

// apart returns a unique name for a row whose name another row has: ref, a hyphen
// and the name. It cuts the beginning of a name that is too long for that.
func apart(ref string, name image.Name) image.Name {
	keep := image.MaxNameBytes - len(ref) - len("-")
	for len(name) > keep {
		_, n := utf8.DecodeRuneInString(string(name))
		name = name[n:]
	}
	return image.Name(ref) + "-" + name
}

func (f *Function) replaceManifest(w http.ResponseWriter, r *http.Request) error {
	if err := f.subscribed(); err != nil {
		return err
	}
	data, err := io.ReadAll(r.Body)
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok || len(data) > manifest.MaxBytes {
		return problem.Newf(problem.TooLarge, "the manifest is larger than %d bytes", manifest.MaxBytes)
	}
	if err != nil {
		return problem.Wrap(problem.Invalid, "the manifest did not arrive whole: send it again", err)
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return problem.New(problem.Malformed, err.Error())
	}
	if _, err := f.Images.Put(r.Context(), layout.ManifestKey, bytes.NewReader(data), int64(len(data))); err != nil && !errors.Is(err, store.ErrChanged) { // replaced again since
		return err
	}
	f.Activity.ByOperator(r, activity.ManifestReplaced, string(layout.ManifestKey), "replaced the manifest", map[string]any{"images": len(m.Images)})
	warnings := []string{}
	for _, w := range m.Warnings {
		warnings = append(warnings, w.String())
	}
	return web.Answer(w, r, http.StatusOK, map[string]any{"images": len(m.Images), "warnings": warnings}, "the manifest was replaced")
}

func (f *Function) removeManifest(w http.ResponseWriter, r *http.Request) error {
	if err := f.subscribed(); err != nil {
		return err
	}
	if _, err := f.Images.Head(r.Context(), layout.ManifestKey); notFound(err) {
		return problem.New(problem.NotFound, "there is no manifest")
	} else if err != nil {
		return err
	}
	if err := f.Images.Delete(r.Context(), layout.ManifestKey); err != nil {
		return err
	}
	f.Activity.ByOperator(r, activity.ManifestReplaced, string(layout.ManifestKey), "removed the manifest", map[string]any{"images": 0})
	return web.Answer(w, r, http.StatusNoContent, nil, "the manifest was removed")
}

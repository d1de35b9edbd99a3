package catalog

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"imageroot/functions/catalog/feed"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// feedRoutes returns the routes of the table of feeds.
func (f *Function) feedRoutes() (routes []web.Route) {
	for _, d := range feed.All {
		routes = append(routes, web.Route{Pattern: "GET " + d.Path, Access: web.Open, Handle: f.Document(d.ContentType, func(to io.Writer, s *inventory.Snapshot, base string) error {
			return d.Encode(to, s, feed.Server{URL: base, ImagePath: imagePath, RawPath: f.RawPath})
		})})
	}
	return routes
}

// imagePath returns the path of the bytes of a row.
func imagePath(h *inventory.Head) string { return ImagePath(h.SHA256, h.Name) }

// checksumEnd is what a client adds to the URL of a file to get its checksum file.
const checksumEnd = ".sha256"

// checksumOf returns the key of the image and the name of the file for whose checksum file
// r asks. A name that no file can have would forge lines.
func checksumOf(r *http.Request) (key, name string, ok bool) {
	key, name = r.PathValue("key"), r.PathValue("name")
	if name == "" {
		key, ok = strings.CutSuffix(key, checksumEnd)
		name = key
	} else {
		name, ok = strings.CutSuffix(name, checksumEnd)
	}
	return key, name, ok && image.CheckSegment(name) == nil
}

// imageChecksum answers with the checksum file of an image.
func (f *Function) imageChecksum(w http.ResponseWriter, r *http.Request, key, name string) error {
	return f.withObject(r.Context(), key, f.find, func(c *object) error {
		if err := c.Unchanged(r.Context()); err != nil {
			return err
		}
		if c.sha256 == "" {
			return problem.New(problem.Unavailable, "the image is not hashed yet: try again")
		}
		return sendText(w, r, feed.Checksum(c.sha256, name))
	})
}

// rawChecksum answers with the checksum file of the disk in an image.
func (f *Function) rawChecksum(w http.ResponseWriter, r *http.Request, key, name string) error {
	return f.withObject(r.Context(), key, f.findDisk, func(c *object) error {
		if err := c.Unchanged(r.Context()); err != nil {
			return err
		}
		if c.known != nil {
			if no := c.known.NoDisk(); no != "" {
				return problem.New(problem.Malformed, no)
			}
		}
		if c.rawSHA256 == "" {
			return problem.New(problem.Unavailable, "the SHA-256 of the disk in the image is known once the image was checked: try again")
		}
		return sendText(w, r, feed.Checksum(c.rawSHA256, name))
	})
}

// sendText answers with a short text that may change.
func sendText(w http.ResponseWriter, r *http.Request, text string) error {
	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = io.WriteString(w, text) // the client may have disconnected
	}
	return nil
}

package catalog

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"

	"imageroot/functions/catalog/feed"
	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// A Signer is a key that signs. Package signing has the implementation.
type Signer = feed.Signer

// feedRoutes returns the routes of the table of feeds.
func (f *Function) feedRoutes() (routes []web.Route) {
	for _, d := range feed.All {
		routes = append(routes, web.Route{Pattern: "GET " + d.Path, Access: web.Open, Handle: f.Document(d.ContentType, func(to io.Writer, s *inventory.Snapshot, base string) error {
			return d.Encode(to, s, f.feedServer(base))
		})})
	}
	return append(routes,
		web.Route{Pattern: "GET /key.gpg", Access: web.Open, Handle: f.publicKey("application/pgp-keys", feed.Signer.OpenPGP)},
		web.Route{Pattern: "GET /minisign.pub", Access: web.Open, Handle: f.publicKey("text/plain; charset=utf-8", feed.Signer.Minisign)},
		web.Route{Pattern: "GET " + feed.TarballRoute, Access: web.Open, Handle: f.tarball},
	)
}

func (f *Function) feedServer(base string) feed.Server {
	return feed.Server{URL: base, ImagePath: imagePath, RawPath: f.RawPath, SigningKey: f.SigningKey, Signatures: &f.signatures, Now: f.Now()}
}

// below returns the feed that r asks for below the URL of a content, as readers do that look
// for a list beside the file.
func below(r *http.Request) (feed.Feed, bool) {
	if _, ok := layout.ParseSHA256(strings.ToLower(r.PathValue("key"))); !ok || r.PathValue("name") == "" {
		return feed.Feed{}, false
	}
	root, _, _ := strings.Cut(r.URL.Path[1:], "/")
	for _, d := range feed.All {
		if d.Path == "/"+root+"/"+r.PathValue("name") {
			return d, true
		}
	}
	return feed.Feed{}, false
}

// sendBelow answers with the feed d about one content.
func (f *Function) sendBelow(w http.ResponseWriter, r *http.Request, d feed.Feed) error {
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	row, ok := s.BySHA256(layout.SHA256(strings.ToLower(r.PathValue("key"))))
	if !ok {
		return noSHA256()
	}
	on := f.feedServer(web.BaseURL(r))
	on.Only, on.Signatures = row.Head, new(feed.Signatures) // those of the lists of all images stay
	var text bytes.Buffer
	if err := d.Encode(&text, s, on); err != nil {
		return err
	}
	send(w, r, d.ContentType, text.Bytes())
	return nil
}

// publicKey returns a handler that answers with a public key of this server.
func (f *Function) publicKey(contentType string, of func(feed.Signer) ([]byte, error)) web.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		on := f.feedServer("")
		key, err := on.Key()
		if err != nil {
			return err
		}
		public, err := of(key)
		if err != nil {
			return err
		}
		send(w, r, contentType, public)
		return nil
	}
}

// tarball answers with a tarball of metadata for Incus.
func (f *Function) tarball(w http.ResponseWriter, r *http.Request) error {
	t := incus.Find(layout.SHA256(r.PathValue("sha256")))
	if t == nil {
		return problem.New(problem.NotFound, "no image has a tarball of metadata with this SHA-256")
	}
	send(w, r, "application/x-tar", t.Bytes)
	return nil
}

// imagePath returns the path of the bytes of a row.
func imagePath(h *inventory.Head) string { return ImagePath(h.SHA256, h.Name) }

// checksumEnd and bmapEnd are what a client adds to the URL of a file to get its checksum
// file and its block map.
const checksumEnd, bmapEnd = ".sha256", ".bmap"

// beside returns the key of the image and the name of the file beside which r asks for the
// file that ends in end. A name that no file can have would forge lines.
func beside(r *http.Request, end string) (key, name string, ok bool) {
	key, name = r.PathValue("key"), r.PathValue("name")
	if name == "" {
		key, ok = strings.CutSuffix(key, end)
		name = key
	} else {
		name, ok = strings.CutSuffix(name, end)
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
		return f.sendChecksum(w, r, c.sha256, name, f.isNamed(r.Context(), name, f.find, func(other *object) bool { return other.sha256 == c.sha256 }))
	})
}

// rawChecksum answers with the checksum file of the disk in an image.
func (f *Function) rawChecksum(w http.ResponseWriter, r *http.Request, key, name string) error {
	return f.withObject(r.Context(), key, f.findDisk, func(c *object) error {
		if err := c.readable(r.Context()); err != nil {
			return err
		}
		if c.rawSHA256 == "" {
			return problem.New(problem.Unavailable, "the SHA-256 of the disk in the image is known once the image was checked: try again")
		}
		return f.sendChecksum(w, r, c.rawSHA256, name, f.isNamed(r.Context(), name, f.findDisk, func(other *object) bool { return other.rawSHA256 == c.rawSHA256 }))
	})
}

// isNamed reports whether what find finds by a name is the same.
func (f *Function) isNamed(ctx context.Context, name string, find func(*inventory.Snapshot, string) (*object, error), same func(*object) bool) bool {
	s, err := f.Inventory.Snapshot(ctx)
	if err != nil {
		return false
	}
	c, err := find(s, name)
	return err == nil && same(c)
}

// sendChecksum answers with the checksum file of one file. It is signed inside if there is
// a key: systemd-pull 252 looks for the signature there. A client can ask for the file under
// any name: no signature says that it has one that is not its own.
func (f *Function) sendChecksum(w http.ResponseWriter, r *http.Request, sha256 layout.SHA256, name string, own bool) error {
	text := feed.Checksum(sha256, name)
	if own && f.SigningKey != nil {
		key, err := f.SigningKey()
		if err != nil {
			return err
		}
		if key != nil {
			if text, err = key.ClearSign(text, f.Now()); err != nil {
				return err
			}
		}
	}
	return sendText(w, r, text)
}

// sendText answers with a short text that may change.
func sendText(w http.ResponseWriter, r *http.Request, text string) error {
	send(w, r, "text/plain; charset=utf-8", []byte(text))
	return nil
}

func send(w http.ResponseWriter, r *http.Request, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("Cache-Control", "no-cache")
	w.WriteHeader(http.StatusOK)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may have disconnected
	}
}

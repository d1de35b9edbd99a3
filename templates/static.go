package templates

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"io/fs"
	"net/http"
	"path"
	"sync"
	"time"

	"imageroot/shared/web"
)

// An asset is a file that pages load.
type asset struct {
	data   []byte
	zipped []byte // nil if gzip makes it no smaller
	hash   string
	typ    string
}

// types are the media types of assets by their suffix; others are plain text.
var types = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml",
}

var assets = sync.OnceValue(readAssets)

func readAssets() map[string]*asset {
	all := map[string]*asset{}
	err := fs.WalkDir(static, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(static, name)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(data)
		a := &asset{data: data, hash: hex.EncodeToString(sum[:8]), typ: cmp.Or(types[path.Ext(name)], "text/plain; charset=utf-8")}
		var b bytes.Buffer
		z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // a level that exists
		_, _ = z.Write(data)                                  // to memory
		_ = z.Close()
		if b.Len() < len(data) {
			a.zipped = b.Bytes()
		}
		all[name] = a
		return nil
	})
	if err != nil {
		panic(err) // embedded files can be read
	}
	return all
}

// staticURL returns the URL of a static file. Each content has another URL, so that
// browsers may cache it for ever.
func staticURL(name string) (string, error) {
	a, ok := assets()[name]
	if !ok {
		return "", &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return "/static/" + name + "?v=" + a.hash, nil
}

// ServeStatic answers with the static file of that name, or reports false.
func ServeStatic(w http.ResponseWriter, r *http.Request, name string) bool {
	a, ok := assets()[name]
	if !ok {
		return false
	}
	h := w.Header()
	h.Set("Content-Type", a.typ)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Cache-Control", "no-cache")
	if r.URL.Query().Get("v") == a.hash {
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	data, etag := a.data, a.hash
	if a.zipped != nil && web.Coding(r, "gzip") != "" {
		data, etag = a.zipped, a.hash+"-gzip"
		h.Set("Content-Encoding", "gzip")
	}
	h.Set("ETag", `"`+etag+`"`)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	return true
}

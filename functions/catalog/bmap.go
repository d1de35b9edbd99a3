package catalog

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"imageroot/shared/bmap"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/store"
)

// UnpacksByName reports whether a client that decompresses a file by the suffix of its name
// gets the disk in an image out of its bytes.
func UnpacksByName(known *content.Record, name string) bool {
	kind := content.Kind("")
	for _, packing := range image.Compressions {
		if strings.HasSuffix(name, packing.Suffix) {
			kind = content.Kind(packing.Name)
		}
	}
	return known.Kind == kind && known.Inner == "" || kind == "" && known.Kind.Raw()
}

// blockMap answers with the block map of the disk in an image. served reports whether bmaptool
// takes the bytes beside it for that disk.
func (f *Function) blockMap(w http.ResponseWriter, r *http.Request, key string, find func(*inventory.Snapshot, string) (*object, error), served func(*object) bool) error {
	return f.withObject(r.Context(), key, find, func(c *object) error {
		if err := c.readable(r.Context()); err != nil {
			return err
		}
		if c.known != nil && !served(c) {
			return problem.New(problem.NotFound, "bmaptool does not read the disk in this file; it does from /raw/"+string(image.DiskName(c.name)))
		}
		body, info, err := f.Catalog.Get(r.Context(), layout.BmapKey(c.sha256), store.All, "")
		switch {
		case err == nil:
		case !errors.Is(err, store.ErrNotFound):
			return err
		case c.rawSHA256 == "":
			return problem.New(problem.Unavailable, "the block map of the disk in the image is known once the image was checked: try again")
		case c.rawSize == 0:
			return problem.New(problem.NotFound, "the disk is empty")
		default:
			// It has no holes, so the digest of the disk is that of the only range.
			text := bmap.All(c.rawSize, string(c.rawSHA256)).Encode()
			body, info.Size = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		}
		defer body.Close()
		w.Header().Set("Content-Type", "application/xml")
		w.Header().Set("Content-Length", strconv.FormatInt(info.Size, 10))
		w.Header().Set("Cache-Control", "no-cache")
		w.WriteHeader(http.StatusOK)
		if r.Method != http.MethodHead {
			_, _ = io.Copy(w, body) // one that ends early is shorter than its length
		}
		return nil
	})
}

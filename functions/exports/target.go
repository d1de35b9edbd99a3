package exports

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strings"

	"imageroot/shared/export"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// target returns the image that a URL names, as an export has it: that of a source, which
// is added if the catalog has none, or an image of this server.
func (f *Function) target(r *http.Request, src string) (export.Record, error) {
	key, here := ownKey(r, src)
	if !here {
		ref, err := f.Add(r, src)
		return export.Record{Ref: ref}, err
	}
	if origin, ok := strings.CutPrefix(key, originKey); ok {
		return f.target(r, origin)
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return export.Record{}, err
	}
	row := find(s, key)
	switch {
	case row == nil || !row.Cached:
		return export.Record{}, problem.New(problem.Invalid, "this server has no image at "+src)
	case row.Digest() == "":
		return export.Record{}, problem.New(problem.Conflict, string(row.Names[0])+" is not hashed yet: try again when it is")
	}
	return export.Record{SHA256: row.Digest()}, nil
}

// originKey precedes the URL in a key of ownKey that names a source.
const originKey = "\x00"

// ownKey returns the key of the image at src, as the routes /images and /raw have it, if
// src is a URL of this server. A URL of the form /b/BASE64URL/NAME, with which caches such
// as withcache name an upstream one, is returned as that after originKey.
func ownKey(r *http.Request, src string) (key string, ok bool) {
	u, err := url.Parse(src)
	base, berr := url.Parse(web.BaseURL(r))
	if err != nil || berr != nil || u.Host == "" || !strings.EqualFold(u.Host, base.Host) && !strings.EqualFold(u.Host, r.Host) {
		return "", false
	}
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if segments[0] == "withcache" && len(segments) > 2 && segments[1] == "b" {
		origin, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(segments[2], "="))
		return originKey + string(origin), err == nil
	}
	if len(segments) < 2 || segments[0] != "images" && segments[0] != "raw" {
		return "", true
	}
	key, err = url.PathUnescape(segments[1])
	return key, err == nil
}

// find returns the row of a key of /images or /raw, or nil.
func find(s *inventory.Snapshot, key string) *inventory.Row {
	if sha256, ok := layout.ParseSHA256(strings.ToLower(key)); ok {
		row, _ := s.BySHA256(sha256)
		return row
	}
	name, err := image.ParseName(key)
	if err != nil {
		return nil
	}
	if names := s.ByDisk(name); len(names) == 1 {
		name = names[0]
	}
	row, _ := s.ByName(name)
	return row
}

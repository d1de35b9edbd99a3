package upload

import (
	"cmp"
	"context"
	"net/http"
	"strconv"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/store"
)

const (
	// directPart and directParts replace PartBytes and S3's limit of parts for
	// uploads whose parts go directly to the store: each has a URL of a kilobyte or
	// two, and all must fit into one answer.
	directPart  = 64 << 20
	directParts = 1500
)

// partSizeFor returns the size of the parts of an upload.
func (f *Function) partSizeFor(size int64) int64 {
	if f.Links == nil {
		return store.PartSize(size, cmp.Or(f.PartBytes, 16<<20), store.MaxParts)
	}
	return store.PartSize(size, directPart, directParts)
}

// linked sets the URLs of the missing parts.
func (f *Function) linked(ctx context.Context, p *pending, v view) (view, error) {
	if f.Links == nil {
		return v, nil
	}
	for i := range v.Parts {
		if v.Parts[i].Done {
			continue
		}
		url, err := f.Links.PresignPart(ctx, layout.ImageKey(p.Name), p.UploadID, v.Parts[i].Number)
		if err != nil {
			return v, err
		}
		v.Parts[i].URL = url
	}
	return v, nil
}

// direct answers PUT /images/{name} if bytes go directly to the store: it redirects
// the client to the store. A hash job computes the digest.
func (f *Function) direct(w http.ResponseWriter, r *http.Request, name image.Name, want expected, create bool) error {
	if declared(r) > store.MaxPutBytes {
		return problem.New(problem.TooLarge, "an image of more than 5 GiB cannot be sent in one piece here: POST /uploads with its name and size gives URLs to send it to in parts")
	}
	sha256 := ""
	if want != (expected{}) {
		if r.Header.Get("X-Amz-Checksum-Sha256") == "" {
			return problem.New(problem.NotImplemented, "the store compares the digest here, and knows it as x-amz-checksum-sha256 (in base64): send that")
		}
		sha256 = string(want.SHA256)
	}
	url, err := f.Links.PresignPut(r.Context(), layout.ImageKey(name), sha256, create)
	if err != nil {
		return err
	}
	return redirect(w, url)
}

// declared returns the length that the request declares for its body. A client that
// only wants the URL to send an image to sends no body.
func declared(r *http.Request) int64 {
	n, err := strconv.ParseInt(r.Header.Get("Content-Length"), 10, 64)
	if err != nil {
		return r.ContentLength
	}
	return max(n, r.ContentLength)
}

func redirect(w http.ResponseWriter, url string) error {
	w.Header().Set("Location", url)
	w.WriteHeader(http.StatusTemporaryRedirect)
	return nil
}

// directPut answers PUT /uploads/{id}/parts/{number} like [Function.direct].
func (f *Function) directPut(w http.ResponseWriter, r *http.Request, p *pending, n int32) error {
	switch want, err := parseExpected(r); {
	case err != nil:
		return err
	case want != (expected{}):
		return problem.New(problem.NotImplemented, "the digest of a part is not verified here: leave it out, and send the etags of the parts when completing")
	}
	url, err := f.Links.PresignPart(r.Context(), layout.ImageKey(p.Name), p.UploadID, n)
	if err != nil {
		return err
	}
	return redirect(w, url)
}

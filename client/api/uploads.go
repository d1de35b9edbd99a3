package api

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
)

// States of a resumable upload.
const (
	Uploading = "uploading"
	Completed = "completed"
	Failed    = "failed"
)

// An Upload is a resumable upload: Upload of docs/openapi.yaml. What is null there is empty here.
type Upload struct {
	ID        string `json:"id"`
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	PartSize  int64  `json:"part_size"`
	Status    string `json:"status"`
	SHA256    string `json:"sha256"`
	Error     string `json:"error"`
	// Hashed is the SHA-256 of the first bytes that have arrived, or nil.
	Hashed *struct {
		SizeBytes int64  `json:"size_bytes"`
		SHA256    string `json:"sha256"`
	} `json:"hashed"`
	Parts []Part `json:"parts"` // only while the status is Uploading, and not in lists
}

// A Part is a part of an upload.
type Part struct {
	Number    int    `json:"number"`
	URL       string `json:"url"`
	SizeBytes int64  `json:"size_bytes"`
	Done      bool   `json:"done"`
	ETag      string `json:"etag"`
}

// Direct reports whether the part goes to the store of the server rather than to the server.
func (p *Part) Direct() bool { return strings.Contains(p.URL, "://") }

// BeginUpload begins a resumable upload. If replace is false, it replaces no image: the error
// has the status 412 if there is one of this name.
func (c *Client) BeginUpload(ctx context.Context, name string, size int64, replace bool) (u Upload, err error) {
	if err := c.send(ctx, Request{Method: http.MethodPost, Path: "/uploads", Header: Condition(replace)}, map[string]any{"name": name, "size_bytes": size}, &u); err != nil {
		return u, err
	}
	return u, u.check()
}

// check returns an error if the parts are not those of the upload, which a caller would
// index and divide by.
func (u *Upload) check() error {
	ok := u.SizeBytes > 0 && u.PartSize > 0 && (len(u.Parts) == 0 || int64(len(u.Parts)) == (u.SizeBytes+u.PartSize-1)/u.PartSize)
	for i, p := range u.Parts {
		at := int64(i) * u.PartSize
		ok = ok && p.Number == i+1 && p.SizeBytes == min(u.PartSize, u.SizeBytes-at)
	}
	if !ok {
		return errors.New("the server has sent an upload whose parts are not those of its size")
	}
	return nil
}

// Upload returns the state of an upload.
func (c *Client) Upload(ctx context.Context, id string) (u Upload, err error) {
	if err := c.JSON(ctx, http.MethodGet, uploadPath(id), nil, nil, &u); err != nil {
		return u, err
	}
	return u, u.check()
}

// Uploads returns those that have not ended, without their parts.
func (c *Client) Uploads(ctx context.Context) ([]Upload, error) {
	var list struct {
		Uploads []Upload `json:"uploads"`
	}
	return list.Uploads, c.JSON(ctx, http.MethodGet, "/uploads", nil, nil, &list)
}

// CompleteUpload has the parts with these ETags assembled, which [Client.Upload] then tells
// of. Unless sha256 is empty, the image must have it. replace is as for
// [Client.BeginUpload], and need not be the same.
func (c *Client) CompleteUpload(ctx context.Context, id string, etags []string, sha256 string, replace bool) error {
	body := map[string]any{"etags": etags, "replace": replace}
	if sha256 != "" {
		body["sha256"] = sha256
	}
	return c.send(ctx, Request{Method: http.MethodPost, Path: uploadPath(id) + "/complete", Header: Condition(replace)}, body, nil)
}

// Condition returns the header of an upload that replaces an image, or none.
func Condition(replace bool) http.Header {
	if replace {
		return http.Header{}
	}
	return http.Header{"If-None-Match": {"*"}}
}

// AbandonUpload removes an upload and its parts.
func (c *Client) AbandonUpload(ctx context.Context, id string) error {
	return c.JSON(ctx, http.MethodDelete, uploadPath(id), nil, nil, nil)
}

func uploadPath(id string) string { return "/uploads/" + url.PathEscape(id) }

package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"imageroot/shared/store"
)

// put uploads over HTTP, with or without a length.
func (c *client) put(ctx context.Context) string {
	name, content, n := c.image(), c.content(), c.runner()
	size, what := content.size, "PUT"
	if c.rng.IntN(4) == 0 {
		size, what = -1, "PUT in chunks"
	}
	w := c.model.begin(name, what, n.number, content)
	c.trace("client %d: %s %q %.12s %d bytes to runner %d", c.number, what, name, content.sum, content.size, n.number)
	res, data, err := c.request(ctx, n, http.MethodPut, imagePath(name), content.reader(0), size)
	status := 0
	if err == nil {
		status = res.StatusCode
	}
	how := c.settle(w, status, err)
	c.trace("client %d: %s %q %.12s: %s %.200s", c.number, what, name, content.sum, how, data)
	if how != "done" {
		return how
	}
	var u struct {
		SHA256 string `json:"sha256"`
		Size   int64  `json:"size_bytes"`
	}
	if err := json.Unmarshal(data, &u); err != nil || u.SHA256 != content.sum || u.Size != content.size {
		c.violate("PUT %q of %s (%d bytes) was answered with %s", name, content.sum, content.size, data)
	}
	return how
}

// putCut drops the connection within the body. The image must not change.
func (c *client) putCut(ctx context.Context) string {
	name, content, n := c.image(), c.content(), c.runner()
	size := content.size
	if c.rng.IntN(3) == 0 {
		size = -1
	}
	sent := c.rng.Int64N(content.size)
	c.trace("client %d: cut PUT %q %.12s after %d of %d bytes", c.number, name, content.sum, sent, content.size)
	res, data, err := c.request(ctx, n, http.MethodPut, imagePath(name), cut(content.reader(0), sent), size)
	if err == nil && res.StatusCode < 300 {
		c.violate("PUT %q that was cut off was answered with %s %s", name, res.Status, data)
	}
	return "cut"
}

func (c *client) putWrongDigest(ctx context.Context) string {
	name, content, n := c.image(), c.content(), c.runner()
	wrong, _ := hex.DecodeString(strings.Repeat("5a", 32))
	res, data, err := c.request(ctx, n, http.MethodPut, imagePath(name), content.reader(0), content.size,
		"Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(wrong)+":")
	if err != nil {
		return "lost"
	}
	if res.StatusCode < 300 {
		c.violate("PUT %q with a wrong digest was answered with %s %s", name, res.Status, data)
	}
	return fmt.Sprint(res.StatusCode)
}

func (c *client) delete(ctx context.Context) string {
	name, n := c.image(), c.runner()
	w := c.model.begin(name, "DELETE", n.number, nil)
	status, err := c.sendJSON(ctx, n, http.MethodDelete, imagePath(name), nil, nil)
	how := c.settle(w, status, err)
	c.trace("client %d: DELETE %q: %s", c.number, name, how)
	return how
}

// resumed is a resumable upload, as the API returns it.
type resumed struct {
	ID       string `json:"id"`
	PartSize int64  `json:"part_size"`
	Status   string `json:"status"`
	SHA256   string `json:"sha256"`
	Error    string `json:"error"`
	Parts    []struct {
		Number int    `json:"number"`
		URL    string `json:"url"`
		Size   int64  `json:"size_bytes"`
		Done   bool   `json:"done"`
	} `json:"parts"`
}

// resumable performs a resumable upload, across kills of the runner. Sometimes it sends a
// part twice, with other bytes the second time, or abandons the upload.
func (c *client) resumable(ctx context.Context) string {
	name := c.image()
	// One to three parts.
	size := 1 + c.rng.Int64N(40<<20)
	content := newContent(c.rng.Uint64(), size)
	var u resumed
	status, err := c.sendJSON(ctx, c.runner(), http.MethodPost, "/uploads", map[string]any{"name": name, "size_bytes": size}, &u)
	if err != nil || status != http.StatusCreated {
		return "not begun: " + brief(status, err)
	}
	path := "/uploads/" + u.ID
	if c.rng.IntN(4) == 0 {
		// The file changes during the upload, so the client sends all of it again.
		before := newContent(c.rng.Uint64(), size)
		for _, p := range u.Parts {
			if !c.sendPart(ctx, u, p.Number, before) {
				return "given up" // a response was lost, so that part may arrive later
			}
			if c.rng.IntN(2) == 0 {
				break
			}
		}
	}
	order := c.rng.Perm(len(u.Parts))
	if c.rng.IntN(3) > 0 {
		for i := range order {
			order[i] = i
		}
	}
	for _, i := range order {
		for !c.sendPart(ctx, u, u.Parts[i].Number, content) {
			if ctx.Err() != nil {
				return "given up"
			}
			pause(ctx, 300*time.Millisecond)
		}
	}
	switch c.rng.IntN(8) {
	case 0:
		return "walked away"
	case 1:
		status, err := c.sendJSON(ctx, c.runner(), http.MethodDelete, path, nil, nil)
		return "abandoned: " + brief(status, err)
	}
	// Each acknowledged part is there, even after a kill.
	for ctx.Err() == nil {
		var now resumed
		status, err := c.sendJSON(ctx, c.runner(), http.MethodGet, path, nil, &now)
		if err != nil || status >= 500 {
			pause(ctx, 300*time.Millisecond)
			continue
		}
		if status != http.StatusOK {
			c.violate("GET %s of an upload in progress: status %d", path, status)
		}
		for _, p := range now.Parts {
			if !p.Done {
				c.violate("part %d of %s (%q) was acknowledged and is not there", p.Number, path, name)
			}
		}
		break
	}
	w := c.model.begin(name, "upload "+u.ID, 0, content)
	c.trace("client %d: completing %s %q %.12s", c.number, path, name, content.sum)
	for {
		var now resumed
		status, err = c.sendJSON(ctx, c.runner(), http.MethodPost, path+"/complete", map[string]any{}, &now)
		if err == nil && status < 500 {
			break
		}
		if ctx.Err() != nil {
			c.model.end(w, lost)
			return "completion lost"
		}
		pause(ctx, 300*time.Millisecond)
	}
	if status != http.StatusAccepted {
		c.violate("POST %s/complete with all parts there: status %d", path, status)
		c.model.end(w, lost)
		return fmt.Sprint(status)
	}
	for ctx.Err() == nil {
		var now resumed
		status, err := c.sendJSON(ctx, c.runner(), http.MethodGet, path, nil, &now)
		switch {
		case err != nil || status != http.StatusOK:
		case now.Status == "completed":
			c.model.end(w, acked)
			c.trace("client %d: completed %s %q %.12s (said %.12s)", c.number, path, name, content.sum, now.SHA256)
			if now.SHA256 != "" && now.SHA256 != content.sum {
				c.violate("upload %s of %q: SHA-256 %s was sent, and %s is said to be there", u.ID, name, content.sum, now.SHA256)
			}
			return "done"
		case now.Status == "failed":
			c.model.replaced(w)
			c.trace("client %d: %s %q %.12s failed: %s", c.number, path, name, content.sum, now.Error)
			return "failed"
		}
		pause(ctx, 200*time.Millisecond)
	}
	c.model.end(w, lost)
	return "completion lost"
}

// sendPart sends one part, and reports whether it was acknowledged.
func (c *client) sendPart(ctx context.Context, u resumed, number int, content *content) bool {
	offset := int64(number-1) * u.PartSize
	size := min(u.PartSize, content.size-offset)
	body := content.part(offset, size)
	if c.rng.IntN(8) == 0 {
		body = cut(content.part(offset, size), c.rng.Int64N(size))
	}
	pctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	res, _, err := c.request(pctx, c.runner(), http.MethodPut, u.Parts[number-1].URL, body, size)
	return err == nil && res.StatusCode < 300
}

func (c *client) s3Put(ctx context.Context) string {
	name, content := store.Key(c.image()), c.content()
	w := c.model.begin(string(name), "S3 put", c.first.number, content)
	c.trace("client %d: S3 put %q %.12s %d bytes", c.number, name, content.sum, content.size)
	_, err := c.images.Put(ctx, name, content.reader(0), content.size)
	how := c.outcome(w, err)
	c.trace("client %d: S3 put %q %.12s: %s", c.number, name, content.sum, how)
	return how
}

func (c *client) s3PutCut(ctx context.Context) string {
	name, content := store.Key(c.image()), c.content()
	_, err := c.images.Put(ctx, name, cut(content.reader(0), c.rng.Int64N(content.size)), content.size)
	if err == nil {
		c.violate("an S3 put of %q that was cut off succeeded", name)
	}
	return "cut"
}

func (c *client) s3Delete(ctx context.Context) string {
	name := store.Key(c.image())
	w := c.model.begin(string(name), "S3 delete", c.first.number, nil)
	how := c.outcome(w, c.images.Delete(ctx, name))
	c.trace("client %d: S3 delete %q: %s", c.number, name, how)
	return how
}

// s3Multipart performs a multipart upload over S3, with parts in any order and some of them
// twice.
func (c *client) s3Multipart(ctx context.Context) string {
	name := store.Key(c.image())
	content := newContent(c.rng.Uint64(), 1+c.rng.Int64N(18<<20))
	id, err := c.images.CreateUpload(ctx, name)
	if err != nil {
		return "not begun"
	}
	c.foreign.Store(id, true)
	parts := make([]store.Part, (content.size+store.MinPartBytes-1)/store.MinPartBytes)
	for _, i := range c.rng.Perm(len(parts)) {
		offset := int64(i) * store.MinPartBytes
		size := min(store.MinPartBytes, content.size-offset)
		for sent := 0; sent == 0 || c.rng.IntN(6) == 0; {
			var body io.Reader = content.part(offset, size)
			if c.rng.IntN(8) == 0 {
				body = cut(body, c.rng.Int64N(size))
			}
			part, err := c.images.UploadPart(ctx, name, id, int32(i+1), body, size)
			if errors.Is(err, store.ErrNotFound) {
				c.violate("S3 multipart upload of %q is gone before it was completed: %v", name, err)
				return "gone"
			}
			if err == nil {
				parts[i] = part
				sent++
				continue
			}
			if ctx.Err() != nil {
				return "given up"
			}
			pause(ctx, 200*time.Millisecond)
		}
	}
	switch c.rng.IntN(8) {
	case 0:
		return "walked away"
	case 1:
		if err := c.images.AbortUpload(ctx, name, id); err != nil {
			return "abort lost"
		}
		return "aborted"
	}
	w := c.model.begin(string(name), "S3 multipart "+id, c.first.number, content)
	c.trace("client %d: S3 complete %q %.12s %d parts %s", c.number, name, content.sum, len(parts), id)
	for try := 0; ; try++ {
		_, err = c.images.CompleteUpload(ctx, name, id, parts)
		if err == nil || errors.Is(err, store.ErrChanged) || try == 3 {
			break
		}
		if errors.Is(err, store.ErrNotFound) {
			if try == 0 {
				c.violate("S3 multipart upload of %q is gone before it was completed: %v", name, err)
			}
			break // an earlier attempt took effect, and another client has replaced the object
		}
		c.trace("client %d: S3 complete %q %s: %v", c.number, name, id, err)
		pause(ctx, 300*time.Millisecond)
	}
	how := c.outcome(w, err)
	c.trace("client %d: S3 complete %q %.12s: %s (%v)", c.number, name, content.sum, how, err)
	return how
}

// copyFile copies a file into the directory as cp does: it overwrites an existing file in
// place.
func (c *client) copyFile(ctx context.Context) string {
	name, content := c.image(), c.content()
	unlock := c.lockFile(name) // two writers in place would mix their bytes
	defer unlock()
	w := c.model.begin(name, "cp", 0, content)
	err := func() error {
		f, err := os.OpenFile(c.imageFile(name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		half := content.size / 2
		if _, err := io.Copy(f, content.part(0, half)); err != nil {
			return err
		}
		pause(ctx, time.Duration(c.rng.IntN(500))*time.Millisecond)
		_, err = io.Copy(f, content.reader(half))
		return err
	}()
	if err != nil {
		c.model.end(w, lost)
		return err.Error()
	}
	c.model.end(w, acked)
	c.trace("client %d: cp %q %.12s", c.number, name, content.sum)
	return "done"
}

// moveFile writes a file elsewhere and moves it into the directory.
func (c *client) moveFile(context.Context) string {
	name, content := c.image(), c.content()
	elsewhere := filepath.Join(c.dir, fmt.Sprintf("moving-%d", c.number))
	f, err := os.Create(elsewhere)
	if err != nil {
		return err.Error()
	}
	_, err = io.Copy(f, content.reader(0))
	if err = errors.Join(err, f.Close()); err != nil {
		return err.Error()
	}
	unlock := c.lockFile(name)
	defer unlock()
	w := c.model.begin(name, "mv", 0, content)
	if err := os.Rename(elsewhere, c.imageFile(name)); err != nil {
		c.model.end(w, refused)
		return err.Error()
	}
	c.model.end(w, acked)
	c.trace("client %d: mv %q %.12s", c.number, name, content.sum)
	return "done"
}

func (c *client) removeFile(context.Context) string {
	name := c.image()
	unlock := c.lockFile(name)
	defer unlock()
	w := c.model.begin(name, "rm", 0, nil)
	if err := os.Remove(c.imageFile(name)); err != nil {
		c.model.end(w, refused)
		return "nothing there"
	}
	c.model.end(w, acked)
	c.trace("client %d: rm %q", c.number, name)
	return "done"
}

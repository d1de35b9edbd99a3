package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/progress"
)

// directParts is how many parts are sent at once if they go directly to a store such as S3,
// one connection to which is slow. A server itself gets one part after the other: it hashes
// what arrives in order, and a kill costs no more than a part.
const directParts = 4

// An upload sends a file in parts, and resumes where an earlier run was ended.
type upload struct {
	*api.Client
	name     string
	file     *os.File
	size     int64
	replace  bool // an image of that name
	parallel int  // 0: the default
	state    *uploadState
	bar      *progress.Bar

	view  api.Upload
	etags []string // of the parts that the server has, by number - 1

	mu   sync.Mutex
	sum  hash.Hash // of the file up to the end of part len(sums)
	sums []string  // of the file up to the end of each part
}

// run sends the file and returns the upload, completed. The image has the SHA-256 of the
// file, which it returns, too. It is verified by the server if that hashes what arrives:
// then SHA256 of the upload is set.
func (u *upload) run(ctx context.Context) (api.Upload, string, error) {
	if err := u.begin(ctx); err != nil {
		return api.Upload{}, "", err
	}
	if u.view.Status == api.Uploading {
		if err := u.send(ctx); err != nil {
			return api.Upload{}, "", err
		}
	}
	sum, err := u.sumTo(ctx, u.parts())
	if err != nil {
		return api.Upload{}, "", err
	}
	if u.view.Status == api.Uploading {
		if err := u.complete(ctx, sum); err != nil {
			return api.Upload{}, "", err
		}
	}
	view, err := u.finish(ctx)
	if err == nil && view.SHA256 != "" && view.SHA256 != sum {
		err = errChanged
	}
	return view, sum, err
}

// errChanged is the error if the image is not the file.
var errChanged = exit.With(exit.Mismatch, errors.New("the server has other bytes than the file has: the file was changed while it was sent, or the bytes were damaged on the way; push it again"))

// parts returns the number of parts.
func (u *upload) parts() int { return int((u.size + u.view.PartSize - 1) / u.view.PartSize) }

// begin finds the upload that an earlier run began, or begins one.
func (u *upload) begin(ctx context.Context) error {
	resumed, err := u.resume(ctx)
	if err != nil || resumed {
		return err
	}
	return trying(ctx, u.bar, func(func()) error {
		view, err := u.BeginUpload(ctx, u.name, u.size, u.replace)
		if err != nil {
			return err
		}
		u.use(view)
		u.state.begin(view.ID)
		return nil
	})
}

// use makes view the upload, of whose parts none is known yet.
func (u *upload) use(view api.Upload) {
	u.view = view
	u.etags = make([]string, u.parts())
	u.sum, u.sums = sha256.New(), nil
	u.bar.Set(0)
}

// resume reports whether an earlier run has begun the upload of these bytes. What it has
// sent is compared with the file.
func (u *upload) resume(ctx context.Context) (bool, error) {
	ids := []string{u.state.head.ID}
	if ids[0] == "" {
		ids = nil
		list, err := u.Uploads(ctx)
		if err != nil {
			return false, err
		}
		for _, other := range list {
			if other.Name == u.name && other.SizeBytes == u.size && other.Status == api.Uploading {
				ids = append(ids, other.ID)
			}
		}
	}
	for _, id := range ids {
		var view api.Upload
		err := trying(ctx, u.bar, func(func()) (err error) { view, err = u.Upload(ctx, id); return err })
		switch {
		case api.IsStatus(err, http.StatusNotFound):
			continue
		case err != nil:
			return false, err
		case view.Status == api.Failed || view.SizeBytes != u.size || view.PartSize < 1:
			continue
		case view.Status != api.Uploading && id != u.state.head.ID:
			continue // another client has completed it since the list
		}
		u.use(view)
		same, err := u.compare(ctx)
		if err != nil || same {
			return same, err
		}
	}
	return false, nil
}

// compare reports whether the upload is one of this file, and takes over the parts that the
// server has.
func (u *upload) compare(ctx context.Context) (bool, error) {
	u.bar.Say("comparing the file with what was sent")
	defer u.bar.Say("")
	if u.view.Status != api.Uploading {
		sum, err := u.sumTo(ctx, u.parts())
		if err != nil || u.view.Status != api.Completed {
			return true, err
		}
		r, err := u.Stored(ctx, u.name)
		return r != nil && r.SHA256 == sum, err
	}
	if same, err := u.adopt(ctx, u.view); err != nil || !same {
		return same, err
	}
	for _, p := range u.view.Parts {
		sent, ok := u.state.parts[p.Number]
		if !ok || !p.Done || p.ETag != sent.ETag {
			continue
		}
		sum, err := u.sumTo(ctx, p.Number)
		if err != nil {
			return false, err
		}
		if sum != sent.SHA256 {
			return false, nil
		}
		u.take(p.Number, p.ETag)
	}
	if u.state.head.ID == u.view.ID {
		return true, nil
	}
	// Of an upload that this machine has not begun, the server's hash is the proof.
	if u.view.Hashed == nil {
		return false, nil
	}
	u.state.begin(u.view.ID)
	return true, nil
}

// adopt takes over the first parts of view if the server has hashed them, and reports
// whether they are those of the file.
func (u *upload) adopt(ctx context.Context, view api.Upload) (bool, error) {
	if view.Hashed == nil {
		return true, nil
	}
	n := int(view.Hashed.SizeBytes / view.PartSize)
	if view.Hashed.SizeBytes == u.size {
		n = u.parts()
	}
	if n > len(view.Parts) {
		return true, nil
	}
	sum, err := u.sumTo(ctx, n)
	if err != nil || sum != view.Hashed.SHA256 {
		return false, err
	}
	for _, p := range view.Parts[:n] {
		if p.Done {
			u.take(p.Number, p.ETag)
		}
	}
	return true, nil
}

// take notes that the server has a part.
func (u *upload) take(number int, etag string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.etags[number-1] == "" {
		u.bar.Add(u.view.Parts[number-1].SizeBytes)
	}
	u.etags[number-1] = etag
}

// sumTo returns the SHA-256 of the file up to the end of a part.
func (u *upload) sumTo(ctx context.Context, number int) (string, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	block := make([]byte, 1<<20)
	for len(u.sums) < number {
		from := int64(len(u.sums)) * u.view.PartSize
		part := io.NewSectionReader(u.file, from, min(u.view.PartSize, u.size-from))
		for left := part.Size(); left > 0; {
			if ctx.Err() != nil {
				return "", context.Cause(ctx)
			}
			n, err := io.ReadFull(part, block[:min(left, int64(len(block)))])
			if err != nil {
				return "", fmt.Errorf("%s was cut or cannot be read: %w", u.file.Name(), err)
			}
			u.sum.Write(block[:n])
			left -= int64(n)
		}
		u.sums = append(u.sums, hex.EncodeToString(u.sum.Sum(nil)))
	}
	return u.sums[number-1], nil
}

// send sends the parts that the server does not have.
func (u *upload) send(ctx context.Context) error {
	parallel := 1
	if len(u.view.Parts) > 0 && u.view.Parts[0].Direct() {
		parallel = directParts
	}
	if u.parallel > 0 {
		parallel = u.parallel
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for i, p := range u.view.Parts {
		if u.etags[i] != "" {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return u.sendPart(ctx, p) })
	}
	return group.Wait()
}

// sendPart sends a part, and tries again where that may help.
func (u *upload) sendPart(ctx context.Context, p api.Part) error {
	type result struct {
		sum string
		err error
	}
	hashed := make(chan result, 1)
	go func() { // while the bytes are sent
		sum, err := u.sumTo(ctx, p.Number)
		hashed <- result{sum, err}
	}()
	again := false
	err := trying(ctx, u.bar, func(moved func()) error {
		if again {
			arrived, err := u.look(ctx, &p)
			if err != nil || arrived {
				return err
			}
		}
		again = true
		etag, err := u.put(ctx, p, moved)
		if expired(err, p) {
			if _, err := u.look(ctx, &p); err != nil {
				return err
			}
			etag, err = u.put(ctx, p, moved)
		}
		if err == nil {
			u.take(p.Number, etag)
		}
		return err
	})
	r := <-hashed
	if err := errors.Join(err, r.err); err != nil {
		return err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.state.sent(sentPart{p.Number, u.etags[p.Number-1], r.sum})
	return nil
}

// look asks the server for the state of a part whose transfer has failed. It reports whether
// the part has arrived, which a lost answer had hidden.
func (u *upload) look(ctx context.Context, p *api.Part) (arrived bool, err error) {
	view, err := u.Upload(ctx, u.view.ID)
	switch {
	case err != nil:
		return false, err
	case len(view.Parts) < p.Number:
		return false, fmt.Errorf("the upload is %s on the server, by another client", line(view.Status))
	}
	p.URL = view.Parts[p.Number-1].URL
	if _, err := u.adopt(ctx, view); err != nil {
		return false, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.etags[p.Number-1] != "", nil
}

// expired reports whether err may mean that the presigned URL of a part has expired.
func expired(err error, p api.Part) bool {
	return p.Direct() && (api.IsStatus(err, http.StatusForbidden) || api.IsStatus(err, http.StatusBadRequest))
}

// put sends a part once, and returns its ETag.
func (u *upload) put(ctx context.Context, p api.Part, moved func()) (string, error) {
	ctx, alive, stop := watch(ctx)
	defer stop()
	body := &counted{Reader: io.NewSectionReader(u.file, int64(p.Number-1)*u.view.PartSize, p.SizeBytes), count: func(n int64) {
		alive()
		u.bar.Add(n)
	}}
	res, err := u.Send(ctx, api.Request{Method: http.MethodPut, Path: p.URL, Body: body, Length: p.SizeBytes})
	if err != nil {
		u.bar.Add(-body.n)
		return "", err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, 64<<10)) // so that the connection is used again
	moved()
	u.bar.Add(-body.n) // take counts the part
	etag := strings.Trim(strings.TrimPrefix(res.Header.Get("ETag"), "W/"), `"`)
	if etag == "" {
		return "", errors.New("the store gave no ETag for a part")
	}
	return etag, nil
}

// counted calls count with the bytes of each read.
type counted struct {
	io.Reader
	n     int64
	count func(n int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n += int64(n)
	c.count(int64(n))
	return n, err
}

// complete has the parts assembled, if they have that SHA-256. Where the server cannot
// compare that, the caller does afterwards.
func (u *upload) complete(ctx context.Context, sum string) error {
	return trying(ctx, u.bar, func(func()) error {
		err := u.CompleteUpload(ctx, u.view.ID, u.etags, sum, u.replace)
		if api.IsStatus(err, http.StatusConflict) || api.IsStatus(err, http.StatusNotImplemented) {
			err = u.CompleteUpload(ctx, u.view.ID, u.etags, "", u.replace)
		}
		if api.IsStatus(err, http.StatusBadRequest) {
			_ = u.AbandonUpload(ctx, u.view.ID)
			return fmt.Errorf("%w (%v)", errChanged, err)
		}
		return err
	})
}

// finish waits until the server has assembled the image.
func (u *upload) finish(ctx context.Context) (api.Upload, error) {
	u.bar.Set(u.size)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		var view api.Upload
		err := trying(ctx, u.bar, func(func()) (err error) { view, err = u.Upload(ctx, u.view.ID); return err })
		switch {
		case err != nil:
			return view, err
		case view.Status == api.Completed:
			return view, nil
		case view.Status == api.Failed:
			return view, fmt.Errorf("the server could not assemble the image: %s", line(view.Error))
		}
		u.bar.Say("all bytes are sent; the server assembles them")
		if err := sleep(ctx, wait); err != nil {
			return view, err
		}
	}
}

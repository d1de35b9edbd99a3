package upload

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

const (
	// maxImageBytes is the size of S3's largest object.
	maxImageBytes = 5 << 40
	// maxComplete limits the request that completes an upload, which has the ETags of up
	// to store.MaxParts parts.
	maxComplete = 1 << 20
	// assembleTime is how long the store may take to assemble an object. During
	// that time, a store that no longer lists the parts may be assembling them,
	// even if the process that requested it was killed.
	assembleTime = time.Hour
)

func (f *Function) begin(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name      string      `json:"name"`
		SizeBytes json.Number `json:"size_bytes"`
		SHA256    string      `json:"sha256"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	create, err := creates(r)
	if err != nil {
		return err
	}
	want, err := f.wanted(r, in.SHA256)
	if err != nil {
		return err
	}
	name, err := image.ParseName(in.Name)
	if err != nil {
		return err
	}
	size, err := in.SizeBytes.Int64()
	if err != nil || size < 1 {
		return problem.New(problem.Malformed, "size_bytes must be the size of the image, at least 1")
	}
	if size > maxImageBytes {
		return problem.Newf(problem.TooLarge, "an image has at most %d bytes", int64(maxImageBytes))
	}
	if err := f.fits(size); err != nil {
		return err
	}
	if create {
		if err := f.untaken(r.Context(), name); err != nil {
			return err
		}
	}
	p := &pending{
		ID: layout.NewUploadID(), Name: name, SizeBytes: size, PartSize: f.partSizeFor(size), Status: uploading,
		CreatedAt: f.Now().UTC(), Actor: activity.Actor(r.Context()), SourceIP: web.ClientIP(r), Hashed: digest.New(false).State(),
		WantSHA256: want, Create: create,
	}
	if p.UploadID, err = f.Images.CreateUpload(r.Context(), layout.ImageKey(name)); err != nil {
		return err
	}
	if _, err := record.Swap(r.Context(), f.Catalog, layout.UploadKey(p.ID), p, ""); err != nil {
		return errors.Join(err, f.Images.AbortUpload(context.WithoutCancel(r.Context()), layout.ImageKey(name), p.UploadID))
	}
	w.Header().Set("Location", "/uploads/"+p.ID)
	v, err := f.linked(r.Context(), p, p.withParts(nil))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, v)
}

// wanted returns the SHA-256 that the client declares for the whole image: in the
// member sha256 of the body, or in Repr-Digest. It returns "" if there is none.
func (f *Function) wanted(r *http.Request, member string) (layout.SHA256, error) {
	e, err := digest.ParseRequest(http.Header{"Repr-Digest": r.Header.Values("Repr-Digest")})
	sha256, ok := layout.ParseSHA256(member)
	switch {
	case err != nil:
		return "", problem.New(problem.Invalid, err.Error())
	case member != "" && !ok:
		return "", problem.New(problem.Malformed, "sha256 must be the SHA-256 of the image, 64 digits of lower case hexadecimal")
	case e.SHA512 != "" && e.SHA256 == "":
		return "", problem.New(problem.NotImplemented, "an upload in parts is compared with a SHA-256 only: send that")
	case e.SHA256 != "" && sha256 != "" && e.SHA256 != sha256:
		return "", problem.New(problem.Invalid, "sha256 and Repr-Digest contradict each other")
	case e.SHA256 != "":
		sha256 = e.SHA256
	}
	if sha256 != "" && f.Links != nil {
		return "", problem.New(problem.NotImplemented, "the store does not say the SHA-256 of parts here: leave it out, and send the etags of the parts when completing")
	}
	return sha256, nil
}

func (f *Function) show(w http.ResponseWriter, r *http.Request) error {
	p, err := f.read(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if p.Status != uploading {
		return web.JSON(w, http.StatusOK, p.view())
	}
	done, err := f.Images.ListParts(r.Context(), layout.ImageKey(p.Name), p.UploadID)
	if err != nil {
		return expired(err)
	}
	v, err := f.linked(r.Context(), &p, p.withParts(done))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, v)
}

// expired returns err, as a problem for the client if the store no longer has the
// multipart upload.
func expired(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return problem.Wrap(problem.NotFound, "the store has given this upload up: begin again", err)
	}
	return err
}

// listUploads lists the uploads that have not ended.
func (f *Function) listUploads(w http.ResponseWriter, r *http.Request) error {
	all, _, err := f.pending(r.Context())
	if err != nil {
		return err
	}
	views := []view{}
	for _, p := range all {
		if p.Status == uploading || p.Status == completing {
			views = append(views, p.view())
		}
	}
	return web.JSON(w, http.StatusOK, map[string]any{"uploads": views})
}

func (f *Function) abandon(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	id := r.PathValue("id")
	p, err := f.read(ctx, id)
	if errors.Is(err, record.ErrDamaged) {
		// Reconcile removes its parts when they are old enough.
		if err := record.Delete[pending](ctx, f.Catalog, layout.UploadKey(id)); err != nil {
			return err
		}
		return web.Answer(w, r, http.StatusNoContent, nil, "the upload was abandoned")
	}
	if err != nil {
		return err
	}
	aborts := p.Status == uploading
	if p.Status == completing {
		// Between two tries it can be cancelled: the swap decides which is first.
		_, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(p.ID), func(cur *pending, exists bool) error {
			switch {
			case !exists:
				return store.ErrNotFound
			case cur.Status != completing:
				return record.ErrKeep
			case cur.Error == "":
				return problem.New(problem.Conflict, "the upload is being assembled, which cannot be stopped; delete the image afterwards")
			}
			cur.Status, aborts = failed, true
			return nil
		})
		if err != nil {
			return expired(err)
		}
	}
	if aborts {
		if err := f.Images.AbortUpload(ctx, layout.ImageKey(p.Name), p.UploadID); err != nil {
			return err
		}
	}
	if err := record.Delete[pending](ctx, f.Catalog, layout.UploadKey(p.ID)); err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "the upload of "+string(p.Name)+" was abandoned")
}

func (f *Function) putPart(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	p, err := f.read(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	n64, err := strconv.ParseInt(r.PathValue("number"), 10, 32)
	n := int32(n64)
	switch {
	case err != nil || n < 1 || n > p.parts():
		return problem.Newf(problem.NotFound, "the parts of this upload are 1 to %d", p.parts())
	case p.Status != uploading:
		return problem.Newf(problem.Conflict, "the upload is %s and takes no more parts", p.Status)
	case f.Links != nil:
		return f.directPut(w, r, &p, n)
	case r.ContentLength < 0:
		return problem.Newf(problem.Malformed, "part %d has %d bytes: send it with a Content-Length that says so", n, p.partBytes(n))
	case r.ContentLength != p.partBytes(n):
		return problem.Newf(problem.Malformed, "part %d has %d bytes, not %d (Content-Length)", n, p.partBytes(n), r.ContentLength)
	}
	want, err := parseExpected(r)
	if err != nil {
		return err
	}
	if err := plain(r); err != nil {
		return err
	}
	sum, inOrder := hasherFor(&p, n)
	src := io.Reader(&wholeBody{web.Body(w, r)})
	var verify func(*digest.Hasher) error
	if want != (expected{}) { // own is of this part alone, sum of all parts so far
		own := digest.New(want.SHA512 != "")
		src = io.TeeReader(src, own)
		verify = func(*digest.Hasher) error { return want.verify(own) }
	}
	body := digest.NewReader(src, sum, verify, f.Metric.BytesUploaded)
	part, err := f.Images.UploadPart(ctx, layout.ImageKey(p.Name), p.UploadID, n, body, r.ContentLength)
	_, berr := stop(w, r, body)
	switch {
	case berr != nil && (err == nil || !errors.Is(berr, digest.ErrStopped)):
		return berr
	case err != nil:
		return expired(err)
	}
	if err := f.noteHash(ctx, &p, part, sum, inOrder); err != nil {
		return err
	}
	w.Header().Set("ETag", `"`+part.ETag+`"`)
	return web.JSON(w, http.StatusOK, partView{Number: n, URL: r.URL.Path, SizeBytes: r.ContentLength, Done: true, ETag: &part.ETag})
}

// hasherFor returns the hash of all parts before n, and true, if it is known.
// Otherwise it returns an empty hash, whose sum is not used.
func hasherFor(p *pending, n int32) (h *digest.Hasher, inOrder bool) {
	if p.Hashed.Offset == int64(n-1)*p.PartSize {
		if h, err := digest.Resume(p.Hashed); err == nil {
			return h, true
		}
	}
	return digest.New(false), false
}

// noteHash adds a part to the hash of the first parts if it is the next one. A part
// that was hashed and is sent again may have other bytes, and then another ETag: see
// [chain].
func (f *Function) noteHash(ctx context.Context, p *pending, part store.Part, sum *digest.Hasher, inOrder bool) error {
	if !inOrder {
		return nil
	}
	begin := int64(part.Number-1) * p.PartSize
	_, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(p.ID), func(cur *pending, exists bool) error {
		switch {
		case !exists:
			return store.ErrNotFound
		case cur.Hashed.Offset != begin:
			return record.ErrKeep
		}
		cur.Hashed, cur.HashedParts = sum.State(), chain(cur.HashedParts, part)
		return nil
	})
	return expired(err)
}

// complete answers POST /uploads/{id}/complete. Assembling takes minutes on
// some disks, so it happens after the answer.
func (f *Function) complete(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var in struct {
		SHA256  string   `json:"sha256"`
		ETags   []string `json:"etags"`
		Replace bool     `json:"replace"`
	}
	if r.ContentLength != 0 {
		if err := web.Decode(w, r, &in); err != nil {
			return err
		}
	}
	create, err := creates(r)
	if err != nil {
		return err
	}
	want, err := f.wanted(r, in.SHA256)
	if err != nil {
		return err
	}
	p, err := f.read(ctx, r.PathValue("id"))
	if err != nil {
		return err
	}
	if p.Status == uploading {
		if p.Create = create || p.Create && !in.Replace; p.Create {
			// Nothing is lost: it can be completed once the name is free, or with replace.
			if err := f.untaken(ctx, p.Name); err != nil {
				return err
			}
		}
		done, err := f.Images.ListParts(ctx, layout.ImageKey(p.Name), p.UploadID)
		if err != nil {
			return expired(err)
		}
		if missing := missingParts(p.withParts(done)); missing != "" {
			return problem.New(problem.Conflict, "parts are missing: "+missing)
		}
		if err := compare(in.ETags, done); err != nil {
			return err
		}
		if want != "" {
			p.WantSHA256 = want
		}
		if err := p.verify(done); err != nil {
			return err
		}
		p, _, err = record.Change(ctx, f.Catalog, layout.UploadKey(p.ID), func(cur *pending, exists bool) error {
			if !exists {
				return store.ErrNotFound
			}
			if cur.Status != uploading {
				return record.ErrKeep
			}
			cur.Status, cur.CompletingAt, cur.WantSHA256, cur.Create = completing, f.Now().UTC(), p.WantSHA256, p.Create
			if in.ETags != nil {
				cur.WantParts = chainOf(done)
			}
			return nil
		})
		if err != nil {
			return expired(err)
		}
	}
	if p.Status == completing {
		if err := f.Assemblies.Send(ctx, queue.Assemble(p.ID).Encode(), 0); err != nil {
			return err
		}
	}
	return web.JSON(w, http.StatusAccepted, p.view())
}

// compare refuses parts that do not have the client's etags. It accepts all parts if
// etags is nil.
func compare(etags []string, parts []store.Part) error {
	if etags != nil && len(etags) != len(parts) {
		return problem.Newf(problem.Malformed, "etags must be those of all %d parts, in order", len(parts))
	}
	for i, etag := range etags {
		if strings.Trim(etag, `"`) != parts[i].ETag {
			return problem.Newf(problem.Conflict, "part %d was sent by another client since, and has other bytes: send it again, or begin another upload", parts[i].Number)
		}
	}
	return nil
}

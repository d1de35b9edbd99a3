// Package upload accepts images over HTTP: whole by PUT, and resumable in parts. It also
// renames and deletes images.
package upload

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Function is the upload function: its routes, and the worker that assembles
// resumable uploads and renames images. All fields are required except Links and PartBytes. It is safe
// for concurrent use.
type Function struct {
	Images, Catalog store.Root
	// Links presigns URLs of objects in the image root. If it is not nil, clients send
	// bytes directly to the store.
	Links store.Presigner
	// PartBytes is the size of the parts of resumable uploads without Links, and
	// the maximum that a dropped connection costs: 16 MiB if it is 0. Images that
	// would need more than [store.MaxParts] parts have larger ones.
	PartBytes int64
	// Inspections is the queue of the hash function, Assemblies that of this one.
	Inspections, Assemblies queue.Sender
	Jobs                    *job.Jobs
	Inventory               *inventory.Inventory
	Activity                *activity.Log
	Metric                  *metric.Set
	// Free returns the bytes that the store has room for, or a negative number if
	// that is not known.
	Free func() int64
	Now  func() time.Time
	Log  *slog.Logger
}

// Routes returns the function's routes.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "PUT /images/{name}", Access: web.Upload, Handle: f.put, Stream: true},
		{Pattern: "DELETE /images/{name}", Access: web.Operator, Handle: f.delete},
		{Pattern: "POST /images/{name}/rename", Access: web.Operator, Handle: f.postRename},
		{Pattern: "GET /catalog/renames", Access: web.Read, Handle: f.listRenames, Quiet: true},
		{Pattern: "DELETE /catalog/renames/{name}", Access: web.Operator, Handle: f.cancelRename},

		{Pattern: "GET /uploads", Access: web.Upload, Handle: f.listUploads, Quiet: true},
		{Pattern: "POST /uploads", Access: web.Upload, Handle: f.begin},
		{Pattern: "GET /uploads/{id}", Access: web.Upload, Handle: f.show, Quiet: true},
		{Pattern: "DELETE /uploads/{id}", Access: web.Upload, Handle: f.abandon},
		{Pattern: "PUT /uploads/{id}/parts/{number}", Access: web.Upload, Handle: f.putPart, Stream: true, Quiet: true},
		{Pattern: "POST /uploads/{id}/complete", Access: web.Upload, Handle: f.complete, MaxBody: maxComplete},
	}
}

// uploaded is the answer to a PUT.
type uploaded struct {
	Name      image.Name    `json:"name"`
	SizeBytes int64         `json:"size_bytes"`
	SHA256    layout.SHA256 `json:"sha256"`
	Format    image.Format  `json:"format"`
}

func (f *Function) put(w http.ResponseWriter, r *http.Request) error {
	name, err := image.ParseName(r.PathValue("name"))
	if err != nil {
		return err
	}
	want, err := parseExpected(r)
	if err != nil {
		return err
	}
	if err := f.fits(r.ContentLength); err != nil {
		return err
	}
	create, err := creates(r)
	if err == nil && create {
		err = f.untaken(r.Context(), name)
	}
	if err != nil {
		return err
	}
	if r.Header.Get("Content-Range") != "" {
		// RFC 9110 §14.5: a part must not be stored as the whole.
		return problem.New(problem.Invalid, "PUT takes whole images; POST /uploads takes them in parts")
	}
	if f.Links != nil {
		return f.direct(w, r, name, want, create)
	}
	if err := plain(r); err != nil {
		return err
	}
	if r.ContentLength == 0 {
		return errEmpty
	}
	u, err := f.take(w, r, name, want, create)
	if err != nil {
		f.Activity.ByOperator(r, activity.ImageUploadFailed, string(name), "upload of "+string(name)+" failed", map[string]any{"error": problem.From(err).Detail})
		return err
	}
	u.Format, _ = image.FormatOf(name)
	f.Activity.ByOperator(r, activity.ImageUploaded, string(name), "uploaded "+string(name), map[string]any{"sha256": u.SHA256, "size_bytes": u.SizeBytes})
	w.Header().Set("Location", web.BaseURL(r)+"/images/"+string(u.SHA256))
	return web.JSON(w, http.StatusCreated, u)
}

// creates reports whether the request must not replace an image: it has If-None-Match: *.
// Other conditions are refused: if one were ignored, the upload could overwrite what it
// protects.
func creates(r *http.Request) (bool, error) {
	create := r.Header.Get("If-None-Match") == "*"
	for _, condition := range []string{"If-Match", "If-None-Match", "If-Unmodified-Since"} {
		if r.Header.Get(condition) != "" && !(create && condition == "If-None-Match") {
			return false, problem.New(problem.NotImplemented, "of conditions, there is If-None-Match: * only; send this without "+condition)
		}
	}
	return create, nil
}

// untaken returns a problem if there is an image of this name.
func (f *Function) untaken(ctx context.Context, name image.Name) error {
	_, _, err := store.HeadFirst(ctx, f.Images, layout.ImageKeys(name))
	switch {
	case err == nil:
		err = errTaken(name)
	case errors.Is(err, store.ErrNotFound):
		err = nil
	}
	return err
}

func errTaken(name image.Name) error {
	return problem.Newf(problem.Precondition, "there is an image named %s, which this upload must not replace (If-None-Match: *); nothing was changed: "+
		"upload it under another name, or without that condition", name)
}

// plain refuses a body with a content coding: its bytes are not the image's.
func plain(r *http.Request) error {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return problem.Newf(problem.Unsupported, "the body is sent with Content-Encoding %.40q, so its bytes are not the image's: send it without", enc)
	}
	return nil
}

// fits refuses a size that the store has no room for.
func (f *Function) fits(size int64) error {
	free := f.Free()
	if size <= 0 || free < 0 || size <= free {
		return nil
	}
	return problem.Newf(problem.Full, "the image has %d bytes and the store has room for %d: delete images that are not needed", size, free)
}

// take streams a body into the image root and hashes it.
func (f *Function) take(w http.ResponseWriter, r *http.Request, name image.Name, want expected, create bool) (uploaded, error) {
	ctx := r.Context()
	verify := func(sum *digest.Hasher) error {
		if sum.Offset() == 0 {
			return errEmpty
		}
		return want.verify(sum)
	}
	body := digest.NewReader(&wholeBody{web.Body(w, r)}, digest.New(want.SHA512 != ""), verify, f.Metric.BytesUploaded)
	put := f.Images.Put
	if create {
		put = f.Images.Create
	}
	version, err := put(ctx, layout.ImageKey(name), body, r.ContentLength)
	sum, berr := stop(w, r, body)
	size := sum.Offset()
	switch {
	case berr != nil && (err == nil || !errors.Is(berr, digest.ErrStopped)):
		return uploaded{}, berr // more precise than the error of the store
	case errors.Is(err, store.ErrChanged):
		// Written, and replaced by another client since. The digest is of the
		// bytes that were sent, and is not recorded.
		return uploaded{Name: name, SizeBytes: size, SHA256: sum.Sum256()}, nil
	case create && errors.Is(err, store.ErrConflict):
		return uploaded{}, errTaken(name)
	case err != nil:
		return uploaded{}, err
	}
	if err := f.publish(ctx, name, version, sum.Sum256()); err != nil {
		// The image is stored; a hash job will find the same digest.
		f.Log.Warn("digest of an upload could not be recorded", "name", name, "error", err)
	}
	return uploaded{Name: name, SizeBytes: size, SHA256: sum.Sum256()}, nil
}

// publish records a digest that was computed during the upload, and enqueues an
// inspection: another upload may have replaced that version.
func (f *Function) publish(ctx context.Context, name image.Name, version store.Version, sha256 layout.SHA256) error {
	_, _, err := record.Change(ctx, f.Catalog, layout.DigestKey(name), func(rec *digest.Record, exists bool) error {
		if exists && rec.Version.LastModified.After(version.LastModified) {
			return record.ErrKeep
		}
		*rec = rec.Next(name, version, sha256, digest.ByUpload, f.Now())
		return nil
	})
	if errors.Is(err, record.ErrNewer) {
		f.Log.Warn("digest of an upload not recorded", "name", name, "error", err)
		err = nil
	}
	return errors.Join(err, f.Inspections.Send(ctx, queue.InspectImage(name).Encode(), 0))
}

func (f *Function) delete(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	name, err := image.ParseName(r.PathValue("name"))
	if err != nil {
		return problem.New(problem.NotFound, "there is no image of this name: "+err.Error())
	}
	key, _, err := store.HeadFirst(ctx, f.Images, layout.ImageKeys(name))
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there is no image of this name in the image root")
	}
	if err != nil {
		return err
	}
	if err := f.Images.Delete(ctx, key); err != nil {
		return err
	}
	name, _ = layout.ImageName(key) // the spelling that the object had
	if err := f.deleteMaps(ctx, name); err != nil {
		f.Log.Warn("the block map of a deleted image could not be deleted", "name", name, "error", err)
	}
	if err := f.Inspections.Send(ctx, queue.InspectImage(name).Encode(), 0); err != nil {
		f.Log.Warn("a deleted image is not inspected before the next reconciliation", "name", name, "error", err)
	}
	f.Activity.ByOperator(r, activity.ImageDeleted, string(name), "deleted "+string(name), nil)
	return web.Answer(w, r, http.StatusNoContent, nil, string(name)+" was deleted")
}

// expected holds the digests that the request declares for its body.
type expected digest.Expected

func parseExpected(r *http.Request) (expected, error) {
	e, err := digest.ParseRequest(r.Header)
	if err != nil {
		return expected{}, problem.New(problem.Invalid, err.Error())
	}
	return expected(e), nil
}

func (e expected) verify(sum *digest.Hasher) error {
	switch {
	case e.SHA256 != "" && e.SHA256 != sum.Sum256():
		return problem.Newf(problem.Invalid, "the request says SHA-256 %s and the body has %s; nothing was changed", e.SHA256, sum.Sum256())
	case e.SHA512 != "" && e.SHA512 != sum.Sum512():
		return problem.Newf(problem.Invalid, "the request says SHA-512 %s and the body has %s; nothing was changed", e.SHA512, sum.Sum512())
	}
	return nil
}

var errEmpty = problem.New(problem.Invalid, "the image is empty; nothing was changed")

// errCut is the error of a body whose connection has ended early.
var errCut = problem.New(problem.Invalid, "the connection ended before the image did; nothing was changed: send it again")

// stop ends the reading of a request's body. See [digest.Reader.Stop].
func stop(w http.ResponseWriter, r *http.Request, body *digest.Reader) (*digest.Hasher, error) {
	gone := r.Context().Err() != nil // before Stop ends the reading
	sum, err := body.Stop(func() { web.StopBody(w) })
	if errors.Is(err, digest.ErrStopped) && gone {
		// The store saw the end before the reader did.
		err = errCut
	}
	return sum, err
}

// A wholeBody turns the errors of a body that was cut off into problems for the client.
type wholeBody struct{ io.Reader }

func (b *wholeBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	switch {
	case err == nil || errors.Is(err, io.EOF):
	case errors.Is(err, os.ErrDeadlineExceeded):
		err = problem.Wrap(problem.Timeout, "nothing came for too long; nothing was changed: send it again", err)
	default:
		err = problem.Wrap(problem.Invalid, errCut.Detail, err)
	}
	return n, err
}

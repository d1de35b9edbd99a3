package upload

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
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

// States of a resumable upload.
const (
	uploading  = "uploading"
	completing = "completing"
	completed  = "completed"
	failed     = "failed"
)

// partBytes is how much a dropped connection may cost. Parts of very large
// files are larger, so that 10,000 are enough.
var partBytes int64 = 16 << 20 // a variable for the tests

const (
	// maxImageBytes is S3's largest object.
	maxImageBytes = 5 << 40
	// assembleTime is how long the store may take to assemble an object. For
	// that long it may be at it where its parts are not to be seen any more,
	// asked by whoever was killed since, or by another process.
	assembleTime = time.Hour
)

// pending is the record of a resumable upload. The parts that are there are
// the store's to know.
type pending struct {
	record.Meta
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	SizeBytes int64     `json:"size_bytes"`
	PartSize  int64     `json:"part_size"`
	UploadID  string    `json:"upload_id"` // the store's
	Status    string    `json:"status"`
	Error     string    `json:"error,omitempty"` // of one that is completing: why the last try failed
	SHA256    string    `json:"sha256,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	Actor     string    `json:"actor"`
	SourceIP  string    `json:"source_ip"`
	// Hashed is the hash of the first parts, as long as they come in order,
	// and HashedParts tells which parts those were: see [chain].
	Hashed      digest.State `json:"hashed"`
	HashedParts string       `json:"hashed_parts"`
	// CompletingAt is when the client said that all parts are there.
	CompletingAt time.Time `json:"completing_at,omitzero"`
	// WantSHA256 is what the client says that the image hashes to, and
	// WantParts the chain of the parts that it has sent. Empty: it did not say.
	WantSHA256 string `json:"want_sha256,omitempty"`
	WantParts  string `json:"want_parts,omitempty"`
}

// Validate implements record.Validator.
func (p *pending) Validate() error {
	switch {
	case !layout.IsUploadID(p.ID) || !image.IsName(p.Name) || p.SizeBytes < 1 || p.PartSize < 1:
		return errors.New("an upload has an ID, the name of an image, its size and that of its parts")
	case p.Status != uploading && p.Status != completing && p.Status != completed && p.Status != failed:
		return fmt.Errorf("%q is not the status of an upload", p.Status)
	}
	return nil
}

func (p *pending) parts() int32 { return int32((p.SizeBytes + p.PartSize - 1) / p.PartSize) }

func (p *pending) partBytes(n int32) int64 {
	return min(p.PartSize, p.SizeBytes-int64(n-1)*p.PartSize)
}

// view is a resumable upload as the API shows it.
type view struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	SizeBytes int64      `json:"size_bytes"`
	PartSize  int64      `json:"part_size"`
	Status    string     `json:"status"`
	SHA256    *string    `json:"sha256"`
	Error     *string    `json:"error"`
	CreatedAt time.Time  `json:"created_at"`
	Hashed    *hashed    `json:"hashed,omitempty"`
	Parts     []partView `json:"parts,omitempty"`
}

// hashed is the SHA-256 of the first bytes of an upload.
type hashed struct {
	SizeBytes int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
}

type partView struct {
	Number    int32   `json:"number"`
	URL       string  `json:"url"`
	SizeBytes int64   `json:"size_bytes"`
	Done      bool    `json:"done"`
	ETag      *string `json:"etag"` // of the bytes that are there
}

func (p *pending) view() view {
	v := view{ID: p.ID, Name: p.Name, SizeBytes: p.SizeBytes, PartSize: p.PartSize, Status: p.Status, CreatedAt: p.CreatedAt}
	if p.SHA256 != "" {
		v.SHA256 = &p.SHA256
	}
	if p.Error != "" {
		v.Error = &p.Error
	}
	return v
}

// withParts adds the parts, with those done that the store has, and the digest
// of the first ones where that is known.
func (p *pending) withParts(done []store.Part) view {
	v := p.view()
	v.Parts = make([]partView, p.parts())
	for i := range v.Parts {
		n := int32(i + 1)
		v.Parts[i] = partView{Number: n, URL: fmt.Sprintf("/uploads/%s/parts/%d", p.ID, n), SizeBytes: p.partBytes(n)}
	}
	for _, d := range done {
		if int(d.Number) <= len(v.Parts) && d.Size == p.partBytes(d.Number) {
			v.Parts[d.Number-1].Done, v.Parts[d.Number-1].ETag = true, &d.ETag
		}
	}
	if first := p.Hashed.Offset / p.PartSize; first > 0 && p.Hashed.Offset < p.SizeBytes {
		done = done[:min(first, int64(len(done)))]
	}
	if sum, ok := p.hash(done); ok && sum.Offset() > 0 {
		v.Hashed = &hashed{sum.Offset(), sum.Sum256()}
	}
	return v
}

// hash returns the hash of parts, in this order, where it is known.
func (p *pending) hash(parts []store.Part) (*digest.Hasher, bool) {
	sum, err := digest.Resume(p.Hashed)
	return sum, err == nil && p.HashedParts == chainOf(parts)
}

// begin answers POST /uploads.
func (f *Function) begin(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name      string      `json:"name"`
		SizeBytes json.Number `json:"size_bytes"`
		SHA256    string      `json:"sha256"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	want, err := f.wanted(r, in.SHA256)
	if err != nil {
		return err
	}
	if _, err := image.ParseName(in.Name); err != nil {
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
	id := make([]byte, 16)
	_, _ = rand.Read(id) // never fails
	p := &pending{
		ID: hex.EncodeToString(id), Name: in.Name, SizeBytes: size, PartSize: f.partSizeFor(size), Status: uploading,
		CreatedAt: f.Now().UTC(), Actor: activity.Operator, SourceIP: web.ClientIP(r), Hashed: digest.New(false).State(),
		WantSHA256: want,
	}
	if p.UploadID, err = f.Images.CreateUpload(r.Context(), in.Name); err != nil {
		return err
	}
	if _, err := record.Swap(r.Context(), f.Catalog, layout.UploadKey(p.ID), p, ""); err != nil {
		return errors.Join(err, f.Images.AbortUpload(context.WithoutCancel(r.Context()), in.Name, p.UploadID))
	}
	w.Header().Set("Location", "/uploads/"+p.ID)
	v, err := f.linked(r.Context(), p, p.withParts(nil))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, v)
}

// wanted returns the SHA-256 that the client says the whole image has: in
// sha256, a field of the body, or in Repr-Digest. It is empty if it did not say.
func (f *Function) wanted(r *http.Request, sha256 string) (string, error) {
	e, err := digest.ParseRequest(http.Header{"Repr-Digest": r.Header.Values("Repr-Digest")})
	switch {
	case err != nil:
		return "", problem.New(problem.Invalid, err.Error())
	case sha256 != "" && !layout.IsHex256(sha256):
		return "", problem.New(problem.Malformed, "sha256 must be the SHA-256 of the image, 64 digits of lower case hexadecimal")
	case e != nil && e.SHA256 == "":
		return "", problem.New(problem.NotImplemented, "an upload in parts is compared with a SHA-256 only: send that")
	case e != nil && sha256 != "" && e.SHA256 != sha256:
		return "", problem.New(problem.Invalid, "sha256 and Repr-Digest contradict each other")
	case e != nil:
		sha256 = e.SHA256
	}
	if sha256 != "" && f.Links != nil {
		return "", problem.New(problem.NotImplemented, "the store does not say the SHA-256 of parts here: leave it out, and send the etags of the parts when completing")
	}
	return sha256, nil
}

func (f *Function) read(ctx context.Context, id string) (pending, error) {
	gone := problem.New(problem.NotFound, "there is no such upload; it may have been abandoned")
	if !layout.IsUploadID(id) {
		return pending{}, gone
	}
	p, _, err := record.Read[pending](ctx, f.Catalog, layout.UploadKey(id))
	switch {
	case errors.Is(err, record.ErrDamaged):
		return pending{}, problem.Wrap(problem.NotFound, "the record of this upload is damaged: upload the image again", err)
	case errors.Is(err, store.ErrNotFound):
		return pending{}, gone
	}
	return p, err
}

// show answers GET /uploads/{id}.
func (f *Function) show(w http.ResponseWriter, r *http.Request) error {
	p, err := f.read(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	if p.Status != uploading {
		return web.JSON(w, http.StatusOK, p.view())
	}
	done, err := f.Images.ListParts(r.Context(), p.Name, p.UploadID)
	if err != nil {
		return expired(err)
	}
	v, err := f.linked(r.Context(), &p, p.withParts(done))
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, v)
}

// expired explains that the store has no such multipart upload any more.
func expired(err error) error {
	if errors.Is(err, store.ErrNotFound) {
		return problem.Wrap(problem.NotFound, "the store has given this upload up: begin again", err)
	}
	return err
}

// listUploads answers GET /uploads: those that have not come to an end.
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

// An unread is the record of an upload that does not decode.
type unread struct {
	info store.Info
	err  error // matches record.ErrDamaged or record.ErrNewer
}

// pending returns every upload that has a record, the oldest first, and the
// records that do not decode.
func (f *Function) pending(ctx context.Context) (all []pending, left []unread, err error) {
	for info, err := range f.Catalog.List(ctx, layout.UploadPrefix, "") {
		if err != nil {
			return nil, nil, err
		}
		id, ok := layout.UploadID(info.Key)
		if !ok {
			continue
		}
		p, _, err := record.Read[pending](ctx, f.Catalog, layout.UploadKey(id))
		switch {
		case errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrNewer):
			left = append(left, unread{info, err})
		case errors.Is(err, store.ErrNotFound):
		case err != nil:
			return nil, nil, err
		default:
			all = append(all, p)
		}
	}
	slices.SortFunc(all, func(a, b pending) int { return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(a.ID, b.ID)) })
	return all, left, nil
}

// abandon answers DELETE /uploads/{id}.
func (f *Function) abandon(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	id := r.PathValue("id")
	p, err := f.read(ctx, id)
	if errors.Is(err, record.ErrDamaged) {
		// Its parts are removed once they are old enough to belong to no upload.
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
		// Between two tries it can be: the record decides which comes first.
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
		if err := f.Images.AbortUpload(ctx, p.Name, p.UploadID); err != nil {
			return err
		}
	}
	if err := record.Delete[pending](ctx, f.Catalog, layout.UploadKey(p.ID)); err != nil {
		return err
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "the upload of "+p.Name+" was abandoned")
}

// putPart answers PUT /uploads/{id}/parts/{number}.
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
	if want.Expected != nil { // of the part alone, which sum is not
		own := digest.New(want.has512())
		src = io.TeeReader(src, own)
		verify = func(*digest.Hasher) error { return want.verify(own) }
	}
	body := digest.NewReader(src, sum, verify, f.Metric.BytesUploaded)
	part, err := f.Images.UploadPart(ctx, p.Name, p.UploadID, n, body, r.ContentLength)
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

// hasherFor returns the hash of all parts before n where that is known, and
// one that nobody will ask where it is not.
func hasherFor(p *pending, n int32) (h *digest.Hasher, inOrder bool) {
	if p.Hashed.Offset == int64(n-1)*p.PartSize {
		if h, err := digest.Resume(p.Hashed); err == nil {
			return h, true
		}
	}
	return digest.New(false), false
}

// noteHash keeps the hash of the first parts up to date. A part that was
// hashed and is sent again may be another one, which its ETag tells: see [chain].
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

// chain adds a part to what tells which parts were hashed, in which order. A
// part can be sent again, and stored just after it was looked at: what is
// assembled is what was hashed only if the chains of both are the same.
func chain(before string, part store.Part) string {
	sum := sha256.Sum256([]byte(before + "\n" + part.ETag))
	return hex.EncodeToString(sum[:])
}

// complete answers POST /uploads/{id}/complete. Assembling takes minutes on
// some disks, so it happens after the answer.
func (f *Function) complete(w http.ResponseWriter, r *http.Request) error {
	ctx := r.Context()
	var in struct {
		SHA256 string   `json:"sha256"`
		ETags  []string `json:"etags"`
	}
	if r.ContentLength != 0 {
		if err := web.Decode(w, r, &in); err != nil {
			return err
		}
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
		done, err := f.Images.ListParts(ctx, p.Name, p.UploadID)
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
			cur.Status, cur.CompletingAt, cur.WantSHA256 = completing, f.Now().UTC(), p.WantSHA256
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

// compare compares the parts with what their sender says of them, if it does.
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

// verify refuses parts that are not what the client has said of the image.
func (p *pending) verify(parts []store.Part) error {
	if p.WantParts != "" && p.WantParts != chainOf(parts) {
		return problem.New(problem.Conflict, "a part was replaced after the upload was completed: send the image again")
	}
	if p.WantSHA256 == "" {
		return nil
	}
	sum, known := p.hash(parts)
	if !known || sum.Offset() != p.SizeBytes {
		return problem.New(problem.Conflict, "the SHA-256 of the parts is not known, since they did not come in order or a part was replaced: "+
			"begin another upload and send them in order, or complete it with the etags of the parts in place of the SHA-256")
	}
	return expected{&digest.Expected{SHA256: p.WantSHA256}}.verify(sum)
}

// missingParts names the first parts that are not there.
func missingParts(v view) string {
	const most = 10
	var missing []string
	for _, p := range v.Parts {
		if p.Done {
			continue
		}
		if len(missing) == most {
			missing = append(missing, "...")
			break
		}
		missing = append(missing, strconv.Itoa(int(p.Number)))
	}
	return strings.Join(missing, ", ")
}

// Handle does the work of one message of the assemblies queue.
func (f *Function) Handle(ctx context.Context, body []byte) error {
	task, err := queue.Decode(body)
	if err != nil {
		return err
	}
	switch t := task.(type) {
	case queue.Reconcile, queue.Resume:
		return f.Reconcile(ctx)
	case queue.Assemble:
		return f.handle(ctx, string(t))
	}
	return fmt.Errorf("not a task of the upload function: %.100q", body)
}

// handle assembles a resumable upload whose parts are all there.
func (f *Function) handle(ctx context.Context, id string) error {
	p, err := f.read(ctx, id)
	if err == nil && p.Status == completing && p.Error != "" {
		p, err = f.note(ctx, p.ID, "") // from here on it cannot be cancelled
	}
	if err != nil || p.Status != completing {
		return ignoreGone(err)
	}
	version, err := f.assemble(ctx, &p)
	if isFinal(err) || err != nil && f.Now().Sub(p.CompletingAt) > keep {
		return f.end(ctx, &p, reason(err))
	}
	if err == nil {
		err = f.finish(ctx, &p, version)
	}
	if err != nil && !queue.Outcome(err).Free { // else another process may be at it
		_, nerr := f.note(ctx, p.ID, reason(err))
		err = errors.Join(err, ignoreGone(nerr))
	}
	return err // comes back
}

// finish has the digest of an assembled upload recorded or computed, and ends
// the upload.
func (f *Function) finish(ctx context.Context, p *pending, version store.Version) error {
	if sum, err := digest.Resume(p.Hashed); err == nil && sum.Offset() == p.SizeBytes {
		p.SHA256 = sum.Sum256()
		if err := f.publish(ctx, p.Name, version, p.SHA256); err != nil {
			return err
		}
	} else if err := f.Inspections.Send(ctx, queue.InspectImage(p.Name).Encode(), 0); err != nil {
		return err
	}
	return f.end(ctx, p, "")
}

// reason returns the sentence that the record of an upload has for err.
func reason(err error) string {
	p := problem.From(err)
	if p.Code == problem.Internal {
		return "the store failed in a way that the server's log tells"
	}
	return p.Detail
}

// isFinal reports whether assembling the upload again would fail again.
func isFinal(err error) bool {
	for _, final := range []error{store.ErrChanged, store.ErrNotFound, store.ErrFull, store.ErrTooLarge, store.ErrOccupied, store.ErrRefused} {
		if errors.Is(err, final) {
			return true
		}
	}
	return false
}

// note records why the last try to assemble an upload failed, or that another
// one begins where failure is empty.
func (f *Function) note(ctx context.Context, id, failure string) (pending, error) {
	p, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(id), func(cur *pending, exists bool) error {
		switch {
		case !exists:
			return store.ErrNotFound
		case cur.Status != completing || cur.Error == failure:
			return record.ErrKeep
		}
		cur.Error = failure
		return nil
	})
	return p, err
}

func ignoreGone(err error) error {
	if errors.Is(err, record.ErrNewer) || problem.From(err) != nil && problem.From(err).Code == problem.NotFound {
		return nil
	}
	return err
}

// assemble completes the store's upload. Where an earlier try did already,
// the object that it made is the outcome.
func (f *Function) assemble(ctx context.Context, p *pending) (store.Version, error) {
	parts, err := f.Images.ListParts(ctx, p.Name, p.UploadID)
	// They were all there. A server removes them once it has made the object
	// of them, and may be killed when only some are gone.
	remains := err == nil && missingParts(p.withParts(parts)) != ""
	if remains {
		err = problem.Wrap(problem.Conflict,
			"it was put together, and replaced or deleted before that could be noted", store.ErrNotFound)
	}
	if err == nil {
		if err := p.verify(parts); err != nil {
			return store.Version{}, errors.Join(err, store.ErrRefused)
		}
		if p.HashedParts != chainOf(parts) {
			p.Hashed = digest.State{Offset: -1}
		}
		var v store.Version
		if v, err = f.Images.CompleteUpload(ctx, p.Name, p.UploadID, parts); err == nil {
			return v, nil
		}
	}
	gone := errors.Is(err, store.ErrNotFound)
	if !gone && !errors.Is(err, store.ErrChanged) {
		return store.Version{}, err
	}
	info, herr := f.Images.Head(ctx, p.Name)
	switch {
	case herr != nil && !errors.Is(herr, store.ErrNotFound):
		return store.Version{}, herr
	case herr == nil && info.Size == p.SizeBytes && !info.LastModified.Before(p.CreatedAt.Truncate(time.Second)):
		p.Hashed = digest.State{Offset: -1} // whether it is that object, only its bytes can tell
		return info.Version, nil
	case gone && !remains && f.Now().Sub(p.CompletingAt) < assembleTime:
		return store.Version{}, queue.RetryAfter(30*time.Second, problem.New(problem.Unavailable, "the store may still be assembling the parts"))
	}
	return store.Version{}, err
}

func chainOf(parts []store.Part) (c string) {
	for _, p := range parts {
		c = chain(c, p)
	}
	return c
}

// end records how an upload came to its end. The parts of one that failed are
// removed; where that fails, [Function.Reconcile] does it in time.
func (f *Function) end(ctx context.Context, p *pending, failure string) error {
	ended := false
	_, _, err := record.Change(ctx, f.Catalog, layout.UploadKey(p.ID), func(cur *pending, exists bool) error {
		if ended = exists && cur.Status == completing; !ended {
			return record.ErrKeep
		}
		cur.Status, cur.SHA256, cur.Hashed, cur.Error = completed, p.SHA256, digest.State{}, ""
		if failure != "" {
			cur.Status, cur.Error = failed, failure
		}
		return nil
	})
	if err != nil || !ended {
		return err
	}
	e := activity.Event{
		Kind: activity.ImageUploaded, SubjectKind: activity.SubjectImage, SubjectID: p.Name, Actor: p.Actor, SourceIP: p.SourceIP,
		Summary: "uploaded " + p.Name, Details: map[string]any{"size_bytes": p.SizeBytes, "sha256": p.SHA256},
	}
	if failure != "" {
		e.Kind, e.Summary, e.Details = activity.ImageUploadFailed, "upload of "+p.Name+" failed", map[string]any{"error": failure}
		if err := f.Images.AbortUpload(ctx, p.Name, p.UploadID); err != nil {
			f.Log.Warn("the parts of an upload that failed are left for now", "name", p.Name, "error", err)
		}
	}
	f.Activity.Add(ctx, e)
	f.Log.Info("upload assembled", "name", p.Name, "bytes", p.SizeBytes, "sha256", p.SHA256, "error", failure)
	return nil
}

// keep is how long an upload is kept after its last part, how long it is tried
// to assemble one, and how long the record of one that has ended is kept after
// its beginning, for its client to ask.
const keep = 7 * 24 * time.Hour

// Reconcile goes on with uploads whose assembly was interrupted, and gives up
// those whose clients are not coming back.
func (f *Function) Reconcile(ctx context.Context) error {
	all, left, err := f.pending(ctx)
	if err != nil {
		return err
	}
	var errs []error // of one upload, which must not keep the others from their end
	newer := false
	for _, u := range left {
		key := u.info.Key
		f.Log.Warn("record of an upload left out", "key", key, "error", u.err, "remedy", record.Remedy(key, u.err))
		if errors.Is(u.err, record.ErrNewer) {
			newer = true
		} else if f.Now().Sub(u.info.LastModified) > keep {
			errs = append(errs, record.Delete[pending](ctx, f.Catalog, key))
		}
	}
	inUse := map[string]bool{}
	for _, p := range all {
		var err error
		idle := false
		switch p.Status {
		case completing:
			err = f.Assemblies.Send(ctx, queue.Assemble(p.ID).Encode(), 0)
		case uploading:
			idle, err = f.giveUp(ctx, p.Name, p.UploadID, p.CreatedAt)
		default:
			idle = f.Now().Sub(p.CreatedAt) > keep
		}
		if idle && err == nil {
			err = record.Delete[pending](ctx, f.Catalog, layout.UploadKey(p.ID))
		}
		errs = append(errs, err)
		inUse[p.UploadID] = p.Status == uploading || p.Status == completing
	}
	if newer {
		return errors.Join(errs...) // which parts are theirs, that version knows
	}
	// S3 clients leave parts behind as well.
	for u, err := range f.Images.PendingUploads(ctx, "") {
		if err == nil && !inUse[u.ID] {
			_, err = f.giveUp(ctx, u.Key, u.ID, u.Initiated)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// giveUp aborts an upload of the store's that no part has come for since keep,
// and reports whether it did.
func (f *Function) giveUp(ctx context.Context, name, id string, began time.Time) (bool, error) {
	old := func(t time.Time) bool { return f.Now().Sub(t) > keep }
	if !old(began) {
		return false, nil
	}
	parts, err := f.Images.ListParts(ctx, name, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return false, err
	}
	for _, p := range parts {
		if !old(p.LastModified) {
			return false, nil
		}
	}
	return true, f.Images.AbortUpload(ctx, name, id)
}

var _ queue.Handler = (*Function)(nil).Handle

package upload

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// States of a resumable upload.
const (
	uploading  = "uploading"
	completing = "completing"
	completed  = "completed"
	failed     = "failed"
)

// pending is the record of a resumable upload. The store lists the parts.
type pending struct {
	record.Meta
	ID        string        `json:"id"`
	Name      image.Name    `json:"name"`
	SizeBytes int64         `json:"size_bytes"`
	PartSize  int64         `json:"part_size"`
	UploadID  string        `json:"upload_id"` // the store's
	Status    string        `json:"status"`
	Error     string        `json:"error,omitempty"` // of the last try to assemble it
	SHA256    layout.SHA256 `json:"sha256,omitempty"`
	CreatedAt time.Time     `json:"created_at"`
	Actor     string        `json:"actor"`
	SourceIP  string        `json:"source_ip"`
	// Hashed is the hash of the first parts, as far as they arrived in order, and
	// HashedParts is the chain of those parts: see [chain].
	Hashed      digest.State `json:"hashed"`
	HashedParts string       `json:"hashed_parts"`
	// CompletingAt is when the client completed the upload.
	CompletingAt time.Time `json:"completing_at,omitzero"`
	// WantSHA256 is the SHA-256 that the client has declared for the image, and
	// WantParts the chain of the parts that it has declared. Both are "" if it has
	// declared none.
	WantSHA256 layout.SHA256 `json:"want_sha256,omitempty"`
	WantParts  string        `json:"want_parts,omitempty"`
	// Create is true if the upload replaces no image: If-None-Match: *.
	Create bool `json:"create,omitempty"`
}

// Validate implements [record.Validator].
func (p *pending) Validate() error {
	switch {
	case !layout.IsUploadID(p.ID) || !p.Name.Valid() || p.SizeBytes < 1 || p.PartSize < 1:
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

// A view is a resumable upload in the API.
type view struct {
	ID        string         `json:"id"`
	Name      image.Name     `json:"name"`
	SizeBytes int64          `json:"size_bytes"`
	PartSize  int64          `json:"part_size"`
	Status    string         `json:"status"`
	Create    bool           `json:"create"`
	SHA256    *layout.SHA256 `json:"sha256"`
	Error     *string        `json:"error"`
	CreatedAt time.Time      `json:"created_at"`
	// ArrivedBytes is the number of the first bytes that have arrived, without those that
	// came before their turn.
	ArrivedBytes int64      `json:"arrived_bytes"`
	Hashed       *hashed    `json:"hashed,omitempty"`
	Parts        []partView `json:"parts,omitempty"`
}

// hashed is the SHA-256 of the first bytes of an upload.
type hashed struct {
	SizeBytes int64         `json:"size_bytes"`
	SHA256    layout.SHA256 `json:"sha256"`
}

type partView struct {
	Number    int32   `json:"number"`
	URL       string  `json:"url"`
	SizeBytes int64   `json:"size_bytes"`
	Done      bool    `json:"done"`
	ETag      *string `json:"etag"` // of the stored bytes
}

func (p *pending) view() view {
	v := view{ID: p.ID, Name: p.Name, SizeBytes: p.SizeBytes, PartSize: p.PartSize, Status: p.Status, Create: p.Create, CreatedAt: p.CreatedAt}
	switch p.Status {
	case uploading:
		v.ArrivedBytes = max(0, p.Hashed.Offset)
	case completing, completed:
		v.ArrivedBytes = p.SizeBytes
	}
	if p.SHA256 != "" {
		v.SHA256 = &p.SHA256
	}
	if p.Error != "" {
		v.Error = &p.Error
	}
	return v
}

// withParts adds the parts, those in done as done, and the digest of the first
// ones if it is known.
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

// hash returns the hash of parts, in this order, if it is known.
func (p *pending) hash(parts []store.Part) (*digest.Hasher, bool) {
	sum, err := digest.Resume(p.Hashed)
	return sum, err == nil && p.HashedParts == chainOf(parts)
}

// verify refuses parts that differ from what the client has declared.
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
	return expected{SHA256: p.WantSHA256}.verify(sum)
}

// chain appends a part to a chain of ETags, which identifies parts and their
// order. A part can be sent again, and stored just after it was listed: the
// assembled bytes are the hashed ones only if the chains of both are equal.
func chain(before string, part store.Part) string {
	sum := sha256.Sum256([]byte(before + "\n" + part.ETag))
	return hex.EncodeToString(sum[:])
}

func chainOf(parts []store.Part) (c string) {
	for _, p := range parts {
		c = chain(c, p)
	}
	return c
}

// missingParts returns the numbers of the first missing parts, or "" if none is
// missing.
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

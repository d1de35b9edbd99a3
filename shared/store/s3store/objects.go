package s3store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sync/errgroup"

	"imageroot/shared/store"
)

func infoOf(key store.Key, etag *string, size *int64, modified *time.Time) store.Info {
	return store.Info{Key: key, Version: store.Version{ETag: unquote(etag), Size: aws.ToInt64(size), LastModified: aws.ToTime(modified)}}
}

func (r *Root) Head(ctx context.Context, key store.Key) (store.Info, error) {
	ctx, cancel := brief(ctx)
	defer cancel()
	out, err := r.s3.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &r.bucket, Key: r.key(key)})
	if err != nil {
		return store.Info{}, wrap("head", key, err)
	}
	return infoOf(key, out.ETag, out.ContentLength, out.LastModified), nil
}

func (r *Root) Get(ctx context.Context, key store.Key, rg store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	in := &s3.GetObjectInput{Bucket: &r.bucket, Key: r.key(key)}
	if ifMatch != "" {
		in.IfMatch = quote(ifMatch)
	}
	switch {
	case rg.Length == 0:
		return nil, store.Info{}, fmt.Errorf("read %q: a range of no bytes", key)
	case rg.Length > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", rg.Offset, rg.Offset+rg.Length-1))
	case rg.Offset > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", rg.Offset))
	}
	// Only the head of the response has a deadline: the body may take hours.
	ctx, cancel := context.WithCancel(ctx)
	late := time.AfterFunc(answerTimeout, cancel)
	out, err := r.s3.GetObject(ctx, in)
	if !late.Stop() && err != nil {
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	if err != nil {
		cancel()
		if status(err) == http.StatusPreconditionFailed {
			err = store.ErrChanged
		}
		return nil, store.Info{}, wrap("read", key, err)
	}
	info := infoOf(key, out.ETag, out.ContentLength, out.LastModified)
	if in.Range != nil {
		total, err := totalOf(aws.ToString(out.ContentRange))
		if err != nil {
			out.Body.Close()
			cancel()
			return nil, store.Info{}, fmt.Errorf("read %q: %w", key, err)
		}
		info.Size = total
	}
	return &body{out.Body, ctx, cancel}, info, nil
}

// A body ends when the context of its request ends. Closing it ends the request.
type body struct {
	io.ReadCloser
	ctx context.Context
	end context.CancelFunc
}

// Read implements io.Reader. It checks the context itself, since the transport does so
// on another goroutine, perhaps late.
func (b *body) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

func (b *body) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// totalOf returns the complete length in a Content-Range (RFC 9110 section 14.4).
func totalOf(contentRange string) (int64, error) {
	var first, last, total int64
	if _, err := fmt.Sscanf(contentRange, "bytes %d-%d/%d", &first, &last, &total); err != nil {
		return 0, fmt.Errorf("the server answered a range with Content-Range %q", contentRange)
	}
	return total, nil
}

const (
	// unknownSizePart is the size of the first parts in which a body of unknown size is
	// buffered. S3 needs the length of a part before its first byte. Later parts are larger,
	// so that store.MaxParts suffice.
	unknownSizePart = 16 << 20
	// partsInFlight is the number of these parts that are sent while the next one is read,
	// and partTries how often each is.
	partsInFlight, partTries = 2, 3
)

// Put implements store.Objects. It sends a body of more than [store.MaxPutBytes], or of
// unknown size and more than one part, as a multipart upload.
func (r *Root) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return r.put(ctx, key, body, size, nil)
}

// Create implements store.Objects.
func (r *Root) Create(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return r.creating(ctx, key, func() (store.Version, error) { return r.put(ctx, key, body, size, absent) })
}

// creating calls write, which writes an object if there is none.
func (r *Root) creating(ctx context.Context, key store.Key, write func() (store.Version, error)) (store.Version, error) {
	// Some servers ignore IfNoneMatch when they complete an upload.
	if err := r.isFree(ctx, key); err != nil {
		return store.Version{}, err
	}
	v, err := write()
	if errors.Is(err, store.ErrConflict) {
		// AWS refuses one of two writes at once, also if the other one fails then.
		if taken := r.isFree(ctx, key); taken == nil {
			err = fmt.Errorf("write %q: another write at the same time: %w", key, store.ErrUnavailable)
		}
	}
	return v, err
}

func (r *Root) put(ctx context.Context, key store.Key, body io.Reader, size int64, ifNoneMatch *string) (store.Version, error) {
	if size >= 0 && size <= store.MaxPutBytes {
		return r.putOne(ctx, key, body, size, ifNoneMatch)
	}
	if size > 0 {
		return r.putParts(ctx, key, ifNoneMatch, func(id string) ([]store.Part, error) { return r.sendStream(ctx, key, id, body, size) })
	}
	first, err := store.ReadUpTo(body, unknownSizePart)
	if err != nil {
		return store.Version{}, fmt.Errorf("write %q: %w", key, err)
	}
	if len(first) < unknownSizePart {
		return r.putOne(ctx, key, bytes.NewReader(first), int64(len(first)), ifNoneMatch)
	}
	return r.putParts(ctx, key, ifNoneMatch, func(id string) ([]store.Part, error) { return r.sendBuffered(ctx, key, id, first, body) })
}

func (r *Root) putOne(ctx context.Context, key store.Key, body io.Reader, size int64, ifNoneMatch *string) (store.Version, error) {
	sctx, body, sent := sending(ctx, body, size)
	out, err := r.s3.PutObject(sctx, &s3.PutObjectInput{
		Bucket: &r.bucket, Key: r.key(key), Body: body, ContentLength: &size,
		ContentType: aws.String("application/octet-stream"), IfNoneMatch: ifNoneMatch,
	}, streamed)
	if err = sent(err); err != nil {
		return store.Version{}, wrap("write", key, err)
	}
	return r.written(ctx, key, unquote(out.ETag), size)
}

// putParts writes an object as a multipart upload of the parts that send sends. If it
// fails, it aborts the upload.
func (r *Root) putParts(ctx context.Context, key store.Key, ifNoneMatch *string, send func(id string) ([]store.Part, error)) (_ store.Version, err error) {
	id, err := r.CreateUpload(ctx, key)
	if err != nil {
		return store.Version{}, err
	}
	defer func() {
		if err != nil && !errors.Is(err, store.ErrChanged) {
			// The caller's context may have ended.
			_ = r.AbortUpload(context.WithoutCancel(ctx), key, id)
		}
	}()
	parts, err := send(id)
	if err != nil {
		return store.Version{}, err
	}
	return r.completeUpload(ctx, key, id, parts, ifNoneMatch)
}

// sendStream sends size bytes of body in few large parts: each is one streamed request.
func (r *Root) sendStream(ctx context.Context, key store.Key, id string, body io.Reader, size int64) ([]store.Part, error) {
	var parts []store.Part
	for most := store.PartSize(size, 1<<30, store.MaxParts); size > 0; {
		n := min(most, size)
		part, err := r.UploadPart(ctx, key, id, int32(len(parts)+1), io.LimitReader(body, n), n)
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		size -= n
	}
	return parts, nil
}

// sendBuffered sends the first part and the rest of body. It holds partsInFlight parts, and
// the next one.
func (r *Root) sendBuffered(ctx context.Context, key store.Key, id string, part []byte, body io.Reader) ([]store.Part, error) {
	var mu sync.Mutex
	var parts []store.Part
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(partsInFlight)
	var err error
	for n := int32(1); len(part) > 0 && err == nil && gctx.Err() == nil; n++ {
		if n > store.MaxParts {
			err = store.ErrTooLarge
			break
		}
		data := part
		group.Go(func() error {
			sent, err := r.sendPart(gctx, key, id, n, data)
			mu.Lock()
			defer mu.Unlock()
			parts = append(parts, sent)
			return err
		})
		part, err = store.ReadUpTo(body, unknownSizePart<<((n+1)/2000))
	}
	if failed := group.Wait(); failed != nil {
		return nil, failed
	}
	if err != nil {
		return nil, fmt.Errorf("write %q: %w", key, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	slices.SortFunc(parts, func(a, b store.Part) int { return cmp.Compare(a.Number, b.Number) })
	return parts, nil
}

// sendPart sends a part that is in memory, again if S3 fails for a while.
func (r *Root) sendPart(ctx context.Context, key store.Key, id string, n int32, part []byte) (store.Part, error) {
	for try := 1; ; try++ {
		sent, err := r.UploadPart(ctx, key, id, n, bytes.NewReader(part), int64(len(part)))
		if try == partTries || !errors.Is(err, store.ErrUnavailable) {
			return sent, err
		}
		select {
		case <-time.After(time.Duration(try) * time.Second):
		case <-ctx.Done():
			return store.Part{}, err
		}
	}
}

// written returns the version of an object that was just written with this ETag.
func (r *Root) written(ctx context.Context, key store.Key, etag string, size int64) (store.Version, error) {
	info, err := r.Head(ctx, key)
	if errors.Is(err, store.ErrNotFound) || err == nil && (info.ETag != etag || info.Size != size) {
		return store.Version{}, fmt.Errorf("write %q: %w", key, store.ErrChanged)
	}
	return info.Version, err
}

// streamed configures a request whose body is read once: it is neither hashed for
// the signature nor sent again. The client adds no checksum, since a server may
// refuse to complete an upload with a part whose checksum it did not announce.
func streamed(o *s3.Options) {
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	o.Retryer = aws.NopRetryer{}
}

// slowest is the minimum speed of a server's disk, in bytes per second.
const slowest = 4 << 20

// sending returns the context and the body for a request that sends size bytes of body.
// The context ends if the server accepts no bytes, or has received all and does not
// respond, for too long. The time that reads of body take does not count. The caller
// must pass the request's error to the returned function, which returns the error to
// report.
func sending(ctx context.Context, body io.Reader, size int64) (context.Context, io.Reader, func(error) error) {
	ctx, cancel := context.WithCancel(ctx)
	answer := answerTimeout + time.Duration(size/slowest)*time.Second
	late := time.AfterFunc(answer, cancel)
	sent := func(err error) error {
		if !late.Stop() && err != nil {
			err = fmt.Errorf("%w: %w", store.ErrUnavailable, err)
		}
		cancel()
		return err
	}
	if size == 0 {
		// The client would send an empty reader of unknown length in chunks.
		return ctx, http.NoBody, sent
	}
	return ctx, &outgoing{body, size, late, answer}, sent
}

// An outgoing body hides all methods of a reader but Read.
type outgoing struct {
	body   io.Reader
	left   int64
	late   *time.Timer
	answer time.Duration
}

func (o *outgoing) Read(p []byte) (int, error) {
	if !o.late.Stop() {
		return 0, store.ErrUnavailable
	}
	n, err := o.body.Read(p)
	if o.left -= int64(n); o.left > 0 && err == nil {
		o.late.Reset(answerTimeout)
	} else {
		o.late.Reset(o.answer)
	}
	return n, err
}

func (r *Root) Delete(ctx context.Context, key store.Key) error {
	ctx, cancel := brief(ctx)
	defer cancel()
	_, err := r.s3.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &r.bucket, Key: r.key(key)})
	if err = wrap("delete", key, err); errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// A pager is a listing of several pages.
type pager[T any] interface {
	NextPage(context.Context, ...func(*s3.Options)) (T, error)
}

func nextPage[T any](ctx context.Context, p pager[T]) (T, error) {
	ctx, cancel := brief(ctx)
	defer cancel()
	return p.NextPage(ctx)
}

func (r *Root) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	in := &s3.ListObjectsV2Input{Bucket: &r.bucket, Prefix: aws.String(r.prefix + prefix), Delimiter: aws.String("/")}
	if after != "" {
		in.StartAfter = r.key(after)
	}
	return func(yield func(store.Info, error) bool) {
		pages := s3.NewListObjectsV2Paginator(r.s3, in)
		for pages.HasMorePages() {
			page, err := nextPage(ctx, pages)
			if err != nil {
				yield(store.Info{}, wrap("list", prefix, err))
				return
			}
			for _, o := range page.Contents {
				key := r.relative(o.Key)
				if key == "" || strings.HasSuffix(string(key), "/") {
					continue // a "folder" that a console made, not an object
				}
				if !yield(infoOf(key, o.ETag, o.Size, o.LastModified), nil) {
					return
				}
			}
		}
	}
}

const (
	// copyPart is the size of the parts of a large copy, if store.MaxParts of them
	// suffice. AWS takes a second or two for one, and 15 seconds for 1 GiB.
	copyPart = 128 << 20
	// copies is the number of parts copied in parallel.
	copies = 16
)

// Move implements store.Objects. It copies, and leaves src.
func (r *Root) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	// Some servers ignore IfNoneMatch.
	if err := r.isFree(ctx, dst); err != nil {
		return store.Version{}, err
	}
	etag, err := r.copyWhole(ctx, dst, src, v)
	if err != nil && kindOf(err) != store.ErrConflict && v.Size > store.MaxPutBytes {
		// Some servers copy any size in one request, AWS up to 5 GiB.
		etag, err = r.copyParts(ctx, dst, src, v, max(copyPart, (v.Size+store.MaxParts-1)/store.MaxParts))
	}
	if kindOf(err) == store.ErrConflict {
		if taken := r.isFree(ctx, dst); taken != nil {
			return store.Version{}, taken
		}
		err = store.ErrChanged // the condition on src
	}
	if err != nil {
		return store.Version{}, wrap("move to "+string(dst), src, err)
	}
	return r.written(ctx, dst, unquote(etag), v.Size)
}

// isFree returns nil if no object has the key, and [store.ErrConflict] if one has.
func (r *Root) isFree(ctx context.Context, key store.Key) error {
	_, err := r.Head(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err == nil:
		err = fmt.Errorf("write %q: %w", key, store.ErrConflict)
	}
	return err
}

// absent is the condition that an object does not exist.
var absent = aws.String("*")

// under calls write with a condition, or nil, and again without it if the server does not
// implement the condition.
func under(ifNoneMatch *string, write func(ifNoneMatch *string) error) error {
	err := write(ifNoneMatch)
	if ifNoneMatch != nil && kindOf(err) == errors.ErrUnsupported {
		err = write(nil)
	}
	return err
}

// copyWhole copies an object in one request, and returns the ETag of the copy.
func (r *Root) copyWhole(ctx context.Context, dst, src store.Key, v store.Version) (etag *string, err error) {
	err = under(absent, func(ifNoneMatch *string) error {
		out, err := r.s3.CopyObject(ctx, &s3.CopyObjectInput{
			Bucket: &r.bucket, Key: r.key(dst), CopySource: r.source(src), CopySourceIfMatch: quote(v.ETag), IfNoneMatch: ifNoneMatch,
		})
		if err == nil {
			etag = out.CopyObjectResult.ETag
		}
		return err
	})
	return etag, err
}

// source returns the CopySource of an object.
func (r *Root) source(key store.Key) *string {
	path := (&url.URL{Path: r.bucket + "/" + r.prefix + string(key)}).EscapedPath()
	return aws.String(strings.ReplaceAll(path, "+", "%2B")) // some servers take a plus for a space
}

// copyParts copies an object in parts of partSize bytes, and returns the ETag of the copy.
func (r *Root) copyParts(ctx context.Context, dst, src store.Key, v store.Version, partSize int64) (etag *string, err error) {
	id, err := r.CreateUpload(ctx, dst)
	if err != nil {
		return nil, err
	}
	parts := make([]store.Part, (v.Size+partSize-1)/partSize)
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(copies)
	for i := range parts {
		group.Go(func() error {
			n, at := int32(i+1), int64(i)*partSize
			end := min(at+partSize, v.Size)
			out, err := r.s3.UploadPartCopy(gctx, &s3.UploadPartCopyInput{
				Bucket: &r.bucket, Key: r.key(dst), UploadId: &id, PartNumber: &n, CopySource: r.source(src), CopySourceIfMatch: quote(v.ETag),
				CopySourceRange: aws.String(fmt.Sprintf("bytes=%d-%d", at, end-1)),
			})
			if err != nil {
				return err
			}
			parts[i] = store.Part{Number: n, ETag: unquote(out.CopyPartResult.ETag), Size: end - at}
			return nil
		})
	}
	if err = group.Wait(); err == nil {
		err = under(absent, func(ifNoneMatch *string) (err error) {
			etag, err = r.complete(ctx, dst, id, parts, ifNoneMatch)
			return err
		})
	}
	if err != nil {
		_ = r.AbortUpload(context.WithoutCancel(ctx), dst, id)
	}
	return etag, err
}

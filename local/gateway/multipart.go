package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pkg/xattr"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
	"golang.org/x/sys/unix"
)

// inProgress ends the name of an upload's directory while its parts are put
// together.
const inProgress = ".inprogress"

// uploads is the directory of the uploads of p.
func (p place) uploads() string {
	return filepath.Join(p.dir, posix.MetaTmpMultipartDir, fmt.Sprintf("%x", sha256.Sum256([]byte(p.key))))
}

// CreateMultipartUpload implements backend.Backend.
func (b *backend) CreateMultipartUpload(ctx context.Context, in s3response.CreateMultipartUploadInput) (s3response.InitiateMultipartUploadResult, error) {
	p, err := b.object(in.Bucket, in.Key, true)
	if err == nil {
		err = p.writable()
	}
	if err != nil {
		return s3response.InitiateMultipartUploadResult{}, b.answer("begin upload of", p, err)
	}
	in.Bucket, in.Key = &p.dir, &p.key
	out, err := b.posix.CreateMultipartUpload(ctx, in)
	out.Bucket, out.Key = p.bucket, p.key
	return out, b.answer("begin upload of", p, err)
}

// upload returns where the object of an upload will be. The ID is a name of
// one directory, never a path.
func (b *backend) upload(bucket, key, id *string) (place, string, error) {
	p, err := b.object(bucket, key, true)
	if err != nil {
		return p, "", b.answer("find upload of", p, err)
	}
	if id == nil || !uploadID(*id) {
		return p, "", s3err.GetNoSuchUploadErr("")
	}
	return p, strings.Clone(*id), nil
}

// uploadID reports whether s can be the ID of an upload: a UUID.
func uploadID(s string) bool {
	return len(s) == 36 && strings.Trim(s, "0123456789abcdef-") == ""
}

// UploadPart implements backend.Backend.
func (b *backend) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return nil, err
	}
	out, err := b.putPart(ctx, p, id, *in)
	return out, b.answer("write part of", p, err)
}

// putPart writes a part, durably: a client that resumes after a power cut
// believes the list of parts.
func (b *backend) putPart(ctx context.Context, p place, id string, in s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	var size int64
	if in.ContentLength != nil {
		size = *in.ContentLength
	}
	if err := room(p.dir, size); err != nil {
		return nil, err
	}
	if in.Body != nil {
		in.Body = &upload{in.Body, size}
	}
	in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
	dir := filepath.Join(p.uploads(), id)
	var held *os.File
	var etag string
	release := func() {}
	out, err := b.posix.UploadPartWithPostFunc(ctx, &in, func(part *os.File) (err error) {
		if held, err = holdUpload(dir, id); err != nil {
			return err
		}
		if etag, err = distinguish(dir, *in.PartNumber, part); err != nil {
			return err
		}
		release = assemble(dir, *in.PartNumber, part)
		return part.Sync()
	})
	release()
	held.Close() // nil is fine
	if err != nil {
		// The upload was aborted or completed under the part.
		if _, gone := os.Stat(dir); errors.Is(gone, fs.ErrNotExist) {
			return nil, s3err.GetNoSuchUploadErr(id)
		}
		return nil, err
	}
	if err := syncDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	out.ETag = &etag
	return out, nil
}

// distinguish makes a part's ETag its own and returns it. What versitygw has
// stored is a CRC, which other bytes can be made to have; who compares ETags
// must not take them for the part that was sent. The same bytes sent again as
// part n of the upload in dir keep their ETag.
func distinguish(dir string, n int32, part *os.File) (string, error) {
	value, err := xattr.FGet(part, attrPrefix+attrETag)
	if err != nil {
		return "", err
	}
	sum := strings.Trim(string(value), `"`)
	etag, again := sentBefore(dir, n, sum, part)
	if !again {
		etag = fmt.Sprintf("%q", sum+"-"+rand.Text())
	}
	return etag, xattr.FSet(part, attrPrefix+attrETag, []byte(etag))
}

// sentBefore returns the ETag of the part n that the upload in dir has already,
// if it has the bytes of part, whose CRC is sum. A part that cannot be read is
// another one.
func sentBefore(dir string, n int32, sum string, part *os.File) (etag string, yes bool) {
	before, err := os.Open(filepath.Join(dir, fmt.Sprint(n)))
	if err != nil {
		return "", false
	}
	defer before.Close()
	value, err := xattr.FGet(before, attrPrefix+attrETag)
	if err != nil || !strings.HasPrefix(strings.Trim(string(value), `"`), sum+"-") {
		return "", false
	}
	from, err := part.Stat()
	if err != nil {
		return "", false
	}
	to, err := before.Stat()
	if err != nil || from.Size() != to.Size() {
		return "", false
	}
	at, in, err := placed(subject{file: before})
	if err != nil {
		return "", false
	}
	if in {
		whole, err := openAssembly(dir)
		if err != nil || whole == nil {
			return "", false
		}
		defer whole.Close()
		before = whole.File
	}
	same, err := equal(io.NewSectionReader(part, 0, from.Size()), io.NewSectionReader(before, at, from.Size()))
	return string(value), same && err == nil
}

// equal reports whether two readers of one length have the same bytes.
func equal(a, b io.Reader) (bool, error) {
	const block = 256 << 10
	one, other := make([]byte, block), make([]byte, block)
	for {
		n, err := io.ReadFull(a, one)
		if _, otherErr := io.ReadFull(b, other[:n]); otherErr != nil {
			return false, otherErr
		}
		if !bytes.Equal(one[:n], other[:n]) {
			return false, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
	}
}

// UploadPartCopy implements backend.Backend.
func (b *backend) UploadPartCopy(ctx context.Context, in *s3.UploadPartCopyInput) (s3response.CopyPartResult, error) {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	out, err := b.copyPart(ctx, p, id, in)
	return out, b.answer("copy part of", p, err)
}

func (b *backend) copyPart(ctx context.Context, p place, id string, in *s3.UploadPartCopyInput) (s3response.CopyPartResult, error) {
	_, f, v, err := b.source(ctx, in.CopySource, in.ExpectedSourceBucketOwner)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	defer f.Close()
	err = vgw.EvaluatePreconditions(v.etag(), v.modTime(), vgw.PreConditions{
		IfMatch: in.CopySourceIfMatch, IfNoneMatch: in.CopySourceIfNoneMatch,
		IfModSince: in.CopySourceIfModifiedSince, IfUnmodeSince: in.CopySourceIfUnmodifiedSince,
	})
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	var asked string
	if in.CopySourceRange != nil {
		asked = *in.CopySourceRange
	}
	start, length, err := vgw.ParseCopySourceRange(v.size, asked)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	length = min(length, v.size-start)
	if length > maxCopy {
		return s3response.CopyPartResult{}, s3err.GetCopySourceObjectTooLargeErr(maxCopy)
	}
	part := s3.UploadPartInput{
		PartNumber: in.PartNumber, ContentLength: &length,
		Body: still{io.NewSectionReader(f, start, length), f, v},
	}
	if err := askForSum(p, id, &part); err != nil {
		return s3response.CopyPartResult{}, err
	}
	out, err := b.putPart(ctx, p, id, part)
	if err != nil {
		return s3response.CopyPartResult{}, err
	}
	return s3response.CopyPartResult{
		ETag: out.ETag, LastModified: b.now(),
		ChecksumCRC32: out.ChecksumCRC32, ChecksumCRC32C: out.ChecksumCRC32C, ChecksumCRC64NVME: out.ChecksumCRC64NVME,
		ChecksumSHA1: out.ChecksumSHA1, ChecksumSHA256: out.ChecksumSHA256, ChecksumSHA512: out.ChecksumSHA512,
		ChecksumMD5: out.ChecksumMD5, ChecksumXXHASH64: out.ChecksumXXHASH64, ChecksumXXHASH3: out.ChecksumXXHASH3,
		ChecksumXXHASH128: out.ChecksumXXHASH128,
	}, nil
}

// ListParts implements backend.Backend.
func (b *backend) ListParts(ctx context.Context, in *s3.ListPartsInput) (s3response.ListPartsResult, error) {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return s3response.ListPartsResult{}, err
	}
	copied := *in
	copied.Bucket, copied.Key, copied.UploadId = &p.dir, &p.key, &id
	out, err := b.posix.ListParts(ctx, &copied)
	out.Bucket = p.bucket
	return out, b.answer("list parts of", p, err)
}

// ListMultipartUploads implements backend.Backend.
func (b *backend) ListMultipartUploads(ctx context.Context, in *s3.ListMultipartUploadsInput) (s3response.ListMultipartUploadsResult, error) {
	name, dir, err := b.bucket(in.Bucket)
	if err != nil {
		return s3response.ListMultipartUploadsResult{}, err
	}
	enc, err := encodingOf(ctx)
	if err != nil {
		return s3response.ListMultipartUploadsResult{}, err
	}
	copied := *in
	copied.Bucket = &dir
	out, err := b.posix.ListMultipartUploads(ctx, &copied)
	out.Bucket = name
	out.EncodingType = string(enc)
	enc.encode(&out.Prefix, &out.Delimiter, &out.KeyMarker, &out.NextKeyMarker)
	for i := range out.Uploads {
		enc.encode(&out.Uploads[i].Key)
	}
	for i := range out.CommonPrefixes {
		enc.encode(&out.CommonPrefixes[i].Prefix)
	}
	return out, b.answer("list uploads", place{bucket: name}, err)
}

// AbortMultipartUpload implements backend.Backend.
func (b *backend) AbortMultipartUpload(ctx context.Context, in *s3.AbortMultipartUploadInput) error {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return err
	}
	claim, err := claimUpload(ctx, p, id)
	if errors.Is(err, fs.ErrNotExist) {
		return s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return b.answer("abort upload of", p, err)
	}
	defer claim.Close()
	copied := *in
	copied.Bucket, copied.Key, copied.UploadId = &p.dir, &p.key, &id
	return b.answer("abort upload of", p, b.posix.AbortMultipartUpload(ctx, &copied))
}

// CompleteMultipartUpload implements backend.Backend. A repeat of the request
// waits for the first one; after that it is answered as the first one was, as
// long as the object is the upload's.
func (b *backend) CompleteMultipartUpload(ctx context.Context, in *s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, string, error) {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return s3response.CompleteMultipartUploadResult{}, "", err
	}
	out, err := b.complete(ctx, p, id, *in)
	if err != nil {
		return s3response.CompleteMultipartUploadResult{}, "", b.answer("complete upload of", p, err)
	}
	out.Bucket, out.Key = &p.bucket, &p.key
	return out, "", nil
}

func (b *backend) complete(ctx context.Context, p place, id string, in s3.CompleteMultipartUploadInput) (s3response.CompleteMultipartUploadResult, error) {
	var none s3response.CompleteMultipartUploadResult
	if err := p.writable(); err != nil {
		return none, err
	}
	claim, err := claimUpload(ctx, p, id)
	if errors.Is(err, fs.ErrNotExist) {
		v, completed := madeBy(p, id)
		if !completed {
			return none, s3err.GetNoSuchUploadErr(id)
		}
		etag := v.etag()
		return s3response.CompleteMultipartUploadResult{ETag: &etag}, nil
	}
	if err != nil {
		return none, err
	}
	defer claim.Close()

	dir := filepath.Join(p.uploads(), id)
	var parts []types.CompletedPart
	if in.MultipartUpload != nil {
		parts = in.MultipartUpload.Parts
	}
	a, err := openAssembly(dir)
	if err != nil {
		return none, err
	}
	if a != nil {
		defer a.Close()
	}
	l := layoutOf(dir, parts)
	fits, err := a.fits(dir, l)
	if err != nil {
		return none, err
	}
	missing := l.total
	if fits {
		missing -= a.has
	}
	if err := room(p.dir, missing); err != nil {
		return none, err
	}
	if err := xattr.LSet(dir, attrPrefix+attrNamed, fmt.Append(nil, len(parts))); err != nil {
		return none, err
	}
	in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
	var written version
	copied := 0
	done := func(bool) {}
	var failed error
	out, _, err := b.posix.CompleteMultipartUploadWithCopy(ctx, &in, func(from, to *os.File) (bool, error) {
		if failed == nil {
			if fits {
				failed = a.keep(l.at[filepath.Base(from.Name())], from)
			} else {
				failed = a.copy(to, from)
			}
		}
		if copied++; copied == len(parts) && failed == nil {
			if fits {
				failed = a.become(to, l.total)
			}
			if failed == nil {
				written.stamp, failed = flush(to)
			}
			done = b.expect(p.bucket, p.key)
		}
		if failed != nil {
			if fits {
				_ = a.Truncate(a.end) // a full disk needs it
			}
			// versitygw goes on after an error, and would publish what there
			// is. A file that is closed it cannot publish.
			to.Close()
		}
		return true, failed
	})
	if failed != nil {
		err = failed
	}
	b.mark(p, err)
	done(err == nil)
	if err != nil {
		return none, p.cause(err)
	}
	if out.ETag == nil || copied < len(parts) {
		return none, fmt.Errorf("versitygw completed an upload of %d parts with %d", len(parts), copied)
	}
	written.stored = *out.ETag
	etag := written.etag()
	out.ETag = &etag
	err = p.sync()
	b.tell(p, false)
	return out, err
}

// holdUpload keeps an upload from being claimed until the file returned is
// closed: versitygw would make its directory again for a part that comes to its
// place afterwards.
func holdUpload(dir, id string) (*os.File, error) {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errBusy // until it is known what becomes of it
	}
	if err == nil && !isAt(d, dir) {
		err = s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// isAt reports whether path is still the name of the open file f.
func isAt(f *os.File, path string) bool {
	held, statErr := f.Stat()
	now, pathErr := os.Lstat(path)
	return statErr == nil && pathErr == nil && os.SameFile(held, now)
}

// claimUpload takes hold of an upload's directory until the file returned is
// closed. Who comes second waits. It returns fs.ErrNotExist if there is no
// such upload, or none any more: one whose completion was killed after it had
// made the object is removed.
func claimUpload(ctx context.Context, p place, id string) (*os.File, error) {
	dir := filepath.Join(p.uploads(), id)
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		path := dir
		d, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			// Somebody else is at it, or was when the process was killed.
			claimed, _ := filepath.Glob(dir + ".*" + inProgress)
			if len(claimed) == 0 {
				return nil, err
			}
			path = claimed[0]
			d, err = os.Open(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if isAt(d, path) {
				if path == dir {
					return d, nil
				}
				err := giveBack(p, filepath.Dir(dir), filepath.Base(path))
				if err == nil && !isAt(d, dir) {
					err = fs.ErrNotExist // it was completed
				}
				if err != nil {
					d.Close()
					return nil, err
				}
				return d, nil
			}
			err = unix.EWOULDBLOCK // it was renamed or removed meanwhile
		}
		d.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// madeBy reports whether the object at p is what the upload id made.
func madeBy(p place, id string) (version, bool) {
	f, err := p.open()
	if err != nil {
		return version{}, false
	}
	defer f.Close()
	s := subject{file: f}
	v, err := s.version()
	if err != nil || v.stored == "" {
		return version{}, false
	}
	data, err := s.get(attrParts)
	if err != nil {
		return version{}, false
	}
	t, err := parsePartTable(data)
	return v, err == nil && t.UploadID == id
}

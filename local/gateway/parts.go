package gateway

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/pkg/xattr"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

func (b *backend) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	return onUpload(b, "write part of", in.Bucket, in.Key, in.UploadId, func(p place, id string) (*s3.UploadPartOutput, error) {
		return b.putPart(ctx, p, id, *in)
	})
}

// putPart writes a part durably: a client that resumes after a power cut relies
// on the list of parts.
func (b *backend) putPart(ctx context.Context, p place, id string, in s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	var size int64
	if in.ContentLength != nil {
		size = *in.ContentLength
	}
	dir := filepath.Join(p.uploads(), id)
	within, _ := in.Body.(*stream)
	if within != nil {
		size, within.room = within.size, b.attrs.free.more(p.dir)
		within.place = func() (*assembly, int64) { return placeFor(dir, *in.PartNumber, size) }
	}
	if err := b.attrs.free.room(p.dir, size); err != nil {
		return nil, err
	}
	if in.Body != nil && within == nil {
		in.Body = &upload{in.Body, size}
	}
	in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
	var held, locked *os.File
	var etag string
	out, err := b.posix.UploadPartWithPostFunc(ctx, &in, func(part *os.File) (err error) {
		if held, err = holdUpload(dir, id); err != nil {
			return err
		}
		if etag, err = distinguish(dir, *in.PartNumber, part); err != nil {
			return err
		}
		if within != nil && within.assembly != nil {
			if err = within.assembly.Sync(); err == nil {
				within.evict()
			}
		} else {
			locked = assemble(dir, *in.PartNumber, part)
		}
		return errors.Join(err, part.Sync())
	})
	if within != nil {
		within.close(err == nil)
	}
	locked.Close() // Close accepts nil
	held.Close()
	if err != nil {
		// The upload may have been aborted or completed meanwhile.
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

// distinguish gives a part an ETag of its own and returns it. versitygw stores a
// CRC, which other bytes can be made to have. The same bytes sent again as part n
// of the upload in dir keep their ETag. Bytes that are in the assembly already are
// the first ones.
func distinguish(dir string, n int32, part *os.File) (string, error) {
	value, err := xattr.FGet(part, attrPrefix+attrETag)
	if err != nil {
		return "", err
	}
	sum := strings.Trim(string(value), `"`)
	_, in, err := placed(subject{file: part})
	if err != nil {
		return "", err
	}
	etag, again := "", false
	if !in {
		etag, again = sentBefore(dir, n, sum, part)
	}
	if !again {
		etag = fmt.Sprintf("%q", sum+"-"+rand.Text())
	}
	return etag, xattr.FSet(part, attrPrefix+attrETag, []byte(etag))
}

// sentBefore returns the ETag of the part n in dir if it has the bytes of part,
// whose CRC is sum. A part that cannot be read counts as different.
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
	return string(value), equal(io.NewSectionReader(part, 0, from.Size()), io.NewSectionReader(before, at, from.Size()))
}

// equal reports whether two readers have the same bytes and neither fails.
func equal(a, b io.Reader) bool {
	const block = 256 << 10
	one, other := make([]byte, block), make([]byte, block)
	for {
		n, err := io.ReadFull(a, one)
		m, _ := io.ReadFull(b, other) // if it fails, it has fewer bytes
		if !bytes.Equal(one[:n], other[:m]) {
			return false
		}
		if err != nil {
			return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		}
	}
}

func (b *backend) UploadPartCopy(ctx context.Context, in *s3.UploadPartCopyInput) (s3response.CopyPartResult, error) {
	return onUpload(b, "copy part of", in.Bucket, in.Key, in.UploadId, func(p place, id string) (s3response.CopyPartResult, error) {
		return b.copyPart(ctx, p, id, in)
	})
}

func (b *backend) copyPart(ctx context.Context, p place, id string, in *s3.UploadPartCopyInput) (out s3response.CopyPartResult, err error) {
	_, f, v, err := b.source(ctx, in.CopySource, in.ExpectedSourceBucketOwner, vgw.PreConditions{
		IfMatch: in.CopySourceIfMatch, IfNoneMatch: in.CopySourceIfNoneMatch,
		IfModSince: in.CopySourceIfModifiedSince, IfUnmodeSince: in.CopySourceIfUnmodifiedSince,
	})
	if err != nil {
		return out, err
	}
	defer f.Close()
	var asked string
	if in.CopySourceRange != nil {
		asked = *in.CopySourceRange
	}
	start, length, err := vgw.ParseCopySourceRange(v.size, asked)
	if err != nil {
		return out, err
	}
	length = min(length, v.size-start)
	if length > maxCopy {
		return out, s3err.GetCopySourceObjectTooLargeErr(maxCopy)
	}
	part := s3.UploadPartInput{
		PartNumber: in.PartNumber, ContentLength: &length,
		Body: stableReader{io.NewSectionReader(f, start, length), f, v},
	}
	if err := askForSum(p, id, &part); err != nil {
		return out, err
	}
	put, err := b.putPart(ctx, p, id, part)
	if err != nil {
		return out, err
	}
	carry(&out, *put)
	out.LastModified = b.now()
	return out, nil
}

func (b *backend) ListParts(ctx context.Context, in *s3.ListPartsInput) (s3response.ListPartsResult, error) {
	return onUpload(b, "list parts of", in.Bucket, in.Key, in.UploadId, func(p place, id string) (s3response.ListPartsResult, error) {
		in.Bucket, in.Key, in.UploadId = &p.dir, &p.key, &id
		out, err := b.posix.ListParts(ctx, in)
		out.Bucket = p.bucket
		return out, err
	})
}

// askForSum makes versitygw compute the checksum that the upload was created
// with: an empty sum names the algorithm and is not compared. versitygw refuses a
// part without a checksum if the object's is made of the parts', and a copy has
// none to send.
func askForSum(p place, id string, part *s3.UploadPartInput) error {
	sums, err := subject{path: filepath.Join(p.uploads(), id)}.sums()
	if errors.Is(err, fs.ErrNotExist) {
		return s3err.GetNoSuchUploadErr(id)
	}
	if err != nil {
		return err
	}
	field := reflect.ValueOf(part).Elem().FieldByName("Checksum" + string(sums.Algorithm))
	if field.IsValid() && field.Type() == reflect.TypeFor[*string]() {
		field.Set(reflect.ValueOf(new(string)))
	}
	return nil
}

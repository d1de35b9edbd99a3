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
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// UploadPart implements backend.Backend.
func (b *backend) UploadPart(ctx context.Context, in *s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	p, id, err := b.upload(in.Bucket, in.Key, in.UploadId)
	if err != nil {
		return nil, err
	}
	out, err := b.putPart(ctx, p, id, *in)
	return out, b.answer("write part of", p, err)
}

// putPart writes a part durably: a client that resumes after a power cut relies
// on the list of parts.
func (b *backend) putPart(ctx context.Context, p place, id string, in s3.UploadPartInput) (*s3.UploadPartOutput, error) {
	var size int64
	if in.ContentLength != nil {
		size = *in.ContentLength
	}
	if err := b.attrs.free.room(p.dir, size); err != nil {
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

// distinguish gives a part an ETag of its own and returns it. versitygw stores a
// CRC, which other bytes can be made to have. The same bytes sent again as part n
// of the upload in dir keep their ETag.
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
	empty := new(string)
	switch sums.Algorithm {
	case types.ChecksumAlgorithmCrc32:
		part.ChecksumCRC32 = empty
	case types.ChecksumAlgorithmCrc32c:
		part.ChecksumCRC32C = empty
	case types.ChecksumAlgorithmCrc64nvme:
		part.ChecksumCRC64NVME = empty
	case types.ChecksumAlgorithmSha1:
		part.ChecksumSHA1 = empty
	case types.ChecksumAlgorithmSha256:
		part.ChecksumSHA256 = empty
	case types.ChecksumAlgorithmSha512:
		part.ChecksumSHA512 = empty
	case types.ChecksumAlgorithmMd5:
		part.ChecksumMD5 = empty
	case types.ChecksumAlgorithmXxhash64:
		part.ChecksumXXHASH64 = empty
	case types.ChecksumAlgorithmXxhash3:
		part.ChecksumXXHASH3 = empty
	case types.ChecksumAlgorithmXxhash128:
		part.ChecksumXXHASH128 = empty
	}
	return nil
}

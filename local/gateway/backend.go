package gateway

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/posix"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"
)

// lockDir is the directory of versitygw's lock files for conditional writes.
const lockDir = ".vgwlocks"

// A backend wraps versitygw's posix backend with the guarantees of the package.
// It passes absolute paths as bucket names, so that nothing depends on the
// working directory. Operations without a method here are "not implemented".
type backend struct {
	vgw.BackendUnsupported
	posix    *posix.Posix
	attrs    attributes
	uploader Uploader
	dir      string
	log      *slog.Logger
	now      func() time.Time
	changed  func(Event)
	// expect announces a change to the watcher, and done its outcome, so that the
	// watcher does not report it too.
	expect func(bucket, key string) (done func(made bool))

	locks sync.Map // bucket names whose locks are shared
}

var _ vgw.Backend = (*backend)(nil)

func openBackend(dir string, cfg Config, expect func(bucket, key string) func(bool)) (*backend, error) {
	first, err := firstUse(dir)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be written to: %w", dir, err)
	}
	attrs := attributes{owner: cfg.AccessKey, shared: cfg.Watch, first: first, free: cfg.FreeBytes}
	p, err := openPosix(dir, attrs)
	if err != nil {
		return nil, err
	}
	return &backend{posix: p, attrs: attrs, uploader: cfg.Uploader, dir: dir, log: cfg.Log, now: cfg.Now, changed: cfg.Changed, expect: expect}, nil
}

// shareLocks makes all processes use the same lock files of a bucket, even if they
// have other paths to the directory: versitygw names the files after the absolute
// path.
func (b *backend) shareLocks(bucket, dir string) {
	if _, done := b.locks.Load(bucket); done {
		return
	}
	hash := func(name string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(name))) }
	shared := filepath.Join(b.dir, lockDir, hash(bucket))
	err := os.MkdirAll(shared, 0o755)
	if err == nil {
		err = os.Symlink(hash(bucket), filepath.Join(b.dir, lockDir, hash(dir)))
	}
	if err != nil && !os.IsExist(err) {
		b.log.Warn("lock files cannot be shared with other processes", slog.String("bucket", bucket), slog.Any("error", err))
		return
	}
	b.locks.Store(bucket, true)
}

// report reports a change of an object to the runner.
func (b *backend) report(p place, removed bool) {
	b.changed(Event{Bucket: p.bucket, Key: p.key, Removed: removed})
}

func (b *backend) String() string { return "imageroot" }

func (b *backend) Shutdown() { b.posix.Shutdown() }

func (b *backend) NormalizeObjectKey(bucket, object string) string {
	return b.posix.NormalizeObjectKey(bucket, object)
}

func (b *backend) ListBuckets(_ context.Context, in s3response.ListBucketsInput) (s3response.ListAllMyBucketsResult, error) {
	out := s3response.ListAllMyBucketsResult{Owner: s3response.CanonicalUser{ID: in.Owner}, Prefix: in.Prefix}
	all, err := buckets(b.dir)
	if err != nil {
		return out, b.answer("list buckets", place{}, err)
	}
	for _, info := range all {
		if !in.IsAdmin && info.Name() != b.uploader.Bucket || !strings.HasPrefix(info.Name(), in.Prefix) || info.Name() <= in.ContinuationToken {
			continue
		}
		if in.MaxBuckets > 0 && len(out.Buckets.Bucket) == int(in.MaxBuckets) {
			out.ContinuationToken = out.Buckets.Bucket[len(out.Buckets.Bucket)-1].Name
			break
		}
		out.Buckets.Bucket = append(out.Buckets.Bucket, s3response.ListAllMyBucketsEntry{
			Name: info.Name(), BucketRegion: region, CreationDate: info.ModTime(),
		})
	}
	return out, nil
}

func (b *backend) HeadBucket(ctx context.Context, in *s3.HeadBucketInput) (*s3.HeadBucketOutput, error) {
	return ofBucket(ctx, b, "find bucket", in.Bucket, func(context.Context, string) (*s3.HeadBucketOutput, error) {
		return &s3.HeadBucketOutput{}, nil
	})
}

func (b *backend) CreateBucket(ctx context.Context, in *s3.CreateBucketInput, acl []byte) error {
	if in.Bucket == nil || !s3utils.IsValidBucketName(*in.Bucket) {
		return s3err.GetBucketErr(s3err.ErrInvalidBucketName, "")
	}
	name := strings.Clone(*in.Bucket)
	if _, _, err := b.bucket(&name); err == nil {
		return s3err.GetBucketErr(s3err.ErrBucketAlreadyOwnedByYou, name)
	}
	dir := filepath.Join(b.dir, name)
	in.Bucket = &dir
	if in.CreateBucketConfiguration == nil {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{}
	}
	p := place{bucket: name}
	if err := b.posix.CreateBucket(ctx, in, acl); err != nil {
		if _, _, exists := b.bucket(&name); exists == nil {
			return s3err.GetBucketErr(s3err.ErrBucketAlreadyOwnedByYou, name)
		}
		return b.answer("make bucket", p, err)
	}
	return b.answer("make bucket", p, syncDir(b.dir))
}

func (b *backend) DeleteBucket(ctx context.Context, bucket string) error {
	return b.inBucket(ctx, "delete bucket", bucket, b.posix.DeleteBucket)
}

// ofBucket runs do with the directory of a bucket and returns its result with the
// S3 error for its error.
func ofBucket[T any](ctx context.Context, b *backend, doing string, bucket *string, do func(ctx context.Context, dir string) (T, error)) (out T, _ error) {
	name, dir, err := b.bucket(bucket)
	if err != nil {
		return out, err
	}
	out, err = do(ctx, dir)
	return out, b.answer(doing, place{bucket: name}, err)
}

// inBucket is ofBucket for operations without a result.
func (b *backend) inBucket(ctx context.Context, doing, bucket string, do func(ctx context.Context, dir string) error) error {
	_, err := ofBucket(ctx, b, doing, &bucket, func(ctx context.Context, dir string) (struct{}, error) { return struct{}{}, do(ctx, dir) })
	return err
}

//lint:ignore ST1003 backend.Backend spells it so
func (b *backend) GetBucketAcl(ctx context.Context, in *s3.GetBucketAclInput) ([]byte, error) {
	return ofBucket(ctx, b, "read ACL", in.Bucket, func(ctx context.Context, dir string) ([]byte, error) {
		return b.posix.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: &dir})
	})
}

func (b *backend) GetBucketVersioning(ctx context.Context, bucket string) (s3response.GetBucketVersioningOutput, error) {
	return ofBucket(ctx, b, "read versioning", &bucket, b.posix.GetBucketVersioning)
}

func (b *backend) PutBucketPolicy(ctx context.Context, bucket string, policy []byte) error {
	return b.inBucket(ctx, "write policy", bucket, func(ctx context.Context, dir string) error { return b.posix.PutBucketPolicy(ctx, dir, policy) })
}

func (b *backend) GetBucketPolicy(ctx context.Context, bucket string) ([]byte, error) {
	return ofBucket(ctx, b, "read policy", &bucket, b.posix.GetBucketPolicy)
}

func (b *backend) DeleteBucketPolicy(ctx context.Context, bucket string) error {
	return b.inBucket(ctx, "delete policy", bucket, b.posix.DeleteBucketPolicy)
}

func (b *backend) PutBucketOwnershipControls(ctx context.Context, bucket string, ownership types.ObjectOwnership) error {
	return b.inBucket(ctx, "write ownership", bucket, func(ctx context.Context, dir string) error {
		return b.posix.PutBucketOwnershipControls(ctx, dir, ownership)
	})
}

func (b *backend) GetBucketOwnershipControls(ctx context.Context, bucket string) (types.ObjectOwnership, error) {
	return ofBucket(ctx, b, "read ownership", &bucket, b.posix.GetBucketOwnershipControls)
}

func (b *backend) DeleteBucketOwnershipControls(ctx context.Context, bucket string) error {
	return b.inBucket(ctx, "delete ownership", bucket, b.posix.DeleteBucketOwnershipControls)
}

func (b *backend) PutBucketCors(ctx context.Context, bucket string, cors []byte) error {
	return b.inBucket(ctx, "write CORS", bucket, func(ctx context.Context, dir string) error { return b.posix.PutBucketCors(ctx, dir, cors) })
}

func (b *backend) GetBucketCors(ctx context.Context, bucket string) ([]byte, error) {
	return ofBucket(ctx, b, "read CORS", &bucket, b.posix.GetBucketCors)
}

func (b *backend) DeleteBucketCors(ctx context.Context, bucket string) error {
	return b.inBucket(ctx, "delete CORS", bucket, b.posix.DeleteBucketCors)
}

func (b *backend) PutBucketTagging(ctx context.Context, bucket string, tags map[string]string) error {
	return b.inBucket(ctx, "write tags", bucket, func(ctx context.Context, dir string) error { return b.posix.PutBucketTagging(ctx, dir, tags) })
}

func (b *backend) GetBucketTagging(ctx context.Context, bucket string) (map[string]string, error) {
	return ofBucket(ctx, b, "read tags", &bucket, b.posix.GetBucketTagging)
}

func (b *backend) DeleteBucketTagging(ctx context.Context, bucket string) error {
	return b.inBucket(ctx, "delete tags", bucket, b.posix.DeleteBucketTagging)
}

// GetObjectLockConfiguration implements backend.Backend: nothing is ever
// locked against deletion.
func (b *backend) GetObjectLockConfiguration(ctx context.Context, bucket string) ([]byte, error) {
	return ofBucket(ctx, b, "read locks", &bucket, func(context.Context, string) ([]byte, error) {
		return nil, s3err.GetAPIError(s3err.ErrObjectLockConfigurationNotFound)
	})
}

// openPosix opens versitygw's backend. It restores the working directory, which
// versitygw changes.
func openPosix(dir string, attrs attributes) (*posix.Posix, error) {
	before, wdErr := os.Getwd()
	p, err := posix.New(dir, attrs, posix.PosixOpts{
		// A named temporary file, moved into place, works for names of 255
		// bytes, which linking an unnamed one over an existing name does not.
		ForceNoTmpFile:      true,
		CopyObjectThreshold: maxCopy,
		// MD5 would limit the rate of uploads. Versions differ in more than a sum
		// of the bytes (see version).
		DataIntegrityEtag: true,
		IOBufferSize:      256 << 10,
	})
	if wdErr == nil {
		if back := os.Chdir(before); back != nil && err == nil {
			return nil, fmt.Errorf("the working directory %s cannot be entered again: %w", before, back)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be opened: %w", dir, err)
	}
	return p, nil
}

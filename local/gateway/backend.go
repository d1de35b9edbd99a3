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

// lockDir is where versitygw keeps the lock files of conditional writes.
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
	region   string
	log      *slog.Logger
	now      func() time.Time
	changed  func(Event)
	// expect announces a change to the watcher, and done its outcome, so that the
	// watcher does not report it too.
	expect func(bucket, key string) (done func(made bool))

	locks sync.Map // bucket names whose locks are shared
}

var _ vgw.Backend = (*backend)(nil)

func openBackend(dir string, cfg Config) (*backend, error) {
	first, err := firstUse(dir)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be written to: %w", dir, err)
	}
	attrs := attributes{owner: cfg.AccessKey, shared: cfg.Watch, first: first, free: cfg.FreeBytes}
	p, err := openPosix(dir, attrs)
	if err != nil {
		return nil, err
	}
	return &backend{
		posix: p, attrs: attrs, uploader: cfg.Uploader, dir: dir, region: cfg.Region, log: cfg.Log, now: cfg.Now,
		changed: cfg.Changed, expect: func(string, string) func(bool) { return func(bool) {} },
	}, nil
}

// shareLocks makes all processes use the same lock files of a bucket, whatever
// path they see the directory under: versitygw names them after our absolute
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

// tell reports a change of an object to the runner.
func (b *backend) tell(p place, removed bool) {
	b.changed(Event{Bucket: p.bucket, Key: p.key, Removed: removed})
}

// String implements backend.Backend.
func (b *backend) String() string { return "imageroot" }

// Shutdown implements backend.Backend.
func (b *backend) Shutdown() { b.posix.Shutdown() }

// NormalizeObjectKey implements backend.Backend.
func (b *backend) NormalizeObjectKey(bucket, object string) string {
	return b.posix.NormalizeObjectKey(bucket, object)
}

// ListBuckets implements backend.Backend.
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
			Name: info.Name(), BucketRegion: b.region, CreationDate: info.ModTime(),
		})
	}
	return out, nil
}

// HeadBucket implements backend.Backend.
func (b *backend) HeadBucket(_ context.Context, in *s3.HeadBucketInput) (*s3.HeadBucketOutput, error) {
	if _, _, err := b.bucket(in.Bucket); err != nil {
		return nil, err
	}
	return &s3.HeadBucketOutput{}, nil
}

// CreateBucket implements backend.Backend.
func (b *backend) CreateBucket(ctx context.Context, in *s3.CreateBucketInput, acl []byte) error {
	if in.Bucket == nil || !s3utils.IsValidBucketName(*in.Bucket) {
		return s3err.GetBucketErr(s3err.ErrInvalidBucketName, "")
	}
	name := strings.Clone(*in.Bucket)
	if _, _, err := b.bucket(&name); err == nil {
		return s3err.GetBucketErr(s3err.ErrBucketAlreadyOwnedByYou, name)
	}
	copied := *in
	dir := filepath.Join(b.dir, name)
	copied.Bucket = &dir
	if copied.CreateBucketConfiguration == nil {
		copied.CreateBucketConfiguration = &types.CreateBucketConfiguration{}
	}
	p := place{bucket: name}
	if err := b.posix.CreateBucket(ctx, &copied, acl); err != nil {
		if _, _, exists := b.bucket(&name); exists == nil {
			return s3err.GetBucketErr(s3err.ErrBucketAlreadyOwnedByYou, name)
		}
		return b.answer("make bucket", p, err)
	}
	return b.answer("make bucket", p, syncDir(b.dir))
}

// DeleteBucket implements backend.Backend.
func (b *backend) DeleteBucket(ctx context.Context, bucket string) error {
	return b.inBucket("delete bucket", bucket, func(dir string) error { return b.posix.DeleteBucket(ctx, dir) })
}

// inBucket runs do with the directory of a bucket.
func (b *backend) inBucket(doing, bucket string, do func(dir string) error) error {
	name, dir, err := b.bucket(&bucket)
	if err != nil {
		return err
	}
	return b.answer(doing, place{bucket: name}, do(dir))
}

// ofBucket is inBucket for what has a result.
func ofBucket[T any](b *backend, doing, bucket string, do func(dir string) (T, error)) (T, error) {
	var out T
	err := b.inBucket(doing, bucket, func(dir string) (err error) {
		out, err = do(dir)
		return err
	})
	return out, err
}

// GetBucketAcl implements backend.Backend.
//
//lint:ignore ST1003 backend.Backend spells it so
func (b *backend) GetBucketAcl(ctx context.Context, in *s3.GetBucketAclInput) ([]byte, error) {
	if in.Bucket == nil {
		return nil, s3err.GetBucketErr(s3err.ErrNoSuchBucket, "")
	}
	return ofBucket(b, "read ACL", *in.Bucket, func(dir string) ([]byte, error) {
		return b.posix.GetBucketAcl(ctx, &s3.GetBucketAclInput{Bucket: &dir})
	})
}

// GetBucketVersioning implements backend.Backend.
func (b *backend) GetBucketVersioning(ctx context.Context, bucket string) (s3response.GetBucketVersioningOutput, error) {
	return ofBucket(b, "read versioning", bucket, func(dir string) (s3response.GetBucketVersioningOutput, error) {
		return b.posix.GetBucketVersioning(ctx, dir)
	})
}

// PutBucketPolicy implements backend.Backend.
func (b *backend) PutBucketPolicy(ctx context.Context, bucket string, policy []byte) error {
	return b.inBucket("write policy", bucket, func(dir string) error { return b.posix.PutBucketPolicy(ctx, dir, policy) })
}

// GetBucketPolicy implements backend.Backend.
func (b *backend) GetBucketPolicy(ctx context.Context, bucket string) ([]byte, error) {
	return ofBucket(b, "read policy", bucket, func(dir string) ([]byte, error) { return b.posix.GetBucketPolicy(ctx, dir) })
}

// DeleteBucketPolicy implements backend.Backend.
func (b *backend) DeleteBucketPolicy(ctx context.Context, bucket string) error {
	return b.inBucket("delete policy", bucket, func(dir string) error { return b.posix.DeleteBucketPolicy(ctx, dir) })
}

// PutBucketOwnershipControls implements backend.Backend.
func (b *backend) PutBucketOwnershipControls(ctx context.Context, bucket string, ownership types.ObjectOwnership) error {
	return b.inBucket("write ownership", bucket, func(dir string) error { return b.posix.PutBucketOwnershipControls(ctx, dir, ownership) })
}

// GetBucketOwnershipControls implements backend.Backend.
func (b *backend) GetBucketOwnershipControls(ctx context.Context, bucket string) (types.ObjectOwnership, error) {
	return ofBucket(b, "read ownership", bucket, func(dir string) (types.ObjectOwnership, error) {
		return b.posix.GetBucketOwnershipControls(ctx, dir)
	})
}

// DeleteBucketOwnershipControls implements backend.Backend.
func (b *backend) DeleteBucketOwnershipControls(ctx context.Context, bucket string) error {
	return b.inBucket("delete ownership", bucket, func(dir string) error { return b.posix.DeleteBucketOwnershipControls(ctx, dir) })
}

// PutBucketCors implements backend.Backend.
func (b *backend) PutBucketCors(ctx context.Context, bucket string, cors []byte) error {
	return b.inBucket("write CORS", bucket, func(dir string) error { return b.posix.PutBucketCors(ctx, dir, cors) })
}

// GetBucketCors implements backend.Backend.
func (b *backend) GetBucketCors(ctx context.Context, bucket string) ([]byte, error) {
	return ofBucket(b, "read CORS", bucket, func(dir string) ([]byte, error) { return b.posix.GetBucketCors(ctx, dir) })
}

// DeleteBucketCors implements backend.Backend.
func (b *backend) DeleteBucketCors(ctx context.Context, bucket string) error {
	return b.inBucket("delete CORS", bucket, func(dir string) error { return b.posix.DeleteBucketCors(ctx, dir) })
}

// PutBucketTagging implements backend.Backend.
func (b *backend) PutBucketTagging(ctx context.Context, bucket string, tags map[string]string) error {
	return b.inBucket("write tags", bucket, func(dir string) error { return b.posix.PutBucketTagging(ctx, dir, tags) })
}

// GetBucketTagging implements backend.Backend.
func (b *backend) GetBucketTagging(ctx context.Context, bucket string) (map[string]string, error) {
	return ofBucket(b, "read tags", bucket, func(dir string) (map[string]string, error) { return b.posix.GetBucketTagging(ctx, dir) })
}

// DeleteBucketTagging implements backend.Backend.
func (b *backend) DeleteBucketTagging(ctx context.Context, bucket string) error {
	return b.inBucket("delete tags", bucket, func(dir string) error { return b.posix.DeleteBucketTagging(ctx, dir) })
}

// GetObjectLockConfiguration implements backend.Backend: nothing is ever
// locked against deletion.
func (b *backend) GetObjectLockConfiguration(_ context.Context, bucket string) ([]byte, error) {
	if _, _, err := b.bucket(&bucket); err != nil {
		return nil, err
	}
	return nil, s3err.GetAPIError(s3err.ErrObjectLockConfigurationNotFound)
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
		// MD5 would be what limits uploads. Versions are told apart by more
		// than a sum of the bytes (see version).
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

package gateway

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/posix"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"github.com/versity/versitygw/s3response"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// maxCopy is the most that one copy request copies, as on AWS.
const maxCopy = 5 << 30

// lockDir is where versitygw keeps the lock files of conditional writes.
const lockDir = ".vgwlocks"

// A backend is versitygw's posix backend with what the package promises put
// around it. It hands it absolute paths as bucket names, so that nothing
// depends on the working directory. What it does not mention is "not
// implemented".
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
	// expect is told of a change that is about to be visible, and its result
	// how that went, so that the watcher need not tell of it too.
	expect func(bucket, key string) (done func(made bool))

	locks sync.Map // bucket names whose locks are shared
}

var _ vgw.Backend = (*backend)(nil)

func openBackend(dir string, cfg Config) (*backend, error) {
	first, err := firstUse(dir)
	if err != nil {
		return nil, fmt.Errorf("the data directory %s cannot be written to: %w", dir, err)
	}
	attrs := attributes{owner: cfg.AccessKey, shared: cfg.Watch, first: first}
	p, err := openPosix(dir, attrs)
	if err != nil {
		return nil, err
	}
	return &backend{
		posix: p, attrs: attrs, uploader: cfg.Uploader, dir: dir, region: cfg.Region, log: cfg.Log, now: cfg.Now,
		changed: cfg.Changed, expect: func(string, string) func(bool) { return func(bool) {} },
	}, nil
}

// shareLocks makes the lock files of a bucket the same for every process,
// under whatever path it sees the directory: versitygw names them after what
// it takes for the bucket's name, which is our absolute path.
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

// tell reports a change of an object.
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

// buckets returns the directories that are buckets, by name.
func buckets(dir string) ([]fs.FileInfo, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var found []fs.FileInfo
	for _, e := range entries {
		if !s3utils.IsValidBucketName(e.Name()) {
			continue
		}
		// An operator may put a bucket on another disk by a link.
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err == nil && info.IsDir() {
			found = append(found, named{info, e.Name()})
		}
	}
	return found, nil
}

type named struct {
	fs.FileInfo
	name string
}

func (n named) Name() string { return n.name }

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

package gateway

import (
	"context"
)

func (b *backend) GetObjectTagging(ctx context.Context, bucket, object, versionID string) (map[string]string, error) {
	p, err := b.existing(bucket, object)
	if err != nil {
		return nil, err
	}
	tags, err := b.posix.GetObjectTagging(ctx, p.dir, p.key, versionID)
	return tags, b.answer("read tags of", p, err)
}

func (b *backend) PutObjectTagging(ctx context.Context, bucket, object, versionID string, tags map[string]string) error {
	p, err := b.existing(bucket, object)
	if err != nil {
		return err
	}
	file := subject{path: p.path(), since: b.attrs.since(p.bucket)}
	intact := file.isIntact()
	err = b.posix.PutObjectTagging(ctx, p.dir, p.key, versionID, tags)
	if intact {
		b.mark(p, err)
	}
	return b.answer("tag", p, err)
}

func (b *backend) DeleteObjectTagging(ctx context.Context, bucket, object, versionID string) error {
	return b.PutObjectTagging(ctx, bucket, object, versionID, nil)
}

// existing returns the place of an object, or NoSuchKey if there is none.
func (b *backend) existing(bucket, key string) (place, error) {
	p, err := b.object(&bucket, &key, false)
	if err == nil {
		_, err = p.readable()
	}
	return p, b.answer("read tags of", p, err)
}

package gateway

import "context"

func (b *backend) GetObjectTagging(ctx context.Context, bucket, object, versionID string) (map[string]string, error) {
	return onExisting(b, "read tags of", &bucket, &object, func(p place) (map[string]string, error) {
		return b.posix.GetObjectTagging(ctx, p.dir, p.key, versionID)
	})
}

func (b *backend) PutObjectTagging(ctx context.Context, bucket, object, versionID string, tags map[string]string) error {
	_, err := onExisting(b, "tag", &bucket, &object, func(p place) (struct{}, error) {
		intact := subject{path: p.path(), since: b.attrs.since(p.bucket)}.isIntact()
		err := b.posix.PutObjectTagging(ctx, p.dir, p.key, versionID, tags)
		if intact {
			b.mark(p, err)
		}
		return struct{}{}, err
	})
	return err
}

func (b *backend) DeleteObjectTagging(ctx context.Context, bucket, object, versionID string) error {
	return b.PutObjectTagging(ctx, bucket, object, versionID, nil)
}

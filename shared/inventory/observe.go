package inventory

import (
	"context"
	"io"

	"imageroot/shared/store"
)

// ObserveImages returns the image root. The next Snapshot sees each write through
// it.
func (inv *Inventory) ObserveImages(root store.Root) store.Root {
	return &observed{root, inv.TouchImage}
}

// ObserveCatalog is [Inventory.ObserveImages] for the catalog root.
func (inv *Inventory) ObserveCatalog(root store.Root) store.Root {
	return &observed{root, inv.TouchCatalog}
}

// observed touches the key of each write after it, whatever its outcome.
type observed struct {
	store.Root
	touch func(key store.Key)
}

func (o *observed) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	defer o.touch(key)
	return o.Root.Put(ctx, key, body, size)
}

func (o *observed) Delete(ctx context.Context, key store.Key) error {
	defer o.touch(key)
	return o.Root.Delete(ctx, key)
}

func (o *observed) Copy(ctx context.Context, dst, src store.Key, size int64) error {
	defer o.touch(dst)
	return o.Root.Copy(ctx, dst, src, size)
}

func (o *observed) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	defer o.touch(key)
	return o.Root.CompleteUpload(ctx, key, id, parts)
}

func (o *observed) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	defer o.touch(key)
	return o.Root.CreateRecord(ctx, key, data)
}

func (o *observed) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	defer o.touch(key)
	return o.Root.ReplaceRecord(ctx, key, data, tag)
}

package index

import (
	"context"
	"io"
	"time"

	"imageroot/shared/record"
	"imageroot/shared/store"
)

// ObserveImages wraps root, which must be the same location as [Config].Images.
// [Section.All] includes every earlier write through the returned root, and the next
// [Index.Flush] writes it to the journal.
func (ix *Index) ObserveImages(root store.Root) store.Root {
	return &observed{root, ix, imageRoot}
}

// ObserveCatalog is [Index.ObserveImages] for the catalog root.
func (ix *Index) ObserveCatalog(root store.Root) store.Root {
	return &observed{root, ix, catalogRoot}
}

// observed notes each write after it, whatever its outcome, so that no writer can
// forget its journal entry.
type observed struct {
	store.Root
	ix   *Index
	root rootID
}

func (o *observed) touch(key store.Key) { o.ix.touch(place{o.root, key}) }

func (o *observed) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	defer o.touch(key)
	return o.Root.Put(ctx, key, body, size)
}

func (o *observed) Create(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	defer o.touch(key)
	return o.Root.Create(ctx, key, body, size)
}

func (o *observed) Delete(ctx context.Context, key store.Key) error {
	defer o.touch(key)
	return o.Root.Delete(ctx, key)
}

func (o *observed) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	defer o.touch(src)
	defer o.touch(dst)
	return o.Root.Move(ctx, dst, src, v)
}

func (o *observed) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	defer o.touch(key)
	return o.Root.CompleteUpload(ctx, key, id, parts)
}

func (o *observed) CompleteNew(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	defer o.touch(key)
	return o.Root.CompleteNew(ctx, key, id, parts)
}

func (o *observed) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	newTag, err := o.Root.CreateRecord(ctx, key, data)
	o.wrote(key, "", newTag, data, err)
	return newTag, err
}

func (o *observed) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	newTag, err := o.Root.ReplaceRecord(ctx, key, data, tag)
	o.wrote(key, tag, newTag, data, err)
	return newTag, err
}

// Repaired implements record.Watcher.
func (o *observed) Repaired(key store.Key, err error) {
	o.ix.cfg.Log.Warn("damaged record replaced", "key", key, "error", err, "remedy", record.Remedy(key, err))
}

// wrote notes a swap. After a failed one, the record may have any content.
func (o *observed) wrote(key store.Key, tag, newTag string, data []byte, err error) {
	if err != nil || o.root != catalogRoot {
		o.touch(key)
		return
	}
	at := o.ix.cfg.Now().UTC().Truncate(time.Second)
	o.ix.wrote(key, tagETag(tag), store.Version{ETag: tagETag(newTag), Size: int64(len(data)), LastModified: at}, data)
}

package upload

import (
	"context"
	"errors"
	"slices"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// ownMaps returns the publisher's block maps of the first of an image's names, except those that
// another image has, too.
func (f *Function) ownMaps(ctx context.Context, names ...image.Name) (maps []store.Info, err error) {
	for _, key := range layout.BmapSidecars(names[0]) {
		info, err := f.Images.Head(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var others []store.Key
		for _, other := range layout.ImagesOfBmap(key) {
			if !slices.Contains(names, other) {
				others = append(others, layout.ImageKey(other))
			}
		}
		_, _, err = store.HeadFirst(ctx, f.Images, others)
		switch {
		case errors.Is(err, store.ErrNotFound):
			maps = append(maps, info)
		case err != nil:
			return nil, err
		}
	}
	return maps, nil
}

// moveMaps gives the block map of a renamed image the new name. It stays beside another map of
// that name.
func (f *Function) moveMaps(ctx context.Context, name, next image.Name) error {
	maps, err := f.ownMaps(ctx, name, next)
	to := layout.BmapSidecars(next)
	if err != nil || to == nil {
		return err
	}
	for _, m := range maps {
		_, err := f.Images.Move(ctx, to[0], m.Key, m.Version)
		if errors.Is(err, store.ErrConflict) {
			// A run that was killed may have copied it.
			there, herr := f.Images.Head(ctx, to[0])
			if err = herr; err == nil && (there.ETag != m.ETag || there.Size != m.Size) {
				continue
			}
		}
		if errors.Is(err, store.ErrChanged) || errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err == nil {
			err = f.Images.Delete(ctx, m.Key) // the store may have copied it
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteMaps deletes the block map of an image that was deleted.
func (f *Function) deleteMaps(ctx context.Context, name image.Name) error {
	maps, err := f.ownMaps(ctx, name)
	for _, m := range maps {
		err = errors.Join(err, f.Images.Delete(ctx, m.Key))
	}
	return err
}

package inventory

import (
	"context"

	"imageroot/shared/store"
)

// A Place is the version of an object that has the bytes of a row.
type Place struct {
	Root  store.Root
	Local bool       // true: Root is the image root; false: the catalog root
	Info  store.Info // of the object at Info.Key in Root
}

// Locate returns the object with the bytes of a row, in the image root if possible. It
// returns false if neither root has them.
func (s *Snapshot) Locate(row *Row, images, catalog store.Root) (Place, bool) {
	if name, ok := row.Local(); ok {
		if info, ok := s.Image(name); ok {
			return Place{images, true, info}, true
		}
	}
	info, ok := s.Blob(row.Digest())
	return Place{catalog, false, info}, ok
}

// Unchanged returns [store.ErrChanged] if the object has another version now, so that a
// read may have mixed both versions.
func (p Place) Unchanged(ctx context.Context) error {
	info, err := p.Root.Head(ctx, p.Info.Key)
	if err == nil && !info.Equal(p.Info.Version) {
		return store.ErrChanged
	}
	return err
}

// Touch calls [Inventory.TouchImage] or [Inventory.TouchCatalog] for a place.
func (inv *Inventory) Touch(p Place) {
	if p.Local {
		inv.TouchImage(p.Info.Key)
	} else {
		inv.TouchCatalog(p.Info.Key)
	}
}

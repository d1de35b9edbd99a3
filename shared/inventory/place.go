package inventory

import (
	"context"

	"imageroot/shared/store"
)

// A Place is one version of an object that has the bytes of a row.
type Place struct {
	Root  store.Root
	Local bool       // Root is the image root, else the catalog root
	Info  store.Info // of Info.Key in Root
}

// Locate returns where the bytes of a row are, in one of the two roots. It
// reports whether they are here.
func (s *Snapshot) Locate(row *Row, images, catalog store.Root) (Place, bool) {
	if name, ok := row.Local(); ok {
		if info, ok := s.Image(name); ok {
			return Place{images, true, info}, true
		}
	}
	info, ok := s.Blob(row.Digest())
	return Place{catalog, false, info}, ok
}

// Unchanged returns [store.ErrChanged] if the object has another version now:
// what was read may be of both.
func (p Place) Unchanged(ctx context.Context) error {
	info, err := p.Root.Head(ctx, p.Info.Key)
	if err == nil && !info.Equal(p.Info.Version) {
		return store.ErrChanged
	}
	return err
}

// Touch is [Inventory.TouchImage] or [Inventory.TouchCatalog] for a place.
func (inv *Inventory) Touch(p Place) {
	if p.Local {
		inv.TouchImage(p.Info.Key)
	} else {
		inv.TouchCatalog(p.Info.Key)
	}
}

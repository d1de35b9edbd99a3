package hash

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"imageroot/shared/checksum"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// verify compares an image's digests with its sidecars and records the result. A
// sidecar never changes a digest. need512 is true if a sidecar has a SHA-512 and
// the digest record has none yet.
func (f *Function) verify(ctx context.Context, name image.Name) (need512 bool, err error) {
	_, _, err = record.Change(ctx, f.Catalog, layout.DigestKey(name), func(rec *digest.Record, exists bool) error {
		if !exists {
			return record.ErrKeep
		}
		// They are read again for each try: another inspection may have recorded newer ones.
		said, err := f.publishers(ctx, name)
		if err != nil {
			return err
		}
		need512 = false
		var compared []digest.Publisher
		for _, p := range said {
			has := map[string]string{checksum.SHA256: string(rec.SHA256), checksum.SHA512: rec.SHA512}[p.Algorithm]
			if p.Error == "" && has == "" {
				need512 = true
				continue
			}
			p.Match = p.Error == "" && p.Expected == has
			compared = append(compared, p)
		}
		if slices.EqualFunc(rec.Publishers, compared, digest.Publisher.Equal) {
			return record.ErrKeep
		}
		rec.Publishers = compared
		return nil
	})
	return need512, err
}

// publishers reads the digests in an image's sidecars.
func (f *Function) publishers(ctx context.Context, name image.Name) ([]digest.Publisher, error) {
	var all []digest.Publisher
	for _, alg := range []string{checksum.SHA256, checksum.SHA512} {
		for _, spelling := range image.Spellings(name) {
			key := layout.SidecarKey(spelling, alg)
			if image.CheckSegment(string(key)) != nil {
				continue // too long for a name, so there is no such file
			}
			body, info, err := f.Images.Get(ctx, key, store.All, "")
			if errors.Is(err, store.ErrNotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			said := digest.Publisher{Algorithm: alg, SidecarVersion: info.Version}
			list, err := checksum.Parse(body, string(key))
			body.Close()
			var sum checksum.Sum
			if err == nil {
				sum, err = list.Find(string(name))
			}
			if err != nil {
				said.Error = fmt.Sprintf("%s cannot be used: %v", key, err)
			} else {
				said.Algorithm, said.Expected = sum.Algorithm, sum.Hex
			}
			all = append(all, said)
		}
	}
	return all, nil
}

// wants512 reports whether a sidecar of the image may need its SHA-512.
func (f *Function) wants512(ctx context.Context, name image.Name) (bool, error) {
	said, err := f.publishers(ctx, name)
	return slices.ContainsFunc(said, func(p digest.Publisher) bool { return p.Algorithm == checksum.SHA512 }), err
}

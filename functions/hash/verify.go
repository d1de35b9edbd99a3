package hash

import (
	"context"
	"errors"
	"fmt"

	"imageroot/shared/checksum"
	"imageroot/shared/digest"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// verify compares an image's digest with the checksum file beside it and
// records what it found. A checksum file never changes a digest.
func (f *Function) verify(ctx context.Context, name string) error {
	said, err := f.publisher(ctx, name)
	if err != nil {
		return err
	}
	_, _, err = record.Change(ctx, f.Catalog, layout.DigestKey(name), func(rec *digest.Record, exists bool) error {
		if !exists {
			return record.ErrKeep
		}
		if said != nil && said.Algorithm == "sha256" && said.Error == "" {
			said.Match = said.Expected == rec.SHA256
		}
		if rec.Publisher.Equal(said) {
			return record.ErrKeep
		}
		rec.Publisher = said
		return nil
	})
	return err
}

// publisher reads what the checksum file beside an image says; nil without one.
func (f *Function) publisher(ctx context.Context, name string) (*digest.Publisher, error) {
	for _, alg := range []string{"sha256", "sha512"} {
		key := name + "." + alg
		body, info, err := f.Images.Get(ctx, key, store.All, "")
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		said := &digest.Publisher{Algorithm: alg, SidecarVersion: info.Version}
		list, err := checksum.Parse(body)
		body.Close()
		var sum checksum.Sum
		if err == nil {
			sum, err = list.Find(name)
		}
		switch {
		case err != nil:
			said.Error = fmt.Sprintf("%s cannot be used: %v", key, err)
		case sum.Algorithm != "sha256":
			said.Algorithm, said.Expected = sum.Algorithm, sum.Hex
			said.Error = fmt.Sprintf("%s gives a %s digest, which is not compared with uploaded bytes", key, sum.Algorithm)
		default:
			said.Algorithm, said.Expected = sum.Algorithm, sum.Hex
		}
		return said, nil
	}
	return nil, nil
}

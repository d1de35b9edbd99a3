package source

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"

	"github.com/opencontainers/go-digest"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/unpack"
)

// nameUntitled returns a name for a layer without a title: that of its repository if it
// is an image's name (.../debian.img.xz), or else one of repository, digest and
// detected format.
func (o oras) nameUntitled(ctx context.Context, c *Client, d digest.Digest) (image.Name, error) {
	last := path.Base(o.ref.Repository)
	if name := image.Name(last); name.Valid() {
		return name, nil
	}
	head, err := o.head(ctx, c, d)
	if err != nil {
		return "", err
	}
	format, what := formatOf(head)
	if format == "" {
		return "", unresolvable(nil, "%s has no file name (title), and is %s: push it with a title that ends in one of %s",
			o, what, image.FormatList())
	}
	const most = 200 // leaves room for the rest of the name
	return image.Name(last[:min(len(last), most)] + "-" + d.Encoded()[:12] + "." + string(format)), nil
}

// head reads the first bytes of a layer.
func (o oras) head(ctx context.Context, c *Client, d digest.Digest) ([]byte, error) {
	body, err := o.open(ctx, c, d.String(), 0, content.HeadBytes, Validators{})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	head, err := io.ReadAll(io.LimitReader(body, content.HeadBytes))
	if _, short := errors.AsType[*ShortBody](err); err != nil && !short {
		return nil, err
	}
	return head, nil
}

// formatOf detects the format of the image that begins with head. what describes the
// bytes, for an error if they are not an image.
func formatOf(head []byte) (format image.Format, what string) {
	c := content.Head(head, int64(len(head)))
	if c.Kind.Compressed() {
		// Accept bytes that cannot be decompressed here, because of a large window or a
		// cut block.
		r, err := unpack.NewReader(c.Kind, bytes.NewReader(head), unpack.Limit{Window: 8 << 20})
		if wrong, ok := errors.AsType[*unpack.Error](err); ok && wrong.Problem == unpack.Damaged {
			return "", "a damaged " + string(c.Kind) + " file"
		}
		if err == nil {
			defer r.Close()
			inside := make([]byte, content.HeadBytes)
			n, _ := io.ReadFull(r, inside)
			// Layers of container images are compressed tar archives.
			if found := content.Head(inside[:n], int64(n)); n > 0 && found.NoDisk() != "" {
				return "", c.What + " with " + found.What + " inside"
			}
		}
	}
	return c.Format(), c.What
}

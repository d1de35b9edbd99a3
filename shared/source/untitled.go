package source

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"io"
	"path"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"imageroot/shared/image"
)

// sniffBytes is how much of a blob is read to know its format. ISO 9660 says
// what it is at 32 KiB.
const sniffBytes = 36 << 10

// nameUntitled names a blob that no manifest gives a title: as its repository
// if that is an image's name (.../debian.img.xz), else by repository, digest
// and what its first bytes are.
func (o oras) nameUntitled(ctx context.Context, c *Client, d digest.Digest) (string, error) {
	last := path.Base(o.ref.Repository)
	if image.IsName(last) {
		return last, nil
	}
	head, err := o.head(ctx, c, d)
	if err != nil {
		return "", err
	}
	format, reason := formatOf(head)
	if format == "" {
		return "", unresolvable(nil, "%s has no file name (title), and its bytes are %s: push it with a title that ends in one of %s",
			o, reason, image.FormatList())
	}
	const most = 200 // leaves room in a name for what follows
	return last[:min(len(last), most)] + "-" + d.Encoded()[:12] + "." + string(format), nil
}

// formatOf tells an image by its first bytes; reason says what they are where
// they are none.
func formatOf(head []byte) (format image.Format, reason string) {
	has := func(offset int, magic string) bool {
		return len(head) >= offset+len(magic) && string(head[offset:offset+len(magic)]) == magic
	}
	switch {
	case has(257, "ustar"):
		return "", "a tar archive's"
	case has(0, "QFI\xfb"):
		return "qcow2", ""
	case has(32769, "CD001"):
		return "iso", ""
	case has(0, "\x1f\x8b"):
		return compressedFormat(head, "img.gz")
	case has(0, "\x28\xb5\x2f\xfd"):
		return compressedFormat(head, "img.zst")
	case has(0, "\xfd7zXZ\x00"):
		return "img.xz", ""
	case has(0, "BZh"):
		return "img.bz2", ""
	case has(510, "\x55\xaa"), has(512, "EFI PART"), // MBR, GPT
		has(0, "hsqs"), // squashfs
		len(head) >= 1082 && binary.LittleEndian.Uint16(head[1080:]) == 0xef53: // ext4
		return "img", ""
	}
	return "", "of no known image format"
}

// compressedFormat refuses what holds a tar archive, as the layers of
// container images do.
func compressedFormat(head []byte, format image.Format) (image.Format, string) {
	var r io.Reader
	if format == "img.gz" {
		zr, err := gzip.NewReader(bytes.NewReader(head))
		if err != nil {
			return "", "damaged gzip"
		}
		r = zr
	} else {
		zr, err := zstd.NewReader(bytes.NewReader(head), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return "", "damaged zstd"
		}
		defer zr.Close()
		r = zr
	}
	inner := make([]byte, 512)
	// What cannot be read (a large window, a cut block) is no tar as far as
	// can be told.
	n, _ := io.ReadFull(r, inner)
	if _, reason := formatOf(inner[:n]); reason == "a tar archive's" {
		return "", "a compressed tar archive's"
	}
	return format, ""
}

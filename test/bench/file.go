package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"golang.org/x/sys/unix"
)

// A sample is the input of both sides of a comparison: the first size bytes of a file.
type sample struct {
	path   string
	size   int64
	sha256 string
}

// large returns the large file, of incompressible bytes. It creates the file once.
func (b *bench) large(ctx context.Context) (*sample, error) {
	if b.sample != nil {
		return b.sample, nil
	}
	if err := b.room(b.size); err != nil {
		return nil, err
	}
	b.say("writing %s of random bytes", formatBytes(b.size))
	s := &sample{path: b.path("large.img"), size: b.size}
	f, err := os.OpenFile(s.path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	random := rand.NewChaCha8([32]byte{'b', 'e', 'n', 'c', 'h'})
	buf := make([]byte, mib)
	for left := b.size; left > 0; left -= int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		buf = buf[:min(left, int64(len(buf)))]
		_, _ = random.Read(buf) // never fails
		_, _ = sum.Write(buf)   // nor does a hash
		if _, err := f.Write(buf); err != nil {
			return nil, err
		}
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	s.sha256 = hex.EncodeToString(sum.Sum(nil))
	b.sample = s
	return s, f.Close()
}

// head returns the sample of the first size bytes of s.
func (s *sample) head(ctx context.Context, size int64) (*sample, error) {
	f, err := os.Open(s.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.CopyN(sum, f, size); err != nil {
		return nil, err
	}
	return &sample{s.path, size, hex.EncodeToString(sum.Sum(nil))}, ctx.Err()
}

// room returns an error if the disk has no room for n bytes and a reserve for other programs.
func (b *bench) room(n int64) error {
	const reserve = 2 * gib
	var st unix.Statfs_t
	if err := unix.Statfs(b.dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < n+reserve {
		return fmt.Errorf("%s has room for %s and this takes %s: choose another place by -dir, or less by -size", b.dir, formatBytes(free), formatBytes(n+reserve))
	}
	return nil
}

// settle makes the start of a measurement equal for both sides: it writes all dirty pages to
// the disk and reads the files into the page cache.
func settle(paths ...string) error {
	unix.Sync()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		_, err = io.Copy(struct{ io.Writer }{io.Discard}, f)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// sparse creates a sparse file of zeros.
func sparse(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// zeros is a virtual file of zeros.
type zeros struct{ size, at int64 }

func (z *zeros) Read(p []byte) (int, error) {
	if z.at >= z.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), z.size-z.at))
	clear(p[:n])
	z.at += int64(n)
	return n, nil
}

func (z *zeros) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += z.at
	case io.SeekEnd:
		offset += z.size
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek to %d", offset)
	}
	z.at = offset
	return offset, nil
}

package digest

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

// Blocks returns the same bytes as Read after any Peek and Read, and ends as Read does.
func TestReaderBlocks(t *testing.T) {
	data := make([]byte, 3*blockBytes+1234)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data) // never fails
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		src    io.Reader
		verify error
		sum    *Hasher
		want   error
	}{
		"whole":      {bytes.NewReader(data), nil, New(false), nil},
		"not hashed": {bytes.NewReader(data), nil, nil, nil},
		"in bytes":   {iotest.OneByteReader(bytes.NewReader(data)), nil, New(false), nil},
		"refused":    {bytes.NewReader(data), broken, New(false), broken},
		"cut":        {io.MultiReader(bytes.NewReader(data[:2*blockBytes]), iotest.ErrReader(broken)), nil, New(false), broken},
		"nothing":    {bytes.NewReader(nil), nil, New(false), nil},
	} {
		r := NewReader(c.src, c.sum, func(*Hasher) error { return c.verify }, nil)
		first, err := r.Peek()
		if err != nil || !bytes.HasPrefix(data, first) || len(first) == 0 && name != "nothing" {
			t.Errorf("%s: Peek: %d bytes, %v", name, len(first), err)
		}
		got := make([]byte, 100)
		n, err := r.Read(got)
		if got = got[:n]; err != nil && name != "nothing" {
			t.Errorf("%s: Read: %v", name, err)
		}
		var rest bytes.Buffer
		_, err = io.Copy(&rest, r) // by WriteTo, which uses Blocks
		got = append(got, rest.Bytes()...)
		if !errors.Is(err, c.want) || !bytes.HasPrefix(data, got) {
			t.Errorf("%s: %d bytes, %v, want %v", name, len(got), err, c.want)
		}
		if c.want == nil && name != "nothing" && len(got) != len(data) {
			t.Errorf("%s: %d bytes, want %d", name, len(got), len(data))
		}
		if _, err := r.Stop(func() {}); !errors.Is(err, c.want) {
			t.Errorf("%s: Stop: %v", name, err)
		}
	}
}

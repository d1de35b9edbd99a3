package hash

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"testing/iotest"
	"testing/synctest"
)

// blocks yields each byte once and in order, for any sizes of reads, and the error
// that ended the reading last.
func TestBlocks(t *testing.T) {
	cut := errors.New("cut")
	data := slices.Repeat([]byte("0123456789abcde"), 5*blockBytes/16+1)
	for _, tt := range []struct {
		name string
		body io.Reader
		want []byte
		err  error
	}{
		{"empty", bytes.NewReader(nil), nil, io.EOF},
		{"less than a block", bytes.NewReader(data[:100]), data[:100], io.EOF},
		{"whole blocks", bytes.NewReader(data[:2*blockBytes]), data[:2*blockBytes], io.EOF},
		{"more than there are", bytes.NewReader(data), data, io.EOF},
		{"in small pieces", iotest.HalfReader(bytes.NewReader(data[:blockBytes+7])), data[:blockBytes+7], io.EOF},
		{"its end with its last bytes", iotest.DataErrReader(bytes.NewReader(data)), data, io.EOF},
		{"cut", io.MultiReader(bytes.NewReader(data[:blockBytes+7]), iotest.ErrReader(cut)), data[:blockBytes+7], cut},
		{"cut as net/http says it", io.MultiReader(bytes.NewReader(data[:9]), iotest.ErrReader(io.ErrUnexpectedEOF)), data[:9], io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []byte
			var end error
			for block, err := range blocks(tt.body, blockBytes) {
				if end != nil {
					t.Fatalf("a block of %d bytes after %v", len(block), end)
				}
				got, end = append(got, block...), err
			}
			if !bytes.Equal(got, tt.want) || end != tt.err { //nolint:errorlint // it is passed on unwrapped
				t.Errorf("%d bytes and %v, want %d and %v", len(got), end, len(tt.want), tt.err)
			}
		})
	}
}

// After an early stop, no goroutine is left once the body is closed.
func TestBlocksStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		go func() {
			buf := make([]byte, blockBytes)
			for {
				if _, err := w.Write(buf); err != nil {
					return
				}
			}
		}()
		for range blocks(r, blockBytes) {
			break
		}
		r.Close()
		// The bubble fails the test if a goroutine stays.
	})
}

package reader_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/reader"
)

// counted is a root that counts requests, and fails those for which fails returns true.
type counted struct {
	store.Root
	gets  atomic.Int64
	fails func(n int64) error
}

func (c *counted) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if n := c.gets.Add(1); c.fails != nil {
		if err := c.fails(n); err != nil {
			return nil, store.Info{}, err
		}
	}
	return c.Root.Get(ctx, key, r, ifMatch)
}

func put(t *testing.T, s *counted, data []byte) store.Version {
	t.Helper()
	v, err := s.Put(t.Context(), "x.img", bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func open(t *testing.T, s *counted, v store.Version) *reader.Reader {
	t.Helper()
	r, err := reader.Open(t.Context(), s, "x.img", v)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

func TestReadAt(t *testing.T) {
	data := random(3<<20 + 12345)
	s := &counted{Root: memstore.New()}
	r := open(t, s, put(t, s, data))
	if r.Size() != int64(len(data)) || r.Local() {
		t.Errorf("size %d, local %v", r.Size(), r.Local())
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 200 {
				off := rng.IntN(len(data))
				p := make([]byte, rng.IntN(2<<20))
				n, err := r.ReadAt(p, int64(off))
				want := min(len(p), len(data)-off)
				if n != want || !bytes.Equal(p[:n], data[off:off+n]) || (n < len(p)) != errors.Is(err, io.EOF) || err != nil && n == len(p) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n := s.gets.Load(); n != 4 {
		t.Errorf("%d requests for four chunks", n)
	}
	if n, err := r.ReadAt(make([]byte, 1), r.Size()+5); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("beyond the end: %d, %v", n, err)
	}
}

func TestEmpty(t *testing.T) {
	s := &counted{Root: memstore.New()}
	r := open(t, s, put(t, s, nil))
	if n, err := r.ReadAt(make([]byte, 1), 0); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("%d, %v", n, err)
	}
}

// Reads return bytes of one version, or fail.
func TestReplaced(t *testing.T) {
	s := &counted{Root: memstore.New()}
	v := put(t, s, random(2<<20))
	r := open(t, s, v)
	put(t, s, bytes.Repeat([]byte("other"), 2<<20))
	if _, err := r.ReadAt(make([]byte, 10), 1<<20); !errors.Is(err, store.ErrChanged) {
		t.Errorf("replaced while it is read: %v", err)
	}
	if _, err := reader.Open(t.Context(), s, "x.img", v); !errors.Is(err, store.ErrChanged) {
		t.Errorf("replaced before: %v", err)
	}
	if _, err := reader.Open(t.Context(), s, "none.img", v); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
}

// A chunk that failed is requested again.
func TestFailure(t *testing.T) {
	data := random(2 << 20)
	broken := errors.New("no route to the store")
	s := &counted{Root: memstore.New()}
	r := open(t, s, put(t, s, data))
	s.fails = func(n int64) error {
		if n == 2 {
			return broken
		}
		return nil
	}
	p := make([]byte, 100)
	if _, err := r.ReadAt(p, 1<<20); !errors.Is(err, broken) || !strings.Contains(err.Error(), "route") {
		t.Errorf("a failure: %v", err)
	}
	if n, err := r.ReadAt(p, 1<<20); err != nil || n != 100 || !bytes.Equal(p, data[1<<20:1<<20+100]) {
		t.Errorf("the next time: %d, %v", n, err)
	}
}

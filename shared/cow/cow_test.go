package cow

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"
)

// A disk of bytes, whose second half is a hole.
type base struct {
	*bytes.Reader
	closed bool
}

func newBase(n int) *base {
	data := make([]byte, n)
	for i := range n / 2 {
		data[i] = byte(i>>8 + i)
	}
	return &base{Reader: bytes.NewReader(data)}
}

func (b *base) bytes() []byte {
	data := make([]byte, b.Size())
	_, _ = b.ReadAt(data, 0)
	return data
}

func (b *base) Extent(off, limit int64) (int64, bool, error) {
	if half := b.Size() / 2; off < half {
		return min(limit, half) - off, false, nil
	}
	return limit - off, true, nil
}

func (b *base) Close() error { b.closed = true; return nil }

func open(t testing.TB, b *Budget, size int) (*Disk, *base) {
	t.Helper()
	below := newBase(size)
	d, err := b.Open(below)
	if err != nil {
		t.Fatal(err)
	}
	return d, below
}

// TestDisk compares a disk with bytes in memory after each of many changes.
func TestDisk(t *testing.T) {
	for i, size := range []int{1, 4095, 4096, 100_001, 60 * block, 60 * block} {
		b := NewBudget(t.TempDir(), 1<<30)
		d, below := open(t, b, size)
		if i == 5 { // a file system without holes
			d.punch = func(int, uint32, int64, int64) error { return syscall.EOPNOTSUPP }
		}
		want := below.bytes()
		rnd := rand.New(rand.NewPCG(uint64(size), 1))
		for i := range 200 {
			off := rnd.IntN(size)
			n := min(rnd.IntN(1<<rnd.IntN(18)), size-off)
			if rnd.IntN(4) == 0 {
				off, n = off/block*block, min((n+block-1)/block*block, size-off/block*block)
			}
			var err error
			if piece := want[off : off+n]; rnd.IntN(3) == 0 {
				clear(piece)
				err = d.Zero(int64(off), int64(n))
			} else {
				for i := range piece {
					piece[i] = byte(rnd.Uint32())
				}
				var m int
				if m, err = d.WriteAt(piece, int64(off)); m != n {
					t.Fatalf("%d of %d bytes written", m, n)
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			if i%10 == 9 {
				check(t, d, want)
			}
		}
		if !bytes.Equal(below.bytes(), newBase(size).bytes()) {
			t.Error("the base has changed")
		}
		if b.Used() == 0 {
			t.Error("the layer takes nothing")
		}
		if err := d.Close(); err != nil || !below.closed || b.Used() != 0 {
			t.Errorf("%v; the base is closed: %v; %d bytes are used yet", err, below.closed, b.Used())
		}
		if left, err := os.ReadDir(b.dir); err != nil || len(left) > 0 {
			t.Errorf("files remain: %v, %v", left, err)
		}
	}
}

func check(t *testing.T, d *Disk, want []byte) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes, %v, or wrong ones", len(got), err)
	}
	for off := int64(0); off < d.Size(); {
		n, hole, err := d.Extent(off, d.Size())
		if err != nil || n < 1 || off+n > d.Size() || hole && !bytes.Equal(want[off:off+n], make([]byte, n)) {
			t.Fatalf("an extent of %d bytes from %d on, a hole: %v, %v", n, off, hole, err)
		}
		off += n
	}
}

func TestLayersArePrivate(t *testing.T) {
	b := NewBudget(t.TempDir(), 1<<30)
	one, below := open(t, b, 10*block)
	defer one.Close()
	two, _ := open(t, b, 10*block)
	defer two.Close()
	if _, err := one.WriteAt([]byte("mine"), 5000); err != nil {
		t.Fatal(err)
	}
	check(t, two, below.bytes())
}

// TestBudget fills the budget of two layers. Zeros and the end of a layer free room.
func TestBudget(t *testing.T) {
	const size = 1 << 20
	b := NewBudget(t.TempDir(), size+size/2)
	one, _ := open(t, b, size)
	two, _ := open(t, b, size)
	defer two.Close()
	full := bytes.Repeat([]byte("x"), size)
	if _, err := one.WriteAt(full, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := two.WriteAt(full, 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write beyond the budget: %v", err)
	}
	if _, err := two.WriteAt(full[:size/4], 0); err != nil {
		t.Errorf("a write within the budget: %v", err)
	}
	if err := one.Zero(0, size); err != nil {
		t.Fatal(err)
	}
	if _, err := two.WriteAt(full, 0); err != nil {
		t.Errorf("after the other layer is zero: %v", err)
	}
	one.Close()
	if b.Used() > size+size/8 {
		t.Errorf("%d bytes are used", b.Used())
	}
}

// TestConcurrent reads while it writes.
func TestConcurrent(t *testing.T) {
	d, _ := open(t, NewBudget(t.TempDir(), 1<<30), 64*block)
	defer d.Close()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			p := make([]byte, 3*block)
			for off := int64(0); off < 60*block; off += block / 2 {
				if _, err := d.ReadAt(p, off); err != nil {
					t.Error(err)
				}
				if i > 0 {
					continue
				}
				if _, err := d.WriteAt(p, off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

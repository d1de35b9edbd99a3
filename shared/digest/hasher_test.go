package digest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"testing"
)

// TestResume saves and restores the hash between all writes, like a worker that is
// killed each time.
func TestResume(t *testing.T) {
	data := make([]byte, 1000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	want256, want512 := sha256.Sum256(data), sha512.Sum512(data)
	for _, with512 := range []bool{false, true} {
		for _, step := range []int{1, 63, 64, 65, 127, 128, 129, 1000} {
			h := New(with512)
			for rest := data; len(rest) > 0; {
				n, err := h.Write(rest[:min(step, len(rest))])
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
				h.Sum256() // must not affect later writes
				saved, err := json.Marshal(h.State())
				if err != nil || len(saved) > 1024 {
					t.Fatalf("State is %d bytes of JSON, %v", len(saved), err)
				}
				var s State
				if err := json.Unmarshal(saved, &s); err != nil {
					t.Fatal(err)
				}
				if h, err = Resume(s); err != nil {
					t.Fatal(err)
				}
				if got, want := h.Offset(), int64(len(data)-len(rest)); got != want {
					t.Fatalf("Offset = %d, want %d", got, want)
				}
			}
			if got := h.Sum256(); string(got) != hex.EncodeToString(want256[:]) {
				t.Errorf("step %d: Sum256 = %s", step, got)
			}
			want := ""
			if with512 {
				want = hex.EncodeToString(want512[:])
			}
			if got := h.Sum512(); got != want {
				t.Errorf("step %d: Sum512 = %q, want %q", step, got, want)
			}
		}
	}
}

func TestResumeCorruptState(t *testing.T) {
	h := New(true)
	if _, err := h.Write(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	corrupt := map[string]func(*State){
		"empty":         func(s *State) { *s = State{} },
		"offset":        func(s *State) { s.Offset++ },
		"bit of 256":    func(s *State) { s.SHA256[20] ^= 1 },
		"bit of 512":    func(s *State) { s.SHA512[20] ^= 1 },
		"512 dropped":   func(s *State) { s.SHA512 = nil },
		"256 cut":       func(s *State) { s.SHA256 = s.SHA256[:50] },
		"moved between": func(s *State) { s.SHA256, s.SHA512 = append(s.SHA256, s.SHA512[0]), s.SHA512[1:] },
		// The check is valid, but the state is not that of a hash.
		"no hash state": func(s *State) { s.SHA256 = []byte("x"); s.Check = s.check() },
		"no 512 state":  func(s *State) { s.SHA512 = []byte("x"); s.Check = s.check() },
		"negative":      func(s *State) { s.Offset = -1; s.Check = s.check() },
	}
	for name, change := range corrupt {
		s := h.State()
		change(&s)
		if got, err := Resume(s); err == nil {
			t.Errorf("%s: Resume returned a hasher at %d", name, got.Offset())
		}
	}
	if _, err := Resume(h.State()); err != nil {
		t.Errorf("the sound state: %v", err)
	}
}

func BenchmarkHasher(b *testing.B) {
	buf := make([]byte, 1<<20)
	h := New(false)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		_, _ = h.Write(buf)
	}
}

func FuzzResume(f *testing.F) {
	for _, with512 := range []bool{false, true} {
		h := New(with512)
		_, _ = h.Write([]byte("seed"))
		s := h.State()
		f.Add(s.Offset, s.SHA256, s.SHA512, s.Check)
	}
	f.Add(int64(0), []byte("sha\x03"), []byte(nil), uint32(0))
	f.Fuzz(func(t *testing.T, offset int64, s256, s512 []byte, check uint32) {
		s := State{offset, s256, s512, check}
		h, err := Resume(s)
		if err != nil {
			s.Check = s.check() // the check passes: must not panic either
			if h, err = Resume(s); err != nil {
				return
			}
		}
		_, _ = h.Write([]byte("more"))
		if len(h.Sum256()) != 64 || len(h.Sum512()) != 0 && len(s512) == 0 {
			t.Errorf("sums %q and %q", h.Sum256(), h.Sum512())
		}
	})
}

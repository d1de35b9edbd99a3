package digest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash"
	"hash/crc32"

	"imageroot/shared/layout"
)

// A Hasher computes the SHA-256 of a stream, and optionally its SHA-512. Its Write
// never fails. It is not safe for concurrent use.
type Hasher struct {
	sha256 hash.Hash
	sha512 hash.Hash // or nil
	offset int64
}

// New returns a Hasher at the beginning of a stream, which computes the SHA-512 too if
// with512 is set.
func New(with512 bool) *Hasher {
	h := &Hasher{sha256: sha256.New()}
	if with512 {
		h.sha512 = sha512.New()
	}
	return h
}

// Write hashes the next bytes of the stream.
func (h *Hasher) Write(p []byte) (int, error) {
	h.sha256.Write(p)
	if h.sha512 != nil {
		h.sha512.Write(p)
	}
	h.offset += int64(len(p))
	return len(p), nil
}

// Offset returns the number of bytes written.
func (h *Hasher) Offset() int64 { return h.offset }

// Sum256 returns the SHA-256 of the bytes written so far. It does not change the state.
func (h *Hasher) Sum256() layout.SHA256 { return layout.SHA256(hex.EncodeToString(h.sha256.Sum(nil))) }

// Sum512 is [Hasher.Sum256] for SHA-512. It returns "" if the Hasher computes none.
func (h *Hasher) Sum512() string {
	if h.sha512 == nil {
		return ""
	}
	return hex.EncodeToString(h.sha512.Sum(nil))
}

// A State is a saved [Hasher]. As JSON it is smaller than 1 KB.
type State struct {
	Offset int64  `json:"offset"`
	SHA256 []byte `json:"sha256"`
	SHA512 []byte `json:"sha512,omitempty"`
	// Check is the CRC-32 of the other fields. Without it, a damaged state, or one
	// with the offset of another, would give a wrong digest without an error.
	Check uint32 `json:"check"`
}

// State returns the state for [Resume].
func (h *Hasher) State() State {
	s := State{Offset: h.offset, SHA256: marshal(h.sha256)}
	if h.sha512 != nil {
		s.SHA512 = marshal(h.sha512)
	}
	s.Check = s.check()
	return s
}

// marshal returns the state of a hash of the standard library, which never fails. If it
// did, Resume would refuse nil.
func marshal(h hash.Hash) []byte {
	b, err := h.(encoding.BinaryMarshaler).MarshalBinary()
	if err != nil {
		return nil
	}
	return b
}

func (s State) check() uint32 {
	b := binary.BigEndian.AppendUint64(nil, uint64(s.Offset))
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.SHA256)))
	b = append(b, s.SHA256...)
	return crc32.ChecksumIEEE(append(b, s.SHA512...))
}

// Resume returns a Hasher with the saved state, for the bytes from s.Offset on. It
// returns an error if the state is empty, damaged, or of a Go release with another
// encoding; then the caller must hash the stream from its beginning.
func Resume(s State) (*Hasher, error) {
	if s.Check != s.check() || s.Offset < 0 {
		return nil, errors.New("the saved hash state is damaged")
	}
	h := New(len(s.SHA512) > 0)
	h.offset = s.Offset
	err := h.sha256.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.SHA256)
	if err == nil && h.sha512 != nil {
		err = h.sha512.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.SHA512)
	}
	if err != nil {
		return nil, errors.New("the saved hash state is not one of this program's")
	}
	return h, nil
}

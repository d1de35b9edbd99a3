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
)

// A Hasher computes the SHA-256 of a stream, and its SHA-512 if asked to. It
// is an io.Writer that never fails. It must not be used concurrently.
type Hasher struct {
	sha256 hash.Hash
	sha512 hash.Hash // or nil
	offset int64
}

// New returns a Hasher at the beginning of a stream.
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

// Offset returns how many bytes of the stream have been hashed.
func (h *Hasher) Offset() int64 { return h.offset }

// Sum256 returns the SHA-256 of the bytes so far in lower case hex. More may
// be written afterwards.
func (h *Hasher) Sum256() string { return hex.EncodeToString(h.sha256.Sum(nil)) }

// Sum512 is [Hasher.Sum256] for SHA-512. It is empty where none was asked for.
func (h *Hasher) Sum512() string {
	if h.sha512 == nil {
		return ""
	}
	return hex.EncodeToString(h.sha512.Sum(nil))
}

// A State is a [Hasher] at rest. It is less than a kilobyte of JSON.
type State struct {
	Offset int64  `json:"offset"`
	SHA256 []byte `json:"sha256"`
	SHA512 []byte `json:"sha512,omitempty"`
	// Check is over the other fields. A state that was damaged, or whose
	// offset is another's, would otherwise yield a wrong digest in silence.
	Check uint32 `json:"check"`
}

// State returns what [Resume] goes on from.
func (h *Hasher) State() State {
	s := State{Offset: h.offset, SHA256: marshal(h.sha256)}
	if h.sha512 != nil {
		s.SHA512 = marshal(h.sha512)
	}
	s.Check = s.check()
	return s
}

// marshal returns the state of one of the standard library's hashes, which
// never fails: nil, which Resume refuses, if it ever did.
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

// Resume returns a Hasher that goes on at s.Offset. It fails for a state that
// is empty, damaged, or was saved by a Go release whose hashes differ; the
// stream must then be hashed from its beginning.
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

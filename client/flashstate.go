package client

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"

	"imageroot/client/flash"
)

// A flashState is what is kept of a flash, in a file, so that another run resumes it. It is
// a hint: the other run compares the device with it.
type flashState struct {
	flashHead
	Offset int64  `json:"offset"` // what is on the device
	Sum    []byte `json:"sum"`    // the state of the SHA-256 up to there

	path string // "": nothing is kept
}

// flashHead says which disk is written to which device.
type flashHead struct {
	Device    string `json:"device"`
	ID        string `json:"id"` // of the device; see flash.Device
	RawSHA256 string `json:"raw_sha256"`
}

// newFlashState returns what is kept of such a flash. Its Offset is 0 if there is nothing.
func newFlashState(dir string, h flashHead) *flashState {
	s := &flashState{flashHead: h}
	if dir == "" {
		return s
	}
	key := sha256.Sum256([]byte(h.Device))
	s.path = filepath.Join(dir, "flash", hex.EncodeToString(key[:16]))
	var old flashState
	if b, err := os.ReadFile(s.path); err == nil && json.Unmarshal(b, &old) == nil && old.flashHead == h {
		s.Offset, s.Sum = old.Offset, old.Sum
	}
	return s
}

// keep keeps what w has written and synced. Without a file to write, another run begins
// again.
func (s *flashState) keep(w *flash.Writer) {
	var err error
	if s.Sum, err = w.State(); err != nil || s.path == "" {
		return
	}
	s.Offset = w.Offset()
	if b, err := json.Marshal(s); err == nil {
		_ = writeFile(s.path, b)
	}
}

// remove forgets the flash.
func (s *flashState) remove() {
	if s.path != "" {
		_ = os.Remove(s.path)
	}
}

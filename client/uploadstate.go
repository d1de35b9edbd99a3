package client

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// uploadState is what is kept of an upload on this machine, so that another run resumes it:
// a file with the upload on its first line, and a part on each other. It is locked while a
// run uses it. Without a file, nothing is kept.
type uploadState struct {
	f    *os.File
	head stateHead
	// parts has the parts that were sent, by number.
	parts map[int]sentPart
}

// stateHead identifies the upload.
type stateHead struct {
	ID       string    `json:"id"`
	URL      string    `json:"url"` // of the server
	Name     string    `json:"name"`
	Path     string    `json:"path"`
	Size     int64     `json:"size_bytes"`
	Modified time.Time `json:"modified"`
}

// A sentPart is a part that was sent: its ETag, and the SHA-256 of the file up to its end.
type sentPart struct {
	Number int    `json:"number"`
	ETag   string `json:"etag"`
	SHA256 string `json:"sha256"`
}

// errBusy is returned by openState if another process uploads the file.
var errBusy = errors.New("another imageroot push of this file is running")

// openState returns what is kept of an upload to a server of a file under a name. Its ID is
// empty if there is nothing. The caller closes it.
func openState(dir string, h stateHead) (*uploadState, error) {
	s := &uploadState{head: h, parts: map[int]sentPart{}}
	if dir == "" {
		return s, nil
	}
	dir = filepath.Join(dir, "uploads")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return s, nil // nothing is kept
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s", h.URL, h.Name, h.Path))
	f, err := os.OpenFile(filepath.Join(dir, hex.EncodeToString(key[:16])), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return s, nil
	}
	if err := lock(f); err != nil {
		_ = f.Close()
		return nil, errBusy
	}
	s.f = f
	lines := bufio.NewScanner(f)
	var was stateHead
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &was) != nil {
		return s, nil
	}
	// A file with another size or time is another file.
	if was.Size != h.Size || !was.Modified.Equal(h.Modified) {
		return s, nil
	}
	s.head = was
	for lines.Scan() {
		var p sentPart
		if json.Unmarshal(lines.Bytes(), &p) == nil { // else a crash has cut it
			s.parts[p.Number] = p
		}
	}
	return s, nil
}

// begin replaces what is kept by an upload without parts.
func (s *uploadState) begin(id string) {
	s.head.ID = id
	clear(s.parts)
	if s.f == nil {
		return
	}
	_ = s.f.Truncate(0)
	_, _ = s.f.Seek(0, 0)
	s.append(s.head)
}

// sent adds a part.
func (s *uploadState) sent(p sentPart) {
	s.parts[p.Number] = p
	s.append(p)
}

// append writes a line. If that fails, less is resumed.
func (s *uploadState) append(v any) {
	if s.f == nil {
		return
	}
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	_, _ = s.f.Write(append(b, '\n'))
}

// close ends the use of the state, and removes it if done is true.
func (s *uploadState) close(done bool) {
	if s.f == nil {
		return
	}
	if done {
		_ = os.Remove(s.f.Name())
	}
	_ = s.f.Close()
}

// lock locks a file for this process, and returns an error if another process has it.
func lock(f *os.File) error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) }

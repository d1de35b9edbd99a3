package feed

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"path"
	"strings"
	"sync"

	"imageroot/shared/inventory"
	"imageroot/shared/problem"
)

const openPGPType = "application/pgp-signature"

// Signatures keeps the last signature of each feed. A signature has a time, so a new one of
// an unchanged document would be another document. The zero value has none.
type Signatures struct {
	mu   sync.Mutex
	last map[string]signature // by the path of the feed
}

type signature struct {
	key  Signer
	of   [sha256.Size]byte // the document
	text []byte
}

// signed returns the encoder of the feed at path, which is the signature of the document
// that encode writes. Without the suffix of path, it has the document's name.
func signed(at string, encode encoder, sign func(k Signer, to io.Writer, message io.Reader, name string, on Server) error) encoder {
	name := strings.TrimSuffix(path.Base(at), path.Ext(at))
	return func(to io.Writer, s *inventory.Snapshot, on Server) error {
		key, err := on.Key()
		if err != nil {
			return err
		}
		message, feed := io.Pipe()
		defer message.Close()
		sum := sha256.New()
		go func() {
			lines := bufio.NewWriterSize(io.MultiWriter(sum, feed), 64<<10) // a pipe hands each Write over
			feed.CloseWithError(errors.Join(encode(lines, s, on), lines.Flush()))
		}()
		var text bytes.Buffer
		if err := sign(key, &text, message, name, on); err != nil {
			return err
		}
		_, err = to.Write(on.Signatures.keep(at, signature{key, [sha256.Size]byte(sum.Sum(nil)), text.Bytes()}))
		return err
	}
}

// keep returns the text of the last signature at a path, if it is by the key of now of the same
// document, or else that of now.
func (k *Signatures) keep(at string, now signature) []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if last := k.last[at]; last.key == now.key && last.of == now.of {
		return last.text
	}
	if k.last == nil {
		k.last = map[string]signature{}
	}
	k.last[at] = now
	return now.text
}

func openPGP(k Signer, to io.Writer, message io.Reader, _ string, on Server) error {
	return k.SignOpenPGP(to, message, on.Now)
}

func miniSign(k Signer, to io.Writer, message io.Reader, name string, on Server) error {
	return k.SignMinisign(to, message, name, on.Now)
}

// Key returns the key that signs, or an error that says that there is none.
func (on *Server) Key() (Signer, error) {
	if on.SigningKey != nil {
		if key, err := on.SigningKey(); key != nil || err != nil {
			return key, err
		}
	}
	return nil, problem.New(problem.NotFound, "this server signs nothing: imageroot key makes its signing key")
}

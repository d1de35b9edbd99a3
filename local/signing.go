package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"imageroot/functions/catalog"
	"imageroot/shared/config"
	"imageroot/shared/signing"
)

// signingFile is the path of the signing key in DATA. Only the owner may read it.
const signingFile = ".imageroot/signing.json"

// A signingKey is the key in a data directory, which imageroot key may make at any time.
type signingKey struct {
	data string
	log  *slog.Logger

	mu  sync.Mutex
	key *signing.Key
}

// get returns the key, or nil if there is none yet.
func (s *signingKey) get() (catalog.Signer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.key == nil {
		key, err := readSigningKey(s.data)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			s.log.Error("the signing key cannot be read; move its file away and run imageroot key for a new one", slog.Any("error", err))
			return nil, err
		}
		s.key = key
	}
	return s.key, nil
}

func readSigningKey(data string) (*signing.Key, error) {
	path := filepath.Join(data, signingFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the signing key: %w", err)
	}
	return signing.Decode(path, text)
}

// makeSigningKey makes the signing key of the server that cfg describes, if it has none, and
// prints its public half.
func makeSigningKey(_ context.Context, cfg config.Config, stdout io.Writer) error {
	key, err := readSigningKey(cfg.Data)
	what := "The signing key"
	if errors.Is(err, fs.ErrNotExist) {
		what = "Made the signing key"
		key, err = newSigningKey(cfg.Data)
	}
	if err != nil {
		return err
	}
	public, err := key.Minisign()
	if err != nil {
		return err
	}
	_, line, _ := strings.Cut(string(public), "\n")
	_, err = fmt.Fprintf(stdout, `%s in %s. Who can read that file can sign in the name of this server: keep a copy in a safe place.

  OpenPGP   %s   GET /key.gpg
  minisign  %s   GET /minisign.pub
`, what, filepath.Join(cfg.Data, signingFile), key.Fingerprint(), strings.TrimSpace(line))
	return err
}

// newSigningKey makes a signing key, or returns the one that another process has just made.
func newSigningKey(data string) (*signing.Key, error) {
	key, err := signing.New("imageroot", time.Now())
	if err != nil {
		return nil, err
	}
	text, err := key.Encode()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(data, signingFile)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("the signing key cannot be kept: %w", err)
	}
	next := fmt.Sprintf("%s.%d", path, os.Getpid())
	defer os.Remove(next)
	if err := writeSynced(next, append(text, '\n')); err != nil {
		return nil, fmt.Errorf("the signing key cannot be kept: %w", err)
	}
	// A link never replaces a file.
	if err := os.Link(next, path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("the signing key cannot be kept: %w", err)
	}
	return readSigningKey(data)
}

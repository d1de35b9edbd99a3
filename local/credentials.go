package main

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"imageroot/shared/auth"
	"imageroot/shared/config"
	"imageroot/shared/record"
)

// secretsFile is the path of the credentials in DATA.
const secretsFile = ".imageroot/credentials.json"

// credentials are what was generated because nobody gave it. The file that
// keeps them is its owner's only.
type credentials struct {
	record.Format
	Password string `json:"password,omitempty"`
	// AccessKey and SecretKey are for uploads to the image root.
	AccessKey string `json:"s3_access_key,omitempty"`
	SecretKey string `json:"s3_secret_key,omitempty"`
	// ProgramAccessKey and ProgramSecretKey may do everything: they are for
	// imageroot itself, here and in other processes over this gateway.
	ProgramAccessKey string `json:"program_access_key"`
	ProgramSecretKey string `json:"program_secret_key"`

	path string
	// What was generated at this start.
	freshPassword, freshKeys bool
}

// loadCredentials fills what cfg leaves open from the file, generating what
// is not there either. A file that others may read is made its owner's only, a
// damaged one is set aside; both are logged.
func loadCredentials(cfg *config.Config, log *slog.Logger) (*credentials, error) {
	c, err := readCredentials(cfg.Data)
	switch {
	case errors.Is(err, record.ErrDamaged):
		aside := c.path + ".damaged"
		if err := os.Rename(c.path, aside); err != nil {
			return nil, fmt.Errorf("the damaged credentials cannot be set aside: %w", err)
		}
		log.Warn("the generated credentials are damaged; what is not given is generated anew, and S3 clients need the new keys",
			slog.String("kept in", aside), slog.Any("error", err))
		c = &credentials{path: c.path}
	case err != nil:
		return nil, err
	}
	if err := c.protect(log); err != nil {
		return nil, err
	}
	if cfg.Password == "" {
		if c.Password == "" {
			c.Password, c.freshPassword = auth.NewPassword(), true
		}
		cfg.Password = c.Password
	}
	if cfg.S3AccessKey == "" {
		if c.AccessKey == "" || c.SecretKey == "" {
			c.AccessKey, c.SecretKey = newKey()
			c.freshKeys = true
		}
		cfg.S3AccessKey, cfg.S3SecretKey = c.AccessKey, c.SecretKey
	}
	freshProgram := c.ProgramAccessKey == "" || c.ProgramSecretKey == ""
	if freshProgram {
		c.ProgramAccessKey, c.ProgramSecretKey = newKey()
	}
	if !c.freshPassword && !c.freshKeys && !freshProgram {
		return c, nil
	}
	return c, c.save()
}

// readCredentials returns what the file in the data directory keeps: nothing
// where there is none.
func readCredentials(dir string) (*credentials, error) {
	path := filepath.Join(dir, secretsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &credentials{path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the generated credentials: %w", err)
	}
	c, err := record.Decode[credentials](path, data)
	c.path = path
	return &c, err
}

// protect takes the rights of others on the file and on its directory away.
func (c *credentials) protect(log *slog.Logger) error {
	for _, path := range []string{filepath.Dir(c.path), c.path} {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the generated credentials cannot be protected: %w", err)
		}
		if mode := info.Mode().Perm(); mode&0o077 != 0 {
			if err := os.Chmod(path, mode&^0o077); err != nil {
				return fmt.Errorf("other users may read %s, and that cannot be changed: %w", path, err)
			}
			log.Warn("other users could read generated credentials; remove the file and start again if one of them may have",
				slog.String("path", path), slog.String("mode", mode.String()))
		}
	}
	return nil
}

func newKey() (access, secret string) { return "IR" + rand.Text()[:18], rand.Text() + rand.Text()[:14] }

func (c *credentials) save() error {
	c.Schema = c.SchemaVersion()
	data, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.path), 0o700); err != nil {
		return fmt.Errorf("the generated credentials cannot be kept: %w", err)
	}
	// A new file in the old one's place: never half of one.
	next := c.path + ".new"
	if err := writeSynced(next, append(data, '\n')); err != nil {
		return fmt.Errorf("the generated credentials cannot be kept: %w", err)
	}
	if err := os.Rename(next, c.path); err != nil {
		return fmt.Errorf("the generated credentials cannot be kept: %w", err)
	}
	return nil
}

// writeSynced writes a file that only its owner reads, and waits until it is
// on the disk.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

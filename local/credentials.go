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
	"imageroot/shared/store"
)

// secretsFile is the path of the credentials in DATA.
const secretsFile = ".imageroot/credentials.json"

// credentials holds the credentials that were generated because the settings have none.
// Only the owner of their file may read it.
type credentials struct {
	record.Format
	Password string `json:"password,omitempty"`
	// AccessKey and SecretKey are for uploads to the image root.
	AccessKey string `json:"s3_access_key,omitempty"`
	SecretKey string `json:"s3_secret_key,omitempty"`
	// ProgramAccessKey and ProgramSecretKey have all rights. They are for imageroot
	// itself, in this process and in others over this gateway.
	ProgramAccessKey string `json:"program_access_key"`
	ProgramSecretKey string `json:"program_secret_key"`

	path                     string
	freshPassword, freshKeys bool // generated at this start
}

// loadCredentials completes cfg from the file. It generates and saves the credentials that
// both lack. It restricts a file that others may read to its owner, and renames a damaged
// file; it logs both.
func loadCredentials(cfg *config.Config, log *slog.Logger) (*credentials, error) {
	c, err := readCredentials(cfg.Data)
	switch {
	case errors.Is(err, record.ErrDamaged):
		damaged := c.path + ".damaged"
		if err := os.Rename(c.path, damaged); err != nil {
			return nil, fmt.Errorf("rename the damaged credentials: %w", err)
		}
		log.Warn("the generated credentials are damaged; what is not given is generated anew, and S3 clients need the new keys",
			slog.String("kept in", damaged), slog.Any("error", err))
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

// readCredentials returns the credentials in the file of the data directory dir. They are
// empty if there is no file. It returns an error of [record.Decode] if the file is damaged
// or of a newer version.
func readCredentials(dir string) (*credentials, error) {
	path := filepath.Join(dir, secretsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &credentials{path: path}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the generated credentials: %w", err)
	}
	c, err := record.Decode[credentials](store.Key(path), data)
	c.path = path
	return &c, err
}

// protect removes the rights of group and others on the file and its directory.
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
	err = os.MkdirAll(filepath.Dir(c.path), 0o700)
	// Renaming replaces the file atomically: a crash leaves the old one or the new one.
	next := c.path + ".new"
	if err == nil {
		err = writeSynced(next, append(data, '\n'))
	}
	if err == nil {
		err = os.Rename(next, c.path)
	}
	if err != nil {
		return fmt.Errorf("the generated credentials cannot be kept: %w", err)
	}
	return nil
}

// writeSynced writes a file that only its owner may read. It is on disk when writeSynced
// returns nil.
func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

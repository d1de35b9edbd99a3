package client

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/pelletier/go-toml/v2"
)

const defaultURL = "http://localhost:8080"

// settings is the file config.toml in the configuration directory.
type settings struct {
	// URL is the server that commands use: the last one of imageroot login.
	URL string `toml:"url"`
	// Servers has the credentials for each server, by its URL.
	Servers map[string]login `toml:"servers"`
}

// login has the credentials for one server: an API token, or the session that the
// password has opened.
type login struct {
	Token   string `toml:"token,omitempty"`
	Session string `toml:"session,omitempty"`
}

func (a *app) settingsFile() (string, error) {
	if a.Environment.ConfigDir == "" {
		return "", errors.New("the home directory is not known: set HOME or XDG_CONFIG_HOME")
	}
	return filepath.Join(a.Environment.ConfigDir, "config.toml"), nil
}

// readSettings returns the settings. They are empty if there is no file. A file that
// others can read is refused, since it has credentials.
func (a *app) readSettings() (s settings, err error) {
	if a.Environment.ConfigDir == "" {
		return s, nil
	}
	path, err := a.settingsFile()
	if err != nil {
		return s, err
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return s, fmt.Errorf("others can read %s, which has credentials: chmod 600 %[1]s", path)
	}
	if err := toml.NewDecoder(f).Decode(&s); err != nil {
		return s, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

// writeSettings replaces the settings. The file is on the disk when it returns.
func (a *app) writeSettings(s settings) error {
	path, err := a.settingsFile()
	if err != nil {
		return err
	}
	b, err := toml.Marshal(s)
	if err != nil {
		return err
	}
	return writeFile(path, b)
}

// writeFile replaces a file that only its owner may read. It makes its directory. A crash
// leaves the old file or the new one.
func writeFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // with mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

package config

import (
	"os"
	"path/filepath"
)

// A Client is what the environment says to the commands that use a server.
type Client struct {
	URL   string // IMAGEROOT_URL
	Token string // IMAGEROOT_TOKEN, which is a setting of the server, too
	// ConfigDir and StateDir are the directories for settings and for what uploads keep.
	// They are empty if the home directory is not known.
	ConfigDir, StateDir string
}

// clientURL is the one variable that only [LoadClient] reads.
var clientURL = setting{name: "URL"}

// LoadClient reads the environment. Directories are those of the XDG Base Directory
// Specification.
func LoadClient() Client {
	return Client{
		URL: os.Getenv(clientURL.env()), Token: os.Getenv(prefix + "TOKEN"),
		ConfigDir: xdg("XDG_CONFIG_HOME", ".config"), StateDir: xdg("XDG_STATE_HOME", ".local/state"),
	}
}

// xdg returns imageroot's directory in that of a variable, or in that below home if the
// variable has no absolute path.
func xdg(variable, below string) string {
	dir := os.Getenv(variable)
	if !filepath.IsAbs(dir) {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, below)
	}
	return filepath.Join(dir, "imageroot")
}

package config

import "runtime/debug"

// release is set by the linker (-X).
var release string

// Version returns the release of this program. A program that is not a release has
// "devel-", the first 12 digits of the commit, and "+changes" if the work tree was
// modified; "devel" if the commit is unknown; or "unknown" without build information.
func Version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, modified := "", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision" && len(s.Value) >= 12:
			revision = s.Value[:12]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}

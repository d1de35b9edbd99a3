package source

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"oras.land/oras-go/v2/registry"

	"imageroot/shared/image"
)

// maxURLBytes is far above what signed URLs need, and far below what a record
// or a request line holds.
const maxURLBytes = 8 << 10

// A URL is a source that was parsed: http, https or oras.
type URL struct {
	// Canonical is what the source is stored and compared as: scheme and
	// host in lower case, no fragment.
	Canonical string
	Scheme    string // "http", "https" or "oras"
	Host      string // HOST or HOST:PORT
	// Name is the image name that the path ends in. It is empty for oras,
	// where the layer's title names the image.
	Name string

	ref registry.Reference // oras only
}

// ParseURL parses the URL of an image: http or https with a path that ends in
// an image name, or oras://HOST[:PORT]/REPO followed by :TAG or
// @sha256:DIGEST. The error is a [*Malformed].
func ParseURL(raw string) (URL, error) {
	if rest, ok := cutScheme(strings.TrimSpace(raw), "oras"); ok {
		return parseORAS(rest)
	}
	u, err := parseWeb(raw)
	if err != nil {
		return URL{}, err
	}
	name, err := fileName(u)
	if err != nil {
		return URL{}, malformed("the URL must end in an image's file name: %v", err)
	}
	return URL{Canonical: u.String(), Scheme: u.Scheme, Host: u.Host, Name: name}, nil
}

func cutScheme(raw, scheme string) (rest string, ok bool) {
	s, rest, ok := strings.Cut(raw, "://")
	return rest, ok && strings.EqualFold(s, scheme)
}

// parseWeb parses an http or https URL of anything and makes it canonical.
func parseWeb(raw string) (*url.URL, error) {
	raw = strings.TrimSpace(raw)
	if err := checkText(raw); err != nil {
		return nil, err
	}
	u, err := url.Parse(raw)
	if err != nil {
		// What url.Parse says repeats the URL, which may hold a password.
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, malformed("the URL cannot be read: %v", err)
	}
	switch {
	case u.Scheme == "":
		return nil, malformed("the URL must begin with https://, http:// or oras://")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, malformed("%s: URLs are not sources: use https, http or oras", u.Scheme)
	case u.Hostname() == "" || u.Opaque != "":
		return nil, malformed("the URL names no host")
	case u.User != nil:
		return nil, malformed("the URL holds a user name or password, which everybody who sees the catalog would see: use a URL that needs none")
	}
	if err := checkPort(u.Port()); err != nil {
		return nil, err
	}
	u.Host = strings.TrimSuffix(strings.ToLower(u.Host), ":")
	u.Fragment, u.RawFragment = "", ""
	u.ForceQuery = false
	u.RawQuery = escapeQuery(u.RawQuery)
	if len(u.String()) > maxURLBytes {
		return nil, malformed("the URL has more than %d bytes when its special characters are encoded", maxURLBytes)
	}
	return u, nil
}

// checkText checks what all URLs have in common.
func checkText(raw string) error {
	switch {
	case raw == "":
		return malformed("the URL is empty")
	case len(raw) > maxURLBytes:
		return malformed("the URL has %d bytes, the most is %d", len(raw), maxURLBytes)
	case !utf8.ValidString(raw):
		return malformed("the URL is not valid UTF-8: percent-encode its bytes")
	}
	return nil
}

// escapeQuery encodes what may not be in a query, and which url.Parse leaves
// as it is: a space would end the request line. The rest keeps its spelling,
// over which signatures are.
func escapeQuery(q string) string {
	var b strings.Builder
	for _, c := range []byte(q) {
		if c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func checkPort(port string) error {
	if port == "" {
		return nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return malformed("the URL's port %s is not between 1 and 65535", port)
	}
	return nil
}

// fileName is the decoded last path segment of u, if that is an image name.
func fileName(u *url.URL) (string, error) {
	path := u.EscapedPath()
	name, err := url.PathUnescape(path[strings.LastIndexByte(path, '/')+1:])
	if err != nil {
		return "", err
	}
	_, err = image.ParseName(name)
	return name, err
}

func parseORAS(rest string) (URL, error) {
	const form = "oras://HOST[:PORT]/REPO:TAG or oras://HOST[:PORT]/REPO@sha256:DIGEST"
	rest, _, _ = strings.Cut(rest, "#")
	if err := checkText(rest); err != nil {
		return URL{}, err
	}
	host, path, ok := strings.Cut(rest, "/")
	host = strings.ToLower(host)
	if !ok || host == "" || path == "" {
		return URL{}, malformed("the URL is not of the form %s", form)
	}
	if strings.Contains(host, "@") {
		return URL{}, malformed("the URL holds a user name or password, which everybody who sees the catalog would see: credentials come from the Docker configuration file")
	}
	ref, err := registry.ParseReference(host + "/" + path)
	if err != nil {
		if repo, _, _ := strings.Cut(path, ":"); repo != strings.ToLower(repo) {
			return URL{}, malformed("the repository %q must be in lower case", repo)
		}
		return URL{}, malformed("the URL is not of the form %s", form)
	}
	if ref.Reference == "" {
		return URL{}, malformed("the URL needs a :TAG or @sha256:DIGEST after the repository")
	}
	if d, err := ref.Digest(); err == nil && d.Algorithm() != "sha256" {
		return URL{}, malformed("the digest must be a sha256, not a %s", d.Algorithm())
	}
	u, err := url.Parse("oras://" + host)
	if err != nil || u.Hostname() == "" || u.Host != host || strings.HasSuffix(host, ":") {
		return URL{}, malformed("the URL is not of the form %s", form)
	}
	if err := checkPort(u.Port()); err != nil {
		return URL{}, err
	}
	return URL{Canonical: "oras://" + ref.String(), Scheme: "oras", Host: host, ref: ref}, nil
}

// isLoopback reports whether a HOST or HOST:PORT is this machine by its look.
// Where it leads in fact is for the address policy to judge.
func isLoopback(hostport string) bool {
	u := url.URL{Host: hostport}
	host := u.Hostname()
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

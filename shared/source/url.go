package source

import (
	"context"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"imageroot/shared/image"
	"imageroot/shared/source/scheme"
)

// maxURLBytes is far above the length of signed URLs, and far below the limits of a
// record or a request line.
const maxURLBytes = 8 << 10

// A URL is the parsed URL of a source. It is comparable.
type URL struct {
	// Canonical is the form in which URLs are stored and compared: scheme and host in
	// lower case, no fragment, valid UTF-8.
	Canonical string
	Host      string // HOST or HOST:PORT, for messages; not empty
	// Name is the image name at the end of the path. It is empty if only Resolve can
	// find the name.
	Name image.Name

	place
}

// A place is a source of one scheme. Its type is comparable.
type place interface {
	// Pinned reports whether Resolve finds a digest that names the content
	// ([Location.Digest]). Then the source must be resolved before it is opened, and
	// needs no checksum list.
	Pinned() bool
	// resolve is [Client.Resolve], which sets URL and Format.
	resolve(ctx context.Context, c *Client, shaURL string) (*Resolved, error)
	// open is [Client.Open] for a valid range.
	open(ctx context.Context, c *Client, digest string, offset, length int64, v Validators) (*Body, error)
}

// parsers has the parser of URLs for each of [scheme.All]. raw has passed checkText,
// and begins with the scheme, in any case, and a colon. name is that of a [Location],
// or empty. A place that is not pinned needs a name: that in its URL, or else this one.
// Parsing the canonical form gives an equal URL. The error is a [*Malformed] that never
// contains a password.
var parsers = map[string]func(raw string, name image.Name) (URL, error){
	"https": parseFile,
	"http":  parseFile,
	"oras":  parseORAS,
}

var schemeName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*$`) // RFC 3986 section 3.1

// ParseURL parses the URL of an image: http or https with a path that ends in
// an image name, or oras://HOST[:PORT]/REPO followed by :TAG or
// @sha256:DIGEST. The error is a [*Malformed].
func ParseURL(raw string) (URL, error) { return Location{URL: raw}.Parse() }

// Canonical returns the canonical form of the URL of a source, which need not end in an
// image name, or raw if it is not that of a source.
func Canonical(raw string) string {
	u, err := Location{URL: raw, Name: "any.img"}.Parse()
	if err != nil {
		return raw
	}
	return u.Canonical
}

// Parse is [ParseURL], but if l has a Name, the URL need not end in an image name, and
// the result has that Name.
func (l Location) Parse() (URL, error) {
	raw := strings.TrimSpace(l.URL)
	if err := checkText(raw); err != nil {
		return URL{}, err
	}
	name, _, ok := strings.Cut(raw, ":")
	if parse := parsers[strings.ToLower(name)]; parse != nil {
		return parse(raw, l.Name)
	}
	if !ok || !schemeName.MatchString(name) {
		return URL{}, malformed("the URL must begin with %s", scheme.List("://"))
	}
	return URL{}, malformed("%.20s: URLs are not sources: use %s", name, scheme.List(""))
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

func checkPort(port string) error {
	if port == "" {
		return nil
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return malformed("the URL's port %s is not between 1 and 65535", port)
	}
	return nil
}

// isLoopback reports whether a HOST or HOST:PORT names this machine. The address policy
// decides whether it may be dialled.
func isLoopback(hostport string) bool {
	u := url.URL{Host: hostport}
	host := u.Hostname()
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

package inventory

import (
	"net/url"
	"strings"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// OwnPath returns the path of an image in the image root, for a URL by which [Snapshot.ByOwnURL]
// finds it whatever the host is. It names the image twice: no publisher's URL does.
func OwnPath(name image.Name) string {
	segment := url.PathEscape(string(name))
	return "/images/" + segment + "/" + segment
}

// ByOwnURL returns the row of the image that /images serves at a URL of this server.
// Clients know the server by many names. So the host counts only if the path could be that
// of another server, /images/NAME: then it must be one of hosts.
func (s *Snapshot) ByOwnURL(own string, hosts ...string) (*Row, bool) {
	u, err := url.Parse(own)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, false
	}
	segments := strings.Split(strings.TrimPrefix(u.EscapedPath(), "/"), "/")
	if len(segments) < 2 || len(segments) > 3 || segments[0] != "images" {
		return nil, false
	}
	key, err := url.PathUnescape(segments[1])
	if err != nil {
		return nil, false
	}
	if sha256, ok := layout.ParseSHA256(strings.ToLower(key)); ok {
		return s.BySHA256(sha256)
	}
	name, err := image.ParseName(key)
	if err != nil {
		return nil, false
	}
	here := len(segments) == 3 && segments[2] == segments[1]
	for _, h := range hosts {
		here = here || strings.EqualFold(u.Host, h)
	}
	if !here {
		return nil, false
	}
	return s.ByName(name)
}

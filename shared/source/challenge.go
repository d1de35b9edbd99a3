package source

import (
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// A registryTransport sends the requests to one registry and its token server.
type registryTransport struct {
	http.RoundTripper
	registry string   // HOST[:PORT]
	plain    []string // hosts that may receive credentials without TLS
}

// RoundTrip sends no credentials without TLS to hosts other than the registry. From a
// 401 it removes all challenges but the one that oras-go can answer.
func (t *registryTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	if host := req.URL.Host; req.URL.Scheme == "http" && host != t.registry && !slices.Contains(t.plain, host) {
		switch authorization := req.Header.Get("Authorization"); {
		case req.Method == http.MethodPost, authorization != "" && req.Response == nil:
			return nil, &credentialError{fmt.Errorf("the token server %s is another host than %s and has no TLS, so they are not sent there; IMAGEROOT_PLAIN_HTTP=%s would allow that", host, t.registry, host)}
		case authorization != "": // from the request before the redirect
			req = req.Clone(req.Context())
			req.Header.Del("Authorization")
		}
	}
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusUnauthorized {
		if c := chooseChallenge(resp.Header.Values("WWW-Authenticate")); c != "" {
			resp.Header.Set("WWW-Authenticate", c)
		}
	}
	return resp, err
}

// chooseChallenge returns the first Bearer challenge with a realm in the fields, else
// the first Basic one, else "".
func chooseChallenge(fields []string) string {
	chosen := ""
	for _, c := range challenges(fields) {
		scheme, params, _ := strings.Cut(strings.ToLower(c), " ")
		switch {
		case scheme == "bearer" && strings.Contains(params, "realm"):
			return c
		case scheme == "basic" && chosen == "":
			chosen = c
		}
	}
	return chosen
}

var (
	// listItem matches an item of a comma-separated list with quoted strings.
	listItem = regexp.MustCompile(`(?:[^,"]|"(?:[^"\\]|\\.)*")+`)
	// authParam matches a parameter of a challenge. Any other item begins the next
	// challenge.
	authParam = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+[ \t]*=[ \t]*[^= \t]")
)

// challenges splits WWW-Authenticate fields (RFC 9110 section 11.6.1). Commas
// separate both challenges and the parameters of one.
func challenges(fields []string) []string {
	var all []string
	for _, field := range fields {
		begun := false
		for _, item := range listItem.FindAllString(field, -1) {
			switch item = strings.TrimSpace(item); {
			case item == "":
			case begun && authParam.MatchString(item):
				all[len(all)-1] += "," + item
			default:
				all, begun = append(all, item), true
			}
		}
	}
	return all
}

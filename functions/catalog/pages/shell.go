package pages

import (
	"cmp"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"imageroot/shared/web"
	"imageroot/templates"
)

// shell returns the lines that upload an image from a terminal.
func (p *Pages) shell(r *http.Request) templates.Shell {
	aws := "aws s3 cp ubuntu.img " + p.Location
	if e := endpointFor(p.S3Endpoint, r); e != "" {
		aws = "aws --endpoint-url " + e + " s3 cp ubuntu.img " + p.Location
	}
	return templates.Shell{
		AWS:  aws,
		Curl: `curl -H "Authorization: Bearer $IMAGEROOT_TOKEN" -T ubuntu.img ` + web.BaseURL(r) + "/images/ubuntu.img",
	}
}

// endpointFor returns the URL of the S3 server for the client of r.
func endpointFor(endpoint string, r *http.Request) string {
	if endpoint == "" {
		return ""
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint
	}
	if host := u.Hostname(); host == "" || isUnspecified(host) {
		u.Host = net.JoinHostPort(hostOf(r), cmp.Or(u.Port(), defaultPort(u.Scheme)))
	}
	return strings.TrimSuffix(u.String(), "/")
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// isUnspecified reports whether host is the unspecified address, on which a server
// listens on all addresses.
func isUnspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsUnspecified()
}

// hostOf returns the name or address by which the client reached this server.
func hostOf(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return strings.Trim(r.Host, "[]")
}

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

// shell returns the commands that upload an image from a terminal.
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
	a, err := netip.ParseAddr(u.Hostname())
	if u.Hostname() == "" || err == nil && a.IsUnspecified() { // the server listens on all addresses
		port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
		u.Host = net.JoinHostPort((&url.URL{Host: r.Host}).Hostname(), port)
	}
	return strings.TrimSuffix(u.String(), "/")
}

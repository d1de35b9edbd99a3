package catalog

import (
	"net/netip"
	"net/url"
	"strings"

	"imageroot/shared/inventory"
)

// mirrors returns the Link fields of the sources from which any client can get the same bytes
// (RFC 6249, section 3): those at a public name, without a query, which may hold a secret.
func mirrors(sources []inventory.Source) (links []string) {
	const most = 8
	for _, s := range sources {
		u, err := url.Parse(s.Location)
		if s.Kind == inventory.Local || err != nil || u.Scheme != "http" && u.Scheme != "https" || u.User != nil || u.RawQuery != "" || len(links) == most {
			continue
		}
		host := u.Hostname()
		if _, err := netip.ParseAddr(host); err == nil || !strings.Contains(host, ".") || strings.HasSuffix(host, ".local") || strings.HasSuffix(host, ".lan") {
			continue
		}
		links = append(links, "<"+u.String()+">; rel=duplicate")
	}
	return links
}

package web

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// Proxies has the addresses of trusted proxies, whose X-Forwarded-For and
// X-Forwarded-Proto are used.
type Proxies []netip.Prefix

// ParseProxies parses addresses and CIDRs, separated by commas. The list may be empty.
func ParseProxies(list string) (Proxies, error) {
	var p Proxies
	for one := range strings.SplitSeq(list, ",") {
		one = strings.TrimSpace(one)
		if one == "" {
			continue
		}
		network, err := netip.ParsePrefix(one)
		if addr, addrErr := netip.ParseAddr(one); addrErr == nil {
			addr = addr.Unmap()
			network, err = addr.Prefix(addr.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a CIDR, like 127.0.0.1 or 10.89.0.0/24", one)
		}
		p = append(p, network.Masked())
	}
	return p, nil
}

// Has reports whether addr is the address of a trusted proxy.
func (p Proxies) Has(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return slices.ContainsFunc(p, func(n netip.Prefix) bool { return n.Contains(addr) })
}

// resolve sets RemoteAddr to the client's address. It removes X-Forwarded-* fields that
// no trusted proxy has sent. Each proxy appends the address of its client to
// X-Forwarded-For, so the client's is the last address that is not a trusted proxy's.
// Earlier ones may be forged.
func (p Proxies) resolve(r *http.Request) {
	from, err := netip.ParseAddr(ClientIP(r))
	if err != nil || !p.Has(from) {
		for _, field := range []string{"X-Forwarded-For", "X-Forwarded-Proto"} {
			r.Header.Del(field)
		}
		return
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for _, hop := range slices.Backward(hops) {
		addr, err := netip.ParseAddr(strings.TrimSpace(hop))
		if err != nil {
			return
		}
		r.RemoteAddr = net.JoinHostPort(addr.Unmap().String(), "0")
		if !p.Has(addr) {
			return
		}
	}
}

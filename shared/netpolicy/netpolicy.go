// Package netpolicy decides which addresses may be dialled for a URL that a user gives.
// Such a URL must not reach cloud metadata or the host's own services (server-side
// request forgery).
//
// The check runs in the dialler, after DNS and before the first packet, so that no
// redirect, retry or changing DNS answer can bypass it.
package netpolicy

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A Policy decides which addresses may be dialled. Public addresses are always allowed.
// Link-local, cloud metadata, multicast, unspecified and broadcast addresses are never
// allowed, whatever the fields say. If an IPv6 address contains an IPv4 address
// (mapped, compatible, SIIT, NAT64, 6to4, Teredo, ISATAP), both must be allowed.
//
// The zero value allows public addresses only. A Policy is safe for concurrent use if
// it is not modified.
type Policy struct {
	// Loopback allows 127.0.0.0/8 and ::1.
	Loopback bool
	// Private allows RFC 1918, unique local (fc00::/7), shared (RFC 6598)
	// and benchmarking (RFC 2544) addresses.
	Private bool
	// Allow lists further networks that may be dialled.
	Allow []netip.Prefix
	// Endpoints are the addresses (HOST:PORT) of this program's own servers, such as
	// the S3 endpoint. They are refused unless a network in Allow contains them, or
	// they are on loopback and Loopback is set. An empty or unspecified host ("",
	// "0.0.0.0", "::") stands for every address of this machine. A name is resolved at
	// each dial. If that fails, the dial fails.
	Endpoints []string
	// Resolver resolves names. Nil means the one of the system.
	Resolver *net.Resolver
	// Proxy is the http or https URL of the proxy through which [Policy.Transport] dials
	// addresses that are not on loopback; nil: none. Its own address is not checked.
	Proxy *url.URL
}

// A Refused is the error of a dial that the policy does not allow.
type Refused struct {
	Addr   netip.Addr
	Reason string // a sentence for users that names the setting that would allow it
}

func (e *Refused) Error() string { return e.Reason }

// Parse returns base, extended by the value of IMAGEROOT_ALLOW_NET: "loopback",
// "private", networks such as 10.1.0.0/16 and single addresses, separated by commas or
// spaces. It does not modify base.
func Parse(allowNet string, base Policy) (Policy, error) {
	p := base
	p.Allow = slices.Clone(base.Allow)
	for word := range strings.FieldsFuncSeq(allowNet, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		switch strings.ToLower(word) {
		case "loopback":
			p.Loopback = true
		case "private":
			p.Private = true
		default:
			prefix, err := parsePrefix(word)
			if err != nil {
				return Policy{}, fmt.Errorf("%q is not a network: give loopback, private, or networks such as 10.1.0.0/16 or fd12:3456::/32", word)
			}
			p.Allow = append(p.Allow, prefix)
		}
	}
	return p, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		addr = addr.Unmap().WithZone("")
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a := prefix.Addr(); a.Is4In6() {
		if prefix.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%s is wider than IPv4", s)
		}
		prefix = netip.PrefixFrom(a.Unmap(), prefix.Bits()-96)
	}
	return prefix.Masked(), nil
}

// Check returns nil if addr may be dialled, a [*Refused] if it may not, and another
// error if one of p.Endpoints cannot be resolved.
func (p *Policy) Check(ctx context.Context, addr netip.AddrPort) error {
	ip := addr.Addr().WithZone("").Unmap()
	for _, a := range append(embedded(ip), ip) {
		if name, ok := matches(never, a); ok {
			return &Refused{ip, fmt.Sprintf("connecting to %s is refused: it is %s address, and no setting allows those", ip, name)}
		}
	}
	for _, a := range append(embedded(ip), ip) {
		if err := p.check(ctx, netip.AddrPortFrom(a, addr.Port())); err != nil {
			return err
		}
	}
	return nil
}

func (p *Policy) check(ctx context.Context, addr netip.AddrPort) error {
	ip := addr.Addr()
	if slices.ContainsFunc(p.Allow, func(n netip.Prefix) bool { return n.Contains(ip) }) {
		return nil
	}
	if ip.IsLoopback() {
		if p.Loopback {
			return nil
		}
		return &Refused{ip, fmt.Sprintf("connecting to %s is refused: it is a loopback address; IMAGEROOT_ALLOW_NET=loopback allows those", ip)}
	}
	own, err := p.isEndpoint(ctx, addr)
	if err != nil {
		return err
	}
	if own {
		return &Refused{ip, fmt.Sprintf("connecting to %s is refused: it is an address of this server's own; IMAGEROOT_ALLOW_NET=%s allows it", addr, ip)}
	}
	if _, ok := matches(private, ip); ok && !p.Private {
		return &Refused{ip, fmt.Sprintf("connecting to %s is refused: it is in a private network; IMAGEROOT_ALLOW_NET=private allows those, and IMAGEROOT_ALLOW_NET=%s this one", ip, ip)}
	}
	return nil
}

// isEndpoint reports whether addr is one of p.Endpoints. It fails closed: a name that
// cannot be resolved might be addr.
func (p *Policy) isEndpoint(ctx context.Context, addr netip.AddrPort) (bool, error) {
	for _, hostport := range p.Endpoints {
		host, port, err := net.SplitHostPort(hostport)
		if err != nil {
			return false, fmt.Errorf("the endpoint %q is not HOST:PORT: %w", hostport, err)
		}
		if port != fmt.Sprint(addr.Port()) {
			continue
		}
		ips, err := p.lookup(ctx, host)
		if err != nil {
			return false, fmt.Errorf("cannot compare %s with this server's own S3 endpoint: %v", addr, err) // not wrapped: not the lookup of the source
		}
		for _, ip := range ips {
			if ip.WithZone("").Unmap() == addr.Addr() {
				return true, nil
			}
		}
	}
	return false, nil
}

func (p *Policy) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "" || err == nil && ip.Unmap().IsUnspecified():
		return machineAddrs()
	case err == nil:
		return []netip.Addr{ip}, nil
	}
	return p.Resolver.LookupNetIP(ctx, "ip", host)
}

func machineAddrs() ([]netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	for _, a := range addrs {
		if prefix, err := netip.ParsePrefix(a.String()); err == nil {
			ips = append(ips, prefix.Addr())
		}
	}
	return ips, nil
}

// Dialer returns a dialler of TCP connections that calls [Policy.Check] before each.
func (p *Policy) Dialer() *net.Dialer {
	return &net.Dialer{
		Timeout:   30 * time.Second,
		KeepAlive: 30 * time.Second,
		Resolver:  p.Resolver,
		ControlContext: func(ctx context.Context, network, address string, _ syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return fmt.Errorf("connecting over %s is refused", network)
			}
			addr, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("connecting to %q is refused: %w", address, err)
			}
			return p.Check(ctx, addr)
		},
	}
}

// Transport returns an HTTP transport that dials with [Policy.Dialer], or through Proxy. It
// uses no proxy of the environment, since the policy cannot check the addresses of the names
// that a proxy dials.
func (p *Policy) Transport() *http.Transport {
	dial := p.Dialer().DialContext
	if p.Proxy != nil {
		dial = p.dial
	}
	return &http.Transport{
		Proxy:                  nil,
		DialContext:            dial,
		TLSHandshakeTimeout:    15 * time.Second,
		IdleConnTimeout:        90 * time.Second,
		MaxResponseHeaderBytes: 1 << 20,
	}
}

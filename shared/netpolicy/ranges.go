package netpolicy

import (
	"net/netip"
	"slices"
)

// A network is a range of addresses, with a name for messages.
type network struct {
	prefix netip.Prefix
	name   string
}

func networks(name string, prefixes ...string) []network {
	var ns []network
	for _, p := range prefixes {
		ns = append(ns, network{netip.MustParsePrefix(p), name})
	}
	return ns
}

// never lists the networks that no setting allows. Metadata addresses are first: most
// are in other networks too, and the message should name the worst.
var never = slices.Concat(
	networks("a cloud metadata",
		"169.254.169.254/32", // AWS, Azure, GCP and others
		"169.254.170.2/32",   // AWS ECS task credentials
		"169.254.170.23/32",  // AWS EKS pod identity
		"fd00:ec2::/32",      // AWS over IPv6: 254 metadata, 23 credentials, 253 DNS
		"fd20:ce::254/128",   // GCP over IPv6
		"100.100.100.200/32", // Alibaba
		"168.63.129.16/32",   // Azure WireServer
		"192.0.0.192/32",     // Oracle
	),
	networks("a link-local", "169.254.0.0/16", "fe80::/10"),
	networks("a multicast", "224.0.0.0/4", "ff00::/8"),
	networks("an unspecified", "0.0.0.0/8", "::/128"),
	networks("a broadcast or reserved", "240.0.0.0/4"),
	// The position of the IPv4 address in these depends on the network's configuration,
	// so their destination is unknown.
	networks("a local NAT64", "64:ff9b:1::/48"), // RFC 8215
)

var private = networks("a private",
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", // RFC 1918
	"100.64.0.0/10", // RFC 6598, shared: carrier-grade NAT, overlay networks
	"198.18.0.0/15", // RFC 2544, benchmarking
	"192.0.0.0/24",  // RFC 6890, protocol assignments
	"fc00::/7",      // RFC 4193, unique local
	"fec0::/10",     // RFC 3879, site-local, deprecated
)

func matches(ns []network, ip netip.Addr) (name string, ok bool) {
	for _, n := range ns {
		if n.prefix.Contains(ip) {
			return n.name, true
		}
	}
	return "", false
}

var (
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765 (SIIT)
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291 section 2.5.5.1
)

// embedded returns the IPv4 addresses that a packet to ip may reach besides ip itself.
// It expects mapped addresses to be unmapped: see [netip.Addr.Unmap].
func embedded(ip netip.Addr) []netip.Addr {
	if !ip.Is6() {
		return nil
	}
	b := ip.As16()
	last := netip.AddrFrom4([4]byte(b[12:]))
	var all []netip.Addr
	switch {
	case nat64.Contains(ip), translated.Contains(ip), compatible.Contains(ip) && !ip.IsLoopback() && !ip.IsUnspecified():
		all = append(all, last)
	case sixToFour.Contains(ip):
		all = append(all, netip.AddrFrom4([4]byte(b[2:6])))
	case teredo.Contains(ip):
		all = append(all, netip.AddrFrom4([4]byte{^b[12], ^b[13], ^b[14], ^b[15]}))
	}
	// ISATAP (RFC 5214 section 6.1) has the address in the low bits of any prefix.
	if id := [4]byte(b[8:12]); id == [4]byte{0, 0, 0x5e, 0xfe} || id == [4]byte{2, 0, 0x5e, 0xfe} {
		all = append(all, last)
	}
	return all
}

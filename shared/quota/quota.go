// Package quota shares the scarce resources of a server among its clients, so
// that no client takes them from all others.
package quota

import "net/netip"

// Network returns the network that counts as one client: an IPv4 address, or the
// /64 of an IPv6 address, since a host usually has 2^64 of these. The network of
// an invalid address is invalid.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // bits fit the address
	return p
}

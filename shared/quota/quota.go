// Package quota shares what a server has only so much of out among its
// clients, so that no client takes it from all others.
package quota

import "net/netip"

// Network returns what counts as one client: an IPv4 address, or the /64 of an
// IPv6 address, since a host usually has 2^64 of these. It is invalid for an
// invalid address.
func Network(addr netip.Addr) netip.Prefix {
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // bits fit the address
	return p
}

package main

import (
	"net"
	"net/netip"
	"strconv"
)

// lanAddress returns the HOST:PORT of the pages for other machines on the network, or "" if
// they cannot reach it or the address is unknown. Of several addresses, it is the first
// private one of IPv4.
func (s *server) lanAddress() string {
	at, err := netip.ParseAddrPort(s.listener.Addr().String())
	if err != nil || at.Addr().IsLoopback() {
		return ""
	}
	if !at.Addr().IsUnspecified() {
		return at.String()
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Addr().IsPrivate() {
			return net.JoinHostPort(p.Addr().String(), strconv.Itoa(int(at.Port())))
		}
	}
	return ""
}

// Package quota shares what a server has only so much of out among its
// clients, so that no client takes it from all others.
package quota

import (
	"net/netip"
	"sync"
)

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

// Shares is an amount that clients take shares of. It is safe for concurrent
// use.
type Shares struct {
	total, each int64

	mu   sync.Mutex
	used int64
	by   map[netip.Prefix]int64
}

// NewShares returns Shares of total, of which one network (see [Network])
// holds each at most.
func NewShares(total, each int64) *Shares {
	return &Shares{total: total, each: each, by: map[netip.Prefix]int64{}}
}

// Take takes n for a client, or reports that it has its share or that nothing
// is left.
func (s *Shares) Take(addr netip.Addr, n int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	network := Network(addr)
	if s.used+n > s.total || s.by[network]+n > s.each {
		return false
	}
	s.used += n
	s.by[network] += n
	return true
}

// Give gives back what [Shares.Take] took.
func (s *Shares) Give(addr netip.Addr, n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	network := Network(addr)
	s.used -= n
	if s.by[network] -= n; s.by[network] <= 0 {
		delete(s.by, network)
	}
}

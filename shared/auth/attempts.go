package auth

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"imageroot/shared/quota"
)

const (
	// burst is the number of wrong passwords or tokens that an address may send at once, and
	// refill the time that it then has to wait for each further one.
	burst  = 5
	refill = 5 * time.Second
	// pace is the rate, per second, of the attempts of all addresses with too many
	// wrong passwords together, and patience the longest wait of one attempt.
	pace, patience = 50, 5 * time.Second
	// maxAddresses bounds the memory that unauthenticated clients can occupy.
	maxAddresses = 10_000
)

// attempts limits the rate of guesses of passwords or tokens. Each address has its own budget, so
// that a client elsewhere cannot lock the operator out. It counts in this process
// only.
type attempts struct {
	pace *rate.Limiter

	mu       sync.Mutex
	limiters map[netip.Prefix]*rate.Limiter
}

func newAttempts() attempts { return attempts{pace: rate.NewLimiter(pace, pace)} }

// turn waits until an address with too many wrong passwords may make an attempt. It
// returns false if that would take longer than patience, or if ctx ends.
func (a *attempts) turn(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.pace.Wait(ctx) == nil
}

// wait returns the time that the address has to wait before another attempt.
func (a *attempts) wait(from string, now time.Time) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	l, ok := a.limiters[network(from)]
	if !ok {
		return 0
	}
	missing := 1 - l.TokensAt(now)
	return max(0, time.Duration(missing*float64(refill)))
}

// failed counts a wrong password.
func (a *attempts) failed(from string, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.limiters) >= maxAddresses {
		for n, l := range a.limiters {
			if l.TokensAt(now) >= burst {
				delete(a.limiters, n)
			}
		}
	}
	if a.limiters == nil || len(a.limiters) >= maxAddresses {
		a.limiters = map[netip.Prefix]*rate.Limiter{}
	}
	n := network(from)
	l, ok := a.limiters[n]
	if !ok {
		l = rate.NewLimiter(rate.Every(refill), burst)
		a.limiters[n] = l
	}
	l.AllowN(now, 1)
}

// network returns the network that counts as one address: see quota.Network.
func network(ip string) netip.Prefix {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	return quota.Network(addr)
}

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
	// burst is how many wrong passwords an address may send at once, and
	// refill how long it then waits for each.
	burst  = 5
	refill = 5 * time.Second
	// pace is how many attempts a second all addresses with too many wrong
	// passwords make together, and patience how long one waits for its turn.
	pace, patience = 50, 5 * time.Second
	// maxAddresses bounds the memory that strangers can make us use.
	maxAddresses = 10_000
)

// attempts slows guessing down. Each address has its own budget, so that
// nobody locks the operator out. What it knows is one process's.
type attempts struct {
	pace *rate.Limiter

	mu       sync.Mutex
	limiters map[netip.Prefix]*rate.Limiter
}

func newAttempts() attempts { return attempts{pace: rate.NewLimiter(pace, pace)} }

// turn waits for the turn of an attempt from an address with too many wrong
// passwords. It reports whether the turn comes before patience and ctx end.
func (a *attempts) turn(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.pace.Wait(ctx) == nil
}

// wait returns how long the address has to wait before another attempt.
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

// network is what counts as one address.
func network(ip string) netip.Prefix {
	addr, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.Prefix{}
	}
	return quota.Network(addr)
}

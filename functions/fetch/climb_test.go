package fetch

import (
	"math/rand/v2"
	"testing"
)

// TestClimb drives a climb by hosts that send at other rates for other numbers of
// connections.
func TestClimb(t *testing.T) {
	t.Parallel()
	upTo := func(most float64) func(float64) float64 {
		return func(n float64) float64 { return min(n, most) }
	}
	for _, tt := range []struct {
		name        string
		most        int
		rate        func(n float64) float64
		least, last int // width in the end
		peak        int // the largest width
	}{
		{"each connection adds to the rate", 16, upTo(64), 12, 16, 16},
		{"each connection adds to the rate, of fewer", 5, upTo(64), 4, 5, 5},
		{"connections share a fixed rate", 16, func(float64) float64 { return 1 }, 1, 2, 2 * firstWidth},
		{"six connections are as fast as more", 16, upTo(6), 5, 12, 16},
		{"more connections are slower", 16, func(n float64) float64 { return min(n, 10-n) }, 3, 8, 8},
		{"one connection", 1, upTo(64), 1, 1, 1},
	} {
		for _, noise := range []float64{0, 0.05} {
			random := rand.New(rand.NewPCG(1, 2))
			c := newClimb(firstWidth, tt.most)
			peak, sum := 0, 0
			const steps, counted = 20_000, 10_000
			for i := range steps {
				c.step(100 * tt.rate(float64(c.width)) * (1 + noise*(2*random.Float64()-1)))
				if peak = max(peak, c.width); c.width < 1 || c.width > tt.most {
					t.Fatalf("%s: %d connections", tt.name, c.width)
				}
				if i >= steps-counted {
					sum += c.width
				}
			}
			if mean := float64(sum) / counted; mean < float64(tt.least) || mean > float64(tt.last) || peak > tt.peak {
				t.Errorf("%s, noise %v: %.1f connections in the end, %d at most; want %d to %d, %d at most", tt.name, noise, mean, peak, tt.least, tt.last, tt.peak)
			}
		}
	}
}

// TestClimbRefused has a host that refuses connections beyond a number. It is not asked
// for more again and again.
func TestClimbRefused(t *testing.T) {
	t.Parallel()
	const limit, steps = 8, 20_000
	c := newClimb(firstWidth, 16)
	refusals, sum := 0, 0
	for range steps {
		if c.width > limit {
			before := c.width
			c.refuse()
			refusals++
			if c.width >= before {
				t.Fatalf("%d connections after a refusal of %d", c.width, before)
			}
		}
		sum += c.width
		c.step(float64(c.width))
	}
	if mean := float64(sum) / steps; mean < limit-1 || refusals > 10+steps/maxRest {
		t.Errorf("%.1f connections of %d on average, %d refusals", mean, limit, refusals)
	}
	for range 10 {
		c.refuse()
	}
	if c.width != 1 {
		t.Errorf("%d connections to a host that refuses all", c.width)
	}
}

package fetch

const (
	// firstWidth is the number of connections that a host gets before anything is
	// known of it.
	firstWidth = 4
	// farWidth is that number for a host that is far away, where each trial takes long.
	farWidth = 8
	// trialSteps is how long a trial of more connections waits for a better rate,
	// since TCP starts slowly.
	trialSteps = 20
	// minRest and maxRest bound the steps between a trial and the next.
	minRest = 32
	maxRest = 256
)

// A climb finds the number of connections to a host that is worth its while: it tries
// more and fewer in turn, and compares the rates. It is not safe for concurrent use.
type climb struct {
	width int // connections to use
	most  int // the limit of width

	before   int     // width before the trial, or 0 if none runs
	rate     float64 // at before
	left     int     // steps of the trial
	down     bool    // the trial, or the next one, is of fewer
	rest     int     // steps before the next trial
	failed   int     // the rest after a trial that fails
	cautious bool    // the host has refused connections: add one at a time
}

func newClimb(first, most int) climb {
	return climb{width: min(first, most), most: most, failed: minRest}
}

// step ends an interval in which the host sent at rate, in any unit.
func (c *climb) step(rate float64) {
	if c.before == 0 {
		if c.rest > 0 {
			c.rest--
			return
		}
		c.try(rate)
		return
	}
	few, fewRate, many, manyRate := c.before, c.rate, c.width, rate
	if c.down {
		few, fewRate, many, manyRate = many, manyRate, few, fewRate
	}
	// Each connection that is added must bring a quarter of what one has brought before.
	worth := manyRate >= fewRate*(1+float64(many-few)/float64(few)/4)
	if c.left--; !worth && c.left > 0 {
		return
	}
	if worth == c.down {
		c.width, c.down = c.before, !c.down
		c.pause()
		return
	}
	c.before, c.failed = 0, minRest
	c.try(rate)
}

// try begins a trial, at a time when the host sends at rate.
func (c *climb) try(rate float64) {
	next := c.next()
	if next == c.width {
		c.down = !c.down
		c.pause()
		return
	}
	c.before, c.rate, c.left, c.width = c.width, rate, trialSteps, next
}

// next returns the width of the next trial, which is the present one if there is none.
func (c *climb) next() int {
	switch {
	case c.down:
		return c.width - max(1, c.width/4)*min(1, c.width-1)
	case c.cautious:
		return min(c.width+1, c.most)
	}
	return min(2*c.width, c.most)
}

// pause ends the trial, and doubles the rest after the next one that fails.
func (c *climb) pause() {
	c.before, c.rest, c.failed = 0, c.failed, min(2*c.failed, maxRest)
}

// refuse takes connections away, since the host has refused one: those of the trial, or
// else a half.
func (c *climb) refuse() {
	if c.before > 0 && !c.down {
		c.width = c.before
	} else {
		c.width = max(1, c.width/2)
	}
	c.down, c.cautious = false, true
	c.pause()
}

// limit returns the maximum number of connections at once, some of which are about to end.
func (c *climb) limit() int {
	if c.cautious {
		return c.width
	}
	return min(c.width+c.width/2, c.most)
}

// planned returns the number of connections to expect while a range is read.
func (c *climb) planned() int {
	if c.before > 0 || c.rest > 0 || c.down {
		return c.width
	}
	return c.next()
}

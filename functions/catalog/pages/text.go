package pages

import (
	"fmt"
	"strconv"
	"time"

	"imageroot/templates"
)

// sizeOf formats n bytes in binary units and exactly.
func sizeOf(n int64) templates.Size {
	const unit = 1024
	s := templates.Size{Exact: count(n) + " bytes", Text: strconv.FormatInt(n, 10) + " B"}
	if n == 1 {
		s.Exact = "1 byte"
	}
	if n < unit {
		return s
	}
	v, i := float64(n)/unit, 0
	// 1023.96 would be formatted as 1024.0.
	for ; v >= unit-0.05 && i < len(units)-1; i++ {
		v /= unit
	}
	s.Text = fmt.Sprintf("%.1f %s", v, units[i])
	return s
}

var units = []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// count formats a number with commas.
func count(n int64) string {
	s := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// timeOf formats a time relative to now. It is coarse, so that the fragments that
// show it seldom change.
func timeOf(t, now time.Time) templates.Time {
	return templates.Time{At: t, Relative: relative(now.Sub(t))}
}

func relative(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < -time.Minute:
		return "in the future" // two clocks differ
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return ago(d/time.Minute, "minute")
	case d < 2*day:
		return ago(d/time.Hour, "hour")
	}
	return ago(d/day, "day")
}

func ago(n time.Duration, unit string) string {
	if n != 1 {
		unit += "s"
	}
	return fmt.Sprintf("%d %s ago", n, unit)
}

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Units of the measurements.
const (
	unitSeconds  = "s"
	unitMillis   = "ms"
	unitMiB      = "MiB"
	unitRows     = "rows"
	unitRequests = "requests"
	unitCents    = "cents"
	unitShare    = "of the whole"
)

// A series holds the samples of a measurement, one a round.
type series struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Samples []float64 `json:"samples"`
}

func (s series) median() float64 {
	sorted := slices.Sorted(slices.Values(s.Samples))
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// noisy reports whether the samples vary by more than a quarter of their median.
func (s series) noisy() bool {
	const most = 0.25
	return len(s.Samples) > 1 && slices.Max(s.Samples)-slices.Min(s.Samples) > most*s.median()
}

// String returns the median and the range of the samples.
func (s series) String() string {
	text := format(s.median()) + " " + s.Unit
	if len(s.Samples) > 1 {
		text += " (" + format(slices.Min(s.Samples)) + "-" + format(slices.Max(s.Samples)) + ")"
	}
	return text
}

// format formats v with about three digits.
func format(v float64) string {
	switch {
	case v >= 100 || v == 0:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// A bound is the limit of a number.
type bound struct {
	Kind  string  `json:"kind"` // "at least" or "at most"
	Value float64 `json:"value"`
	// Every applies the bound to each sample instead of the median.
	Every bool `json:"every,omitempty"`
}

func atLeast(v float64) *bound   { return &bound{Kind: "at least", Value: v} }
func atMost(v float64) *bound    { return &bound{Kind: "at most", Value: v} }
func neverOver(v float64) *bound { return &bound{Kind: "at most", Value: v, Every: true} }

func (b bound) met(v float64) bool {
	if b.Kind == "at least" {
		return v >= b.Value
	}
	return v <= b.Value
}

// A row is a row of the table. Its bound applies to the ratio if there is one, and to ours
// otherwise.
type row struct {
	Measurement string   `json:"measurement"`
	What        string   `json:"what"`
	Ours        series   `json:"ours"`
	Peer        *series  `json:"peer,omitempty"`
	Of          string   `json:"of,omitempty"` // the quantity of the ratio
	Ratio       *float64 `json:"ratio,omitempty"`
	Bound       *bound   `json:"bound,omitempty"`
	Met         *bool    `json:"met,omitempty"`
}

// A report holds the measurements of one run.
type report struct {
	Date         time.Time `json:"date"`
	Command      string    `json:"command"`
	Revision     string    `json:"revision"`     // of imageroot
	Measurements []string  `json:"measurements"` // that have completed
	Machine      machine   `json:"machine"`
	Load         string    `json:"load_average_at_start"`
	LoadEnd      string    `json:"load_average_at_end"`
	Rows         []row     `json:"rows"`
}

// faster adds the ratio of throughputs, ours divided by the peer's, from the times for the same
// bytes.
func (r *report) faster(measurement, what string, ours, peer series, b *bound) {
	ratio := peer.median() / ours.median()
	r.compare(row{Measurement: measurement, What: what, Ours: ours, Peer: &peer, Of: "speed", Ratio: &ratio, Bound: b})
}

// longer adds the ratio of times, ours divided by the peer's.
func (r *report) longer(measurement, what string, ours, peer series, b *bound) {
	ratio := ours.median() / peer.median()
	r.compare(row{Measurement: measurement, What: what, Ours: ours, Peer: &peer, Of: "time", Ratio: &ratio, Bound: b})
}

func (r *report) compare(row row) {
	if row.Bound != nil {
		met := row.Bound.met(*row.Ratio)
		row.Met = &met
	}
	r.Rows = append(r.Rows, row)
}

// absolute adds a number of ours without a peer. Without a bound, it is only printed.
func (r *report) absolute(measurement, what, unit string, samples []float64, b *bound) {
	row := row{Measurement: measurement, What: what, Ours: series{"imageroot", unit, samples}, Bound: b}
	if b != nil {
		met := b.met(row.Ours.median())
		if b.Every {
			met = b.met(slices.Min(samples)) && b.met(slices.Max(samples))
		}
		row.Met = &met
	}
	r.Rows = append(r.Rows, row)
}

func (r *report) missed() int {
	n := 0
	for _, row := range r.Rows {
		if row.Met != nil && !*row.Met {
			n++
		}
	}
	return n
}

// table returns all rows as text.
func (r *report) table() string {
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\twhat\timageroot\tinstead\t\tratio\tbound\t")
	noisy := false
	for _, row := range r.Rows {
		ours, peer, peerName, ratio, limit, verdict := row.Ours.String(), "", "", "", "", ""
		if row.Peer != nil {
			peer, peerName, ratio = row.Peer.String(), row.Peer.Name, fmt.Sprintf("%.2f of %s", *row.Ratio, row.Of)
			if row.noisy() {
				ratio, noisy = ratio+" ~", true
			}
		}
		if row.Bound != nil {
			limit, verdict = row.Bound.Kind+" "+format(row.Bound.Value), "ok"
			if !*row.Met {
				verdict = "MISSED"
			}
		}
		fmt.Fprintln(w, strings.Join([]string{row.Measurement, row.What, ours, peer, peerName, ratio, limit, verdict}, "\t"))
	}
	_ = w.Flush() // a strings.Builder does not fail
	fmt.Fprintf(&text, "\nmedian (least-most); load average %s at the start, %s at the end\n", r.Load, loadAverage())
	if noisy {
		text.WriteString("~ the samples of a side lie more than 25 % apart: something else was running, or the disk was busy\n")
	}
	return text.String()
}

// loadAverage returns the load of the machine over 1, 5 and 15 minutes.
func loadAverage() string {
	data, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(data))[:3], " ")
}

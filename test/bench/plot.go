package main

import (
	"cmp"
	"fmt"
	"html"
	"slices"
	"strings"
)

// A group is one piece of work, and what imageroot and each of the other tools take for it.
type group struct {
	what string
	bars []series // imageroot's first
}

// groups returns the comparisons of the rows.
func groups(rows []row) []group {
	var all []group
	for _, r := range rows {
		if r.Peer == nil {
			continue
		}
		last := len(all) - 1
		if last < 0 || all[last].what != r.What || !slices.Equal(all[last].bars[0].Samples, r.Ours.Samples) {
			all = append(all, group{r.What, []series{r.Ours}})
			last++
		}
		all[last].bars = append(all[last].bars, *r.Peer)
	}
	return all
}

// The style has its own background, since the page around a picture may be dark in a browser that
// prefers light, and the reverse.
const plotStyle = `
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.what, .ours { font-weight: 600 }
.page { fill: #fff }
.bar { fill: #818b98 }
.bar.ours { fill: #0969da }
.range { stroke: #1f2328; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.page { fill: #0d1117 }
.bar { fill: #6e7681 }
.bar.ours { fill: #388bfd }
.range { stroke: #e6edf3 }
}
`

// plot returns an SVG of horizontal bars. Each group has its own scale. The width of the bars is
// relative and the size of the text is not, so the picture fits phones too.
func plot(title string, groups []group) string {
	const characters = 36 // of a line, which fit into 300 pixels in wide fonts too
	var body strings.Builder
	y := 8
	text := func(class, name, value string) {
		for i, line := range wrap(name, characters-len(value)) {
			y += 18
			fmt.Fprintf(&body, `<text class="%s" y="%d">%s</text>`+"\n", class, y, html.EscapeString(line))
			if i == 0 && value != "" {
				fmt.Fprintf(&body, `<text class="%s" x="100%%" y="%d" text-anchor="end">%s</text>`+"\n", class, y, html.EscapeString(value))
			}
		}
	}
	for _, g := range groups {
		y += 6
		text("what", g.what, "")
		y += 4
		most := 0.0
		for _, s := range g.bars {
			most = max(most, slices.Max(s.Samples))
		}
		for i, s := range g.bars {
			class := "peer"
			if i == 0 {
				class = "ours"
			}
			y += 2
			text(class, s.Name, format(s.median())+" "+s.Unit)
			percent := func(v float64) float64 { return 100 * v / cmp.Or(most, 1) }
			fmt.Fprintf(&body, `<rect class="bar %s" y="%d" width="%.1f%%" height="10"/>`+"\n", class, y+5, percent(s.median()))
			fmt.Fprintf(&body, `<line class="range" x1="%.1f%%" x2="%.1f%%" y1="%d" y2="%d"/>`+"\n", percent(slices.Min(s.Samples)), percent(slices.Max(s.Samples)), y+10, y+10)
			y += 16
		}
		y += 12
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="100%%" height="%d" role="img">
<title>%s</title>
<style>%s</style>
<rect class="page" width="100%%" height="100%%" rx="6"/>
<svg x="2.5%%" width="95%%">
%s</svg>
</svg>
`, y, html.EscapeString(title), plotStyle, body.String())
}

// wrap breaks text into lines of at most n characters, or of one word.
func wrap(text string, n int) []string {
	var lines []string
	for _, word := range strings.Fields(text) {
		if last := len(lines) - 1; last >= 0 && len([]rune(lines[last]))+1+len([]rune(word)) <= n {
			lines[last] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return lines
}

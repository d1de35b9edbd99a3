package client

import (
	"io"
	"strings"

	"github.com/mattn/go-runewidth"

	"imageroot/client/progress"
	"imageroot/shared/visible"
)

// A table is printed in columns that fit the terminal: cells of the flexible column are
// shortened. Not on a terminal, nothing is shortened.
type table struct {
	heads    []string // a number's begins with a space
	flexible int      // index of that column
	rows     [][]string
}

// line returns text from others on one line, with hidden characters shown.
func line(text string) string { return visible.Line(text) }

func (t *table) add(cells ...string) {
	for i := range cells {
		cells[i] = line(cells[i])
	}
	t.rows = append(t.rows, cells)
}

func (t *table) print(w io.Writer) error {
	heads := make([]string, len(t.heads))
	right := make([]bool, len(t.heads))
	for i, h := range t.heads {
		heads[i] = strings.TrimSpace(h)
		right[i] = strings.HasPrefix(h, " ")
	}
	all := append([][]string{heads}, t.rows...)
	widths := make([]int, len(heads))
	for _, row := range all {
		for i, cell := range row {
			widths[i] = max(widths[i], runewidth.StringWidth(cell))
		}
	}
	const gap = 2
	if columns := width(w); columns > 0 {
		total := -gap
		for _, n := range widths {
			total += n + gap
		}
		if over := total - columns; over > 0 {
			widths[t.flexible] = max(min(widths[t.flexible], 16), widths[t.flexible]-over)
		}
	}
	var b strings.Builder
	for _, row := range all {
		var text strings.Builder
		for i, cell := range row {
			if i > 0 {
				text.WriteString(strings.Repeat(" ", gap))
			}
			cell = runewidth.Truncate(cell, widths[i], "…")
			pad := strings.Repeat(" ", widths[i]-runewidth.StringWidth(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			text.WriteString(cell)
		}
		b.WriteString(strings.TrimRight(text.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// size returns a number of bytes for people, or "?" if it is not known.
func size(n *int64) string {
	if n == nil {
		return "?"
	}
	return progress.Bytes(*n)
}

package kit

import "runtime/debug"

// SaveMemory lets the Go runtime collect garbage once the heap has grown by 40 percent, unless
// GOGC is set. Most of the heap is the index, which changes little.
func SaveMemory() {
	if set := debug.SetGCPercent(40); set != 100 {
		debug.SetGCPercent(set)
	}
}

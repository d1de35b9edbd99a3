package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	trimEvery = 10 * time.Second
	// busy is how much is allocated in that time where work goes on, and
	// spare how much must be there for giving it back to be worth it.
	busy  = 16 << 20
	spare = 8 << 20
)

// trim gives memory back to the system once the work that needed it is done.
// The Go runtime does so itself, but takes minutes; on a small machine the
// page cache has better uses for it.
func trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var m runtime.MemStats
	var before uint64
	due := true // what the start needed is not needed any more
	for {
		runtime.ReadMemStats(&m)
		switch worked := m.TotalAlloc-before >= busy && before != 0; {
		case worked:
			due = true
		case due, m.HeapSys-m.HeapReleased > m.HeapAlloc+spare:
			// The first time whatever the heap looks like: garbage that was not
			// collected yet counts as in use.
			debug.FreeOSMemory()
			due = false
		}
		before = m.TotalAlloc
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

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
	for {
		runtime.ReadMemStats(&m)
		if allocated := m.TotalAlloc - before; allocated < busy || before == 0 {
			if m.HeapSys-m.HeapReleased > m.HeapAlloc+spare || before == 0 {
				debug.FreeOSMemory()
			}
		}
		before = m.TotalAlloc
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

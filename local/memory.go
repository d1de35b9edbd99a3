package main

import (
	"context"
	"runtime"
	"runtime/debug"
	"time"
)

const (
	trimEvery = 10 * time.Second
	// busy is the number of bytes allocated within trimEvery that counts as work, and spare
	// the number of free bytes that is worth returning.
	busy  = 16 << 20
	spare = 8 << 20
)

// trim returns memory to the system once the work that needed it is complete. The Go runtime
// does so within minutes; on a small machine the page cache needs the memory sooner.
func trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var m runtime.MemStats
	var before uint64
	due := true // the memory that the start needed is free
	for {
		runtime.ReadMemStats(&m)
		switch worked := m.TotalAlloc-before >= busy && before != 0; {
		case worked:
			due = true
		case due, m.HeapSys-m.HeapReleased > m.HeapAlloc+spare:
			// The first time after work, do it for a heap of any size: garbage that is
			// not collected yet counts as allocated.
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

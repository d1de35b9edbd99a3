package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = 10 * time.Second
	// busy is the number of bytes allocated within trimEvery that counts as work, and spare
	// the number of free bytes that is worth returning.
	busy  = 16 << 20
	spare = 8 << 20
	// memoryLimit is the limit of the Go runtime, unless GOMEMLIMIT is set or the live heap
	// is more than two thirds of it. The index of 100,000 images is less than that, and
	// without a limit a start with them takes 130 MiB more.
	memoryLimit = 190 << 20
)

// trim limits the memory of the Go runtime, and returns memory to the system once the work that needed it is complete. The Go runtime
// does so within minutes; on a small machine the page cache needs the memory sooner.
func trim(ctx context.Context) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	var m runtime.MemStats
	var before uint64
	due := true // the memory that the start needed is free
	limited := debug.SetMemoryLimit(-1) < math.MaxInt64
	for {
		if !limited {
			debug.SetMemoryLimit(max(memoryLimit, liveHeap()/2*3))
		}
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

// liveHeap returns the number of bytes that the last garbage collection kept.
func liveHeap() int64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

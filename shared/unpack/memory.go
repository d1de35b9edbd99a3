package unpack

import (
	"errors"

	"golang.org/x/sync/semaphore"
)

// MemoryBytes is how much memory the streams of a process take together that
// have a [Memory], and LeastBytes what each is counted as at least.
const MemoryBytes, LeastBytes = 256 << 20, 16 << 20

var memory = semaphore.NewWeighted(MemoryBytes)

// ErrMemory says that other streams have the memory.
var ErrMemory = errors.New("as many images are being unpacked as there is memory for")

// Memory is a share of [MemoryBytes], at first of none. It must be released.
type Memory struct{ held int64 }

// Grow makes the share one of n bytes, if it is smaller, or returns [ErrMemory].
func (m *Memory) Grow(n int64) error {
	n = max(n, LeastBytes)
	if n <= m.held {
		return nil
	}
	if !memory.TryAcquire(n - m.held) {
		return ErrMemory
	}
	m.held = n
	return nil
}

// Release gives the share back.
func (m *Memory) Release() {
	memory.Release(m.held)
	m.held = 0
}

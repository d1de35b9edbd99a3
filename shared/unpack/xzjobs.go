package unpack

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"imageroot/shared/guard"
)

// xzJobs decode blocks in parallel, as many as there are processors. A block can be decoded
// so if its header has its sizes, as xz -T writes them, and if there is room for the whole
// block in memory.
type xzJobs struct {
	serial  bool     // no more jobs
	queue   []*xzJob // in the order of their blocks
	idle    []*xzJob
	done    int64 // the offset of the input after the last block that was read to its end
	stopped atomic.Bool
	running sync.WaitGroup
}

// An xzJob decodes one block after another. The dictionary of its decoder has room for a
// whole block.
type xzJob struct {
	block   *xzBlock
	decoder *lzmaDecoder
	packed  []byte
	after   []byte // the block's data
	cut     error  // of reading packed or after
	end     int64  // the offset of the input after the block
	taken   int    // bytes of the dictionary that have been read

	mu      sync.Mutex
	changed sync.Cond
	decoded int   // bytes of the dictionary
	err     error // io.EOF at the end of the block
}

// xzJobBytes is the memory of a job, apart from its block.
const xzJobBytes = 256 << 10

// size returns the bytes of memory of the job once it can decode b.
func (j *xzJob) size(b *xzBlock) int64 {
	return max(int64(cap(j.packed)), b.saidIn) + max(j.capacity(), b.saidOut) + xzJobBytes
}

func (j *xzJob) capacity() int64 {
	if j.decoder == nil {
		return 0
	}
	return int64(j.decoder.size) - lzmaSlack
}

// room returns whether a job can decode b now.
func (x *xzJobs) room(b *xzBlock, memory memory) bool {
	if x.serial || b.saidIn < 0 || b.saidOut < 0 || max(b.saidIn, b.saidOut) > memory.window ||
		len(x.queue) >= runtime.GOMAXPROCS(0) {
		return false
	}
	next := &xzJob{}
	if len(x.idle) > 0 {
		next = x.idle[0]
	}
	total := next.size(b)
	for _, jobs := range [][]*xzJob{x.queue, x.idle[min(1, len(x.idle)):]} {
		for _, j := range jobs {
			total += int64(cap(j.packed)) + j.capacity() + xzJobBytes
		}
	}
	return memory.spare(total)
}

// get returns a job for b, for which there is room. Its packed has the size of the data.
func (x *xzJobs) get(b *xzBlock) *xzJob {
	var j *xzJob
	if len(x.idle) > 0 {
		j, x.idle = x.idle[0], x.idle[1:]
	} else {
		j = &xzJob{}
		j.changed.L = &j.mu
	}
	if int64(cap(j.packed)) < b.saidIn {
		j.packed = make([]byte, b.saidIn)
	}
	if j.decoder == nil || j.capacity() < b.saidOut {
		j.decoder = newLZMA(b.saidOut)
	}
	j.block, j.packed = b, j.packed[:b.saidIn]
	j.after, j.taken, j.decoded, j.err = nil, 0, 0, nil
	return j
}

func (x *xzJobs) start(j *xzJob) {
	x.queue = append(x.queue, j)
	x.running.Go(func() { j.run(&x.stopped) })
}

// stop ends all jobs.
func (x *xzJobs) stop() {
	x.stopped.Store(true)
	x.running.Wait()
}

// read reads from the first block of the queue, which it removes at its end. If wait is
// true, it waits until there is something to read.
func (x *xzJobs) read(p []byte, wait bool) (int, error) {
	j := x.queue[0]
	n, err := j.read(p, wait)
	if err != nil {
		x.done = j.end
		if errors.Is(err, io.EOF) {
			x.queue, x.idle, err = x.queue[1:], append(x.idle, j), nil
		}
	}
	return n, err
}

func (j *xzJob) read(p []byte, wait bool) (int, error) {
	j.mu.Lock()
	for wait && j.taken == j.decoded && j.err == nil {
		j.changed.Wait()
	}
	decoded, err := j.decoded, j.err
	j.mu.Unlock()
	n := copy(p, j.decoder.ring[j.taken:decoded])
	if j.taken += n; j.taken < decoded {
		err = nil
	}
	return n, err
}

// run decodes the block.
func (j *xzJob) run(stopped *atomic.Bool) {
	j.add(0, guard.Call(func() error { return j.decode(stopped) }))
}

// decode decodes the block, and returns io.EOF at its end.
func (j *xzJob) decode(stopped *atomic.Bool) error {
	const step = 256 << 10
	b := j.block
	l := lzma2{in: bytes.NewReader(j.packed), decoder: j.decoder, capacity: j.capacity()}
	l.begin(b.dictionary)
	for {
		// One byte more than there should be has room, too.
		out, err := l.advance(min(step, int(b.saidOut-b.out)+1))
		if int64(len(out)) > b.saidOut-b.out {
			return errXZSizes
		}
		b.write(out)
		j.add(len(out), nil)
		switch {
		case errors.Is(err, io.EOF) && j.cut == nil:
			return cmp.Or(b.verify(l.n, j.after), io.EOF)
		case errors.Is(err, io.EOF):
			return j.cut
		case errors.Is(err, io.ErrUnexpectedEOF) && j.cut == nil:
			return errXZSizes
		case err != nil:
			return err
		case stopped.Load():
			return io.ErrClosedPipe
		}
	}
}

// add reports further decoded bytes, and the end of decoding unless err is nil.
func (j *xzJob) add(n int, err error) {
	j.mu.Lock()
	j.decoded, j.err = j.decoded+n, err
	j.mu.Unlock()
	j.changed.Signal()
}

// consumed returns the offset of the input after the last block that was read to its end, if
// later ones are being decoded.
func (x *xzStream) consumed() (int64, bool) { return x.jobs.done, len(x.jobs.queue) > 0 }

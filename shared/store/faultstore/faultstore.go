// Package faultstore implements [store.Root] over another root and injects faults,
// before or after a write takes effect, for tests of callers.
package faultstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"slices"
	"sync"

	"imageroot/shared/store"
)

// ErrInjected is the error of an injected fault.
var ErrInjected = errors.New("injected fault")

// A Fault says when a call fails.
type Fault int

const (
	// None lets the call pass.
	None Fault = iota
	// Before fails the call without effect.
	Before
	// After fails the call after it took effect: the response was lost.
	After
	// Late fails a write of a record, which takes effect just before the next
	// write to its key: the request was delayed in the network. Other writes
	// fail as with Before.
	Late
)

func (f Fault) String() string { return [...]string{"none", "before", "after", "late"}[f] }

// A Call is one call of a method of store.Root.
type Call struct {
	Op  string    // the method's name
	Key store.Key // or the prefix of a listing
	// Write is the number of the call among the writes, from 1; 0 for reads.
	Write int
	// N is the number of the call among all calls, from 1.
	N int
}

// A Plan returns the fault of a call. It is never called concurrently. A read fails
// with every fault but None.
type Plan func(Call) Fault

// NthWrite returns a plan that fails the nth write, from 1, with f.
func NthWrite(n int, f Fault) Plan {
	return func(c Call) Fault {
		if c.Write == n {
			return f
		}
		return None
	}
}

// Random returns a plan that fails each call with probability p, with one of faults.
// The same seed gives the same faults for the same sequence of calls.
func Random(seed uint64, p float64, faults ...Fault) Plan {
	rnd := rand.New(rand.NewPCG(seed, 0))
	return func(Call) Fault {
		if rnd.Float64() >= p {
			return None
		}
		return faults[rnd.IntN(len(faults))]
	}
}

// Root implements [store.Root] over another root. It is safe for concurrent use.
//
// Errors wrap Err, or [ErrInjected] if Err is nil. Errors of writes of records also
// wrap [store.ErrUnknown], unless Plain is set. Both leave the outcome open.
type Root struct {
	root  store.Root
	Plain bool  // set before use
	Err   error // set before use

	mu     sync.Mutex
	plan   Plan
	calls  []Call
	writes int
	late   map[store.Key][]func()
}

var _ store.Root = (*Root)(nil)

// New returns a Root over root. A nil plan injects no faults.
func New(root store.Root, plan Plan) *Root {
	r := &Root{root: root, late: map[store.Key][]func(){}}
	r.Reset(plan)
	return r
}

// Reset sets another plan, forgets all calls, and restarts the counts.
func (r *Root) Reset(plan Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if plan == nil {
		plan = func(Call) Fault { return None }
	}
	r.plan, r.calls, r.writes = plan, nil, 0
}

// Calls returns the calls so far.
func (r *Root) Calls() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// Writes returns the number of writes among the calls so far.
func (r *Root) Writes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes
}

func (r *Root) fault(op string, key store.Key, write bool) (Fault, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := Call{Op: op, Key: key, N: len(r.calls) + 1}
	if write {
		r.writes++
		c.Write = r.writes
		arrive := r.late[key]
		delete(r.late, key)
		for _, f := range arrive {
			f()
		}
	}
	r.calls = append(r.calls, c)
	f := r.plan(c)
	return f, fmt.Errorf("%s %q: %w %s it took effect", op, key, cmp.Or(r.Err, ErrInjected), f)
}

func read[T any](r *Root, op string, key store.Key, do func() (T, error)) (v T, err error) {
	if f, injected := r.fault(op, key, false); f != None {
		return v, injected
	}
	return do()
}

func list[T any](r *Root, op, prefix string, all iter.Seq2[T, error]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		if f, injected := r.fault(op, store.Key(prefix), false); f != None {
			var none T
			yield(none, injected)
			return
		}
		all(yield)
	}
}

// write performs a write that cannot be delayed.
func write[T any](r *Root, op string, key store.Key, do func() (T, error)) (v T, err error) {
	f, injected := r.fault(op, key, true)
	switch f {
	case None:
		return do()
	case After:
		if _, err := do(); err != nil {
			return v, err
		}
	}
	return v, injected
}

// record performs a write of a record.
func (r *Root) record(ctx context.Context, op string, key store.Key, do func(context.Context) (string, error)) (tag string, err error) {
	f, injected := r.fault(op, key, true)
	switch f {
	case None:
		return do(ctx)
	case After:
		_, _ = do(ctx) // the caller must not learn whether it won
	case Late:
		ctx := context.WithoutCancel(ctx)
		r.mu.Lock()
		r.late[key] = append(r.late[key], func() { _, _ = do(ctx) })
		r.mu.Unlock()
	}
	if r.Plain {
		return "", injected
	}
	return "", fmt.Errorf("%w: %w", store.ErrUnknown, injected)
}

func (r *Root) Head(ctx context.Context, key store.Key) (store.Info, error) {
	return read(r, "Head", key, func() (store.Info, error) { return r.root.Head(ctx, key) })
}

func (r *Root) Get(ctx context.Context, key store.Key, rg store.Range, ifMatch string) (body io.ReadCloser, info store.Info, err error) {
	body, err = read(r, "Get", key, func() (body io.ReadCloser, err error) {
		body, info, err = r.root.Get(ctx, key, rg, ifMatch)
		return body, err
	})
	return body, info, err
}

func (r *Root) Put(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return write(r, "Put", key, func() (store.Version, error) { return r.root.Put(ctx, key, body, size) })
}

func (r *Root) Create(ctx context.Context, key store.Key, body io.Reader, size int64) (store.Version, error) {
	return write(r, "Create", key, func() (store.Version, error) { return r.root.Create(ctx, key, body, size) })
}

func (r *Root) Delete(ctx context.Context, key store.Key) error {
	_, err := write(r, "Delete", key, func() (any, error) { return nil, r.root.Delete(ctx, key) })
	return err
}

func (r *Root) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	return list(r, "List", prefix, r.root.List(ctx, prefix, after))
}

func (r *Root) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	return write(r, "Move", dst, func() (store.Version, error) { return r.root.Move(ctx, dst, src, v) })
}

func (r *Root) CreateUpload(ctx context.Context, key store.Key) (string, error) {
	return write(r, "CreateUpload", key, func() (string, error) { return r.root.CreateUpload(ctx, key) })
}

func (r *Root) UploadPart(ctx context.Context, key store.Key, id string, n int32, body io.Reader, size int64) (store.Part, error) {
	return write(r, "UploadPart", key, func() (store.Part, error) { return r.root.UploadPart(ctx, key, id, n, body, size) })
}

func (r *Root) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	return read(r, "ListParts", key, func() ([]store.Part, error) { return r.root.ListParts(ctx, key, id) })
}

func (r *Root) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return write(r, "CompleteUpload", key, func() (store.Version, error) { return r.root.CompleteUpload(ctx, key, id, parts) })
}

func (r *Root) CompleteNew(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	return write(r, "CompleteNew", key, func() (store.Version, error) { return r.root.CompleteNew(ctx, key, id, parts) })
}

func (r *Root) AbortUpload(ctx context.Context, key store.Key, id string) error {
	_, err := write(r, "AbortUpload", key, func() (any, error) { return nil, r.root.AbortUpload(ctx, key, id) })
	return err
}

func (r *Root) PendingUploads(ctx context.Context, prefix string) iter.Seq2[store.PendingUpload, error] {
	return list(r, "PendingUploads", prefix, r.root.PendingUploads(ctx, prefix))
}

func (r *Root) ReadRecord(ctx context.Context, key store.Key) (data []byte, tag string, err error) {
	data, err = read(r, "ReadRecord", key, func() (data []byte, err error) {
		data, tag, err = r.root.ReadRecord(ctx, key)
		return data, err
	})
	return data, tag, err
}

func (r *Root) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	return r.record(ctx, "CreateRecord", key, func(ctx context.Context) (string, error) {
		return r.root.CreateRecord(ctx, key, data)
	})
}

func (r *Root) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	return r.record(ctx, "ReplaceRecord", key, func(ctx context.Context) (string, error) {
		return r.root.ReplaceRecord(ctx, key, data, tag)
	})
}

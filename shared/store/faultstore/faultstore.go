// Package faultstore implements [store.Root] over another root and injects faults,
// before or after a write takes effect, so that tests can check that callers
// handle both.
package faultstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"sync"

	"imageroot/shared/store"
)

// ErrInjected is the error of an injected fault.
var ErrInjected = errors.New("injected fault")

// A Fault is the way in which a call fails.
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
	Op  string // the method's name
	Key string // or the prefix of a listing
	// Write is the number of the call among the writes, from 1; 0 for reads.
	Write int
	// N is the number of the call among all calls, from 1.
	N int
}

// A Plan returns the fault of a call. Calls of it are serialised. A read fails
// with every fault but None.
type Plan func(Call) Fault

// Never is the plan without faults.
func Never(Call) Fault { return None }

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
// With the same seed it fails the same calls of the same sequence.
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
// Errors wrap Err, or [ErrInjected] if Err is nil. That of a write of a record
// wraps [store.ErrUnknown] too, unless Plain is set. Both leave the outcome open.
type Root struct {
	root  store.Root
	Plain bool  // set before use
	Err   error // set before use

	mu     sync.Mutex
	plan   Plan
	calls  []Call
	writes int
	late   map[string][]func()
}

var _ store.Root = (*Root)(nil)

// New returns a Root over root. A nil plan is [Never].
func New(root store.Root, plan Plan) *Root {
	r := &Root{root: root, late: map[string][]func(){}}
	r.Reset(plan)
	return r
}

// Reset sets another plan, forgets all calls, and counts from 1 again.
func (r *Root) Reset(plan Plan) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if plan == nil {
		plan = Never
	}
	r.plan, r.calls, r.writes = plan, nil, 0
}

// Calls returns the calls so far.
func (r *Root) Calls() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Call(nil), r.calls...)
}

// Writes returns the number of writes among the calls so far.
func (r *Root) Writes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes
}

func (r *Root) fault(op, key string, write bool) (Fault, error) {
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

func (r *Root) read(op, key string) error {
	if f, err := r.fault(op, key, false); f != None {
		return err
	}
	return nil
}

// write does a write that cannot be delayed.
func (r *Root) write(op, key string, do func() error) error {
	f, injected := r.fault(op, key, true)
	switch f {
	case None:
		return do()
	case After:
		if err := do(); err != nil {
			return err
		}
	}
	return injected
}

// record does a write of a record.
func (r *Root) record(ctx context.Context, op, key string, do func(context.Context) (string, error)) (tag string, err error) {
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

// Head implements store.Objects.
func (r *Root) Head(ctx context.Context, key string) (store.Info, error) {
	if err := r.read("Head", key); err != nil {
		return store.Info{}, err
	}
	return r.root.Head(ctx, key)
}

// Get implements store.Objects.
func (r *Root) Get(ctx context.Context, key string, rg store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if err := r.read("Get", key); err != nil {
		return nil, store.Info{}, err
	}
	return r.root.Get(ctx, key, rg, ifMatch)
}

// Put implements store.Objects.
func (r *Root) Put(ctx context.Context, key string, body io.Reader, size int64) (v store.Version, err error) {
	err = r.write("Put", key, func() (err error) { v, err = r.root.Put(ctx, key, body, size); return err })
	return zeroOn(err, v), err
}

// zeroOn returns v, or the zero value if err is not nil.
func zeroOn[T any](err error, v T) T {
	if err != nil {
		var zero T
		return zero
	}
	return v
}

// Delete implements store.Objects.
func (r *Root) Delete(ctx context.Context, key string) error {
	return r.write("Delete", key, func() error { return r.root.Delete(ctx, key) })
}

// List implements store.Objects.
func (r *Root) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	return func(yield func(store.Info, error) bool) {
		if err := r.read("List", prefix); err != nil {
			yield(store.Info{}, err)
			return
		}
		r.root.List(ctx, prefix, after)(yield)
	}
}

// Copy implements store.Objects.
func (r *Root) Copy(ctx context.Context, dst, src string, size int64) error {
	return r.write("Copy", dst, func() error { return r.root.Copy(ctx, dst, src, size) })
}

// CreateUpload implements store.Multipart.
func (r *Root) CreateUpload(ctx context.Context, key string) (id string, err error) {
	err = r.write("CreateUpload", key, func() (err error) { id, err = r.root.CreateUpload(ctx, key); return err })
	return zeroOn(err, id), err
}

// UploadPart implements store.Multipart.
func (r *Root) UploadPart(ctx context.Context, key, id string, n int32, body io.Reader, size int64) (p store.Part, err error) {
	err = r.write("UploadPart", key, func() (err error) { p, err = r.root.UploadPart(ctx, key, id, n, body, size); return err })
	return zeroOn(err, p), err
}

// ListParts implements store.Multipart.
func (r *Root) ListParts(ctx context.Context, key, id string) ([]store.Part, error) {
	if err := r.read("ListParts", key); err != nil {
		return nil, err
	}
	return r.root.ListParts(ctx, key, id)
}

// CompleteUpload implements store.Multipart.
func (r *Root) CompleteUpload(ctx context.Context, key, id string, parts []store.Part) (v store.Version, err error) {
	err = r.write("CompleteUpload", key, func() (err error) { v, err = r.root.CompleteUpload(ctx, key, id, parts); return err })
	return zeroOn(err, v), err
}

// AbortUpload implements store.Multipart.
func (r *Root) AbortUpload(ctx context.Context, key, id string) error {
	return r.write("AbortUpload", key, func() error { return r.root.AbortUpload(ctx, key, id) })
}

// PendingUploads implements store.Multipart.
func (r *Root) PendingUploads(ctx context.Context, prefix string) iter.Seq2[store.PendingUpload, error] {
	return func(yield func(store.PendingUpload, error) bool) {
		if err := r.read("PendingUploads", prefix); err != nil {
			yield(store.PendingUpload{}, err)
			return
		}
		r.root.PendingUploads(ctx, prefix)(yield)
	}
}

// ReadRecord implements store.Records.
func (r *Root) ReadRecord(ctx context.Context, key string) ([]byte, string, error) {
	if err := r.read("ReadRecord", key); err != nil {
		return nil, "", err
	}
	return r.root.ReadRecord(ctx, key)
}

// CreateRecord implements store.Records.
func (r *Root) CreateRecord(ctx context.Context, key string, data []byte) (tag string, err error) {
	return r.record(ctx, "CreateRecord", key, func(ctx context.Context) (string, error) {
		return r.root.CreateRecord(ctx, key, data)
	})
}

// ReplaceRecord implements store.Records.
func (r *Root) ReplaceRecord(ctx context.Context, key string, data []byte, tag string) (newTag string, err error) {
	return r.record(ctx, "ReplaceRecord", key, func(ctx context.Context) (string, error) {
		return r.root.ReplaceRecord(ctx, key, data, tag)
	})
}

// DeleteRecord implements store.Records. It fails as Delete does.
func (r *Root) DeleteRecord(ctx context.Context, key string) error {
	return r.write("DeleteRecord", key, func() error { return r.root.DeleteRecord(ctx, key) })
}

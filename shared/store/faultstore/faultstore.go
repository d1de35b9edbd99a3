// Package faultstore is a store.Root that fails on purpose, before a write
// took effect or after it, so that tests can ask of code what it makes of
// either. Over any other root it changes nothing but that.
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

// ErrInjected is the error of a call that was made to fail.
var ErrInjected = errors.New("injected fault")

// A Fault is how a call fails.
type Fault int

const (
	// None lets the call pass.
	None Fault = iota
	// Before fails it, and it has no effect.
	Before
	// After fails it, and it has taken effect: the answer was lost.
	After
	// Late fails it, and it takes effect when the next write to its key
	// arrives, just before that one: a request that was long on its way. A
	// write whose body must be read by then fails as with Before.
	Late
)

func (f Fault) String() string { return [...]string{"none", "before", "after", "late"}[f] }

// A Call is one call of a method of store.Root.
type Call struct {
	Op  string // the method's name
	Key string // or the prefix of a listing
	// Write is the number of the call among the writes, from 1; zero for a
	// read.
	Write int
	// N is the number of the call among all, from 1.
	N int
}

// A Plan says how a call is to fail. Reads fail with any fault but None.
type Plan func(Call) Fault

// Never fails nothing.
func Never(Call) Fault { return None }

// NthWrite fails the nth write, from 1, with f.
func NthWrite(n int, f Fault) Plan {
	return func(c Call) Fault {
		if c.Write == n {
			return f
		}
		return None
	}
}

// Random fails each call with the probability p, writes in one of the ways of
// faults. The same seed fails the same calls of the same sequence.
func Random(seed uint64, p float64, faults ...Fault) Plan {
	rnd := rand.New(rand.NewPCG(seed, 0))
	return func(Call) Fault { // under the store's lock
		if rnd.Float64() >= p {
			return None
		}
		return faults[rnd.IntN(len(faults))]
	}
}

// Root implements store.Root over another. It is safe for concurrent use.
//
// A write of a record fails with store.ErrUnknown, or, where Plain is set,
// with an error that is none of the store's; both leave open what became of
// it. Everything else fails with an error that is none of the store's. All
// are Err, or [ErrInjected] if that is nil.
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

// New wraps root. A nil plan is [Never].
func New(root store.Root, plan Plan) *Root {
	r := &Root{root: root, late: map[string][]func(){}}
	r.Reset(plan)
	return r
}

// Reset sets another plan and counts from 1 again.
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

// Writes returns how many of the calls so far were writes.
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

// write makes a write that no plan can delay.
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

// record makes a write of a record.
func (r *Root) record(ctx context.Context, op, key string, do func(context.Context) (string, error)) (tag string, err error) {
	f, injected := r.fault(op, key, true)
	switch f {
	case None:
		return do(ctx)
	case After:
		_, _ = do(ctx) // won or lost, nobody hears of it
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

// zeroOn returns the zero value in place of v where there is an error.
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

// DeleteRecord implements store.Records. It fails as an object's Delete.
func (r *Root) DeleteRecord(ctx context.Context, key string) error {
	return r.write("DeleteRecord", key, func() error { return r.root.DeleteRecord(ctx, key) })
}

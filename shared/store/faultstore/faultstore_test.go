package faultstore_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Root { return faultstore.New(memstore.New(), nil) })
}

// kinds returns the names of the errors of package store that err matches.
func kinds(err error) string {
	var is []string
	for _, e := range []error{faultstore.ErrInjected, store.ErrUnknown, store.ErrConflict, store.ErrNotFound} {
		if errors.Is(err, e) {
			is = append(is, e.Error())
		}
	}
	return strings.Join(is, ", ")
}

func TestFaults(t *testing.T) {
	ctx := t.Context()
	const unknown = "injected fault, outcome unknown"
	for _, tt := range []struct {
		fault                 faultstore.Fault
		plain                 bool
		record, object        string // the error
		hasRecord, hasObject  bool
		recordAfterNextCreate string // the content after the next create
	}{
		{faultstore.None, false, "", "", true, true, "one"},
		{faultstore.Before, false, unknown, "injected fault", false, false, "two"},
		{faultstore.Before, true, "injected fault", "injected fault", false, false, "two"},
		{faultstore.After, false, unknown, "injected fault", true, true, "one"},
		{faultstore.After, true, "injected fault", "injected fault", true, true, "one"},
		{faultstore.Late, false, unknown, "injected fault", false, false, "one"},
	} {
		under := memstore.New()
		r := faultstore.New(under, faultstore.NthWrite(1, tt.fault))
		r.Plain = tt.plain
		_, err := r.CreateRecord(ctx, "r", []byte("one"))
		if got := kinds(err); got != tt.record {
			t.Errorf("%v: a record's error is %q, want %q", tt.fault, got, tt.record)
		}
		if _, _, err := under.ReadRecord(ctx, "r"); (err == nil) != tt.hasRecord {
			t.Errorf("%v: the record exists: %v, want %v", tt.fault, err == nil, tt.hasRecord)
		}
		// A late write arrives before the next write to its key, but not before others.
		if _, err := r.CreateRecord(ctx, "other", nil); err != nil {
			t.Errorf("%v: the next write: %v", tt.fault, err)
		}
		if _, _, err := under.ReadRecord(ctx, "r"); (err == nil) != tt.hasRecord {
			t.Errorf("%v: the record exists after another's write: %v, want %v", tt.fault, err == nil, tt.hasRecord)
		}
		_, _ = r.CreateRecord(ctx, "r", []byte("two"))
		if data, _, _ := under.ReadRecord(ctx, "r"); string(data) != tt.recordAfterNextCreate {
			t.Errorf("%v: after the next create the record is %q, want %q", tt.fault, data, tt.recordAfterNextCreate)
		}

		r.Reset(faultstore.NthWrite(1, tt.fault))
		_, err = r.Put(ctx, "o", strings.NewReader("one"), 3)
		if got := kinds(err); got != tt.object {
			t.Errorf("%v: an object's error is %q, want %q", tt.fault, got, tt.object)
		}
		if _, err := under.Head(ctx, "o"); (err == nil) != tt.hasObject {
			t.Errorf("%v: the object exists: %v, want %v", tt.fault, err == nil, tt.hasObject)
		}
	}
}

func TestReadsFail(t *testing.T) {
	ctx := t.Context()
	r := faultstore.New(memstore.New(), func(c faultstore.Call) faultstore.Fault {
		if c.Write == 0 {
			return faultstore.Before
		}
		return faultstore.None
	})
	if _, err := r.CreateRecord(ctx, "r", nil); err != nil {
		t.Fatal(err)
	}
	_, _, readErr := r.ReadRecord(ctx, "r")
	_, headErr := r.Head(ctx, "r")
	_, _, getErr := r.Get(ctx, "r", store.All, "")
	_, partsErr := r.ListParts(ctx, "r", "")
	errs := []error{readErr, headErr, getErr, partsErr}
	for _, err := range r.List(ctx, "", "") {
		errs = append(errs, err)
	}
	for _, err := range r.PendingUploads(ctx, "") {
		errs = append(errs, err)
	}
	if len(errs) != 6 {
		t.Errorf("%d errors, want 6", len(errs))
	}
	for _, err := range errs {
		if got := kinds(err); got != "injected fault" {
			t.Errorf("a read's error is %q (%v)", got, err)
		}
	}
	if calls := r.Calls(); len(calls) != 7 || r.Writes() != 1 || calls[0] != (faultstore.Call{Op: "CreateRecord", Key: "r", Write: 1, N: 1}) {
		t.Errorf("the calls are %+v, and %d writes", calls, r.Writes())
	}
}

func TestRandomRepeats(t *testing.T) {
	draw := func(seed uint64) (faults []faultstore.Fault) {
		plan := faultstore.Random(seed, 0.5, faultstore.Before, faultstore.After)
		for range 200 {
			faults = append(faults, plan(faultstore.Call{}))
		}
		return faults
	}
	if !slices.Equal(draw(1), draw(1)) {
		t.Error("one seed gives two sequences")
	}
	if slices.Equal(draw(1), draw(2)) {
		t.Error("two seeds give one sequence")
	}
	for _, f := range []faultstore.Fault{faultstore.None, faultstore.Before, faultstore.After} {
		if !slices.Contains(draw(1), f) {
			t.Errorf("200 draws without the fault %v", f)
		}
	}
}

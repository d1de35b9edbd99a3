package inventory

import (
	"fmt"
	"slices"
	"strings"

	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/metadata"
)

// A Filter selects rows. A row matches if for each field that has values, it matches any of
// them. Empty values are ignored.
type Filter struct {
	Architectures []string // see [metadata.Architecture]
	Systems       []string // case is ignored
	Labels        []string // "KEY", or "KEY=VALUE"
	Formats       []string // of the primary name
	States        []string // of [States]
}

// MaxFilter is the maximum number of values of a field.
const MaxFilter = 50

// Other states of a [Filter] than those of [Row.HashState].
const (
	Cached    = "cached"    // the store has the bytes
	Available = "available" // the store does not have the bytes
	Attention = "attention" // there are warnings
)

// states has a predicate for each state.
var states = []struct {
	name string
	has  func(*Head) bool
}{
	{Unhashed, func(h *Head) bool { return h.HashState == Unhashed }},
	{Hashed, func(h *Head) bool { return h.HashState == Hashed }},
	{Published, func(h *Head) bool { return h.HashState == Published }},
	{string(job.Queued), func(h *Head) bool { return h.HashState == string(job.Queued) }},
	{string(job.Running), func(h *Head) bool { return h.HashState == string(job.Running) }},
	{string(job.Failed), func(h *Head) bool { return h.HashState == string(job.Failed) }},
	{Cached, func(h *Head) bool { return h.Cached }},
	{Available, func(h *Head) bool { return !h.Cached }},
	{Attention, func(h *Head) bool { return h.Attention }},
}

// States returns the states that a [Filter] can select.
func States() []string {
	names := make([]string, 0, len(states))
	for _, s := range states {
		names = append(names, s.name)
	}
	return names
}

// A test is the filter of one field.
type test func(h *Head, f facts) bool

// tests returns a test for each field that has values. The error is a [*QueryError].
func (f Filter) tests() (tests []test, err error) {
	add := func(values []string, parse func(string) (test, error)) {
		values = slices.DeleteFunc(slices.Clone(values), func(v string) bool { return v == "" })
		if len(values) > MaxFilter && err == nil {
			err = &QueryError{fmt.Sprintf("a filter has at most %d values", MaxFilter)}
		}
		if len(values) == 0 || err != nil {
			return
		}
		var any []test
		for _, v := range values {
			t, perr := parse(v)
			if perr != nil {
				err = perr
				return
			}
			any = append(any, t)
		}
		tests = append(tests, func(h *Head, f facts) bool {
			return slices.ContainsFunc(any, func(t test) bool { return t(h, f) })
		})
	}
	add(f.Architectures, func(v string) (test, error) {
		a, ok := metadata.Architecture(v)
		if !ok {
			return nil, &QueryError{fmt.Sprintf("the architecture %.40q is not known: use one of %s", v, strings.Join(metadata.Architectures, ", "))}
		}
		return func(_ *Head, f facts) bool { return f.architecture == a }, nil
	})
	add(f.Systems, func(v string) (test, error) {
		v = strings.ToLower(v)
		return func(_ *Head, f facts) bool { return f.system == v }, nil
	})
	add(f.Labels, func(v string) (test, error) {
		sought := "\n" + v + "\n"
		if !strings.Contains(v, "=") {
			sought = "\n" + v + "="
		}
		return func(_ *Head, f facts) bool { return strings.Contains(f.labels, sought) }, nil
	})
	add(f.Formats, func(v string) (test, error) {
		format := image.Format(strings.ToLower(v))
		if !slices.Contains(image.Formats(), format) {
			return nil, &QueryError{fmt.Sprintf("the format %.40q is not known: use one of %s", v, image.FormatList())}
		}
		return func(h *Head, _ facts) bool { return h.Format() == format }, nil
	})
	add(f.States, func(v string) (test, error) {
		for _, s := range states {
			if s.name == v {
				return func(h *Head, _ facts) bool { return s.has(h) }, nil
			}
		}
		return nil, &QueryError{fmt.Sprintf("the state %.40q is not known: use one of %s", v, strings.Join(States(), ", "))}
	})
	return tests, err
}

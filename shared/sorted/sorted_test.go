package sorted_test

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"imageroot/shared/sorted"
)

type element struct{ key, value int }

func order(a, b *element) int { return cmp.Compare(a.key, b.key) }

// A list equals a sorted map after any changes, and so do its older versions.
func TestList(t *testing.T) {
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 0))
		var list sorted.List[*element]
		model := map[int]*element{}
		type version struct {
			list  sorted.List[*element]
			model map[int]*element
		}
		var versions []version
		for range 40 {
			versions = append(versions, version{list, maps.Clone(model)})
			most := []int{1, 10, 1500}[r.IntN(3)]
			var add, remove []*element
			for _, key := range r.Perm(5000)[:r.IntN(most+1)] {
				add = append(add, &element{key, r.Int()})
			}
			for range r.IntN(most + 1) {
				remove = append(remove, &element{key: r.IntN(5000)})
			}
			for _, e := range remove {
				delete(model, e.key)
			}
			for _, e := range add {
				model[e.key] = e
			}
			list = list.With(order, remove, add)
		}
		versions = append(versions, version{list, model})
		for i, v := range versions {
			var want []*element
			for _, k := range slices.Sorted(maps.Keys(v.model)) {
				want = append(want, v.model[k])
			}
			if got := slices.Collect(v.list.All()); !slices.Equal(got, want) || v.list.Len() != len(want) {
				t.Fatalf("seed %d: version %d has %d elements, want %d", seed, i, len(got), len(want))
			}
			for range 20 {
				key := r.IntN(5000)
				compare := func(e *element) int { return cmp.Compare(e.key, key) }
				at, found := slices.BinarySearchFunc(want, key, func(e *element, k int) int { return cmp.Compare(e.key, k) })
				if e, ok := v.list.Find(compare); ok != found || ok && e != want[at] {
					t.Fatalf("seed %d: version %d: Find(%d) is %v, %v", seed, i, key, e, ok)
				}
				if got := slices.Collect(v.list.From(compare)); !slices.Equal(got, want[at:]) {
					t.Fatalf("seed %d: version %d: From(%d) has %d elements", seed, i, key, len(got))
				}
				to := slices.Clone(want[:at])
				if found {
					to = append(to, want[at])
				}
				slices.Reverse(to)
				if got := slices.Collect(v.list.Backward(compare)); !slices.Equal(got, to) {
					t.Fatalf("seed %d: version %d: Backward(%d) has %d elements, want %d", seed, i, key, len(got), len(to))
				}
			}
			o := versions[r.IntN(len(versions))]
			added, removed := v.list.Diff(order, o.list)
			lacks := func(l []*element, m map[int]*element) (out []*element) {
				for _, e := range l {
					if m[e.key] != e {
						out = append(out, e)
					}
				}
				return out
			}
			if !slices.Equal(added, lacks(want, o.model)) || !slices.Equal(removed, lacks(slices.Collect(o.list.All()), v.model)) {
				t.Fatalf("seed %d: version %d: Diff has %d and %d elements", seed, i, len(added), len(removed))
			}
		}
	}
}

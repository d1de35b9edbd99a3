// Package sorted has a sorted list whose versions share memory.
package sorted

import (
	"iter"
	"slices"
	"sort"
)

// A List is an immutable sorted list. A changed list shares most of its memory with the
// one that it was made from, so that a change of one element costs little, however long
// the list is. The zero List is empty. It is safe for concurrent use.
type List[T comparable] struct {
	chunks [][]T // none is empty
	n      int
}

// chunk is the usual length of a chunk.
const chunk = 256

// Len returns the number of elements.
func (l List[T]) Len() int { return l.n }

// Same reports whether m is the same version of the list. Two lists that were made apart
// may have the same elements and not be the same.
func (l List[T]) Same(m List[T]) bool {
	return len(l.chunks) == len(m.chunks) && (l.n == 0 || &l.chunks[0] == &m.chunks[0])
}

// All returns the elements in order.
func (l List[T]) All() iter.Seq[T] { return l.From(func(T) int { return 0 }) }

// From returns the elements in order, from the first one for which compare returns 0 or
// more. compare must return negative numbers for the elements before that one, and for
// no others.
func (l List[T]) From(compare func(T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		// The first element may be in the chunk before the first that begins with one.
		i := max(0, sort.Search(len(l.chunks), func(i int) bool { return compare(l.chunks[i][0]) >= 0 })-1)
		for first := i; i < len(l.chunks); i++ {
			c := l.chunks[i]
			if i == first {
				c = c[sort.Search(len(c), func(i int) bool { return compare(c[i]) >= 0 }):]
			}
			for _, e := range c {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Backward returns the elements in reverse order, from the last one for which compare
// returns 0 or less. compare must return positive numbers for the elements after that
// one, and for no others.
func (l List[T]) Backward(compare func(T) int) iter.Seq[T] {
	return func(yield func(T) bool) {
		last := sort.Search(len(l.chunks), func(i int) bool { return compare(l.chunks[i][0]) > 0 }) - 1
		for i := last; i >= 0; i-- {
			c := l.chunks[i]
			if i == last {
				c = c[:sort.Search(len(c), func(i int) bool { return compare(c[i]) > 0 })]
			}
			for _, e := range slices.Backward(c) {
				if !yield(e) {
					return
				}
			}
		}
	}
}

// Find returns the element for which compare returns 0: see [List.From].
func (l List[T]) Find(compare func(T) int) (found T, ok bool) {
	for e := range l.From(compare) {
		if compare(e) == 0 {
			return e, true
		}
		break
	}
	return found, false
}

// With returns the list without the elements of remove and with those of add. order is
// the same for all versions of a list, and total: no two elements of a list are equal
// by it. An element of remove that the list lacks is ignored, and an element of add
// replaces an equal one. With may reorder remove and add.
func (l List[T]) With(order func(a, b T) int, remove, add []T) List[T] {
	slices.SortFunc(remove, order)
	slices.SortFunc(add, order)
	if len(l.chunks) == 0 {
		return cut(add)
	}
	next := List[T]{chunks: make([][]T, 0, len(l.chunks)+1+len(add)/chunk)}
	for i, c := range l.chunks {
		removed, added := len(remove), len(add)
		if i+1 < len(l.chunks) { // what comes before the next chunk
			before := func(e T) bool { return order(e, l.chunks[i+1][0]) >= 0 }
			removed = sort.Search(len(remove), func(i int) bool { return before(remove[i]) })
			added = sort.Search(len(add), func(i int) bool { return before(add[i]) })
		}
		if removed > 0 || added > 0 {
			c = merge(order, c, remove[:removed], add[:added])
		}
		remove, add = remove[removed:], add[added:]
		next.append(c)
	}
	return next
}

// append adds the elements of c, which come after all others. It may share c.
func (l *List[T]) append(c []T) {
	l.n += len(c)
	if last := len(l.chunks) - 1; last >= 0 && len(l.chunks[last])+len(c) <= chunk {
		l.chunks[last] = slices.Concat(l.chunks[last], c)
		return
	}
	if len(c) <= 2*chunk {
		if len(c) > 0 {
			l.chunks = append(l.chunks, c)
		}
		return
	}
	l.chunks = append(l.chunks, cut(c).chunks...)
}

// cut returns a list of the elements of all, which are sorted.
func cut[T comparable](all []T) List[T] {
	l := List[T]{n: len(all)}
	for c := range slices.Chunk(all, chunk) {
		l.chunks = append(l.chunks, slices.Clone(c)) // all may be larger than its part that stays in use
	}
	return l
}

// merge returns c without the elements of remove and with those of add.
func merge[T comparable](order func(a, b T) int, c, remove, add []T) []T {
	out := make([]T, 0, len(c)+len(add))
	for _, e := range c {
		for len(add) > 0 && order(add[0], e) < 0 {
			out, add = append(out, add[0]), add[1:]
		}
		for len(remove) > 0 && order(remove[0], e) < 0 {
			remove = remove[1:]
		}
		switch {
		case len(add) > 0 && order(add[0], e) == 0:
			out, add = append(out, add[0]), add[1:]
		case len(remove) > 0 && order(remove[0], e) == 0:
		default:
			out = append(out, e)
		}
	}
	return slices.Clip(append(out, add...))
}

// Diff returns the elements of l that before lacks, and the elements of before that l
// lacks, each in order. It costs little if one was made from the other.
func (l List[T]) Diff(order func(a, b T) int, before List[T]) (added, removed []T) {
	if l.Same(before) {
		return nil, nil
	}
	shared := map[*T]bool{}
	for _, c := range before.chunks {
		shared[&c[0]] = true
	}
	var mine, others []T // of the chunks that are not shared
	for _, c := range l.chunks {
		if shared[&c[0]] {
			delete(shared, &c[0])
		} else {
			mine = append(mine, c...)
		}
	}
	for _, c := range before.chunks {
		if shared[&c[0]] {
			others = append(others, c...)
		}
	}
	for len(mine) > 0 && len(others) > 0 {
		switch c := order(mine[0], others[0]); {
		case mine[0] == others[0]:
			mine, others = mine[1:], others[1:]
		case c <= 0:
			added, mine = append(added, mine[0]), mine[1:]
		default:
			removed, others = append(removed, others[0]), others[1:]
		}
	}
	return append(added, mine...), append(removed, others...)
}

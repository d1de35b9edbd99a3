package inventory

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/job"
	"imageroot/shared/record"
	"imageroot/shared/sorted"
)

// jobs has the jobs of one kind: by ID, and in the order of [Inventory.Jobs].
type jobs struct {
	*index.Section[string, job.Job]

	mu      sync.Mutex
	items   index.Items[string, job.Job] // those that the lists have
	ids     sorted.List[*jobHead]
	ordered sorted.List[*jobHead]
	counts  map[job.Status]int // never changed once it is set
}

// A jobHead is what is kept of a job, so that jobs can be listed and counted without
// decoding all of them.
type jobHead struct {
	id       string
	status   job.Status
	name     image.Name
	failure  string // of a failed job
	queued   time.Time
	finished time.Time // zero: not ended
	job      *job.Job  // nil unless it is active: those are listed often
}

func newJobHead(id string, j job.Job) *jobHead {
	h := &jobHead{id: id, status: j.Status, name: j.Name, queued: j.QueuedAt}
	if j.Status == job.Failed {
		h.failure = j.Error
	}
	if j.FinishedAt != nil {
		h.finished = *j.FinishedAt
	}
	if j.Status.Active() {
		h.job = &j
	}
	return h
}

func byJobID(a, b *jobHead) int { return strings.Compare(a.id, b.id) }

// inOrder puts running jobs first, then queued ones, then ended ones with the newest
// end first.
func inOrder(a, b *jobHead) int {
	rank := func(h *jobHead) int {
		switch h.status {
		case job.Running:
			return 0
		case job.Queued:
			return 1
		}
		return 2
	}
	if c := cmp.Compare(rank(a), rank(b)); c != 0 {
		return c
	}
	if !a.status.Active() {
		if c := b.finished.Compare(a.finished); c != 0 {
			return c
		}
	}
	return cmp.Or(a.queued.Compare(b.queued), strings.Compare(string(a.name), string(b.name)), byJobID(a, b))
}

// update brings the lists up to date. The caller holds mu.
func (k *jobs) update(ctx context.Context) error {
	items, err := k.All(ctx)
	if err != nil || items.Same(k.items) {
		return err
	}
	counts := map[job.Status]int{}
	maps.Copy(counts, k.counts)
	var removed, added []*jobHead
	add := func(id string, j job.Job) {
		added = append(added, newJobHead(id, j))
		counts[j.Status]++
	}
	if k.items.Len() == 0 {
		for id, j := range items.Values() {
			add(id, j)
		}
	} else {
		for _, id := range items.Changes(k.items) {
			if old, ok := findJob(k.ids, id); ok {
				removed = append(removed, old)
				if counts[old.status]--; counts[old.status] == 0 {
					delete(counts, old.status)
				}
			}
			if j, ok := items.Value(id); ok {
				add(id, j)
			}
		}
	}
	k.items, k.counts = items, counts
	k.ids = k.ids.With(byJobID, removed, added)
	k.ordered = k.ordered.With(inOrder, removed, added)
	return nil
}

func findJob(ids sorted.List[*jobHead], id string) (*jobHead, bool) {
	return ids.Find(func(h *jobHead) int { return strings.Compare(h.id, id) })
}

// byID returns the jobs by ID.
func (k *jobs) byID(ctx context.Context) (sorted.List[*jobHead], error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.update(ctx)
	return k.ids, err
}

// A Listing has jobs: running ones first, then queued ones, then ended ones with the
// newest end first.
type Listing struct {
	Jobs []job.Job
	// Counts has the number of jobs by status, including those that Jobs lacks.
	Counts map[job.Status]int
}

// Jobs returns all jobs of these kinds: see [Listing].
func (inv *Inventory) Jobs(ctx context.Context, kinds ...*job.Kind) ([]job.Job, error) {
	l, err := inv.RecentJobs(ctx, -1, kinds...)
	return l.Jobs, err
}

// RecentJobs returns the active jobs of these kinds and the ended jobs whose end is the
// newest, at most ended of them; -1 is all.
func (inv *Inventory) RecentJobs(ctx context.Context, ended int, kinds ...*job.Kind) (Listing, error) {
	l := Listing{Counts: map[job.Status]int{}}
	type listed struct {
		*jobHead
		value func(id string) (job.Job, bool)
	}
	var heads []listed
	for _, kind := range kinds {
		k := inv.jobs[kind]
		k.mu.Lock()
		err := k.update(ctx)
		ordered, items := k.ordered, k.items
		for status, n := range k.counts {
			l.Counts[status] += n
		}
		k.mu.Unlock()
		if err != nil {
			return l, err
		}
		value := items.Value
		if ended < 0 {
			all := maps.Collect(items.Values()) // costs less than one after the other
			value = func(id string) (job.Job, bool) { j, ok := all[id]; return j, ok }
		}
		left := ended
		for h := range ordered.All() {
			if !h.status.Active() {
				if left == 0 {
					break
				}
				left--
			}
			heads = append(heads, listed{h, value})
		}
	}
	slices.SortStableFunc(heads, func(a, b listed) int { return inOrder(a.jobHead, b.jobHead) })
	for _, h := range heads {
		if h.job != nil {
			l.Jobs = append(l.Jobs, *h.job)
			continue
		}
		if ended == 0 {
			break
		}
		if j, ok := h.value(h.id); ok {
			l.Jobs = append(l.Jobs, j)
			ended--
		}
	}
	return l, nil
}

// Job returns the job of this kind with this ID, and false if there is none.
func (inv *Inventory) Job(ctx context.Context, kind *job.Kind, id string) (job.Job, bool, error) {
	items, err := inv.jobs[kind].All(ctx)
	if err != nil {
		return job.Job{}, false, err
	}
	j, ok := items.Value(id)
	return j, ok, nil
}

// NewerFetchJobs reports whether a newer version of imageroot has written fetch jobs.
// Their checkpoints cannot be read.
func (inv *Inventory) NewerFetchJobs() bool {
	return len(inv.jobs[job.Fetch].LeftOut(record.ErrNewer)) > 0
}

// FailedJobs returns the failed jobs of these kinds whose end is the newest, at most that
// many.
func (inv *Inventory) FailedJobs(ctx context.Context, most int, kinds ...*job.Kind) ([]job.Job, error) {
	var failed []job.Job
	for _, kind := range kinds {
		k := inv.jobs[kind]
		k.mu.Lock()
		err := k.update(ctx)
		ordered, items, left := k.ordered, k.items, min(k.counts[job.Failed], most)
		k.mu.Unlock()
		if err != nil {
			return nil, err
		}
		for h := range ordered.All() {
			if left == 0 {
				break
			}
			if h.status != job.Failed {
				continue
			}
			left--
			if j, ok := items.Value(h.id); ok {
				failed = append(failed, j)
			}
		}
	}
	slices.SortStableFunc(failed, func(a, b job.Job) int { return b.FinishedAt.Compare(*a.FinishedAt) })
	return failed[:min(len(failed), most)], nil
}

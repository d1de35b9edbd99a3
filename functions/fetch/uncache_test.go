package fetch

import (
	"testing"

	"imageroot/shared/job"
)

// A request fetches dropped bytes again, also if the job that stored them had not ended when they were dropped.
func TestUncacheWhileFetching(t *testing.T) {
	t.Parallel()
	o := newOrigin(t, good(imageA))
	w := newWorld(t, o.url(), knows(imageA))
	w.enqueue()
	f := w.process("a", w.root)
	w.finish(f)
	w.enqueue()
	if err := f.Uncache(t.Context(), sum256(imageA)); err != nil {
		t.Fatal(err)
	}
	if j := w.job(); j.Status != job.Cancelled {
		t.Errorf("the job is %+v", j)
	}
	w.enqueue()
	w.finish(f)
	w.has(imageA)
}

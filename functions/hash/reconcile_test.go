package hash_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/functions/hash"
	"imageroot/shared/activity"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/queue/memqueue"
	"imageroot/shared/record"
	"imageroot/shared/store/memstore"
)

// After a kill and an immediate restart, the jobs are still running by their
// records. They resume when their leases lapse, before the next reconciliation.
func TestTakeoverAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "disk.img"
		ctx, stop := context.WithCancel(t.Context())
		log := slog.New(slog.DiscardHandler)
		images, catalog := memstore.New(), memstore.New()
		version, err := images.Put(ctx, name, strings.NewReader("abc"), 3)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // so that the object has settled
		const left = 20 * time.Second
		_, _, err = record.Change(ctx, catalog, layout.HashJobKey(name), func(j *job.Job, _ bool) error {
			now := time.Now()
			*j = job.Job{
				Name: name, Version: &version, Status: job.Running, Generation: 1, Attempt: 1,
				Owner: "killed", StartedAt: &now, LeaseUntil: now.Add(left),
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}

		inspections, work := memqueue.New(log), memqueue.New(log)
		m := metric.New()
		inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: time.Now, Log: log})
		observed := inv.ObserveCatalog(catalog)
		f := &hash.Function{
			Images: images, Catalog: observed, Bucket: "images", Inspections: inspections,
			Jobs: &job.Jobs{
				Records: observed, Owner: "started again", Now: time.Now, Queues: job.Queues{job.Hash: work},
				Activity: &activity.Log{Root: catalog, Now: time.Now, Log: log}, Metric: m, Log: log,
			},
			Inventory: inv, Metric: m, Workers: 1, Now: time.Now, Log: log,
		}
		for _, q := range []*memqueue.Queue{inspections, work} {
			go func() { _ = q.Receive(ctx, 1, f.Handle) }() // returns ctx's end
		}
		if err := f.Reconcile(ctx); err != nil {
			t.Fatal(err)
		}
		read := func() job.Job {
			t.Helper()
			j, _, err := record.Read[job.Job](ctx, catalog, layout.HashJobKey(name))
			if err != nil {
				t.Fatal(err)
			}
			return j
		}
		time.Sleep(left - time.Second)
		if j := read(); j.Owner != "killed" {
			t.Errorf("under another's lease the job became %+v", j)
		}
		time.Sleep(3 * time.Second)
		const want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // of "abc": FIPS 180-4
		if j := read(); j.Status != job.Completed || j.SHA256 != want || j.Attempt != 2 {
			t.Errorf("after the lease the job is %+v, want it completed as %s", j, want)
		}
		stop()
		synctest.Wait()
	})
}

package main

import (
	"context"
	"errors"
	"sync"
	"time"

	"imageroot/shared/job"
	"imageroot/shared/queue"
)

// serve runs the workers and the HTTP server until ctx ends or the server fails. Then it
// drains requests for at most drainTime, waits for jobs and cut-off requests for at most
// cutTime, writes the journal for at most cutTime, and closes the server.
func (s *server) serve(ctx context.Context) error {
	failed := make(chan error, 2)
	go func() { failed <- s.http.Serve(s.listener) }()
	if s.nbdListener != nil {
		go func() {
			if err := s.nbd.Serve(s.nbdListener); err != nil {
				failed <- err
			}
		}()
	}
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWork()
	var wg sync.WaitGroup
	for _, w := range s.workers {
		wg.Go(func() { _ = w.queue.Receive(work, w.parallel, w.handle) }) // returns work's end
	}
	answered := closed(func() { s.answerFirst(work) })
	wg.Go(func() { <-answered; s.reconcile(work) })
	wg.Go(func() { <-answered; s.events.poll(work) })
	wg.Go(func() { <-answered; s.exports.Run(work) })
	wg.Go(func() { <-answered; s.subscribe(work) })
	wg.Go(func() { s.listen(work) })
	wg.Go(func() { trim(work) })
	wg.Go(func() { s.kit.Inventory.Run(work) })
	wg.Go(func() { every(work, flushEvery, s.kit.Served.Flush) })
	wg.Go(func() { every(work, flushEvery, s.kit.Operator.Flush) })

	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	s.log.Info("stopping")
	stopWork() // jobs write their checkpoints while requests drain
	jobs := closed(wg.Wait)
	ctx = context.WithoutCancel(ctx)
	drain, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	disks := closed(func() { s.nbd.Shutdown(drain) })
	if s.http.Shutdown(drain) != nil {
		_ = s.http.Close()
	}
	<-disks
	end, cancelEnd := context.WithTimeout(ctx, cutTime)
	defer cancelEnd()
	if !isClosed(end, closed(s.requests.Lock)) {
		s.log.Warn("some requests did not end in time")
	}
	if !isClosed(end, jobs) {
		s.log.Warn("some jobs did not stop in time; they resume from their checkpoints at the next start")
	}
	last, cancelLast := context.WithTimeout(ctx, cutTime)
	defer cancelLast()
	s.kit.Served.Flush(last)
	s.kit.Operator.Flush(last)
	if err := s.kit.Inventory.Flush(last); err != nil {
		s.log.Warn("other processes learn what changed last when they reconcile", "error", err)
	}
	return errors.Join(err, s.stop())
}

// answerFirst returns when the catalog is in memory and no request is being answered, or
// after firstTime. What lists whole buckets begins then, so that the first requests need
// not share the processor with it.
func (s *server) answerFirst(ctx context.Context) {
	_, _ = s.kit.Inventory.Snapshot(ctx) // who needs it sees the error
	ctx, cancel := context.WithTimeout(ctx, firstTime)
	defer cancel()
	tick := time.NewTicker(firstTime / 100)
	defer tick.Stop()
	for !s.requests.TryLock() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	s.requests.Unlock()
}

// closed returns a channel that is closed once wait has returned.
func closed(wait func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	return done
}

// isClosed waits for done until ctx ends, and reports whether it is closed.
func isClosed(ctx context.Context, done <-chan struct{}) bool {
	select {
	case <-done:
	case <-ctx.Done():
	}
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// every calls f at intervals until ctx ends.
func every(ctx context.Context, interval time.Duration, f func(context.Context)) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f(ctx)
		}
	}
}

// reconcile enqueues a reconcile task at the start and every reconcileEvery, in which the
// functions compare their records with the roots, and a resume task every resumeEvery. It
// also restores buckets and sweeps old activity.
func (s *server) reconcile(ctx context.Context) {
	all, jobs := time.NewTicker(reconcileEvery), time.NewTicker(resumeEvery)
	defer all.Stop()
	defer jobs.Stop()
	var task queue.Task = queue.Reconcile{}
	for {
		for _, q := range []queue.Sender{s.queues.inspections, s.queues.jobs[job.Fetch], s.queues.assemblies} {
			_ = q.Send(ctx, task.Encode(), 0) // never fails
		}
		if task == (queue.Reconcile{}) {
			if err := s.kit.Activity.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old events stay for now", "error", err)
			}
			if err := s.kit.Served.Sweep(ctx); err != nil && ctx.Err() == nil {
				s.log.Warn("old records of deliveries stay for now", "error", err)
			}
		}
		select {
		case <-all.C:
			task = queue.Reconcile{}
		case <-jobs.C:
			task = queue.Resume{}
		case <-ctx.Done():
			return
		}
		s.restoreBuckets(ctx)
	}
}

// stop closes the listener and the gateway that start opened.
func (s *server) stop() error {
	if s.listener != nil {
		_ = s.listener.Close() // serve has usually closed it
	}
	if s.nbdListener != nil {
		_ = s.nbdListener.Close()
	}
	if s.gateway != nil {
		return s.gateway.Close()
	}
	return nil
}

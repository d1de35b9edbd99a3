package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"imageroot/test/runner"
)

const (
	mostMemory = 200 // MiB, under load
	idleMemory = 60
)

// memory measures the memory of the server while it receives an upload, hashes a file and
// fetches another at once, each of gigabytes.
func (b *bench) memory(ctx context.Context) error {
	upload, hash, fetch := b.scaled(8*gib), b.scaled(8*gib), b.scaled(4*gib)
	// Both are stored in parts and assembled into a second copy. A fetch without a known digest
	// is then copied to its key.
	if err := b.room(2*upload + 3*fetch); err != nil {
		return err
	}
	s, err := b.server(ctx, "memory")
	if err != nil {
		return err
	}
	defer s.remove()
	pause := 10 * time.Second
	if err := wait(ctx, pause); err != nil {
		return err
	}
	if err := b.idleMemory(ctx, s, fmt.Sprintf("idle, %v after the start", pause)); err != nil {
		return err
	}
	origin := publisher("", func() (io.ReadSeeker, func(), error) { return &zeros{size: fetch}, func() {}, nil })
	defer origin.Close()
	imageURL := origin.URL + "/large.img"
	if err := s.add(ctx, imageURL, false); err != nil {
		return err
	}
	if err := runner.ForgetPeak(s.PID()); err != nil {
		return err
	}
	if err := sparse(s.image("dropped.img"), hash); err != nil {
		return err
	}
	watched, stop := context.WithCancel(ctx)
	seen := make(chan float64, 1)
	go func() { seen <- watchMemory(watched, s.PID()) }()

	began := time.Now()
	var wg sync.WaitGroup
	errs := make([]error, 3)
	part := func(i int, name string, do func() error) {
		wg.Go(func() {
			errs[i] = do()
			b.say("%s done after %.0f s", name, time.Since(began).Seconds())
		})
	}
	part(0, "upload", func() error { return s.uploadZeros(ctx, "uploaded.img", upload) })
	part(1, "hash", func() error { _, err := s.completed(ctx, hashes, "dropped.img"); return err })
	part(2, "fetch", func() error {
		if _, err := s.do(ctx, http.MethodPost, "/catalog/downloads", map[string]string{"src": imageURL}); err != nil {
			return err
		}
		_, err := s.completed(ctx, downloads, "large.img")
		return err
	})
	wg.Wait()
	stop()
	sampled := <-seen
	if err := errors.Join(errs...); err != nil {
		return err
	}
	peak, err := runner.Memory(s.PID(), "VmHWM")
	if err != nil {
		return err
	}
	what := fmt.Sprintf("%s uploaded, %s hashed, %s fetched at once", formatBytes(upload), formatBytes(hash), formatBytes(fetch))
	b.report.absolute("memory", "peak, "+what, unitMiB, []float64{max(peak, sampled)}, atMost(mostMemory))
	pause = 30 * time.Second
	if err := wait(ctx, pause); err != nil {
		return err
	}
	return b.idleMemory(ctx, s, fmt.Sprintf("idle, %v after that", pause))
}

func (b *bench) idleMemory(ctx context.Context, s *server, what string) error {
	now, err := runner.Memory(s.PID(), "VmRSS")
	if err != nil {
		return err
	}
	b.report.absolute("memory", what, unitMiB, []float64{now}, atMost(idleMemory))
	// Log what the memory consists of.
	text := fmt.Sprintf("%s: %.1f MiB", what, now)
	for _, field := range []string{"RssAnon", "RssFile"} {
		part, err := runner.Memory(s.PID(), field)
		if err != nil {
			return err
		}
		text += fmt.Sprintf(", %s %.1f", field, part)
	}
	for _, name := range []string{"heap_alloc", "heap_idle", "heap_released", "stack_sys"} {
		bytes, err := s.metric(ctx, "go_memstats_"+name+"_bytes", "")
		if err != nil {
			return err
		}
		text += fmt.Sprintf(", %s %.1f", name, bytes/mib)
	}
	b.say("%s", text)
	return nil
}

// uploadZeros uploads an image of zeros.
func (s *server) uploadZeros(ctx context.Context, name string, size int64) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, s.Pages+"/images/"+name, &zeros{size: size})
	if err != nil {
		return err
	}
	req.ContentLength = size
	req.Header.Set("Authorization", "Bearer "+token)
	_, err = s.answer(req)
	return err
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"time"
)

const (
	// fetchedAgain is the most of a download that a kill may repeat, in MiB, with the overhead
	// of HTTP.
	fetchedAgain = 64 + 0.1
	// hashedAgain is the largest share of a file that a hash job killed at a half may read
	// afterwards.
	hashedAgain = 0.6
)

// resume kills the server in the middle of jobs and measures the work that is repeated.
func (b *bench) resume(ctx context.Context) error {
	if err := b.resumeFetch(ctx); err != nil {
		return err
	}
	return b.resumeHash(ctx)
}

// half returns the share of the work at which a round kills the server: about a half, at a
// different offset in a part each time.
func half(round int) float64 { return []float64{0.5, 0.44, 0.56}[round%3] }

func (b *bench) resumeFetch(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	if f, err = f.head(ctx, min(f.size, 512*mib)); err != nil {
		return err
	}
	origin := f.publish()
	defer origin.Close()
	l, err := openLink(origin.URL, 0) // slow enough to kill the server in the middle
	if err != nil {
		return err
	}
	defer l.close()
	s, err := b.server(ctx, "resume-fetch")
	if err != nil {
		return err
	}
	defer s.remove()
	imageURL := l.URL() + "/large.img"
	var again []float64
	for round := range b.rounds {
		if err := s.add(ctx, imageURL, true); err != nil {
			return err
		}
		before := l.delivered.Load()
		if _, err := s.do(ctx, http.MethodPost, "/catalog/downloads", map[string]string{"src": imageURL}); err != nil {
			return err
		}
		err := until(ctx, 10*time.Minute, time.Millisecond, "the middle of the download", func() (bool, error) {
			return float64(l.delivered.Load()-before) >= half(round)*float64(f.size), nil
		})
		if err != nil {
			return err
		}
		if err := s.Kill(); err != nil {
			return err
		}
		if err := s.start(ctx); err != nil {
			return err
		}
		j, err := s.completed(ctx, downloads, "large.img")
		if err != nil {
			return err
		}
		if j.Attempt != 2 || j.SHA256 != f.sha256 {
			return fmt.Errorf("job %+v, want the digest %s at the second attempt", j, f.sha256)
		}
		more := float64(l.delivered.Load()-before-f.size) / mib
		b.say("killed at %.0f %%: %.1f MiB came twice", 100*half(round), more)
		again = append(again, more)
		if err := s.forget(ctx, imageURL, f.sha256); err != nil {
			return err
		}
	}
	what := fmt.Sprintf("fetch of %s killed half way: bytes fetched again", formatBytes(f.size))
	b.report.absolute("resume", what, unitMiB, again, neverOver(fetchedAgain))
	return nil
}

func (b *bench) resumeHash(ctx context.Context) error {
	size := b.scaled(24 * gib) // sparse; seconds to hash
	s, err := b.server(ctx, "resume-hash")
	if err != nil {
		return err
	}
	defer s.remove()
	var again []float64
	for round := range b.rounds {
		name := fmt.Sprintf("vast-%d.img", round)
		before, err := s.metric(ctx, "imageroot_bytes_hashed_total", "")
		if err != nil {
			return err
		}
		if err := sparse(s.image(name), size); err != nil {
			return err
		}
		err = until(ctx, 10*time.Minute, 5*time.Millisecond, "the middle of the hash", func() (bool, error) {
			now, err := s.metric(ctx, "imageroot_bytes_hashed_total", "")
			return now-before >= half(round)*float64(size), err
		})
		if err != nil {
			return err
		}
		if err := s.Kill(); err != nil {
			return err
		}
		if err := s.start(ctx); err != nil {
			return err
		}
		j, err := s.completed(ctx, hashes, name)
		if err != nil {
			return err
		}
		if j.Attempt != 2 {
			return fmt.Errorf("job %+v, want a second attempt", j)
		}
		rest, err := s.metric(ctx, "imageroot_bytes_hashed_total", "")
		if err != nil {
			return err
		}
		// Correct the share for a kill at exactly a half.
		share := rest/float64(size) + half(round) - 0.5
		b.say("killed at %.0f %%: %.1f %% hashed afterwards", 100*half(round), 100*rest/float64(size))
		again = append(again, share)
		if err := os.Remove(s.image(name)); err != nil {
			return err
		}
		if err := s.idle(ctx); err != nil { // the check has ended, too
			return err
		}
	}
	what := fmt.Sprintf("hash of %s killed half way: bytes hashed afterwards", formatBytes(size))
	b.report.absolute("resume", what, unitShare, again, neverOver(hashedAgain))
	return nil
}

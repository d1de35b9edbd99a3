package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"time"
)

// publisher serves one file and its sidecar on loopback. open returns the file for each
// request.
func publisher(sha256 string, open func() (io.ReadSeeker, func(), error)) *httptest.Server {
	mux := http.NewServeMux()
	modified := time.Now().Add(-time.Hour)
	mux.HandleFunc("GET /large.img", func(w http.ResponseWriter, r *http.Request) {
		f, done, err := open()
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		defer done()
		w.Header().Set("ETag", `"one"`)
		http.ServeContent(w, r, "large.img", modified, f)
	})
	mux.HandleFunc("GET /large.img.sha256", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, sha256+"  large.img\n")
	})
	return httptest.NewServer(mux)
}

// publish serves the sample.
func (s *sample) publish() *httptest.Server {
	return publisher(s.sha256, func() (io.ReadSeeker, func(), error) {
		f, err := os.Open(s.path)
		return io.NewSectionReader(f, 0, s.size), func() { f.Close() }, err
	})
}

// add adds an entry by URL, with the sidecar's URL if known is true.
func (s *server) add(ctx context.Context, imageURL string, known bool) error {
	in := map[string]string{"image_url": imageURL}
	if known {
		in["sha_url"] = imageURL + ".sha256"
	}
	_, err := s.do(ctx, http.MethodPost, "/catalog/entries", in)
	return err
}

// forget removes an entry and its blob.
func (s *server) forget(ctx context.Context, imageURL, sha256 string) error {
	if _, err := s.do(ctx, http.MethodDelete, "/catalog/cache/"+sha256, nil); err != nil {
		return err
	}
	_, err := s.do(ctx, http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(imageURL), nil)
	return err
}

// fetchOnce fetches an entry. It returns the seconds until the client sees the job completed,
// and how many of them follow the arrival of the last byte.
func (s *server) fetchOnce(ctx context.Context, imageURL string, want *sample) (took, after float64, err error) {
	began := time.Now()
	if _, err := s.do(ctx, http.MethodPost, "/catalog/downloads", map[string]string{"src": imageURL}); err != nil {
		return 0, 0, err
	}
	var came time.Time
	j, err := s.ended(ctx, downloads, "large.img", func(j job) {
		if came.IsZero() && j.Downloaded == want.size {
			came = time.Now()
		}
	})
	end := time.Now()
	if err == nil && j.SHA256 != want.sha256 {
		err = fmt.Errorf("fetched %s, want %s", j.SHA256, want.sha256)
	}
	return end.Sub(began).Seconds(), end.Sub(came).Seconds(), err
}

// fetch compares a fetch job with curl and sha256sum, and with downloads that are synced but
// not hashed, from the same loopback web server.
func (b *bench) fetch(ctx context.Context) error {
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	// The object, and a copy if its digest is not known.
	if err := b.room(2 * f.size); err != nil {
		return err
	}
	origin := f.publish()
	defer origin.Close()
	s, err := b.server(ctx, "fetch")
	if err != nil {
		return err
	}
	defer s.remove()
	imageURL := origin.URL + "/large.img"
	for _, known := range []bool{true, false} {
		var afterwards, used []float64
		ours := func(int) (float64, error) {
			if err := s.add(ctx, imageURL, known); err != nil {
				return 0, err
			}
			if err := s.idle(ctx); err != nil {
				return 0, err
			}
			if err := settle(f.path); err != nil {
				return 0, err
			}
			before, err := cpuTime(s.PID())
			if err != nil {
				return 0, err
			}
			took, after, err := s.fetchOnce(ctx, imageURL, f)
			if err != nil {
				return 0, err
			}
			now, err := cpuTime(s.PID())
			if err != nil {
				return 0, err
			}
			afterwards = append(afterwards, after)
			used = append(used, (now-before).Seconds()*gib/float64(f.size))
			return took, s.forget(ctx, imageURL, f.sha256)
		}
		var synced, split []float64
		peer := func(int) (float64, error) {
			both, sum, err := b.download(ctx, f, []string{"curl", "-sS", "--fail", "-o", b.path("peer.img"), imageURL})
			if err != nil {
				return 0, err
			}
			synced = append(synced, both.whole())
			eight, _, err := b.download(ctx, f, []string{"aria2c", "-q", "-x8", "-s8", "--allow-overwrite=true", "-d", b.dir, "-o", "peer.img", imageURL})
			split = append(split, eight.whole())
			return both.came + sum, err
		}
		o, p, err := b.turns(ours, peer)
		if err != nil {
			return err
		}
		what := formatBytes(f.size) + ", SHA-256 known"
		if !known {
			what = formatBytes(f.size) + ", SHA-256 not known"
		}
		mine := series{"imageroot", unitSeconds, o}
		b.report.longer("fetch", what, mine, series{"curl -o; sha256sum", unitSeconds, p}, atMost(1))
		b.report.longer("fetch", what, mine, series{"curl -o; sync", unitSeconds, synced}, atMost(1.1))
		b.report.longer("fetch", what, mine, series{"aria2c -x8; sync", unitSeconds, split}, nil)
		b.report.absolute("fetch", what+": processor time for 1 GiB", unitSeconds, used, atMost(2))
		b.report.absolute("fetch", what+": of that, after the last byte", unitSeconds, afterwards, nil)
	}
	return nil
}

// A download has the seconds that a client took for a file, and those of the fsync that then
// makes the file durable, as imageroot's is.
type download struct{ came, synced float64 }

func (d download) whole() float64 { return d.came + d.synced }

// download runs a client that writes the sample to peer.img, syncs that, and returns the seconds
// that sha256sum then takes for it.
func (b *bench) download(ctx context.Context, of *sample, client []string) (d download, sum float64, err error) {
	if err := settle(of.path); err != nil {
		return d, 0, err
	}
	path := b.path("peer.img")
	defer os.Remove(path)
	if d.came, err = (tool{args: client}).time(ctx, b.dir); err != nil {
		return d, 0, err
	}
	began := time.Now()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return d, 0, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return d, 0, err
	}
	d.synced = time.Since(began).Seconds()
	var out strings.Builder
	sum, err = tool{args: []string{"sha256sum", path}, out: &out}.time(ctx, b.dir)
	if err == nil && !strings.Contains(out.String(), of.sha256) {
		err = fmt.Errorf("sha256sum says %s, want %s", out.String(), of.sha256)
	}
	return d, sum, err
}

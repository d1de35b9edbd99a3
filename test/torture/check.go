package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

const (
	// rest is the longest time for all work to end: a lease, a poll that finds the work, and
	// the work itself.
	rest = 90 * time.Second
	// maxResidentMiB is the memory budget of the runner.
	maxResidentMiB = 200
)

// check waits until no work is left and checks the invariants. It checks them again after
// another start, and checks that files old enough have been swept.
func (w *world) check(ctx context.Context) {
	for _, n := range w.nodes() {
		if n.gone() {
			w.violate("runner %d ended by itself", n.number)
		}
	}
	w.publisher.polite.Store(true)
	c := &client{world: w, number: -1, rng: w.random(3)}
	w.settled(ctx, c)
	w.state(ctx, c)
	w.goesOn(ctx, c)
	if mib, err := w.first.residentMiB(); err != nil {
		w.violate("memory: %v", err)
	} else if w.count("memory", fmt.Sprintf("%d MiB resident at the end, of %d", mib, maxResidentMiB)); mib > maxResidentMiB && !w.race {
		w.violate("the runner has %d MiB resident", mib)
	}
	w.did("kill runner 1", w.first.kill())
	w.start(ctx, w.first)
	w.settled(ctx, c)
	w.state(ctx, c)
	w.agree(ctx, c)
	for _, n := range w.others {
		w.did(fmt.Sprintf("stop runner %d", n.number), n.stop())
	}
	w.leftOver(ctx, c)
	w.logs()
	for range w.unnoted {
		w.count("resumable upload", "put together and not noted")
	}
}

// poll calls check until it returns nil. After limit, the last error is a violation.
func (w *world) poll(ctx context.Context, limit time.Duration, what string, check func() error) {
	begin := time.Now()
	for {
		err := check()
		if err == nil {
			w.trace("%s after %s", what, time.Since(begin))
			return
		}
		if time.Since(begin) > limit || ctx.Err() != nil {
			w.violate("not within %s: %s: %v", limit, what, err)
			return
		}
		pause(ctx, 250*time.Millisecond)
	}
}

// A row is a row of the catalog, as the API returns it.
type row struct {
	SHA256    *string  `json:"sha256"`
	Names     []string `json:"names"`
	Size      *int64   `json:"size_bytes"`
	Cached    bool     `json:"cached"`
	HashState string   `json:"hash_state"`
	Warnings  []string `json:"warnings"`
	Sources   []struct {
		Kind     string `json:"kind"`
		Location string `json:"location"`
	} `json:"sources"`
}

func (w *world) rows(ctx context.Context, c *client) ([]row, []string, error) {
	var all []row
	var warnings []string
	cursor := ""
	for {
		var page struct {
			Images   []row    `json:"images"`
			Next     *string  `json:"next"`
			Warnings []string `json:"warnings"`
		}
		path := "/catalog?limit=500"
		if cursor != "" {
			path += "&cursor=" + url.QueryEscape(cursor)
		}
		status, err := c.sendJSON(ctx, w.first, http.MethodGet, path, nil, &page)
		if err != nil || status != http.StatusOK {
			return nil, nil, fmt.Errorf("GET %s: %s", path, brief(status, err))
		}
		all = append(all, page.Images...)
		warnings = page.Warnings
		if page.Next == nil {
			return all, warnings, nil
		}
		cursor = *page.Next
	}
}

// settled waits until no work is left: no job is queued or running, no upload is being
// assembled, and every image is hashed.
func (w *world) settled(ctx context.Context, c *client) {
	w.poll(ctx, rest, "all jobs at rest", func() error {
		var l jobs
		for _, path := range []string{"/catalog/hashes", "/catalog/downloads"} {
			var some jobs
			status, err := c.sendJSON(ctx, w.first, http.MethodGet, path, nil, &some)
			if err != nil || status != http.StatusOK {
				return fmt.Errorf("GET %s: %s", path, brief(status, err))
			}
			l.Hashes, l.Downloads = append(l.Hashes, some.Hashes...), append(l.Downloads, some.Downloads...)
		}
		for _, j := range append(l.Hashes, l.Downloads...) {
			// A source that sends nothing keeps its job until it is cancelled.
			if strings.HasPrefix(j.Name, "stalls-") && j.active() {
				_, _ = c.sendJSON(ctx, w.first, http.MethodDelete, "/catalog/downloads/"+url.PathEscape(j.Name), nil, nil)
			}
			if j.active() {
				return fmt.Errorf("job of %q (%s) is %s, attempt %d: %s", j.Name, j.Src, j.Status, j.Attempt, j.Error)
			}
		}
		var u struct {
			Uploads []struct{ ID, Name, Status string } `json:"uploads"`
		}
		status, err := c.sendJSON(ctx, w.first, http.MethodGet, "/uploads", nil, &u)
		if err != nil || status != http.StatusOK {
			return fmt.Errorf("GET /uploads: %s", brief(status, err))
		}
		for _, up := range u.Uploads {
			if up.Status != "completing" {
				continue
			}
			there, err := w.hasParts(ctx, up.ID)
			if err != nil {
				return err
			}
			if there {
				return fmt.Errorf("upload %s of %q is being put together", up.ID, up.Name)
			}
			// It was assembled and then replaced, and the runner was killed before it
			// recorded that. The record counts as an assembly in progress for a while.
			w.note(&w.unnoted, up.ID)
		}
		return nil
	})
	asked := map[string]bool{}
	w.poll(ctx, rest, "all images hashed", func() error {
		rows, _, err := w.rows(ctx, c)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if len(r.Sources) == 0 || r.Sources[0].Kind != "local" || r.HashState == "hashed" {
				continue
			}
			// A cancelled job starts again only on request.
			if name := r.Names[0]; w.noted(&w.cancelled, name) && !asked[name] {
				asked[name] = true
				_, _ = c.sendJSON(ctx, w.first, http.MethodPost, "/catalog/hashes", map[string]any{"name": name}, nil)
			}
			return fmt.Errorf("%q is %s", r.Names[0], r.HashState)
		}
		return nil
	})
}

// hasParts reports whether the store has parts of a resumable upload.
func (w *world) hasParts(ctx context.Context, id string) (bool, error) {
	u, _, err := record.Read[pendingUpload](ctx, w.catalog, layout.UploadKey(id))
	if err != nil {
		return false, err
	}
	_, err = w.images.ListParts(ctx, store.Key(u.Name), u.UploadID)
	if errors.Is(err, store.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// state compares all that can be read with all that was written.
func (w *world) state(ctx context.Context, c *client) {
	if status, err := c.sendJSON(ctx, w.first, http.MethodGet, "/readyz", nil, nil); err != nil || status != http.StatusOK {
		w.violate("/readyz: %s", brief(status, err))
	}
	sums := w.stateImages(ctx, c)
	w.stateRecords(ctx, sums)
	w.stateRows(ctx, c, sums)
	w.stateBlobs(ctx, c)
}

// stateImages reads every image by name and by SHA-256, over HTTP, over S3 and from the
// disk, and returns the SHA-256 of each name.
func (w *world) stateImages(ctx context.Context, c *client) map[string]string {
	sums := map[string]string{}
	entries, err := os.ReadDir(filepath.Join(w.dir, "data", "images"))
	if err != nil {
		w.violate("%v", err)
	}
	names := w.model.names()
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) && e.Name()[0] != '.' {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	for _, name := range names {
		observed := absent
		if f, err := os.Open(w.imageFile(name)); err == nil {
			observed = hexOf(f)
			_ = f.Close()
		}
		if err := w.model.explain(name, observed); err != nil {
			w.violate("%v", err)
		}
		if observed != absent {
			sums[name] = observed
		}
		if body, _, err := w.images.Get(ctx, store.Key(name), store.All, ""); err == nil {
			if got := hexOf(body); got != observed {
				w.violate("S3 gives %s for %q, the file has %s", got, name, observed)
			}
			_ = body.Close()
		} else if observed != absent || !errors.Is(err, store.ErrNotFound) {
			w.violate("S3 get of %q (%s): %v", name, observed, err)
		}
		if name == manifestName {
			continue
		}
		w.servedAs(ctx, c, name, observed)
		if observed != absent {
			w.servedAs(ctx, c, observed, observed)
		}
	}
	return sums
}

// servedAs checks the response to GET /images/{key}.
func (w *world) servedAs(ctx context.Context, c *client, key, want string) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, w.first.pages+imagePath(key), nil)
	if err != nil {
		w.violate("%v", err)
		return
	}
	res, err := c.http.Do(req)
	if err != nil {
		w.violate("GET %q: %v", key, err)
		return
	}
	defer res.Body.Close()
	got := absent
	if res.StatusCode == http.StatusOK {
		got = hexOf(res.Body)
	}
	said, hashed := reprDigest(res.Header)
	if got != want || want != absent && (!hashed || said != want) {
		w.violate("GET %q gives %s (%s, Repr-Digest %q), want %s", key, got, res.Status, res.Header.Get("Repr-Digest"), want)
	}
}

func hexOf(r io.Reader) string {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "unreadable: " + err.Error()
	}
	return hex.EncodeToString(h.Sum(nil))
}

// stateRecords compares digest records with the bytes, and reports records of missing
// objects.
func (w *world) stateRecords(ctx context.Context, sums map[string]string) {
	for info, err := range w.catalog.List(ctx, layout.DigestPrefix, "") {
		if err != nil {
			w.violate("list digests: %v", err)
			return
		}
		name, ok := layout.DigestName(info.Key)
		if !ok {
			w.violate("a key that is no digest record's: %q", info.Key)
			continue
		}
		rec, _, err := record.Read[digest.Record](ctx, w.catalog, info.Key)
		if err != nil {
			w.violate("%v", err)
			continue
		}
		now, err := w.images.Head(ctx, layout.ImageKey(name))
		switch {
		case errors.Is(err, store.ErrNotFound):
			w.violate("there is a digest record of %q, and no such image", name)
		case err != nil:
			w.violate("%v", err)
		case !now.Equal(rec.Version):
			w.violate("the digest record of %q is of %+v, the image is %+v", name, rec.Version, now.Version)
		case string(rec.SHA256) != sums[string(name)]:
			w.violate("the digest record of %q (by %s) says %s, the bytes of that version have %s", name, rec.By, rec.SHA256, sums[string(name)])
		}
	}
}

// stateRows compares the catalog with the bytes.
func (w *world) stateRows(ctx context.Context, c *client, sums map[string]string) {
	rows, warnings, err := w.rows(ctx, c)
	if err != nil {
		w.violate("%v", err)
		return
	}
	local := map[string]bool{}
	for _, r := range rows {
		for _, s := range r.Sources {
			if s.Kind != "local" {
				continue
			}
			local[s.Location] = true
			if r.SHA256 == nil || *r.SHA256 != sums[s.Location] {
				w.violate("the catalog says %v of %q, which has %s", value(r.SHA256), s.Location, sums[s.Location])
			}
		}
	}
	for name := range sums {
		if image.Name(name).Valid() && !local[name] {
			w.violate("the catalog does not have %q", name)
		}
	}
	sum, there := sums[manifestName]
	_, good := w.goodManifests.Load(sum)
	if bad := there && !good; bad != (len(warnings) > 0) {
		w.violate("the manifest is bad: %t, and the catalog warns: %q", bad, warnings)
	}
}

func value(s *string) string {
	if s == nil {
		return "nothing"
	}
	return *s
}

// stateBlobs compares blobs with their keys, with the contents of the publisher, and with
// the fetch jobs.
func (w *world) stateBlobs(ctx context.Context, c *client) {
	blobs := map[string]bool{}
	entries, err := os.ReadDir(filepath.Join(w.dir, "data", "catalog", "blobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.violate("%v", err)
	}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(w.dir, "data", "catalog", "blobs", e.Name()))
		if err != nil {
			w.violate("%v", err)
			continue
		}
		sum := hexOf(f)
		_ = f.Close()
		if sum != e.Name() {
			w.violate("the blob %s has the SHA-256 %s", e.Name(), sum)
		}
		blobs[sum] = true
		if !slices.ContainsFunc(w.publisher.sources, func(s *source) bool { return s.has(sum) }) {
			w.violate("the blob %s was never published as a whole", sum)
		}
	}
	var l jobs
	if status, err := c.sendJSON(ctx, w.first, http.MethodGet, "/catalog/downloads", nil, &l); err != nil || status != http.StatusOK {
		w.violate("GET /catalog/downloads: %s", brief(status, err))
	}
	for _, j := range l.Downloads {
		s := w.sourceAt(j.Src)
		w.count("fetch jobs at the end", j.Status)
		if j.Status == "failed" {
			w.trace("fetch of %s failed: %s", j.Src, j.Error)
		}
		if j.Status != "completed" || s == nil {
			continue
		}
		switch {
		case s.neverCompletes:
			w.violate("the fetch of %s completed as %s", j.Src, j.SHA256)
		case !s.has(j.SHA256):
			w.violate("the fetch of %s completed as %s, which it never was", j.Src, j.SHA256)
		case !blobs[j.SHA256] && !w.mayBeGone(j.SHA256):
			w.violate("the fetch of %s completed as %s, and its bytes are not there", j.Src, j.SHA256)
		}
	}
}

// mayBeGone reports whether a client dropped the blob or deleted an entry with its bytes.
func (w *world) mayBeGone(sum string) bool {
	if w.noted(&w.dropped, sum) {
		return true
	}
	return slices.ContainsFunc(w.publisher.sources, func(s *source) bool { return s.has(sum) && w.noted(&w.deleted, s.path) })
}

func (w *world) sourceAt(src string) *source {
	for _, s := range w.publisher.sources {
		if w.publisher.url(s) == src {
			return s
		}
	}
	return nil
}

// goesOn checks that entries can be added and fetched at the end of the run.
func (w *world) goesOn(ctx context.Context, c *client) {
	// The sources of a bad manifest are unknown, so that no blob would be swept. The blobs of
	// a good one are kept without a fetch.
	const empty = "version = 1\n"
	if how := c.replaceManifest(ctx, w.first, empty, &content{size: int64(len(empty)), sum: sumOf(empty)}); how != "done" {
		w.violate("replacing the manifest: %s", how)
	}
	for _, s := range w.publisher.sources {
		in := map[string]any{"image_url": w.publisher.url(s), "refresh": true}
		if s.shaURL != "" {
			in["sha_url"] = s.shaURL
		}
		status, err := c.sendJSON(ctx, w.first, http.MethodPost, "/catalog/entries", in, nil)
		if err != nil || status != http.StatusCreated && status != http.StatusOK {
			w.violate("adding %s: %s", s.path, brief(status, err))
		}
		if !s.honest {
			continue
		}
		status, err = c.sendJSON(ctx, w.first, http.MethodPost, "/catalog/downloads", map[string]any{"src": w.publisher.url(s)}, nil)
		if err != nil || status != http.StatusAccepted {
			w.violate("fetching %s: %s", s.path, brief(status, err))
		}
	}
	w.settled(ctx, c)
	for _, s := range w.publisher.sources {
		if s.honest {
			w.servedAs(ctx, c, s.contents[0].sum, s.contents[0].sum)
		}
	}
	w.stateBlobs(ctx, c)
}

// pendingUpload has the fields of an upload's record that are used here.
type pendingUpload struct {
	record.Meta
	Name     string `json:"name"`
	UploadID string `json:"upload_id"`
	Status   string `json:"status"`
}

// leftOver checks that no file is left over. First it reports files that no sweep would ever
// remove. Then it makes parts, staged objects, blobs and their records older than a week,
// starts the runner, and reports those that its sweep should have removed.
func (w *world) leftOver(ctx context.Context, c *client) {
	w.did("stop runner 1", w.first.stop())
	const age = 8 * 24 * time.Hour
	old := time.Now().Add(-age)
	data := filepath.Join(w.dir, "data")
	err := filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(data, path)
		if d.Type().IsRegular() && !expected(rel) {
			w.violate("left over: %s", rel)
		}
		inUploads := strings.Contains(rel, "/.sgwtmp/multipart/") // and parts: the last one counts
		if inUploads || strings.HasPrefix(rel, "catalog/staging/") || strings.HasPrefix(rel, "catalog/blobs/") || strings.HasPrefix(rel, "catalog/fetched/") {
			return os.Chtimes(path, old, old)
		}
		return nil
	})
	if err != nil {
		w.violate("%v", err)
	}
	w.start(ctx, w.first)
	limit := 30 * time.Second
	w.poll(ctx, limit, "the sweep of uploads", func() error {
		named := map[string]bool{}
		for info, err := range w.catalog.List(ctx, layout.UploadPrefix, "") {
			if err != nil {
				return err
			}
			u, _, err := record.Read[pendingUpload](ctx, w.catalog, info.Key)
			if err != nil {
				return err
			}
			if u.Status == "uploading" {
				named[u.UploadID] = true
			}
		}
		for u, err := range w.images.PendingUploads(ctx, "") {
			if err != nil {
				return err
			}
			if !named[u.ID] {
				_, foreign := w.foreign.Load(u.ID)
				return fmt.Errorf("upload %s of image %q, begun %s (by an S3 client: %t)", u.ID, u.Key, u.Initiated, foreign)
			}
		}
		for u, err := range w.catalog.PendingUploads(ctx, "") {
			if err != nil {
				return err
			}
			return fmt.Errorf("upload %s of %q, begun %s", u.ID, u.Key, u.Initiated)
		}
		for info, err := range w.catalog.List(ctx, layout.StagingPrefix, "") {
			if err != nil {
				return err
			}
			return fmt.Errorf("%s of %d bytes", info.Key, info.Size)
		}
		return nil
	})
	w.poll(ctx, limit, "the sweep of blobs", func() error {
		rows, _, err := w.rows(ctx, c)
		if err != nil {
			return err
		}
		known := map[string]bool{}
		for _, r := range rows {
			known[value(r.SHA256)] = true
		}
		for info, err := range w.catalog.List(ctx, layout.BlobPrefix, "") {
			if err != nil {
				return err
			}
			if sha, _ := layout.BlobSHA256(info.Key); !known[string(sha)] {
				return fmt.Errorf("the blob %s is of no row", sha)
			}
		}
		return nil
	})
	for _, s := range w.publisher.sources {
		if s.honest {
			w.servedAs(ctx, c, s.contents[0].sum, s.contents[0].sum)
		}
	}
}

// expected reports whether a file may be in DATA after a start: an object, a part of an
// upload, the credentials or a lock.
func expected(rel string) bool {
	dir, name, _ := strings.Cut(rel, "/")
	switch {
	case dir == ".vgwlocks", rel == credentialsFile:
		return true
	case dir != "images" && dir != "catalog", strings.HasSuffix(rel, ".part"):
		return false
	case strings.HasPrefix(name, ".sgwtmp/multipart/"):
		parts := strings.Split(name, "/")
		return len(parts) == 5 && !strings.Contains(parts[3], ".") // HASH/ID/NUMBER
	}
	return !strings.HasPrefix(name, ".")
}

// logs reports panics, data races and secrets in the logs, and counts logged errors.
func (w *world) logs() {
	for _, n := range w.nodes() {
		bad := 0
		for line := range strings.SplitSeq(n.logs(), "\n") {
			switch {
			case strings.Contains(line, "panic"), strings.Contains(line, "DATA RACE"), strings.HasPrefix(line, "goroutine "),
				strings.Contains(line, "superfluous response.WriteHeader"):
				if bad++; bad <= 3 {
					w.violate("the log of runner %d has: %.700s", n.number, line)
				}
			case strings.Contains(line, token), strings.Contains(line, secretKey), strings.Contains(line, password):
				w.violate("the log of runner %d has a secret", n.number)
			case strings.Contains(line, "level=ERROR"):
				w.count("errors logged", fmt.Sprintf("runner %d", n.number))
				w.trace("runner %d logged: %s", n.number, line)
			}
		}
	}
}

package inventory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"imageroot/shared/index"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/store"
)

// manifestFile reads the operator's manifest. If that has an error, it uses the copy of
// the last good one in the catalog root.
type manifestFile struct {
	images, catalog store.Root
	log             *slog.Logger

	mu      sync.Mutex
	version store.Version
	known   bool // version is of the manifest that was read
	parsed  *manifest.Manifest
	problem string
	// forgotten says that neither a manifest nor a copy of one exists.
	forgotten bool
}

// read returns the manifest to use (nil if there is none) and the problem of the one in
// the image root. Both are the same while the object is.
func (f *manifestFile) read(ctx context.Context, images index.Items[store.Key, struct{}]) (*manifest.Manifest, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, ok := images.Info(layout.ManifestKey)
	if !ok {
		f.parsed, f.problem, f.known = nil, "", false
		f.forget(ctx)
		return nil, "", nil
	}
	if f.known && f.version.Equal(info.Version) {
		return f.parsed, f.problem, nil
	}
	data, err := readManifest(ctx, f.images)
	if errors.Is(err, store.ErrNotFound) {
		return f.parsed, f.problem, nil // being removed
	}
	var m *manifest.Manifest
	if err == nil {
		m, err = manifest.Parse(data)
		if err != nil {
			f.problem = fmt.Sprintf("%s is not in force: %v", layout.ManifestKey, err)
			f.parsed, err = f.lastGood(ctx)
			if f.parsed != nil {
				f.problem += ". The last good one is used until this is fixed."
			}
		} else {
			f.parsed, f.problem = m, ""
			f.keep(ctx, data)
		}
	} else if errors.Is(err, errTooLarge) {
		f.problem = string(layout.ManifestKey) + " is not in force: " + err.Error()
		f.parsed, err = f.lastGood(ctx)
	}
	if err != nil {
		return nil, "", err
	}
	f.version, f.known, f.forgotten = info.Version, true, false
	return f.parsed, f.problem, nil
}

var errTooLarge = fmt.Errorf("it is larger than %d bytes", manifest.MaxBytes)

func readManifest(ctx context.Context, images store.Objects) ([]byte, error) {
	body, info, err := images.Get(ctx, layout.ManifestKey, store.All, "")
	if err != nil {
		return nil, err
	}
	defer body.Close()
	if info.Size > manifest.MaxBytes {
		return nil, errTooLarge
	}
	return io.ReadAll(io.LimitReader(body, manifest.MaxBytes))
}

func (f *manifestFile) lastGood(ctx context.Context) (*manifest.Manifest, error) {
	data, _, err := f.catalog.ReadRecord(ctx, layout.GoodManifestKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		f.log.Error("the copy of the last good manifest does not parse", "error", err)
		return nil, nil
	}
	return m, nil
}

// forget removes the copy of a removed manifest, so that a later manifest with an error
// does not restore it.
func (f *manifestFile) forget(ctx context.Context) {
	if f.forgotten {
		return
	}
	if err := f.catalog.Delete(ctx, layout.GoodManifestKey); err != nil && !errors.Is(err, store.ErrNotFound) {
		f.log.Warn("cannot remove the copy of a removed manifest", "error", err)
		return
	}
	f.forgotten = true
}

// keep copies a good manifest to the catalog root. It only logs a failure: the manifest
// is used without the copy.
func (f *manifestFile) keep(ctx context.Context, data []byte) {
	old, tag, err := f.catalog.ReadRecord(ctx, layout.GoodManifestKey)
	switch {
	case errors.Is(err, store.ErrNotFound):
		_, err = f.catalog.CreateRecord(ctx, layout.GoodManifestKey, data)
	case err == nil && string(old) != string(data):
		_, err = f.catalog.ReplaceRecord(ctx, layout.GoodManifestKey, data, tag)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		f.log.Warn("cannot copy the manifest", "error", err)
	}
}

// A Subscription says what became of reading the manifest at a URL.
type Subscription struct {
	ReadAt  time.Time // when it was read last; zero: not since the start
	Problem string    // why it could not be read since then, or ""
}

// Subscribed has the following snapshots say what became of reading the manifest.
func (inv *Inventory) Subscribed(s Subscription) {
	inv.mu.Lock()
	defer inv.mu.Unlock()
	inv.subscription = s
}

// ManifestTime returns when the manifest was read from the URL of a subscription, or else
// written to the image root. It returns false if there is none.
func (s *Snapshot) ManifestTime() (time.Time, bool) {
	if t := s.in.subscription.ReadAt; !t.IsZero() {
		return t, true
	}
	info, ok := s.in.images.Info(layout.ManifestKey)
	return info.LastModified, ok
}

// ManifestProblem returns why a manifest is not in force, that in the image root
// ([Snapshot.Problem]) or that of a subscription, or "".
func (s *Snapshot) ManifestProblem() string {
	return cmp.Or(s.Problem, s.in.subscription.Problem)
}

// ManifestWarnings returns the warnings about the manifest that is in force.
func (s *Snapshot) ManifestWarnings() (warnings []string) {
	if s.in.manifest != nil {
		for _, w := range s.in.manifest.Warnings {
			warnings = append(warnings, w.String())
		}
	}
	return warnings
}

package catalog

import (
	"bytes"
	"context"
	"errors"
	"io"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/manifest"
	"imageroot/shared/problem"
	"imageroot/shared/store"
)

// Subscribe has the manifest that read returns as the operator's manifest. It reads it now
// and then every so often, until ctx ends; after a failure, it reads it again after a
// minute, then after two, and so on. A manifest that cannot be read, or has an error, leaves
// the one that there is in force. Several processes may do this at once.
func (f *Function) Subscribe(ctx context.Context, every time.Duration, read func(context.Context) ([]byte, error)) {
	const soon = time.Minute
	again := soon
	var known inventory.Subscription
	for {
		err := f.follow(ctx, read)
		if ctx.Err() != nil {
			return
		}
		wait := every
		if err == nil {
			again = soon
			known = inventory.Subscription{ReadAt: f.Now().UTC().Truncate(time.Second)}
		} else {
			wait = min(again, every)
			again = 2 * wait
			failure := "the manifest at " + f.ManifestURL + " is not in force: " + err.Error()
			if failure != known.Problem { // once
				f.Log.Error("the manifest of the subscription is not in force", "url", f.ManifestURL, "error", err)
			}
			known.Problem = failure
		}
		f.Inventory.Subscribed(known)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// follow replaces the manifest by the one that read returns, unless they are equal.
func (f *Function) follow(ctx context.Context, read func(context.Context) ([]byte, error)) error {
	data, err := read(ctx)
	if err != nil {
		return err
	}
	m, err := manifest.Parse(data)
	if err != nil {
		return err
	}
	old, err := f.storedManifest(ctx)
	if err != nil || bytes.Equal(old, data) {
		return err
	}
	if _, err := f.Images.Put(ctx, layout.ManifestKey, bytes.NewReader(data), int64(len(data))); err != nil && !errors.Is(err, store.ErrChanged) {
		return err
	}
	for _, w := range m.Warnings {
		f.Log.Warn("the manifest of the subscription", "url", f.ManifestURL, "warning", w.String())
	}
	f.Activity.Add(ctx, activity.Event{
		Kind: activity.ManifestReplaced, SubjectKind: activity.SubjectCatalog, SubjectID: string(layout.ManifestKey), Actor: activity.System,
		Summary: "replaced the manifest by the one at " + f.ManifestURL, Details: map[string]any{"images": len(m.Images)},
	})
	return nil
}

// storedManifest returns the manifest in the image root, or nil if there is none. One that
// is too long is cut.
func (f *Function) storedManifest(ctx context.Context) ([]byte, error) {
	body, _, err := f.Images.Get(ctx, layout.ManifestKey, store.All, "")
	if notFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, maxManifestBody))
}

// subscribed returns the problem of a request that would change a manifest that a
// subscription replaces, or nil.
func (f *Function) subscribed() error {
	if f.ManifestURL == "" {
		return nil
	}
	return problem.New(problem.Conflict, "the manifest is the one at "+f.ManifestURL+" (IMAGEROOT_MANIFEST_URL): change it there")
}

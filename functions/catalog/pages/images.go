package pages

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/templates"
)

const (
	// pageEvents is the number of events on the page of images.
	pageEvents = 10
	// eventsAge is how long they are cached if nothing else changes: listing them
	// costs the store more than the rest of the page.
	eventsAge = 5 * time.Second
)

// kept caches the fragments that are expensive to make.
type kept struct {
	rows struct {
		sync.Mutex
		snapshot *inventory.Snapshot
		byQuery  map[string]templates.Fragment
	}
	events struct {
		sync.Mutex
		fragment templates.Fragment
		at       time.Time // zero if there is no fragment
		cause    string    // the cause of listing them; see recent
	}
	disks struct {
		sync.Mutex
		snapshot *inventory.Snapshot
		view     templates.Disks // without jobs
	}
}

func (p *Pages) images(w http.ResponseWriter, r *http.Request) error {
	page, err := p.imagesPage(w, r, r.URL.Query(), templates.Add{})
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, page)
}

func (p *Pages) imagesPage(w http.ResponseWriter, r *http.Request, v url.Values, add templates.Add) (*templates.Images, error) {
	parts, err := p.parts(r, v)
	if err != nil {
		return nil, err
	}
	return &templates.Images{
		Frame: p.frame(w, r, "Images", "images"), Add: add, Upload: p.shell(r),
		Query: templates.Query{Text: v.Get("q"), Sorts: sorts(v.Get("sort"))}, Parts: parts,
	}, nil
}

// live answers GET /ui/images/live: the parts of the page whose version is not the
// browser's.
func (p *Pages) live(w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	parts, err := p.parts(r, v)
	if err != nil {
		return err
	}
	var changed []templates.Fragment
	for _, f := range []templates.Fragment{parts.Summary, parts.Catalog, parts.Downloads, parts.Hashes, parts.Disks, parts.Recent, parts.Others} {
		if v.Get("v-"+f.ID) != f.Version {
			f.OOB = true
			changed = append(changed, f)
		}
	}
	if len(changed) == 0 {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	return p.show(w, r, http.StatusOK, templates.Live{Fragments: changed})
}

// parts returns the parts of the page that change.
func (p *Pages) parts(r *http.Request, v url.Values) (parts templates.Parts, err error) {
	ctx, now := r.Context(), p.Now()
	s, err := p.Inventory.Snapshot(ctx)
	if err != nil {
		return parts, err
	}
	downloads, err := p.Inventory.RecentJobs(ctx, pageJobs, job.Fetch)
	if err != nil {
		return parts, err
	}
	hashes, err := p.Inventory.RecentJobs(ctx, pageJobs, job.Hash, job.Check)
	if err != nil {
		return parts, err
	}
	making, err := p.Inventory.RecentJobs(ctx, pageJobs, job.Disk)
	if err != nil {
		return parts, err
	}
	disks := p.disks(s)
	disks.Jobs = jobViews(making, "k", "/catalog/disks/", now)
	for _, part := range []struct {
		to   *templates.Fragment
		view templates.View
	}{
		{&parts.Summary, p.summary(s)},
		{&parts.Downloads, templates.Downloads{Jobs: jobViews(downloads, "d", "/catalog/downloads/", now)}},
		{&parts.Hashes, templates.Hashes{Jobs: jobViews(hashes, "h", "/catalog/hashes/", now)}},
		{&parts.Disks, disks},
		{&parts.Others, othersView(s.Others)},
	} {
		if *part.to, err = templates.NewFragment(part.view); err != nil {
			return parts, err
		}
	}
	if parts.Catalog, err = p.rows(r, s, v, downloads.Jobs); err != nil {
		return parts, err
	}
	parts.Recent, err = p.recent(ctx, parts.Summary.Version+parts.Catalog.Version+statuses(downloads)+statuses(hashes)+statuses(making))
	return parts, err
}

// disks returns the view of the disks in a snapshot, without jobs.
func (p *Pages) disks(s *inventory.Snapshot) templates.Disks {
	const most = 100
	k := &p.kept.disks
	k.Lock()
	defer k.Unlock()
	if k.snapshot == s {
		return k.view
	}
	var v templates.Disks
	n, stored := 0, int64(0)
	for h := range s.Heads() {
		if !h.Disk {
			continue
		}
		disk := s.Row(h).Known.Disk
		n, stored = n+1, stored+disk.StoredBytes
		if n <= most {
			v.List = append(v.List, templates.Disk{ID: "k" + h.SHA256.Short(), Name: h.Name, SHA256: h.SHA256, Size: sizeOf(disk.SizeBytes), Stored: sizeOf(disk.StoredBytes)})
		}
	}
	v.Count, v.One, v.Stored = count(int64(n)), n == 1, sizeOf(stored)
	if p.DisksMax > 0 {
		limit := sizeOf(p.DisksMax)
		v.Limit = &limit
	}
	if n > most {
		v.More = "and " + count(int64(n-most)) + " more"
	}
	k.snapshot, k.view = s, v
	return v
}

func othersView(others []inventory.Other) templates.Others {
	const most = 100
	v := templates.Others{Count: count(int64(len(others))), One: len(others) == 1}
	for _, o := range others[:min(len(others), most)] {
		v.List = append(v.List, templates.Detail{Name: o.Name, Value: o.Reason})
	}
	if hidden := len(others) - len(v.List); hidden > 0 {
		v.More = "and " + count(int64(hidden)) + " more"
	}
	return v
}

func (p *Pages) summary(s *inventory.Snapshot) templates.Summary {
	return templates.Summary{Count: count(int64(s.Len())), One: s.Len() == 1, Stored: sizeOf(s.StoredBytes), Location: p.Location}
}

// recent returns the newest events. It lists them again if cause has changed or they
// are older than eventsAge.
func (p *Pages) recent(ctx context.Context, cause string) (templates.Fragment, error) {
	now := p.Now()
	k := &p.kept.events
	k.Lock()
	defer k.Unlock()
	if k.cause == cause && !k.at.IsZero() && now.Sub(k.at) < eventsAge {
		return k.fragment, nil
	}
	events, _, err := p.Activity.List(ctx, activity.Filter{OtherThan: activity.SubjectAuth, Limit: pageEvents})
	if err != nil {
		return templates.Fragment{}, err
	}
	f, err := templates.NewFragment(templates.Recent{Events: p.eventViews(events)})
	if err != nil {
		return f, err
	}
	k.fragment, k.at, k.cause = f, now, cause
	return f, nil
}

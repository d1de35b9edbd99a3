package pages

import (
	"context"
	"net/http"
	"net/url"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/inventory"
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
	pasts struct {
		sync.Mutex
		byRow map[string]past // by the ID of the row
	}
	disks struct {
		sync.Mutex
		snapshot *inventory.Snapshot
		view     templates.Disks
	}
}

func (p *Pages) images(w http.ResponseWriter, r *http.Request) error {
	page, err := p.imagesPage(w, r, r.URL.Query())
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, page)
}

func (p *Pages) imagesPage(w http.ResponseWriter, r *http.Request, v url.Values) (*templates.Images, error) {
	strip, parts, err := p.parts(r, v)
	if err != nil {
		return nil, err
	}
	page := &templates.Images{
		Frame: p.frame(w, r, "Images", "images"), Add: templates.Add{Upload: p.shell(r)},
		Query: templates.Query{Text: v.Get("q"), Sorts: sorts(v.Get("sort")), Filters: filtersOf(v)}, Parts: parts,
	}
	page.Strip, page.Live = strip, livePath
	return page, nil
}

// add answers GET /ui/add.
func (p *Pages) add(w http.ResponseWriter, r *http.Request) error {
	return p.showAdd(w, r, http.StatusOK, templates.Add{ImageURL: r.URL.Query().Get("url")})
}

// showAdd answers with the page of the forms that add images.
func (p *Pages) showAdd(w http.ResponseWriter, r *http.Request, status int, add templates.Add) error {
	page := templates.AddPage{Frame: p.frame(w, r, "Add image", "images"), Add: add}
	page.Add.Upload = p.shell(r)
	var err error
	if page.Strip, err = p.strip(r.Context()); err != nil {
		return err
	}
	page.Live = stripPath
	return p.show(w, r, status, page)
}

// strip returns the fragment of the jobs that run.
func (p *Pages) strip(ctx context.Context) (templates.Fragment, error) {
	jobs, err := p.jobs(ctx)
	if err != nil {
		return templates.Fragment{}, err
	}
	return templates.NewFragment(runningView(jobs, p.Now()))
}

// live answers GET /ui/images/live: the parts of the page whose version is not the
// browser's.
func (p *Pages) live(w http.ResponseWriter, r *http.Request) error {
	strip, parts, err := p.parts(r, r.URL.Query())
	if err != nil {
		return err
	}
	return p.showChanged(w, r, strip, parts.Catalog, parts.Ended, parts.Disks, parts.Recent, parts.Others)
}

// liveStrip answers GET /ui/live: the strip, if it has changed.
func (p *Pages) liveStrip(w http.ResponseWriter, r *http.Request) error {
	strip, err := p.strip(r.Context())
	if err != nil {
		return err
	}
	return p.showChanged(w, r, strip)
}

// showChanged answers with the fragments whose version is not the browser's.
func (p *Pages) showChanged(w http.ResponseWriter, r *http.Request, fragments ...templates.Fragment) error {
	v := r.URL.Query()
	var changed []templates.Fragment
	for _, f := range fragments {
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
func (p *Pages) parts(r *http.Request, v url.Values) (strip templates.Fragment, parts templates.Parts, err error) {
	ctx, now := r.Context(), p.Now()
	s, err := p.Inventory.Snapshot(ctx)
	if err != nil {
		return strip, parts, err
	}
	jobs, err := p.jobs(ctx)
	if err != nil {
		return strip, parts, err
	}
	failed, err := p.Inventory.FailedJobs(ctx, pageJobs, kinds...)
	if err != nil {
		return strip, parts, err
	}
	for _, part := range []struct {
		to   *templates.Fragment
		view templates.View
	}{
		{&strip, runningView(jobs, now)},
		{&parts.Ended, endedView(jobs, failed, now)},
		{&parts.Disks, p.disks(s)},
		{&parts.Others, othersView(s.Others)},
	} {
		if *part.to, err = templates.NewFragment(part.view); err != nil {
			return strip, parts, err
		}
	}
	if parts.Catalog, err = p.rows(r, s, v, jobs); err != nil {
		return strip, parts, err
	}
	parts.Recent, err = p.recent(ctx, s, parts.Catalog.Version+statuses(jobs))
	return strip, parts, err
}

// disks returns the view of the disks in a snapshot.
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

// recent returns the newest events. It lists them again if cause has changed or they
// are older than eventsAge.
func (p *Pages) recent(ctx context.Context, s *inventory.Snapshot, cause string) (templates.Fragment, error) {
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
	f, err := templates.NewFragment(templates.Recent{Events: p.eventViews(s, events)})
	if err != nil {
		return f, err
	}
	k.fragment, k.at, k.cause = f, now, cause
	return f, nil
}

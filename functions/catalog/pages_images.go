package catalog

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/problem"
	"imageroot/shared/source/scheme"
	"imageroot/shared/web"
	"imageroot/templates"
)

const (
	// pageRows is the most rows that a page sends.
	pageRows = 100
	// pageJobs is the most jobs of each kind.
	pageJobs = 20
	// pageEvents is how much of the activity is on the page of images.
	pageEvents = 10
	// eventsAge is how old that may be where nothing else has changed:
	// listing it costs the store more than all the rest.
	eventsAge = 5 * time.Second
	// keptRows is how many searches' rows are kept until the catalog changes.
	keptRows = 16
)

// kept is what would be the same if it were made again.
type kept struct {
	rows struct {
		sync.Mutex
		snapshot *inventory.Snapshot
		byQuery  map[string]templates.Fragment
	}
	events struct {
		sync.Mutex
		fragment templates.Fragment
		at       time.Time // zero: none
		cause    string    // what they were listed for
	}
}

// images answers GET /ui/images.
func (p *pages) images(w http.ResponseWriter, r *http.Request) error {
	page, err := p.imagesPage(w, r, r.URL.Query(), templates.Add{})
	if err != nil {
		return err
	}
	return p.show(w, r, http.StatusOK, page)
}

func (p *pages) imagesPage(w http.ResponseWriter, r *http.Request, v url.Values, add templates.Add) (*templates.Images, error) {
	f, err := p.fragments(r, v)
	if err != nil {
		return nil, err
	}
	page := &templates.Images{
		Frame: p.frame(w, r, "Images", "images"), Add: add, Upload: p.shell(r),
		Query:   templates.Query{Text: v.Get("q"), Sorts: sorts(v.Get("sort"))},
		Summary: f[0], Catalog: f[1], Downloads: f[2], Hashes: f[3], Recent: f[4], Others: f[5],
	}
	return page, nil
}

// live answers GET /ui/images/live: those parts of the page that are not what
// the browser has.
func (p *pages) live(w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	all, err := p.fragments(r, v)
	if err != nil {
		return err
	}
	var changed []templates.Fragment
	for _, f := range all {
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

// fragments are the parts of the page that change: summary, catalog,
// downloads, hashes, recent activity, others.
func (p *pages) fragments(r *http.Request, v url.Values) (f [6]templates.Fragment, err error) {
	ctx := r.Context()
	s, err := p.Inventory.Snapshot(ctx)
	if err != nil {
		return f, err
	}
	downloads, err := p.Inventory.FetchJobs(ctx)
	if err != nil {
		return f, err
	}
	hashes, err := p.Inventory.HashJobs(ctx)
	if err != nil {
		return f, err
	}
	make1 := func(i int, view templates.View) {
		if err == nil {
			f[i], err = templates.NewFragment(view)
		}
	}
	make1(0, p.summary(s))
	if err == nil {
		f[1], err = p.rowsFragment(r, s, v, downloads)
	}
	now := p.Now()
	make1(2, templates.Downloads{Jobs: jobViews(downloads, "d", "/catalog/downloads/", now)})
	make1(3, templates.Hashes{Jobs: jobViews(hashes, "h", "/catalog/hashes/", now)})
	make1(5, othersView(s.Others))
	if err == nil {
		f[4], err = p.recent(ctx, f[0].Version+f[1].Version+statuses(downloads)+statuses(hashes))
	}
	return f, err
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

func (p *pages) summary(s *inventory.Snapshot) templates.Summary {
	var stored int64
	for i := range s.Rows {
		if row := &s.Rows[i]; row.Cached && row.SizeBytes != nil {
			stored += *row.SizeBytes
		}
	}
	return templates.Summary{Count: count(int64(len(s.Rows))), One: len(s.Rows) == 1, Stored: sizeOf(stored), Location: p.Location}
}

// recent is what happened last. It is listed again when cause has changed.
func (p *pages) recent(ctx context.Context, cause string) (templates.Fragment, error) {
	now := p.Now()
	k := &p.kept.events
	k.Lock()
	defer k.Unlock()
	if k.cause == cause && !k.at.IsZero() && now.Sub(k.at) < eventsAge {
		return k.fragment, nil
	}
	// Of images and of the catalog, not of who logged in.
	var all []activity.Event
	for _, kind := range []string{activity.SubjectImage, activity.SubjectCatalog} {
		events, _, err := p.Activity.List(ctx, activity.Filter{SubjectKind: kind, Limit: pageEvents})
		if err != nil {
			return templates.Fragment{}, err
		}
		all = append(all, events...)
	}
	slices.SortFunc(all, func(a, b activity.Event) int { return cmp.Compare(a.ID, b.ID) })
	f, err := templates.NewFragment(templates.Recent{Events: p.eventViews(all[:min(len(all), pageEvents)])})
	if err != nil {
		return f, err
	}
	k.fragment, k.at, k.cause = f, now, cause
	return f, nil
}

// statuses tells lists of jobs apart whose events differ.
func statuses(jobs []job.Job) string {
	n := map[job.Status]int{}
	var last time.Time
	for i := range jobs {
		n[jobs[i].Status]++
		if t := jobs[i].FinishedAt; t != nil && t.After(last) {
			last = *t
		}
	}
	return fmt.Sprint(n, last.UnixNano()) // maps are written in order
}

// jobViews are the jobs to show: what runs, what is next, what ended last.
func jobViews(jobs []job.Job, prefix, path string, now time.Time) templates.Jobs {
	n := map[job.Status]int64{}
	for i := range jobs {
		n[jobs[i].Status]++
	}
	var counts []string
	for _, s := range []job.Status{job.Running, job.Queued, job.Failed, job.Cancelled, job.Completed} {
		if n[s] > 0 {
			counts = append(counts, count(n[s])+" "+string(s))
		}
	}
	v := templates.Jobs{Counts: strings.Join(counts, ", ")}
	// The list has the active ones first. However many wait, what ended last
	// is on the page too.
	active := int(n[job.Running] + n[job.Queued])
	ended := min(len(jobs)-active, max(pageJobs-active, pageJobs/4))
	shown := slices.Concat(jobs[:min(active, pageJobs-ended)], jobs[active:active+ended])
	for i := range shown {
		v.List = append(v.List, jobView(&shown[i], prefix, path, now))
	}
	if hidden := len(jobs) - len(v.List); hidden > 0 {
		v.More = "and " + count(int64(hidden)) + " more"
	}
	return v
}

func jobView(j *job.Job, prefix, path string, now time.Time) templates.Job {
	v := templates.Job{
		ID: prefix + "-" + shortHash(j.Name+"\n"+j.Src+j.Stage), Name: j.Name, Stage: j.Stage, Status: string(j.Status), Active: j.Status.Active(),
		Src: j.Src, Done: sizeOf(j.BytesDone), Error: j.Error,
	}
	if v.Active {
		v.Cancel = path + url.PathEscape(j.Name) + "?_method=DELETE"
		if j.Src != "" {
			v.Cancel += "&src=" + url.QueryEscape(j.Src)
		}
		v.Cancel = addBack(v.Cancel, "#"+v.ID)
	}
	if j.BytesTotal != nil {
		total := sizeOf(*j.BytesTotal)
		v.Total, v.Value, v.Max = &total, j.BytesDone, *j.BytesTotal
		if v.Active && *j.BytesTotal > 0 && j.Status == job.Running {
			v.Percent = strconv.FormatInt(min(100, 100*j.BytesDone / *j.BytesTotal), 10) + " %"
		}
		if j.Status == job.Completed {
			v.Done, v.Total = total, nil
		}
	}
	if j.FinishedAt != nil {
		t := timeOf(*j.FinishedAt, now)
		v.When = &t
	}
	return v
}

// shortHash names an element of a page after what it shows.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

// rowsFragment is the rows that a query asks for.
func (p *pages) rowsFragment(r *http.Request, s *inventory.Snapshot, v url.Values, downloads []job.Job) (templates.Fragment, error) {
	q, err := parseQuery(v)
	if err != nil {
		return templates.Fragment{}, err
	}
	if q.Limit == 0 || q.Limit > pageRows {
		q.Limit = pageRows
	}
	fetching := map[string]string{}
	for i := range downloads {
		if j := &downloads[i]; j.Status.Active() {
			fetching[j.Src] = string(j.Status)
		}
	}
	key := fmt.Sprintf("%q %q", []string{q.Text, q.Sort, q.Cursor, strconv.Itoa(q.Limit), r.Host}, fetching)
	k := &p.kept.rows
	k.Lock()
	defer k.Unlock()
	if k.snapshot != s || len(k.byQuery) >= keptRows {
		k.snapshot, k.byQuery = s, map[string]templates.Fragment{}
	}
	if f, ok := k.byQuery[key]; ok {
		return f, nil
	}
	found, err := s.Query(q)
	if err != nil {
		return templates.Fragment{}, problem.New(problem.Invalid, err.Error())
	}
	c := templates.Catalog{
		Problem: s.Problem, Total: count(int64(found.Total)), One: found.Total == 1, Searched: strings.TrimSpace(q.Text) != "",
		Columns: columns(v, q.Sort),
	}
	before := "catalog"
	for _, row := range found.Rows {
		view := p.rowView(row, fetching)
		view.Before, before = before, view.ID
		c.Rows = append(c.Rows, view)
	}
	if found.Next != "" {
		c.Next = imagesPath + "?" + with(known(v), "cursor", found.Next)
	}
	if q.Cursor != "" {
		c.First = imagesPath + "?" + with(known(v), "cursor", "")
	}
	if len(s.Rows) == 0 {
		c.Begin = &templates.Begin{Location: p.Location, Shell: p.shell(r)}
		for _, f := range image.Formats() {
			c.Begin.Formats = append(c.Begin.Formats, string(f))
		}
	}
	f, err := templates.NewFragment(c)
	if err == nil {
		k.byQuery[key] = f
	}
	return f, err
}

// known are the fields of the page's query, without what the browser sends to
// refresh it.
func known(v url.Values) url.Values {
	k := url.Values{}
	for _, name := range []string{"q", "sort", "limit", "cursor"} {
		if s := v.Get(name); s != "" {
			k.Set(name, s)
		}
	}
	return k
}

func columns(v url.Values, sort string) []templates.Column {
	by, reverse := strings.CutPrefix(cmp.Or(sort, "name"), "-")
	list := []templates.Column{
		{ID: "name", Text: "Image"},
		{ID: "sha256", Text: "SHA-256"},
		{ID: "format", Text: "Format"},
		{ID: "size", Text: "Size"},
		{Text: "Sources"},
		{Text: "Bytes"},
		{Text: "Actions"},
	}
	for i := range list {
		c := &list[i]
		if c.ID == "" {
			continue
		}
		next := c.ID
		c.Order = "none"
		if by == c.ID {
			if c.Order = "ascending"; reverse {
				c.Order = "descending"
			} else {
				next = "-" + c.ID
			}
		}
		q := known(v)
		q.Del("cursor")
		c.Sort = imagesPath + "?" + with(q, "sort", next)
	}
	return list
}

func sorts(selected string) []templates.Option {
	list := []templates.Option{
		{Value: "name", Text: "Name, A to Z"},
		{Value: "-name", Text: "Name, Z to A"},
		{Value: "-size", Text: "Size, largest first"},
		{Value: "size", Text: "Size, smallest first"},
		{Value: "format", Text: "Format"},
		{Value: "-format", Text: "Format, reversed"},
		{Value: "sha256", Text: "Digest"},
		{Value: "-sha256", Text: "Digest, reversed"},
		{Value: "state", Text: "State"},
		{Value: "-state", Text: "State, reversed"},
	}
	for i := range list {
		list[i].Selected = list[i].Value == cmp.Or(selected, "name")
	}
	return list
}

func (p *pages) rowView(row *inventory.Row, fetching map[string]string) templates.Row {
	first := row.Sources[0]
	id := "r" + shortHash(cmp.Or(row.Digest(), first.Kind+" "+first.Location))
	v := templates.Row{
		ID: id, Name: row.Names[0], Others: row.Names[1:], SHA256: row.Digest(), State: row.HashState,
		Format: string(row.Format), Cached: row.Cached, FetchFailed: row.FetchFailed, Warnings: row.Warnings, Uncache: row.Blob,
	}
	if row.Ref != nil {
		v.Ref = *row.Ref
	}
	if row.SizeBytes != nil {
		s := sizeOf(*row.SizeBytes)
		v.Size = &s
	}
	if k := row.Known; k != nil {
		if k.Kind != content.Unknown {
			v.Content = k.What
		}
		if d := row.VirtualSizeBytes; d != nil && (row.SizeBytes == nil || *d != *row.SizeBytes) {
			s := sizeOf(*d)
			v.Virtual = &s
		}
		if c := k.Check; c != nil && row.Cached && (c.Verdict == content.Cancelled || c.Verdict == content.Unchecked) {
			v.Check = row.Names[0]
		}
	}
	if row.Cached && row.SHA256 != nil {
		v.Download = imagePath(row.Digest(), row.Names[0])
		if k := row.Known; k != nil && !k.Kind.Raw() {
			v.Raw, v.Disk = p.rawPath(row), image.DiskName(row.Names[0])
		}
	}
	if name, ok := row.Local(); ok && row.SHA256 == nil && row.HashState != string(job.Queued) && row.HashState != string(job.Running) {
		v.Hash = name
	}
	for i, s := range row.Sources {
		src := templates.Source{ID: id + "-s" + strconv.Itoa(i), Kind: s.Kind, Location: s.Location, Name: s.Name}
		switch s.Kind {
		case inventory.Local:
			src.Location, src.What, src.Key = p.Location+s.Name, "image", s.Name
		case inventory.URL:
			src.What, src.Key = "entry", s.Location
			if len(row.Warnings) > 0 {
				v.Refresh = s.Location
			}
		}
		if s.Kind != inventory.Local {
			if scheme, _ := scheme.Of(s.Location); scheme.Browsable {
				src.Link = s.Location
			}
			if status := fetching[s.Location]; status != "" && v.Fetching != "running" {
				v.Fetching = status
			}
			if v.Fetch == "" && !row.Cached {
				v.Fetch = s.Location
			}
		}
		v.Sources = append(v.Sources, src)
	}
	if v.Fetching != "" {
		v.Fetch = ""
	}
	return v
}

// shell are the lines that bring an image in from a terminal.
func (p *pages) shell(r *http.Request) templates.Shell {
	aws := "aws s3 cp ubuntu.img " + p.Location
	if e := endpointFor(p.S3Endpoint, r); e != "" {
		aws = "aws --endpoint-url " + e + " s3 cp ubuntu.img " + p.Location
	}
	return templates.Shell{
		AWS:  aws,
		Curl: `curl -H "Authorization: Bearer $IMAGEROOT_TOKEN" -T ubuntu.img ` + web.BaseURL(r) + "/images/ubuntu.img",
	}
}

// endpointFor is the S3 server as whoever made the request reaches it.
func endpointFor(endpoint string, r *http.Request) string {
	if endpoint == "" {
		return ""
	}
	if !strings.Contains(endpoint, "://") {
		endpoint = "http://" + endpoint
	}
	u, err := url.Parse(endpoint)
	if err != nil {
		return endpoint
	}
	if host := u.Hostname(); host == "" || isUnspecified(host) {
		u.Host = net.JoinHostPort(hostOf(r), cmp.Or(u.Port(), defaultPort(u.Scheme)))
	}
	return strings.TrimSuffix(u.String(), "/")
}

func defaultPort(scheme string) string {
	if scheme == "https" {
		return "443"
	}
	return "80"
}

// isUnspecified reports whether a server that listens there listens on every
// address.
func isUnspecified(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsUnspecified()
}

// hostOf is the name or address that the client knows this server by.
func hostOf(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.Host); err == nil {
		return host
	}
	return strings.Trim(r.Host, "[]")
}

package pages

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/templates"
)

const (
	// pageRunning is the maximum number of jobs in the strip.
	pageRunning = 6
	// pageJobs is the maximum number of jobs in each list of ended ones.
	pageJobs = 20
)

// kinds are the kinds of jobs that the pages show.
var kinds = []*job.Kind{job.Hash, job.Check, job.Disk, job.Fetch, job.Rename}

// jobs returns the jobs of the pages: those that have not ended, and the last ones that
// have.
func (p *Pages) jobs(ctx context.Context) (inventory.Listing, error) {
	return p.Inventory.RecentJobs(ctx, pageJobs, kinds...)
}

// statuses returns a string that changes when a job changes its status.
func statuses(l inventory.Listing) string {
	var last time.Time
	for i := range l.Jobs {
		if t := l.Jobs[i].FinishedAt; t != nil && t.After(last) {
			last = *t
		}
	}
	return fmt.Sprint(l.Counts, last.UnixNano()) // fmt sorts maps by key
}

// runningView returns the first active jobs of l, which begins with all of them.
func runningView(l inventory.Listing, now time.Time) (v templates.Running) {
	active := l.Counts[job.Running] + l.Counts[job.Queued]
	for i := range l.Jobs[:min(active, pageRunning, len(l.Jobs))] {
		v.List = append(v.List, jobView(&l.Jobs[i], now))
	}
	if hidden := active - len(v.List); hidden > 0 {
		v.More = "and " + count(int64(hidden)) + " more"
	}
	return v
}

// endedView returns the jobs that have ended: those in failed, and of l those that did
// not fail.
func endedView(l inventory.Listing, failed []job.Job, now time.Time) templates.Ended {
	v := templates.Ended{Failures: l.Counts[job.Failed]}
	for i := range failed {
		v.Failed = append(v.Failed, jobView(&failed[i], now))
	}
	var counts []string
	total := 0
	for _, s := range []job.Status{job.Completed, job.Cancelled} {
		if n := l.Counts[s]; n > 0 {
			counts = append(counts, count(int64(n))+" "+string(s))
			total += n
		}
	}
	v.Counts = strings.Join(counts, ", ")
	for i := range l.Jobs {
		if s := l.Jobs[i].Status; s == job.Completed || s == job.Cancelled {
			v.List = append(v.List, jobView(&l.Jobs[i], now))
		}
	}
	if hidden := total - len(v.List); hidden > 0 && len(v.List) > 0 {
		v.More = "and " + count(int64(hidden)) + " more"
	}
	if hidden := v.Failures - len(v.Failed); hidden > 0 {
		v.MoreFailed = "and " + count(int64(hidden)) + " more"
	}
	return v
}

// A jobKind is what the pages know of a kind of job.
type jobKind struct {
	prefix string // of the IDs of elements
	path   string // of the route of its jobs
	verb   string
	field  string // of the form that queues it again
}

// kindOf returns the kind of a job.
func kindOf(j *job.Job) jobKind {
	switch {
	case j.Stage == job.Disk.Name:
		return jobKind{"k", "/catalog/disks", "making the disk", "name"}
	case j.Stage == job.Check.Name:
		return jobKind{"h", "/catalog/hashes", "checking", "name"}
	case j.Stage == job.Rename.Name:
		return jobKind{"r", "/catalog/renames", "renaming to " + string(j.NewName), "name"}
	case j.Src != "":
		return jobKind{"d", "/catalog/downloads", "fetching", "src"}
	}
	return jobKind{"h", "/catalog/hashes", "hashing", "name"}
}

func jobView(j *job.Job, now time.Time) templates.Job {
	kind := kindOf(j)
	v := templates.Job{
		ID: kind.prefix + "-" + shortHash(string(j.Name)+"\n"+j.Src+j.Stage), Name: j.Name, Page: jobPage(j), Stage: j.Stage, Verb: kind.verb,
		Status: string(j.Status), Active: j.Status.Active(), Src: j.Src, Done: sizeOf(j.BytesDone), Error: j.Error,
	}
	if j.Status.Cancellable() {
		v.Cancel = addBack(cancelPath(j), "#"+v.ID)
	}
	if j.Status == job.Failed {
		v.Retry = &templates.Retry{Action: addBack(kind.path, "#"+v.ID), Field: kind.field, Value: cmp.Or(j.Src, string(j.Name))}
	}
	if v.Retry != nil && j.Stage == job.Rename.Name {
		v.Retry.Action, v.Retry.Value = addBack(renamePath(j.Name), "#"+v.ID), string(j.NewName)
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

// renamePath returns the URL that renames an image.
func renamePath(name image.Name) string { return "/images/" + url.PathEscape(string(name)) + "/rename" }

// cancelPath returns the URL that cancels a job, or dismisses its failure.
func cancelPath(j *job.Job) string {
	key := string(j.Name)
	if j.Stage == job.Disk.Name {
		key = string(j.SHA256)
	}
	path := kindOf(j).path + "/" + url.PathEscape(key) + "?_method=DELETE"
	if j.Src != "" {
		path += "&src=" + url.QueryEscape(j.Src)
	}
	return path
}

// jobPage returns the page of a job's image.
func jobPage(j *job.Job) string {
	if j.Src == "" && j.SHA256 != "" {
		return imagePath(j.SHA256, "", "")
	}
	return imagePath("", j.Name, j.Src)
}

// jobsOf returns the jobs of the image of a row.
func (p *Pages) jobsOf(ctx context.Context, row *inventory.Row) (l inventory.Listing, err error) {
	add := func(kind *job.Kind, id string) {
		if id == "" || err != nil {
			return
		}
		j, ok, jerr := p.Inventory.Job(ctx, kind, id)
		if err = jerr; ok {
			l.Jobs = append(l.Jobs, j)
		}
	}
	for _, name := range row.Names {
		add(job.Hash, string(name))
		add(job.Rename, string(name))
	}
	for _, kind := range []*job.Kind{job.Check, job.Disk} {
		add(kind, string(row.Digest()))
	}
	for _, s := range row.Sources {
		add(job.Fetch, string(s.Ref))
	}
	return l, err
}

// shortHash returns the ID of the element that shows s.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

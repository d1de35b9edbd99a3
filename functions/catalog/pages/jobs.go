package pages

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/templates"
)

// pageJobs is the maximum number of jobs in each list of the page.
const pageJobs = 20

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

// jobViews returns the jobs to show: the running ones, the next ones, and those
// that ended last. l must have all active jobs and the last pageJobs that ended.
func jobViews(l inventory.Listing, prefix, path string, now time.Time) templates.Jobs {
	var counts []string
	total := 0
	for _, s := range []job.Status{job.Running, job.Queued, job.Failed, job.Cancelled, job.Completed} {
		if n := l.Counts[s]; n > 0 {
			counts = append(counts, count(int64(n))+" "+string(s))
			total += n
		}
	}
	v := templates.Jobs{Counts: strings.Join(counts, ", ")}
	// Active jobs are first in the list. Some of those that ended last are shown,
	// however many are queued.
	jobs, active := l.Jobs, l.Counts[job.Running]+l.Counts[job.Queued]
	ended := min(len(jobs)-active, max(pageJobs-active, pageJobs/4))
	shown := slices.Concat(jobs[:min(active, pageJobs-ended)], jobs[active:active+ended])
	for i := range shown {
		v.List = append(v.List, jobView(&shown[i], prefix, path, now))
	}
	if hidden := total - len(v.List); hidden > 0 {
		v.More = "and " + count(int64(hidden)) + " more"
	}
	return v
}

func jobView(j *job.Job, prefix, path string, now time.Time) templates.Job {
	v := templates.Job{
		ID: prefix + "-" + shortHash(string(j.Name)+"\n"+j.Src+j.Stage), Name: j.Name, Stage: j.Stage, Status: string(j.Status), Active: j.Status.Active(),
		Src: j.Src, Done: sizeOf(j.BytesDone), Error: j.Error,
	}
	if v.Active {
		key := string(j.Name)
		if j.Stage == job.Disk.Name {
			key = string(j.SHA256)
		}
		v.Cancel = path + url.PathEscape(key) + "?_method=DELETE"
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

// shortHash returns the ID of the element that shows s.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}

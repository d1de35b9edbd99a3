// Package job keeps the records of long work: hash, check, disk, fetch and rename jobs. A record is
// the job's only state, so any process can list a job, cancel it, and resume it once
// its owner's lease has lapsed.
//
// A [Runner] runs the jobs of one [Kind].
package job

import (
	"encoding/json"
	"fmt"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A Status is the state of a job.
type Status string

// The last three are final until the job is queued again.
const (
	Queued    Status = "queued"
	Running   Status = "running"
	Completed Status = "completed"
	Cancelled Status = "cancelled"
	Failed    Status = "failed"
)

// Active reports whether the job is queued or running.
func (s Status) Active() bool { return s == Queued || s == Running }

// Cancellable reports whether [Jobs.Cancel] changes the job: it is active or has failed.
func (s Status) Cancellable() bool { return s.Active() || s == Failed }

// A Job is the record. Times are UTC, sizes are in bytes.
type Job struct {
	record.Meta
	Name       image.Name    `json:"name"`
	NewName    image.Name    `json:"new_name,omitempty"` // of a rename job
	Stage      string        `json:"stage,omitempty"`    // "check" for a check job, "disk" for a disk job, "rename" for a rename job, else ""
	Ref        layout.Ref    `json:"ref,omitempty"`
	Src        string        `json:"src,omitempty"`
	Status     Status        `json:"status"`
	BytesTotal *int64        `json:"bytes_total"`
	BytesDone  int64         `json:"bytes_done"`
	SHA256     layout.SHA256 `json:"sha256,omitempty"`
	QueuedAt   time.Time     `json:"queued_at"`
	StartedAt  *time.Time    `json:"started_at"`
	FinishedAt *time.Time    `json:"finished_at"`
	Error      string        `json:"error,omitempty"`
	Attempt    int           `json:"attempt"`
	// Actor and SourceIP are those of the request for the job, as in the activity log.
	Actor    string `json:"actor,omitempty"`
	SourceIP string `json:"source_ip,omitempty"`

	// Reach identifies the source settings of the process that queued a fetch job: see
	// source.Client.Reach. It is empty if they are not known.
	Reach string `json:"reach,omitempty"`

	// FailingSince is the end of the first of the latest consecutive runs that ended in
	// a [queue.Retry] without progress, or the time at which the queue gave the job up.
	// It is zero if neither is the case.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Generation is the fencing token. It grows with every change of owner and never
	// resets, so a stale owner detects that it has lost the job.
	Generation int64     `json:"generation"`
	Owner      string    `json:"owner,omitempty"`
	LeaseUntil time.Time `json:"lease_until,omitzero"`
	// before is the job before it was cancelled or failed by this call, or nil.
	before *Job
	// Version is the version of the object that a hash job reads.
	Version *store.Version `json:"version,omitempty"`
	// Checkpoint is what the next run resumes from. A job that failed with [Kept] keeps
	// it.
	Checkpoint json.RawMessage `json:"checkpoint,omitempty"`
}

// Validate implements record.Validator.
func (j *Job) Validate() error {
	if !j.Status.Active() && j.Status != Completed && j.Status != Cancelled && j.Status != Failed {
		return fmt.Errorf("%q is not the status of a job", j.Status)
	}
	return nil
}

const (
	// maxFailing is how long a job without progress is retried, and how long it then
	// stays failed before it may be queued again.
	maxFailing = 24 * time.Hour
	// keepEnded is how long an ended job is listed.
	keepEnded = 7 * 24 * time.Hour
)

// Recovers reports whether the job failed more than a day before now after repeated
// runs that ended in a [queue.Retry], or because a queue gave it up. The cause may be
// gone, so the caller should queue the job again.
func (j Job) Recovers(now time.Time) bool {
	return j.Status == Failed && !j.FailingSince.IsZero() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > maxFailing
}

// Old reports whether the job ended more than 7 days before now. Such jobs are removed.
func (j Job) Old(now time.Time) bool {
	return !j.Status.Active() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > keepEnded
}

// Held returns the time left on the owner's lease at now, or 0 if the job can be
// claimed. A process that finds an active job should try to claim it after that time.
func (j Job) Held(now time.Time) time.Duration {
	if j.Status != Running {
		return 0
	}
	return max(0, j.LeaseUntil.Sub(now))
}

// Package job keeps the record of a piece of work that takes long: a hash, a
// check or a fetch. The record is the only state, so any process can see a job,
// cancel it, and resume it when its owner is gone.
//
// A [Kind] is a row of [Kinds]. A [Runner] runs the jobs of one kind.
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

// The statuses. The last three are final until the job is queued again.
const (
	Queued    Status = "queued"
	Running   Status = "running"
	Completed Status = "completed"
	Cancelled Status = "cancelled"
	Failed    Status = "failed"
)

// Active reports whether the job has not ended.
func (s Status) Active() bool { return s == Queued || s == Running }

// A Job is the record. Times are UTC; sizes are bytes.
type Job struct {
	record.Meta
	Name       image.Name    `json:"name"`
	Stage      string        `json:"stage,omitempty"` // of a check job its kind's name, else empty
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
	// Actor and SourceIP asked for the job, as in the activity log.
	Actor    string `json:"actor,omitempty"`
	SourceIP string `json:"source_ip,omitempty"`

	// Reach names the settings for sources of the process that queued a fetch
	// job (see source.Client.Reach). It is empty if they are not known.
	Reach string `json:"reach,omitempty"`

	// FailingSince is the end of the first of the last runs that each ended in a
	// [queue.Retry] and got no further. It is zero if there is no such run.
	FailingSince time.Time `json:"failing_since,omitzero"`
	// Generation is the fencing token. It grows with every change of owner and
	// never resets, so a stale owner finds out that it has lost the job.
	Generation int64     `json:"generation"`
	Owner      string    `json:"owner,omitempty"`
	LeaseUntil time.Time `json:"lease_until,omitzero"`
	// before is the job as it was when it was cancelled or given up, or nil.
	before *Job
	// Version is the version of the object that a hash job reads.
	Version *store.Version `json:"version,omitempty"`
	// Checkpoint is what the next run resumes from. A job that failed with
	// [Kept] has one too.
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
	// maxFailing is how long a job is retried that gets no further, and how long
	// it then stays failed before it may be queued again.
	maxFailing = 24 * time.Hour
	// keepEnded is how long a job that has ended is listed.
	keepEnded = 7 * 24 * time.Hour
)

// Recovers reports whether the job failed at least a day ago because its runs
// each ended in a [queue.Retry], or was given up by a queue. The store, or what else the
// runs failed over, may work by now, so the job is to be queued again.
func (j Job) Recovers(now time.Time) bool {
	return j.Status == Failed && !j.FailingSince.IsZero() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > maxFailing
}

// Old reports whether the job ended so long ago that it is no longer listed.
func (j Job) Old(now time.Time) bool {
	return !j.Status.Active() && j.FinishedAt != nil && now.Sub(*j.FinishedAt) > keepEnded
}

// Held returns the time left on the owner's lease at now, or 0 if the job can be
// claimed. A process that finds an active job without knowing whether its owner
// lives tries it after that time.
func (j Job) Held(now time.Time) time.Duration {
	if j.Status != Running {
		return 0
	}
	return max(0, j.LeaseUntil.Sub(now))
}

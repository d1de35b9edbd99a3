package job

import (
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A View is a job in the API, without its progress, whose member has a different name
// for each kind of job.
type View struct {
	Name       image.Name     `json:"name"`
	Stage      string         `json:"stage,omitempty"`
	Ref        *string        `json:"ref"` // the first 12 hex digits of SHA256
	Status     Status         `json:"status"`
	BytesTotal *int64         `json:"bytes_total"`
	SHA256     *layout.SHA256 `json:"sha256"`
	Src        *string        `json:"src"` // null if the job has no source
	StartedAt  *time.Time     `json:"started_at"`
	FinishedAt *time.Time     `json:"finished_at"`
	Error      *string        `json:"error"`
	Attempt    int            `json:"attempt"`
}

// View returns the job as the API shows it.
func (j Job) View() View {
	v := View{
		Name: j.Name, Stage: j.Stage, Status: j.Status, BytesTotal: j.BytesTotal,
		StartedAt: j.StartedAt, FinishedAt: j.FinishedAt, Attempt: j.Attempt,
	}
	if j.SHA256 != "" {
		ref := j.SHA256.Short()
		v.SHA256, v.Ref = &j.SHA256, &ref
	}
	if j.Src != "" {
		v.Src = &j.Src
	}
	if j.Error != "" {
		v.Error = &j.Error
	}
	return v
}

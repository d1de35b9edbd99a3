package job

import (
	"time"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A View is a job in the API.
type View struct {
	Name       image.Name     `json:"name"`
	NewName    image.Name     `json:"new_name,omitempty"`
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
	// The bytes done, by what the job does.
	BytesHashed     *int64 `json:"bytes_hashed,omitempty"`
	BytesDownloaded *int64 `json:"bytes_downloaded,omitempty"`
	BytesWritten    *int64 `json:"bytes_written,omitempty"` // of a disk
}

// Views returns jobs as the API lists them.
func Views(jobs []Job) []View {
	views := make([]View, len(jobs))
	for i, j := range jobs {
		views[i] = j.View()
	}
	return views
}

// View returns the job as the API shows it.
func (j Job) View() View {
	v := View{
		Name: j.Name, NewName: j.NewName, Stage: j.Stage, Status: j.Status, BytesTotal: j.BytesTotal,
		StartedAt: j.StartedAt, FinishedAt: j.FinishedAt, Attempt: j.Attempt,
	}
	if j.SHA256 != "" {
		ref := j.SHA256.Short()
		v.SHA256, v.Ref = &j.SHA256, &ref
	}
	switch {
	case j.Src != "":
		v.Src, v.BytesDownloaded = &j.Src, &j.BytesDone
	case j.Stage == Disk.Name:
		v.BytesWritten = &j.BytesDone
	case j.Stage == Rename.Name:
	default:
		v.BytesHashed = &j.BytesDone
	}
	if j.Error != "" {
		v.Error = &j.Error
	}
	return v
}

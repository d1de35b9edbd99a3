package job

import (
	"context"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// diskAgain is how long a disk job that has failed or was cancelled is not queued again
// for a request that needs the disk.
const diskAgain = time.Hour

// RequestDisk queues the disk job of a content, for a request that needs its disk. It
// returns whether the disk is in the making, and how many bytes of it are written.
func (j *Jobs) RequestDisk(ctx context.Context, sha256 layout.SHA256, name image.Name) (active bool, written int64, err error) {
	recent := func(job Job) bool { return job.Status != Completed && j.Now().Sub(*job.FinishedAt) < diskAgain }
	job, err := j.EnqueueDisk(ctx, sha256, name, recent, activity.System, "")
	return job.Status.Active(), job.BytesDone, err
}

// NeedDisk queues the disk job of a content that an export names. For an operator, whose
// IP address is ip, it queues a job that has failed or was cancelled again at once. For the
// system, whose ip is empty, it is RequestDisk.
func (j *Jobs) NeedDisk(ctx context.Context, sha256 layout.SHA256, name image.Name, ip string) error {
	if ip == "" {
		_, _, err := j.RequestDisk(ctx, sha256, name)
		return err
	}
	_, err := j.EnqueueDisk(ctx, sha256, name, func(Job) bool { return false }, activity.Actor(ctx), ip)
	return err
}

// EnqueueDisk queues the disk job of a content: see [Runner.Enqueue].
func (j *Jobs) EnqueueDisk(ctx context.Context, sha256 layout.SHA256, name image.Name, keep func(Job) bool, actor, ip string) (Job, error) {
	r := &Runner{Kind: Disk, Jobs: j}
	return r.Enqueue(ctx, string(sha256), keep, func(job *Job) {
		job.Name, job.Stage, job.SHA256, job.Actor, job.SourceIP = name, Disk.Name, sha256, actor, ip
	})
}

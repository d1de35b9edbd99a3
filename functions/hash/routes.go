package hash

import (
	"errors"
	"net/http"

	"imageroot/shared/activity"
	"imageroot/shared/image"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// Routes are the function's routes.
func (f *Function) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /catalog/hashes", Access: web.Operator, Handle: f.list, Quiet: true},
		{Pattern: "POST /catalog/hashes", Access: web.Operator, Handle: f.post},
		{Pattern: "DELETE /catalog/hashes/{name}", Access: web.Operator, Handle: f.cancel},
	}
}

// view is a hash job as the API shows it.
type view struct {
	job.View
	BytesHashed int64 `json:"bytes_hashed"`
}

func viewOf(j job.Job) view { return view{j.View(), j.BytesDone} }

func (f *Function) list(w http.ResponseWriter, r *http.Request) error {
	jobs, err := f.Inventory.HashJobs(r.Context())
	if err != nil {
		return err
	}
	views := make([]view, len(jobs))
	for i, j := range jobs {
		views[i] = viewOf(j)
	}
	return web.JSON(w, http.StatusOK, map[string]any{"hashes": views, "max_parallel": f.Workers})
}

func (f *Function) post(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Name string `json:"name"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	if _, err := image.ParseName(in.Name); err != nil {
		return problem.New(problem.Malformed, err.Error())
	}
	info, err := f.Images.Head(r.Context(), in.Name)
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there is no image "+in.Name+" in the image root")
	}
	if err != nil {
		return err
	}
	j, err := f.enqueue(r.Context(), in.Name, &info.Version, activity.Operator, web.ClientIP(r))
	if err != nil {
		return err
	}
	if j.Status == job.Queued {
		if err := f.Work.Send(r.Context(), queue.Task{Hash: in.Name}.Encode(), 0); err != nil {
			return err
		}
	}
	return web.Answer(w, r, http.StatusAccepted, viewOf(j), "hash of "+in.Name+" queued")
}

func (f *Function) cancel(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("name")
	if !image.IsName(name) {
		return problem.New(problem.NotFound, "there is no hash job for "+name)
	}
	j, err := f.Jobs.Cancel(r.Context(), layout.HashJobKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return problem.New(problem.NotFound, "there is no hash job for "+name)
	}
	if err != nil {
		return err
	}
	if j.Idle {
		f.Metric.JobEnded(metric.Hash, string(job.Cancelled))
	}
	return web.Answer(w, r, http.StatusNoContent, nil, "hash of "+name+" cancelled")
}

var _ queue.Handler = (*Function)(nil).Handle

package exports

import (
	"context"
	"errors"
	"iter"
	"time"

	"imageroot/shared/export"
	"imageroot/shared/image"
	"imageroot/shared/index"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
)

// A status is the state of an export, by the name that nbdmux has for it.
type status string

const (
	queued        status = "queued"   // its image waits to be fetched
	fetching      status = "fetching" // or waits for its inspection
	decompressing status = "decompressing"
	ready         status = "ready"
	failed        status = "failed"
)

// A view is an export in the API.
type view struct {
	Name      layout.ExportName `json:"name"`
	SrcURL    string            `json:"src_url"`
	File      *image.Name       `json:"file"` // the image; null if it is gone
	ReadOnly  bool              `json:"readonly"`
	Status    status            `json:"status"`
	Error     *string           `json:"error"`
	SizeBytes *int64            `json:"size_bytes"` // of the disk
	NBDPort   *int              `json:"nbd_port"`
}

func (f *Function) view(x export.Record, s state) view {
	v := view{Name: x.Name, SrcURL: x.SrcURL, ReadOnly: x.ReadOnly, Status: s.status}
	if s.reason != "" {
		v.Error = &s.reason
	}
	if s.row != nil {
		v.File = &s.row.Names[0]
		if s.row.Known != nil {
			v.SizeBytes = s.row.Known.Virtual()
		}
	}
	if f.Port != 0 {
		v.NBDPort = &f.Port
	}
	return v
}

// A state is what became of an export, according to the catalog.
type state struct {
	status status
	reason string         // of a failure
	row    *inventory.Row // nil: the image is gone
	job    *job.Kind      // the kind of the job that the export waits for, or that has failed; or nil
}

// states are the exports and their states at one moment.
type states struct {
	f       *Function
	ctx     context.Context
	exports index.Items[layout.ExportName, export.Record]
	*inventory.Snapshot
}

func (f *Function) states(ctx context.Context) (*states, error) {
	exports, err := f.Inventory.Exports(ctx)
	if err != nil {
		return nil, err
	}
	s, err := f.Inventory.Snapshot(ctx)
	return &states{f, ctx, exports, s}, err
}

// of returns the state of an export.
func (s *states) of(x export.Record) state {
	row, ok := s.BySource(x.Ref)
	if x.SHA256 != "" {
		row, ok = s.BySHA256(x.SHA256)
	}
	switch {
	case !ok:
		return state{status: failed, reason: "the catalog no longer has the image: add the export again"}
	case !row.Cached && x.SHA256 != "":
		return state{status: failed, reason: "the bytes of the image are no longer here: fetch it", row: row}
	case !row.Cached:
		return s.waiting(row, job.Fetch, string(x.Ref), queued, fetching)
	case row.Known == nil:
		return state{status: fetching, row: row}
	case row.Known.NoDisk() != "":
		return state{status: failed, reason: row.Known.NoDisk(), row: row}
	case !row.Known.Kind.Compressed(), row.Known.Disk != nil:
		return state{status: ready, row: row}
	case s.f.Expand == nil:
		return state{status: failed, reason: "the image is compressed, and this server makes no disks: see IMAGEROOT_DISKS", row: row}
	}
	return s.waiting(row, job.Disk, string(row.Digest()), decompressing, decompressing)
}

// waiting returns the state of an export that waits for a job: before and during its run,
// or that of its failure.
func (s *states) waiting(row *inventory.Row, kind *job.Kind, id string, before, during status) state {
	j, _, err := s.f.Inventory.Job(s.ctx, kind, id)
	switch {
	case err != nil || j.Status == job.Queued:
		return state{status: before, row: row, job: kind}
	case j.Status == job.Running:
		return state{status: during, row: row, job: kind}
	case j.Status == job.Failed:
		return state{status: failed, reason: j.Error, row: row, job: kind}
	case j.Status == job.Cancelled:
		return state{status: failed, reason: "the " + kind.Name + " job was cancelled: add the export again", row: row, job: kind}
	}
	return state{status: before, row: row, job: kind}
}

// advance queues the job that an export waits for. ip is that of Config.Fetch.
func (f *Function) advance(ctx context.Context, x export.Record, s state, ip string) error {
	var err error
	switch s.job {
	case job.Fetch:
		_, err = f.Fetch(ctx, s.row, x.Ref, ip)
	case job.Disk:
		err = f.Expand(ctx, s.row.Digest(), s.row.Names[0], ip)
	}
	if errors.Is(err, record.ErrNewer) && ip == "" {
		return nil // left to a process of the newer version
	}
	return err
}

const (
	// step is how often Run reads the states of exports while one waits, and idle how often
	// otherwise: another process may have added one and died, and after a start, the index
	// may lack an export or its entry until it is compared with the records.
	step, idle = time.Second, 30 * time.Second
)

// Run queues the jobs that exports wait for, until ctx ends.
func (f *Function) Run(ctx context.Context) {
	var last *inventory.Snapshot
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.added:
			last = nil
		case <-wait.C:
		}
		next := step
		s, err := f.states(ctx)
		if err == nil && s.Snapshot != last {
			pending := false
			if pending, err = f.advanceAll(s); err == nil {
				last = s.Snapshot
			}
			if err == nil && !pending {
				last, next = nil, idle
			}
		}
		if err != nil && ctx.Err() == nil {
			f.Log.Warn("exports wait", "error", err)
		}
		wait.Reset(next)
	}
}

// advanceAll queues the jobs that all exports wait for. pending is true if one waits.
func (f *Function) advanceAll(s *states) (pending bool, err error) {
	for _, x := range s.exports.Values() {
		state := s.of(x)
		pending = pending || state.status != ready && state.status != failed
		if err := f.advance(s.ctx, x, state, ""); err != nil {
			return pending, err
		}
	}
	return pending, nil
}

// Needed returns the images that exports name.
func (f *Function) Needed(ctx context.Context) (map[layout.SHA256]bool, error) {
	s, err := f.states(ctx)
	if err != nil {
		return nil, err
	}
	needed := map[layout.SHA256]bool{}
	for _, x := range s.exports.Values() {
		if row := s.of(x).row; row != nil && row.Digest() != "" {
			needed[row.Digest()] = true
		}
	}
	return needed, nil
}

// Find returns the SHA-256 of the image that an export names, and whether it may be read
// only. ok is false if no export has that name, or it is the beginning of the SHA-256 of an
// image. The error is a problem if the export is not ready.
func (f *Function) Find(ctx context.Context, name string) (sha256 layout.SHA256, readOnly, ok bool, err error) {
	s, err := f.states(ctx)
	if err != nil {
		return "", false, false, err
	}
	x, ok := s.exports.Value(layout.ExportName(name))
	if _, named := s.ByRef(name); !ok || named {
		return "", false, false, nil
	}
	state := s.of(x)
	switch {
	case state.status == failed:
		return "", false, true, problem.New(problem.Conflict, "the export "+name+" has failed: "+state.reason)
	case state.status != ready:
		return "", false, true, problem.New(problem.Unavailable, "the export "+name+" is not ready ("+string(state.status)+"): try again soon")
	}
	return state.row.Digest(), x.ReadOnly, true, nil
}

// Names yields the names of the exports that are ready, and then those of images that no
// export has. An error is yielded last.
func (f *Function) Names(ctx context.Context, images iter.Seq2[image.Name, error]) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		s, err := f.states(ctx)
		if err != nil {
			yield("", err)
			return
		}
		for x := range s.each() {
			if s.of(x).status == ready && !yield(string(x.Name), nil) {
				return
			}
		}
		for name, err := range images {
			if _, named := s.exports.Info(layout.ExportName(name)); !named && !yield(string(name), err) {
				return
			}
		}
	}
}

// each yields the exports sorted by name. It holds one in memory, unlike Values.
func (s *states) each() iter.Seq[export.Record] {
	return func(yield func(export.Record) bool) {
		for name := range s.exports.All() {
			if x, ok := s.exports.Value(name); ok && !yield(x) {
				return
			}
		}
	}
}

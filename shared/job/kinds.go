package job

import (
	"cmp"

	"imageroot/shared/activity"
	"imageroot/shared/layout"
	"imageroot/shared/queue"
	"imageroot/shared/store"
)

// A Kind describes one kind of job.
type Kind struct {
	// Name identifies the kind in metrics and logs.
	Name string
	// The key of a job's record is Prefix and the job's ID, which ParseKey returns.
	Prefix   string
	ParseKey func(key store.Key) (id string, ok bool)
	// ID returns the ID of a job of this kind.
	ID func(Job) string
	// Member is the JSON member of the kind's tasks.
	Member string
	// Event returns the event that reports the end of a job, with Kind, SubjectID,
	// Summary and Details set, and with Actor and SourceIP unless the system acted. An
	// event without a Kind means none.
	Event func(Job) activity.Event
}

// Key returns the key of the job with this ID.
func (k *Kind) Key(id string) store.Key { return store.Key(k.Prefix + id) }

// Task returns the task of the job with this ID.
func (k *Kind) Task(id string) queue.Task { return queue.RunJob{Member: k.Member, ID: id} }

// The kinds of jobs.
var (
	// Hash computes the SHA-256 of an image. The ID is its name.
	Hash = &Kind{
		Name: "hash", Member: "hash", Prefix: layout.HashJobPrefix, ParseKey: ids(layout.HashJobName),
		ID:    func(j Job) string { return string(j.Name) },
		Event: hashEvent,
	}
	// Check reads content to its end. The ID is its SHA-256.
	Check = &Kind{
		Name: "check", Member: "check", Prefix: layout.CheckJobPrefix, ParseKey: ids(layout.CheckJobSHA256),
		ID:    func(j Job) string { return string(j.SHA256) },
		Event: checkEvent,
	}
	// Disk expands the disk in an image. The ID is the image's SHA-256.
	Disk = &Kind{
		Name: "disk", Member: "disk", Prefix: layout.DiskJobPrefix, ParseKey: ids(layout.DiskJobSHA256),
		ID:    func(j Job) string { return string(j.SHA256) },
		Event: diskEvent,
	}
	// Fetch downloads a source. The ID is its ref.
	Fetch = &Kind{
		Name: "fetch", Member: "ref", Prefix: layout.FetchJobPrefix, ParseKey: ids(layout.FetchJobRef),
		ID:    func(j Job) string { return string(j.Ref) },
		Event: fetchEvent,
	}
	// Rename gives an image another name. The ID is the old one.
	Rename = &Kind{
		Name: "rename", Member: "rename", Prefix: layout.RenameJobPrefix, ParseKey: ids(layout.RenameJobName),
		ID:    func(j Job) string { return string(j.Name) },
		Event: renameEvent,
	}
)

// ids converts the IDs that parse returns to strings.
func ids[T ~string](parse func(store.Key) (T, bool)) func(store.Key) (string, bool) {
	return func(key store.Key) (string, bool) {
		id, ok := parse(key)
		return string(id), ok
	}
}

// Kinds are all kinds of jobs.
var Kinds = []*Kind{Hash, Check, Disk, Fetch, Rename}

// Names returns the names of [Kinds].
func Names() []string {
	names := make([]string, len(Kinds))
	for i, k := range Kinds {
		names[i] = k.Name
	}
	return names
}

func hashEvent(j Job) activity.Event {
	switch j.Status {
	case Completed:
		return activity.Event{
			Kind: activity.ImageHashed, SubjectID: string(j.Name), Summary: "hashed " + string(j.Name),
			Details: map[string]any{"sha256": j.SHA256, "size_bytes": j.BytesDone},
		}
	case Failed:
		return activity.Event{
			Kind: activity.ImageHashFailed, SubjectID: string(j.Name), Summary: "could not hash " + string(j.Name),
			Details: map[string]any{"error": j.Error},
		}
	}
	return activity.Event{}
}

func checkEvent(j Job) activity.Event {
	if j.Status != Failed {
		return activity.Event{}
	}
	return activity.Event{
		Kind: activity.ImageCheckFailed, SubjectID: string(j.SHA256), Summary: "check of " + string(j.Name) + " failed",
		Details: map[string]any{"name": j.Name, "sha256": j.SHA256, "error": j.Error},
	}
}

func diskEvent(j Job) activity.Event {
	switch j.Status {
	case Completed:
		return activity.Event{
			Kind: activity.ImageDiskMade, SubjectID: string(j.SHA256), Summary: "made the disk of " + string(j.Name),
			Details: map[string]any{"name": j.Name, "sha256": j.SHA256, "size_bytes": j.BytesDone},
		}
	case Failed:
		return activity.Event{
			Kind: activity.ImageDiskFailed, SubjectID: string(j.SHA256), Summary: "could not make the disk of " + string(j.Name),
			Details: map[string]any{"name": j.Name, "sha256": j.SHA256, "error": j.Error},
		}
	}
	return activity.Event{}
}

func fetchEvent(j Job) activity.Event {
	switch j.Status {
	case Completed:
		return activity.Event{
			Kind: activity.ImageFetched, SubjectID: string(j.SHA256), Summary: "fetched " + string(j.Name),
			Details: map[string]any{"name": j.Name, "src": j.Src, "sha256": j.SHA256, "size_bytes": j.BytesDone},
		}
	case Failed:
		return activity.Event{
			Kind: activity.ImageFetchFailed, SubjectID: cmp.Or(string(j.SHA256), string(j.Name)), Summary: "could not fetch " + string(j.Name),
			Details: map[string]any{"name": j.Name, "src": j.Src, "error": j.Error},
		}
	}
	return activity.Event{}
}

func renameEvent(j Job) activity.Event {
	e := activity.Event{Actor: j.Actor, SourceIP: j.SourceIP, Details: map[string]any{"name": j.Name, "new_name": j.NewName}}
	switch j.Status {
	case Completed:
		e.Kind, e.SubjectID, e.Summary = activity.ImageRenamed, string(j.NewName), "renamed "+string(j.Name)+" to "+string(j.NewName)
	case Failed:
		e.Kind, e.SubjectID, e.Summary = activity.ImageRenameFailed, string(j.Name), "could not rename "+string(j.Name)+" to "+string(j.NewName)
		e.Details["error"] = j.Error
	}
	return e
}

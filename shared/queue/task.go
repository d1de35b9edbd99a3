package queue

import (
	"encoding/json"
	"fmt"
	"strings"

	"imageroot/shared/objectevent"
	"imageroot/shared/store"
)

// A Task is one of the types below. It is encoded as a JSON object with one member.
type Task interface {
	// Encode returns the body of the task's message.
	Encode() []byte
}

type (
	// InspectImage is the key of an object in the image root to inspect: an image, a
	// sidecar or the manifest.
	InspectImage string
	// InspectContent is the SHA-256 of bytes to inspect.
	InspectContent string
	// RunJob is a job to run. Member is that of its kind: see job.Kind.
	RunJob struct{ Member, ID string }
	// Assemble is the ID of a resumable upload to assemble.
	Assemble string
	// Resume sends the tasks of active jobs again.
	Resume struct{}
	// Poll lists the image root to find changes without an event.
	Poll struct{}
	// Reconcile compares all records with the listings.
	Reconcile struct{}
)

// Members of tasks other than [RunJob].
const (
	imageMember     = "image"
	contentMember   = "content"
	uploadMember    = "upload"
	resumeMember    = "resume"
	pollMember      = "poll"
	reconcileMember = "reconcile"
)

func (t InspectImage) Encode() []byte   { return encode(imageMember, string(t)) }
func (t InspectContent) Encode() []byte { return encode(contentMember, string(t)) }
func (t RunJob) Encode() []byte         { return encode(t.Member, t.ID) }
func (t Assemble) Encode() []byte       { return encode(uploadMember, string(t)) }
func (Resume) Encode() []byte           { return encode(resumeMember, true) }
func (Poll) Encode() []byte             { return encode(pollMember, true) }
func (Reconcile) Encode() []byte        { return encode(reconcileMember, true) }

func encode(member string, value any) []byte {
	data, err := json.Marshal(map[string]any{member: value})
	if err != nil {
		panic(err) // strings and booleans always encode
	}
	return data
}

// Decode returns the task in the body of a message.
func Decode(body []byte) (Task, error) {
	var object map[string]any
	if err := json.Unmarshal(body, &object); err == nil && len(object) == 1 {
		for member, value := range object {
			if t := decode(member, value); t != nil {
				return t, nil
			}
		}
	}
	return nil, fmt.Errorf("not a task: %.100q", body)
}

func decode(member string, value any) Task {
	if value == true {
		switch member {
		case resumeMember:
			return Resume{}
		case pollMember:
			return Poll{}
		case reconcileMember:
			return Reconcile{}
		}
		return nil
	}
	name, _ := value.(string)
	switch {
	case name == "":
		return nil
	case member == imageMember:
		return InspectImage(name)
	case member == contentMember:
		return InspectContent(name)
	case member == uploadMember:
		return Assemble(name)
	}
	return RunJob{member, name}
}

// Tasks returns the tasks of a message. The message is a [Task] or an S3 event
// notification. A notification gives an [InspectImage] for each object of bucket whose
// key is prefix and one path segment.
func Tasks(body []byte, bucket, prefix string) ([]Task, error) {
	if t, err := Decode(body); err == nil {
		return []Task{t}, nil
	}
	events, err := objectevent.Parse(body)
	if err != nil {
		return nil, fmt.Errorf("message is neither a task nor an object event: %w", err)
	}
	var tasks []Task
	for _, e := range events {
		if e.Bucket != bucket {
			continue
		}
		if key, ok := TopLevel(e.Key, prefix); ok {
			tasks = append(tasks, InspectImage(key))
		}
	}
	return tasks, nil
}

// TopLevel returns key without prefix, and whether that is one path segment.
func TopLevel(key, prefix string) (store.Key, bool) {
	name, ok := strings.CutPrefix(key, prefix)
	return store.Key(name), ok && name != "" && !strings.Contains(name, "/")
}

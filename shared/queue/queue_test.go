package queue_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"imageroot/shared/queue"
	"imageroot/shared/store"
)

// Messages sent before an upgrade must decode after it.
func TestTaskRoundTrip(t *testing.T) {
	for wire, task := range map[string]queue.Task{
		`{"image":"a b+ü%41#?.img"}`: queue.InspectImage("a b+ü%41#?.img"),
		`{"content":"01ab"}`:         queue.InspectContent("01ab"),
		`{"hash":"x.img"}`:           queue.RunJob{Member: "hash", ID: "x.img"},
		`{"ref":"0123"}`:             queue.RunJob{Member: "ref", ID: "0123"},
		`{"upload":"4567"}`:          queue.Assemble("4567"),
		`{"resume":true}`:            queue.Resume{},
		`{"poll":true}`:              queue.Poll{},
		`{"reconcile":true}`:         queue.Reconcile{},
	} {
		if got := string(task.Encode()); got != wire {
			t.Errorf("%#v is %s, want %s", task, got, wire)
		}
		got, err := queue.Tasks([]byte(wire), "images", "")
		if err != nil || !reflect.DeepEqual(got, []queue.Task{task}) {
			t.Errorf("%s came back as %#v, %v", wire, got, err)
		}
	}
	quoted := queue.InspectImage(`quote"'<b>.img`)
	if got, err := queue.Decode(quoted.Encode()); err != nil || got != quoted {
		t.Errorf("%q came back as %#v, %v", quoted, got, err)
	}
}

// event returns an S3 event notification for keys as encoded on the wire.
func event(bucket string, wireKeys ...string) []byte {
	type m = map[string]any
	var records []m
	for _, k := range wireKeys {
		records = append(records, m{
			"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": "2026-01-02T03:04:05.000Z",
			"s3": m{"bucket": m{"name": bucket}, "object": m{"key": k, "size": 1, "sequencer": "0A"}},
		})
	}
	data, err := json.Marshal(m{"Records": records})
	if err != nil {
		panic(err)
	}
	return data
}

func TestTasksOfEvents(t *testing.T) {
	for _, tt := range []struct {
		name   string
		body   []byte
		prefix string
		want   []queue.Task
	}{
		{"one", event("images", "x.img"), "", []queue.Task{queue.InspectImage("x.img")}},
		{"several", event("images", "x.img", "y.img.sha256"), "", []queue.Task{queue.InspectImage("x.img"), queue.InspectImage("y.img.sha256")}},
		{"encoded once", event("images", "a+b%2B%2541.img"), "", []queue.Task{queue.InspectImage("a b+%41.img")}},
		{"another bucket", event("other", "x.img"), "", nil},
		{"below the top level", event("images", "dir/x.img"), "", nil},
		{"with the prefix", event("images", "pre/x.img"), "pre/", []queue.Task{queue.InspectImage("x.img")}},
		{"with an encoded prefix", event("images", "pre+fix/x.img"), "pre fix/", []queue.Task{queue.InspectImage("x.img")}},
		{"without the prefix", event("images", "x.img"), "pre/", nil},
		{"below the prefix", event("images", "pre/dir/x.img"), "pre/", nil},
		{"the prefix itself", event("images", "pre/"), "pre/", nil},
		{"a test event", []byte(`{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2026-01-02T03:04:05.000Z","Bucket":"images"}`), "", nil},
	} {
		got, err := queue.Tasks(tt.body, "images", tt.prefix)
		if err != nil || !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	for _, body := range []string{"", "{}", "[]", "null", "hello", `{"image":""}`, `{"image":5}`, `{"resume":false}`, `{"image":true}`, `{"image":"a","hash":"b"}`, `{"Records":5}`} {
		if got, err := queue.Tasks([]byte(body), "images", ""); err == nil {
			t.Errorf("%q is taken for %+v", body, got)
		}
	}
}

func TestTopLevel(t *testing.T) {
	for _, tt := range []struct {
		key, prefix string
		name        store.Key
		ok          bool
	}{
		{"x.img", "", "x.img", true},
		{"pre/x.img", "pre/", "x.img", true},
		{"pre/x.img", "", "", false},
		{"pre/", "pre/", "", false},
		{"", "", "", false},
		{"x.img", "pre/", "", false},
		{"pre/pre/x.img", "pre/", "", false},
	} {
		name, ok := queue.TopLevel(tt.key, tt.prefix)
		if ok != tt.ok || ok && name != tt.name {
			t.Errorf("TopLevel(%q, %q) = %q, %v", tt.key, tt.prefix, name, ok)
		}
	}
}

func TestOutcome(t *testing.T) {
	cause := errors.New("busy")
	err := fmt.Errorf("task: %w", queue.RetryAfter(time.Minute, cause))
	if out := queue.Outcome(err); out.After != time.Minute || !out.Free {
		t.Errorf("the outcome is %+v", out)
	}
	if !errors.Is(err, cause) || err.Error() != "task: busy" {
		t.Errorf("the error is %v", err)
	}
	if out := queue.Outcome(cause); out.After != 0 || out.Free || out.Held {
		t.Errorf("an error like others has the outcome %+v", out)
	}
}

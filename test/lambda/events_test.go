package lambda_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/events"

	"imageroot/test/template"
)

// TestEvents passes every file of infra/events to the function that it is named
// after, under the emulator of sam local.
func TestEvents(t *testing.T) {
	w := newWorld(t)
	w.put("sample image+1.img", []byte("the bytes of an image"))
	w.until("the image is hashed", func() bool { return strings.Contains(string(w.want(200, "GET", "/images", nil).body), "sample") })
	statuses := map[string]int{
		"catalog-healthz": 200, "catalog-listing": 200, "catalog-login": 303, "catalog-page": 303, "catalog-rows": 200, "catalog-image": 307,
		"upload-put": 307, "upload-begin": 201, "addbyurl-list": 200, "hash-list": 200, "fetch-list": 200,
		"addbyurl-add": 400, // the name does not resolve here
	}
	root, err := template.Root()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "infra/events/*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	ids := w.tpl.Functions()
	seen := map[string]bool{}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		payload, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if name == "reconcile" {
			w.reconcile()
			continue
		}
		function, _, _ := strings.Cut(name, "-")
		id, ok := ids[function]
		if !ok {
			t.Errorf("%s is for no function", name)
			continue
		}
		seen[function] = true
		out, err := w.fn[id].invoke(t.Context(), payload)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if strings.Contains(string(payload), `"aws:sqs"`) {
			if r := as[events.SQSEventResponse](t, out); len(r.BatchItemFailures) != 0 {
				t.Errorf("%s: %s\n%s", name, out, w.fn[id].logs())
			}
			continue
		}
		r := as[events.APIGatewayV2HTTPResponse](t, out)
		if want, ok := statuses[name]; !ok || r.StatusCode != want {
			t.Errorf("%s: %d %.300s, want %d", name, r.StatusCode, r.Body, want)
		}
		if name == "catalog-login" && !strings.HasPrefix(strings.Join(r.Cookies, "\n"), "imageroot_session=") {
			t.Errorf("logging in: %+v", r)
		}
	}
	for function := range ids {
		if !seen[function] {
			t.Errorf("there is no event for %s", function)
		}
	}
}

// TestPartialFailure: only the failed messages of a batch are redelivered.
func TestPartialFailure(t *testing.T) {
	w := newWorld(t)
	w.put("x.img", []byte("bytes"))
	var batch events.SQSEvent
	for i, body := range []string{`{"image":"x.img"}`, `not a task`, `{"image":"gone.img"}`, `{"what":1}`} {
		batch.Records = append(batch.Records, events.SQSMessage{
			MessageId: fmt.Sprint("m", i), ReceiptHandle: fmt.Sprint("r", i), Body: body, EventSource: "aws:sqs",
			EventSourceARN: "arn:aws:sqs:us-east-1:" + template.Account + ":InspectionQueue", Attributes: map[string]string{"ApproximateReceiveCount": "1"},
		})
	}
	out, err := w.fn["HashFunction"].invoke(t.Context(), encode(t, batch))
	if err != nil {
		t.Fatal(err)
	}
	var failed []string
	for _, f := range as[events.SQSEventResponse](t, out).BatchItemFailures {
		failed = append(failed, f.ItemIdentifier)
	}
	if !slices.Equal(failed, []string{"m1", "m3"}) {
		t.Errorf("failed: %q", failed)
	}
}

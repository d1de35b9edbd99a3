package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/minio"
)

// hooking runs a MinIO server that sends events of the bucket images to
// imageroot, and keeps undelivered ones in dir.
func hooking(t *testing.T) (s *minio.Server, ir *server, dir string) {
	dir = filepath.Join(t.TempDir(), "queue")
	at := freeAddress(t)
	s = start(t, minio.Options{Env: []string{
		"MINIO_NOTIFY_WEBHOOK_ENABLE_IMAGEROOT=on", "MINIO_NOTIFY_WEBHOOK_ENDPOINT_IMAGEROOT=http://" + at + "/hooks/minio",
		"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_IMAGEROOT=" + webhookToken, "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_IMAGEROOT=" + dir,
	}})
	ir = run(t, launch(t, s.URL, "IMAGEROOT_WEBHOOK_TOKEN="+webhookToken, "IMAGEROOT_LISTEN="+at))
	tool(t, keys(s.URL), mc, "event", "add", "s3/images", "arn:minio:sqs::IMAGEROOT:webhook", "--event", "put,delete")
	return s, ir, dir
}

// kept returns the number of events that MinIO keeps.
func kept(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil // sent meanwhile
		}
		if err == nil && strings.HasSuffix(path, ".event") {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWebhook tests that events arrive by the webhook, from every client and
// for every name, and that none is lost over restarts of either side.
func TestWebhook(t *testing.T) {
	t.Parallel()
	s, ir, dir := hooking(t)
	want := map[string][]byte{}
	put := func(how, name string) {
		t.Helper()
		want[name] = content(uint64(len(want)), 100_000+len(want))
		uploaders[how](t, s.URL, file(t, want[name]), name)
	}
	came := func(when string, n int) {
		t.Helper()
		eventually(t, when+" all events have come", func() error {
			if got, left := ir.hooked(t), kept(t, dir); got < n || left > 0 {
				return fmt.Errorf("%d have come, want %d; the server keeps %d", got, n, left)
			}
			return nil
		})
	}

	// After the first event, the poll runs every five minutes only: an image
	// that is known sooner was reported by an event.
	put("aws", "first.img")
	ir.knows(t, want)
	came("at first", 1)
	if log := ir.Log(); !strings.Contains(log, "by=webhook") || !strings.Contains(log, "the first one has come") || !strings.Contains(log, "poll=5m0s") {
		t.Errorf("the log does not say how events come:\n%s", tail(log))
	}
	n := len(want)
	for how := range uploaders {
		put(how, how+".img")
		put(how, how+" \u00fc+%41#&.img")
	}
	ir.knows(t, want)
	came("from every client", len(want))
	if got := ir.hooked(t); got < n+2*len(uploaders) {
		t.Errorf("%d events of %d objects", got, n+2*len(uploaders))
	}
	tool(t, keys(s.URL), mc, "rm", "--quiet", "s3/images/mc.img")
	delete(want, "mc.img")
	ir.knows(t, want)

	// imageroot is down, and the server restarts meanwhile: it keeps the events
	// that it cannot send.
	if err := ir.Kill(); err != nil {
		t.Fatal(err)
	}
	n = len(want)
	for how := range uploaders {
		put(how, "away by "+how+".img")
	}
	eventually(t, "the server keeps every event", func() error {
		if got := kept(t, dir); got != len(want)-n {
			return fmt.Errorf("%d of %d", got, len(want)-n)
		}
		return nil
	})
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	again(t, s)
	put("aws", "away still.img")
	ir.start(t)
	came("after imageroot was away", len(want)-n)
	ir.knows(t, want)

	// The server is down.
	if err := s.Stop(within); err != nil {
		t.Error(err)
	}
	again(t, s)
	put("rclone", "after the restart.img")
	ir.knows(t, want)
	n = ir.hooked(t)

	// imageroot stops as a service does, with an upload right before and after.
	put("aws", "before the stop.img")
	if err := ir.Stop(within); err != nil {
		t.Error(err)
	}
	put("aws", "after the stop.img")
	ir.start(t)
	came("after a stop", 1)
	ir.knows(t, want)
}

// TestWrongToken loses no event of a server with a wrong token: the server
// keeps its events until it gets the right one, and the poll finds the images
// meanwhile.
func TestWrongToken(t *testing.T) {
	t.Parallel()
	s, ir, dir := hooking(t)
	if err := ir.Kill(); err != nil {
		t.Fatal(err)
	}
	ir.options.Env = append(ir.options.Env, "IMAGEROOT_WEBHOOK_TOKEN=another-token-0123456789")
	ir.start(t)
	data := content(1, 100_000)
	uploaders["aws"](t, s.URL, file(t, data), "a.img")
	ir.knows(t, map[string][]byte{"a.img": data})
	if got := kept(t, dir); got != 1 || ir.hooked(t) != 0 {
		t.Errorf("%d events are kept and %d taken, of 1", got, ir.hooked(t))
	}
	if !strings.Contains(ir.Log(), "status=403") {
		t.Error("the log does not say that somebody has a wrong token")
	}
}

// TestSwallowedStream runs over a release of MinIO that opens its event stream
// and never sends anything. The poll finds the changes.
func TestSwallowedStream(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	for _, events := range []string{"listen", "auto"} {
		ir := run(t, launch(t, s.URL, "IMAGEROOT_EVENTS="+events))
		want := map[string][]byte{}
		for how, upload := range uploaders {
			name := how + " " + events + ".img"
			want[name] = content(uint64(len(name)), 200_000)
			upload(t, s.URL, file(t, want[name]), name)
		}
		ir.knows(t, want)
		for name := range want {
			tool(t, keys(s.URL), mc, "rm", "--quiet", "s3/images/"+name)
		}
		ir.knows(t, nil)
		if log := ir.Log(); !strings.Contains(log, "by=listen") || !strings.Contains(log, "poll=15s") || strings.Contains(log, "poll=5m") {
			t.Errorf("%s: the log does not say how events come:\n%s", events, tail(log))
		}
		if err := ir.Stop(within); err != nil {
			t.Error(err)
		}
	}
}

// TestServerRestarts restarts the server while imageroot runs, with nothing but
// the poll.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	ir := run(t, launch(t, s.URL))
	data := content(1, 100_000)
	uploaders["aws"](t, s.URL, file(t, data), "a.img")
	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	again(t, s)
	uploaders["aws"](t, s.URL, file(t, data), "b.img")
	ir.knows(t, map[string][]byte{"a.img": data, "b.img": data})
}

package probe_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/probe"
)

func TestRecord(t *testing.T) {
	recordtest.Documented[probe.Passed](t, "../../..", "probe/passed")
}

// A server that has passed is trusted for a week, but not with conditional writes, and
// not under another URL.
func TestCheckOnce(t *testing.T) {
	const endpoint = "http://s3.example:9000"
	now := time.Date(2026, 11, 29, 8, 0, 0, 0, time.UTC)
	log := slog.New(slog.DiscardHandler)
	mem := memstore.New()
	once := func(root store.Root, endpoint string, after time.Duration) (found bool) {
		t.Helper()
		err := probe.CheckOnce(t.Context(), root, endpoint, now.Add(after), log)
		_, found = errors.AsType[*probe.LackError](err)
		if err != nil && !found {
			t.Fatal(err)
		}
		return found
	}
	worse := &broken{Root: mem, move: func(context.Context, store.Key, store.Key, store.Version) (store.Version, error) {
		return store.Version{}, errors.ErrUnsupported
	}}
	for range 2 { // a failure is not remembered
		if !once(worse, endpoint, 0) {
			t.Error("a server that lacks a feature passes")
		}
	}
	passes := func() {
		t.Helper()
		if once(mem, endpoint, 0) || once(worse, endpoint, time.Hour) {
			t.Error("a server that has passed is checked again, or does not pass")
		}
	}
	passes()
	overwrites := func(ctx context.Context, key store.Key, data []byte) (string, error) { return put(ctx, mem, key, data) }
	if !once(worse, endpoint, 8*24*time.Hour) || !once(worse, endpoint, -24*time.Hour) {
		t.Error("a server is trusted for longer than a week")
	}
	if !once(worse, "http://other.example:9000", time.Hour) {
		t.Error("a server at another URL is trusted")
	}
	if !once(&broken{Root: mem, replace: func(ctx context.Context, key store.Key, data []byte, _ string) (string, error) {
		return overwrites(ctx, key, data)
	}}, endpoint, time.Hour) {
		t.Error("a server that ignores If-Match is trusted")
	}
	if !once(worse, endpoint, time.Hour) {
		t.Error("the record that a server has overwritten is believed")
	}
	passes()
	if !once(&broken{Root: mem, create: overwrites}, endpoint, time.Hour) {
		t.Error("a server that ignores If-None-Match is trusted")
	}
	passes()

	read := func() []byte {
		t.Helper()
		data, _, err := mem.ReadRecord(t.Context(), layout.PassedKey)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	whole := read()
	newer := bytes.Replace(whole, []byte(`"schema":1,`), []byte(`"schema":99,`), 1)
	for what, data := range map[string][]byte{"damaged": whole[:10], "newer": newer} {
		if _, err := put(t.Context(), mem, layout.PassedKey, data); err != nil {
			t.Fatal(err)
		}
		if !once(worse, endpoint, 0) || once(mem, endpoint, 0) {
			t.Errorf("the %s record of a server is believed", what)
		}
		if kept := bytes.Equal(read(), data); kept != (what == "newer") {
			t.Errorf("the %s record is now %s", what, read())
		}
	}
}

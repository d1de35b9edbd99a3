package gateway_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/fsnotify/fsnotify"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

var hostileNames = []string{
	"%41.img", "a b+c.img", "ü", `quote"'<b>.img`, "a#b?c&d=e;f.img", "日本.img", "back`tick$(x).img", strings.Repeat("n", 251) + ".img",
}

// TestEventsOfS3: each change through S3 is reported once, when it is complete.
func TestEventsOfS3(t *testing.T) {
	dir := t.TempDir()
	var events recorder
	g := start(t, dir, events.watch("images"))
	r := root(t, g.Endpoint(), "images")
	catalog := root(t, g.Endpoint(), "catalog")
	objects := func() []gateway.Event { // without the folder, which only the watcher reports
		return slices.DeleteFunc(events.all(), func(e gateway.Event) bool { return e.Key == "dir" })
	}
	expect := func(what string, want ...gateway.Event) {
		t.Helper()
		got := objects()
		if len(got) < len(want) {
			t.Fatalf("%s: the events are %+v, want %+v", what, got, want)
		}
		for i, e := range want {
			if got[len(got)-len(want)+i] != e {
				t.Errorf("%s: the events are %+v, want %+v", what, got[len(got)-len(want):], want)
			}
		}
	}
	made := func(key string) gateway.Event { return gateway.Event{Bucket: "images", Key: key} }
	gone := func(key string) gateway.Event { return gateway.Event{Bucket: "images", Key: key, Removed: true} }
	total := 0
	for _, name := range hostileNames {
		put(t, r, name, []byte("1"))
		expect("PUT", made(name))
		v := put(t, r, name, []byte("2"))
		expect("PUT again", made(name), made(name))
		dst := fmt.Sprintf("copy%d.img", total)
		if _, err := r.Move(t.Context(), store.Key(dst), store.Key(name), v); err != nil {
			t.Fatal(err)
		}
		expect("copy", made(dst))
		id, parts := begin(t, r, name, []byte("3"))
		if _, err := r.CompleteUpload(t.Context(), store.Key(name), id, parts); err != nil {
			t.Fatal(err)
		}
		expect("complete", made(dst), made(name))
		if err := r.Delete(t.Context(), store.Key(name)); err != nil {
			t.Fatal(err)
		}
		expect("DELETE", made(name), gone(name))
		if err := r.Delete(t.Context(), store.Key(name)); err != nil {
			t.Fatal(err)
		}
		total += 5
	}
	put(t, r, "a.img", []byte("1"))
	put(t, r, "dir/b.img", []byte("1"))
	_, err := raw(g.Endpoint()).DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: aws.String("images"), Delete: &types.Delete{
		Objects: []types.ObjectIdentifier{{Key: aws.String("a.img")}, {Key: aws.String("none.img")}, {Key: aws.String("dir/b.img")}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	expect("DeleteObjects", made("a.img"), made("dir/b.img"), gone("a.img"), gone("dir/b.img"))
	put(t, catalog, "records/a", []byte("1"))
	expect("PUT elsewhere", gateway.Event{Bucket: "catalog", Key: "records/a"})
	if _, err := r.Put(t.Context(), ".hidden", strings.NewReader("x"), 1); err == nil {
		t.Error("a hidden file was taken")
	}
	total += 5

	// A file that only the watcher can have seen marks the end of its reports about
	// the others.
	write(t, filepath.Join(dir, "images", "marker.img"), "x")
	events.await(t, 1, made("marker.img"))
	if got := objects(); len(got) != total+1 {
		t.Errorf("%d events, want %d: %+v", len(got), total+1, got)
	}
}

// TestUnlisted: entries of the directory that S3 does not list are known, from the
// start and when they are created and removed.
func TestUnlisted(t *testing.T) {
	dir := t.TempDir()
	images := filepath.Join(dir, "images")
	var events recorder
	g := start(t, dir, events.watch("images"))
	root(t, g.Endpoint(), "images")
	const badName = "a\xff\n.img"
	mkdir(t, filepath.Join(images, "folder.img"))
	write(t, filepath.Join(images, badName), "x")
	write(t, filepath.Join(images, ".hidden"), "x")
	write(t, filepath.Join(images, "good.img"), "x")
	if err := errors.Join(os.Symlink("good.img", filepath.Join(images, "link.img")), syscall.Mkfifo(filepath.Join(images, "pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"folder.img", badName, "link.img", "pipe", "good.img"} {
		events.await(t, 1, gateway.Event{Bucket: "images", Key: name})
	}
	expect := func(want map[string]string) {
		t.Helper()
		got := g.Unlisted("images")
		if len(got) != len(want) {
			t.Errorf("not listed are %q", got)
		}
		for name, reason := range want {
			if !strings.Contains(got[name], reason) {
				t.Errorf("%q: %q, want it to say %q", name, got[name], reason)
			}
		}
	}
	want := map[string]string{"folder.img": "folder", badName: "rename", "link.img": "symbolic link", "pipe": "regular"}
	expect(want)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	g = start(t, dir, events.watch("images"))
	expect(want)
	// A file in place of the link is an object.
	if err := errors.Join(os.Remove(filepath.Join(images, "pipe")), os.Rename(filepath.Join(images, "good.img"), filepath.Join(images, "link.img"))); err != nil {
		t.Fatal(err)
	}
	events.await(t, 1, gateway.Event{Bucket: "images", Key: "pipe", Removed: true})
	events.await(t, 2, gateway.Event{Bucket: "images", Key: "link.img"})
	delete(want, "pipe")
	delete(want, "link.img")
	expect(want)
}

// watchedBy runs a test over a watcher with notifications, and over one that
// only polls.
func watchedBy(t *testing.T, test func(t *testing.T, images string, events *recorder)) {
	t.Run("Notified", func(t *testing.T) {
		dir := t.TempDir()
		var events recorder
		g := start(t, dir, events.watch("images"), func(cfg *gateway.Config) { cfg.Poll = time.Hour })
		root(t, g.Endpoint(), "images")
		test(t, filepath.Join(dir, "images"), &events)
	})
	t.Run("Polled", func(t *testing.T) {
		dir := t.TempDir()
		var events recorder
		g := start(t, dir, events.watch("images"), func(cfg *gateway.Config) {
			cfg.Poll = 100 * time.Millisecond
			cfg.Notify = func() (*fsnotify.Watcher, error) { return nil, errors.ErrUnsupported }
		})
		root(t, g.Endpoint(), "images")
		test(t, filepath.Join(dir, "images"), &events)
	})
}

// TestWatcher makes files and changes them, in each way under every name.
func TestWatcher(t *testing.T) {
	watchedBy(t, func(t *testing.T, images string, events *recorder) {
		made := func(key string) gateway.Event { return gateway.Event{Bucket: "images", Key: key} }
		gone := func(key string) gateway.Event { return gateway.Event{Bucket: "images", Key: key, Removed: true} }
		outside := t.TempDir()
		dropped := func(path string) error { return os.WriteFile(path, []byte("dropped"), 0o644) }
		movedIn := func(path string) error {
			part := filepath.Join(outside, "part")
			return errors.Join(os.WriteFile(part, []byte("moved"), 0o644), os.Rename(part, path))
		}
		steps := []struct {
			first, then func(path string) error
			want        func(key string) gateway.Event // after then
		}{
			{dropped, movedIn, made},
			{movedIn, func(path string) error { // edited in place
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				if err != nil {
					return err
				}
				_, err = f.WriteAt([]byte("edit"), 2)
				return errors.Join(err, f.Close())
			}, made},
			{dropped, func(path string) error { return os.Rename(path, filepath.Join(outside, filepath.Base(path))) }, gone},
			{movedIn, os.Remove, gone},
		}
		each := func(do func(i int, key string)) {
			for i := range steps {
				for _, name := range hostileNames {
					if name = fmt.Sprint(i, name); len(name) > 255 {
						name = name[:251] + ".img"
					}
					do(i, name)
				}
			}
		}
		each(func(i int, key string) {
			if err := steps[i].first(filepath.Join(images, key)); err != nil {
				t.Fatal(err)
			}
		})
		each(func(_ int, key string) { events.await(t, 1, made(key)) })
		before := map[string]int{} // the first step may have caused several events
		each(func(i int, key string) {
			before[key] = events.count(steps[i].want(key))
			if err := steps[i].then(filepath.Join(images, key)); err != nil {
				t.Fatal(err)
			}
		})
		each(func(i int, key string) { events.await(t, before[key]+1, steps[i].want(key)) })
		write(t, filepath.Join(images, "from.img"), "x")
		events.await(t, 1, made("from.img"))
		if err := os.Rename(filepath.Join(images, "from.img"), filepath.Join(images, "to.img")); err != nil {
			t.Fatal(err)
		}
		events.await(t, 1, gone("from.img"))
		events.await(t, 1, made("to.img"))
		for _, e := range events.all() {
			if e.Key[0] == '.' {
				t.Errorf("an event of a hidden file: %+v", e)
			}
		}

		// The directory is removed, created with other files, and is watched again.
		if err := os.Rename(images, images+"-gone"); err != nil {
			t.Fatal(err)
		}
		events.await(t, 1, gone("to.img"))
		mkdir(t, images)
		write(t, filepath.Join(images, "again.img"), "x")
		events.await(t, 1, made("again.img"))
		write(t, filepath.Join(images, "again2.img"), "x")
		events.await(t, 1, made("again2.img"))
	})
}

// TestWatcherCoalesces: a file that grows is reported at most once a second, and
// after its last write.
func TestWatcherCoalesces(t *testing.T) {
	dir := t.TempDir()
	var events recorder
	e := gateway.Event{Bucket: "images", Key: "growing.img"}
	path := filepath.Join(dir, e.Bucket, e.Key)
	var seen atomic.Int64 // the size that the receiver of the last event found
	g := start(t, dir, events.watch("images"), func(cfg *gateway.Config) {
		cfg.Poll = time.Hour
		record := cfg.Changed
		cfg.Changed = func(e gateway.Event) {
			if info, err := os.Stat(path); err == nil {
				seen.Store(info.Size())
			}
			record(e)
		}
	})
	root(t, g.Endpoint(), "images")
	began := time.Now()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var size int64
	eventually(t, func() bool {
		n, err := f.Write(make([]byte, 4096))
		if err != nil {
			t.Fatal(err)
		}
		size += int64(n)
		return events.count(e) >= 3
	})
	eventually(t, func() bool { return seen.Load() == size })
	if n, d := events.count(e), time.Since(began); time.Duration(n-1)*time.Second > d {
		t.Errorf("%d events in %v", n, d)
	}
	if v := version(t, g.Endpoint(), "images", "growing.img"); v.Size != size {
		t.Errorf("the object has %d bytes, the file %d", v.Size, size)
	}
}

// TestWatcherKnowsWhatWasThere: files that exist at the start are not reported, and
// files that are created right after it are.
func TestWatcherKnowsWhatWasThere(t *testing.T) {
	dir := t.TempDir()
	images := mkdir(t, dir, "images")
	write(t, filepath.Join(images, "old.img"), "old")
	var events recorder
	g := start(t, dir, events.watch("images", "later"))
	write(t, filepath.Join(images, "new.img"), "new")
	events.await(t, 1, gateway.Event{Bucket: "images", Key: "new.img"})
	mkdir(t, dir, "later")
	write(t, filepath.Join(dir, "later", "a.img"), "a")
	events.await(t, 1, gateway.Event{Bucket: "later", Key: "a.img"})
	write(t, filepath.Join(dir, "later", "b.img"), "b")
	events.await(t, 1, gateway.Event{Bucket: "later", Key: "b.img"})
	if n := events.count(gateway.Event{Bucket: "images", Key: "old.img"}); n > 0 {
		t.Errorf("%d events of a file from before the start", n)
	}
	if data, _ := get(t, client(t, g.Endpoint()).Root("images", ""), "new.img"); string(data) != "new" {
		t.Errorf("read %q", data)
	}
	if _, _, err := client(t, g.Endpoint()).Root("later", "").Get(t.Context(), "a.img", store.All, ""); err != nil {
		t.Error(err)
	}
}

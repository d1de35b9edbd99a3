package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// settle is the time from a notification of a file to its examination. Further
	// notifications in that time have no effect.
	settle = 150 * time.Millisecond
	// quiet is the minimum time between two events of one file.
	quiet = time.Second
)

// A watcher reports files that are created, changed or removed at the top of
// buckets' directories without S3.
type watcher struct {
	dir     string
	changed func(Event)
	log     *slog.Logger
	poll    time.Duration
	notify  *fsnotify.Watcher // nil if the system gives no notifications
	stop    chan struct{}
	ended   chan struct{} // nil before start

	mu      sync.Mutex
	buckets map[string]*watched // fixed set
}

// A state describes an entry of a bucket's directory when it was last examined.
type state struct {
	stamp
	ctime    int64
	unlisted string // the reason that S3 does not list it; then the rest is zero
}

func stateOf(name string, info fs.FileInfo) state {
	if reason := unlisted(name, info); reason != "" {
		return state{unlisted: reason}
	}
	return state{stampOf(info), ctimeOf(info), ""}
}

// watched is one bucket.
type watched struct {
	inode    os.FileInfo // of the directory that is watched
	known    map[string]state
	due      map[string]time.Time // when to examine an entry
	writing  map[string]int       // writes through S3 in flight
	reported map[string]time.Time // when an entry was last reported; kept for quiet
}

// watch returns a watcher whose mu is locked. The caller must call start or close.
func watch(dir string, cfg Config) *watcher {
	w := &watcher{dir: dir, changed: cfg.Changed, log: cfg.Log, poll: cfg.Poll, stop: make(chan struct{}), buckets: map[string]*watched{}}
	for _, b := range cfg.Watch {
		w.buckets[b] = &watched{known: map[string]state{}, due: map[string]time.Time{}, writing: map[string]int{}, reported: map[string]time.Time{}}
	}
	var err error
	if w.notify, err = cfg.Notify(); err == nil {
		err = w.notify.Add(dir)
	}
	if err != nil {
		w.log.Warn("the system gives no notifications of files; changes are found every "+w.poll.String(), slog.Any("error", err))
	}
	w.mu.Lock()
	return w
}

// start starts the watcher. It reports what changes from now on. Until it has read the
// buckets' directories, who needs mu waits. The program's first reconciliation covers the
// files that exist at the start.
func (w *watcher) start() {
	// The clock of files ticks every few milliseconds, but some files have the exact time.
	// Once it is past now, all that changes is newer than the files of before.
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	since := time.Now().UnixNano()
	for fileTime() <= since {
		<-tick.C
	}
	w.ended = make(chan struct{})
	go func() {
		for name := range w.buckets {
			w.compare(name, since)
		}
		w.mu.Unlock()
		w.run()
	}()
}

// fileTime returns the earliest change time of a file that changes now; see ctimeOf.
func fileTime() int64 {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &t) // cannot fail
	return t.Nano()
}

// close ends the watcher. It waits at most a second for a call of changed.
func (w *watcher) close() {
	close(w.stop)
	if w.ended != nil {
		select {
		case <-w.ended:
		case <-time.After(time.Second):
			w.log.Warn("a receiver of events about changed files blocks")
		}
	}
	if w.notify != nil {
		w.notify.Close()
	}
}

func (w *watcher) run() {
	defer close(w.ended)
	var events chan fsnotify.Event
	var errs chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	polls := time.NewTicker(w.poll)
	defer polls.Stop()
	due := time.NewTimer(time.Hour)
	defer due.Stop()
	for {
		due.Reset(w.wait())
		select {
		case <-w.stop:
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			w.notified(e)
		case err, ok := <-errs:
			if !ok {
				errs = nil
				continue
			}
			// Usually an overflow of the system's queue.
			w.log.Debug("notifications of files were lost", slog.Any("error", err))
			w.scanAll()
		case <-polls.C:
			w.scanAll()
		case now := <-due.C:
			w.examine(now)
		}
	}
}

// notified schedules the file of a notification.
func (w *watcher) notified(e fsnotify.Event) {
	parent, name := filepath.Split(e.Name)
	parent = filepath.Clean(parent)
	if parent == w.dir {
		if _, ok := w.buckets[name]; ok {
			w.scan(name) // the bucket itself was created or removed
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.buckets[filepath.Base(parent)]; ok && name != "" && name[0] != '.' {
		b.schedule(name)
	}
}

// schedule schedules the examination of a file: after settle, and at least quiet
// after its last event.
func (b *watched) schedule(name string) {
	if _, scheduled := b.due[name]; scheduled {
		return
	}
	at := time.Now().Add(settle)
	if again := b.reported[name].Add(quiet); again.After(at) {
		at = again
	}
	b.due[name] = at
}

// wait returns the time until a file is due, at most an hour.
func (w *watcher) wait() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := time.Now().Add(time.Hour)
	for _, b := range w.buckets {
		for _, at := range b.due {
			if at.Before(first) {
				first = at
			}
		}
	}
	return max(0, time.Until(first))
}

// examine reads the state of the files that are due and reports the changes.
func (w *watcher) examine(now time.Time) {
	var events []Event
	w.mu.Lock()
	for bucket, b := range w.buckets {
		for name, at := range b.reported {
			if now.Sub(at) > quiet {
				delete(b.reported, name)
			}
		}
		for name, at := range b.due {
			if at.After(now) {
				continue
			}
			if b.writing[name] > 0 {
				b.due[name] = now.Add(settle)
				continue
			}
			// A later write schedules it again.
			delete(b.due, name)
			before, was := b.known[name]
			var is state
			info, err := os.Lstat(filepath.Join(w.dir, bucket, name))
			switch {
			case err == nil:
				is = stateOf(name, info)
				b.known[name] = is
			case errors.Is(err, fs.ErrNotExist):
				delete(b.known, name)
			default:
				continue
			}
			if exists := err == nil; exists != was || is != before {
				b.reported[name] = now
				removed := !exists || was && before.unlisted == "" && is.unlisted != ""
				events = append(events, Event{Bucket: bucket, Key: name, Removed: removed})
			}
		}
	}
	w.mu.Unlock()
	for _, e := range events {
		w.changed(e)
	}
}

func (w *watcher) scanAll() {
	for name := range w.buckets {
		w.scan(name)
	}
}

// scan compares a bucket's directory with the known entries and schedules those
// that differ.
func (w *watcher) scan(bucket string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.compare(bucket, 0)
}

// compare is scan for callers that hold w.mu. It only records entries that are not known
// and were last changed before since, in nanoseconds since 1970.
func (w *watcher) compare(bucket string, since int64) {
	b := w.buckets[bucket]
	dir := filepath.Join(w.dir, bucket)
	w.follow(b, dir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.log.Warn("a bucket's directory cannot be read", slog.String("path", dir), slog.Any("error", err))
		return
	}
	there := make(map[string]bool, len(entries))
	for _, e := range entries {
		if e.Name()[0] == '.' {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue
		}
		there[e.Name()] = true
		is := stateOf(e.Name(), info)
		before, was := b.known[e.Name()]
		if !was && ctimeOf(info) < since {
			b.known[e.Name()] = is
		} else if !was || before != is {
			b.schedule(e.Name())
		}
	}
	for name := range b.known {
		if !there[name] {
			b.schedule(name)
		}
	}
}

// unlisted returns the reason that S3 does not list an entry of a bucket's
// directory, with the remedy, or "" if S3 lists it.
func unlisted(name string, info fs.FileInfo) string {
	switch {
	case !listable(name):
		return "the name has characters that S3 cannot list: rename the file"
	case info.IsDir():
		return "a folder is not an image: put the images in it at the top of the image root"
	case info.Mode()&fs.ModeSymlink != 0:
		return "symbolic links are not followed: put the file itself here"
	case !info.Mode().IsRegular():
		return "it is not a regular file"
	}
	return ""
}

func (w *watcher) unlisted(bucket string) map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	found := map[string]string{}
	if b, ok := w.buckets[bucket]; ok {
		for name, is := range b.known {
			if is.unlisted != "" {
				found[name] = is.unlisted
			}
		}
	}
	return found
}

// follow moves the notifications to the current directory of a bucket. The caller
// holds w.mu.
func (w *watcher) follow(b *watched, dir string) {
	if w.notify == nil {
		return
	}
	info, err := os.Stat(dir)
	if err != nil {
		b.inode = nil
		return
	}
	if b.inode != nil && os.SameFile(info, b.inode) {
		return
	}
	if b.inode != nil {
		_ = w.notify.Remove(dir) // of the directory that was here before
	}
	if err := w.notify.Add(dir); err != nil {
		w.log.Warn("the system gives no notifications of a bucket's files; changes are found every "+w.poll.String(),
			slog.String("path", dir), slog.Any("error", fmt.Errorf("watch: %w", err)))
		return
	}
	b.inode = info
}

// expect announces that S3 is about to change a file, and done whether it did.
// The backend reports such a change. Until done is called the file is not
// examined, since removing what it replaces takes a while.
func (w *watcher) expect(bucket, key string) (done func(made bool)) {
	b, ok := w.buckets[bucket]
	if !ok || filepath.Base(key) != key || key[0] == '.' {
		return func(bool) {}
	}
	w.mu.Lock()
	b.writing[key]++
	w.mu.Unlock()
	return func(made bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if b.writing[key]--; b.writing[key] == 0 {
			delete(b.writing, key)
		}
		if !made {
			return
		}
		info, err := os.Lstat(filepath.Join(w.dir, bucket, key))
		switch {
		case err == nil && info.Mode().IsRegular():
			b.known[key] = stateOf(key, info)
		case errors.Is(err, fs.ErrNotExist):
			delete(b.known, key)
		}
	}
}

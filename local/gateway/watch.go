package gateway

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// settle is how long the watcher waits for further notifications of a file.
	settle = 150 * time.Millisecond
	// quiet is the least time between two events of one file.
	quiet = time.Second
)

// A watcher reports files that are created, changed or removed at the top of
// buckets' directories without S3.
type watcher struct {
	dir     string
	changed func(Event)
	log     *slog.Logger
	poll    time.Duration
	notify  *fsnotify.Watcher // nil where the system has none to give
	stop    chan struct{}
	stopped sync.WaitGroup

	mu      sync.Mutex
	buckets map[string]*watched // fixed set
}

// A sight is the state of a file when it was last examined.
type sight struct {
	stamp
	ctime int64
}

func sightOf(info fs.FileInfo) sight { return sight{stampOf(info), ctimeOf(info)} }

// watched is one bucket.
type watched struct {
	inode os.FileInfo // of the directory that notifications come from
	known map[string]sight
	aside map[string]string    // the reasons for what S3 does not list
	due   map[string]time.Time // when to examine a file
	held  map[string]int       // writes through S3 in flight
	told  map[string]time.Time // when a file was last reported, for the time quiet
}

func watch(dir string, cfg Config) (*watcher, error) {
	w := &watcher{dir: dir, changed: cfg.Changed, log: cfg.Log, poll: cfg.Poll, stop: make(chan struct{}), buckets: map[string]*watched{}}
	for _, b := range cfg.Watch {
		w.buckets[b] = &watched{known: map[string]sight{}, aside: map[string]string{}, due: map[string]time.Time{}, told: map[string]time.Time{}, held: map[string]int{}}
	}
	if len(cfg.Watch) == 0 {
		return w, nil
	}
	var err error
	if w.notify, err = cfg.Notify(); err == nil {
		err = w.notify.Add(dir)
	}
	if err != nil {
		w.log.Warn("the system gives no notifications of files; changes are found every "+w.poll.String(), slog.Any("error", err))
	}
	// The first reconciliation covers what is there at the start.
	for name := range w.buckets {
		w.scan(name, true)
	}
	w.stopped.Go(w.run)
	return w, nil
}

// close ends the watcher. It waits at most a second for a call of changed.
func (w *watcher) close() {
	close(w.stop)
	ended := make(chan struct{})
	go func() {
		w.stopped.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(time.Second):
		w.log.Warn("a receiver of events about changed files blocks")
	}
	if w.notify != nil {
		w.notify.Close()
	}
}

func (w *watcher) run() {
	var events chan fsnotify.Event
	var errs chan error
	if w.notify != nil {
		events, errs = w.notify.Events, w.notify.Errors
	}
	polls := time.NewTicker(w.poll)
	defer polls.Stop()
	look := time.NewTimer(time.Hour)
	defer look.Stop()
	for {
		if next := w.next(); !next.IsZero() {
			look.Reset(max(0, time.Until(next)))
		} else {
			look.Reset(time.Hour)
		}
		select {
		case <-w.stop:
			return
		case e, ok := <-events:
			if !ok {
				events = nil
				continue
			}
			w.heard(e)
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
		case now := <-look.C:
			w.look(now)
		}
	}
}

// heard schedules a file of a notification.
func (w *watcher) heard(e fsnotify.Event) {
	parent, name := filepath.Split(e.Name)
	parent = filepath.Clean(parent)
	if parent == w.dir {
		if _, ok := w.buckets[name]; ok {
			w.scan(name, false) // the bucket itself was created or removed
		}
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.buckets[filepath.Base(parent)]; ok && name != "" && name[0] != '.' {
		b.note(name)
	}
}

// note schedules a file to be examined after the time settle, and not before the
// time quiet has passed since its last event.
func (b *watched) note(name string) {
	if _, planned := b.due[name]; planned {
		return
	}
	at := time.Now().Add(settle)
	if again := b.told[name].Add(quiet); again.After(at) {
		at = again
	}
	b.due[name] = at
}

// next returns the time at which a file is due first, or the zero time.
func (w *watcher) next() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	var first time.Time
	for _, b := range w.buckets {
		for _, at := range b.due {
			if first.IsZero() || at.Before(first) {
				first = at
			}
		}
	}
	return first
}

// look examines the files that are due and reports the changes.
func (w *watcher) look(now time.Time) {
	var events []Event
	w.mu.Lock()
	for bucket, b := range w.buckets {
		for name, at := range b.told {
			if now.Sub(at) > quiet {
				delete(b.told, name)
			}
		}
		for name, at := range b.due {
			if at.After(now) {
				continue
			}
			if b.held[name] > 0 {
				b.due[name] = now.Add(settle)
				continue
			}
			// A later write is scheduled again.
			delete(b.due, name)
			info, err := os.Lstat(filepath.Join(w.dir, bucket, name))
			if reason := unlisted(name, info); reason != b.aside[name] {
				if b.aside[name] = reason; reason == "" {
					delete(b.aside, name)
				}
				events = append(events, Event{Bucket: bucket, Key: name, Removed: err != nil})
			}
			before, was := b.known[name]
			switch {
			case err == nil && info.Mode().IsRegular():
				if s := sightOf(info); !was || s != before {
					b.known[name] = s
					b.told[name] = now
					events = append(events, Event{Bucket: bucket, Key: name})
				}
			case err == nil || errors.Is(err, fs.ErrNotExist):
				if was {
					delete(b.known, name)
					b.told[name] = now
					events = append(events, Event{Bucket: bucket, Key: name, Removed: true})
				}
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
		w.scan(name, false)
	}
}

// scan compares a bucket's directory with what is known of it and schedules the
// differences. The first scan takes everything as known.
func (w *watcher) scan(bucket string, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
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
		reason := unlisted(e.Name(), info)
		if first && reason != "" {
			b.aside[e.Name()] = reason
		} else if reason != b.aside[e.Name()] {
			b.note(e.Name())
		}
		if !info.Mode().IsRegular() {
			if _, was := b.known[e.Name()]; was {
				b.note(e.Name())
			}
			continue
		}
		s := sightOf(info)
		if first {
			b.known[e.Name()] = s
		} else if before, was := b.known[e.Name()]; !was || before != s {
			b.note(e.Name())
		}
	}
	for name := range b.known {
		if !there[name] {
			b.note(name)
		}
	}
	for name := range b.aside {
		if !there[name] {
			b.note(name)
		}
	}
}

// unlisted returns the reason that S3 does not list an entry of a bucket's
// directory, with what to do about it, or "" if S3 lists it. info is nil if there
// is no such entry.
func unlisted(name string, info fs.FileInfo) string {
	switch {
	case info == nil:
		return ""
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

// unlisted implements [Gateway.Unlisted].
func (w *watcher) unlisted(bucket string) map[string]string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if b, ok := w.buckets[bucket]; ok {
		return maps.Clone(b.aside)
	}
	return nil
}

// follow moves the notifications to the present directory of a bucket. The caller
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
	b.held[key]++
	w.mu.Unlock()
	return func(made bool) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if b.held[key]--; b.held[key] == 0 {
			delete(b.held, key)
		}
		if !made {
			return
		}
		info, err := os.Lstat(filepath.Join(w.dir, bucket, key))
		switch {
		case err == nil && info.Mode().IsRegular():
			b.known[key] = sightOf(info)
		case errors.Is(err, fs.ErrNotExist):
			delete(b.known, key)
		}
	}
}

// Command torture runs three runners over the same buckets, with clocks up to a
// minute apart, under mixed load: uploads over HTTP and S3, files dropped into the
// directory, fetches from a hostile publisher, cancellations, deletions. It kills
// them at random moments and damages the index. Then it waits until all work has
// ended and checks the invariants: each acknowledged write is stored, with the
// digest of its bytes; no job is running; the index and every runner say what the
// records say; no file is left over.
//
// -seed determines the actions of each client, of the killer and of the vandal, but
// not how they interleave. The exit status is 1 if an invariant does not hold.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/test/runner"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
		os.Exit(1)
	}
}

// options holds the flags of the command line.
type options struct {
	duration time.Duration
	seed     uint64
	clients  int
	race     bool
	keep     bool
	dir      string
}

// A world holds the state that the clients share.
type world struct {
	options
	out    io.Writer
	first  *node   // hosts the gateway
	others []*node // use it as their S3 server
	// newOther returns one more runner, which is not in others.
	newOther  func() *node
	publisher *publisher
	model     *model
	images    store.Root
	catalog   store.Root
	http      *http.Client

	foreign       sync.Map // IDs of uploads that S3 clients began
	goodManifests sync.Map // SHA-256 of each valid manifest

	mu         sync.Mutex
	counts     map[string]map[string]int
	violations []string
	started    time.Time
	log        *os.File
	files      map[string]*sync.Mutex
	// What clients have dropped, deleted and cancelled, which may be missing at the end.
	dropped, deleted, cancelled map[string]bool
	// IDs of resumable uploads whose completion was not recorded.
	unnoted map[string]bool
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	w := &world{
		out: out, model: newModel(), counts: map[string]map[string]int{}, started: time.Now(), files: map[string]*sync.Mutex{},
		dropped: map[string]bool{}, deleted: map[string]bool{}, cancelled: map[string]bool{}, unnoted: map[string]bool{},
	}
	flags := flag.NewFlagSet("torture", flag.ContinueOnError)
	flags.DurationVar(&w.duration, "duration", 50*time.Second, "how long to torture before the checks")
	flags.Uint64Var(&w.seed, "seed", 0, "what the run does follows from it (default: chosen and printed)")
	flags.IntVar(&w.clients, "clients", 6, "how many clients act at once")
	flags.BoolVar(&w.race, "race", false, "build the binary with the race detector")
	flags.BoolVar(&w.keep, "keep", false, "keep the directory also where all is well")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if w.seed == 0 {
		w.seed = rand.Uint64()>>32 + 1
	}
	if w.dir, err = os.MkdirTemp("", "imageroot-torture-"); err != nil {
		return err
	}
	if w.log, err = os.Create(filepath.Join(w.dir, "trace.log")); err != nil {
		return err
	}
	defer func() {
		_ = w.log.Close()
		if err != nil || w.keep {
			fmt.Fprintf(out, "data, logs and trace are in %s\n", w.dir)
			return
		}
		err = os.RemoveAll(w.dir)
	}()
	fmt.Fprintf(out, "torture: seed %d, %s, %d clients\n", w.seed, w.duration, w.clients)
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.open(ctx); err != nil {
		return err
	}
	w.torture(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	w.check(ctx)
	w.report()
	if len(w.violations) > 0 {
		return fmt.Errorf("%d violations with -seed %d", len(w.violations), w.seed)
	}
	return nil
}

// close stops what open has started, even if open failed.
func (w *world) close() error {
	var errs []error
	for _, n := range w.nodes() {
		errs = append(errs, n.kill())
	}
	if w.publisher != nil {
		w.publisher.CloseClientConnections()
		w.publisher.Close()
	}
	return errors.Join(errs...)
}

// nodes returns all runners. Before open, there is none.
func (w *world) nodes() []*node {
	if w.first == nil {
		return nil
	}
	return append([]*node{w.first}, w.others...)
}

// random returns a generator that is determined by the seed and who.
func (w *world) random(who uint64) *rand.Rand { return rand.New(rand.NewPCG(w.seed, who)) }

func (w *world) open(ctx context.Context) error {
	changed, err := overlay(ctx, w.dir)
	if err != nil {
		return err
	}
	flags := []string{"-overlay", changed}
	if w.race {
		flags = append(flags, "-race")
	}
	binary, err := runner.Build(ctx, w.dir, flags...)
	if err != nil {
		return err
	}
	w.publisher = publish(w.random(1))
	w.http = &http.Client{
		Transport:     &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	leads := slices.Clone(leads)
	w.random(5).Shuffle(len(leads), func(i, j int) { leads[i], leads[j] = leads[j], leads[i] })
	var s3 string
	w.first, s3 = firstNode(w.dir, binary, w.model.died, leads[0])
	if err := w.first.start(ctx); err != nil {
		return err
	}
	program, err := programKey(w.dir)
	if err != nil {
		return err
	}
	w.newOther = func() *node {
		number := 2 + len(w.others)
		return otherNode(number, w.dir, binary, w.model.died, s3, program, leads[(number-1)%len(leads)])
	}
	for range len(leads) - 1 {
		w.others = append(w.others, w.newOther())
	}
	for _, n := range w.others {
		if err := n.start(ctx); err != nil {
			return err
		}
	}
	root := func(bucket string, k key) (store.Root, error) {
		c, err := s3store.Open(ctx, s3store.Config{Endpoint: s3, Region: "us-east-1", AccessKey: k.Access, SecretKey: k.Secret, Direct: true})
		if err != nil {
			return nil, err
		}
		return c.Root(bucket, ""), nil
	}
	if w.images, err = root("images", key{accessKey, secretKey}); err != nil {
		return err
	}
	w.catalog, err = root("catalog", program)
	return err
}

// torture runs the clients and the killer for the duration.
func (w *world) torture(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, w.duration)
	defer cancel()
	var wg sync.WaitGroup
	for i := range w.clients {
		wg.Go(func() { (&client{w, i, w.random(100 + uint64(i))}).work(ctx) })
	}
	wg.Go(func() { w.killer(ctx, w.random(2)) })
	wg.Go(func() { (&vandal{world: w, rng: w.random(4)}).work(ctx) })
	wg.Wait()
}

// asleep is the time for which a runner is paused: longer than a lease.
const asleep = 40 * time.Second

// pauses reports whether there is time for pausing runners.
func (w *world) pauses() bool { return w.duration >= 3*time.Minute }

// killer kills, stops and pauses runners, and starts them again.
func (w *world) killer(ctx context.Context, rng *rand.Rand) {
	for ctx.Err() == nil {
		pause(ctx, time.Duration(500+rng.IntN(5500))*time.Millisecond)
		if ctx.Err() != nil {
			break
		}
		down := time.Duration(rng.IntN(1500)) * time.Millisecond
		other := w.others[rng.IntN(len(w.others))]
		switch n := rng.IntN(20); {
		case n < 6:
			w.did("kill runner 1", w.first.kill())
			pause(ctx, down)
			w.start(ctx, w.first)
		case n < 8:
			w.did("stop runner 1", w.first.stop())
			pause(ctx, down)
			w.start(ctx, w.first)
		case n < 9:
			// Kill it while it starts.
			w.did("kill runner 1", w.first.kill())
			sctx, cancel := context.WithTimeout(ctx, time.Duration(rng.IntN(150))*time.Millisecond)
			if err := w.first.start(sctx); err == nil {
				w.count("killer", "was faster than a kill at the start")
			} else {
				w.count("killer", "kill runner 1 while it starts")
			}
			cancel()
			w.start(ctx, w.first)
		case n < 16 && !other.up():
			w.start(ctx, other)
		case n < 13:
			w.did(fmt.Sprintf("kill runner %d", other.number), other.kill())
		case n < 15:
			w.did(fmt.Sprintf("stop runner %d", other.number), other.stop())
		case n < 18 || !w.pauses():
			// Whichever runner writes the checkpoint is in the middle of it.
			if !w.checkpointBegins(ctx) {
				break
			}
			pause(ctx, time.Duration(rng.IntN(20))*time.Millisecond)
			w.count("killer", "kill all runners during a checkpoint")
			var wg sync.WaitGroup
			for _, n := range w.nodes() {
				wg.Go(func() { w.did(fmt.Sprintf("kill runner %d", n.number), n.kill()) })
			}
			wg.Wait()
			w.startAgain(ctx)
		default:
			victim := w.nodes()[rng.IntN(1+len(w.others))]
			w.did(fmt.Sprintf("pause runner %d", victim.number), victim.pause(ctx, asleep))
		}
	}
	w.startAgain(ctx)
}

// checkpointBegins waits until a runner takes the lease for a checkpoint. It returns false
// if none does within a few seconds.
func (w *world) checkpointBegins(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	pointer := filepath.Join(w.dir, "data", "catalog", string(layout.IndexKey))
	before, _ := os.ReadFile(pointer) // missing before the first checkpoint
	for ctx.Err() == nil {
		now, err := os.ReadFile(pointer)
		if err == nil && bytes.Contains(now, []byte(`"owner"`)) && !bytes.Equal(now, before) {
			return true
		}
		pause(ctx, time.Millisecond)
	}
	return false
}

// start starts a runner that is down. The first runner must be up, unless it is the one.
func (w *world) start(ctx context.Context, n *node) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	if n.up() {
		return
	}
	w.did(fmt.Sprintf("start runner %d", n.number), n.start(ctx))
}

// startAgain starts all runners that are down.
func (w *world) startAgain(ctx context.Context) {
	w.start(ctx, w.first)
	for _, n := range w.others {
		w.start(ctx, n)
	}
}

// did counts an action of the killer, which must succeed.
func (w *world) did(what string, err error) {
	w.trace("killer: %s: %v", what, err)
	w.count("killer", what)
	if err != nil {
		w.violate("%s: %v", what, err)
	}
}

func (w *world) count(what, how string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.counts[what] == nil {
		w.counts[what] = map[string]int{}
	}
	w.counts[what][how]++
}

func (w *world) note(where *map[string]bool, what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	(*where)[what] = true
}

func (w *world) noted(where *map[string]bool, what string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return (*where)[what]
}

func (w *world) trace(format string, args ...any) {
	line := time.Now().Format("15:04:05.000 ") + fmt.Sprintf(format, args...) + "\n"
	w.mu.Lock()
	defer w.mu.Unlock()
	_, _ = w.log.WriteString(line) // the trace is optional
}

// violate records that an invariant does not hold.
func (w *world) violate(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace("VIOLATION: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violations = append(w.violations, time.Now().Format("15:04:05.000 ")+text)
}

// lockFile excludes other clients from writing to the file of an image in place.
func (w *world) lockFile(name string) (unlock func()) {
	w.mu.Lock()
	if w.files[name] == nil {
		w.files[name] = new(sync.Mutex)
	}
	m := w.files[name]
	w.mu.Unlock()
	m.Lock()
	return m.Unlock
}

func (w *world) imageFile(name string) string { return filepath.Join(w.dir, "data", "images", name) }

// report prints the number of actions by outcome, and the violations.
func (w *world) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		var hows []string
		for _, how := range slices.Sorted(maps.Keys(w.counts[what])) {
			hows = append(hows, fmt.Sprintf("%s %d", how, w.counts[what][how]))
		}
		fmt.Fprintf(w.out, "  %-26s %s\n", what, strings.Join(hows, ", "))
	}
	for _, v := range w.violations {
		fmt.Fprintf(w.out, "VIOLATION %s\n", v)
	}
	fmt.Fprintf(w.out, "torture: seed %d: %d violations in %s\n", w.seed, len(w.violations), time.Since(w.started).Round(time.Second))
}

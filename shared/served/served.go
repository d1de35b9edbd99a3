// Package served records which addresses got the bytes of an image last, and when: one
// record a content, written at most once a minute.
package served

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

// What was served of an image.
const (
	Image = "image" // its bytes
	Disk  = "disk"  // the disk in it
)

// A Delivery is a complete answer with the bytes of an image.
type Delivery struct {
	To   string `json:"to"` // the IP address of the client
	What string `json:"what"`
	// Token is the name of the client's token, if the request needed one.
	Token string    `json:"token,omitempty"`
	At    time.Time `json:"at"` // UTC, of the last one
	// Link is true if the client got a URL of the bytes in the store, and may have used it.
	Link bool `json:"link,omitempty"`
}

// A Record has the deliveries of the bytes with one SHA-256, the newest first: the last one
// to each address of each kind.
type Record struct {
	record.Meta
	SHA256     layout.SHA256 `json:"sha256"`
	Deliveries []Delivery    `json:"deliveries"`
}

func (r *Record) Validate() error {
	if !r.SHA256.Valid() || r.Deliveries == nil {
		return errors.New("a record of deliveries has a SHA-256 and a list")
	}
	return nil
}

const (
	// most is the number of deliveries of one content that are kept, and keepFor the time
	// for which.
	most    = 100
	keepFor = 90 * 24 * time.Hour
	// maxPending limits the contents whose deliveries wait to be written. Clients that get
	// more of them in a minute are not recorded.
	maxPending = 64
	// An address that gets the same bytes again within repeat of the last delivery that was
	// written is not written again.
	repeat = 10 * time.Minute
	// patience bounds the time of one write.
	patience = 10 * time.Second
)

// A Log adds and lists deliveries. It is safe for concurrent use, and several processes may
// share its root. All exported fields are required.
type Log struct {
	Root store.Root // the catalog root
	Now  func() time.Time
	Log  *slog.Logger

	mu      sync.Mutex
	pending map[layout.SHA256]map[key]Delivery
	written map[layout.SHA256]map[key]time.Time // of the last contents that were written
}

// A key is what a content is delivered once for.
type key struct {
	network     netip.Prefix // of one client: IPv6 gives each its own /64
	what, token string
}

func keyOf(d Delivery) (key, bool) {
	addr, err := netip.ParseAddr(d.To)
	if err != nil {
		return key{}, false
	}
	addr, bits := addr.Unmap().WithZone(""), 64
	if addr.Is4() {
		bits = 32
	}
	network, err := addr.Prefix(bits)
	return key{network, d.What, d.Token}, err == nil
}

// Add notes a delivery that has ended now. It makes no request and keeps a bounded amount of
// memory; Flush writes it.
func (l *Log) Add(sha256 layout.SHA256, d Delivery) {
	d.At = l.Now().UTC().Truncate(time.Second)
	k, ok := keyOf(d)
	if !ok || sha256 == "" {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if d.At.Sub(l.written[sha256][k]) < repeat {
		return
	}
	of := l.pending[sha256]
	if of == nil {
		if len(l.pending) >= maxPending {
			return
		}
		if l.pending == nil {
			l.pending = map[layout.SHA256]map[key]Delivery{}
		}
		of = map[key]Delivery{}
		l.pending[sha256] = of
	}
	if _, known := of[k]; known || len(of) < most {
		of[k] = d
	}
}

// Flush writes what was added, or logs why it could not. Deliveries that were not written
// are lost.
func (l *Log) Flush(ctx context.Context) {
	l.mu.Lock()
	pending := l.pending
	l.pending = nil
	if len(l.written) > maxPending {
		l.written = nil
	}
	l.mu.Unlock()
	for sha256, of := range pending {
		if err := l.write(ctx, sha256, of); err != nil {
			l.warn("deliveries were not recorded", sha256, err)
			continue
		}
		l.mu.Lock()
		if l.written == nil {
			l.written = map[layout.SHA256]map[key]time.Time{}
		}
		at := map[key]time.Time{}
		for k, t := range l.written[sha256] {
			if l.Now().Sub(t) < repeat && len(at) < most {
				at[k] = t
			}
		}
		for k, d := range of {
			at[k] = d.At
		}
		l.written[sha256] = at
		l.mu.Unlock()
	}
}

func (l *Log) write(ctx context.Context, sha256 layout.SHA256, of map[key]Delivery) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_, _, err := record.Change(ctx, l.Root, layout.ServedKey(sha256), func(r *Record, _ bool) error {
		r.SHA256 = sha256
		all := r.Deliveries
		for _, d := range of {
			all = append(all, d)
		}
		r.Deliveries = l.newest(all)
		return nil
	})
	return err
}

// newest returns the newest deliveries, each client once for each kind, without old ones.
func (l *Log) newest(all []Delivery) []Delivery {
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b Delivery) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(a.To, b.To)) })
	seen, kept, now := map[key]bool{}, []Delivery{}, l.Now()
	for _, d := range all {
		k, ok := keyOf(d)
		if !ok || seen[k] || now.Sub(d.At) > keepFor || len(kept) == most {
			continue
		}
		seen[k] = true
		kept = append(kept, d)
	}
	return kept
}

// List returns the deliveries of the bytes with this SHA-256, the newest first, with those
// of this process that are not written yet. It is not nil. A damaged record, or one of a
// newer version, counts as empty and is logged.
func (l *Log) List(ctx context.Context, sha256 layout.SHA256) ([]Delivery, error) {
	r, _, err := record.Read[Record](ctx, l.Root, layout.ServedKey(sha256))
	switch {
	case errors.Is(err, record.ErrDamaged), errors.Is(err, record.ErrNewer):
		l.warn("deliveries cannot be read", sha256, err)
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return nil, fmt.Errorf("list deliveries: %w", err)
	}
	all := r.Deliveries
	l.mu.Lock()
	for _, d := range l.pending[sha256] {
		all = append(all, d)
	}
	l.mu.Unlock()
	return l.newest(all), nil
}

func (l *Log) warn(message string, sha256 layout.SHA256, err error) {
	at := layout.ServedKey(sha256)
	l.Log.Warn(message, "key", at, "error", err, "remedy", record.Remedy(at, err))
}

// Sweep removes the records whose deliveries are all too old to be kept, even damaged ones,
// but not those of a newer version. The error is one of the store; a later Sweep removes the
// rest.
func (l *Log) Sweep(ctx context.Context) error {
	for info, err := range l.Root.List(ctx, layout.ServedPrefix, "") {
		if err != nil {
			return fmt.Errorf("sweep deliveries: %w", err)
		}
		if _, ok := layout.ServedSHA256(info.Key); !ok || l.Now().Sub(info.LastModified) <= keepFor {
			continue
		}
		if err := record.Delete[Record](ctx, l.Root, info.Key); err != nil && !errors.Is(err, record.ErrNewer) {
			return fmt.Errorf("sweep deliveries: %w", err)
		}
	}
	return nil
}

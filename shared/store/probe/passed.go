package probe

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

const (
	// version is the version of the checks. It grows with every feature that they cover.
	version = 1
	// trustTime is the time after which a server is checked again.
	trustTime = 7 * 24 * time.Hour
)

// Passed is the record of a server that has passed [Check].
type Passed struct {
	record.Meta
	// Version is that of the checks.
	Version  int       `json:"version"`
	Endpoint string    `json:"endpoint"`
	At       time.Time `json:"at"`
}

// Validate implements record.Validator.
func (p *Passed) Validate() error {
	if p.Endpoint == "" {
		return errors.New("it names no server")
	}
	return nil
}

// CheckOnce is [Check] for the server at endpoint, unless a record in the catalog root
// says that it has passed within the last seven days. In this case three requests test
// whether the server still honours conditional writes: another one may have taken its
// place.
func CheckOnce(ctx context.Context, catalog store.Root, endpoint string, now time.Time, log *slog.Logger) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	p, _, err := record.Read[Passed](ctx, catalog, layout.PassedKey)
	if errors.Is(err, record.ErrDamaged) || errors.Is(err, record.ErrNewer) {
		log.Warn("the server is probed again: it is not known that it has passed", "error", err, "remedy", record.Remedy(layout.PassedKey, err))
	}
	age := now.Sub(p.At)
	if err == nil && p.Version == version && p.Endpoint == endpoint && age > -time.Hour && age < trustTime && refuses(ctx, catalog) {
		return nil
	}
	if err := Check(ctx, catalog); err != nil {
		return err
	}
	// If this fails, the next start checks again. It leaves a newer record unchanged.
	_, _, _ = record.Change(ctx, catalog, layout.PassedKey, func(p *Passed, _ bool) error {
		p.Version, p.Endpoint, p.At = version, endpoint, now.UTC()
		return nil
	})
	return nil
}

// refuses reports whether the server refuses to create the record a second time, and to
// replace a content that it does not have.
func refuses(ctx context.Context, catalog store.Root) bool {
	const other = "d41d8cd98f00b204e9800998ecf8427e" // the ETag of empty content
	// A server that stores this is checked at the next start too: it names no server.
	data, err := json.Marshal(Passed{Meta: record.Meta{Nonce: rand.Text()}})
	if err != nil {
		return false
	}
	var create, replace error
	var wg sync.WaitGroup
	wg.Go(func() { _, create = catalog.CreateRecord(ctx, layout.PassedKey, data) })
	wg.Go(func() { _, replace = catalog.ReplaceRecord(ctx, layout.PassedKey, data, other) })
	wg.Wait()
	return errors.Is(create, store.ErrConflict) && errors.Is(replace, store.ErrConflict)
}

// Package kit opens what the functions share: the image root and the catalog root, the
// inventory over both, jobs, activity, the operator and metrics. The runner (package
// main in local) and the Lambda functions (shared/cloud) open the same kit and add
// their own queues, gateway or presigned URLs.
package kit

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net"
	"strings"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/config"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/served"
	"imageroot/shared/store"
)

// Config is the configuration of [New].
type Config struct {
	config.Config
	// Images and Catalog are the two roots.
	Images, Catalog store.Root
	// Server is the HOST:PORT of their S3 server, which is denied to sources. It is empty
	// if sources cannot reach that server.
	Server string
	// PrivateSources allows sources in private networks.
	PrivateSources bool
	// Hidden and Compact are those of inventory.Config.
	Hidden  func() []inventory.Other
	Compact bool
	// Follow is that of auth.Config.
	Follow bool
	Log    *slog.Logger
}

// A Kit holds what the functions share. Its parts are safe for concurrent use.
type Kit struct {
	// Config is that of [New], but the inventory observes each write through Images and
	// Catalog.
	Config
	Inventory *inventory.Inventory
	Activity  *activity.Log
	Served    *served.Log
	Jobs      *job.Jobs
	Metric    *metric.Set
	Operator  *auth.Operator // nil until OpenOperator
	Now       func() time.Time
}

// New returns a kit without an Operator. It does not access the roots.
func New(cfg Config) *Kit {
	k := &Kit{Config: cfg, Metric: metric.New(job.Names()...), Now: time.Now}
	k.Inventory = inventory.New(inventory.Config{
		Images: k.Images, Catalog: k.Catalog, Hidden: k.Hidden, Compact: k.Compact, Now: k.Now, Log: k.Log,
	})
	k.Images, k.Catalog = k.Inventory.ObserveImages(k.Images), k.Inventory.ObserveCatalog(k.Catalog)
	k.Activity = &activity.Log{Root: k.Catalog, Now: k.Now, Log: k.Log}
	k.Served = &served.Log{Root: k.Catalog, Now: k.Now, Log: k.Log}
	k.Jobs = &job.Jobs{Records: k.Catalog, Owner: rand.Text(), Now: k.Now, Activity: k.Activity, Metric: k.Metric, Log: k.Log}
	return k
}

// OpenOperator sets Operator. Unless Follow is set, it stores the hash of Password if
// that is not empty. The error is that of auth.Open: auth.ErrNoPassword if there is no
// password.
func (k *Kit) OpenOperator(ctx context.Context) (err error) {
	k.Operator, err = auth.Open(ctx, auth.Config{
		Records: k.Catalog, Password: k.Password, Token: k.Token, SessionKey: k.Lambda.SessionKey, Follow: k.Follow, Now: k.Now, Log: k.Log,
	})
	return err
}

// Ready returns nil if the image root answers, and the error of store.Objects otherwise.
func (k *Kit) Ready(ctx context.Context) error {
	_, err := k.Images.Head(ctx, layout.ManifestKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// HostPort returns the HOST:PORT of the URL endpoint, with the default port of http or
// https if it has none. It returns "" if endpoint has no scheme.
func HostPort(endpoint string) string {
	scheme, host, ok := strings.Cut(endpoint, "://")
	if _, _, err := net.SplitHostPort(host); err == nil || !ok {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), map[string]string{"http": "80", "https": "443"}[scheme])
}

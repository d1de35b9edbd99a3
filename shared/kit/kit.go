// Package kit opens what the functions share: the two roots with the inventory
// over them, jobs, activity, the operator, metrics and the policy for sources.
// The runner (local) and the functions at AWS (shared/cloud) open the same kit
// and add what differs: queues, the gateway, presigned URLs.
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
	"imageroot/shared/netpolicy"
	"imageroot/shared/store"
)

// Config says what a kit is opened over.
type Config struct {
	config.Config
	// Images and Catalog are the two roots.
	Images, Catalog store.Root
	// Server is the HOST:PORT of their S3 server, which no source may be; empty
	// if sources cannot reach it.
	Server string
	// PrivateSources lets sources be in private networks.
	PrivateSources bool
	// Hidden, MaxAge and Wait are inventory.Config's.
	Hidden func() []inventory.Other
	MaxAge time.Duration
	Wait   bool
	// Follow is auth.Config's.
	Follow bool
	Log    *slog.Logger
}

// A Kit is what the functions share. Its parts are safe for concurrent use.
type Kit struct {
	config.Config
	// Images and Catalog are the roots. The inventory learns of what is written
	// through them.
	Images, Catalog store.Root
	Inventory       *inventory.Inventory
	Activity        *activity.Log
	Jobs            *job.Jobs
	Metric          *metric.Set
	Operator        *auth.Operator // nil until OpenOperator
	Now             func() time.Time
	Log             *slog.Logger

	cfg Config
}

// New returns a kit. It reads and writes nothing yet.
func New(cfg Config) *Kit {
	k := &Kit{Config: cfg.Config, Metric: metric.New(job.Names()...), Now: time.Now, Log: cfg.Log, cfg: cfg}
	k.Inventory = inventory.New(inventory.Config{
		Images: cfg.Images, Catalog: cfg.Catalog, Hidden: cfg.Hidden, MaxAge: cfg.MaxAge, Wait: cfg.Wait, Now: k.Now, Log: k.Log,
	})
	k.Images, k.Catalog = k.Inventory.ObserveImages(cfg.Images), k.Inventory.ObserveCatalog(cfg.Catalog)
	k.Activity = &activity.Log{Root: k.Catalog, Now: k.Now, Log: k.Log}
	k.Jobs = &job.Jobs{Records: k.Catalog, Owner: rand.Text(), Now: k.Now}
	return k
}

// OpenOperator sets Operator, and stores the hash of Password if that is set.
// The error is auth.ErrNoPassword if there is no password.
func (k *Kit) OpenOperator(ctx context.Context) (err error) {
	k.Operator, err = auth.Open(ctx, auth.Config{
		Records: k.Catalog, Password: k.Password, Token: k.Token, SessionKey: k.Lambda.SessionKey, Follow: k.cfg.Follow, Now: k.Now, Log: k.Log,
	})
	return err
}

// Policy returns the policy for the addresses of sources: that of AllowNet, and
// not the S3 server's own.
func (k *Kit) Policy() (netpolicy.Policy, error) {
	base := netpolicy.Policy{Private: k.cfg.PrivateSources}
	if k.cfg.Server != "" {
		base.Endpoints = []string{k.cfg.Server}
	}
	return netpolicy.Parse(k.AllowNet, base)
}

// Ready returns nil if the store answers.
func (k *Kit) Ready(ctx context.Context) error {
	_, err := k.Images.Head(ctx, layout.ManifestKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// HostPort returns the address that the URL of an S3 server leads to; empty if
// endpoint is.
func HostPort(endpoint string) string {
	scheme, host, ok := strings.Cut(endpoint, "://")
	if _, _, err := net.SplitHostPort(host); err == nil || !ok {
		return host
	}
	return net.JoinHostPort(strings.Trim(host, "[]"), map[string]string{"http": "80", "https": "443"}[scheme])
}

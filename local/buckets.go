package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"imageroot/shared/config"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// ensureBuckets creates the missing buckets. If the credentials do not allow that, the
// error has the commands that create them.
func (s *server) ensureBuckets(ctx context.Context) error {
	var missing, commands []string
	var denied error
	if _, err := s.client.Access(ctx); err != nil {
		return fmt.Errorf("no credentials for %s: give AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (%w)", s.cfg.S3Endpoint, err)
	}
	for _, bucket := range s.buckets() {
		err := s.client.EnsureBucket(ctx, bucket)
		if errors.Is(err, store.ErrDenied) && s.mayList(ctx, bucket) {
			continue // the credentials are for a prefix of the bucket
		}
		if errors.Is(err, s3store.ErrCredentials) {
			return fmt.Errorf("%s does not accept AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY: %w", s.cfg.S3Endpoint, err)
		}
		if err != nil && !errors.Is(err, store.ErrDenied) {
			return s3store.Explain(s.cfg.S3Endpoint, err)
		}
		if err != nil {
			denied = err
			missing = append(missing, bucket)
			commands = append(commands, fmt.Sprintf("aws --endpoint-url %s s3 mb s3://%s", s.cfg.S3Endpoint, bucket))
		}
	}
	if missing != nil {
		return fmt.Errorf("these AWS_* credentials may neither use nor make the bucket %s at %s; where it is missing, this makes it with other ones: %s (%w)",
			strings.Join(missing, ", nor "), s.cfg.S3Endpoint, strings.Join(commands, " && "), denied)
	}
	if s.gateway != nil {
		// The catalog holds the session key.
		if err := os.Chmod(filepath.Join(s.cfg.Data, s.cfg.CatalogRoot.Bucket), 0o700); err != nil {
			return fmt.Errorf("the catalog cannot be kept from other users: %w", err)
		}
	}
	return nil
}

// mayList reports whether the roots in a bucket can be listed.
func (s *server) mayList(ctx context.Context, bucket string) bool {
	for _, at := range []config.Location{s.cfg.ImageRoot, s.cfg.CatalogRoot} {
		if at.Bucket == bucket && store.TryList(ctx, s.client.Root(at.Bucket, at.Prefix)) != nil {
			return false
		}
	}
	return true
}

// buckets returns the buckets of the roots.
func (s *server) buckets() []string {
	return slices.Compact([]string{s.cfg.ImageRoot.Bucket, s.cfg.CatalogRoot.Bucket})
}

// restoreBuckets creates buckets again, empty, that were removed since the start.
func (s *server) restoreBuckets(ctx context.Context) {
	missing := slices.DeleteFunc(s.buckets(), func(bucket string) bool {
		return !errors.Is(s.client.FindBucket(ctx, bucket), store.ErrNoBucket)
	})
	if len(missing) == 0 {
		return
	}
	s.log.Error("buckets are missing, with all that was in them: they are made again, empty", "buckets", missing)
	if err := s.ensureBuckets(ctx); err != nil {
		s.log.Error("a missing bucket cannot be made again", "error", err)
	}
}

package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/pkg/xattr"
)

// bucketSettings are the attributes of a bucket's directory that change access to
// it or the effect of a write.
var bucketSettings = []string{"policy", "cors", "website", "bucket-lock", "versioning", "ownership", "X-Amz-Tagging"}

// Settings returns the names of the settings of a bucket in dir, such as a
// policy that grants public access. imageroot uses none.
func Settings(dir, bucket string) []string {
	path := filepath.Join(dir, bucket)
	return slices.DeleteFunc(slices.Clone(bucketSettings), func(name string) bool {
		value, err := xattr.Get(path, attrPrefix+name)
		// Each bucket has this one from its creation. It switches ACLs off.
		return err != nil || name == "ownership" && string(value) == "BucketOwnerEnforced"
	})
}

// clearSettings removes the settings of the buckets in dir.
func clearSettings(dir string, log *slog.Logger) error {
	all, err := buckets(dir)
	if err != nil {
		return err
	}
	for _, b := range all {
		for _, name := range Settings(dir, b.Name()) {
			err := xattr.Remove(filepath.Join(dir, b.Name()), attrPrefix+name)
			if err != nil && !errors.Is(err, xattr.ENOATTR) {
				return fmt.Errorf("the %s of the bucket %s cannot be removed: %w", name, b.Name(), err)
			}
			log.Warn("removed a setting of a bucket that may give others access", slog.String("bucket", b.Name()), slog.String("setting", name))
		}
	}
	return nil
}

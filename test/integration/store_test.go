package integration

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/probe"
	"imageroot/shared/store/storetest"
	"imageroot/test/minio"
)

func TestStore(t *testing.T) {
	c := client(t, start(t, minio.Options{}).URL)
	var n atomic.Int32
	for name, prefix := range map[string]string{"bucket": "", "prefix": "some/place of its own+/"} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Root {
				bucket := fmt.Sprintf("bucket-%d", n.Add(1))
				if err := c.EnsureBucket(t.Context(), bucket); err != nil {
					t.Fatal(err)
				}
				return c.Root(bucket, prefix)
			})
		})
	}
}

// TestProbe passes the probe over MinIO; concurrent starts do not disturb each
// other, and no object is left.
func TestProbe(t *testing.T) {
	t.Parallel()
	c := client(t, start(t, minio.Options{}).URL)
	if err := c.EnsureBucket(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
	root := c.Root("one", "catalog/")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := probe.Check(t.Context(), root); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	began := time.Now()
	if err := probe.Check(t.Context(), root); err != nil {
		t.Error(err)
	}
	t.Logf("one probe takes %v", time.Since(began))
	for info, err := range root.List(t.Context(), layout.ProbePrefix, "") {
		t.Errorf("left over: %q, %v", info.Key, err)
	}
	for u, err := range root.PendingUploads(t.Context(), "") {
		t.Errorf("left over: an upload of %q, %v", u.Key, err)
	}
}

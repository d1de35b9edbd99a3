package gateway_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"imageroot/local/gateway"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/store/storetest"
)

const accessKey, secretKey = "AKIATEST", "secret-of-the-test"

// An recorder collects events.
type recorder struct {
	mu     sync.Mutex
	events []gateway.Event
	more   chan struct{}
}

func newRecorder() *recorder { return &recorder{more: make(chan struct{}, 1)} }

func (r *recorder) changed(e gateway.Event) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.more <- struct{}{}:
	default:
	}
}

// start runs a gateway over dir until the test ends.
func start(t testing.TB, dir string, edit ...func(*gateway.Config)) *gateway.Gateway {
	t.Helper()
	cfg := gateway.Config{Listen: "127.0.0.1:0", Dir: dir, AccessKey: accessKey, SecretKey: secretKey}
	for _, e := range edit {
		e(&cfg)
	}
	g, err := gateway.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return g
}

func client(t testing.TB, endpoint string) *s3store.Client {
	t.Helper()
	c, err := s3store.Open(t.Context(), s3store.Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// root makes a bucket and returns the store over it.
func root(t testing.TB, endpoint, bucket string) *s3store.Root {
	t.Helper()
	c := client(t, endpoint)
	if err := c.EnsureBucket(t.Context(), bucket); err != nil {
		t.Fatal(err)
	}
	return c.Root(bucket, "")
}

func TestStore(t *testing.T) {
	g := start(t, t.TempDir())
	var n atomic.Int32
	// Names that begin with a dot are hidden here, whatever comes after it.
	storetest.HostileKeys = slices.DeleteFunc(slices.Clone(storetest.HostileKeys), func(key string) bool { return key[0] == '.' })
	storetest.Run(t, func(t *testing.T) store.Root {
		return root(t, g.Endpoint(), fmt.Sprintf("bucket-%d", n.Add(1)))
	})
}

var _ = context.Background

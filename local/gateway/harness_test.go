package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"golang.org/x/sys/unix"

	"imageroot/local/gateway"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

const accessKey, secretKey = "AKIATEST", "secret-of-the-test"

// start runs a gateway over dir until the test ends.
func start(t testing.TB, dir string, edit ...func(*gateway.Config)) *gateway.Gateway {
	t.Helper()
	cfg := config(dir)
	for _, e := range edit {
		e(&cfg)
	}
	g, err := gateway.Start(context.Background(), cfg)
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

func config(dir string) gateway.Config {
	return gateway.Config{Listen: "127.0.0.1:0", Dir: dir, AccessKey: accessKey, SecretKey: secretKey}
}

func client(t testing.TB, endpoint string) *s3store.Client {
	t.Helper()
	c, err := s3store.Open(context.Background(), s3store.Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// root creates a bucket and returns the store over it.
func root(t testing.TB, endpoint, bucket string) *s3store.Root {
	t.Helper()
	c := client(t, endpoint)
	if err := c.EnsureBucket(context.Background(), bucket); err != nil {
		t.Fatal(err)
	}
	return c.Root(bucket, "")
}

// within creates a bucket and returns the store over it, connected from within the
// process.
func within(t testing.TB, g *gateway.Gateway, bucket string) *s3store.Root {
	t.Helper()
	c, err := s3store.Open(context.Background(), s3store.Config{
		Endpoint: "http://gateway.inside", Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey, Dial: g.Dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.EnsureBucket(context.Background(), bucket); err != nil {
		t.Fatal(err)
	}
	return c.Root(bucket, "")
}

// raw returns the S3 client itself, without retries.
func raw(endpoint string) *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: &endpoint, Region: "us-east-1", UsePathStyle: true,
		Credentials:                credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
		Retryer:                    aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired,
		ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
	})
}

// code returns the S3 error code in err, or "" if there is none.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// presigned returns a URL at which key may be PUT.
func presigned(t testing.TB, endpoint, bucket, key string) string {
	t.Helper()
	u, err := s3.NewPresignClient(raw(endpoint)).PresignPutObject(context.Background(), &s3.PutObjectInput{Bucket: &bucket, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return u.URL
}

func put(t testing.TB, r *s3store.Root, key string, data []byte) store.Version {
	t.Helper()
	v, err := r.Put(context.Background(), store.Key(key), bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func get(t testing.TB, r *s3store.Root, key string) ([]byte, store.Version) {
	t.Helper()
	body, info, err := r.Get(context.Background(), store.Key(key), store.All, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	data, err := io.ReadAll(body)
	if err != nil {
		t.Fatal(err)
	}
	return data, info.Version
}

func keys(t testing.TB, r *s3store.Root) []string {
	t.Helper()
	var all []string
	for info, err := range r.List(context.Background(), "", "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, string(info.Key))
	}
	return all
}

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mkdir(t testing.TB, elem ...string) string {
	t.Helper()
	dir := filepath.Join(elem...)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// debris returns the temporary files below dir.
func debris(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		if d.Type().IsRegular() && rel[0] == '.' {
			found = append(found, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A recorder keeps the events of a gateway.
type recorder struct {
	mu     sync.Mutex
	events []gateway.Event
	more   chan struct{}
}

func (r *recorder) watch(buckets ...string) func(*gateway.Config) {
	r.more = make(chan struct{}, 1)
	return func(cfg *gateway.Config) {
		cfg.Watch = buckets
		cfg.Changed = func(e gateway.Event) {
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
			select {
			case r.more <- struct{}{}:
			default:
			}
		}
	}
}

func (r *recorder) all() []gateway.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *recorder) count(e gateway.Event) int {
	n := 0
	for _, got := range r.all() {
		if got == e {
			n++
		}
	}
	return n
}

// await waits for n events equal to e.
func (r *recorder) await(t testing.TB, n int, e gateway.Event) {
	t.Helper()
	limit := time.After(time.Minute)
	for r.count(e) < n {
		select {
		case <-r.more:
		case <-limit:
			t.Fatalf("no %d events %+v; there were %+v", n, e, r.all())
		}
	}
}

// status sends a request and returns the status and body of the answer.
func status(t testing.TB, req *http.Request) (int, string) {
	t.Helper()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(data)
}

func pattern(seed, n int) []byte {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(seed + i*7 + i>>8)
	}
	return data
}

func quoted(etag string) *string { return aws.String(fmt.Sprintf("%q", etag)) }

// A disk replaces the free space that a gateway's file systems report, once it is set.
type disk struct{ free atomic.Pointer[uint64] }

func (d *disk) set(n uint64) { d.free.Store(&n) }

func (d *disk) under(cfg *gateway.Config) {
	cfg.FreeBytes = func(dir string) (uint64, error) {
		if n := d.free.Load(); n != nil {
			return *n, nil
		}
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		return st.Bavail * uint64(st.Bsize), err
	}
}

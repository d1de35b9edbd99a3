package probe_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/layout"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/probe"
	"imageroot/shared/store/s3store"
	"imageroot/test/strip"
)

// left returns the keys that probes have left.
func left(t *testing.T, root store.Root) []string {
	t.Helper()
	var keys []string
	for info, err := range root.List(context.Background(), layout.ProbePrefix, "") {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, string(info.Key))
	}
	for u, err := range root.PendingUploads(context.Background(), layout.ProbePrefix) {
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, "upload of "+string(u.Key))
	}
	return keys
}

func tidy(t *testing.T, root store.Root) {
	t.Helper()
	if keys := left(t, root); len(keys) > 0 {
		t.Errorf("left over: %q", keys)
	}
}

func TestGood(t *testing.T) {
	root := memstore.New()
	if err := probe.Check(t.Context(), root); err != nil {
		t.Error(err)
	}
	tidy(t, root)
}

// A broken root has one fault.
type broken struct {
	store.Root
	create       func(ctx context.Context, key store.Key, data []byte) (string, error)
	replace      func(ctx context.Context, key store.Key, data []byte, tag string) (string, error)
	get          func(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error)
	list         func(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error]
	move         func(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error)
	createUpload func(ctx context.Context, key store.Key) (string, error)
	listParts    func(ctx context.Context, key store.Key, id string) ([]store.Part, error)
}

func (b *broken) CreateRecord(ctx context.Context, key store.Key, data []byte) (string, error) {
	if b.create != nil {
		return b.create(ctx, key, data)
	}
	return b.Root.CreateRecord(ctx, key, data)
}

func (b *broken) ReplaceRecord(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
	if b.replace != nil {
		return b.replace(ctx, key, data, tag)
	}
	return b.Root.ReplaceRecord(ctx, key, data, tag)
}

func (b *broken) Get(ctx context.Context, key store.Key, r store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
	if b.get != nil {
		return b.get(ctx, key, r, ifMatch)
	}
	return b.Root.Get(ctx, key, r, ifMatch)
}

func (b *broken) List(ctx context.Context, prefix string, after store.Key) iter.Seq2[store.Info, error] {
	if b.list != nil {
		return b.list(ctx, prefix, after)
	}
	return b.Root.List(ctx, prefix, after)
}

func (b *broken) Move(ctx context.Context, dst, src store.Key, v store.Version) (store.Version, error) {
	if b.move != nil {
		return b.move(ctx, dst, src, v)
	}
	return b.Root.Move(ctx, dst, src, v)
}

func (b *broken) CreateUpload(ctx context.Context, key store.Key) (string, error) {
	if b.createUpload != nil {
		return b.createUpload(ctx, key)
	}
	return b.Root.CreateUpload(ctx, key)
}

func (b *broken) ListParts(ctx context.Context, key store.Key, id string) ([]store.Part, error) {
	if b.listParts != nil {
		return b.listParts(ctx, key, id)
	}
	return b.Root.ListParts(ctx, key, id)
}

// put writes without a condition, and returns the tag.
func put(ctx context.Context, root store.Root, key store.Key, data []byte) (string, error) {
	if _, err := root.Put(ctx, key, strings.NewReader(string(data)), int64(len(data))); err != nil {
		return "", err
	}
	_, tag, err := root.ReadRecord(ctx, key)
	return tag, err
}

func TestLacks(t *testing.T) {
	mem := memstore.New()
	var mu sync.Mutex
	for _, tt := range []struct {
		name string
		root broken
		want []string // each must be in the line
	}{
		{"create ignores its condition", broken{create: func(ctx context.Context, key store.Key, data []byte) (string, error) {
			return put(ctx, mem, key, data)
		}}, []string{"If-None-Match"}},
		{"create is not known", broken{create: func(context.Context, store.Key, []byte) (string, error) {
			return "", errors.ErrUnsupported
		}}, []string{"If-None-Match"}},
		{"replace ignores its condition", broken{replace: func(ctx context.Context, key store.Key, data []byte, _ string) (string, error) {
			return put(ctx, mem, key, data)
		}}, []string{"If-Match on PUT"}},
		{"replace is refused always", broken{replace: func(context.Context, store.Key, []byte, string) (string, error) {
			return "", store.ErrConflict
		}}, []string{"If-Match on PUT"}},
		{"replace reads, and then writes", broken{replace: func(ctx context.Context, key store.Key, data []byte, tag string) (string, error) {
			_, now, err := mem.ReadRecord(ctx, key)
			if err != nil || now != tag {
				return "", store.ErrConflict
			}
			if strings.HasSuffix(string(key), "race") {
				time.Sleep(time.Second) // until all have read
			}
			mu.Lock()
			defer mu.Unlock()
			return put(ctx, mem, key, data)
		}}, []string{"concurrency"}},
		{"ranges are ignored", broken{get: func(ctx context.Context, key store.Key, _ store.Range, ifMatch string) (io.ReadCloser, store.Info, error) {
			return mem.Get(ctx, key, store.All, ifMatch)
		}}, []string{"Range on GET"}},
		{"reads ignore their condition", broken{get: func(ctx context.Context, key store.Key, r store.Range, _ string) (io.ReadCloser, store.Info, error) {
			return mem.Get(ctx, key, r, "")
		}}, []string{"If-Match on GET"}},
		{"listings are late", broken{list: func(context.Context, string, store.Key) iter.Seq2[store.Info, error] {
			return func(func(store.Info, error) bool) {}
		}}, []string{"listing"}},
		{"listings ignore start-after", broken{list: func(ctx context.Context, prefix string, _ store.Key) iter.Seq2[store.Info, error] {
			return mem.List(ctx, prefix, "")
		}}, []string{"listing"}},
		{"copies are not known", broken{move: func(context.Context, store.Key, store.Key, store.Version) (store.Version, error) {
			return store.Version{}, errors.ErrUnsupported
		}}, []string{"copying"}},
		{"uploads are not known", broken{createUpload: func(context.Context, store.Key) (string, error) { return "", errors.ErrUnsupported }}, []string{"multipart"}},
		{"parts are not listed", broken{listParts: func(context.Context, store.Key, string) ([]store.Part, error) { return nil, nil }}, []string{"multipart"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tt.root.Root = mem
				err := probe.Check(t.Context(), &tt.root)
				lack, ok := errors.AsType[*probe.LackError](err)
				if !ok {
					t.Fatalf("%v, want what is lacking", err)
				}
				for _, w := range tt.want {
					if !strings.Contains(err.Error(), w) {
						t.Errorf("%v, want %q in it", err, w)
					}
				}
				if len(lack.Lacks) != len(tt.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%q, want %d", lack.Lacks, len(tt.want))
				}
				if tt.root.list == nil {
					tidy(t, mem)
				}
			})
		})
	}
}

// An unreachable or inaccessible server is not reported to lack a feature.
func TestNoVerdict(t *testing.T) {
	for _, want := range []error{store.ErrUnavailable, store.ErrDenied, store.ErrFull} {
		err := probe.Check(t.Context(), &broken{Root: memstore.New(), create: func(context.Context, store.Key, []byte) (string, error) { return "", want }})
		if _, lack := errors.AsType[*probe.LackError](err); lack || !errors.Is(err, want) {
			t.Errorf("%v, want %v and no verdict", err, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := probe.Check(ctx, memstore.New()); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that has ended: %v", err)
	}
}

// A probe ends if the server does not respond.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		err := probe.Check(t.Context(), &broken{Root: memstore.New(), create: func(ctx context.Context, _ store.Key, _ []byte) (string, error) {
			<-ctx.Done()
			return "", ctx.Err()
		}})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
}

// Concurrent probes do not interfere, and a later one removes the objects of a killed
// one.
func TestBeside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := memstore.New()
		killed := layout.ProbeKey("KILLED", "create")
		if _, err := root.CreateRecord(t.Context(), killed, []byte("x")); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() {
				if err := probe.Check(t.Context(), root); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if keys := left(t, root); !slices.Equal(keys, []string{string(killed)}) {
			t.Errorf("left: %q, want only what another probe may still need", keys)
		}
		time.Sleep(2 * time.Hour)
		if err := probe.Check(t.Context(), root); err != nil {
			t.Error(err)
		}
		tidy(t, root)
	})
}

const accessKey, secretKey = "AKIATEST", "secret-of-the-test"

func open(t *testing.T, endpoint string) *s3store.Root {
	t.Helper()
	c, err := s3store.Open(t.Context(), s3store.Config{Endpoint: endpoint, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.EnsureBucket(t.Context(), "bucket"); err != nil {
		t.Fatal(err)
	}
	return c.Root("bucket", "catalog/")
}

// The gateway inside passes, and servers that lack a feature do not.
func TestServers(t *testing.T) {
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: accessKey, SecretKey: secretKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	t.Run("the gateway inside", func(t *testing.T) {
		root := open(t, "http://"+g.Addr())
		began := time.Now()
		if err := probe.Check(t.Context(), root); err != nil {
			t.Error(err)
		}
		t.Logf("took %v", time.Since(began))
		tidy(t, root)
	})
	for _, tt := range []struct{ header, method, want string }{
		{"If-Match", http.MethodPut, "If-Match on PUT"},
		{"If-Match", http.MethodGet, "If-Match on GET"},
		{"If-None-Match", http.MethodPut, "If-None-Match"},
		{"Range", http.MethodGet, "Range on GET"},
	} {
		t.Run("a server that ignores "+tt.header+" on "+tt.method, func(t *testing.T) {
			proxy, err := strip.Proxy("http://"+g.Addr(), accessKey, secretKey, tt.method, tt.header)
			if err != nil {
				t.Fatal(err)
			}
			s := httptest.NewServer(proxy)
			defer s.Close()
			root := open(t, s.URL)
			err = probe.Check(t.Context(), root)
			if _, lack := errors.AsType[*probe.LackError](err); !lack || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			tidy(t, root)
			if tt.method != http.MethodPut {
				return
			}
			// It is found where a server that has passed was before.
			const endpoint = "http://s3.example"
			log := slog.New(slog.DiscardHandler)
			if err := probe.CheckOnce(t.Context(), open(t, "http://"+g.Addr()), endpoint, time.Now(), log); err != nil {
				t.Error(err)
			}
			err = probe.CheckOnce(t.Context(), root, endpoint, time.Now(), log)
			if _, lack := errors.AsType[*probe.LackError](err); !lack || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if err := root.Delete(t.Context(), layout.PassedKey); err != nil {
				t.Error(err)
			}
		})
	}
}

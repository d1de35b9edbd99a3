package e2e

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path"
	"sync"
	"testing"
	"time"
)

// A front is a proxy to another S3 server that makes some images slow: a client
// that reads one whole waits for each MiB.
type front struct {
	*httptest.Server
	slow sync.Map // keys
}

const (
	// vast is the size of a file of zeros that takes minutes to hash and no
	// disk space: a job that stays running until it is cancelled.
	vast = 256 << 30
	// slowSize is the size of an image that takes as long behind a front.
	slowSize = 200 << 20
)

func newFront(t testing.TB, endpoint string) *front {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	f := &front{}
	f.Server = httptest.NewServer(&httputil.ReverseProxy{
		// The signature covers the host name.
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		},
		ModifyResponse: func(r *http.Response) error {
			if _, slow := f.slow.Load(path.Base(r.Request.URL.Path)); slow && r.Request.Method == http.MethodGet {
				r.Body = &slowBody{r.Body, r.Request}
			}
			return nil
		},
		FlushInterval: -1,
		ErrorHandler:  func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	})
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// A slowBody returns a MiB a second.
type slowBody struct {
	io.ReadCloser
	r *http.Request
}

func (b *slowBody) Read(p []byte) (int, error) {
	const piece = 128 << 10
	select {
	case <-time.After(time.Second * piece >> 20):
	case <-b.r.Context().Done():
		return 0, b.r.Context().Err()
	}
	return b.ReadCloser.Read(p[:min(len(p), piece)])
}

// putSlow stores an image that takes minutes to hash, and returns its size.
func (s *Server) putSlow(t testing.TB, name string) int64 {
	t.Helper()
	if s.front == nil {
		s.dropSparse(t, name, vast)
		return vast
	}
	s.front.slow.Store(name, true)
	file := t.TempDir() + "/zeros"
	sparse(t, file, slowSize)
	s.aws(t, "s3", "cp", "--only-show-errors", file, s.object(name))
	return slowSize
}

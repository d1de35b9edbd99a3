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

// A front stands before another S3 server and makes images of it large, as far
// as time goes: who reads one whole waits for each MiB.
type front struct {
	*httptest.Server
	slow sync.Map // keys
}

const (
	// vast is the size of a file of zeros that takes minutes to hash and no
	// room: a job that is there to be looked at or cancelled.
	vast = 256 << 30
	// slowSize is that of an image which takes as long behind a front.
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
		// The name of the host stays as it was signed.
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

// A slowBody gives a MiB a second.
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

// putSlow puts an image there that takes minutes to hash, and returns its
// size.
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

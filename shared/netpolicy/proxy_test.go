package netpolicy_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/netpolicy"
)

// A tunnel is an HTTP proxy that connects its clients to one server, whatever address they
// ask for.
type tunnel struct {
	*httptest.Server
	to     string
	status int
	asked  []string // addresses
	login  string   // of the last request
}

func newTunnel(t *testing.T, to string) *tunnel {
	p := &tunnel{to: to, status: http.StatusOK}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked, p.login = append(p.asked, r.Method+" "+r.Host), r.Header.Get("Proxy-Authorization")
		if p.status != http.StatusOK {
			w.WriteHeader(p.status)
			return
		}
		server, err := new(net.Dialer).DialContext(r.Context(), "tcp", p.to)
		if err != nil {
			t.Error(err)
			return
		}
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(client, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() { _, _ = io.Copy(server, client); server.Close() }()
		go func() { _, _ = io.Copy(client, server); client.Close() }()
	}))
	t.Cleanup(p.Close)
	return p
}

// A proxy connects to addresses that were checked, never to names, and is not asked for
// others.
func TestProxy(t *testing.T) {
	origin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to, ok := strings.CutPrefix(r.URL.Path, "/to/"); ok {
			http.Redirect(w, r, "http://"+to, http.StatusFound)
			return
		}
		_, _ = io.WriteString(w, r.Host)
	}))
	defer origin.Close()
	proxy := newTunnel(t, origin.Listener.Addr().String())
	at, _ := url.Parse(proxy.URL)
	at.User = url.UserPassword("ada", "secret")
	p := mustParse(t, "10.7.0.0/16", netpolicy.Policy{Proxy: at, Resolver: dns(t, map[string]string{
		"public.example.": "203.0.113.7", "inside.example.": "10.7.0.1", "private.example.": "10.0.0.1", "metadata.example.": "169.254.169.254",
	})})
	client := &http.Client{Transport: p.Transport()}
	for _, tt := range []struct{ url, answer, asked string }{
		{"http://203.0.113.7/", "203.0.113.7", "203.0.113.7:80"},
		{"http://public.example/", "public.example", "203.0.113.7:80"},
		{"http://public.example:8080/", "public.example:8080", "203.0.113.7:8080"},
		{"http://[2001:db8::7]/", "[2001:db8::7]", "[2001:db8::7]:80"},
		{"http://inside.example/", "inside.example", "10.7.0.1:80"},
		{"http://private.example/", "", ""},
		{"http://metadata.example/", "", ""},
		{"http://[fe80::1]/", "", ""},
		{"http://0.0.0.0/", "", ""},
		{"http://localhost:1/", "", ""},
		{"http://127.0.0.2/", "", ""},
		{"http://203.0.113.7/to/169.254.169.254/", "", "203.0.113.7:80"},
		{"http://203.0.113.7/to/private.example/", "", "203.0.113.7:80"},
	} {
		client.CloseIdleConnections()
		proxy.asked = nil
		resp, err := client.Get(tt.url)
		body := ""
		if err == nil {
			data, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			body = string(data)
		} else if _, ok := errors.AsType[*netpolicy.Refused](err); !ok && tt.url != "http://localhost:1/" {
			t.Errorf("%s: %v", tt.url, err)
		}
		want := []string{}
		if tt.asked != "" {
			want = append(want, "CONNECT "+tt.asked)
		}
		if (err != nil) != (tt.answer == "") || body != tt.answer || !slices.Equal(proxy.asked, want) {
			t.Errorf("%s: %q, %v; the proxy was asked for %q", tt.url, body, err, proxy.asked)
		}
	}
	if proxy.login != "Basic YWRhOnNlY3JldA==" {
		t.Errorf("login: %q", proxy.login)
	}

	// This machine is reached without the proxy.
	p.Loopback, proxy.asked = true, nil
	if resp, err := (&http.Client{Transport: p.Transport()}).Get(origin.URL); err != nil || len(proxy.asked) > 0 {
		t.Errorf("loopback: %v, %q", err, proxy.asked)
	} else {
		resp.Body.Close()
	}
	proxy.status = http.StatusForbidden
	_, err := (&http.Client{Transport: p.Transport()}).Get("http://203.0.113.7/") //nolint:bodyclose // there is none
	if failure, ok := errors.AsType[*netpolicy.ProxyError](err); !ok || failure.Proxy != at.Host || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "secret") {
		t.Errorf("a proxy that refuses: %v", err)
	}
	proxy.Close()
	_, err = (&http.Client{Transport: p.Transport()}).Get("http://203.0.113.7/") //nolint:bodyclose // there is none
	if _, ok := errors.AsType[*netpolicy.ProxyError](err); !ok {
		t.Errorf("no proxy: %v", err)
	}
}

// TLS is with the server, whose name the certificate must have.
func TestProxyTLS(t *testing.T) {
	origin := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Host) }))
	defer origin.Close()
	proxy := newTunnel(t, origin.Listener.Addr().String())
	at, _ := url.Parse(proxy.URL)
	p := netpolicy.Policy{Proxy: at, Resolver: dns(t, map[string]string{"example.com.": "203.0.113.7", "other.example.": "203.0.113.7"})}
	transport := p.Transport()
	transport.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	transport.TLSClientConfig.RootCAs.AddCert(origin.Certificate())
	client := &http.Client{Transport: transport}
	resp, err := client.Get("https://example.com/")
	if err != nil || proxy.asked[0] != "CONNECT 203.0.113.7:443" {
		t.Fatalf("%v, %q", err, proxy.asked)
	}
	resp.Body.Close()
	if _, err := client.Get("https://other.example/"); err == nil { //nolint:bodyclose // there is none
		t.Error("a certificate for another name is accepted")
	}
}

// A proxy that does not answer, or says more than its answer, gives an error.
func TestProxyMisbehaves(t *testing.T) {
	for what, answer := range map[string]string{
		"silence": "", "no HTTP": "SSH-2.0\r\n\r\n", "more": "HTTP/1.1 200 OK\r\n\r\nhello", "an endless head": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 1<<20) + "\r\n\r\n",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Read(make([]byte, 4096))
			_, _ = io.WriteString(conn, answer)
			_, _ = io.Copy(io.Discard, conn)
			conn.Close()
		}()
		p := netpolicy.Policy{Proxy: &url.URL{Scheme: "http", Host: l.Addr().String()}}
		ctx, cancel := context.WithCancel(t.Context())
		if answer == "" {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://203.0.113.7/", nil)
		if resp, err := (&http.Client{Transport: p.Transport()}).Do(req); err == nil {
			resp.Body.Close()
			t.Errorf("%s: no error", what)
		}
		cancel()
	}
}

package e2e

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestOutboundProxy fetches an image from an address that only a proxy reaches, and none from
// one that the address policy refuses.
func TestOutboundProxy(t *testing.T) {
	t.Parallel()
	p := publish(t)
	data := content(1, 300_000)
	p.File("/lab.img", data)
	asked := make(chan string, 100)
	proxy := serveOn(t, "127.0.0.1:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host
		server, err := new(net.Dialer).DialContext(r.Context(), "tcp", p.Listener.Addr().String())
		if err != nil {
			t.Error(err)
			return
		}
		client, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(server, client); server.Close() }()
		go func() { _, _ = io.Copy(client, server); client.Close() }()
	}))
	s := Start(t, Options{Env: []string{"IMAGEROOT_PROXY_URL=" + proxy.URL}})
	s.AddEntry(t, "http://203.0.113.7/lab.img", "").Must(t, 201)
	if to := <-asked; to != "CONNECT 203.0.113.7:80" {
		t.Errorf("the proxy was asked to %s", to)
	}
	s.Fetch(t, "lab.img")
	if r, _ := s.Row(t, "lab.img"); r.SHA256 != sum(data) {
		t.Errorf("%+v", r)
	}
	for len(asked) > 0 {
		<-asked
	}
	r := s.AddEntry(t, "http://169.254.169.254/lab.img", "").Problem(t, []int{400})
	if len(asked) > 0 || !strings.Contains(r.Detail, "169.254.169.254") {
		t.Errorf("%+v", r)
	}
}

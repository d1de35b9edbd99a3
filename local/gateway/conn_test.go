package gateway_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/store/s3store"
)

// TestSlowRequests sends parts of requests and waits for the gateway to give up.
// Only an authenticated client gets more time.
func TestSlowRequests(t *testing.T) {
	g := start(t, t.TempDir(), func(cfg *gateway.Config) { cfg.HeadTimeout = 2 * time.Second })
	r := root(t, g.Endpoint(), "images")
	data := pattern(1, 1<<20)
	pipe, feed := io.Pipe()
	uploaded := make(chan error, 1)
	go func() {
		_, err := r.Put(context.Background(), "slow.img", pipe, int64(len(data)))
		pipe.CloseWithError(err)
		uploaded <- err
	}()
	if _, err := feed.Write(data[:1000]); err != nil {
		t.Fatal(err)
	}
	opened := map[string]net.Conn{}
	for _, sent := range []string{
		"",
		"GET /images/a.img HTT",
		"PUT /images/a.img HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf",
		"PUT /images/a.img HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\nhalf",
		"POST /images HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 1000000\r\n\r\n" + fmt.Sprintf("%10000s", "half"),
	} {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Minute))
		if _, err := io.WriteString(c, sent); err != nil {
			t.Fatal(err)
		}
		opened[sent] = c
	}
	for sent, c := range opened {
		if _, err := io.Copy(io.Discard, c); err != nil {
			t.Errorf("the gateway waits for the rest of %.60q: %v", sent, err)
		}
	}
	if _, err := feed.Write(data[1000:]); err != nil {
		t.Fatal(err)
	}
	feed.Close()
	if err := <-uploaded; err != nil {
		t.Fatalf("an upload that takes its time: %v", err)
	}
	if got, _ := get(t, r, "slow.img"); !bytes.Equal(got, data) {
		t.Error("the object holds other bytes")
	}
}

// TestHalfHeadsStarveNobody opens all connections that the gateway takes from the
// network. Other clients and the program itself are still served.
func TestHalfHeadsStarveNobody(t *testing.T) {
	g := start(t, t.TempDir())
	for n := range 1280 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(n/200))}}
		c, err := d.Dial("tcp", g.Addr())
		if errors.Is(err, syscall.ECONNRESET) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: ") // it may have been closed in favour of another one
	}
	for _, r := range []*s3store.Root{within(t, g, "images"), root(t, g.Endpoint(), "images")} {
		for range 20 {
			put(t, r, "a.img", []byte("content"))
		}
	}
}

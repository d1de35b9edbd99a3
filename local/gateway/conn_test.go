package gateway_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"imageroot/local/gateway"
)

// TestSlowRequests sends parts of requests and waits for the gateway to give
// up. Only an authenticated client has the time.
func TestSlowRequests(t *testing.T) {
	g := start(t, t.TempDir(), func(cfg *gateway.Config) { cfg.HeadTimeout = 300 * time.Millisecond })
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
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
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

// TestProgramIsNotStarved takes all connections that the gateway has for the
// network. What it is part of has others.
func TestProgramIsNotStarved(t *testing.T) {
	g := start(t, t.TempDir())
	r := within(t, g, "images")
	const connections = 4200
	for range connections {
		c, err := net.Dial("tcp", g.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: ") // it may be refused
	}
	for range 20 {
		put(t, r, "a.img", []byte("content"))
	}
}

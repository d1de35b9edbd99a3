package web

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"imageroot/shared/problem"
)

// A client that goes on sending after its upload was refused still sees why.
func TestStopBodyWhileSending(t *testing.T) {
	answered := make(chan struct{})
	s := newSite(t, true, Route{Pattern: "PUT /x", Stream: true, Handle: func(w http.ResponseWriter, r *http.Request) error {
		defer close(answered)
		if _, err := Body(w, r).Read(make([]byte, 1)); err != nil {
			t.Error(err)
		}
		StopBody(w)
		return problem.New(problem.Full, "no room")
	}})
	for _, framing := range []string{"Transfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nExpect: 100-continue", "Content-Length: 67108864\r\nExpect: 100-continue"} {
		answered = make(chan struct{})
		func() {
			srv := httptest.NewServer(s)
			defer srv.Close()
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			fmt.Fprintf(conn, "PUT /x HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n4000000\r\nx", framing)
			<-answered
			piece := make([]byte, 1<<20)
			for range 32 {
				if _, err := conn.Write(piece); err != nil {
					t.Errorf("%q: the server does not listen any more: %v", framing, err)
					break
				}
			}
			in := bufio.NewReader(conn)
			res, err := http.ReadResponse(in, nil)
			if err == nil && res.StatusCode == http.StatusContinue {
				res, err = http.ReadResponse(in, nil)
			}
			if err != nil {
				t.Fatalf("%q: no answer: %v", strings.ReplaceAll(framing, "\r\n", ", "), err)
			}
			defer res.Body.Close()
			if res.StatusCode != http.StatusInsufficientStorage || !res.Close {
				t.Errorf("%q: status %d, close %v", framing, res.StatusCode, res.Close)
			}
		}()
	}
}

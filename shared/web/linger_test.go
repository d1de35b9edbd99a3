package web

import (
	"bufio"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"imageroot/shared/problem"
)

// A client that is still sending its upload receives the refusal.
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
			conn := s.connect()
			defer conn.Close()
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

// A proxy that sends the whole body before it reads the answer receives the refusal,
// although the handler does not read the body.
func TestRefusedBeforeBody(t *testing.T) {
	s := newSite(t, true,
		Route{Pattern: "PUT /x", Stream: true, Access: Operator, Handle: func(http.ResponseWriter, *http.Request) error {
			return problem.New(problem.Unsupported, "not this")
		}},
		Route{Pattern: "POST /small", Access: Operator, Handle: func(w http.ResponseWriter, r *http.Request) error {
			return Decode(w, r, new(struct{}))
		}},
	)
	for _, tt := range []struct {
		head   string
		status int
	}{
		{"PUT /x HTTP/1.1\r\n", http.StatusUnauthorized},
		{"PUT /x HTTP/1.1\r\nAuthorization: operator\r\n", http.StatusUnsupportedMediaType},
		{"POST /small HTTP/1.1\r\nAuthorization: operator\r\n", http.StatusRequestEntityTooLarge},
		{"PUT /none HTTP/1.1\r\n", http.StatusNotFound},
		{"PUT /x HTTP/1.0\r\n", http.StatusUnauthorized},
	} {
		conn := s.connect()
		fmt.Fprintf(conn, "%sHost: x\r\nContent-Length: %d\r\n\r\n", tt.head, 40<<20)
		if _, err := conn.Write(make([]byte, 40<<20)); err != nil {
			t.Errorf("%q: the body cannot be sent: %v", tt.head, err)
		}
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%q: no answer: %v", tt.head, err)
		}
		_ = res.Body.Close()
		_ = conn.Close() // what the server waits for
		if res.StatusCode != tt.status || !res.Close {
			t.Errorf("%q: status %d, close %v", tt.head, res.StatusCode, res.Close)
		}
	}
}

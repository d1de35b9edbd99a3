package e2e

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// TestStopUnderRequests sends Ctrl-C during a stalled upload and a stalled
// download: the failed upload is recorded, and jobs, which have stopped, log
// nothing.
func TestStopUnderRequests(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	s := Start(t, Options{})
	if err := os.WriteFile(s.imagePath("still.img"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.imagePath("still.img"), 1<<30); err != nil {
		t.Fatal(err)
	}
	for _, request := range []string{
		"GET /images/still.img HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT /images/cut.img HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + s.Token + "\r\nContent-Length: 1000000000\r\n\r\n",
	} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.Pages, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, request)
		if strings.HasPrefix(request, "PUT") {
			_, err = conn.Write(make([]byte, 32<<20)) // more than the buffers on the path hold
		} else {
			_, err = bufio.NewReader(conn).ReadString('\n')
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	s.Stop(t)
	if strings.Contains(s.Log(), "in time") {
		t.Errorf("something did not stop:\n%s", tail(s.Log()))
	}
	s.start(t)
	s.WaitEvent(t, "image.upload_failed", "cut.img")
}

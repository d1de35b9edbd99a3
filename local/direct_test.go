package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/store/storetest"
)

// A read from the disk returns the same as one through S3.
func TestDirect(t *testing.T) {
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: "ACCESSKEY", SecretKey: "a-secret-key"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	client, err := s3store.Open(t.Context(), s3store.Config{Endpoint: "http://" + g.Addr(), Region: "us-east-1", AccessKey: "ACCESSKEY", SecretKey: "a-secret-key", Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Root {
		at := config.Location{Bucket: fmt.Sprintf("bucket-%d", n.Add(1)), Prefix: "some/"}
		if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
			t.Fatal(err)
		}
		s := &server{gateway: g}
		return s.root(client, at)
	})
	// ReadObjectAt reads from the whole object, for any range.
	at := config.Location{Bucket: "direct"}
	if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
		t.Fatal(err)
	}
	root := (&server{gateway: g}).root(client, at)
	if _, err := root.Put(t.Context(), "key", strings.NewReader("0123456789"), 10); err != nil {
		t.Fatal(err)
	}
	body, _, err := root.Get(t.Context(), "key", store.Range{Offset: 4, Length: 2}, "")
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	p := make([]byte, 8)
	if n, err := body.(store.Direct).ReadObjectAt(p, 1); n != 8 || err != nil || string(p) != "12345678" {
		t.Errorf("%d, %v, %q", n, err, p)
	}
	if n, err := body.(store.Direct).ReadObjectAt(p, 7); n != 3 || !errors.Is(err, io.EOF) || string(p[:n]) != "789" {
		t.Errorf("at the end: %d, %v, %q", n, err, p)
	}
}

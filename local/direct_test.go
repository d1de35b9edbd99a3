package main

import (
	"testing"

	"imageroot/local/gateway"
	"imageroot/shared/config"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/store/storetest"
)

// What is read from the disk is what S3 would have given.
func TestDirect(t *testing.T) {
	g, err := gateway.Start(t.Context(), gateway.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: "ACCESSKEY", SecretKey: "a-secret-key"})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	client, err := s3store.Open(t.Context(), s3store.Config{Endpoint: g.Endpoint(), Region: "us-east-1", AccessKey: "ACCESSKEY", SecretKey: "a-secret-key", Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	storetest.Run(t, func(t *testing.T) store.Root {
		n++
		at := config.Location{Bucket: "bucket-" + string(rune('a'+n/26)) + string(rune('a'+n%26)), Prefix: "some/"}
		if err := client.EnsureBucket(t.Context(), at.Bucket); err != nil {
			t.Fatal(err)
		}
		s := &server{gateway: g}
		return s.root(client, at)
	})
}

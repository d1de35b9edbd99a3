package gateway_test

import (
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/local/gateway"
)

// TestConditionsOfCopies copies onto an object on conditions, met or not.
func TestConditionsOfCopies(t *testing.T) {
	g := start(t, t.TempDir(), func(cfg *gateway.Config) { cfg.Watch = []string{"images"} })
	c := raw(g.Endpoint())
	for _, bucket := range []string{"catalog", "images"} {
		r := root(t, g.Endpoint(), bucket)
		put(t, r, "source.img", []byte("source"))
		etag := aws.String(put(t, r, "old.img", []byte("old")).ETag)
		other := aws.String(put(t, r, "other.img", []byte("other")).ETag)
		for _, tt := range []struct {
			key                  string
			ifMatch, ifNoneMatch *string
			refused              bool
		}{
			{"old.img", nil, aws.String("*"), true},
			{"old.img", other, nil, true},
			{"new.img", other, nil, true},
			{"new.img", nil, aws.String("*"), false},
			{"old.img", etag, nil, false},
		} {
			_, err := c.CopyObject(t.Context(), &s3.CopyObjectInput{
				Bucket: &bucket, Key: &tt.key, CopySource: aws.String(bucket + "/source.img"), IfMatch: tt.ifMatch, IfNoneMatch: tt.ifNoneMatch,
			})
			if (err != nil) != tt.refused {
				t.Errorf("copy to %s in %s if %s, if not %s: %v", tt.key, bucket, aws.ToString(tt.ifMatch), aws.ToString(tt.ifNoneMatch), err)
			}
		}
		if data, _ := get(t, r, "new.img"); string(data) != "source" {
			t.Errorf("the copy holds %q", data)
		}
	}
}

// TestConditionsOfDeletes deletes objects on conditions, met or not.
func TestConditionsOfDeletes(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	c := raw(g.Endpoint())
	etag := put(t, r, "old.img", []byte("old")).ETag
	for _, tt := range []struct {
		what types.ObjectIdentifier
		gone bool
	}{
		{types.ObjectIdentifier{ETag: aws.String(`"other"`)}, false},
		{types.ObjectIdentifier{ETag: &etag, Size: aws.Int64(4)}, false},
		{types.ObjectIdentifier{ETag: &etag, Size: aws.Int64(3)}, true},
	} {
		tt.what.Key = aws.String("old.img")
		out, err := c.DeleteObjects(t.Context(), &s3.DeleteObjectsInput{Bucket: aws.String("images"), Delete: &types.Delete{Objects: []types.ObjectIdentifier{tt.what}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Head(t.Context(), "old.img"); (err != nil) != tt.gone || len(out.Deleted) == 1 != tt.gone {
			t.Errorf("size %d: deleted %d, then %v", aws.ToInt64(tt.what.Size), len(out.Deleted), err)
		}
	}
}

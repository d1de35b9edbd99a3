package gateway_test

import (
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"imageroot/shared/store"
)

// TestURLEncoding lists names with characters that are special in URLs or invalid
// in XML, with and without encoding-type=url, in each listing for which S3 defines
// it.
func TestURLEncoding(t *testing.T) {
	encoded := map[string]string{
		"plain.img": "plain.img", "a b.img": "a+b.img", "a+b.img": "a%2Bb.img", "100%25.img": "100%2525.img",
		"h#t.img": "h%23t.img", "what?.img": "what%3F.img", "ü🚀.img": "%C3%BC%F0%9F%9A%80.img",
		"*-_.~'(1)!.img": "*-_.%7E%27%281%29%21.img", "d+d/x y.img": "d%2Bd/x+y.img", "a&b=c;<>.img": "a%26b%3Dc%3B%3C%3E.img",
	}
	g := start(t, t.TempDir(), uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	c := asUploader(g.Endpoint())
	var names, want []string
	for name, code := range encoded {
		names, want = append(names, name), append(want, code)
		if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("images"), Key: &name, Body: strings.NewReader("x")}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.CreateUpload(t.Context(), store.Key(name)); err != nil {
			t.Fatal(err)
		}
		if back, err := url.QueryUnescape(code); err != nil || back != name {
			t.Errorf("clients would read %q as %q (%v)", code, back, err)
		}
	}
	slices.Sort(names)
	slices.Sort(want)
	bucket, url := aws.String("images"), types.EncodingTypeUrl
	sorted := func(s []string) []string { slices.Sort(s); return s }

	v1, err := c.ListObjects(t.Context(), &s3.ListObjectsInput{Bucket: bucket, EncodingType: url})
	if err != nil {
		t.Fatal(err)
	}
	v2, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucket, EncodingType: url})
	if err != nil {
		t.Fatal(err)
	}
	uploads, err := c.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: bucket, EncodingType: url})
	if err != nil {
		t.Fatal(err)
	}
	plain, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []struct {
		what      string
		listed    types.EncodingType
		got, want []string
	}{
		{"ListObjects", v1.EncodingType, keysOf(v1.Contents), want},
		{"ListObjectsV2", v2.EncodingType, keysOf(v2.Contents), want},
		{"ListMultipartUploads", uploads.EncodingType, keysOf(uploads.Uploads), want},
		{"without", plain.EncodingType, keysOf(plain.Contents), names},
	} {
		if !slices.Equal(sorted(l.got), l.want) || (l.listed == url) != (l.what != "without") {
			t.Errorf("%s, encoded %q, has %q, want %q", l.what, l.listed, l.got, l.want)
		}
	}

	// The request's own fields are encoded, too, and the next page starts from them.
	control := "d+d/\x01"
	v1, err = c.ListObjects(t.Context(), &s3.ListObjectsInput{
		Bucket: bucket, EncodingType: url, Prefix: aws.String("a"), Delimiter: aws.String("+"), Marker: aws.String("a b"), MaxKeys: aws.Int32(2),
	})
	if err != nil || *v1.Prefix != "a" || *v1.Delimiter != "%2B" || *v1.Marker != "a+b" || *v1.NextMarker != "a%26b%3Dc%3B%3C%3E.img" {
		t.Errorf("ListObjects: %+v (%v)", v1, err)
	}
	v2, err = c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{
		Bucket: bucket, EncodingType: url, Prefix: &control, Delimiter: aws.String("\x02"), StartAfter: aws.String("a\x03 "),
	})
	if err != nil || *v2.Prefix != "d%2Bd/%01" || *v2.Delimiter != "%02" || *v2.StartAfter != "a%03+" {
		t.Errorf("ListObjectsV2: %+v (%v)", v2, err)
	}
	v2, err = c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucket, EncodingType: url, Prefix: aws.String("d"), Delimiter: aws.String("/")})
	if err != nil || len(v2.CommonPrefixes) != 1 || *v2.CommonPrefixes[0].Prefix != "d%2Bd/" {
		t.Errorf("ListObjectsV2 with folders: %+v (%v)", v2, err)
	}
	var all []string
	pages := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: bucket, EncodingType: url, MaxKeys: aws.Int32(1)})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, keysOf(page.Contents)...)
	}
	if !slices.Equal(sorted(all), want) {
		t.Errorf("pages of one have %q", all)
	}
	uploads, err = c.ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: bucket, EncodingType: url, Prefix: &control, KeyMarker: aws.String("a b"), Delimiter: aws.String("/")})
	if err != nil || *uploads.Prefix != "d%2Bd/%01" || *uploads.KeyMarker != "a+b" {
		t.Errorf("ListMultipartUploads: %+v (%v)", uploads, err)
	}
	if _, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: bucket, EncodingType: "base64"}); code(err) != "InvalidArgument" {
		t.Errorf("an unknown encoding: %v", err)
	}
}

// keysOf returns the keys of a listing.
func keysOf[T types.Object | types.MultipartUpload](entries []T) []string {
	var keys []string
	for _, e := range entries {
		switch e := any(e).(type) {
		case types.Object:
			keys = append(keys, *e.Key)
		case types.MultipartUpload:
			keys = append(keys, *e.Key)
		}
	}
	return keys
}

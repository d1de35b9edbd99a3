package objectevent

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// aws returns a notification of S3 with one record.
func aws(eventName, eventTime, encodedKey string) string {
	return `{"Records":[` + record("aws:s3", eventName, eventTime, encodedKey) + `]}`
}

// minioWebhook returns a message of MinIO's webhook and queue targets.
func minioWebhook(eventName, key, encodedKey string) string {
	return fmt.Sprintf(`{"EventName":%q,"Key":%s,"Records":[%s]}`, eventName, quote("images/"+key),
		record("minio:s3", eventName, "2026-11-24T01:02:03.456Z", encodedKey))
}

// minioStream returns a line of MinIO's event stream.
func minioStream(eventName, key string) string {
	return `{"Records":[` + record("minio:s3", eventName, "2026-11-24T01:02:03.456Z", key) + `]}`
}

func record(source, eventName, eventTime, key string) string {
	return fmt.Sprintf(`{"eventVersion":"2.1","eventSource":%q,"awsRegion":"eu-central-1","eventTime":%q,"eventName":%q,
		"userIdentity":{"principalId":"AWS:X"},"requestParameters":{"sourceIPAddress":"192.0.2.1"},
		"s3":{"s3SchemaVersion":"1.0","configurationId":"c","bucket":{"name":"images","arn":"arn:aws:s3:::images"},
		"object":{"key":%s,"size":1024,"eTag":"d41d8cd98f00b204e9800998ecf8427e","sequencer":"0055AED6DCD90281E5"}}}`,
		source, eventTime, eventName, quote(key))
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

const testEvent = `{"Service":"Amazon S3","Event":"s3:TestEvent","Time":"2014-10-13T15:57:02.089Z","Bucket":"images","RequestId":"5582815E1AEA5ADF","HostId":"8cLeGAmw"}`

func TestParse(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 2, 3, 456_000_000, time.UTC)
	const stamp = "2026-11-24T01:02:03.456Z"
	created := func(key string) []Event { return []Event{{"images", key, false, "0055AED6DCD90281E5", at}} }
	removed := func(key string) []Event { return []Event{{"images", key, true, "0055AED6DCD90281E5", at}} }
	tests := []struct {
		name, body string
		want       []Event
	}{
		{"S3, put", aws("ObjectCreated:Put", stamp, "x.img"), created("x.img")},
		{"S3, multipart", aws("ObjectCreated:CompleteMultipartUpload", stamp, "x.img"), created("x.img")},
		{"S3, delete", aws("ObjectRemoved:Delete", stamp, "x.img"), removed("x.img")},
		{"S3, delete marker", aws("ObjectRemoved:DeleteMarkerCreated", stamp, "x.img"), removed("x.img")},
		{"S3, expired", aws("LifecycleExpiration:Delete", stamp, "x.img"), removed("x.img")},
		{"S3, plus is a space", aws("ObjectCreated:Put", stamp, "my+first+image.img"), created("my first image.img")},
		{"S3, encoded plus and percent", aws("ObjectCreated:Put", stamp, "a%2Bb+50%25.img"), created("a+b 50%.img")},
		{"S3, decoded only once", aws("ObjectCreated:Put", stamp, "a%252Bb%2520c.img"), created("a%2Bb%20c.img")},
		{"S3, non-ASCII", aws("ObjectCreated:Put", stamp, "%C3%9Cbung+%23%3F.img"), created("Übung #?.img")},
		{"S3, in a prefix", aws("ObjectCreated:Put", stamp, "a/b%2Fc.img"), created("a/b/c.img")},
		{"time without zone", aws("ObjectCreated:Put", "2026-11-24T01:02:03.456", "x.img"), created("x.img")},
		{"time with an offset", aws("ObjectCreated:Put", "2026-11-24T03:02:03.456+02:00", "x.img"), created("x.img")},
		{"a time that does not parse", aws("ObjectCreated:Put", "today", "x.img"), []Event{{"images", "x.img", false, "0055AED6DCD90281E5", time.Time{}}}},
		{"MinIO webhook", minioWebhook("s3:ObjectCreated:Put", "a+b 50% Ü.img", "a%2Bb+50%25+%C3%9C.img"), created("a+b 50% Ü.img")},
		{"MinIO webhook, delete", minioWebhook("s3:ObjectRemoved:Delete", "x.img", "x.img"), removed("x.img")},
		{"MinIO webhook, decoded only once", minioWebhook("s3:ObjectCreated:Put", "a%20b.img", "a%2520b.img"), created("a%20b.img")},
		{"MinIO stream, raw", minioStream("s3:ObjectCreated:Put", "a+b 50% %41 Ü.img"), created("a+b 50% %41 Ü.img")},
		{"another server, raw", strings.ReplaceAll(aws("ObjectCreated:Put", stamp, "a+b %41.img"), "aws:s3", "other:s3"), created("a+b %41.img")},
		{"no records", `{"Records":[]}`, nil},
		{"test event", testEvent, nil},
		{"events of no interest", aws("ObjectTagging:Put", stamp, "x.img") + "\n", nil},
		{"a read, by MinIO", minioStream("s3:ObjectAccessed:Get", "x.img"), nil},
		{"a bucket, by MinIO", minioStream("s3:BucketCreated:*", ""), nil},
		{
			"several records", `{"Records":[` + record("aws:s3", "ObjectCreated:Put", stamp, "x.img") + "," + record("aws:s3", "ObjectRemoved:Delete", stamp, "y.img") + `]}`,
			append(created("x.img"), removed("y.img")...),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.body))
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("Parse = %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestParseErrors(t *testing.T) {
	const stamp = "2026-11-24T01:02:03.456Z"
	tests := []struct {
		name, body, want string
		events           int
	}{
		{"empty", "", "not an object event", 0},
		{"no JSON", "hello", "not an object event", 0},
		{"another JSON", `{"Image":"x.img"}`, "it has no Records", 0},
		{"null records", `{"Records":null}`, "it has no Records", 0},
		{"an array", `[]`, "not an object event", 0},
		{"undecodable key", aws("ObjectCreated:Put", stamp, "x%zz.img"), `record 0: the key "x%zz.img" is not encoded`, 0},
		{"percent at the end", aws("ObjectCreated:Put", stamp, "x.img%"), `record 0: the key "x.img%" is not encoded`, 0},
		{"not UTF-8 once decoded", aws("ObjectCreated:Put", stamp, "x%FF.img"), `the key "x\xff.img" cannot be one`, 0},
		{"no key", aws("ObjectCreated:Put", stamp, ""), `the key "" cannot be one`, 0},
		{"no bucket", `{"Records":[{"eventName":"ObjectCreated:Put","s3":{"object":{"key":"x.img"}}}]}`, `the bucket "" or the key "x.img"`, 0},
		{
			"the others are still reported", `{"Records":[` + record("aws:s3", "ObjectCreated:Put", stamp, "%") + "," + record("aws:s3", "ObjectCreated:Put", stamp, "y.img") + `]}`,
			`record 0: the key "%"`, 1,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.body))
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(got) != tt.events {
				t.Errorf("Parse = %+v, %v; want %d events and an error that says %q", got, err, tt.events, tt.want)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, body := range []string{
		aws("ObjectCreated:Put", "2026-11-24T01:02:03", "my+first%2Bimage+50%25.img"),
		aws("ObjectCreated:Put", "1970-01-01T00:00:00.000Z", "%C3%9C%252B.img"),
		minioWebhook("s3:ObjectRemoved:Delete", "a b.img", "a+b.img"),
		minioStream("s3:ObjectCreated:Put", "50% a+b.img"),
		aws("ObjectCreated:Put", "", "%zz"),
		`{"Records":[]}`, testEvent,
	} {
		f.Add([]byte(body), "Ü 1+1 50% %2B #?.img")
	}
	f.Fuzz(func(t *testing.T, body []byte, key string) {
		events, _ := Parse(body)
		for _, e := range events {
			if e.Bucket == "" || e.Key == "" || !utf8.ValidString(e.Key) {
				t.Errorf("Parse = %+v", e)
			}
		}
		// Each source preserves every key.
		if key == "" || !utf8.ValidString(key) {
			return
		}
		for _, body := range []string{
			aws("ObjectCreated:Put", "", url.QueryEscape(key)),
			minioWebhook("s3:ObjectCreated:Put", key, url.QueryEscape(key)),
			minioStream("s3:ObjectCreated:Put", key),
		} {
			events, err := Parse([]byte(body))
			if err != nil || len(events) != 1 || events[0].Key != key {
				t.Errorf("the key %q is parsed as %+v, %v", key, events, err)
			}
		}
	})
}

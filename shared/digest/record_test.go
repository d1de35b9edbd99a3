package digest

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
)

func TestRecordJSON(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC)
	v := store.Version{ETag: "e", Size: 5, LastModified: at}
	tests := []struct {
		name string
		rec  Record
		want string
	}{
		{
			"least",
			Record{Meta: record.Meta{Nonce: "n"}, Name: "x.img", Version: v, SHA256: "aa", HashedAt: at, By: ByHash},
			`{"nonce":"n","name":"x.img","version":{"etag":"e","size":5,"last_modified":"2026-11-24T01:02:03Z"},"sha256":"aa","hashed_at":"2026-11-24T01:02:03Z","by":"hash"}`,
		},
		{
			"all",
			Record{
				Meta: record.Meta{Nonce: "n"}, Name: "x.img", Version: v, SHA256: "aa", SHA512: "bb", HashedAt: at, By: ByUpload,
				Publishers: []Publisher{{Algorithm: "sha256", Expected: "cc", SidecarVersion: v}},
			},
			`{"nonce":"n","name":"x.img","version":{"etag":"e","size":5,"last_modified":"2026-11-24T01:02:03Z"},"sha256":"aa","sha512":"bb","hashed_at":"2026-11-24T01:02:03Z","by":"upload",` +
				`"publishers":[{"algorithm":"sha256","expected":"cc","match":false,"sidecar_version":{"etag":"e","size":5,"last_modified":"2026-11-24T01:02:03Z"}}]}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			data, err := json.Marshal(tt.rec)
			if err != nil || string(data) != tt.want {
				t.Errorf("Marshal = %s, %v; want %s", data, err, tt.want)
			}
			var back Record
			if err := json.Unmarshal(data, &back); err != nil {
				t.Fatal(err)
			}
			if again, _ := json.Marshal(back); string(again) != tt.want {
				t.Errorf("round trip = %s", again)
			}
		})
	}
}

func TestPublisher(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC)
	p := Publisher{Algorithm: "sha256", Expected: "cc", Match: true, SidecarVersion: store.Version{ETag: "e", LastModified: at}}
	same := p
	same.SidecarVersion.LastModified = at.In(time.FixedZone("", 3600))
	mismatch, failed, newer := p, p, p
	mismatch.Match = false
	ofDisk := mismatch
	ofDisk.Expected = "dd"
	failed.Error = "x.img.sha256 cannot be used"
	newer.SidecarVersion.ETag = "f"
	tests := []struct {
		name    string
		q       Publisher
		equal   bool
		warning string
	}{
		{"same", same, true, ""},
		{"mismatch", mismatch, false, "x.img.sha256 says cc"},
		{"of the disk in it", ofDisk, false, "x.img.sha256 has the digest of the disk"},
		{"failed", failed, false, "x.img.sha256 cannot be used"},
		{"newer", newer, false, ""},
	}
	for _, tt := range tests {
		if p.Equal(tt.q) != tt.equal || tt.q.Equal(p) != tt.equal || !tt.q.Equal(tt.q) {
			t.Errorf("%s: Equal is not %v in both orders", tt.name, tt.equal)
		}
		if w := tt.q.Warning("x.img", "dd"); (w == "") != (tt.warning == "") || !strings.HasPrefix(w, tt.warning) {
			t.Errorf("%s: Warning = %q, want %q", tt.name, w, tt.warning)
		}
	}
}

// If a name gets earlier bytes again, they are known since their first time.
func TestNext(t *testing.T) {
	at := time.Date(2026, 11, 24, 1, 2, 3, 0, time.UTC)
	var r Record
	for i, tt := range []struct {
		sha256 layout.SHA256
		since  time.Time
	}{
		{"aa", at},
		{"aa", at},
		{"aa", at},
		{"bb", at.Add(3 * time.Hour)},
		{"aa", at.Add(4 * time.Hour)},
	} {
		r = r.Next("x.img", store.Version{}, tt.sha256, ByUpload, at.Add(time.Duration(i)*time.Hour))
		if !r.Since().Equal(tt.since) || r.SHA256 != tt.sha256 {
			t.Errorf("record %d: %s since %v, want %s since %v", i, r.SHA256, r.Since(), tt.sha256, tt.since)
		}
	}
}

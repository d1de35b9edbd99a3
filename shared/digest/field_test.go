package digest

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"strings"
	"testing"

	"imageroot/shared/layout"
)

func b64(b []byte) string { return base64.StdEncoding.EncodeToString(b) }

var (
	one256, two256 = sha256.Sum256([]byte("one")), sha256.Sum256([]byte("two"))
	one512         = sha512.Sum512([]byte("one"))
	oneHex         = hex.EncodeToString(one256[:])
	one, two       = b64(one256[:]), b64(two256[:])
	long           = b64(one512[:])
	both           = Expected{layout.SHA256(oneHex), hex.EncodeToString(one512[:])}
)

func TestParseRequest(t *testing.T) {
	const repr, content, amz = "Repr-Digest", "Content-Digest", "x-amz-checksum-sha256"
	type fields [][2]string
	tests := []struct {
		name   string
		fields fields
		want   Expected
		err    string
	}{
		{"none", nil, Expected{}, ""},
		{"repr", fields{{repr, "sha-256=:" + one + ":"}}, Expected{SHA256: layout.SHA256(oneHex)}, ""},
		{"content, both algorithms", fields{{content, "sha-512=:" + long + ":, sha-256=:" + one + ":"}}, both, ""},
		{"two lines", fields{{repr, "sha-512=:" + long + ":"}, {repr, "sha-256=:" + one + ":;p=1"}}, both, ""},
		{"S3", fields{{amz, one}}, Expected{SHA256: layout.SHA256(oneHex)}, ""},
		{"all agree", fields{{repr, "sha-256=:" + one + ":"}, {content, "sha-256=:" + one + ":"}, {amz, one}}, Expected{SHA256: layout.SHA256(oneHex)}, ""},
		{"only unknown algorithms", fields{{repr, "md5=:AAAA:, unixsum=30, crc32c, x=(1 2)"}}, Expected{}, ""},
		{"unknown beside known", fields{{repr, "md5=:AAAA:, sha-256=:" + one + ":"}}, Expected{SHA256: layout.SHA256(oneHex)}, ""},
		{"empty", fields{{repr, ""}}, Expected{}, ""},
		{"no dictionary", fields{{repr, one}}, Expected{}, "Repr-Digest is malformed"},
		{"no colons", fields{{repr, "sha-256=" + one}}, Expected{}, "Repr-Digest is malformed"},
		{"old Digest syntax", fields{{content, "SHA-256=" + one}}, Expected{}, "Content-Digest is malformed"},
		{"unterminated", fields{{repr, "sha-256=:" + one}}, Expected{}, "Repr-Digest is malformed"},
		{"a string", fields{{repr, `sha-256="` + one + `"`}}, Expected{}, "Repr-Digest is malformed; sha-256 must be the base64 of 32 bytes"},
		{"an inner list", fields{{repr, "sha-256=(:" + one + ":)"}}, Expected{}, "sha-256 must be the base64 of 32 bytes"},
		{"a key without value", fields{{repr, "sha-256"}}, Expected{}, "sha-256 must be the base64 of 32 bytes"},
		{"hex", fields{{repr, "sha-256=:" + oneHex + ":"}}, Expected{}, "sha-256 must be the base64 of 32 bytes"},
		{"length of another algorithm", fields{{repr, "sha-512=:" + one + ":"}}, Expected{}, "sha-512 must be the base64 of 64 bytes"},
		{"S3, hex", fields{{amz, oneHex}}, Expected{}, "x-amz-checksum-sha256 is malformed"},
		{"S3, another kind", fields{{"X-Amz-Checksum-Crc32", "AAAAAA=="}}, Expected{}, "x-amz-checksum-crc32 is not compared"},
		{"S3, another kind beside it", fields{{amz, one}, {"X-Amz-Checksum-Sha512", long}}, Expected{}, "x-amz-checksum-sha512 is not compared"},
		{"S3, no sum", fields{{"X-Amz-Checksum-Mode", "ENABLED"}}, Expected{}, ""},
		{"MD5", fields{{"Content-Md5", "AAAAAAAAAAAAAAAAAAAAAA=="}}, Expected{}, "content-md5 is not compared"},
		{"S3, empty", fields{{amz, ""}}, Expected{}, "x-amz-checksum-sha256 is malformed"},
		{"two lines contradict", fields{{repr, "sha-256=:" + one + ":"}, {repr, "sha-256=:" + two + ":"}}, Expected{}, "Repr-Digest says another sha-256"},
		{"fields contradict", fields{{repr, "sha-256=:" + one + ":"}, {content, "sha-256=:" + two + ":"}}, Expected{}, "Content-Digest says another sha-256"},
		{"S3 contradicts", fields{{repr, "sha-256=:" + one + ":"}, {amz, two}}, Expected{}, "x-amz-checksum-sha256 says another SHA-256"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := http.Header{}
			for _, f := range tt.fields {
				h.Add(f[0], f[1])
			}
			got, err := ParseRequest(h)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("ParseRequest = %v, %v; want an error that says %q", got, err, tt.err)
				}
				return
			}
			if err != nil || got != tt.want {
				t.Errorf("ParseRequest = %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}

func TestFormatReprDigest(t *testing.T) {
	if got, want := FormatReprDigest(layout.SHA256(oneHex)), "sha-256=:"+one+":"; got != want {
		t.Errorf("FormatReprDigest = %q, want %q", got, want)
	}
	for _, bad := range []string{"", "zz", oneHex[2:], oneHex + "00"} {
		if got := FormatReprDigest(layout.SHA256(bad)); got != "" {
			t.Errorf("FormatReprDigest(%q) = %q", bad, got)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add("sha-256=:"+one+":", "sha-512=:"+long+":;p", two)
	f.Add("md5=:AAAA:, sha-256=?1, a=(1 \"2\" x);y=@1, b=%\"x\"", "", "")
	f.Add("sha-256=:"+one, "sha-256=", one)
	f.Fuzz(func(t *testing.T, repr, content, amz string) {
		h := http.Header{"Repr-Digest": {repr}, "Content-Digest": {content}}
		if amz != "" {
			h.Set("x-amz-checksum-sha256", amz)
		}
		e, err := ParseRequest(h)
		if err != nil || e == (Expected{}) {
			return
		}
		if len(e.SHA256) != 64 && e.SHA256 != "" || len(e.SHA512) != 128 && e.SHA512 != "" {
			t.Fatalf("ParseRequest = %+v", e)
		}
		if e.SHA256 != "" {
			again, err := ParseRequest(http.Header{"Repr-Digest": {FormatReprDigest(e.SHA256)}})
			if err != nil || again.SHA256 != e.SHA256 {
				t.Errorf("%s does not survive: %+v, %v", e.SHA256, again, err)
			}
		}
	})
}

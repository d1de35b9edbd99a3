package digest

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/dunglas/httpsfv"

	"imageroot/shared/layout"
)

// Expected holds the digests that a client sends for its bytes. A field is empty if the
// client does not send that digest.
type Expected struct {
	SHA256 layout.SHA256
	SHA512 string
}

// ParseRequest returns the digests that a request has for its body, in Repr-Digest
// and Content-Digest (RFC 9530 sections 2 and 3, which are equal for a PUT of a whole
// body) and S3's x-amz-checksum-sha256. Algorithms other than SHA-256 and SHA-512 are
// ignored in the first two, as RFC 9530 requires.
//
// The error is a sentence for the client: a field is malformed, two digests
// contradict each other, or the request has a checksum that is not compared
// (Content-MD5, and the others of S3).
func ParseRequest(h http.Header) (e Expected, err error) {
	for name := range h {
		sum, ok := strings.CutPrefix(name, "X-Amz-Checksum-")
		if name == "Content-Md5" || ok && !slices.Contains([]string{"Sha256", "Algorithm", "Mode", "Type"}, sum) {
			// Ignoring it would accept bytes that the client wants refused.
			return e, fmt.Errorf("%s is not compared here; send Repr-Digest or x-amz-checksum-sha256 instead", strings.ToLower(name))
		}
	}
	for _, name := range []string{"Repr-Digest", "Content-Digest"} {
		// Parse each line separately: in joined lines (RFC 9651 section 4.2) the last
		// of two digests would replace the first instead of contradicting it.
		for _, line := range h.Values(name) {
			dict, err := httpsfv.UnmarshalDictionary([]string{line})
			if err != nil {
				return e, fmt.Errorf("%s is malformed; it must be like sha-256=:BASE64: with the base64 of the digest", name)
			}
			if err := read(name, dict, "sha-256", 32, &e.SHA256); err != nil {
				return e, err
			}
			if err := read(name, dict, "sha-512", 64, &e.SHA512); err != nil {
				return e, err
			}
		}
	}
	for _, value := range h.Values("X-Amz-Checksum-Sha256") {
		sum, err := base64.StdEncoding.Strict().DecodeString(value)
		if err != nil || len(sum) != 32 {
			return e, errors.New("x-amz-checksum-sha256 is malformed; it must be the base64 of 32 bytes")
		}
		if err := agree("x-amz-checksum-sha256", "SHA-256", sum, &e.SHA256); err != nil {
			return e, err
		}
	}
	return e, nil
}

func read[T ~string](field string, dict *httpsfv.Dictionary, key string, size int, into *T) error {
	member, ok := dict.Get(key)
	if !ok {
		return nil
	}
	item, _ := member.(httpsfv.Item)
	sum, _ := item.Value.([]byte)
	if len(sum) != size {
		return fmt.Errorf("%s is malformed; %s must be the base64 of %d bytes between colons", field, key, size)
	}
	return agree(field, key, sum, into)
}

func agree[T ~string](field, algorithm string, sum []byte, into *T) error {
	s := T(hex.EncodeToString(sum))
	if *into != "" && *into != s {
		return fmt.Errorf("%s says another %s than a digest before it in the request; send one, or make them agree", field, algorithm)
	}
	*into = s
	return nil
}

// FormatReprDigest returns the value of a Repr-Digest field (RFC 9530 section 3) for a
// SHA-256 in hexadecimal, or "" if sha256 is not one.
func FormatReprDigest(sha256 layout.SHA256) string {
	sum, err := hex.DecodeString(string(sha256))
	if err != nil || len(sum) != 32 {
		return ""
	}
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

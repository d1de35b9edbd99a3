// Package layout is the one place that knows how keys look in the image root
// and in the catalog root. Nothing else builds or parses a key.
//
//	IMAGE ROOT    NAME                      an image (see package image)
//	              NAME.sha256, NAME.sha512  what the publisher says of NAME
//	              catalog.toml              the operator's manifest
//
//	CATALOG ROOT  digests/NAME              digest record of the image NAME
//	              entries/REF               an entry; REF is the SHA-256 of its URL
//	              fetched/REF               what fetching the source REF found: its digest and size
//	              blobs/HEX                 fetched bytes, named by their SHA-256
//	              contents/HEX              what the bytes with that SHA-256 are, wherever they are
//	              staging/ID                bytes of a fetch whose SHA-256 is not known yet; ID is random
//	              uploads/ID                a resumable upload; ID is 32 hex digits
//	              jobs/hash/NAME            hash job of the image NAME
//	              jobs/check/HEX            check job of the bytes with that SHA-256
//	              jobs/fetch/REF            fetch job; REF is the SHA-256 of the URL
//	              events/STAMP-ID           activity, newest first in listing order
//	              manifest/good             the last good manifest
//	              auth/password             argon2id hash of the operator password
//	              auth/session-key          key that signs session cookies
//	              auth/ended                sessions that were logged out before their time
//	              probe/ID-N                what a start tries the server with; ID is random
//
// Records carry no ".json": a name of 255 bytes must fit into one path
// segment of a file system as it is.
package layout

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/image"
)

// Keys and prefixes of the two roots.
const (
	ManifestKey = "catalog.toml"

	DigestPrefix    = "digests/"
	EntryPrefix     = "entries/"
	FetchedPrefix   = "fetched/"
	BlobPrefix      = "blobs/"
	ContentPrefix   = "contents/"
	StagingPrefix   = "staging/"
	UploadPrefix    = "uploads/"
	HashJobPrefix   = "jobs/hash/"
	CheckJobPrefix  = "jobs/check/"
	FetchJobPrefix  = "jobs/fetch/"
	EventPrefix     = "events/"
	GoodManifestKey = "manifest/good"
	PasswordKey     = "auth/password"
	SessionKeyKey   = "auth/session-key"
	EndedKey        = "auth/ended"
	ProbePrefix     = "probe/"
)

// Remedy says what to do about the damaged record at key, or what the program
// does by itself.
func Remedy(key string) string {
	for _, kind := range []struct{ prefix, remedy string }{
		{DigestPrefix, "none needed: the image is hashed again"},
		{ContentPrefix, "none needed: the bytes are inspected again"},
		{HashJobPrefix, "none needed: a job that is still due is queued again"},
		{CheckJobPrefix, "none needed: a job that is still due is queued again"},
		{FetchJobPrefix, "fetch the image again; what was fetched of it is removed after a day"},
		{EntryPrefix, "add the image's URL again, or delete the record from the catalog root"},
		{FetchedPrefix, "fetch the image again, or delete the record from the catalog root"},
		{UploadPrefix, "upload the image again; the record and its parts are removed after seven days"},
	} {
		if strings.HasPrefix(key, kind.prefix) {
			return kind.remedy
		}
	}
	return "delete the record from the catalog root"
}

// Ref returns the REF of a source URL: its SHA-256 in hexadecimal.
func Ref(url string) string {
	sum := sha256.Sum256([]byte(url))
	return hex.EncodeToString(sum[:])
}

// IsHex256 reports whether s is a SHA-256 in lower case hexadecimal.
func IsHex256(s string) bool { return isHex(s, 64) }

func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// DigestKey returns the key of an image's digest record.
func DigestKey(name string) string { return DigestPrefix + name }

// EntryKey returns the key of an entry.
func EntryKey(ref string) string { return EntryPrefix + ref }

// FetchedKey returns the key of what fetching the source ref found.
func FetchedKey(ref string) string { return FetchedPrefix + ref }

// BlobKey returns the key of fetched bytes.
func BlobKey(sha256 string) string { return BlobPrefix + sha256 }

// ContentKey returns the key of what is known of bytes.
func ContentKey(sha256 string) string { return ContentPrefix + sha256 }

// StagingKey returns the key, of 64 random hex digits, that a fetch writes to while it does not
// know the SHA-256.
func StagingKey(id string) string { return StagingPrefix + id }

// UploadKey returns the key of a resumable upload's record.
func UploadKey(id string) string { return UploadPrefix + id }

// HashJobKey returns the key of an image's hash job.
func HashJobKey(name string) string { return HashJobPrefix + name }

// CheckJobKey returns the key of the check job of bytes.
func CheckJobKey(sha256 string) string { return CheckJobPrefix + sha256 }

// FetchJobKey returns the key of the fetch job of a source.
func FetchJobKey(ref string) string { return FetchJobPrefix + ref }

// ProbeKey returns the key of one object that a start tries the server with.
func ProbeKey(id, what string) string { return ProbePrefix + id + "-" + what }

// DigestName parses a [DigestKey].
func DigestName(key string) (name string, ok bool) { return nameAfter(key, DigestPrefix) }

// HashJobName parses a [HashJobKey].
func HashJobName(key string) (name string, ok bool) { return nameAfter(key, HashJobPrefix) }

// EntryRef parses an [EntryKey].
func EntryRef(key string) (ref string, ok bool) { return hexAfter(key, EntryPrefix, 64) }

// FetchedRef parses a [FetchedKey].
func FetchedRef(key string) (ref string, ok bool) { return hexAfter(key, FetchedPrefix, 64) }

// BlobSHA256 parses a [BlobKey].
func BlobSHA256(key string) (sha256 string, ok bool) { return hexAfter(key, BlobPrefix, 64) }

// ContentSHA256 parses a [ContentKey].
func ContentSHA256(key string) (sha256 string, ok bool) { return hexAfter(key, ContentPrefix, 64) }

// CheckJobSHA256 parses a [CheckJobKey].
func CheckJobSHA256(key string) (sha256 string, ok bool) { return hexAfter(key, CheckJobPrefix, 64) }

// StagingRef parses a [StagingKey].
func StagingRef(key string) (ref string, ok bool) { return hexAfter(key, StagingPrefix, 64) }

// UploadID parses an [UploadKey].
func UploadID(key string) (id string, ok bool) { return hexAfter(key, UploadPrefix, 32) }

// IsUploadID reports whether s can be the ID of a resumable upload.
func IsUploadID(s string) bool { return isHex(s, 32) }

// FetchJobRef parses a [FetchJobKey].
func FetchJobRef(key string) (ref string, ok bool) { return hexAfter(key, FetchJobPrefix, 64) }

func nameAfter(key, prefix string) (string, bool) {
	name, ok := strings.CutPrefix(key, prefix)
	return name, ok && image.IsName(name)
}

func hexAfter(key, prefix string, n int) (string, bool) {
	s, ok := strings.CutPrefix(key, prefix)
	if !ok || !isHex(s, n) {
		return "", false
	}
	return s, true
}

// An EventID tells one activity event from every other and sorts by age: the
// newest first in byte order.
type EventID string

// NewEventID returns an ID for an event at t; nonce is any 16 hex digits that
// tell events of one microsecond apart.
func NewEventID(t time.Time, nonce string) EventID {
	return EventID(fmt.Sprintf("%016x-%s", flip(t.UnixMicro()), nonce))
}

// Time returns the microsecond that the ID was made for.
func (id EventID) Time() (time.Time, bool) {
	s := string(id)
	if len(s) != 33 || s[16] != '-' || !isHex(s[:16], 16) || !isHex(s[17:], 16) {
		return time.Time{}, false
	}
	n, err := strconv.ParseUint(s[:16], 16, 64)
	if err != nil {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(flip(int64(n)))).UTC(), true
}

// flip maps the order of signed numbers to the reverse order of unsigned
// ones, and back; times before 1970 (a clock that was never set) keep theirs.
func flip(n int64) uint64 { return math.MaxInt64 - uint64(n) }

// EventKey returns the key of an activity event.
func EventKey(id EventID) string { return EventPrefix + string(id) }

// ParseEventKey parses an [EventKey].
func ParseEventKey(key string) (EventID, bool) {
	s, ok := strings.CutPrefix(key, EventPrefix)
	if !ok {
		return "", false
	}
	id := EventID(s)
	_, ok = id.Time()
	return id, ok
}

// SidecarKey returns the key of the checksum file beside an image.
func SidecarKey(name, algorithm string) string { return name + "." + algorithm }

// ImageOfSidecar returns the image that a checksum file in the image root
// speaks of, and the algorithm it uses ("sha256" or "sha512").
func ImageOfSidecar(key string) (name, algorithm string, ok bool) {
	for _, alg := range []string{"sha256", "sha512"} {
		if n, found := strings.CutSuffix(key, "."+alg); found && image.IsName(n) {
			return n, alg, true
		}
	}
	return "", "", false
}

// Package layout defines the keys of the image root and the catalog root. No other
// package builds or parses keys.
//
//	IMAGE ROOT    NAME                      an image (package image)
//	              NAME.sha256, NAME.sha512  sidecars of NAME: the publisher's checksum lists
//	              NAME.bmap                 the publisher's block map of the disk in NAME, or in NAME
//	                                        with the suffix of a compression
//	              catalog.toml              the operator's manifest
//
//	CATALOG ROOT  digests/NAME              digest record of the image NAME
//	              entries/REF               an entry; REF is the SHA-256 of its URL
//	              exports/EXPORT            an export that an operator has named
//	              fetched/REF               digest and size of the bytes fetched from the source REF
//	              blobs/HEX                 fetched bytes, named by their SHA-256
//	              bmaps/HEX                 the block map of the disk in the image with this SHA-256
//	              published/HEX             the publisher's block map beside the URL of fetched bytes
//	              disks/HEX                 the expanded disk in the image with this SHA-256
//	              contents/HEX              what is known about the bytes with this SHA-256
//	              metadata/HEX              what the operator says about the bytes with this SHA-256
//	              served/HEX                who got the bytes with this SHA-256 last
//	              staging/ID                bytes of a fetch whose SHA-256 is unknown; ID is random
//	              uploads/ID                a resumable upload; ID is 32 hex digits
//	              jobs/hash/NAME            hash job of the image NAME
//	              jobs/check/HEX            check job of the bytes with this SHA-256
//	              jobs/disk/HEX             disk job of the image with this SHA-256
//	              jobs/fetch/REF            fetch job of the source REF
//	              jobs/rename/NAME          rename job of the image NAME
//	              events/STAMP-ID           activity, newest first in listing order
//	              manifest/good             the last good manifest
//	              auth/password             argon2id hash of the operator password
//	              auth/session-key          key that signs session cookies
//	              auth/tokens               the tokens of machines
//	              auth/used                 when each token was last used
//	              auth/ended                sessions that ended before their expiry
//	              index/current             the current checkpoint of the index
//	              index/trimmed             the time before which journal entries are removed
//	              index/ID                  a file of a checkpoint; ID is 16 hex digits
//	              journal/STAMP-ID          an entry of the index's journal, oldest first in listing order
//	              listings/HEX              a listing too large for an answer on AWS; HEX is made of its entity tag
//	              probe/passed              the server that has passed the probe
//	              probe/ID-N                objects of the probe at start; ID is random
//
// REF and HEX are 64 lower-case hexadecimal digits, STAMP is 16. EXPORT is an
// [ExportName]. An ID is 64 in staging, 32 in uploads and 16 in index, journal and events.
// Each parser accepts only the keys of its builder, and no key is of two kinds.
//
// Keys of records have no suffix such as ".json", since a name may have 255 bytes,
// which is the limit of file systems for a path segment.
package layout

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/image"
	"imageroot/shared/store"
)

// Keys and prefixes of the two roots.
const (
	ManifestKey store.Key = "catalog.toml"

	DigestPrefix              = "digests/"
	EntryPrefix               = "entries/"
	ExportPrefix              = "exports/"
	FetchedPrefix             = "fetched/"
	BlobPrefix                = "blobs/"
	BmapPrefix                = "bmaps/"
	PublishedPrefix           = "published/"
	DiskPrefix                = "disks/"
	ContentPrefix             = "contents/"
	MetadataPrefix            = "metadata/"
	ServedPrefix              = "served/"
	StagingPrefix             = "staging/"
	UploadPrefix              = "uploads/"
	HashJobPrefix             = "jobs/hash/"
	CheckJobPrefix            = "jobs/check/"
	DiskJobPrefix             = "jobs/disk/"
	FetchJobPrefix            = "jobs/fetch/"
	RenameJobPrefix           = "jobs/rename/"
	EventPrefix               = "events/"
	GoodManifestKey store.Key = "manifest/good"
	PasswordKey     store.Key = "auth/password"
	SessionKeyKey   store.Key = "auth/session-key"
	EndedKey        store.Key = "auth/ended"
	TokensKey       store.Key = "auth/tokens"
	UsedKey         store.Key = "auth/used"
	IndexPrefix               = "index/"
	IndexKey        store.Key = "index/current"
	TrimmedKey      store.Key = "index/trimmed"
	JournalPrefix             = "journal/"
	ListingPrefix             = "listings/"
	ProbePrefix               = "probe/"
	PassedKey       store.Key = "probe/passed"
)

// Remedy returns what a user must do about the damaged record at key, as part of a
// sentence.
func Remedy(key store.Key) string {
	for _, kind := range []struct{ prefix, remedy string }{
		{DigestPrefix, "none needed: the image is hashed again"},
		{ContentPrefix, "none needed: the bytes are inspected again"},
		{MetadataPrefix, "describe the image again, or delete the record from the catalog root"},
		{ServedPrefix, "none needed: the record begins anew"},
		{HashJobPrefix, "none needed: a job that is still due is queued again"},
		{CheckJobPrefix, "none needed: a job that is still due is queued again"},
		{DiskJobPrefix, "none needed: the disk is made again when it is needed"},
		{FetchJobPrefix, "fetch the image again; what was fetched of it is removed after a day"},
		{RenameJobPrefix, "rename the image again if it still has the old name"},
		{EntryPrefix, "add the image's URL again, or delete the record from the catalog root"},
		{ExportPrefix, "add the export again, or delete it"},
		{FetchedPrefix, "fetch the image again, or delete the record from the catalog root"},
		{IndexPrefix, "none needed: the index is built again from the records"},
		{ProbePrefix, "none needed: the server is probed again"},
		{string(TokensKey), "make the tokens of machines again: none is valid"},
		{string(UsedKey), "none needed: uses of tokens are recorded anew"},
		{UploadPrefix, "upload the image again; the record and its parts are removed after seven days"},
	} {
		if strings.HasPrefix(string(key), kind.prefix) {
			return kind.remedy
		}
	}
	return "delete the record from the catalog root"
}

// A SHA256 is the SHA-256 of bytes in lower-case hexadecimal, or "" if it is unknown.
type SHA256 string

// ParseSHA256 returns s as a SHA-256, and false unless it is 64 lower-case hexadecimal
// digits.
func ParseSHA256(s string) (SHA256, bool) {
	if !isHex(s, 64) {
		return "", false
	}
	return SHA256(s), true
}

// Valid reports whether s has the digits of a SHA-256.
func (s SHA256) Valid() bool { return isHex(string(s), 64) }

// Short returns the first 12 digits of s, which the API calls ref. It panics if s is
// "".
func (s SHA256) Short() string { return string(s[:12]) }

// A Ref names a source. It is the SHA-256 of the source's canonical URL in lower-case
// hexadecimal.
type Ref string

// RefOf returns the ref of a canonical source URL.
func RefOf(url string) Ref {
	sum := sha256.Sum256([]byte(url))
	return Ref(hex.EncodeToString(sum[:]))
}

// An ExportName is the name of an export that an operator has named: up to 64 letters and
// digits of ASCII, dots, hyphens and underscores, of which the first is a letter or digit.
type ExportName string

var exportNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ParseExportName returns s as the name of an export, and false if it cannot be one.
func ParseExportName(s string) (ExportName, bool) { return ExportName(s), exportNames.MatchString(s) }

func isHex(s string, n int) bool { return len(s) == n && strings.Trim(s, "0123456789abcdef") == "" }

// ImageKey returns the key of an image in the image root.
func ImageKey(name image.Name) store.Key { return store.Key(name) }

// ImageKeys returns the keys of the [image.Spellings] of a name.
func ImageKeys(name image.Name) []store.Key {
	var keys []store.Key
	for _, spelling := range image.Spellings(name) {
		keys = append(keys, ImageKey(spelling))
	}
	return keys
}

// The keys of the catalog root: see the table in the package comment.

func DigestKey(name image.Name) store.Key    { return store.Key(DigestPrefix + name) }
func EntryKey(ref Ref) store.Key             { return store.Key(EntryPrefix + ref) }
func ExportKey(name ExportName) store.Key    { return store.Key(ExportPrefix + name) }
func FetchedKey(ref Ref) store.Key           { return store.Key(FetchedPrefix + ref) }
func BlobKey(sha256 SHA256) store.Key        { return store.Key(BlobPrefix + sha256) }
func BmapKey(sha256 SHA256) store.Key        { return store.Key(BmapPrefix + sha256) }
func PublishedKey(sha256 SHA256) store.Key   { return store.Key(PublishedPrefix + sha256) }
func DiskKey(sha256 SHA256) store.Key        { return store.Key(DiskPrefix + sha256) }
func ListingKey(sha256 SHA256) store.Key     { return store.Key(ListingPrefix + sha256) }
func ContentKey(sha256 SHA256) store.Key     { return store.Key(ContentPrefix + sha256) }
func MetadataKey(sha256 SHA256) store.Key    { return store.Key(MetadataPrefix + sha256) }
func ServedKey(sha256 SHA256) store.Key      { return store.Key(ServedPrefix + sha256) }
func StagingKey(id string) store.Key         { return store.Key(StagingPrefix + id) } // 64 random hexadecimal digits
func UploadKey(id string) store.Key          { return store.Key(UploadPrefix + id) }
func HashJobKey(name image.Name) store.Key   { return store.Key(HashJobPrefix + name) }
func CheckJobKey(sha256 SHA256) store.Key    { return store.Key(CheckJobPrefix + sha256) }
func DiskJobKey(sha256 SHA256) store.Key     { return store.Key(DiskJobPrefix + sha256) }
func FetchJobKey(ref Ref) store.Key          { return store.Key(FetchJobPrefix + ref) }
func RenameJobKey(name image.Name) store.Key { return store.Key(RenameJobPrefix + name) }
func EventKey(id EventID) store.Key          { return store.Key(EventPrefix + id) }
func ProbeKey(id, what string) store.Key     { return store.Key(ProbePrefix + id + "-" + what) }

// Each of these functions parses the key of the same name. Its second result is false for
// a key of another kind.

func ImageName(key store.Key) (image.Name, bool) {
	return nameAfter(key, "")
}

func DigestName(key store.Key) (image.Name, bool) {
	return nameAfter(key, DigestPrefix)
}

func HashJobName(key store.Key) (image.Name, bool) {
	return nameAfter(key, HashJobPrefix)
}

func RenameJobName(key store.Key) (image.Name, bool) {
	return nameAfter(key, RenameJobPrefix)
}

func EntryRef(key store.Key) (Ref, bool) {
	return hexAfter[Ref](key, EntryPrefix, 64)
}

func ExportOf(key store.Key) (ExportName, bool) {
	s, found := strings.CutPrefix(string(key), ExportPrefix)
	name, ok := ParseExportName(s)
	return name, found && ok
}

func FetchedRef(key store.Key) (Ref, bool) {
	return hexAfter[Ref](key, FetchedPrefix, 64)
}

func FetchJobRef(key store.Key) (Ref, bool) {
	return hexAfter[Ref](key, FetchJobPrefix, 64)
}

func BlobSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, BlobPrefix, 64)
}

func PublishedSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, PublishedPrefix, 64)
}

func DiskSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, DiskPrefix, 64)
}

func DiskJobSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, DiskJobPrefix, 64)
}

func ContentSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, ContentPrefix, 64)
}

func MetadataSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, MetadataPrefix, 64)
}

func ServedSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, ServedPrefix, 64)
}

func CheckJobSHA256(key store.Key) (SHA256, bool) {
	return hexAfter[SHA256](key, CheckJobPrefix, 64)
}

func StagingID(key store.Key) (string, bool) {
	return hexAfter[string](key, StagingPrefix, 64)
}

func UploadID(key store.Key) (string, bool) {
	return hexAfter[string](key, UploadPrefix, 32)
}

// IsUploadID reports whether s can be the ID of a resumable upload.
func IsUploadID(s string) bool { return isHex(s, 32) }

func nameAfter(key store.Key, prefix string) (image.Name, bool) {
	rest, ok := strings.CutPrefix(string(key), prefix)
	name := image.Name(rest)
	return name, ok && name.Valid()
}

func hexAfter[T ~string](key store.Key, prefix string, n int) (T, bool) {
	s, ok := strings.CutPrefix(string(key), prefix)
	if !ok || !isHex(s, n) {
		return "", false
	}
	return T(s), true
}

// NewUploadID returns a new ID of a resumable upload.
func NewUploadID() string { return randomHex(32) }

// NewStagingID returns a new ID for [StagingKey].
func NewStagingID() string { return randomHex(64) }

// Nonce returns 16 random hexadecimal digits, for an [EventID], a [JournalID] or the ID of
// a [CheckpointKey].
func Nonce() string { return randomHex(16) }

func randomHex(digits int) string {
	b := make([]byte, digits/2)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// stampOf returns the number before the nonce of an [EventID] or a [JournalID].
func stampOf(id string) (n int64, ok bool) {
	if len(id) != 33 || id[16] != '-' || !isHex(id[:16], 16) || !isHex(id[17:], 16) {
		return 0, false
	}
	u, err := strconv.ParseUint(id[:16], 16, 64)
	return int64(u), err == nil
}

// An EventID identifies an activity event. In byte order, the newest event is first.
type EventID string

// NewEventID returns the ID of an event at t, with the resolution of a microsecond.
// nonce is 16 hexadecimal digits that no other event of the microsecond has.
func NewEventID(t time.Time, nonce string) EventID {
	return EventID(fmt.Sprintf("%016x-%s", flip(t.UnixMicro()), nonce))
}

// Time returns the time of the event, in UTC. ok is false if [NewEventID] does not
// return such an ID.
func (id EventID) Time() (t time.Time, ok bool) {
	n, ok := stampOf(string(id))
	if !ok {
		return time.Time{}, false
	}
	return time.UnixMicro(int64(flip(n))).UTC(), true
}

// flip maps signed numbers to unsigned ones in reverse order, and back. It includes
// times before 1970, of a clock that was never set.
func flip(n int64) uint64 { return math.MaxInt64 - uint64(n) }

// ParseEventKey parses an [EventKey].
func ParseEventKey(key store.Key) (EventID, bool) {
	s, found := strings.CutPrefix(string(key), EventPrefix)
	_, ok := EventID(s).Time()
	return EventID(s), found && ok
}

// A JournalID identifies an entry of the index's journal. In byte order, the oldest
// entry is first.
type JournalID string

// NewJournalID returns the ID of an entry at t, with the resolution of a microsecond.
// nonce is 16 hexadecimal digits that no other entry of the microsecond has.
func NewJournalID(t time.Time, nonce string) JournalID {
	return JournalID(JournalStamp(t) + "-" + nonce)
}

// JournalStamp returns what the ID of an entry at t begins with. Times before 1970
// have the stamp of 1970.
func JournalStamp(t time.Time) string { return fmt.Sprintf("%016x", max(0, t.UnixMicro())) }

// Time returns the time of the entry, in UTC, or the zero time if [NewJournalID] does not
// return such an ID.
func (id JournalID) Time() time.Time {
	n, ok := stampOf(string(id))
	if !ok || n < 0 {
		return time.Time{}
	}
	return time.UnixMicro(n).UTC()
}

// JournalKey returns the key of an entry of the journal.
func JournalKey(id JournalID) store.Key { return store.Key(JournalPrefix + string(id)) }

// ParseJournalKey parses a [JournalKey].
func ParseJournalKey(key store.Key) (id JournalID, ok bool) {
	s, found := strings.CutPrefix(string(key), JournalPrefix)
	n, ok := stampOf(s)
	return JournalID(s), found && ok && n >= 0
}

// CheckpointKey returns the key of a file of a checkpoint.
func CheckpointKey(id string) store.Key { return store.Key(IndexPrefix + id) }

// CheckpointID parses a [CheckpointKey].
func CheckpointID(key store.Key) (id string, ok bool) { return hexAfter[string](key, IndexPrefix, 16) }

// SidecarKey returns the key of a sidecar of the image in the image root. algorithm is
// "sha256" or "sha512".
func SidecarKey(name image.Name, algorithm string) store.Key {
	return store.Key(string(name) + "." + algorithm)
}

// BmapSidecars returns the keys in the image root that the publisher's block map of the image
// may have, the preferred one first.
func BmapSidecars(name image.Name) (keys []store.Key) {
	format, _ := image.FormatOf(name)
	c, _ := format.Compression()
	for _, of := range slices.Compact([]image.Name{name, name[:len(name)-len(c.Suffix)]}) {
		for _, spelling := range image.Spellings(of) {
			if key := spelling + bmapEnd; image.CheckSegment(string(key)) == nil {
				keys = append(keys, store.Key(key))
			}
		}
	}
	return keys
}

const bmapEnd = ".bmap"

// ImagesOfBmap returns the names of the images whose block map may be at key, or none.
func ImagesOfBmap(key store.Key) []image.Name {
	of, ok := strings.CutSuffix(string(key), bmapEnd)
	name := image.Name(of)
	if !ok || !name.Valid() {
		return nil
	}
	names := image.Spellings(name)
	for _, c := range image.Compressions {
		if packed := name + image.Name(c.Suffix); packed.Valid() && image.DiskName(packed) == name {
			names = append(names, image.Spellings(packed)...)
		}
	}
	return names
}

// ImageOfSidecar parses a [SidecarKey]. algorithm is "sha256" or "sha512".
func ImageOfSidecar(key store.Key) (name image.Name, algorithm string, ok bool) {
	for _, alg := range []string{"sha256", "sha512"} {
		n, ok := strings.CutSuffix(string(key), "."+alg)
		if name := image.Name(n); ok && name.Valid() {
			return name, alg, true
		}
	}
	return "", "", false
}

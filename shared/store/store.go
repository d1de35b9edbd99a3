// Package store is what imageroot asks of an S3-compatible server. It is
// split by the consistency a caller needs: [Objects] streams bytes that are
// replaced whole, [Multipart] assembles large ones, and [Records] changes
// small shared state by compare-and-swap.
//
// Keys are relative to a root (a bucket, or a prefix in one). Every
// implementation passes the suite in storetest.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
)

// Errors that every implementation returns, wrapped with what happened.
// Errors that are none of these are failures of the server or of the way to
// it; the operation may be tried again, unless they are errors.ErrUnsupported.
var (
	// ErrNotFound: there is no such object, record, or multipart upload.
	ErrNotFound = errors.New("not found")
	// ErrNoBucket: the bucket itself is missing. It is never ErrNotFound, so
	// that no caller takes its objects for deleted. Head, which has no room for
	// the reason in its answer, may return ErrNotFound all the same.
	ErrNoBucket = errors.New("the bucket does not exist")
	// ErrConflict: a compare-and-swap lost. Somebody else's write is in force.
	ErrConflict = errors.New("changed by somebody else")
	// ErrUnknown: a write may or may not have taken effect (the answer was
	// lost, or a repeat of it was refused, perhaps by its own first try).
	// Read back to learn which.
	ErrUnknown = errors.New("outcome unknown")
	// ErrChanged: the object is no longer the version that was asked for.
	ErrChanged = errors.New("the object was replaced")
	// ErrFull: the server has no room for the bytes.
	ErrFull = errors.New("no space left in the store")
	// ErrDenied: the credentials may not do this.
	ErrDenied = errors.New("the store denies access")
	// ErrTooLarge: the object is larger than the server takes.
	ErrTooLarge = errors.New("too large for the store")
	// ErrOccupied: something that is no object occupies the key on the server's
	// disk: a directory, or a file of which the key would be a part.
	ErrOccupied = errors.New("the key is occupied on the store's disk")
	// ErrRefused: the server refuses the request, and would refuse it again.
	ErrRefused = errors.New("the store refuses the request")
	// ErrDisk: the server's disk is read-only, damaged, or not the server's to
	// use. The operation may succeed once an administrator has repaired that.
	ErrDisk = errors.New("the store's disk failed")
	// ErrUnavailable: the server cannot be reached, or failed for now. Whether
	// a write took effect is not known.
	ErrUnavailable = errors.New("the store cannot be reached")
	// ErrBadDigest: the bytes that arrived are not the bytes that were sent.
	ErrBadDigest = errors.New("bytes damaged on the way to the store")
)

// Limits of S3 that callers plan for.
const (
	// MaxParts is the most parts one multipart upload may have.
	MaxParts = 10_000
	// MinPartBytes is the least size of a part that is not the last.
	MinPartBytes = 5 << 20
	// MaxPutBytes is the most that one PUT, or one part, may carry.
	MaxPutBytes = 5 << 30
)

// A Version tells one content of a key from every other content the key had
// or will have. It is all three together: an ETag alone may stay when a file
// is edited, a time alone has a resolution of one second.
type Version struct {
	ETag         string    `json:"etag"` // without quotes
	Size         int64     `json:"size"` // bytes
	LastModified time.Time `json:"last_modified"`
}

// Equal reports whether v and w are one version.
func (v Version) Equal(w Version) bool {
	return v.ETag == w.ETag && v.Size == w.Size && v.LastModified.Unix() == w.LastModified.Unix()
}

// Info is what a listing or a HEAD tells of an object.
type Info struct {
	Key string
	Version
}

// A Range is part of an object: Length bytes from Offset, or all to the end
// where Length is negative.
type Range struct{ Offset, Length int64 }

// All is the whole object.
var All = Range{0, -1}

// Objects streams bytes. A reader sees one version whole or an error, never
// a mixture; a write is visible whole or not at all.
type Objects interface {
	// Head returns an object's version, or [ErrNotFound].
	Head(ctx context.Context, key string) (Info, error)

	// Get opens part of an object. Where ifMatch is not empty and the
	// object's ETag is another one by now, it returns [ErrChanged]. The reader
	// must be closed; a short body is an error, not an end.
	Get(ctx context.Context, key string, r Range, ifMatch string) (io.ReadCloser, Info, error)

	// Put replaces an object by what body holds: exactly size bytes, or, where
	// size is negative, all up to io.EOF. Any other error of body, and the end
	// of ctx, leaves the old object as it was. The version returned is the one
	// that was written; where somebody else has replaced it already, the
	// error is [ErrChanged] and the write did take place.
	Put(ctx context.Context, key string, body io.Reader, size int64) (Version, error)

	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, key string) error

	// List yields the objects whose keys start with prefix and have no slash
	// after it, in byte order of their keys, beginning after the key after.
	// It stops at the first error.
	List(ctx context.Context, prefix, after string) iter.Seq2[Info, error]

	// Copy makes dst an object with src's bytes, on the server.
	Copy(ctx context.Context, dst, src string, size int64) error
}

// A Direct is the reader of an object where reading here and there costs no more
// than reading in order, which is not so where each time is a request.
type Direct interface {
	// ReadObjectAt is as of io.ReaderAt. It reads the whole object, whatever
	// part [Objects.Get] was asked for, until the reader is closed.
	ReadObjectAt(p []byte, off int64) (int, error)
}

// A Part is a finished part of a multipart upload.
type Part struct {
	Number int32  `json:"n"` // from 1
	ETag   string `json:"etag"`
	Size   int64  `json:"size"`
	// LastModified is when the part arrived. Only [Multipart.ListParts] sets it.
	LastModified time.Time `json:"-"`
}

// Equal reports whether p and q are one part, whether a listing gave it or not.
func (p Part) Equal(q Part) bool {
	return p.Number == q.Number && p.ETag == q.ETag && p.Size == q.Size
}

// A PendingUpload is a multipart upload that is neither completed nor aborted.
type PendingUpload struct {
	Key, ID   string
	Initiated time.Time
}

// Multipart assembles an object from parts that are sent in any order, by
// any process, and again if need be.
type Multipart interface {
	// CreateUpload begins an upload and returns its ID.
	CreateUpload(ctx context.Context, key string) (id string, err error)
	// UploadPart sends part n, of exactly size bytes, in place of an earlier
	// part n. [ErrNotFound]: there is no such upload any more.
	UploadPart(ctx context.Context, key, id string, n int32, body io.Reader, size int64) (Part, error)
	// ListParts returns the finished parts by number.
	ListParts(ctx context.Context, key, id string) ([]Part, error)
	// CompleteUpload makes the object of parts (ascending, as [UploadPart]
	// returned them) and returns its version. It can take minutes.
	CompleteUpload(ctx context.Context, key, id string, parts []Part) (Version, error)
	// AbortUpload gives the parts up. It is no error if there is no such upload.
	AbortUpload(ctx context.Context, key, id string) error
	// PendingUploads yields the uploads of keys that start with prefix. A
	// server may not know those of before its own start (MinIO, which removes
	// them itself after a day).
	PendingUploads(ctx context.Context, prefix string) iter.Seq2[PendingUpload, error]
}

// A Presigner makes URLs with which whoever has one may do one thing to one
// object until it expires: the bytes then pass by this program. It does not
// contact the server.
type Presigner interface {
	// PresignPut returns a URL to PUT an object to, of at most [MaxPutBytes].
	// Where sha256 (hexadecimal) is not empty the client must send it as
	// x-amz-checksum-sha256, and the server refuses other bytes.
	PresignPut(ctx context.Context, key, sha256 string) (url string, err error)
	// PresignPart returns a URL to PUT a part of an upload to.
	PresignPart(ctx context.Context, key, id string, n int32) (url string, err error)
	// PresignGet returns a URL for GET or, where head is true, HEAD of an
	// object, which clients are to save as filename.
	PresignGet(ctx context.Context, key, filename string, head bool) (url string, err error)
}

// MaxRecordBytes is the largest record.
const MaxRecordBytes = 1 << 20

// Records are small objects that processes share. A tag names one content of
// one record; it is never used again for another content as long as every
// content differs from those before it (record.Nonce sees to that).
//
// A write has three outcomes: nil (won), [ErrConflict] (lost), and any other
// error (unknown: read back).
type Records interface {
	// ReadRecord returns a record and its tag, or [ErrNotFound].
	ReadRecord(ctx context.Context, key string) (data []byte, tag string, err error)
	// CreateRecord writes a record that must not exist yet.
	CreateRecord(ctx context.Context, key string, data []byte) (tag string, err error)
	// ReplaceRecord writes a record over the content that tag names.
	ReplaceRecord(ctx context.Context, key string, data []byte, tag string) (newTag string, err error)
	// DeleteRecord removes a record, whatever its content. It is no error if
	// there is none.
	DeleteRecord(ctx context.Context, key string) error
}

// Root is all that a root (image root or catalog root) offers.
type Root interface {
	Objects
	Multipart
	Records
}

// HeadFirst is Head of the first of keys that has an object, and returns that
// key. Where none has, the error is [ErrNotFound].
func HeadFirst(ctx context.Context, o Objects, keys []string) (key string, info Info, err error) {
	err = ErrNotFound
	for _, key = range keys {
		if info, err = o.Head(ctx, key); !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return key, info, err
}

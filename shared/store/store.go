// Package store defines what imageroot needs of an S3-compatible server. The interfaces
// differ in consistency: [Objects] streams bytes that are replaced as a whole,
// [Multipart] assembles large objects from parts, and [Records] changes small shared
// state by compare-and-swap. A [Root] has all three.
//
// Keys are relative to a root: a bucket, or a prefix in one. They are any valid UTF-8
// of 1 to 1024 bytes, prefix included, without control characters. "/" is special in
// listings only.
//
// Every method is safe for concurrent use, from several processes too. A write that has
// returned nil is visible to every later call of any process, and as durable as the
// server makes it. If ctx ends, a method returns an error that wraps ctx's. Then a
// write may have taken effect. Package storetest has this contract as a test suite that
// every implementation passes.
package store

import (
	"context"
	"errors"
	"io"
	"iter"
	"mime"
	"time"
)

// The errors that implementations return, wrapped with the operation. Any other error
// is a failure of the server or of the connection to it: the caller may retry, unless
// the error is errors.ErrUnsupported.
var (
	// ErrNotFound: the object, record or multipart upload does not exist.
	ErrNotFound = errors.New("not found")
	// ErrNoBucket: the bucket itself does not exist. This is never ErrNotFound, so that
	// callers do not take its objects for deleted. The only exception is Head, which
	// may return ErrNotFound, since the response has no body with the reason.
	ErrNoBucket = errors.New("the bucket does not exist")
	// ErrConflict: a compare-and-swap lost. Another write is in force.
	ErrConflict = errors.New("changed by another writer")
	// ErrUnknown: a write may or may not have taken effect. The response was lost, or a
	// retry was refused, perhaps because the first attempt had succeeded. Read back to
	// find out.
	ErrUnknown = errors.New("outcome unknown")
	// ErrChanged: the object is no longer the requested version.
	ErrChanged = errors.New("the object was replaced")
	// ErrFull: the server has no room for the bytes.
	ErrFull = errors.New("no space left in the store")
	// ErrDenied: the credentials do not allow the operation.
	ErrDenied = errors.New("the store denies access")
	// ErrTooLarge: the object exceeds the server's limit.
	ErrTooLarge = errors.New("too large for the store")
	// ErrOccupied: something that is not an object occupies the key on the server's
	// disk: a directory, or a file in place of a parent directory of the key.
	ErrOccupied = errors.New("the key is occupied on the store's disk")
	// ErrRefused: the server refuses the request, and would refuse a retry.
	ErrRefused = errors.New("the store refuses the request")
	// ErrDisk: the server's disk is read-only, damaged, or not accessible to the
	// server. The operation may succeed after an administrator has repaired that.
	ErrDisk = errors.New("the store's disk failed")
	// ErrUnavailable: the server cannot be reached, or failed temporarily. A
	// write may have taken effect.
	ErrUnavailable = errors.New("the store cannot be reached")
	// ErrBadDigest: the bytes that arrived are not the bytes that were sent.
	ErrBadDigest = errors.New("bytes damaged in transit to the store")
)

// Limits of S3 that callers plan for.
const (
	// MaxParts is the maximum number of parts in a multipart upload, and the highest
	// part number.
	MaxParts = 10_000
	// MinPartBytes is the minimum size of all parts but the last.
	MinPartBytes = 5 << 20
	// MaxPutBytes is the maximum size of one PUT, and of one part.
	MaxPutBytes = 5 << 30
)

// A Key is the key of an object, relative to its root: without the root's prefix.
type Key string

// A Version identifies one content of a key among all contents that the key has had or
// will have. All three fields are needed: the ETag of a file may stay when the file is
// edited, and a time has a resolution of one second.
type Version struct {
	ETag         string    `json:"etag"` // without quotes
	Size         int64     `json:"size"` // bytes
	LastModified time.Time `json:"last_modified"`
}

// Equal reports whether v and w are the same version. Times are compared in seconds.
func (v Version) Equal(w Version) bool {
	return v.ETag == w.ETag && v.Size == w.Size && v.LastModified.Unix() == w.LastModified.Unix()
}

// An Info is an object as a listing or a HEAD describes it.
type Info struct {
	Key Key
	Version
}

// A Range is a part of an object: Length bytes from Offset on, or all bytes from Offset
// on if Length is negative. It is cut at the end of the object. An empty range, or one
// that begins at or after the end, is an error.
type Range struct{ Offset, Length int64 }

// All is the whole object, which may be empty.
var All = Range{0, -1}

// Objects streams bytes. Writes are atomic: a reader gets the bytes of one version or
// an error, and a failed write has no visible effect, unless its error leaves the
// outcome open.
type Objects interface {
	// Head returns the version of an object, or [ErrNotFound].
	Head(ctx context.Context, key Key) (Info, error)

	// Get opens a part of an object, or returns [ErrNotFound]. If ifMatch is not
	// empty and not the object's ETag, it returns [ErrChanged]. The Info is that
	// of the whole object.
	//
	// The caller must close the reader, and may do so before its end. The reader
	// returns io.EOF only after all bytes of the range. If the connection drops before,
	// it returns another error. The end of ctx ends the reader too.
	Get(ctx context.Context, key Key, r Range, ifMatch string) (io.ReadCloser, Info, error)

	// Put replaces or creates an object with the bytes of body: exactly size bytes, or
	// all bytes up to io.EOF if size is negative. If body has fewer bytes than size, or
	// returns another error, or ctx ends before the write took effect, the old object
	// stays and nothing of the new one remains. Bytes of body beyond size are never
	// stored: they are an error, or not read.
	//
	// Put returns the version that it has written. If another write has already
	// replaced it, the error is [ErrChanged], although this write took effect.
	Put(ctx context.Context, key Key, body io.Reader, size int64) (Version, error)

	// Create is Put for an object that does not exist: it replaces none. If there is one, the
	// error is [ErrConflict], perhaps after body was read. Of concurrent creations exactly
	// one wins. Only a server that ignores If-None-Match when it completes a multipart upload
	// may let another one win, and only for a body above [MaxPutBytes] or of unknown size.
	Create(ctx context.Context, key Key, body io.Reader, size int64) (Version, error)

	// Delete removes an object. It returns nil if the object does not exist.
	Delete(ctx context.Context, key Key) error

	// List yields the objects whose keys begin with prefix, have no slash after it, and
	// are greater than after, in byte order of their keys. Versions are equal to those
	// of Head. An error is yielded last.
	List(ctx context.Context, prefix string, after Key) iter.Seq2[Info, error]

	// Move creates dst with the bytes of version v of src, on the server, and returns the
	// version of dst. A server without a rename copies: then src stays, and the caller must
	// delete it. It can take minutes.
	//
	// Move does not replace an object: if dst exists, the error is [ErrConflict]. Only a
	// server that ignores If-None-Match may lose a write to dst in the same moment. The
	// error is [ErrNotFound] if src does not exist. It is [ErrChanged] if src is another
	// version, which may be dst then, or if another write has already replaced dst.
	Move(ctx context.Context, dst, src Key, v Version) (Version, error)
}

// A Direct is a reader returned by [Objects.Get] whose random access is as cheap as
// sequential access, since reads send no requests.
type Direct interface {
	// ReadObjectAt is io.ReaderAt's ReadAt for the whole object, not for the requested
	// range. It works until the reader is closed, and is safe for concurrent use.
	ReadObjectAt(p []byte, off int64) (int, error)
	// ObjectExtent returns the number of bytes from off to limit at most that are all
	// stored, or all a hole, which reads as zeros. Both must be within the object. The
	// caller must not use Read any more.
	ObjectExtent(off, limit int64) (n int64, hole bool, err error)
	// ObjectOwnHoles reports whether the holes of the object are those of another program's
	// file. Those of an object that was written through the store may be zeros.
	ObjectOwnHoles() bool
	// ObjectSame reports whether nothing has changed the object since it was opened. If
	// it returns false, [Objects.Head] tells whether it is still the same version.
	ObjectSame() bool
}

// A Part is a part of a multipart upload that has arrived.
type Part struct {
	Number int32  `json:"n"`    // 1 to [MaxParts]
	ETag   string `json:"etag"` // without quotes
	Size   int64  `json:"size"` // bytes
	// LastModified is when the part arrived. Only [Multipart.ListParts] sets it.
	LastModified time.Time `json:"-"`
}

// Equal reports whether p and q are the same part. It ignores LastModified.
func (p Part) Equal(q Part) bool {
	return p.Number == q.Number && p.ETag == q.ETag && p.Size == q.Size
}

// A PendingUpload is a multipart upload that is neither completed nor aborted.
type PendingUpload struct {
	Key       Key
	ID        string
	Initiated time.Time
}

// Multipart assembles an object from parts, which any process may send in any order,
// concurrently and repeatedly. Uploads of one key are independent. An upload lives
// until it is completed or aborted. A method returns [ErrNotFound] if no upload of this
// key with this ID is pending.
type Multipart interface {
	// CreateUpload begins an upload and returns its ID. The object at key does
	// not change.
	CreateUpload(ctx context.Context, key Key) (id string, err error)
	// UploadPart sends part n (1 to [MaxParts]) of exactly size bytes, at most
	// [MaxPutBytes], and replaces an earlier part n. If body fails or has fewer
	// bytes, the earlier part stays.
	UploadPart(ctx context.Context, key Key, id string, n int32, body io.Reader, size int64) (Part, error)
	// ListParts returns the parts that have arrived, ordered by number.
	ListParts(ctx context.Context, key Key, id string) ([]Part, error)
	// CompleteUpload replaces or creates the object with the bytes of parts and returns
	// its version. It can take minutes. The parts must be ordered by number and be as
	// [Multipart.UploadPart] returned them, and all but the last must have at least
	// [MinPartBytes]. Otherwise it fails and the upload stays pending. Parts that are
	// not in parts are dropped.
	CompleteUpload(ctx context.Context, key Key, id string, parts []Part) (Version, error)
	// CompleteNew is CompleteUpload for an object that does not exist: it replaces none. If
	// there is one, the error is [ErrConflict], and the caller aborts the upload, or completes
	// it again once that object is gone. Of concurrent creations exactly one wins, unless the
	// server ignores If-None-Match when it completes a multipart upload.
	CompleteNew(ctx context.Context, key Key, id string, parts []Part) (Version, error)
	// AbortUpload removes an upload with its parts. It returns nil if the upload is not
	// pending.
	AbortUpload(ctx context.Context, key Key, id string) error
	// PendingUploads yields the pending uploads of keys that begin with prefix. An
	// error is yielded last. A server may omit uploads from before its own start: MinIO
	// does, and removes them after a day.
	PendingUploads(ctx context.Context, prefix string) iter.Seq2[PendingUpload, error]
}

// LinkTime is how long URLs of [Presigner.PresignGet] and [Presigner.PresignHead] are valid.
// A request that begins in time may take longer.
const LinkTime = time.Hour

// A Presigner issues URLs that each authorise one operation on one object until
// they expire, so that the bytes do not pass through this program. It does not
// contact the server.
type Presigner interface {
	// PresignPut returns a URL for a PUT of an object of at most [MaxPutBytes]. If
	// sha256 (hexadecimal) is not empty, the client must send it in the field
	// x-amz-checksum-sha256 (in base64), and the server refuses other bytes. If create is
	// true, the client must send If-None-Match: *, and the server replaces no object.
	PresignPut(ctx context.Context, key Key, sha256 string, create bool) (url string, err error)
	// PresignPart returns a URL for a PUT of part n of an upload.
	PresignPart(ctx context.Context, key Key, id string, n int32) (url string, err error)
	// PresignGet returns a URL for a GET of an object, answered with these header
	// fields.
	PresignGet(ctx context.Context, key Key, h GetHeader) (url string, err error)
	// PresignHead returns a URL for a HEAD of an object.
	PresignHead(ctx context.Context, key Key) (url string, err error)
}

// GetHeader has the values of header fields. Fields that are empty are not sent.
type GetHeader struct{ Disposition, Type, Encoding string }

// Attachment is the header of a response that clients save to a file with this name.
func Attachment(filename string) GetHeader {
	return GetHeader{Disposition: mime.FormatMediaType("attachment", map[string]string{"filename": filename}), Type: "application/octet-stream"}
}

// MaxRecordBytes is the maximum size of a record.
const MaxRecordBytes = 1 << 20

// Records are small objects that processes share. They are objects of the same
// root: [Objects.List] lists them.
//
// A tag identifies one content of a record. Equal contents have equal tags, so each
// content must differ from all earlier ones: record.Meta ensures that.
//
// A write has three outcomes. A nil error: it won, and its content was in force.
// [ErrConflict]: it lost and had no effect. Any other error: the outcome is unknown,
// and the caller must read back. Of concurrent writes with one tag, or concurrent
// creations, exactly one wins. Implementations must not retry a write if the server may
// have carried out the first attempt.
type Records interface {
	// ReadRecord returns a record and its tag, or [ErrNotFound]. It fails if the
	// object has more than [MaxRecordBytes].
	ReadRecord(ctx context.Context, key Key) (data []byte, tag string, err error)
	// CreateRecord creates a record of at most [MaxRecordBytes]. If it exists, the
	// error is [ErrConflict].
	CreateRecord(ctx context.Context, key Key, data []byte) (tag string, err error)
	// ReplaceRecord replaces the content that tag identifies. If the record has
	// another content, or does not exist, the error is [ErrConflict].
	ReplaceRecord(ctx context.Context, key Key, data []byte, tag string) (newTag string, err error)
	// Delete removes a record, whatever its content, as [Objects.Delete] does.
	Delete(ctx context.Context, key Key) error
}

// A Root is the image root or the catalog root.
type Root interface {
	Objects
	Multipart
	Records
}

// HeadFirst returns the first of keys with an object, and its Head. The error is
// [ErrNotFound] if there is none, or that of a Head that fails.
func HeadFirst(ctx context.Context, o Objects, keys []Key) (key Key, info Info, err error) {
	err = ErrNotFound
	for _, key = range keys {
		if info, err = o.Head(ctx, key); !errors.Is(err, ErrNotFound) {
			break
		}
	}
	return key, info, err
}

// TryList returns the error of listing the first object of a root, or nil.
func TryList(ctx context.Context, root Objects) error {
	for _, err := range root.List(ctx, "", "") {
		return err
	}
	return nil
}

package gateway

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/pkg/xattr"
	"github.com/versity/versitygw/auth"
	vgw "github.com/versity/versitygw/backend"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/s3err"
)

// attributes keeps an object's metadata in extended attributes of its file, so that
// both are replaced at once and compare-and-swap holds between processes. Unlike
// versitygw's own, it ignores what was stored with other bytes than the file has
// now, returns the ETag of [version], and has room for any number of parts.
type attributes struct {
	meta.XattrMeta
	owner  string   // access key of the account that may do everything
	shared []string // buckets in which people edit files in place
	first  int64    // when the directory was first used, in nanoseconds
	free   space
}

var _ meta.MetadataStorer = attributes{}

// since returns the time from which changes of files by others count in a
// bucket: see [subject].
func (a attributes) since(bucket string) int64 {
	if slices.Contains(a.shared, bucket) {
		return a.first
	}
	return 0
}

// scratch reports whether object is one of versitygw's own files, such as a part
// of an upload: these are never edited, and distinguish makes their ETags.
func scratch(object string) bool {
	return object == posix.MetaTmpDir || strings.HasPrefix(object, posix.MetaTmpDir+"/")
}

func (a attributes) RetrieveAttribute(f *os.File, bucket, object, attribute string) ([]byte, error) {
	s := subject{f, filepath.Join(bucket, object), a.since(filepath.Base(bucket))}
	if object == "" && attribute == attrACL {
		// The program owns every bucket, even one that an operator made as a
		// directory or that was made with another key. No ACL grants anything.
		return json.Marshal(auth.ACL{Owner: a.owner})
	}
	if attribute == attrEncoding {
		// Older versions of this program stored what the client sent.
		value, err := found(s.get(attribute))
		if value = []byte(withoutChunking(string(value))); err == nil && len(value) == 0 {
			err = meta.ErrNoSuchKey
		}
		return value, err
	}
	if !scratch(object) && (attribute == attrETag || attribute == attrSums || attribute == attrParts) {
		if info, err := s.info(); err != nil || !info.IsDir() {
			return a.ofContent(s, attribute)
		}
	}
	return found(s.get(attribute))
}

// ofContent returns an attribute that describes the bytes of a file.
func (a attributes) ofContent(s subject, attribute string) ([]byte, error) {
	v, err := s.version()
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		if attribute == attrETag && !errors.Is(err, fs.ErrNotExist) {
			// After an error, versitygw would write unconditionally. With an ETag
			// that nothing matches, it refuses.
			return []byte{}, nil
		}
		return nil, err
	}
	if attribute == attrETag {
		return []byte(v.etag()), nil
	}
	if v.stored == "" {
		return nil, meta.ErrNoSuchKey
	}
	value, err := found(s.get(attribute))
	if err != nil || attribute != attrParts {
		return value, err
	}
	p, err := parsePartTable(value)
	if err != nil || len(p.Runs) == 0 {
		return nil, meta.ErrNoSuchKey
	}
	return vgw.MarshalMpUploadMetadata(p.offsets(), false)
}

func found(value []byte, err error) ([]byte, error) {
	if errors.Is(err, xattr.ENOATTR) {
		return nil, meta.ErrNoSuchKey
	}
	return value, err
}

func (a attributes) StoreAttribute(f *os.File, bucket, object, attribute string, value []byte) error {
	if attribute == attrEncoding {
		if value = []byte(withoutChunking(string(value))); len(value) == 0 {
			return nil
		}
	}
	if f == nil || scratch(object) {
		return a.explainStore(a.XattrMeta.StoreAttribute(f, bucket, object, attribute, value), bucket)
	}
	switch attribute {
	case attrParts:
		m, err := vgw.UnmarshalMpUploadMetadata(value, false)
		if err != nil {
			return err
		}
		if value, err = newPartTable(m).marshal(); err != nil {
			return err
		}
	case attrETag:
		// The file is complete, and not yet in its place.
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := a.XattrMeta.StoreAttribute(f, bucket, object, attrVersion, []byte(stampOf(info).String())); err != nil {
			return a.explainStore(err, bucket)
		}
		if a.since(filepath.Base(bucket)) != 0 {
			if err := (subject{file: f}).mark(); err != nil {
				return a.explainStore(err, bucket)
			}
		}
	}
	return a.explainStore(a.XattrMeta.StoreAttribute(f, bucket, object, attribute, value), bucket)
}

// explainStore distinguishes attributes too large for the file system (ext4 has
// 4 KiB for all attributes of a file) from a full disk: both are ENOSPC.
func (a attributes) explainStore(err error, bucket string) error {
	full := errors.Is(err, s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice))
	if full && a.free.room(bucket, 1) == nil || errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ERANGE) {
		return s3err.GetAPIError(s3err.ErrMetadataTooLarge)
	}
	return err
}

// attrEncoding is the Content-Encoding of an object.
const attrEncoding = "content-encoding"

// withoutChunking returns a Content-Encoding without aws-chunked, which is the
// framing of the request and not the encoding of the object. S3 does not store it.
func withoutChunking(encoding string) string {
	var kept []string
	for coding := range strings.SplitSeq(encoding, ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "aws-chunked") {
			kept = append(kept, coding)
		}
	}
	return strings.Join(kept, ",")
}

package gateway

import (
	"encoding/json"
	"errors"
	"fmt"
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

// attributes keeps what belongs to an object in extended attributes of its
// file, so that both are replaced in one step and compare-and-swap holds
// between processes. It differs from versitygw's own in that what was stored
// with other bytes than the file has now is not found, that an ETag is one of
// [version], and that the parts of any multipart upload fit.
type attributes struct {
	meta.XattrMeta
	owner  string   // access key of the account that may do everything
	shared []string // buckets in which people edit files in place
	first  int64    // when the directory was first used, in nanoseconds
}

var _ meta.MetadataStorer = attributes{}

// since returns since when changes of files in a bucket by others count: see
// [subject].
func (a attributes) since(bucket string) int64 {
	if slices.Contains(a.shared, bucket) {
		return a.first
	}
	return 0
}

// scratch reports whether object is one of versitygw's own files: parts of
// uploads are never edited, and their ETags are their own (see distinguish).
func scratch(object string) bool {
	return object == posix.MetaTmpDir || strings.HasPrefix(object, posix.MetaTmpDir+"/")
}

// RetrieveAttribute implements meta.MetadataStorer.
func (a attributes) RetrieveAttribute(f *os.File, bucket, object, attribute string) ([]byte, error) {
	s := subject{f, filepath.Join(bucket, object), a.since(filepath.Base(bucket))}
	if object == "" && attribute == attrACL {
		// The program owns every bucket, also a directory that an operator made
		// and a bucket that was made with another key. No ACL grants anything.
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

// ofContent returns an attribute that speaks of the bytes of a file.
func (a attributes) ofContent(s subject, attribute string) ([]byte, error) {
	v, err := s.version()
	if errors.Is(err, syscall.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		if attribute == attrETag && !errors.Is(err, fs.ErrNotExist) {
			// versitygw takes an error for "write it whatever is there". An
			// ETag that nothing matches makes it refuse.
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

// StoreAttribute implements meta.MetadataStorer.
func (a attributes) StoreAttribute(f *os.File, bucket, object, attribute string, value []byte) error {
	if attribute == attrEncoding {
		if value = []byte(withoutChunking(string(value))); len(value) == 0 {
			return nil
		}
	}
	if f == nil || scratch(object) {
		return explainStore(a.XattrMeta.StoreAttribute(f, bucket, object, attribute, value), bucket)
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
			return explainStore(err, bucket)
		}
		if a.since(filepath.Base(bucket)) != 0 {
			if err := (subject{file: f}).mark(); err != nil {
				return explainStore(err, bucket)
			}
		}
	}
	return explainStore(a.XattrMeta.StoreAttribute(f, bucket, object, attribute, value), bucket)
}

// explainStore tells attributes that are too large for the file system (ext4
// has 4 KiB for all of a file's) from a full disk: both are ENOSPC.
func explainStore(err error, bucket string) error {
	full := errors.Is(err, s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice))
	if full && room(bucket, 1) == nil || errors.Is(err, syscall.E2BIG) || errors.Is(err, syscall.ERANGE) {
		return s3err.GetAPIError(s3err.ErrMetadataTooLarge)
	}
	return err
}

// A partTable says where the parts of an object begin, as runs of equal
// sizes: clients use one size for all parts but the last, and then ten
// thousand parts take a few bytes. Versitygw's own form outgrows what ext4
// has for attributes at some 760 parts.
type partTable struct {
	UploadID string     `json:"uploadId"`
	Runs     [][2]int64 `json:"runs,omitempty"` // size, count
}

// maxPartTable keeps room for the other attributes.
const maxPartTable = 1536

func newPartTable(m vgw.MpUploadMetadata) partTable {
	t := partTable{UploadID: m.UploadID}
	var before int64
	for _, end := range m.Parts {
		size := end - before
		before = end
		if n := len(t.Runs); n > 0 && t.Runs[n-1][0] == size {
			t.Runs[n-1][1]++
		} else {
			t.Runs = append(t.Runs, [2]int64{size, 1})
		}
	}
	return t
}

// marshal encodes the table. One of very many different sizes is left out:
// the object is then whole and readable, and only ?partNumber= is lost.
func (t partTable) marshal() ([]byte, error) {
	data, err := json.Marshal(t)
	if err == nil && len(data) > maxPartTable {
		t.Runs = nil
		data, err = json.Marshal(t)
	}
	return data, err
}

func parsePartTable(data []byte) (partTable, error) {
	var t partTable
	if err := json.Unmarshal(data, &t); err != nil {
		// As a plain versitygw wrote it.
		m, err := vgw.UnmarshalMpUploadMetadata(data, false)
		if err != nil {
			return partTable{}, fmt.Errorf("part table: %w", err)
		}
		return newPartTable(m), nil
	}
	return t, nil
}

// offsets returns the table as versitygw has it: the end of each part.
func (t partTable) offsets() vgw.MpUploadMetadata {
	m := vgw.MpUploadMetadata{UploadID: t.UploadID}
	var end int64
	for _, run := range t.Runs {
		for range min(run[1], 10_000) {
			end += run[0]
			m.Parts = append(m.Parts, end)
		}
	}
	return m
}

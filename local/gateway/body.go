package gateway

import (
	"bytes"
	"errors"
	"io"
	"reflect"

	"github.com/versity/versitygw/s3api/middlewares"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
)

// A formFile is the file of a POST upload's form. Its size is known when its last
// boundary is found, so it is not compared with the request's length.
//
// versitygw v1.8.0 treats a form as cut if no line break follows the last boundary.
// RFC 2046 §5.1.1 does not make it part of the boundary. The reader's buffer then
// has the end of the file and that boundary.
type formFile struct {
	s3utils.MpFileReader
	rest  []byte
	ended bool
}

func (f *formFile) Read(p []byte) (int, error) {
	if !f.ended {
		n, err := f.MpFileReader.Read(p)
		if !errors.Is(err, s3err.GetAPIError(s3err.ErrMalformedPOSTRequest)) {
			return n, err
		}
		reader := reflect.ValueOf(f.MpFileReader).Elem()
		boundary := bytes.TrimSuffix(bytesOf(reader, "trailer"), []byte("\r\n"))
		rest, whole := bytes.CutSuffix(bytesOf(reader, "buf"), boundary)
		if !whole || len(boundary) == 0 {
			return n, err
		}
		f.rest, f.ended = rest, true
	}
	if len(f.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

// bytesOf returns a field of a struct, or nil if it has no such field of bytes.
func bytesOf(v reflect.Value, name string) []byte {
	field := v.FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]byte]() {
		return nil
	}
	return field.Bytes()
}

// An upload is the body of a write. It fails if it has fewer or more bytes than
// were announced: versitygw would store the cut body as the object.
type upload struct {
	io.Reader
	left int64
}

func (u *upload) Read(p []byte) (n int, err error) {
	defer func() {
		// versitygw v1.8.0 panics on a chunk of negative size, and on a
		// signature with a line break that arrives in two reads.
		if r := recover(); r != nil {
			n, err = 0, refuse("The body is not in aws-chunked encoding: the head of a chunk is malformed.")
		}
	}()
	n, err = u.Reader.Read(p)
	u.left -= int64(n)
	_, known := errors.AsType[s3err.S3Error](err)
	switch {
	case u.left < 0, errors.Is(err, io.EOF) && (u.left > 0 || isUnverified(reflect.ValueOf(u.Reader))):
		return n, errCut
	case err != nil && !errors.Is(err, io.EOF) && !known:
		return n, errCut
	}
	return n, err
}

// isUnverified reports whether a body that was read to its end has a chunk whose
// signature was not compared. versitygw v1.8.0 compares it when it reads the next
// chunk, and accepts a body that ends before that.
func isUnverified(body reflect.Value) bool {
	for body.Kind() == reflect.Interface || body.Kind() == reflect.Pointer {
		body = body.Elem()
	}
	switch body.Type() {
	case reflect.TypeFor[s3utils.ChunkReader]():
		return body.FieldByName("parsedSig").Len() > 0
	case reflect.TypeFor[s3utils.HashReader]():
		return isUnverified(body.FieldByName("r"))
	case reflect.TypeFor[middlewares.MockChecksumReader]():
		return isUnverified(body.FieldByName("rdr"))
	}
	return false
}

// Algorithm and Checksum implement versitygw's reader of a trailing checksum.
func (u *upload) Algorithm() string {
	if r, ok := u.Reader.(interface{ Algorithm() string }); ok {
		return r.Algorithm()
	}
	return ""
}

// Checksum: see Algorithm.
func (u *upload) Checksum() string {
	if r, ok := u.Reader.(interface{ Checksum() string }); ok {
		return r.Checksum()
	}
	return ""
}

package gateway

import (
	"bytes"
	"errors"
	"io"
	"reflect"

	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
)

// A formFile is the file of a POST upload's form. Its size is known when its
// last boundary is found, so it is not held against the request's length.
//
// versitygw v1.8.0 takes a form for cut whose last boundary is not followed by
// a line break, which RFC 2046 §5.1.1 leaves out of the boundary. What it has
// kept back by then is the end of the file and that boundary.
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

// bytesOf returns a field of a struct, or nil where it has none of that name.
func bytesOf(v reflect.Value, name string) []byte {
	field := v.FieldByName(name)
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]byte]() {
		return nil
	}
	return field.Bytes()
}

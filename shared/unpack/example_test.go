package unpack_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"imageroot/shared/content"
	"imageroot/shared/unpack"
)

func zipped(text string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, text) // a buffer never fails
	_ = w.Close()
	return b.Bytes()
}

// Package content detects the kind of a stream from its bytes. A file may be a
// concatenation of several streams.
func ExampleNewReader() {
	file := append(zipped("hello, "), zipped("world")...)
	kind := content.Head(file, int64(len(file))).Kind
	r, err := unpack.NewReader(kind, bytes.NewReader(file), unpack.Limit{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	fmt.Printf("%s: %s, %v\n", kind, data, err)
	// Output: gzip: hello, world, <nil>
}

func ExampleError() {
	file := zipped("hello, world")
	r, err := unpack.NewReader(content.Gzip, bytes.NewReader(file[:len(file)-1]), unpack.Limit{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()
	_, err = io.ReadAll(r)
	if wrong, ok := errors.AsType[*unpack.Error](err); ok {
		fmt.Println(wrong.Problem)
		fmt.Println(wrong)
	}
	// Output:
	// truncated
	// the gzip data ends at byte 35 before it is complete: the file was cut short; get it again
}

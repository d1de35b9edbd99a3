package digest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"imageroot/shared/digest"
)

// Another process resumes a hash that was saved in a record.
func ExampleResume() {
	h := digest.New(false)
	fmt.Fprint(h, "hello, ")
	saved, err := json.Marshal(h.State())
	if err != nil {
		fmt.Println(err)
		return
	}

	var state digest.State
	if err := json.Unmarshal(saved, &state); err != nil {
		fmt.Println(err)
		return
	}
	h, err = digest.Resume(state)
	if err != nil {
		fmt.Println(err) // hash the stream from its beginning
		return
	}
	fmt.Fprint(h, "world")
	fmt.Println(h.Offset(), h.Sum256())
	// Output: 12 09ca7e4eaa6e8ae9c7d261167129184883644d07dfba7cbfbc4c8a2e08360d5b
}

// A stream that fails verification never reaches its end.
func ExampleReader() {
	wrong := errors.New("wrong digest")
	r := digest.NewReader(strings.NewReader("hello, world"), digest.New(false), func(h *digest.Hasher) error {
		if string(h.Sum256()) != strings.Repeat("0", 64) {
			return wrong
		}
		return nil
	}, nil)
	data, err := io.ReadAll(r)
	fmt.Printf("%q %v\n", data, err)
	_, err = r.Stop(func() {})
	fmt.Println(err)
	// Output:
	// "" wrong digest
	// wrong digest
}

func ExampleParseRequest() {
	h := http.Header{}
	h.Set("Repr-Digest", "sha-256=:Ccp+TqpuiunH0mEWcSkYSINkTQffuny/vEyKLgg2DVs=:")
	expected, err := digest.ParseRequest(h)
	fmt.Println(expected.SHA256, err)
	h.Set("x-amz-checksum-sha256", "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=")
	_, err = digest.ParseRequest(h)
	fmt.Println(err)
	// Output:
	// 09ca7e4eaa6e8ae9c7d261167129184883644d07dfba7cbfbc4c8a2e08360d5b <nil>
	// x-amz-checksum-sha256 says another SHA-256 than a digest before it in the request; send one, or make them agree
}

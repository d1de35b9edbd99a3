package gateway_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"slices"
	"testing"

	"imageroot/shared/store"
)

// A form ends with its last boundary, with or without a line break after it, and
// any bytes may follow. A form without the boundary was cut.
func TestEndOfForm(t *testing.T) {
	g := start(t, t.TempDir())
	r := root(t, g.Endpoint(), "images")
	post := func(data []byte, edit func([]byte) []byte) int {
		t.Helper()
		body, contentType := form(t, accessKey, secretKey, "a.img", data, "x-ignore", "")
		whole, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.Post(g.Endpoint()+"/images", contentType, bytes.NewReader(edit(whole)))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	for _, size := range []int{2, 3, 70, 4096, 1 << 20} {
		data := pattern(size, size)
		for name, edit := range map[string]func([]byte) []byte{
			"a line break":     slices.Clone[[]byte],
			"no line break":    func(b []byte) []byte { return b[:len(b)-2] },
			"something":        func(b []byte) []byte { return append(b, "what is to be ignored"...) },
			"a lot":            func(b []byte) []byte { return append(b, make([]byte, 100_000)...) },
			"many line breaks": func(b []byte) []byte { return append(b, "\r\n\r\n\r\n"...) },
		} {
			if status := post(data, edit); status != http.StatusNoContent {
				t.Errorf("%d bytes with %s at the end: %d", size, name, status)
				continue
			}
			if got, _ := get(t, r, "a.img"); !bytes.Equal(got, data) {
				t.Errorf("%d bytes with %s at the end: the object holds other bytes", size, name)
			}
			if err := r.Delete(t.Context(), "a.img"); err != nil {
				t.Fatal(err)
			}
		}
		for _, missing := range []int{3, 10} {
			if size < missing {
				continue
			}
			if status := post(data, func(b []byte) []byte { return b[:len(b)-missing] }); status != http.StatusBadRequest {
				t.Errorf("%d bytes, cut by %d: %d", size, missing, status)
			}
			if _, err := r.Head(t.Context(), "a.img"); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%d bytes, cut by %d: an object was made of them (%v)", size, missing, err)
			}
		}
	}
}

package upload

import (
	"bufio"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
)

func base64Of(t *testing.T, hexSum string) string {
	t.Helper()
	b, err := hex.DecodeString(hexSum)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(b)
}

func TestPut(t *testing.T) {
	t.Parallel()
	a, b := content(1, 2<<20), content(2, 3<<20)
	w := newWorld(t)
	for _, data := range [][]byte{a, b, a} {
		rec := w.must(http.StatusCreated, http.MethodPut, "/images/x%20y.img", data)
		got := decode[uploaded](t, rec)
		if got != (uploaded{"x y.img", int64(len(data)), sum256(data), "img"}) {
			t.Errorf("answered %+v", got)
		}
		if loc := rec.Header().Get("Location"); !strings.HasSuffix(loc, string("/images/"+sum256(data))) {
			t.Errorf("Location: %s", loc)
		}
		w.is("x y.img", data)
		if w.honest("x y.img") != string(sum256(data)) {
			t.Error("the digest is not recorded")
		}
		if sent := w.looks.take(); len(sent) != 1 || sent[0] != `{"image":"x y.img"}` {
			t.Errorf("the hash function was told %v", sent)
		}
	}
	w.must(http.StatusNoContent, http.MethodDelete, "/images/x%20y.img", nil)
	if w.holds("x y.img") != nil || len(w.looks.take()) != 1 {
		t.Error("deleted, and still there, or nobody told")
	}
	w.must(http.StatusNotFound, http.MethodDelete, "/images/x%20y.img", nil)
	w.must(http.StatusNotFound, http.MethodDelete, "/images/no.txt", nil)
	w.told(activity.ImageDeleted, activity.ImageUploaded, activity.ImageUploaded, activity.ImageUploaded)
}

// An image takes its block map along, unless another image has it, too.
func TestDeleteBmap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"x.img.gz", "x.img"} {
		w.must(http.StatusCreated, http.MethodPut, "/images/"+name, []byte(name))
	}
	for _, key := range []store.Key{"x.img.gz.bmap", "x.img.bmap"} {
		if _, err := w.images.Put(t.Context(), key, strings.NewReader("map"), 3); err != nil {
			t.Fatal(err)
		}
	}
	w.must(http.StatusNoContent, http.MethodDelete, "/images/x.img.gz", nil)
	if w.holds("x.img.gz.bmap") != nil || w.holds("x.img.bmap") == nil {
		t.Error("the map of x.img.gz is still there, or the one of x.img is not")
	}
	w.must(http.StatusNoContent, http.MethodDelete, "/images/x.img", nil)
	if w.holds("x.img.bmap") != nil {
		t.Error("the map of x.img is still there")
	}
}

// A name is deleted in the spelling of the object. The exact spelling has precedence.
func TestDeleteSpelledOtherwise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const composed, decomposed = "/images/%C3%BC.img", "/images/u%CC%88.img"
	w.must(http.StatusCreated, http.MethodPut, composed, []byte("composed"))
	w.must(http.StatusCreated, http.MethodPut, decomposed, []byte("decomposed"))
	w.must(http.StatusNoContent, http.MethodDelete, decomposed, nil)
	if w.holds("\u00fc.img") == nil || w.holds("u\u0308.img") != nil {
		t.Error("the other spelling was deleted")
	}
	w.must(http.StatusNoContent, http.MethodDelete, decomposed, nil)
	if w.holds("\u00fc.img") != nil {
		t.Error("deleted, and still there")
	}
	w.must(http.StatusNotFound, http.MethodDelete, decomposed, nil)
}

// A refused upload leaves the image unchanged.
func TestPutRefused(t *testing.T) {
	t.Parallel()
	old, data := content(1, 1<<20), content(2, 1<<20)
	sum, other := base64Of(t, string(sum256(data))), base64Of(t, string(sum256(old)))
	s512 := sha512.Sum512(data)
	for _, tt := range []struct {
		name   string
		target string
		fields []string
		free   int64
		status int
		words  string
	}{
		{"right Repr-Digest", "x.img", []string{"Repr-Digest", "sha-256=:" + sum + ":"}, -1, 201, ""},
		{"right Content-Digest", "x.img", []string{"Content-Digest", "sha-512=:" + base64.StdEncoding.EncodeToString(s512[:]) + ":"}, -1, 201, ""},
		{"right checksum", "x.img", []string{"X-Amz-Checksum-Sha256", sum}, 1 << 20, 201, ""},
		{"wrong Repr-Digest", "x.img", []string{"Repr-Digest", "sha-256=:" + other + ":"}, -1, 400, string(sum256(old) + " and the body has " + sum256(data))},
		{"wrong checksum", "x.img", []string{"X-Amz-Checksum-Sha256", other}, -1, 400, "nothing was changed"},
		{"contradiction", "x.img", []string{"X-Amz-Checksum-Sha256", sum, "Repr-Digest", "sha-256=:" + other + ":"}, -1, 400, "agree"},
		{"no digest", "x.img", []string{"Repr-Digest", "sha-256=nonsense"}, -1, 400, "malformed"},
		{"part of an image", "x.img", []string{"Content-Range", "bytes 0-1/10"}, -1, 400, "/uploads"},
		{"no new name", "x.img", []string{"If-None-Match", "*"}, -1, 412, "nothing was changed"},
		{"another precondition", "x.img", []string{"If-None-Match", `"x"`}, -1, 501, "If-None-Match: *"},
		{"no room", "x.img", nil, 1<<20 - 1, 507, "1048575"},
		{"tarball", "x.tar.gz", nil, -1, 422, "tarball"},
		{"unknown suffix", "x.txt", nil, -1, 422, ".qcow2"},
		{"hidden", ".x.img", nil, -1, 422, "dot"},
		{"long", strings.Repeat("x", 252) + ".img", nil, -1, 422, "256 bytes"},
	} {
		w := newWorld(t)
		w.must(201, http.MethodPut, "/images/x.img", old)
		w.looks.take()
		w.Free = func() int64 { return tt.free }
		rec := w.do(http.MethodPut, "/images/"+tt.target, data, tt.fields...)
		if rec.Code != tt.status || !strings.Contains(rec.Body.String(), tt.words) {
			t.Errorf("%s: %d %s, want %d with %q", tt.name, rec.Code, rec.Body, tt.status, tt.words)
		}
		want := old
		if tt.status == 201 {
			want = data
		}
		w.is("x.img", want)
		w.clean()
		if sent := len(w.looks.take()); (sent == 1) != (tt.status == 201) {
			t.Errorf("%s: the hash function was told %d times", tt.name, sent)
		}
	}
}

// TestPutCut cuts the connection at various points: the old image stays, and the
// failure is in the activity.
func TestPutCut(t *testing.T) {
	t.Parallel()
	old := content(1, 1<<20)
	data := content(2, 3<<20)
	for _, chunked := range []bool{false, true} {
		for _, at := range []int{0, 1, 700_000, len(data) - 1} {
			for _, reset := range []bool{false, true} {
				name := fmt.Sprintf("chunked %v, after %d bytes, reset %v", chunked, at, reset)
				w := newWorld(t)
				w.must(201, http.MethodPut, "/images/x.img", old)
				srv := httptest.NewServer(w.handler)
				conn, err := net.Dial("tcp", srv.Listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				if chunked {
					_, err = fmt.Fprintf(conn, "PUT /images/x.img HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s", len(data), data[:at])
				} else {
					_, err = fmt.Fprintf(conn, "PUT /images/x.img HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(data), data[:at])
				}
				if err != nil {
					t.Fatal(err)
				}
				if reset {
					_ = conn.(*net.TCPConn).SetLinger(0)
					_ = conn.Close()
				} else {
					// Half closed: the answer can still arrive.
					_ = conn.(*net.TCPConn).CloseWrite()
					resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
					if err == nil {
						body, _ := io.ReadAll(resp.Body)
						if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "send it again") {
							t.Errorf("%s: %d %s", name, resp.StatusCode, body)
						}
					}
					_ = conn.Close()
				}
				srv.Close() // waits for the handler
				w.is("x.img", old)
				w.clean()
			}
		}
	}
}

// If the store fails while the client still sends, the client gets that error.
func TestPutStoreFails(t *testing.T) {
	t.Parallel()
	for err, status := range map[error]int{
		store.ErrFull: 507, store.ErrDenied: 502, store.ErrTooLarge: 413, store.ErrBadDigest: 502, faultstore.ErrInjected: 500,
		store.ErrOccupied: 409, store.ErrRefused: 502, store.ErrDisk: 503,
	} {
		w := newWorld(t)
		w.must(201, http.MethodPut, "/images/x.img", []byte("old"))
		w.over(&failing{w.images, err}, w.catalog)
		srv := httptest.NewServer(w.handler)
		conn, derr := net.Dial("tcp", srv.Listener.Addr().String())
		if derr != nil {
			t.Fatal(derr)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		// The client never sends all bytes that it announces.
		if _, err := fmt.Fprintf(conn, "PUT /images/x.img HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\n%s", make([]byte, 2<<20)); err != nil {
			t.Fatal(err)
		}
		resp, rerr := http.ReadResponse(bufio.NewReader(conn), nil)
		if rerr != nil {
			t.Fatal(rerr)
		}
		if resp.StatusCode != status {
			body, _ := io.ReadAll(resp.Body)
			t.Errorf("%v: %d, want %d: %s", err, resp.StatusCode, status, body)
		}
		_ = conn.Close()
		srv.Close()
		w.is("x.img", []byte("old"))
	}
}

// failing is a store that fails after the beginning of an object, and fails to
// complete uploads, while err is not nil.
type failing struct {
	store.Root
	err error
}

func (f *failing) CompleteUpload(ctx context.Context, key store.Key, id string, parts []store.Part) (store.Version, error) {
	if f.err != nil {
		return store.Version{}, f.err
	}
	return f.Root.CompleteUpload(ctx, key, id, parts)
}

func (f *failing) Put(_ context.Context, _ store.Key, body io.Reader, _ int64) (store.Version, error) {
	_, _ = io.CopyN(io.Discard, body, 1<<20)
	return store.Version{}, f.err
}

// TestPutFaults fails each write once. The answer is right: 201 only if the image
// is stored, and no wrong digest.
func TestPutFaults(t *testing.T) {
	t.Parallel()
	old, data := content(1, 1000), content(2, 2000)
	for _, fault := range []faultstore.Fault{faultstore.Before, faultstore.After, faultstore.Late} {
		for n := 1; n <= 6; n++ {
			w := newWorld(t)
			w.must(201, http.MethodPut, "/images/x.img", old)
			images := faultstore.New(w.images, faultstore.NthWrite(n, fault))
			catalog := faultstore.New(w.catalog, faultstore.NthWrite(n, fault))
			w.over(images, catalog)
			rec := w.do(http.MethodPut, "/images/x.img", data)
			got := w.holds("x.img")
			switch {
			case rec.Code == 201 && sum256(got) != sum256(data):
				t.Errorf("write %d, %s: 201, and it is not there", n, fault)
			case rec.Code == 201 && n > 1 && w.honest("x.img") != string(sum256(data)):
				t.Errorf("write %d, %s: the digest is not recorded", n, fault)
			case rec.Code == 201 != (n > 1):
				t.Errorf("write %d, %s: %d %s", n, fault, rec.Code, rec.Body)
			case rec.Code != 201 && fault != faultstore.After && sum256(got) != sum256(old):
				t.Errorf("write %d, %s: refused, and the old one is gone", n, fault)
			}
			w.honest("x.img")
		}
	}
}

// After two concurrent uploads of one name, the image is one of them, whole, with its
// digest.
func TestPutRace(t *testing.T) {
	t.Parallel()
	for range 20 {
		w := newWorld(t)
		sums := map[string]bool{}
		done := make(chan int)
		for i := range uint64(4) {
			data := content(i, 300_000+int(i))
			sums[string(sum256(data))] = true
			go func() { done <- w.do(http.MethodPut, "/images/x.img", data).Code }()
		}
		for range 4 {
			if code := <-done; code != 201 {
				t.Errorf("answered %d", code)
			}
		}
		if got := sum256(w.holds("x.img")); !sums[string(got)] {
			t.Errorf("stored %s, which nobody sent", got)
		}
		w.honest("x.img")
	}
}

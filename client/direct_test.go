package client

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/client/exit"
	"imageroot/shared/config"
)

// command runs a command as main does, with a home directory of the test's.
func command(t *testing.T, url string, args ...string) (stdout string, code int, err error) {
	t.Helper()
	home := t.TempDir()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	var out, errs bytes.Buffer
	err = Run(t.Context(), args, Program{
		Usage: func(io.Writer) {}, Version: "test", Stdin: null, Stdout: &out, Stderr: &errs,
		Environment: config.Client{URL: url, Token: "secret", ConfigDir: home, StateDir: home},
	})
	return out.String(), exit.Code(err), err
}

// A cloud is a server whose images are in a store, like AWS: parts and downloads go there, by
// URLs that expire.
type cloud struct {
	*httptest.Server
	store *httptest.Server
	mu    sync.Mutex
	parts map[string][]byte
	age   int // of the URLs that the store takes
	image []byte
	name  string
	looks int // at the catalog, since the image is complete
	leaks []string
}

const cloudPart = 1 << 20

func newCloud(t *testing.T, size int) *cloud {
	c := &cloud{parts: map[string][]byte{}}
	c.store = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		c.mu.Lock()
		defer c.mu.Unlock()
		if r.Header.Get("Authorization")+r.Header.Get("Cookie") != "" {
			c.leaks = append(c.leaks, r.Method+" "+r.URL.Path)
		}
		switch {
		case err != nil:
			w.WriteHeader(http.StatusBadRequest)
		case r.Method != http.MethodPut:
			w.Header().Set("ETag", `"stored"`)
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(c.image))
		case r.URL.Query().Get("signed") != fmt.Sprint(c.age):
			http.Error(w, "<Error><Code>AccessDenied</Code></Error>", http.StatusForbidden)
		default:
			c.parts[r.URL.Path] = body
			if len(c.parts) == 2 {
				c.age++ // the URLs expire
			}
			w.Header().Set("ETag", fmt.Sprintf("%q", digestOf(body)))
		}
	}))
	t.Cleanup(c.store.Close)
	view := func(status string) map[string]any {
		v := map[string]any{"id": "1", "name": c.name, "size_bytes": size, "part_size": cloudPart, "status": status, "sha256": nil}
		if status == "uploading" {
			var parts []any
			for i := 0; i*cloudPart < size; i++ {
				path := fmt.Sprintf("/part%d", i+1)
				p := map[string]any{"number": i + 1, "url": fmt.Sprintf("%s%s?signed=%d", c.store.URL, path, c.age), "size_bytes": min(cloudPart, size-i*cloudPart)}
				if b, ok := c.parts[path]; ok {
					p["done"], p["etag"] = true, digestOf(b)
				}
				parts = append(parts, p)
			}
			v["parts"] = parts
		}
		return v
	}
	mux := http.NewServeMux()
	answer := func(pattern string, f func(r *http.Request, in map[string]any) (int, any)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			var in map[string]any
			_ = json.NewDecoder(r.Body).Decode(&in)
			c.mu.Lock()
			defer c.mu.Unlock()
			if r.Header.Get("Authorization") != "Bearer secret" {
				t.Errorf("%s %s without the token", r.Method, r.URL)
			}
			status, out := f(r, in)
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(out)
		})
	}
	answer("GET /catalog", func(*http.Request, map[string]any) (int, any) {
		rows := []any{}
		if c.image != nil {
			row := map[string]any{"names": []string{c.name}, "sources": []any{map[string]any{"kind": "local", "location": c.name}}, "hash_state": "running"}
			if c.looks++; c.looks > 2 {
				row["hash_state"], row["sha256"] = "hashed", digestOf(c.image)
			}
			rows = append(rows, row)
		}
		return 200, map[string]any{"images": rows, "next": nil}
	})
	answer("GET /uploads", func(*http.Request, map[string]any) (int, any) { return 200, map[string]any{"uploads": []any{}} })
	answer("POST /uploads", func(_ *http.Request, in map[string]any) (int, any) {
		c.name = in["name"].(string)
		return 201, view("uploading")
	})
	answer("GET /uploads/1", func(*http.Request, map[string]any) (int, any) {
		if c.image != nil {
			return 200, view("completed")
		}
		return 200, view("uploading")
	})
	answer("POST /uploads/1/complete", func(_ *http.Request, in map[string]any) (int, any) {
		if in["sha256"] != nil {
			return 501, map[string]any{"code": "not_implemented", "detail": "the store does not say the SHA-256 of parts here"}
		}
		for i, etag := range in["etags"].([]any) {
			b := c.parts[fmt.Sprintf("/part%d", i+1)]
			if etag != digestOf(b) {
				return 409, map[string]any{"code": "conflict", "detail": fmt.Sprintf("part %d has another ETag", i+1)}
			}
			c.image = append(c.image, b...)
		}
		return 202, view("completing")
	})
	mux.HandleFunc("/images/{name}", func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.Sum256(c.image)
		w.Header().Set("Repr-Digest", "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":")
		http.Redirect(w, r, c.store.URL+"/object", http.StatusTemporaryRedirect)
	})
	c.Server = httptest.NewServer(mux)
	t.Cleanup(c.Close)
	return c
}

func digestOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// TestDirect tests an upload whose parts go to a store, by URLs that expire meanwhile, and a
// download from there. The store gets no credentials.
func TestDirect(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcde\n"), 5*cloudPart/16+7)
	c := newCloud(t, len(data))
	path := filepath.Join(t.TempDir(), "a.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, code, err := command(t, c.URL, "push", path)
	if code != 0 || !strings.Contains(out, digestOf(data)) || !bytes.Equal(c.image, data) {
		t.Errorf("push: %s %d %v", out, code, err)
	}
	to := filepath.Join(t.TempDir(), "b.img")
	out, code, err = command(t, c.URL, "pull", "a.img", "-o", to)
	if got, rerr := os.ReadFile(to); code != 0 || rerr != nil || !bytes.Equal(got, data) {
		t.Errorf("pull: %s %d %v %v", out, code, err, rerr)
	}
	if len(c.leaks) > 0 {
		t.Errorf("the store got the token: %q", c.leaks)
	}
	out, code, err = command(t, c.URL, "push", "--name", "c.img", "-")
	if code != 1 {
		t.Errorf("standard input, whose size is not known: %s %d %v", out, code, err)
	}
}

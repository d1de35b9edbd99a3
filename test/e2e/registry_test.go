package e2e

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	ocidigest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
)

// registryProgram is the path of tools/registry. Without it, these tests use
// [artifacts] as the registry.
var registryProgram = flag.String("registry", "", "start this program (tools/registry) where a test needs a registry")

// A registry is behind a proxy that may require a token, as public registries
// do.
type registry struct {
	*httptest.Server
	Host string // host:port

	mu      sync.Mutex
	guarded bool              // pulls need a token
	private bool              // and the token needs credentials
	users   map[string]string // user to password
	anon    int               // tokens given without credentials
	realm   string            // of the token service; empty: this server's own
}

const registryToken = "a-token-of-the-registry"

func newRegistry(t testing.TB, addr string) *registry {
	t.Helper()
	var behind http.Handler = &artifacts{blobs: map[string][]byte{}, manifests: map[string]artifact{}}
	if *registryProgram != "" {
		behind = startRegistry(t)
	}
	r := &registry{users: map[string]string{}}
	r.Server = serveOn(t, addr, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(w, req, behind) }))
	r.Host = strings.TrimPrefix(r.URL, "http://")
	return r
}

// startRegistry starts registryProgram and returns a proxy to it.
func startRegistry(t testing.TB) http.Handler {
	t.Helper()
	addr := freeAddr(t, "127.0.0.8")
	cmd := exec.CommandContext(t.Context(), *registryProgram, addr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	to := &url.URL{Scheme: "http", Host: addr}
	eventually(t, within, "the registry answers", func() error {
		res, err := http.Get(to.String() + "/v2/")
		if err == nil {
			err = res.Body.Close()
		}
		return err
	})
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
}

type artifact struct {
	mediaType string
	bytes     []byte
}

// artifacts is a registry of the part of the OCI distribution specification
// that pushes and pulls use: uploads in one piece, manifests by tag and by
// digest.
type artifacts struct {
	mu        sync.Mutex
	blobs     map[string][]byte   // by repository@digest
	manifests map[string]artifact // by repository@reference
}

func (a *artifacts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	digest := "sha256:" + sum(body)
	failed := func(status int, code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":%q}]}`, code)
	}
	send := func(mediaType string, b []byte) {
		w.Header().Set("Content-Type", mediaType)
		w.Header().Set("Docker-Content-Digest", "sha256:"+sum(b))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
	path := strings.TrimPrefix(r.URL.Path, "/v2/")
	if repo, reference, ok := strings.Cut(path, "/manifests/"); ok {
		key := repo + "@" + reference
		if r.Method == http.MethodPut {
			m := artifact{r.Header.Get("Content-Type"), body}
			a.manifests[key], a.manifests[repo+"@"+digest] = m, m
			w.Header().Set("Docker-Content-Digest", digest)
			w.Header().Set("Location", r.URL.Path)
			w.WriteHeader(http.StatusCreated)
		} else if m, ok := a.manifests[key]; ok {
			send(m.mediaType, m.bytes)
		} else {
			failed(http.StatusNotFound, "MANIFEST_UNKNOWN")
		}
		return
	}
	repo, reference, ok := strings.Cut(path, "/blobs/")
	switch {
	case !ok:
		failed(http.StatusNotFound, "UNSUPPORTED")
	case r.Method == http.MethodPost:
		w.Header().Set("Location", r.URL.Path+"upload")
		w.WriteHeader(http.StatusAccepted)
	case r.Method == http.MethodPut && r.URL.Query().Get("digest") != digest:
		failed(http.StatusBadRequest, "DIGEST_INVALID")
	case r.Method == http.MethodPut:
		a.blobs[repo+"@"+digest] = body
		w.Header().Set("Docker-Content-Digest", digest)
		w.Header().Set("Location", "/v2/"+repo+"/blobs/"+digest)
		w.WriteHeader(http.StatusCreated)
	case a.blobs[repo+"@"+reference] == nil:
		failed(http.StatusNotFound, "BLOB_UNKNOWN")
	default:
		send("application/octet-stream", a.blobs[repo+"@"+reference])
	}
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request, behind http.Handler) {
	r.mu.Lock()
	guarded, private, users, realm := r.guarded, r.private, maps.Clone(r.users), r.realm
	r.mu.Unlock()
	if realm == "" {
		realm = r.URL + "/token"
	}
	if req.URL.Path == "/token" {
		user, pass, named := req.BasicAuth()
		switch {
		case named && (users[user] == "" || users[user] != pass):
			// As ghcr.io does: wrong credentials have fewer rights than none.
			http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusForbidden)
			return
		case !named && private:
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
			return
		case !named:
			r.mu.Lock()
			r.anon++
			r.mu.Unlock()
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"token": registryToken, "expires_in": 300})
		return
	}
	if guarded && req.Header.Get("Authorization") != "Bearer "+registryToken {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="test",scope="repository:any:pull"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
		return
	}
	behind.ServeHTTP(w, req)
}

// Guard requires a token for pulls, and credentials for the token if private.
func (r *registry) Guard(private bool, user, pass string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guarded, r.private = true, private
	if user != "" {
		r.users[user] = pass
	}
}

// AnonymousTokens returns the number of tokens given without credentials.
func (r *registry) AnonymousTokens() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.anon
}

// A layer is a file of an artifact.
type layer struct {
	Title string
	Bytes []byte
}

func (r *registry) repo(t testing.TB, name string) *remote.Repository {
	t.Helper()
	repo, err := remote.NewRepository(r.Host + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	repo.PlainHTTP = true
	return repo
}

func pushBlob(t testing.TB, repo *remote.Repository, mediaType string, b []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: ocidigest.FromBytes(b), Size: int64(len(b))}
	if ok, err := repo.Blobs().Exists(t.Context(), d); err != nil {
		t.Fatal(err)
	} else if !ok {
		if err := repo.Blobs().Push(t.Context(), d, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// Push pushes an artifact of files and tags it (unless tag is empty). It must
// be called before Guard.
func (r *registry) Push(t testing.TB, name, tag string, layers ...layer) ocispec.Descriptor {
	t.Helper()
	repo := r.repo(t, name)
	var descs []ocispec.Descriptor
	for _, l := range layers {
		d := pushBlob(t, repo, "application/octet-stream", l.Bytes)
		d.Annotations = map[string]string{ocispec.AnnotationTitle: l.Title}
		descs = append(descs, d)
	}
	d, err := oras.PackManifest(t.Context(), repo, oras.PackManifestVersion1_1, "application/vnd.test.disk",
		oras.PackManifestOptions{Layers: descs})
	if err != nil {
		t.Fatal(err)
	}
	if tag != "" {
		if err := repo.Tag(t.Context(), d, tag); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// PushIndex tags an index of manifests, each for a platform.
func (r *registry) PushIndex(t testing.TB, name, tag string, manifests ...ocispec.Descriptor) {
	t.Helper()
	b, err := json.Marshal(ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests,
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oras.TagBytes(t.Context(), r.repo(t, name), ocispec.MediaTypeImageIndex, b, tag); err != nil {
		t.Fatal(err)
	}
}

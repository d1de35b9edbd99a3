package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	ocidigest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"oras.land/oras-go/v2"
	"oras.land/oras-go/v2/registry/remote"
)

// A registry is distribution/v3, with a door in front that may ask for a token
// as public registries do.
type registry struct {
	*httptest.Server
	Host string // host:port

	mu      sync.Mutex
	guarded bool              // pulls need a token
	private bool              // and the token needs credentials
	users   map[string]string // user to password
	anon    int               // tokens given to nobody in particular
	realm   string            // of the token service; this server's own if empty
}

const registryToken = "a-token-of-the-registry"

func newRegistry(t testing.TB, addr string) *registry {
	t.Helper()
	logrus.SetOutput(io.Discard)
	config := &configuration.Configuration{Storage: configuration.Storage{"inmemory": nil, "delete": {"enabled": true}}}
	config.HTTP.Secret = "no secret"
	config.Catalog.MaxEntries = 100
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	app := handlers.NewApp(ctx, config)
	r := &registry{users: map[string]string{}}
	r.Server = serveOn(t, addr, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { r.serve(w, req, app) }))
	r.Host = strings.TrimPrefix(r.URL, "http://")
	return r
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request, app http.Handler) {
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
			// As ghcr.io does: wrong credentials get less than none.
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
	app.ServeHTTP(w, req)
}

// Guard makes pulls need a token, and that token credentials where private.
func (r *registry) Guard(private bool, user, pass string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.guarded, r.private = true, private
	if user != "" {
		r.users[user] = pass
	}
}

// AnonymousTokens is how many tokens were given without credentials.
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

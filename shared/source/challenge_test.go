package source

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"imageroot/shared/netpolicy"
)

func TestChooseChallenge(t *testing.T) {
	const bearer = `Bearer realm="https://auth.example/token?a=1,2",service="reg",scope="repository:a:pull,push"`
	for _, tt := range []struct {
		fields []string
		want   string
	}{
		{[]string{bearer}, bearer},
		{[]string{"Negotiate", bearer}, bearer},
		{[]string{`Basic realm="reg"`, bearer}, bearer},
		{[]string{`Negotiate, Basic realm="a, \"b\" c", ` + bearer}, bearer},
		{[]string{"Negotiate oYGeMIGboAMKAQA=, " + bearer}, bearer},
		{[]string{bearer + `, Basic realm="reg"`}, bearer},
		{[]string{`bearer realm = "https://a/" , service = x, NTLM`}, `bearer realm = "https://a/",service = x`},
		{[]string{"Negotiate", `BASIC realm="reg"`}, `BASIC realm="reg"`},
		{[]string{"Bearer", "Basic"}, "Basic"},
		{[]string{"Negotiate", "NTLM"}, ""},
		{[]string{"", ",,", `"`}, ""},
		{nil, ""},
	} {
		if got := chooseChallenge(tt.fields); got != tt.want {
			t.Errorf("of %q: %q, want %q", tt.fields, got, tt.want)
		}
	}
}

// A loginRegistry has one image, and requires a token.
type loginRegistry struct {
	*httptest.Server
	challenge func(realm string) []string
	realm     string       // the token server, if it is not the registry
	clear     atomic.Value // the credentials last sent to the token server
}

func newLoginRegistry(t *testing.T) *loginRegistry {
	r := &loginRegistry{challenge: func(realm string) []string {
		return []string{`Bearer realm="` + realm + `",service="reg"`}
	}}
	r.clear.Store("")
	manifest := `{"schemaVersion":2,"layers":[{"mediaType":"application/octet-stream","size":3,` +
		`"digest":"sha256:` + strings.Repeat("a", 64) + `","annotations":{"org.opencontainers.image.title":"x.img"}}]}`
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch {
		case req.URL.Path == "/token":
			_ = req.ParseForm() // an unreadable form has no credentials
			r.clear.Store(req.Header.Get("Authorization") + req.PostForm.Get("refresh_token"))
			_, _ = fmt.Fprint(w, `{"token":"t","access_token":"t"}`)
		case req.Header.Get("Authorization") != "Bearer t":
			realm := r.realm
			if realm == "" {
				realm = r.URL
			}
			for _, c := range r.challenge(realm + "/token") {
				w.Header().Add("WWW-Authenticate", c)
			}
			w.WriteHeader(http.StatusUnauthorized)
		default:
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			_, _ = fmt.Fprint(w, manifest)
		}
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *loginRegistry) host() string { return strings.TrimPrefix(r.URL, "http://") }

// client returns a client with a stored credential for the registry.
func (r *loginRegistry) client(t *testing.T, auth string, plain ...string) *Client {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `{"auths":{%q:{%s}}}`, r.host(), auth), 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Config{Policy: netpolicy.Policy{Loopback: true}, DockerConfig: file, PlainHTTP: plain})
	t.Cleanup(c.Close)
	return c
}

func TestSeveralChallenges(t *testing.T) {
	r := newLoginRegistry(t)
	bearer := r.challenge
	for name, first := range map[string][]string{
		"Negotiate": {"Negotiate"}, "Basic": {`Basic realm="x"`}, "several": {"Negotiate, NTLM", `Basic realm="x"`},
	} {
		r.challenge = func(realm string) []string { return append(first, bearer(realm)...) }
		c := r.client(t, "")
		if _, err := c.Resolve(t.Context(), Location{URL: "oras://" + r.host() + "/a/b:v1"}, ""); err != nil {
			t.Errorf("%s before Bearer: %v", name, err)
		}
	}
}

// A stored credential is sent over plain HTTP only to its registry, not to another host
// that the registry names.
func TestTokenServerInClear(t *testing.T) {
	basic := `"auth":"` + base64.StdEncoding.EncodeToString([]byte("user:secret")) + `"`
	other := func(r *loginRegistry) string { return strings.Replace(r.URL, "127.0.0.1", "localhost", 1) }
	for _, auth := range []string{basic, `"identitytoken":"secret"`} {
		for _, tt := range []struct {
			name  string
			other bool
			plain bool
			sent  bool
		}{
			{"the registry's own", false, false, true},
			{"another host's", true, false, false},
			{"another host's, which is trusted", true, true, true},
		} {
			r := newLoginRegistry(t)
			var plain []string
			if tt.other {
				r.realm = other(r)
			}
			if tt.plain {
				plain = []string{strings.TrimPrefix(r.realm, "http://")}
			}
			_, err := r.client(t, auth, plain...).Resolve(t.Context(), Location{URL: "oras://" + r.host() + "/a/b:v1"}, "")
			if sent := r.clear.Load() != ""; err != nil || sent != tt.sent {
				t.Errorf("%s, %s: sent %v (%v), want %v", tt.name, auth, sent, err, tt.sent)
			}
		}
	}
}

package auth

import (
	"context"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// add makes a token.
func add(t *testing.T, o *Operator, name string, scope Scope) string {
	t.Helper()
	token, _, err := o.AddToken(t.Context(), name, scope)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// caller returns who a request with this Authorization is from.
func caller(o *Operator, authorization string) (web.Caller, error) {
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Authorization", authorization)
	return o.Authenticate(r)
}

func TestTokens(t *testing.T) {
	s, c := memstore.New(), newClock()
	cfg := Config{Records: s, Password: testPassword, Now: c.now, Log: slog.New(slog.DiscardHandler)}
	o, elsewhere := open(t, cfg), open(t, Config{Records: s, Follow: true, Now: c.now, Log: cfg.Log})
	made := map[Scope]string{}
	for _, scope := range Scopes() {
		made[scope] = add(t, o, "the-"+string(scope), scope)
		for _, o := range []*Operator{o, elsewhere} {
			for _, authorization := range []string{"Bearer " + made[scope], basic("", made[scope]), basic("root", made[scope])} {
				got, err := caller(o, authorization)
				if want := (web.Caller{Token: "the-" + string(scope), Access: scopes[scope]}); err != nil || got != want {
					t.Errorf("%s: %+v, %v; want %+v", authorization, got, err, want)
				}
			}
		}
		c.advance(newCheck + time.Second)
	}
	stored, _, err := s.ReadRecord(t.Context(), layout.TokensKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, token := range made {
		if strings.Contains(string(stored), token) || strings.Contains(string(stored), token[len(tokenPrefix):]) {
			t.Error("the token is stored")
		}
		for _, other := range []string{token[:len(token)-1], token + "x", strings.ToLower(token), token[len(tokenPrefix):]} {
			if knows(t, o, nil, "Bearer "+other) {
				t.Errorf("%s is a token", other)
			}
			c.advance(refill)
		}
	}
	if _, err := o.RemoveToken(t.Context(), "THE-read"); err != nil {
		t.Fatal(err)
	}
	if knows(t, o, nil, "Bearer "+made[ScopeRead]) {
		t.Error("a token that was revoked is let in")
	}
	c.advance(tokensCheck + time.Second)
	for _, o := range []*Operator{o, elsewhere, open(t, cfg)} {
		if knows(t, o, nil, "Bearer "+made[ScopeRead]) || !knows(t, o, nil, "Bearer "+made[ScopeUpload]) {
			t.Error("another process does not learn of the revocation")
		}
	}
	if _, err := o.RemoveToken(t.Context(), "the-read"); problem.From(err) == nil || problem.From(err).Code != problem.NotFound {
		t.Errorf("revoked twice: %v", err)
	}
	if again := add(t, o, "the-read", ScopeRead); again == made[ScopeRead] {
		t.Error("the same token again")
	}
}

func TestTokenNames(t *testing.T) {
	o := open(t, Config{Records: memstore.New(), Password: testPassword, Now: newClock().now})
	for _, name := range []string{
		"", " ", "a b", "-a", ".a", "a/b", "../a", "a\n", "\x00", "a\u202e", "ü", "<b>", `"`, "token:a", strings.Repeat("x", 65), "a%2f",
	} {
		if _, _, err := o.AddToken(t.Context(), name, ScopeRead); problem.From(err) == nil || problem.From(err).Code != problem.Malformed {
			t.Errorf("the name %q: %v", name, err)
		}
	}
	for _, scope := range []Scope{"", "Read", "admin", "read,upload"} {
		if _, _, err := o.AddToken(t.Context(), "a", scope); problem.From(err) == nil || problem.From(err).Code != problem.Malformed {
			t.Errorf("the scope %q: %v", scope, err)
		}
	}
	add(t, o, "CI-7.lab_2", ScopeRead)
	if _, _, err := o.AddToken(t.Context(), "ci-7.lab_2", ScopeRead); problem.From(err) == nil || problem.From(err).Code != problem.Conflict {
		t.Errorf("the same name: %v", err)
	}
}

// Processes that change the tokens at the same time lose no change.
func TestTokensRace(t *testing.T) {
	s, c := memstore.New(), newClock()
	var wg sync.WaitGroup
	for i := range 4 {
		o := open(t, Config{Records: s, Password: testPassword, Now: c.now})
		wg.Go(func() {
			for j := range 5 {
				if _, _, err := o.AddToken(t.Context(), fmt.Sprintf("t-%d-%d", i, j), ScopeRead); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all, _, err := open(t, Config{Records: s, Password: testPassword, Now: c.now}).Tokens(t.Context())
	if err != nil || len(all) != 20 {
		t.Errorf("%d tokens, %v", len(all), err)
	}
}

// A use is recorded at most once an hour, and not while the request waits.
func TestTokenUses(t *testing.T) {
	c := newClock()
	s := faultstore.New(memstore.New(), nil)
	o := open(t, Config{Records: s, Password: testPassword, Now: c.now, Log: slog.New(slog.DiscardHandler)})
	token := add(t, o, "ci", ScopeRead)
	lastUse := func() time.Time {
		t.Helper()
		all, used, err := o.Tokens(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return used[all[0].SHA256]
	}
	o.Flush(t.Context())
	if at := lastUse(); !at.IsZero() {
		t.Errorf("used at %v", at)
	}
	first := c.now()
	for range 10 {
		if !knows(t, o, nil, "Bearer "+token) {
			t.Fatal("the token is refused")
		}
		o.Flush(t.Context())
		c.advance(time.Minute)
	}
	if at := lastUse(); !at.Equal(first) {
		t.Errorf("used at %v, want %v", at, first)
	}
	c.advance(useAgain)
	second := c.now()
	knows(t, o, nil, "Bearer "+token)
	o.Flush(t.Context())
	if at := lastUse(); !at.Equal(second) {
		t.Errorf("used at %v, want %v", at, second)
	}
	// The uses of tokens that are gone are forgotten.
	if _, err := o.RemoveToken(t.Context(), "ci"); err != nil {
		t.Fatal(err)
	}
	c.advance(useForget + time.Hour)
	other := add(t, o, "other", ScopeRead)
	knows(t, o, nil, "Bearer "+other)
	o.Flush(t.Context())
	if _, used, err := o.Tokens(t.Context()); err != nil || len(used) != 1 {
		t.Errorf("uses %v, %v", used, err)
	}
}

// While the store does not answer, tokens cannot be checked; the API token can.
func TestTokensStoreDown(t *testing.T) {
	c := newClock()
	s := faultstore.New(memstore.New(), nil)
	o := open(t, Config{Records: s, Password: testPassword, Token: "a token for tests", Now: c.now})
	token := add(t, o, "ci", ScopeRead)
	c.advance(tokensCheck + time.Second)
	s.Reset(func(faultstore.Call) faultstore.Fault { return faultstore.Before })
	if _, err := caller(o, "Bearer "+token); err == nil || problem.From(err).Code == problem.Unauthorized {
		t.Errorf("with the store down: %v", err)
	}
	if !knows(t, o, nil, "Bearer a token for tests") {
		t.Error("the API token needs the store")
	}
}

// A damaged record lets no token in, and the operator still.
func TestDamagedTokens(t *testing.T) {
	s, c := memstore.New(), newClock()
	cfg := Config{Records: s, Password: testPassword, Token: "a token for tests", Now: c.now, Log: slog.New(slog.DiscardHandler)}
	o := open(t, cfg)
	token := add(t, o, "ci", ScopeOperate)
	session := loggedIn(t, o)
	for _, bad := range []string{
		"", `{"nonce":"x"}`, `{"nonce":"x","tokens":null}`, `{"nonce":"x","tokens":[{}]}`,
		fmt.Sprintf(`{"nonce":"x","tokens":[{"name":"ci","scope":"admin","sha256":%q}]}`, sumOf(token)),
	} {
		_, tag, err := s.ReadRecord(t.Context(), layout.TokensKey)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.ReplaceRecord(t.Context(), layout.TokensKey, []byte(bad), tag); err != nil {
			t.Fatal(err)
		}
		c.advance(time.Minute)
		for _, o := range []*Operator{o, open(t, cfg)} {
			if knows(t, o, nil, "Bearer "+token) {
				t.Errorf("%s: the token is let in", bad)
			}
			if !knows(t, o, session, "") || !knows(t, o, nil, "Bearer a token for tests") {
				t.Errorf("%s: the operator is not let in", bad)
			}
		}
		token = add(t, o, "ci", ScopeOperate)
		if !knows(t, o, nil, "Bearer "+token) {
			t.Errorf("%s: another token is not let in", bad)
		}
	}
}

// A proxy's own password of HTTP Basic does not hide the session.
func TestBasicBesideSession(t *testing.T) {
	c := newClock()
	o := open(t, Config{Records: memstore.New(), Password: testPassword, Now: c.now})
	session := loggedIn(t, o)
	for range 2 * burst {
		if !knows(t, o, session, basic("ada", "the password of the proxy")) {
			t.Fatal("the session is hidden")
		}
	}
	if knows(t, o, session, "Bearer wrong") {
		t.Error("a wrong bearer token is ignored")
	}
}

func TestTokenThrottle(t *testing.T) {
	c := newClock()
	o := open(t, Config{Records: memstore.New(), Password: testPassword, Token: "a token for tests", Now: c.now})
	token := add(t, o, "ci", ScopeRead)
	code := func(token, cookie string) problem.Code {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.SetBasicAuth("", token)
		r.AddCookie(&http.Cookie{Name: SessionCookie, Value: cookie})
		_, err := o.Authenticate(r)
		if err == nil {
			return ""
		}
		return problem.From(err).Code
	}
	for range burst {
		if got := code("wrong", "wrong"); got != problem.Unauthorized {
			t.Fatalf("a wrong token: %s", got)
		}
	}
	// From now on, one waits for its turn, or is refused.
	if got := code("wrong", "wrong"); got != problem.Unauthorized {
		t.Errorf("a wrong token in its turn: %s", got)
	}
	hurried, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequestWithContext(hurried, http.MethodGet, "/", nil)
	r.Header.Set("Authorization", "Bearer a token for tests")
	if _, err := o.Authenticate(r); problem.From(err) == nil || problem.From(err).Code != problem.TooMany {
		t.Errorf("the API token out of turn: %v", err)
	}
	// Machines at the same address are let in, and so is the operator's password.
	if got := code(token, ""); got != "" {
		t.Errorf("the right token among wrong ones: %s", got)
	}
	if _, err := login(o, "192.0.2.1:1", testPassword); err != nil {
		t.Error(err)
	}
}

func BenchmarkToken(b *testing.B) {
	o, err := Open(b.Context(), Config{Records: memstore.New(), Password: testPassword, Now: time.Now})
	if err != nil {
		b.Fatal(err)
	}
	var token string
	for i := range MaxTokens {
		if token, _, err = o.AddToken(b.Context(), fmt.Sprint("t", i), ScopeRead); err != nil {
			b.Fatal(err)
		}
	}
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.SetBasicAuth("", token)
	for b.Loop() {
		if _, err := o.Authenticate(r); err != nil {
			b.Fatal(err)
		}
	}
}

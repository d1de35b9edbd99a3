package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/store"
	"imageroot/shared/store/faultstore"
	"imageroot/shared/store/memstore"
)

const testPassword = "correct horse"

// A clock moves only when advanced.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func newClock() *clock { return &clock{at: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)} }

func open(t *testing.T, cfg Config) *Operator {
	t.Helper()
	o, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// login returns the session cookie or the problem.
func login(o *Operator, from, password string) (*http.Cookie, error) {
	r := httptest.NewRequest(http.MethodPost, "/ui/login", nil)
	r.RemoteAddr = from
	w := httptest.NewRecorder()
	if err := o.Login(w, r, password); err != nil {
		return nil, err
	}
	return w.Result().Cookies()[0], nil
}

const here = "192.0.2.1:1000"

func loggedIn(t *testing.T, o *Operator) *http.Cookie {
	t.Helper()
	c, err := login(o, here, testPassword)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// knows reports whether a request with this cookie and Authorization is the operator's.
func knows(t *testing.T, o *Operator, c *http.Cookie, authorization string) bool {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	if c != nil {
		r.AddCookie(c)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	_, err := o.Authenticate(r)
	if err != nil && problem.From(err).Code != problem.Unauthorized {
		t.Fatal(err)
	}
	return err == nil
}

func logout(t *testing.T, o *Operator, c *http.Cookie) {
	t.Helper()
	r := httptest.NewRequest(http.MethodPost, "/ui/logout", nil)
	if c != nil {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	if err := o.Logout(w, r); err != nil {
		t.Fatal(err)
	}
	if after := w.Result().Cookies(); len(after) != 1 || after[0].MaxAge >= 0 || after[0].Value != "" {
		t.Errorf("after a log-out the cookie is %v", after)
	}
}

func TestPassword(t *testing.T) {
	s, c := memstore.New(), newClock()
	cfg := Config{Records: s, Now: c.now}
	if _, err := Open(t.Context(), cfg); !errors.Is(err, ErrNoPassword) {
		t.Fatalf("without a password: %v", err)
	}
	cfg.Password = testPassword
	o := open(t, cfg)
	session := loggedIn(t, o)
	if !session.HttpOnly || session.Secure || session.SameSite != http.SameSiteStrictMode || session.Path != "/" {
		t.Errorf("the cookie is %v", session)
	}
	if !knows(t, o, session, "") || knows(t, o, nil, "") {
		t.Error("a session is worth nothing, or none is")
	}
	data, _, err := s.ReadRecord(t.Context(), layout.PasswordKey)
	if err != nil || strings.Contains(string(data), testPassword) {
		t.Errorf("stored: %s, %v", data, err)
	}
	// Another process over the same store knows the session, whether it is given the
	// password or not. It does not hash the same password again.
	for _, again := range []string{"", testPassword} {
		other := open(t, Config{Records: s, Password: again, Now: c.now})
		if !knows(t, other, session, "") {
			t.Errorf("another process with the password %q does not know the session", again)
		}
		if _, err := login(other, here, testPassword); err != nil {
			t.Errorf("another process: %v", err)
		}
	}
	if now, _, _ := s.ReadRecord(t.Context(), layout.PasswordKey); string(now) != string(data) {
		t.Error("the same password was stored again")
	}
	// A new password ends every session.
	changed := open(t, Config{Records: s, Password: "another one", Now: c.now})
	if knows(t, changed, session, "") {
		t.Error("a session outlives its password")
	}
	if _, err := login(changed, here, testPassword); problem.From(err) == nil || problem.From(err).Code != problem.Unauthorized {
		t.Errorf("the old password: %v", err)
	}
	// Setting the old password again does not restore them.
	back := open(t, cfg)
	if knows(t, back, session, "") {
		t.Error("a session came back with its password")
	}
}

func TestSessions(t *testing.T) {
	s, c := memstore.New(), newClock()
	o := open(t, Config{Records: s, Password: testPassword, Now: c.now})
	one, two := loggedIn(t, o), loggedIn(t, o)
	elsewhere := open(t, Config{Records: s, Now: c.now})
	if !knows(t, elsewhere, one, "") {
		t.Error("another process does not know the session")
	}
	logout(t, o, one)
	if knows(t, o, one, "") || !knows(t, o, two, "") {
		t.Error("a log-out ends its session, and no other")
	}
	c.advance(endedCheck + time.Second)
	if knows(t, elsewhere, one, "") || !knows(t, elsewhere, two, "") {
		t.Error("another process does not learn of the log-out")
	}
	logout(t, o, one) // twice
	logout(t, o, nil)
	logout(t, o, &http.Cookie{Name: SessionCookie, Value: "nonsense"})

	// Forged cookies are refused.
	raw, err := base64.RawURLEncoding.DecodeString(two.Value)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		forged := append([]byte(nil), raw...)
		forged[i] ^= 1
		if knows(t, o, &http.Cookie{Name: SessionCookie, Value: base64.RawURLEncoding.EncodeToString(forged)}, "") {
			t.Errorf("a session with another byte %d is worth something", i)
		}
	}
	for _, bad := range []string{"", "x", two.Value + "AA", two.Value[:20]} {
		if knows(t, o, &http.Cookie{Name: SessionCookie, Value: bad}, "") {
			t.Errorf("the session %q is worth something", bad)
		}
	}
	// Sessions expire, and the list forgets those that it names.
	c.advance(sessionTime - 10*time.Second)
	if !knows(t, o, two, "") {
		t.Error("a session ends early")
	}
	c.advance(20 * time.Second)
	if knows(t, o, two, "") {
		t.Error("a session does not end")
	}
	three := loggedIn(t, o)
	logout(t, o, three)
	rec, _, err := record.Read[endedRecord](t.Context(), s, layout.EndedKey)
	if err != nil || len(rec.Sessions) != 1 {
		t.Errorf("kept of ended sessions: %v, %v", rec.Sessions, err)
	}
}

// While the store does not answer, no session is assumed to be valid.
func TestStoreDown(t *testing.T) {
	c := newClock()
	s := faultstore.New(memstore.New(), nil)
	o := open(t, Config{Records: s, Password: testPassword, Token: "a token for tests", Now: c.now})
	session := loggedIn(t, o)
	s.Reset(func(faultstore.Call) faultstore.Fault { return faultstore.Before })
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.AddCookie(session)
	if _, err := o.Authenticate(r); err == nil || problem.From(err).Code == problem.Unauthorized {
		t.Errorf("with the store down: %v", err)
	}
	if err := o.Logout(httptest.NewRecorder(), r); err == nil {
		t.Error("a log-out that nobody learned of went well")
	}
	if !knows(t, o, nil, "Bearer a token for tests") {
		t.Error("the token needs the store")
	}
}

func TestToken(t *testing.T) {
	const token = "a-token-for-tests"
	o := open(t, Config{Records: memstore.New(), Password: testPassword, Token: token, Now: newClock().now})
	for authorization, want := range map[string]bool{
		"Bearer " + token: true, "bearer " + token: true, "BEARER  " + token: true,
		"Bearer " + token + "x": false, "Bearer": false, "Bearer ": false, token: false, "Basic " + token: false, "": false,
		basic("", token): true, basic("anyone", token): true, basic(token, ""): false, basic("", testPassword): false,
	} {
		if knows(t, o, nil, authorization) != want {
			t.Errorf("Authorization: %s is the operator's: %v", authorization, !want)
		}
	}
	// If no token is configured, none is right, not even the empty one.
	o = open(t, Config{Records: memstore.New(), Password: testPassword, Now: newClock().now})
	for _, authorization := range []string{"Bearer ", "Bearer  ", "Bearer x"} {
		if knows(t, o, nil, authorization) {
			t.Errorf("Authorization: %q is the operator's", authorization)
		}
	}
}

// A client without the right token gets a precise reason.
func TestRefused(t *testing.T) {
	operators := map[string]*Operator{}
	for _, token := range []string{"a-token-for-tests", ""} {
		operators[token] = open(t, Config{Records: memstore.New(), Password: testPassword, Token: token, Now: newClock().now})
	}
	for _, tt := range []struct{ token, authorization, cookie, want string }{
		{"a-token-for-tests", "Bearer wrong", "", "none of this server's"},
		{"a-token-for-tests", "Bearer", "", "empty"},
		{"a-token-for-tests", "Bearer ", "", "empty"},
		{"", "Bearer a-token-for-tests", "", "none of this server's"},
		{"a-token-for-tests", "", "old", "ended"},
		{"a-token-for-tests", "", "", "needs credentials"},
	} {
		o := operators[tt.token]
		r := httptest.NewRequest(http.MethodGet, "/catalog", nil)
		if tt.authorization != "" {
			r.Header.Set("Authorization", tt.authorization)
		}
		if tt.cookie != "" {
			r.AddCookie(&http.Cookie{Name: SessionCookie, Value: tt.cookie})
		}
		_, err := o.Authenticate(r)
		if e := problem.From(err); e == nil || e.Code != problem.Unauthorized || !strings.Contains(e.Detail, tt.want) {
			t.Errorf("%+v: %v", tt, e)
		}
	}
}

func TestThrottle(t *testing.T) {
	c := newClock()
	o := open(t, Config{Records: memstore.New(), Password: testPassword, Now: c.now})
	code := func(from, password string) problem.Code {
		_, err := login(o, from, password)
		if err == nil {
			return ""
		}
		e := problem.From(err)
		if e.Code == problem.TooMany && (e.RetryAfter <= 0 || e.RetryAfter > refill) {
			t.Errorf("to wait for %v", e.RetryAfter)
		}
		return e.Code
	}
	for i := range burst {
		if got := code(fmt.Sprintf("192.0.2.1:%d", i), "wrong"); got != problem.Unauthorized {
			t.Fatalf("wrong password %d: %s", i+1, got)
		}
	}
	if got := code("192.0.2.1:1", "wrong"); got != problem.TooMany {
		t.Errorf("too often: %s", got)
	}
	// Another client behind the same router may send the right password.
	for range 3 * burst {
		if got := code("192.0.2.1:1", testPassword); got != "" {
			t.Fatalf("the right password among wrong ones: %s", got)
		}
	}
	// Guesses from there are still limited in rate.
	hurried, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	refused := 0
	for range 20 * pace {
		r := httptest.NewRequestWithContext(hurried, http.MethodPost, "/ui/login", nil)
		r.RemoteAddr = "192.0.2.1:1"
		if o.Login(httptest.NewRecorder(), r, testPassword) != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Error("nothing slows guessing down")
	}
	// Other addresses do not wait.
	for _, from := range []string{"192.0.2.2:1", "[2001:db8::1]:1"} {
		if got := code(from, testPassword); got != "" {
			t.Errorf("from %s: %s", from, got)
		}
	}
	if got := code("[::ffff:192.0.2.1]:1", "wrong"); got != problem.TooMany {
		t.Errorf("the same address, written as IPv6: %s", got)
	}
	c.advance(refill - time.Second)
	if got := code("192.0.2.1:1", "wrong"); got != problem.TooMany {
		t.Errorf("a second too early: %s", got)
	}
	c.advance(time.Second)
	if got := code("192.0.2.1:1", "wrong"); got != problem.Unauthorized {
		t.Errorf("after a while: %s", got)
	}
	if got := code("192.0.2.1:1", "wrong"); got != problem.TooMany {
		t.Errorf("and again: %s", got)
	}
	c.advance(burst * refill)
	// An IPv6 network counts as one address.
	for i := range burst {
		code(fmt.Sprintf("[2001:db8:1:2::%d]:1", i+1), "wrong")
	}
	if got := code("[2001:db8:1:2:ffff::1]:1", "wrong"); got != problem.TooMany {
		t.Errorf("from the same network: %s", got)
	}
	if got := code("[2001:db8:1:3::1]:1", "wrong"); got != problem.Unauthorized {
		t.Errorf("from the next network: %s", got)
	}
	// A password that is too long is refused without hashing it.
	if got := code("192.0.2.9:1", strings.Repeat("x", maxPassword+1)); got != problem.Unauthorized {
		t.Errorf("a long password: %s", got)
	}
}

// The list of addresses is bounded.
func TestManyAddresses(t *testing.T) {
	var a attempts
	at := newClock().now()
	for i := range maxAddresses + 100 {
		a.failed(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255), at)
		if len(a.limiters) > maxAddresses {
			t.Fatalf("%d addresses are kept", len(a.limiters))
		}
	}
	a.failed("not an address", at)
	if wait := a.wait("not an address", at); wait > 0 {
		t.Errorf("one wrong password, and to wait for %v", wait)
	}
}

func TestHash(t *testing.T) {
	one, two := hashPassword(testPassword), hashPassword(testPassword)
	if one == two || !verify(one, testPassword) || !verify(two, testPassword) || verify(one, testPassword+"x") || verify(one, "") {
		t.Errorf("hashed to %s and %s", one, two)
	}
	if !regexp.MustCompile(`^\$argon2id\$v=19\$m=19456,t=2,p=1\$[A-Za-z0-9+/]{22}\$[A-Za-z0-9+/]{43}$`).MatchString(one) {
		t.Errorf("the encoded form is %s", one)
	}
	// A hash with another cost still works.
	const cheap = "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc" // the reference implementation's test vector
	if !verify(cheap, "password") {
		t.Error("the reference implementation's hash is not one")
	}
	for _, bad := range []string{
		"", "$", "nonsense", testPassword, strings.Replace(one, "argon2id", "argon2i", 1), strings.Replace(one, "v=19", "v=16", 1),
		strings.Replace(one, "m=19456", "m=4294967295", 1), strings.Replace(one, "t=2", "t=0", 1), strings.Replace(one, "t=2", "t=4000000000", 1),
		strings.Replace(one, "p=1", "p=0", 1), one[:strings.LastIndex(one, "$")+1], one[:len(one)-2] + "!!",
	} {
		if verify(bad, testPassword) || verify(bad, "") {
			t.Errorf("%q is a hash", bad)
		}
	}
	seen := map[string]bool{}
	for range 10 {
		p := NewPassword()
		if !regexp.MustCompile(`^[a-z2-7]{5}(-[a-z2-7]{5}){3}$`).MatchString(p) || seen[p] {
			t.Errorf("a new password: %s", p)
		}
		seen[p] = true
	}
}

// A damaged list of ended sessions ends all sessions, since it may have named any of
// them.
func TestDamagedListOfEndedSessions(t *testing.T) {
	s, c := memstore.New(), newClock()
	cfg := Config{Records: s, Password: testPassword, Now: c.now, Log: slog.New(slog.DiscardHandler)}
	o := open(t, cfg)
	ended, other := loggedIn(t, o), loggedIn(t, o)
	logout(t, o, ended)
	_, tag, err := s.ReadRecord(t.Context(), layout.EndedKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReplaceRecord(t.Context(), layout.EndedKey, []byte(`{"nonce":"`), tag); err != nil {
		t.Fatal(err)
	}
	c.advance(time.Minute)
	for _, o := range []*Operator{o, open(t, cfg)} {
		if knows(t, o, ended, "") || knows(t, o, other, "") {
			t.Error("a session from before the damage is let in")
		}
		fresh := loggedIn(t, o)
		if !knows(t, o, fresh, "") {
			t.Error("a session from after the damage is not let in")
		}
		logout(t, o, fresh)
		if knows(t, o, fresh, "") || knows(t, o, ended, "") {
			t.Error("a session that has ended is let in")
		}
	}
}

// A start that finds a record of a newer version must not change the password.
func TestNewerRecords(t *testing.T) {
	for _, key := range []store.Key{layout.PasswordKey, layout.EndedKey, layout.SessionKeyKey, layout.TokensKey, layout.UsedKey} {
		s, c := memstore.New(), newClock()
		cfg := Config{Records: s, Password: testPassword, Now: c.now, Log: slog.New(slog.DiscardHandler)}
		open(t, cfg)
		recordtest.Refused(t, s, key, func() {
			cfg.Password = "another one"
			if _, err := Open(t.Context(), cfg); !errors.Is(err, record.ErrNewer) {
				t.Errorf("the start: %v", err)
			}
		})
	}
}

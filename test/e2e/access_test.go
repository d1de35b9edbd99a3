package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// An access is a request to one route of the design's table.
type access struct {
	method, path, body string
}

// operatorRoutes need the session or the token. {sha} and {id} stand for
// objects of the server.
var operatorRoutes = []access{
	{"GET", "/catalog", ""},
	{"GET", "/catalog?q=a", ""},
	{"HEAD", "/catalog", ""},
	{"PUT", "/catalog.toml", "version = 1\n"},
	{"DELETE", "/catalog.toml", ""},
	{"PUT", "/images/new.img", "new"},
	{"PUT", "/images/there.img", "other"},
	{"DELETE", "/images/there.img", ""},
	{"POST", "/uploads", `{"name": "u.img", "size_bytes": 10}`},
	{"GET", "/uploads/{id}", ""},
	{"POST", "/uploads/{id}/complete", ""},
	{"DELETE", "/uploads/{id}", ""},
	{"GET", "/catalog/entries", ""},
	{"POST", "/catalog/entries", `{"image_url": "http://127.0.0.1:1/a.img"}`},
	{"DELETE", "/catalog/entries?src=http%3A%2F%2F127.0.0.1%3A1%2Fa.img", ""},
	{"GET", "/catalog/hashes", ""},
	{"POST", "/catalog/hashes", `{"name": "there.img"}`},
	{"DELETE", "/catalog/hashes/there.img", ""},
	{"GET", "/catalog/downloads", ""},
	{"POST", "/catalog/downloads", `{"name": "there.img"}`},
	{"DELETE", "/catalog/downloads/there.img", ""},
	{"DELETE", "/catalog/cache/{sha}", ""},
	{"GET", "/events", ""},
	{"GET", "/metrics", ""},
}

// openRoutes serve machines that hold no credentials.
var openRoutes = []access{
	{"GET", "/healthz", ""},
	{"GET", "/readyz", ""},
	{"GET", "/version", ""},
	{"GET", "/images", ""},
	{"GET", "/images/there.img", ""},
	{"HEAD", "/images/there.img", ""},
	{"GET", "/images/there.img/there.img", ""},
	{"GET", "/images/{sha}", ""},
	{"HEAD", "/images/{sha}/there.img", ""},
	{"GET", "/catalog.toml", ""},
}

// guarded is a server with an image and an unfinished upload.
type guarded struct {
	*Server
	image  []byte
	upload string
}

func startGuarded(t *testing.T, o Options) *guarded {
	t.Helper()
	g := &guarded{Server: Start(t, o), image: content(1, 5000)}
	g.Put(t, "there.img", g.image)
	g.upload = g.beginUpload(t, "begun.img", 1000).ID
	return g
}

func (g *guarded) ask(t *testing.T, a access, mods ...mod) *Reply {
	t.Helper()
	p := strings.NewReplacer("{sha}", sum(g.image), "{id}", g.upload).Replace(a.path)
	return g.Do(t, a.method, p, strings.NewReader(a.body), append([]mod{header("Content-Type", "application/json")}, mods...)...)
}

// unchanged checks that refused requests had no effect.
func (g *guarded) unchanged(t *testing.T) {
	t.Helper()
	if got := g.get(t, "/images/there.img").Must(t, 200); sum(got.Body) != sum(g.image) {
		t.Error("the image is not what it was")
	}
	if rows := g.Rows(t); len(rows) != 1 {
		t.Errorf("in the catalog: %+v", rows)
	}
	if u := g.Server.upload(t, g.upload); u.Status != "uploading" {
		t.Errorf("the upload that was begun: %+v", u)
	}
}

// refused checks the 401 for a client and for a script.
func refused(t *testing.T, a access, r *Reply) {
	t.Helper()
	if r.Status != http.StatusUnauthorized {
		t.Errorf("%v, want 401", r)
		return
	}
	if a.method != http.MethodHead {
		r.Problem(t, []int{401})
	}
	if !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "Bearer") {
		t.Errorf("%v: WWW-Authenticate is %q, want Bearer", r, r.Header.Get("WWW-Authenticate"))
	}
	if r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v: Cache-Control is %q", r, r.Header.Get("Cache-Control"))
	}
}

func TestAccessAnonymous(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{})
	for _, a := range operatorRoutes {
		refused(t, a, g.ask(t, a, anonymous))
	}
	g.unchanged(t)
	for _, a := range openRoutes {
		g.ask(t, a, anonymous).Must(t, 200)
	}
	// The upload for the part routes needs its parts too.
	for _, p := range g.Server.upload(t, g.upload).Parts {
		a := access{"PUT", g.partPath(p), "x"}
		refused(t, a, g.ask(t, a, anonymous))
	}
	// With the token, none of them answers 401.
	for _, a := range operatorRoutes {
		if r := g.ask(t, a); r.Status == 401 || r.Status == 403 || r.Status >= 500 {
			t.Errorf("with the token: %v", r)
		}
	}
}

func TestAccessWithoutPublicRead(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{Env: []string{"IMAGEROOT_PUBLIC_READ=false"}})
	for _, a := range slices.Concat(openRoutes, operatorRoutes) {
		if a.path == "/healthz" {
			g.ask(t, a, anonymous).Must(t, 200)
			continue
		}
		refused(t, a, g.ask(t, a, anonymous))
	}
	g.unchanged(t)
	session := withCookie(g.Login(t, password))
	for _, a := range openRoutes {
		g.ask(t, a).Must(t, 200)
		g.ask(t, a, session).Must(t, 200)
	}
	// Logging in stays open.
	g.get(t, "/ui/login", anonymous).Must(t, 200)
}

func TestAccessTokens(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for _, field := range []string{
		"Bearer " + token + "x", "Bearer " + token[:len(token)-1], "Bearer " + strings.ToUpper(token), "Bearer", "Bearer ", "Bearer  ",
		token, "Basic " + token, "Token " + token, "Bearer " + password, "Bearer " + s3SecretKey, "Bearer " + token + "," + token,
		"Bearer \"" + token + "\"", "Bearer " + strings.Repeat("x", 10_000),
	} {
		refused(t, access{method: "GET"}, s.get(t, "/catalog", header("Authorization", field)))
	}
	s.get(t, "/catalog", header("Authorization", "bearer "+token)).Must(t, 200) // schemes compare without case
	s.get(t, "/catalog?token="+token+"&access_token="+token, anonymous).Must(t, 401)

	t.Run("none is configured", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{Env: []string{"IMAGEROOT_TOKEN="}})
		for _, field := range []string{"Bearer ", "Bearer", "Bearer " + token, "Bearer null"} {
			s.get(t, "/catalog", header("Authorization", field)).Problem(t, []int{401})
		}
	})
}

// sessionCookie logs in and returns the cookie as it was sent.
func (s *Server) sessionCookie(t *testing.T, mods ...mod) (*http.Cookie, string) {
	t.Helper()
	r := s.postLogin(t, password, mods...).Must(t, http.StatusSeeOther)
	for _, field := range r.Header.Values("Set-Cookie") {
		if c, err := http.ParseSetCookie(field); err == nil && c.Value != "" {
			return c, field
		}
	}
	t.Fatalf("log-in set no cookie: %v", r.Header)
	return nil, ""
}

func TestAccessSession(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Args: []string{"--trusted-proxies", "127.0.0.7,::1"}})
	c, field := s.sessionCookie(t)
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.Secure {
		t.Errorf("cookie over plain HTTP: %s", field)
	}
	if _, field := s.sessionCookie(t, header("X-Forwarded-Proto", "https")); strings.Contains(field, "Secure") {
		t.Errorf("a stranger says that it is a proxy with TLS: %s", field)
	}
	session := withCookie(c)
	s.get(t, "/catalog", session).Must(t, 200)
	s.get(t, "/ui/images", session).Must(t, 200)
	s.Do(t, http.MethodPut, "/images/a.img", strings.NewReader("by session"), session).Must(t, 201)
	s.Restart(t)
	s.get(t, "/catalog", session).Must(t, 200)

	t.Run("forged", func(t *testing.T) {
		for i := range c.Value {
			// The last bits of base64 may be unused.
			if i+1 == len(c.Value) || c.Value[i+1] == '.' {
				continue
			}
			other := "A"
			if c.Value[i] == 'A' {
				other = "b"
			}
			forged := *c
			forged.Value = c.Value[:i] + other + c.Value[i+1:]
			if r := s.get(t, "/catalog", withCookie(&forged)); r.Status != 401 {
				t.Errorf("with byte %d changed: %v", i, r)
			}
		}
		for _, v := range []string{"", "x", c.Value[:len(c.Value)/2], c.Value + c.Value, c.Value + "x", strings.Repeat("A", 4000)} {
			forged := *c
			forged.Value = v
			s.get(t, "/catalog", withCookie(&forged)).Problem(t, []int{401})
		}
	})
	t.Run("of another server", func(t *testing.T) {
		other := Start(t, Options{})
		s.get(t, "/catalog", withCookie(other.Login(t, password))).Problem(t, []int{401})
	})
	t.Run("pages without one", func(t *testing.T) {
		for _, p := range []string{"/ui/images", "/ui/events"} {
			r := s.get(t, p, anonymous, header("Accept", "text/html")).Must(t, 302, 303, 307, 401)
			if to := r.Header.Get("Location"); r.Status != 401 && !strings.HasPrefix(strings.TrimPrefix(to, s.Pages), "/ui/login") {
				t.Errorf("%s leads to %q", p, to)
			}
			if bytes.Contains(r.Body, []byte("a.img")) {
				t.Errorf("%s shows the catalog to anybody", p)
			}
		}
		// After a log-in, only this server is redirected to.
		for _, next := range []string{"https://evil.example/", "//evil.example/", `/\evil.example/`, "javascript:alert(1)", "/\t/evil.example"} {
			form := url.Values{"password": {password}, "next": {next}}.Encode()
			r := s.Do(t, "POST", "/ui/login?next="+url.QueryEscape(next), strings.NewReader(form), anonymous,
				header("Content-Type", "application/x-www-form-urlencoded"), header("Accept", "text/html")).Must(t, 303)
			to, err := url.Parse(r.Header.Get("Location"))
			if err != nil || to.Host != "" && "http://"+to.Host != s.Pages || to.Scheme != "" && to.Scheme != "http" ||
				strings.HasPrefix(r.Header.Get("Location"), `/\`) || strings.ContainsAny(r.Header.Get("Location"), "\t\r\n") {
				t.Errorf("next=%s leads to %q (%v)", next, r.Header.Get("Location"), err)
			}
		}
	})
	t.Run("logout", func(t *testing.T) {
		other := withCookie(s.Login(t, password))
		if r := s.get(t, "/ui/logout", session); r.Status < 400 {
			t.Errorf("a link logs out: %v", r)
		}
		s.get(t, "/catalog", session).Must(t, 200)
		r := s.Do(t, http.MethodPost, "/ui/logout", nil, session).Must(t, http.StatusSeeOther)
		cleared := false
		for _, field := range r.Header.Values("Set-Cookie") {
			if d, err := http.ParseSetCookie(field); err == nil && d.Name == c.Name {
				cleared = d.Value == "" || d.MaxAge < 0 || !d.Expires.IsZero() && d.Expires.Before(time.Now())
			}
		}
		if !cleared {
			t.Errorf("the cookie is not taken away: %v", r.Header.Values("Set-Cookie"))
		}
		// A copy of the cookie is refused as well, also after a restart.
		s.get(t, "/catalog", session).Problem(t, []int{401})
		s.get(t, "/catalog", other).Must(t, 200)
		s.Restart(t)
		s.get(t, "/catalog", session).Problem(t, []int{401})
		s.get(t, "/catalog", other).Must(t, 200)
	})
	t.Run("another password ends sessions", func(t *testing.T) {
		s := Start(t, Options{})
		session := withCookie(s.Login(t, password))
		s.get(t, "/catalog", session).Must(t, 200)
		s.Stop(t)
		s.launch.Env = append(s.launch.Env, "IMAGEROOT_PASSWORD=another password than that")
		s.start(t)
		s.get(t, "/catalog", session).Problem(t, []int{401})
		s.postLogin(t, password).Must(t, 401, 403)
		s.Login(t, "another password than that")
	})
}

// TestAccessCrossOrigin refuses unsafe requests that another site's page makes
// with the cookie.
func TestAccessCrossOrigin(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{})
	session := withCookie(g.Login(t, password))
	foreign := map[string][]mod{
		"cross-site":        {header("Sec-Fetch-Site", "cross-site")},
		"same-site":         {header("Sec-Fetch-Site", "same-site")},
		"Origin":            {header("Origin", "http://evil.example")},
		"Origin, port":      {header("Origin", "http://127.0.0.1:1")},
		"Origin null":       {header("Origin", "null")},
		"Origin and site":   {header("Origin", "http://evil.example"), header("Sec-Fetch-Site", "cross-site")},
		"lying about names": {header("Origin", "http://"+strings.TrimPrefix(g.Pages, "http://")+".evil.example")},
	}
	for name, mods := range foreign {
		t.Run(name, func(t *testing.T) {
			for _, a := range operatorRoutes {
				if a.method == "GET" || a.method == "HEAD" {
					continue
				}
				for who, with := range map[string]mod{"session": session, "token": func(*http.Request) {}} {
					r := g.ask(t, a, append([]mod{with}, mods...)...)
					if r.Status != http.StatusForbidden {
						t.Errorf("with the %s: %v, want 403", who, r)
						continue
					}
					r.Problem(t, []int{403})
				}
			}
			g.postLogin(t, password, mods...).Must(t, 403)
			g.Do(t, "POST", "/ui/logout", nil, append([]mod{session}, mods...)...).Must(t, 403)
			// Reading is harmless: the other site cannot read the answer.
			r := g.get(t, "/catalog", append([]mod{session}, mods...)...).Must(t, 200)
			for k := range r.Header {
				if strings.HasPrefix(k, "Access-Control-Allow") {
					t.Errorf("%s: %s", k, r.Header.Get(k))
				}
			}
		})
	}
	g.unchanged(t)
	for name, mods := range map[string][]mod{
		"none of the fields, as curl": nil,
		"same-origin":                 {header("Sec-Fetch-Site", "same-origin"), header("Origin", g.Pages)},
		"typed":                       {header("Sec-Fetch-Site", "none")},
		"an old browser":              {header("Origin", g.Pages)},
	} {
		t.Run(name, func(t *testing.T) {
			for _, with := range []mod{session, func(*http.Request) {}} {
				g.ask(t, access{"PUT", "/images/own.img", "own"}, append([]mod{with}, mods...)...).Must(t, 201)
				g.ask(t, access{"DELETE", "/images/own.img", ""}, append([]mod{with}, mods...)...).Must(t, 204)
			}
		})
	}
}

// TestAccessGuessing slows down guesses of the password, and never locks out
// the operator.
func TestAccessGuessing(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Args: []string{"--trusted-proxies", "127.0.0.7"}})
	session := withCookie(s.Login(t, password))
	var limited *Reply
	for i := 0; i < 40 && limited == nil; i++ {
		// The client controls this header, so another address in it is not
		// another client.
		r := s.postLogin(t, fmt.Sprintf("guess-%d", i), header("X-Forwarded-For", fmt.Sprintf("203.0.113.%d", i)))
		if r.Must(t, 401, 403, 429); r.Status == 429 {
			limited = r
		}
	}
	if limited == nil {
		t.Fatal("40 guesses, and none too many")
	}
	wait, err := strconv.Atoi(limited.Header.Get("Retry-After"))
	if err != nil || wait < 1 || wait > 60 {
		t.Fatalf("429 with Retry-After %q, want some seconds", limited.Header.Get("Retry-After"))
	}
	s.get(t, "/catalog", session).Must(t, 200)
	s.get(t, "/catalog").Must(t, 200)
	s.get(t, "/images", anonymous).Must(t, 200)
	// The right password is never refused because of wrong ones by others:
	// neither at their address nor behind a proxy.
	s.postLogin(t, password).Must(t, 303)
	asForm := header("Content-Type", "application/x-www-form-urlencoded")
	guess := []byte(url.Values{"password": {"guess"}}.Encode())
	behind := func(client string) int {
		t.Helper()
		return s.from(t, "127.0.0.7", "POST", "/ui/login", guess, anonymous, asForm, header("X-Forwarded-For", client))
	}
	tooMany := false
	for i := 0; i < 40 && !tooMany; i++ {
		switch got := behind("203.0.113.1"); got {
		case 401:
		case 429:
			tooMany = true
		default:
			t.Fatalf("a guess behind the proxy: %d", got)
		}
	}
	if !tooMany {
		t.Error("40 guesses of one client behind the proxy, and none too many")
	}
	if got := behind("203.0.113.2"); got != 401 {
		t.Errorf("the first guess of another client behind the proxy: %d", got)
	}
	if n := len(s.Events(t, url.Values{"kind": {"auth.login.failed"}, "limit": {"100"}})); n == 0 {
		t.Error("no event tells of the guesses")
	}
}

// TestAccessGuessingInParallel limits concurrent guesses as it limits others.
func TestAccessGuessingInParallel(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	var clients sync.WaitGroup
	var judged atomic.Int64
	begin := time.Now()
	for i := range 60 {
		clients.Go(func() {
			form := []byte(url.Values{"password": {fmt.Sprintf("guess-%d", i)}}.Encode())
			got, err := s.tryFrom("127.0.0.3", "POST", "/ui/login", form, anonymous, header("Content-Type", "application/x-www-form-urlencoded"))
			switch {
			case err != nil:
				t.Error(err)
			case got == 401 || got == 403:
				judged.Add(1)
			case got != 429:
				t.Errorf("a guess: %d", got)
			}
		})
	}
	clients.Wait()
	// The first few, and one more every few seconds.
	if n, most := judged.Load(), 10+int64(time.Since(begin).Seconds()); n > most {
		t.Errorf("%d of 60 guesses at once were judged in %v, want %d at most", n, time.Since(begin).Round(time.Millisecond), most)
	}
}

// TestAccessGuessingAtOnce bounds the memory of concurrent guesses: hashing a
// password takes much memory on purpose.
func TestAccessGuessingAtOnce(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	var clients sync.WaitGroup
	for i := range 60 {
		clients.Go(func() {
			ip := fmt.Sprintf("127.0.1.%d", i+1)
			form := []byte(url.Values{"password": {"guess"}}.Encode())
			got, err := s.tryFrom(ip, "POST", "/ui/login", form, anonymous, header("Content-Type", "application/x-www-form-urlencoded"))
			if err != nil {
				t.Error(err)
			} else if got != 401 && got != 403 && got != 429 && got != 503 {
				t.Errorf("from %s: %d", ip, got)
			}
		})
	}
	clients.Wait()
	s.Login(t, password)
	if raceEnabled {
		return // the race detector multiplies memory
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.PID()))
	if err != nil {
		t.Skip("no /proc: peak memory cannot be read here")
	}
	m := regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB`).FindSubmatch(status)
	if m == nil {
		t.Fatalf("no VmHWM in\n%s", status)
	}
	if kb, _ := strconv.Atoi(string(m[1])); kb > 300<<10 {
		t.Errorf("60 guesses at once took %d MiB", kb>>10)
	}
}

func TestAccessBodyLimits(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	big := `{"name": "` + strings.Repeat("x", 2<<20) + `"}`
	for _, a := range []access{
		{"POST", "/catalog/entries", big},
		{"POST", "/catalog/hashes", big},
		{"POST", "/catalog/downloads", big},
		{"POST", "/uploads", big},
		{"PUT", "/catalog.toml", "# " + strings.Repeat("x", 2<<20)},
	} {
		for _, chunked := range []bool{false, true} {
			var body io.Reader = strings.NewReader(a.body)
			if chunked {
				body = io.MultiReader(body) // hides the length
			}
			want := []int{413}
			if a.method == "PUT" {
				want = []int{413, 422} // too large a manifest is a malformed one
			}
			s.Do(t, a.method, a.path, body, header("Content-Type", "application/json")).Problem(t, want)
		}
	}
	form := "password=" + strings.Repeat("x", 2<<20)
	s.Do(t, "POST", "/ui/login", strings.NewReader(form), anonymous, header("Content-Type", "application/x-www-form-urlencoded")).
		Must(t, 400, 401, 413)
	// Deeply nested and odd JSON is refused.
	for _, body := range []string{
		strings.Repeat("[", 100_000), `{"name": "a.img"} trailing`, `{"name": "a.img", "nmae": "b.img"}`, `{"name": "a.img"}{"name": "b.img"}`, "\x00", `{"name": "\ud800"}`,
	} {
		s.Do(t, "POST", "/catalog/hashes", strings.NewReader(body), header("Content-Type", "application/json")).Problem(t, []int{400, 404, 413, 422})
	}
}

func TestAccessHeaderLimits(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	for name, head := range map[string]string{
		"one field":   "X-Long: " + strings.Repeat("x", 2<<20) + "\r\n",
		"8 KiB":       "X-Long: " + strings.Repeat("x", 8<<10) + "\r\n",
		"many fields": strings.Repeat("X-Many: "+strings.Repeat("x", 50)+"\r\n", 40_000),
		"the path":    "",
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.Pages, "http://"), within)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			if err := conn.SetDeadline(time.Now().Add(within)); err != nil {
				t.Fatal(err)
			}
			target := "/healthz"
			if head == "" {
				target += "?" + strings.Repeat("x", 2<<20)
			}
			// The server may answer and close before it has read everything.
			go func() { _, _ = io.WriteString(conn, "GET "+target+" HTTP/1.1\r\nHost: x\r\n"+head+"\r\n") }()
			res, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != 431 && (head != "" || res.StatusCode != 414) {
				t.Errorf("status %d, want 431", res.StatusCode)
			}
		})
	}
	// Fields of usual length are accepted.
	s.get(t, "/healthz", header("Cookie", "other="+strings.Repeat("x", 4000))).Must(t, 200)
}

// TestAccessSlowHead closes the connection of a client that never ends its
// head.
func TestAccessSlowHead(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(s.Pages, "http://"), within)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection is still open")
	}
}

func TestAccessRoutes(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{})
	for _, p := range []string{
		"/nothing", "/catalog/nothing", "/catalog/entries/x", "/images/there.img/a/b", "/uploads/" + g.upload + "/nothing", "/api", "/.env",
		"/catalog/hashes/a/b", "/healthz/x", "/debug/pprof/", "/debug/vars", "/favicon.png", "/catalog/",
	} {
		g.get(t, p).Problem(t, []int{404})
	}
	for _, p := range []string{"/ui/nothing", "/ui/images/x/y"} {
		if r := g.get(t, p, withCookie(g.Login(t, password)), header("Accept", "text/html")); r.Status != 404 {
			t.Errorf("%v, want 404", r)
		}
	}
	for _, c := range []struct {
		method, path string
		allow        []string
	}{
		{"DELETE", "/healthz", []string{"GET", "HEAD"}},
		{"POST", "/version", []string{"GET", "HEAD"}},
		{"POST", "/images", []string{"GET"}},
		{"POST", "/images/there.img", []string{"GET", "HEAD", "PUT", "DELETE"}},
		{"PATCH", "/images/there.img", []string{"GET", "HEAD", "PUT", "DELETE"}},
		{"PUT", "/images/there.img/there.img", []string{"GET", "HEAD"}},
		{"POST", "/catalog.toml", []string{"GET", "PUT", "DELETE"}},
		{"PATCH", "/catalog", []string{"GET"}},
		{"PUT", "/uploads", []string{"POST"}},
		{"PATCH", "/uploads/" + g.upload, []string{"GET", "DELETE"}},
		{"GET", "/uploads/" + g.upload + "/complete", []string{"POST"}},
		{"PUT", "/catalog/entries", []string{"GET", "POST", "DELETE"}},
		{"PUT", "/catalog/hashes", []string{"GET", "POST"}},
		{"POST", "/catalog/hashes/there.img", []string{"DELETE"}},
		{"DELETE", "/catalog/downloads", []string{"GET", "POST"}},
		{"GET", "/catalog/cache/" + sum(g.image), []string{"DELETE"}},
		{"POST", "/events", []string{"GET"}},
		{"DELETE", "/metrics", []string{"GET"}},
		{"BREW", "/events", []string{"GET"}},
	} {
		r := g.ask(t, access{c.method, c.path, ""})
		if r.Status != http.StatusMethodNotAllowed {
			t.Errorf("%s %s: %v, want 405", c.method, c.path, r)
			continue
		}
		r.Problem(t, []int{405})
		allow := strings.FieldsFunc(r.Header.Get("Allow"), func(c rune) bool { return c == ',' || c == ' ' })
		for _, m := range c.allow {
			if !slices.Contains(allow, m) {
				t.Errorf("%s %s: Allow is %q, lacks %s", c.method, c.path, allow, m)
			}
		}
		if slices.Contains(allow, c.method) {
			t.Errorf("%s %s is not allowed, and Allow is %q", c.method, c.path, allow)
		}
	}
	g.unchanged(t)

	// Paths that may bypass a check of the path.
	for _, p := range []string{
		"//catalog", "/./catalog", "/images/../catalog", "/CATALOG", "/catalog%2f", "/%63atalog", "/catalog;x", "/catalog%00", "/healthz/../events",
		"/static/../catalog", "/static/..%2fcatalog", "/images/..%2f..%2fevents", "/ui/../metrics", "/ui/login/../images", "/ui//images", `/\catalog`,
		"/ui/login%2f..%2fimages", "/static/%2e%2e/%2e%2e/etc/passwd", "/static/....//etc/passwd",
	} {
		r := g.get(t, p, anonymous)
		if r.Status == 200 {
			t.Errorf("%s: %v to anybody", p, r)
		}
		if to := r.Header.Get("Location"); to != "" && path.Clean("/"+to) != strings.TrimSuffix(to, "/") && !strings.HasPrefix(to, "/ui/login") {
			t.Errorf("%s leads to %q", p, to)
		}
	}
}

func TestAccessHeaders(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{})
	session := withCookie(g.Login(t, password))
	etag := g.get(t, "/images/there.img").Header.Get("ETag")
	seen := map[string]bool{}
	for what, r := range map[string]*Reply{
		"200": g.get(t, "/healthz", anonymous), "401": g.get(t, "/catalog", anonymous), "404": g.get(t, "/nothing"),
		"405": g.ask(t, access{"DELETE", "/healthz", ""}), "413": g.ask(t, access{"POST", "/uploads", strings.Repeat("x", 2<<20)}),
		"206": g.get(t, "/images/there.img", header("Range", "bytes=0-1")), "416": g.get(t, "/images/there.img", header("Range", "bytes=9999-")),
		"304": g.get(t, "/images/there.img", header("If-None-Match", etag)), "HEAD": g.ask(t, access{"HEAD", "/images/there.img", ""}),
		"201": g.ask(t, access{"PUT", "/images/x.img", "x"}), "204": g.ask(t, access{"DELETE", "/images/x.img", ""}),
		"422": g.ask(t, access{"PUT", "/images/x.tar", "x"}), "page": g.get(t, "/ui/images", session), "metrics": g.get(t, "/metrics"),
		"redirect": g.get(t, "/ui/images", anonymous), "403": g.ask(t, access{"PUT", "/images/x.img", "x"}, header("Origin", "http://evil.example")),
	} {
		id := r.Header.Get("X-Request-Id")
		if id == "" || seen[id] {
			t.Errorf("%s: X-Request-Id is %q", what, id)
		}
		seen[id] = true
		if r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: X-Content-Type-Options is %q", what, r.Header.Get("X-Content-Type-Options"))
		}
		if v := r.Header.Get("Server") + r.Header.Get("X-Powered-By"); v != "" && !strings.HasPrefix(v, "imageroot") {
			t.Errorf("%s: it calls itself %q", what, v)
		}
	}
	t.Run("request IDs of clients", func(t *testing.T) {
		if id := g.get(t, "/healthz", header("X-Request-Id", "from-the-proxy-1")).Header.Get("X-Request-Id"); id != "from-the-proxy-1" {
			t.Errorf("a proxy's request ID became %q", id)
		}
		for _, bad := range []string{strings.Repeat("x", 5000), `a" b=c`, "<b>", "\u00fc"} {
			if id := g.get(t, "/healthz", header("X-Request-Id", bad)).Header.Get("X-Request-Id"); id == bad || id == "" {
				t.Errorf("the request ID %.20q is taken as it is", bad)
			}
		}
	})
	t.Run("operator's JSON is not kept", func(t *testing.T) {
		for _, p := range []string{"/catalog", "/catalog/entries", "/catalog/hashes", "/catalog/downloads", "/events", "/uploads/" + g.upload} {
			if cc := g.get(t, p).Must(t, 200).Header.Get("Cache-Control"); cc != "no-store" {
				t.Errorf("%s: Cache-Control is %q", p, cc)
			}
		}
	})
}

var (
	inlineScript = regexp.MustCompile(`(?is)<script\b[^>]*>`)
	inlineStyle  = regexp.MustCompile(`(?is)<style\b|\sstyle\s*=\s*["']`)
	inlineEvent  = regexp.MustCompile(`(?is)<[a-z][^>]*\son[a-z]+\s*=\s*["']`)
	linkedThing  = regexp.MustCompile(`(?is)<(?:script|link|img|iframe|form|source)\b[^>]*\b(?:src|href|action)\s*=\s*["']([^"']*)`)
)

// TestAccessPages checks that the pages' policy allows nothing from other
// hosts.
func TestAccessPages(t *testing.T) {
	t.Parallel()
	g := startGuarded(t, Options{})
	hostile := `"><img src=x onerror=alert(1)><script>alert(2)<script>.img`
	g.Put(t, hostile, content(3, 100))
	session := withCookie(g.Login(t, password))
	pages := map[string]*Reply{
		"login": g.get(t, "/ui/login", anonymous), "images": g.get(t, "/ui/images", session), "events": g.get(t, "/ui/events", session),
		"events of images": g.get(t, "/ui/events?subject_kind=image", session), "search": g.get(t, "/ui/images?q="+url.QueryEscape(`"><script>alert(1)</script>`), session),
	}
	for name, r := range pages {
		r.Must(t, 200)
		if ct := r.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/html") || !strings.Contains(strings.ToLower(ct), "utf-8") {
			t.Errorf("%s: Content-Type is %q", name, ct)
		}
		csp := r.Header.Get("Content-Security-Policy")
		directives := map[string]string{}
		for d := range strings.SplitSeq(csp, ";") {
			k, v, _ := strings.Cut(strings.TrimSpace(d), " ")
			directives[k] = v
		}
		if d := directives["default-src"]; d != "'self'" && d != "'none'" {
			t.Errorf("%s: default-src is %q in %q", name, d, csp)
		}
		for _, bad := range []string{"unsafe-inline", "unsafe-eval", "unsafe-hashes", "*", "http:", "https:"} {
			if strings.Contains(csp, bad) {
				t.Errorf("%s: %s in %q", name, bad, csp)
			}
		}
		if directives["frame-ancestors"] != "'none'" && directives["frame-ancestors"] != "'self'" {
			t.Errorf("%s: other sites may frame it: %q", name, csp)
		}
		for _, d := range []string{"base-uri", "form-action"} { // these have no default
			if v := directives[d]; v != "'none'" && v != "'self'" {
				t.Errorf("%s: %s is %q", name, d, v)
			}
		}
		if rp := r.Header.Get("Referrer-Policy"); rp != "no-referrer" && rp != "same-origin" {
			t.Errorf("%s: Referrer-Policy is %q", name, rp)
		}
		if cc := r.Header.Get("Cache-Control"); !strings.Contains(cc, "no-store") {
			t.Errorf("%s: Cache-Control is %q", name, cc)
		}
		html := string(r.Body)
		for _, tag := range inlineScript.FindAllString(html, -1) {
			if !strings.Contains(tag, "src=") {
				t.Errorf("%s: an inline script: %s", name, tag)
			}
		}
		for what, re := range map[string]*regexp.Regexp{"style": inlineStyle, "event handler": inlineEvent} {
			if m := re.FindString(html); m != "" {
				t.Errorf("%s: an inline %s: %.100q", name, what, m)
			}
		}
		for _, m := range linkedThing.FindAllStringSubmatch(html, -1) {
			u, err := url.Parse(m[1])
			if err != nil || u.Host != "" || u.Scheme != "" && u.Scheme != "data" {
				t.Errorf("%s: something of another host: %s", name, m[0])
			}
		}
		if strings.Contains(html, "<img src=x") || strings.Contains(html, "<script>alert") {
			t.Errorf("%s: a name is taken for HTML", name)
		}
	}
	// The parts of the login page are served without a log-in.
	for _, m := range linkedThing.FindAllStringSubmatch(string(pages["login"].Body), -1) {
		u := strings.ReplaceAll(m[1], "&amp;", "&")
		if !strings.HasPrefix(u, "/static/") {
			continue
		}
		r := g.get(t, u, anonymous).Must(t, 200)
		ct := r.Header.Get("Content-Type")
		if strings.HasSuffix(strings.SplitN(u, "?", 2)[0], ".css") && !strings.HasPrefix(ct, "text/css") || strings.Contains(u, ".js") && !strings.Contains(ct, "javascript") {
			t.Errorf("%s: Content-Type is %q", u, ct)
		}
		if r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: no nosniff", u)
		}
	}
	r := g.get(t, "/", anonymous, header("Accept", "text/html"))
	if to := strings.TrimPrefix(r.Header.Get("Location"), g.Pages); r.Status < 300 || r.Status >= 400 || !strings.HasPrefix(to, "/ui/") {
		t.Errorf("/ leads to %d %q, want the pages", r.Status, to)
	}
}

package withcache

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/source"
	"imageroot/shared/web"
)

// bytes answers GET /withcache/b/SOURCE/NAME, where SOURCE is the URL of a source in
// base64url, and /withcache/blob?url=URL.
func (f *Function) bytes(w http.ResponseWriter, r *http.Request) error {
	src := r.URL.Query().Get("url")
	if token := r.PathValue("source"); token != "" {
		decoded, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(token, "="))
		if err != nil {
			return problem.New(problem.Invalid, "the segment after /b/ must be the URL of an image in base64url (RFC 4648 section 5)")
		}
		src = string(decoded)
	}
	if src == "" {
		return problem.New(problem.Invalid, "url is missing: give the URL of an image")
	}
	return f.Serve(w, r, func(s *inventory.Snapshot) (*inventory.Row, error) {
		row := find(s, r, src)
		if row == nil || !row.Cached || row.Digest() == "" {
			f.missed(r, src)
			return nil, problem.New(problem.NotFound, "the bytes of "+shown(src)+" are not here: fetch the image first, for which the page has a button")
		}
		w.Header().Set("X-Withcache-Sha256", string(row.Digest()))
		return row, nil
	})
}

// shown returns a URL for a message.
func shown(src string) string {
	const most = 200
	if len(src) > most {
		return strings.ToValidUTF8(src[:most], "") + "…"
	}
	return src
}

// find returns the row whose bytes are those of a URL, or nil.
func find(s *inventory.Snapshot, r *http.Request, src string) *inventory.Row {
	for _, known := range []string{src, source.Canonical(src)} { // the URL in a manifest may not be canonical
		if row, ok := s.BySource(layout.RefOf(known)); ok {
			return row
		}
	}
	hosts := []string{r.Host}
	if base, err := url.Parse(web.BaseURL(r)); err == nil {
		hosts = append(hosts, base.Host)
	}
	if row, ok := s.ByOwnURL(src, hosts...); ok {
		return row
	}
	// The URL of a blob in a registry ends in the digest of its bytes: OCI distribution
	// specification, "Pulling blobs".
	u, err := url.Parse(src)
	if err != nil || path.Base(path.Dir(u.Path)) != "blobs" {
		return nil
	}
	hex, _ := strings.CutPrefix(path.Base(u.Path), "sha256:")
	sha256, ok := layout.ParseSHA256(hex)
	if !ok {
		return nil
	}
	row, _ := s.BySHA256(sha256)
	return row
}

// missed adds an event about a request for bytes that are not here, so that an operator
// can fetch them.
func (f *Function) missed(r *http.Request, src string) {
	if _, err := source.ParseURL(src); err != nil || len(src) > maxMissed {
		return // nothing that could be fetched
	}
	ip := web.ClientIP(r)
	if !f.misses.note(f.Now(), src, ip) {
		return
	}
	actor := activity.Client
	if web.TokenName(r.Context()) != "" {
		actor = activity.Actor(r.Context())
	}
	f.Activity.Add(r.Context(), activity.Event{
		Kind: activity.ImageMissed, SubjectKind: activity.SubjectImage, SubjectID: src, Actor: actor, SourceIP: ip,
		Summary: "a client asked for " + src + ", whose bytes are not here",
	})
}

const (
	// missWindow is the time in which a URL is noted once, at most maxMisses URLs are, and
	// at most maxFrom from one network.
	missWindow         = 24 * time.Hour
	maxMisses, maxFrom = 100, 20
	maxMissed          = 2048 // bytes of a URL that is noted
)

// misses bounds the events of clients without credentials, which may ask for any number of
// URLs.
type misses struct {
	mu   sync.Mutex
	ends time.Time
	urls map[string]bool
	from map[netip.Prefix]int
}

// note reports whether the request of a client for a URL is to be noted.
func (m *misses) note(now time.Time, src, ip string) bool {
	network := netip.Prefix{}
	if addr, err := netip.ParseAddr(ip); err == nil {
		addr = addr.Unmap()
		bits := 64 // of an IPv6 address, a client chooses the rest
		if addr.Is4() {
			bits = 32
		}
		network, _ = addr.Prefix(bits)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !now.Before(m.ends) {
		m.ends, m.urls, m.from = now.Add(missWindow), map[string]bool{}, map[netip.Prefix]int{}
	}
	if m.urls[src] || len(m.urls) == maxMisses || m.from[network] == maxFrom {
		return false
	}
	m.urls[src] = true
	m.from[network]++
	return true
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// eventKinds are all kinds of activity, with the kind of their subject.
var eventKinds = map[string]string{
	"image.uploaded": "image", "image.upload_failed": "image", "image.hashed": "image", "image.hash_failed": "image", "image.check_failed": "image",
	"image.fetched": "image", "image.fetch_failed": "image", "image.renamed": "image", "image.deleted": "image", "image.uncached": "image",
	"catalog.entry.added": "catalog", "catalog.entry.add_failed": "catalog", "catalog.entry.deleted": "catalog",
	"catalog.manifest.replaced": "catalog",
	"auth.login.succeeded":      "auth", "auth.login.failed": "auth", "auth.logout": "auth",
}

func isFailure(kind string) bool { return strings.HasSuffix(kind, "failed") }

type eventsPage struct {
	Events []event `json:"events"`
	Next   *string `json:"next"`
}

func (s *Server) eventsPage(t testing.TB, query url.Values) eventsPage {
	t.Helper()
	var p eventsPage
	s.get(t, "/events?"+query.Encode()).Must(t, http.StatusOK).JSON(t, &p)
	return p
}

// walkEvents follows next to its end, some events at a time.
func (s *Server) walkEvents(t testing.TB, limit string, query url.Values) []event {
	t.Helper()
	q := url.Values{"limit": {limit}}
	for k, v := range query {
		q[k] = v
	}
	var all []event
	for range 1000 {
		p := s.eventsPage(t, q)
		all = append(all, p.Events...)
		if p.Next == nil {
			return all
		}
		q.Set("before", *p.Next)
	}
	t.Fatal("GET /events: next never ends")
	return nil
}

func ids(events []event) []string {
	l := make([]string, len(events))
	for i, e := range events {
		l[i] = e.ID
	}
	return l
}

// fromAddress returns a client with another address of this machine.
func fromAddress(ip string) *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}).DialContext,
			DisableKeepAlives: true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// from sends one request from another address and returns the status.
func (s *Server) from(t testing.TB, ip, method, path string, body []byte, mods ...mod) int {
	t.Helper()
	status, err := s.tryFrom(ip, method, path, body, mods...)
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func (s *Server) tryFrom(ip, method, path string, body []byte, mods ...mod) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Pages+path, bytes.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", "Bearer "+s.Token)
	for _, m := range mods {
		m(req)
	}
	res, err := fromAddress(ip).Do(req)
	if err != nil {
		return 0, err
	}
	return res.StatusCode, res.Body.Close()
}

// TestEventsOfEveryKind causes an event of each kind, and checks its actor and
// source IP.
func TestEventsOfEveryKind(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	p := publish(t)
	begin := time.Now()
	const wrongPassword = "not-the-password-of-anybody"
	b, next := content(1, 5000), content(2, 5000)

	s.Put(t, "up.img", b)
	s.Do(t, http.MethodPut, "/images/failed.img", bytes.NewReader(next), header("Repr-Digest", structuredDigest(sum(b)))).Problem(t, []int{400})
	s.Put(t, "doomed.img", next)
	s.Do(t, http.MethodDelete, "/images/doomed.img", nil).Must(t, 204)
	s.s3Put(t, "by-s3.img", content(3, 5000))
	remote := content(4, 5000)
	image := p.File("/remote.img", remote)
	sums := p.File("/sums", []byte(sum(remote)+"  remote.img\n"))
	s.AddEntry(t, image, sums).Must(t, http.StatusCreated)
	s.Fetch(t, "remote.img")
	s.WaitRow(t, "remote.img", "cached", func(r row) bool { return r.Cached })
	s.Do(t, http.MethodDelete, "/catalog/cache/"+sum(remote), nil).Must(t, 204)
	s.Do(t, http.MethodDelete, "/catalog/entries?src="+url.QueryEscape(image), nil).Must(t, 204)
	wrong := content(5, 5000)
	badImage := p.File("/wrong.img", wrong)
	badSums := p.File("/wrong.sums", []byte(sum(b)+"  wrong.img\n"))
	s.putManifest(t, "version = 1\n").Must(t, accepted...)
	s.Do(t, http.MethodDelete, "/images/up.img", nil).Must(t, 204) // else the digest of the entry is known already
	s.AddEntry(t, badImage, badSums).Must(t, http.StatusCreated)
	s.Enqueue(t, downloads, "src", badImage).Must(t, http.StatusAccepted)
	s.WaitJob(t, downloads, "wrong.img", "failed")
	missing := p.At("/missing.img")
	s.AddEntry(t, missing, "").Problem(t, []int{400})
	s.postLogin(t, wrongPassword).Must(t, 401, 403)
	session := s.Login(t, password)
	s.Do(t, http.MethodPost, "/ui/logout", nil, withCookie(session)).Must(t, 200, 204, 303)

	// An empty subject matches any.
	for _, c := range []struct{ kind, subject, actor string }{
		{"image.uploaded", "up.img", "operator"},
		{"image.upload_failed", "failed.img", "operator"},
		{"image.deleted", "doomed.img", "operator"},
		{"image.hashed", "by-s3.img", "system"},
		{"image.fetched", sum(remote), ""},
		{"image.fetch_failed", sum(b), ""},
		{"image.uncached", sum(remote), "operator"},
		{"catalog.entry.added", image, "operator"},
		{"catalog.entry.added", badImage, "operator"},
		{"catalog.entry.add_failed", missing, "operator"},
		{"catalog.entry.deleted", image, "operator"},
		{"catalog.manifest.replaced", "", "operator"},
		{"auth.login.failed", "", ""},
		{"auth.login.succeeded", "", "operator"},
		{"auth.logout", "", "operator"},
	} {
		var e event
		if c.subject != "" {
			e = s.WaitEvent(t, c.kind, c.subject)
		} else {
			eventually(t, within, "event "+c.kind, func() error {
				l := s.Events(t, url.Values{"kind": {c.kind}})
				if len(l) != 1 {
					return fmt.Errorf("%d events, want one: %+v", len(l), l)
				}
				e = l[0]
				return nil
			})
		}
		if c.actor != "" && e.Actor != c.actor {
			t.Errorf("%s of %s: actor %q, want %q", c.kind, c.subject, e.Actor, c.actor)
		}
		switch {
		case e.Actor == "operator" || e.SubjectKind == "auth":
			if e.SourceIP != "127.0.0.1" {
				t.Errorf("%s of %s: source_ip %q, want 127.0.0.1", c.kind, c.subject, e.SourceIP)
			}
		case e.SourceIP != "":
			if net.ParseIP(e.SourceIP) == nil {
				t.Errorf("%s of %s: source_ip %q", c.kind, c.subject, e.SourceIP)
			}
		}
	}

	all := s.walkEvents(t, "200", nil)
	checkEvents(t, all)
	for _, e := range all {
		if e.TS.Before(begin.Add(-time.Second)) || e.TS.After(time.Now().Add(time.Second)) {
			t.Errorf("%+v: not now", e)
		}
	}
	raw := string(s.get(t, "/events?limit=200").Must(t, 200).Body)
	for _, secret := range []string{wrongPassword, password, token, session.Value} {
		if strings.Contains(raw, secret) {
			t.Errorf("the activity tells a secret: %q", secret)
		}
	}
	// A failed operation has no event of success.
	for _, e := range all {
		if e.Kind == "image.uploaded" && e.SubjectID == "failed.img" || e.Kind == "catalog.entry.added" && e.SubjectID == missing {
			t.Errorf("%+v", e)
		}
	}
	// The event tells which bytes were meant.
	for _, kind := range []string{"image.uploaded", "image.hashed", "image.fetched"} {
		for _, e := range s.Events(t, url.Values{"kind": {kind}}) {
			want := map[string]string{"up.img": sum(b), "doomed.img": sum(next), "by-s3.img": sum(content(3, 5000)), sum(remote): sum(remote)}[e.SubjectID]
			if !bytes.Contains(e.Details, []byte(want)) && e.SubjectID != want {
				t.Errorf("%s of %s says nothing of %s: %s", e.Kind, e.SubjectID, want, e.Details)
			}
		}
	}
	s.Restart(t)
	if again := s.walkEvents(t, "200", nil); !slices.Equal(ids(again), ids(all)) {
		t.Errorf("%d events before the restart, %d after, or others", len(all), len(again))
	}
}

// checkEvents checks the order of events and what holds for each.
func checkEvents(t *testing.T, events []event) {
	t.Helper()
	seen := map[string]bool{}
	for i, e := range events {
		kind, known := eventKinds[e.Kind]
		if !known || e.SubjectKind != kind || e.SubjectID == "" && kind != "auth" || e.Summary == "" || e.ID == "" || seen[e.ID] {
			t.Errorf("event %+v", e)
		}
		seen[e.ID] = true
		if e.Actor != "operator" && e.Actor != "system" {
			t.Errorf("actor of %+v", e)
		}
		if _, offset := e.TS.Zone(); offset != 0 {
			t.Errorf("ts is not in UTC: %v", e.TS)
		}
		if i > 0 && e.TS.After(events[i-1].TS) {
			t.Errorf("event %d is newer than the one before: %v, %v", i, e.TS, events[i-1].TS)
		}
	}
}

func TestEventsShape(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	if body := strings.TrimSpace(string(s.get(t, "/events?kind=image.uploaded").Must(t, 200).Body)); body != `{"events":[],"next":null}` && body != `{"next":null,"events":[]}` {
		t.Errorf("no events: %s", body)
	}
	s.Put(t, `hostile "<b>&'%.img`, content(1, 100))
	var p map[string]json.RawMessage
	s.get(t, "/events").Must(t, 200).JSON(t, &p)
	var l []json.RawMessage
	if err := json.Unmarshal(p["events"], &l); err != nil || len(l) == 0 || len(p) != 2 || string(p["next"]) != "null" {
		t.Fatalf("GET /events: %s (%v)", p, err)
	}
	for _, e := range l {
		hasMembers(t, "an event", e, "actor", "details", "id", "kind", "source_ip", "subject_id", "subject_kind", "summary", "ts")
		var v map[string]json.RawMessage
		_ = json.Unmarshal(e, &v)
		if d := string(v["details"]); d != "null" && !strings.HasPrefix(d, "{") {
			t.Errorf("details is %s", d)
		}
	}
	s.WaitEvent(t, "image.uploaded", `hostile "<b>&'%.img`)
}

func TestEventsFilters(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	names := []string{"a.img", "with space & more=x;.img", "\u00fc#?%41.img"}
	for round := range 3 {
		for i, n := range names {
			s.Put(t, n, content(uint64(10*round+i), 100))
		}
		s.Do(t, http.MethodPut, "/images/a.img", strings.NewReader("x"), header("Repr-Digest", structuredDigest(sum(nil)))).Problem(t, []int{400})
		s.AddEntry(t, "http://127.0.0.1:1/nobody.img", "").Problem(t, []int{400})
		s.postLogin(t, password)
	}
	if got := s.from(t, "127.0.0.2", http.MethodDelete, imageRoute(names[1]), nil, header("X-Forwarded-For", "203.0.113.9"), header("X-Real-Ip", "203.0.113.9"), header("Forwarded", "for=203.0.113.9")); got != 204 {
		t.Fatalf("DELETE from another address: %d", got)
	}
	s.s3Put(t, "by-s3.img", content(99, 100))
	s.WaitEvent(t, "image.hashed", "by-s3.img")
	s.WaitEvent(t, "image.deleted", names[1])
	all := s.walkEvents(t, "200", nil)
	checkEvents(t, all)
	if len(all) < 3*6+2 {
		t.Fatalf("%d events", len(all))
	}

	check := func(q url.Values, ok func(event) bool) {
		t.Helper()
		var want []event
		for _, e := range all {
			if ok(e) {
				want = append(want, e)
			}
		}
		for _, limit := range []string{"200", "2"} {
			if got := s.walkEvents(t, limit, q); !slices.Equal(ids(got), ids(want)) {
				t.Errorf("%s, %s at a time: %d events, want %d, or in another order", q.Encode(), limit, len(got), len(want))
			}
		}
	}
	for kind := range eventKinds {
		check(url.Values{"kind": {kind}}, func(e event) bool { return e.Kind == kind })
	}
	for _, kind := range []string{"image", "catalog", "auth"} {
		check(url.Values{"subject_kind": {kind}}, func(e event) bool { return e.SubjectKind == kind })
	}
	for _, id := range append(names, "http://127.0.0.1:1/nobody.img", "nothing.img", "A.IMG") {
		check(url.Values{"subject_id": {id}}, func(e event) bool { return e.SubjectID == id })
	}
	for _, actor := range []string{"operator", "system"} {
		check(url.Values{"actor": {actor}}, func(e event) bool { return e.Actor == actor })
	}
	for _, ip := range []string{"127.0.0.1", "127.0.0.2", "203.0.113.9"} {
		check(url.Values{"source_ip": {ip}}, func(e event) bool { return e.SourceIP == ip })
	}
	check(url.Values{"failed": {"true"}}, func(e event) bool { return isFailure(e.Kind) })
	check(url.Values{"failed": {"false"}}, func(e event) bool { return !isFailure(e.Kind) })
	check(url.Values{"subject_kind": {"image"}, "actor": {"operator"}, "failed": {"true"}, "subject_id": {"a.img"}},
		func(e event) bool { return e.Kind == "image.upload_failed" })
	check(url.Values{"kind": {"image.uploaded"}, "failed": {"true"}}, func(event) bool { return false })
	// Clients control X-Forwarded-For: the event has the address of the
	// connection.
	if l := s.Events(t, url.Values{"kind": {"image.deleted"}}); len(l) != 1 || l[0].SourceIP != "127.0.0.2" {
		t.Errorf("deleted from 127.0.0.2: %+v", l)
	}

	t.Run("before", func(t *testing.T) {
		pivot := all[len(all)/2]
		older := func(e event) bool { return e.TS.Before(pivot.TS) }
		var byID []event
		for i, e := range all {
			if e.ID == pivot.ID {
				byID = all[i+1:]
			}
		}
		if got := s.walkEvents(t, "200", url.Values{"before": {pivot.ID}}); !slices.Equal(ids(got), ids(byID)) {
			t.Errorf("before the event %s: %d events, want %d", pivot.ID, len(got), len(byID))
		}
		east := time.FixedZone("east", 5*3600+1800)
		for _, at := range []time.Time{pivot.TS.UTC(), pivot.TS.In(east)} {
			check(url.Values{"before": {at.Format(time.RFC3339Nano)}}, older)
		}
		check(url.Values{"before": {"1999-12-31T23:59:59Z"}}, func(event) bool { return false })
		check(url.Values{"before": {time.Now().Add(24 * time.Hour).UTC().Format(time.RFC3339)}}, func(event) bool { return true })
	})
	t.Run("limit", func(t *testing.T) {
		for _, n := range []string{"1", "3", "5"} {
			p := s.eventsPage(t, url.Values{"limit": {n}})
			if fmt.Sprint(len(p.Events)) != n || p.Next == nil {
				t.Errorf("limit=%s: %d events, next %v", n, len(p.Events), p.Next)
			}
		}
		if p := s.eventsPage(t, url.Values{"limit": {"200"}}); len(p.Events) != len(all) || p.Next != nil {
			t.Errorf("limit=200: %d of %d events, next %v", len(p.Events), len(all), p.Next)
		}
	})
	t.Run("what comes during a walk does not disturb it", func(t *testing.T) {
		first := s.eventsPage(t, url.Values{"limit": {"5"}})
		for i := range 3 {
			s.Put(t, "meanwhile.img", content(uint64(200+i), 100))
		}
		rest := s.walkEvents(t, "5", url.Values{"before": {*first.Next}})
		if got := append(ids(first.Events), ids(rest)...); !slices.Equal(got, ids(all)) {
			t.Errorf("%d events, want the %d that there were", len(got), len(all))
		}
	})
	t.Run("values that are none", func(t *testing.T) {
		for _, q := range []string{
			"kind=nonsense", "kind=IMAGE.UPLOADED", "kind=image", "subject_kind=nonsense", "subject_kind=images",
			"actor=nonsense", "actor=root", "source_ip=nonsense", "source_ip=127.0.0.1:80", "source_ip=127.0.0.0/8",
			"failed=perhaps", "failed=TRUE!", "before=nonsense", "before=yesterday", "before=2026-13-01T00:00:00Z",
			"before=..%2F..%2Fauth", "limit=0", "limit=-1", "limit=many", "limit=1.5", "limit=99999999999999999999",
		} {
			name, _, _ := strings.Cut(q, "=")
			s.get(t, "/events?"+q).Problem(t, []int{400}, name)
		}
		s.get(t, "/events?kind=nonsense").Problem(t, []int{400}, "image.uploaded")
	})
}

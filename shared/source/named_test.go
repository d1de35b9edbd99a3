package source

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// A URL without a file name has the one that its server says, if that is an image's.
func TestNamedByServer(t *testing.T) {
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		switch d := r.URL.Query().Get("says"); {
		case strings.HasSuffix(r.URL.Path, "/gone"):
			http.NotFound(w, r)
			return
		case r.URL.Path == "/latest":
			http.Redirect(w, r, "/v2/lab.img?token=x", http.StatusFound)
			return
		case d != "":
			w.Header().Set("Content-Disposition", d)
		}
		serve(w, r)
	})
	says := func(disposition string) string { return "/download?says=" + url.QueryEscape(disposition) }
	for path, want := range map[string]string{
		says(`attachment; filename=lab.img`):                           "lab.img",
		says(`attachment; filename="lab disk.img"`):                    "lab disk.img",
		says(`attachment; filename*=UTF-8''gr%C3%B6%C3%9F.img`):        "größ.img",
		says(`attachment; filename="../../etc/x.img"`):                 "x.img",
		says(`attachment; filename="C:\\x\\y.img"`):                    "y.img",
		"/named.img?says=" + url.QueryEscape("inline; filename=x.img"): "named.img",
		"/latest": "lab.img",
	} {
		if r, err := s.Resolve(t.Context(), Location{URL: s.url(path)}, ""); err != nil || string(r.Name) != want || r.URL != s.url(path) {
			t.Errorf("%s: %+v, %v, want %s", path, r, err, want)
		}
		if _, r, err := s.FindChecksums(t.Context(), s.url(path)); err != nil || string(r.Name) != want {
			t.Errorf("%s: %+v, %v, want %s", path, r, err, want)
		}
	}
	for path, reason := range map[string]string{
		"/download": "give the image a name", "/gone": "404", says("attachment; filename=lab.exe"): "no other one", says("inline"): "no other one",
		says("attachment; filename=.img"): "no other one",
	} {
		if r, err := s.Resolve(t.Context(), Location{URL: s.url(path)}, ""); is(err) != "malformed" || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %+v, %v, want %s", path, r, err, reason)
		}
	}
	if r, err := s.Resolve(t.Context(), Location{URL: s.url("/download"), Name: "given.img"}, ""); err != nil || r.Name != "given.img" {
		t.Errorf("a given name: %+v, %v", r, err)
	}
}

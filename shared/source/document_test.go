package source

import (
	"net/http"
	"strings"
	"testing"
)

// A text is transferred only if it has changed, and one that cannot be read leaves the last
// one to compare with.
func TestDocument(t *testing.T) {
	text, status := "first", http.StatusOK
	s := newSite(t, func(w http.ResponseWriter, r *http.Request) {
		tag := `"` + text[:min(len(text), 8)] + `"`
		switch w.Header().Set("ETag", tag); {
		case status != http.StatusOK:
			w.WriteHeader(status)
		case r.Header.Get("If-None-Match") == tag:
			w.WriteHeader(http.StatusNotModified)
		default:
			_, _ = w.Write([]byte(text))
		}
	})
	d := &Document{URL: s.url("/catalog.toml"), What: "manifest", MaxBytes: 10}
	for _, step := range []struct {
		text   string
		status int
		asked  string // the tag in the request
		err    string
	}{
		{"first", 200, "", ""},
		{"first", 200, `"first"`, ""},
		{"first", 503, `"first"`, "503"},
		{"second", 200, `"first"`, ""},
		{strings.Repeat("x", 11), 200, `"second"`, "larger than 10 bytes"},
		{"second", 200, `"second"`, ""},
		{"third", 404, `"second"`, "404"},
		{"third", 304, `"second"`, ""},
	} {
		text, status = step.text, step.status
		got, err := s.Document(t.Context(), d)
		if step.status == 304 {
			step.text = "second"
		}
		if step.err == "" && (err != nil || string(got) != step.text) || step.err != "" && (err == nil || !strings.Contains(err.Error(), step.err)) {
			t.Errorf("%+v: %q, %v", step, got, err)
		}
		if asked := s.requests[len(s.requests)-1].Header.Get("If-None-Match"); asked != step.asked {
			t.Errorf("%+v: asked with %s", step, asked)
		}
	}
	// An answer to a question that was not asked.
	status = http.StatusNotModified
	if got, err := s.Document(t.Context(), &Document{URL: s.url("/other.toml"), What: "manifest", MaxBytes: 10}); err == nil {
		t.Errorf("%q", got)
	}
	public := New(Config{})
	defer public.Close()
	if got, err := public.Document(t.Context(), &Document{URL: s.url("/catalog.toml"), What: "manifest", MaxBytes: 10}); err == nil || !strings.Contains(err.Error(), "not a permitted source") {
		t.Errorf("an address that the policy does not allow: %q, %v", got, err)
	}
	for _, bad := range []string{"ftp://host/catalog.toml", "http://ada:pw@host/catalog.toml"} {
		if got, err := s.Document(t.Context(), &Document{URL: bad}); err == nil {
			t.Errorf("%s: %q", bad, got)
		}
	}
}

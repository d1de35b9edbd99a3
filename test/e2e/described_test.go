package e2e

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A described is a row with what the image is.
type described struct {
	row
	Metadata map[string]struct {
		Value any
		From  string
	}
	Publishers []struct {
		List  string
		Match *bool
	}
	Operator map[string]any
}

func (s *Server) described(t testing.TB, sha256 string) (d described, tag string) {
	t.Helper()
	r := s.get(t, "/catalog/images/"+sha256).Must(t, http.StatusOK)
	r.JSON(t, &d)
	return d, r.Header.Get("ETag")
}

func (s *Server) describe(t testing.TB, sha256 string, patch map[string]any, mods ...mod) *Reply {
	t.Helper()
	return s.DoJSON(t, http.MethodPatch, "/catalog/images/"+sha256, patch, append(mods, header("Content-Type", "application/merge-patch+json"))...)
}

// The name that clients see is the first known one, whatever is uploaded later, until the
// operator chooses another.
func TestPrimaryName(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{})
	b := content(1, 5000)
	s.Put(t, "m.img", b)
	s.Put(t, "a.img", b) // sorts first
	primary := func(when, want string) {
		t.Helper()
		eventually(t, within, when, func() error {
			r, _ := s.Row(t, want)
			if l, ok := s.Listed(t, want); !ok || r.Names[0] != want || l.Name != want {
				return fmt.Errorf("the names are %q", r.Names)
			}
			return nil
		})
	}
	primary("uploaded", "m.img")
	s.Restart(t)
	primary("restarted", "m.img")
	for _, name := range []string{"m.img", "a.img"} {
		s.Put(t, name, b)
		s.DoJSON(t, http.MethodPost, "/catalog/hashes", map[string]string{"name": name}).Must(t, http.StatusAccepted)
		s.WaitJobUntil(t, hashes, name, "hashed again", ended)
	}
	primary("uploaded and hashed again", "m.img")
	s.store(t, nil)
	s.Kill(t)
	s.start(t)
	primary("the index was made again", "m.img")

	s.describe(t, sum(b), map[string]any{"name": "other.img"}).Problem(t, []int{http.StatusBadRequest}, "a.img", "m.img")
	s.describe(t, sum(b), map[string]any{"name": "a.img"}).Must(t, http.StatusOK)
	primary("chosen", "a.img")
	s.Restart(t)
	primary("chosen before the restart", "a.img")
	s.Do(t, http.MethodDelete, imageRoute("a.img"), nil).Must(t, http.StatusNoContent)
	primary("the chosen name has gone", "m.img")
	if d, _ := s.described(t, sum(b)); d.Operator["name"] != "a.img" || d.Metadata["name"].From != "" {
		t.Errorf("%+v", d)
	}
}

// Two servers describe an image at once, one of which is killed meanwhile: each change that
// was answered is there, and the catalogs of both agree.
func TestDescribe(t *testing.T) {
	t.Parallel()
	a := Start(t, Options{})
	b := Start(t, Options{Over: a})
	image := content(2, 5000)
	a.Put(t, "debian-12-amd64.img", image)
	b.WaitHashed(t, "debian-12-amd64.img", sum(image))
	d, unsaid := a.described(t, sum(image))
	if d.Metadata["system"].Value != "debian" || d.Metadata["system"].From != "name" || len(d.Operator) != 0 {
		t.Errorf("%+v", d)
	}
	var answered sync.Map // the labels of changes that were answered
	var killing atomic.Bool
	var wg sync.WaitGroup
	for i, s := range []*Server{a, b} {
		wg.Go(func() {
			for n := range 30 {
				label := fmt.Sprintf("%c%d", 'a'+i, n)
				if s == b && n == 10 {
					killing.Store(true)
					b.Kill(t)
				}
				body := strings.NewReader(`{"labels": {"` + label + `": "x"}}`)
				r, err := s.try(http.MethodPatch, "/catalog/images/"+sum(image), body, header("Content-Type", "application/merge-patch+json"))
				switch {
				case err == nil && r.Status == http.StatusOK:
					answered.Store(label, true)
				case s == a || !killing.Load():
					t.Errorf("%s: %v, %v", label, r, err)
				}
			}
		})
	}
	wg.Wait()
	b.start(t)
	d, tag := a.described(t, sum(image))
	labels, _ := d.Metadata["labels"].Value.(map[string]any)
	answered.Range(func(label, _ any) bool {
		if labels[label.(string)] != "x" {
			t.Errorf("the label %s was lost", label)
		}
		return true
	})
	eventually(t, within, "both agree", func() error {
		other, otherTag := b.described(t, sum(image))
		if got, _ := other.Metadata["labels"].Value.(map[string]any); otherTag != tag || len(got) != len(labels) {
			return fmt.Errorf("one has %+v", other)
		}
		return nil
	})
	a.describe(t, sum(image), map[string]any{"title": "Lab"}, header("If-Match", unsaid)).Problem(t, []int{http.StatusPreconditionFailed})
	a.describe(t, sum(image), map[string]any{"title": "Lab"}, header("If-Match", tag)).Must(t, http.StatusOK)
	a.describe(t, sum(image), map[string]any{"title": "\u202e"}).Problem(t, []int{http.StatusUnprocessableEntity}, "title", "U+202E")
	for query, want := range map[string]int{"os=debian&arch=amd64&label=a1": 1, "label=a1%3Dx&q=lab": 1, "label=nothing": 0} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if p := a.catalog(t, q); p.Total != want {
			t.Errorf("%s: %d rows", query, p.Total)
		}
	}
	events := a.Events(t, url.Values{"kind": {"image.described"}})
	if !slices.ContainsFunc(events, func(e event) bool {
		return e.SubjectID == "debian-12-amd64.img" && strings.Contains(e.Summary, "title")
	}) {
		t.Errorf("%+v", events)
	}

	// Another catalog has it from the manifest of this one, and keeps it when the image goes.
	other := Start(t, Options{})
	other.putManifest(t, string(a.get(t, "/catalog.toml", anonymous).Must(t, http.StatusOK).Body)).Must(t, accepted...)
	eventually(t, within, "the other catalog has it", func() error {
		d, _ := other.described(t, sum(image))
		if d.Metadata["title"].Value != "Lab" || d.Metadata["title"].From != "manifest" || d.Metadata["system"].From != "name" || len(d.Publishers) != 1 {
			return fmt.Errorf("%+v", d)
		}
		return nil
	})
	a.Do(t, http.MethodDelete, imageRoute("debian-12-amd64.img"), nil).Must(t, http.StatusNoContent)
	a.get(t, "/catalog/images/"+sum(image)).Must(t, http.StatusNotFound)
	a.Put(t, "back.img", image)
	if d, _ := a.described(t, sum(image)); d.Metadata["title"].Value != "Lab" {
		t.Errorf("%+v", d)
	}
}

package pages

import (
	"maps"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/problem"
	"imageroot/shared/web"
	"imageroot/templates"
)

// isPage reports whether a path, with its query, is a page to return to after
// logging in. It prevents open redirects by a link to the log-in.
func isPage(next string) bool {
	const most = 2048 // the form sends it with the password
	if len(next) > most || strings.ContainsAny(next, "\\\r\n\t") {
		return false // browsers differ in how they read these
	}
	u, err := url.Parse(next)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" {
		return false
	}
	switch u.Path {
	case imagesPath, eventsPath, tokensPath, confirmPath:
		return true
	}
	return false
}

// pageOr returns next if it is a page, or else the page of images.
func pageOr(next string) string {
	if isPage(next) {
		return next
	}
	return imagesPath
}

func (p *Pages) loginForm(w http.ResponseWriter, r *http.Request) error {
	next := pageOr(r.URL.Query().Get("next"))
	if p.signedIn(r) {
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	return p.showLogin(w, r, http.StatusOK, next, "")
}

func (p *Pages) showLogin(w http.ResponseWriter, r *http.Request, status int, next, failure string) error {
	return p.show(w, r, status, templates.Login{
		Frame: templates.Frame{Title: "Log in", Version: p.Version, Notice: web.TakeNotice(w, r)}, Next: next, Error: failure,
	})
}

func (p *Pages) login(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		Password string `json:"password"`
		Next     string `json:"next"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return err
	}
	next := pageOr(in.Next)
	err := p.Auth.Login(w, r, in.Password)
	if err == nil {
		p.Activity.ByOperator(r, activity.LoginSucceeded, activity.Operator, "logged in", nil)
		if !web.WantsPage(r) {
			w.WriteHeader(http.StatusNoContent)
			return nil
		}
		http.Redirect(w, r, next, http.StatusSeeOther)
		return nil
	}
	e := problem.From(err)
	if e.Code == problem.Unauthorized && p.failures.due(web.ClientIP(r), p.Now()) {
		p.Activity.ByOperator(r, activity.LoginFailed, activity.Operator, "log-in with a wrong password", nil)
	}
	if !web.WantsPage(r) || e.Code == problem.Internal {
		return err
	}
	return p.showLogin(w, r, problem.Prepare(w, e), next, e.Detail)
}

// failures limits what clients without the password write to the activity: wrong
// passwords from one address are logged once a minute. It is safe for concurrent
// use.
type failures struct {
	mu     sync.Mutex
	logged map[string]time.Time
}

// due reports whether to log a failure from an address now.
func (f *failures) due(from string, now time.Time) bool {
	const again, most = time.Minute, 1000
	f.mu.Lock()
	defer f.mu.Unlock()
	maps.DeleteFunc(f.logged, func(_ string, at time.Time) bool { return now.Sub(at) >= again })
	if _, ok := f.logged[from]; ok || len(f.logged) >= most {
		return false
	}
	if f.logged == nil {
		f.logged = map[string]time.Time{}
	}
	f.logged[from] = now
	return true
}

// logout answers POST /ui/logout. It needs no session.
func (p *Pages) logout(w http.ResponseWriter, r *http.Request) error {
	was := p.signedIn(r)
	if err := p.Auth.Logout(w, r); err != nil {
		return err
	}
	if was {
		p.Activity.ByOperator(r, activity.Logout, activity.Operator, "logged out", nil)
	}
	http.Redirect(w, r, loginPath, http.StatusSeeOther)
	return nil
}

// Package pages serves the pages of the catalog, for operators with a browser.
package pages

import (
	"context"
	"net/http"
	"net/url"
	"strconv"

	"imageroot/functions/catalog"
	"imageroot/shared/problem"
	"imageroot/shared/visible"
	"imageroot/shared/web"
	"imageroot/templates"
)

// Pages shows the catalog of a [catalog.Function]. All fields are required. It
// is safe for concurrent use.
type Pages struct {
	*catalog.Function
	// Location is the image root as a URL: s3://images/.
	Location string
	// S3Endpoint is the URL of the S3 server for clients on other machines. If it
	// has no host (":9000") or an unspecified address, the host of the client's
	// request is used. It is "" on AWS.
	S3Endpoint string
	// Address is the HOST:PORT of this server for machines on its network, or "" if it is
	// unknown. Commands have it if the page was opened on this machine.
	Address string
	// NBDPort is the port of the NBD exports, or 0 if there are none.
	NBDPort int

	kept     kept
	failures failures
}

// Routes returns the routes of the pages and of what they load.
func (p *Pages) Routes() []web.Route {
	return []web.Route{
		{Pattern: "GET /{$}", Access: web.Always, Handle: p.front},
		{Pattern: "GET /static/{file...}", Access: web.Always, Handle: p.static, Quiet: true},

		{Pattern: "GET " + loginPath, Access: web.Always, Handle: p.loginForm},
		{Pattern: "POST " + loginPath, Access: web.Always, Handle: p.login},
		{Pattern: "POST " + prefix + "logout", Access: web.Always, Handle: p.logout},

		{Pattern: "GET " + prefix + "{$}", Access: web.Page, Handle: p.front},
		{Pattern: "GET " + imagesPath, Access: web.Page, Handle: p.images},
		{Pattern: "GET " + livePath, Access: web.Page, Handle: p.live, Quiet: true},
		{Pattern: "GET " + confirmPath, Access: web.Page, Handle: p.confirm},
		{Pattern: "GET " + imagesPath + "/{key}", Access: web.Page, Handle: p.image},
		{Pattern: "GET " + imagesPath + "/{key}/live", Access: web.Page, Handle: p.liveImage, Quiet: true},
		{Pattern: "GET " + addPath, Access: web.Page, Handle: p.add},
		{Pattern: "GET " + stripPath, Access: web.Page, Handle: p.liveStrip, Quiet: true},
		{Pattern: "GET " + eventsPath, Access: web.Page, Handle: p.eventsPage},
		{Pattern: "GET " + tokensPath, Access: web.Page, Handle: p.tokens},
		{Pattern: "POST " + tokensPath, Access: web.Admin, Handle: p.makeToken},
	}
}

// The paths of the pages.
const (
	prefix      = "/ui/"
	imagesPath  = prefix + "images"
	livePath    = imagesPath + "/live"
	confirmPath = imagesPath + "/confirm"
	addPath     = prefix + "add"
	stripPath   = prefix + "live"
	eventsPath  = prefix + "events"
	tokensPath  = prefix + "tokens"
	loginPath   = prefix + "login"
)

// Places returns the paths of the pages for package web.
func (p *Pages) Places() web.Pages {
	return web.Pages{Prefix: prefix, Home: imagesPath, Login: loginPath}
}

func (p *Pages) front(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, imagesPath, http.StatusSeeOther)
	return nil
}

func (p *Pages) static(w http.ResponseWriter, r *http.Request) error {
	if !templates.ServeStatic(w, r, r.PathValue("file")) {
		return problem.New(problem.NotFound, "there is no such file")
	}
	return nil
}

// policy returns the Content-Security-Policy of pages: nothing inline, nothing
// from other hosts. Parts of uploads go to this server or to the store.
func (p *Pages) policy(ctx context.Context) (string, error) {
	connect := "'self'"
	if p.ImageLinks != nil {
		link, err := p.ImageLinks.PresignPut(ctx, "any", "", false)
		if err != nil {
			return "", err
		}
		u, err := url.Parse(link)
		if err != nil {
			return "", err
		}
		connect += " " + u.Scheme + "://" + u.Host
	}
	return "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src " + connect +
		"; form-action 'self'; base-uri 'none'; frame-ancestors 'none'", nil
}

// frame returns the frame of a page for a client that is logged in.
func (p *Pages) frame(w http.ResponseWriter, r *http.Request, title, here string) templates.Frame {
	return templates.Frame{Title: title, Version: p.Version, Here: here, SignedIn: true, Notice: web.TakeNotice(w, r)}
}

// show answers with a page.
func (p *Pages) show(w http.ResponseWriter, r *http.Request, status int, v templates.View) error {
	body, err := templates.Render(v)
	if err != nil {
		return err
	}
	policy, err := p.policy(r.Context())
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // the client may have left
	}
	return nil
}

// signedIn reports whether a request is one for which the pages are.
func (p *Pages) signedIn(r *http.Request) bool {
	caller, err := p.Auth.Authenticate(r)
	return err == nil && caller.Access >= web.Page
}

// ErrorPage answers with a page about a problem. It is for the ErrorPage of
// [web.Config].
func (p *Pages) ErrorPage(w http.ResponseWriter, r *http.Request, e *problem.Error, status int) {
	signedIn := e.Code != problem.Unauthorized && p.signedIn(r)
	if signedIn && isAddForm(r) {
		// Show the form again, with its values.
		add := templates.Add{
			ImageURL: r.PostForm.Get("image_url"), Name: r.PostForm.Get("name"), SHAURL: r.PostForm.Get("sha_url"), SHA256: r.PostForm.Get("sha256"),
			Refresh: r.PostForm.Get("refresh") == "true", Error: e.Detail,
		}
		if p.showAdd(w, r, status, add) == nil {
			return
		}
	}
	page := templates.Problem{
		Frame:  templates.Frame{Title: http.StatusText(status), Version: p.Version, SignedIn: signedIn},
		Status: status, Text: http.StatusText(status), Detail: e.Detail,
		RequestID: w.Header().Get(problem.RequestIDHeader), Back: backFrom(r), Login: e.Code == problem.Unauthorized,
	}
	if err := p.show(w, r, status, page); err != nil {
		p.Log.Error("cannot show the page of a problem", "error", err)
		http.Error(w, visible.Text(e.Detail), status)
	}
}

func isAddForm(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Path == "/catalog/entries" && r.PostForm.Has("image_url")
}

// backFrom returns the page to return to after a problem: the one that led to it,
// if it is another page of this server.
func backFrom(r *http.Request) string {
	u, err := url.Parse(r.Referer())
	if err != nil || u.Host != r.Host || u.RequestURI() == r.URL.RequestURI() {
		return imagesPath
	}
	return pageOr(u.RequestURI())
}

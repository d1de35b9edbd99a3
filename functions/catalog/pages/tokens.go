package pages

import (
	"net/http"
	"net/url"

	"imageroot/shared/auth"
	"imageroot/shared/problem"
	"imageroot/shared/web"
	"imageroot/templates"
)

// scopeWords are the scopes as people say them.
var scopeWords = map[auth.Scope]string{
	auth.ScopeRead: "read: images and documents", auth.ScopeUpload: "upload: read, and add images", auth.ScopeOperate: "operate: everything but tokens",
}

func (p *Pages) tokens(w http.ResponseWriter, r *http.Request) error {
	return p.showTokens(w, r, http.StatusOK, templates.Tokens{})
}

// makeToken answers the form of the page with the page, which has the token. A redirect would
// have to keep it somewhere.
func (p *Pages) makeToken(w http.ResponseWriter, r *http.Request) error {
	token, t, err := p.AddToken(w, r)
	if err == nil {
		return p.showTokens(w, r, http.StatusCreated, templates.Tokens{New: &templates.NewToken{Name: t.Name, Token: token}})
	}
	e := problem.From(err)
	if !web.WantsPage(r) || e.Code == problem.Internal {
		return err
	}
	return p.showTokens(w, r, problem.Prepare(w, e), templates.Tokens{Name: r.PostForm.Get("name"), Error: e.Detail})
}

func (p *Pages) showTokens(w http.ResponseWriter, r *http.Request, status int, page templates.Tokens) error {
	all, err := p.Tokens(r)
	if err != nil {
		return err
	}
	page.Frame = p.frame(w, r, "Tokens of machines", "tokens")
	for _, scope := range auth.Scopes() {
		page.Scopes = append(page.Scopes, templates.Option{Value: string(scope), Text: scopeWords[scope], Selected: r.PostForm.Get("scope") == string(scope)})
	}
	now := p.Now()
	for _, t := range all {
		v := templates.Token{Name: t.Name, Scope: string(t.Scope), Made: timeOf(t.CreatedAt, now), Revoke: "/tokens/" + url.PathEscape(t.Name) + "?_method=DELETE"}
		if t.LastUsedAt != nil {
			used := timeOf(*t.LastUsedAt, now)
			v.Used = &used
		}
		page.Tokens = append(page.Tokens, v)
	}
	return p.show(w, r, status, page)
}

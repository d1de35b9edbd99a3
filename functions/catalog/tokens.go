package catalog

import (
	"net/http"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/web"
)

// A Token is a token of a machine in the API.
type Token struct {
	Name       string     `json:"name"`
	Scope      auth.Scope `json:"scope"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"` // to within an hour
}

// Tokens returns the tokens of machines, sorted by name.
func (f *Function) Tokens(r *http.Request) ([]Token, error) {
	all, used, err := f.Auth.Tokens(r.Context())
	list := make([]Token, len(all))
	for i, t := range all {
		list[i] = Token{t.Name, t.Scope, t.CreatedAt, nil}
		if at, ok := used[t.SHA256]; ok {
			list[i].LastUsedAt = &at
		}
	}
	return list, err
}

func (f *Function) listTokens(w http.ResponseWriter, r *http.Request) error {
	list, err := f.Tokens(r)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusOK, map[string]any{"tokens": list})
}

// AddToken makes the token that a request describes, and returns it with its description.
func (f *Function) AddToken(w http.ResponseWriter, r *http.Request) (string, auth.Token, error) {
	var in struct {
		Name  string     `json:"name"`
		Scope auth.Scope `json:"scope"`
	}
	if err := web.Decode(w, r, &in); err != nil {
		return "", auth.Token{}, err
	}
	token, t, err := f.Auth.AddToken(r.Context(), in.Name, in.Scope)
	if err == nil {
		f.Activity.ByOperator(r, activity.TokenAdded, t.Name, "made the token "+t.Name, map[string]any{"scope": t.Scope})
	}
	return token, t, err
}

func (f *Function) addToken(w http.ResponseWriter, r *http.Request) error {
	token, t, err := f.AddToken(w, r)
	if err != nil {
		return err
	}
	return web.JSON(w, http.StatusCreated, struct {
		Token
		Secret string `json:"token"`
	}{Token{t.Name, t.Scope, t.CreatedAt, nil}, token})
}

func (f *Function) removeToken(w http.ResponseWriter, r *http.Request) error {
	t, err := f.Auth.RemoveToken(r.Context(), r.PathValue("name"))
	if err != nil {
		return err
	}
	f.Activity.ByOperator(r, activity.TokenDeleted, t.Name, "revoked the token "+t.Name, map[string]any{"scope": t.Scope})
	return web.Answer(w, r, http.StatusNoContent, nil, "the token "+t.Name+" was revoked")
}

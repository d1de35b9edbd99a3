package catalog

import (
	"net/http"

	"imageroot/shared/problem"
	"imageroot/shared/web"
)

// pages are the routes of what people look at.
func (f *Function) pages() []web.Route {
	return []web.Route{
		{Pattern: "GET /{$}", Access: web.Always, Handle: f.front},
	}
}

func (f *Function) front(w http.ResponseWriter, r *http.Request) error {
	http.Redirect(w, r, "/ui/images", http.StatusSeeOther)
	return nil
}

// ErrorPage shows a problem to a person. It is web.Config.ErrorPage.
func (f *Function) ErrorPage(w http.ResponseWriter, _ *http.Request, e *problem.Error, status int) {
	http.Error(w, e.Detail, status)
}

package contract

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"imageroot/functions/addbyurl"
	"imageroot/functions/catalog"
	"imageroot/functions/catalog/pages"
	"imageroot/functions/exports"
	"imageroot/functions/fetch"
	"imageroot/functions/hash"
	"imageroot/functions/upload"
	"imageroot/functions/withcache"
	"imageroot/shared/hook"
	"imageroot/shared/web"
)

// forPeople are the routes of the pages, which the file omits.
var forPeople = []string{
	"GET /{$}", "GET /static/{file...}", "GET /ui/login", "GET /ui/{$}", "GET /ui/images", "GET /ui/images/live",
	"GET /ui/images/confirm", "GET /ui/images/{key}", "GET /ui/images/{key}/live", "GET /ui/add", "GET /ui/live", "GET /ui/events", "GET /ui/tokens", "POST /ui/tokens",
}

// tables are the functions' routes.
func tables() [][]web.Route {
	return [][]web.Route{
		new(upload.Function).Routes(), new(catalog.Function).Routes(), new(addbyurl.Function).Routes(),
		new(hash.Function).Routes(), new(fetch.Function).Routes(), new(exports.Function).Routes(), new(withcache.Function).Routes(), new(hook.Hook).Routes(), new(pages.Pages).Routes(),
	}
}

// TestRoutes tests that the file has all routes, with their access.
func TestRoutes(t *testing.T) {
	d := load(t)
	routes := runnerRoutes(t)
	for _, table := range tables() {
		for _, r := range table {
			routes[r.Pattern] = r.Access
		}
	}
	for _, p := range forPeople {
		if _, ok := routes[p]; !ok {
			t.Errorf("%s is listed as a page and is no route", p)
		}
		delete(routes, p)
	}
	inFile := map[string]*operation{}
	for _, op := range d.operations() {
		inFile[op.method+" "+shape(op.path)] = op
	}
	for pattern, access := range routes {
		op, ok := inFile[shape(pattern)]
		if !ok {
			t.Errorf("%s is not in docs/openapi.yaml", pattern)
			continue
		}
		if got := accessOf(t, d, op); got != access {
			t.Errorf("%s: the security in docs/openapi.yaml is that of access %d, the route's is %d", pattern, got, access)
		}
		delete(inFile, shape(pattern))
		head := strings.Replace(shape(pattern), "GET ", "HEAD ", 1) // which ServeMux serves by itself
		if op, ok := inFile[head]; ok && accessOf(t, d, op) != access {
			t.Errorf("%s: its security is not that of GET", op.id)
		}
		delete(inFile, head)
	}
	for _, id := range slices.Sorted(maps.Keys(inFile)) {
		t.Errorf("%s is in docs/openapi.yaml and is no route", id)
	}
}

// accessOf returns the access that the security of an operation requires.
func accessOf(t *testing.T, d *document, op *operation) web.Access {
	t.Helper()
	security, own := op.object["security"].([]any)
	if !own {
		security = list(d.root, "security")
	}
	schemes := map[string]bool{}
	for _, s := range security {
		if len(s.(object)) == 0 {
			schemes[""] = true
		}
		for name, scopes := range s.(object) {
			schemes[strings.TrimSpace(name+" "+fmt.Sprint(scopes.([]any)...))] = true
		}
	}
	access := map[string]web.Access{
		"": web.Always, ", basicToken read, bearerToken read, sessionCookie": web.Open, "basicToken admin, bearerToken admin, sessionCookie": web.Admin,
		"basicToken read, bearerToken read, sessionCookie": web.Read, "basicToken upload, bearerToken upload, sessionCookie": web.Upload,
		"basicToken operate, bearerToken operate, sessionCookie": web.Operator,
	}
	got, ok := access[strings.Join(slices.Sorted(maps.Keys(schemes)), ", ")]
	if !ok {
		t.Fatalf("%s: the security %q", op.id, slices.Sorted(maps.Keys(schemes)))
	}
	return got
}

// runnerRoutes reads the routes that the runner adds from its source, since
// package main cannot be imported.
func runnerRoutes(t *testing.T) map[string]web.Access {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../local/wire.go", nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]web.Access{"Always": web.Always, "Open": web.Open, "Read": web.Read, "Operator": web.Operator, "Page": web.Page}
	routes := map[string]web.Access{}
	ast.Inspect(f, func(n ast.Node) bool {
		lit, ok := n.(*ast.CompositeLit)
		if !ok {
			return true
		}
		pattern, access := "", web.Access(-1)
		for _, e := range lit.Elts {
			kv, ok := e.(*ast.KeyValueExpr)
			if !ok {
				continue
			}
			switch v := kv.Value.(type) {
			case *ast.BasicLit:
				if isNamed(kv.Key, "Pattern") {
					pattern, _ = strconv.Unquote(v.Value)
				}
			case *ast.SelectorExpr:
				if a, ok := names[v.Sel.Name]; ok && isNamed(kv.Key, "Access") {
					access = a
				}
			}
		}
		if pattern != "" {
			routes[pattern] = access
		}
		return true
	})
	if len(routes) == 0 {
		t.Fatal("no route was found in the runner")
	}
	return routes
}

func isNamed(e ast.Expr, name string) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == name
}

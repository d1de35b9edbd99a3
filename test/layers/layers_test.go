// Package layers tests that packages import only what ARCHITECTURE.md allows.
package layers

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"imageroot/shared/source/scheme"
)

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
}

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Dir,GoFiles,Imports", "imageroot/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "imageroot/")
		all = append(all, p)
	}
}

func TestImports(t *testing.T) {
	// Only the packages in a list may import its key.
	only := map[string][]string{
		"github.com/aws/aws-sdk-go-v2":  {"shared/store/s3store", "shared/queue/sqsqueue", "shared/cloud", "local/gateway"},
		"github.com/versity/versitygw":  {"local/gateway"},
		"oras.land/oras-go":             {"shared/source"},
		"github.com/minio/minio-go":     {"shared/listen"},
		"imageroot/shared/listen":       {"local", "local/doctor"},
		"imageroot/shared/hook":         {"local"},
		"github.com/pelletier/go-toml":  {"shared/manifest", "client"},
		"github.com/spf13/cobra":        {"client"},
		"github.com/vbauerster/mpb":     {"client/progress"},
		"imageroot/client":              {"local", "client", "client/api", "client/flash"},
		"github.com/klauspost/compress": {"shared/content", "shared/disk", "shared/index", "shared/guest", "shared/unpack", "functions/catalog"},
		"github.com/prometheus":         {"shared/metric"},
		"golang.org/x/crypto/argon2":    {"shared/auth"},
		"imageroot/shared/store/mem":    {},
		"imageroot/shared/store/fault":  {},
		"imageroot/shared/queue/mem":    {"local"},
		"imageroot/shared/queue/sqs":    {"shared/cloud", "shared/lambda"},
		"imageroot/shared/lambda":       {"shared/cloud"},
		"imageroot/shared/job":          {"functions/catalog/pages", "functions/fetch", "functions/hash", "functions/exports", "functions/withcache", "functions/upload", "local", "shared/cloud", "shared/inventory", "shared/kit"},
		"imageroot/shared/cloud":        {}, // Lambda entries only
		"imageroot/templates":           {"functions/catalog/pages"},
		"imageroot/local":               {"local", "local/doctor"},
		"imageroot/functions/upload":    {"local"},
		"imageroot/functions/catalog":   {"local", "functions/catalog", "functions/catalog/pages"},
		"imageroot/functions/catalog/f": {"functions/catalog"},
		"imageroot/functions/addbyurl":  {"local"},
		"imageroot/functions/hash":      {"local"},
		"imageroot/functions/fetch":     {"local"},
		"imageroot/functions/exports":   {"local"},
		"imageroot/functions/withcache": {"local"},
		"imageroot/shared/config":       {"client", "local", "local/doctor", "shared/cloud", "shared/kit", "shared/kit/sources"},
		"imageroot/shared/kit":          {"local", "shared/cloud", "shared/kit/sources"},
		"imageroot/shared/store/s3stor": {"local", "local/doctor", "shared/cloud"},
		"imageroot/shared/store/probe":  {"local", "local/doctor"},
	}
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "test/") {
			continue
		}
		for _, imported := range p.Imports {
			for prefix, allowed := range only {
				if !strings.HasPrefix(imported, prefix) || imported == "imageroot/"+p.ImportPath {
					continue
				}
				ok := false
				for _, a := range allowed {
					// A Lambda entry is beside its function.
					ok = ok || p.ImportPath == a
				}
				ok = ok || strings.HasPrefix(p.ImportPath, "functions/") && strings.HasSuffix(p.ImportPath, "/lambda")
				if !ok {
					t.Errorf("%s imports %s", p.ImportPath, imported)
				}
			}
		}
	}
}

// TestLambdas tests that a Lambda function's binary links only its own
// function, and nothing that only the runner needs.
func TestLambdas(t *testing.T) {
	functions := []string{"upload", "catalog", "addbyurl", "hash", "fetch"}
	for _, f := range functions {
		cmd := exec.Command("go", "list", "-deps", "-tags", "lambda.norpc", "imageroot/functions/"+f+"/lambda")
		cmd.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		banned := []string{
			"imageroot/local", "imageroot/shared/queue/memqueue", "imageroot/shared/store/memstore", "imageroot/shared/store/faultstore", "imageroot/test",
			"github.com/versity/versitygw", "github.com/chromedp", "github.com/minio", "github.com/gofiber", "github.com/fsnotify", "net/rpc",
		}
		for _, other := range functions {
			if other != f {
				banned = append(banned, "imageroot/functions/"+other)
			}
		}
		if f != "catalog" {
			banned = append(banned, "imageroot/templates")
		}
		if f != "addbyurl" && f != "fetch" {
			banned = append(banned, "oras.land")
		}
		for dep := range strings.FieldsSeq(string(out)) {
			for _, b := range banned {
				if dep == b || strings.HasPrefix(dep, b+"/") {
					t.Errorf("the %s function has %s in it", f, dep)
				}
			}
		}
	}
}

// TestSchemes tests that only package source names the schemes of sources.
// Other packages use it, or its table.
func TestSchemes(t *testing.T) {
	var names []string
	for _, s := range scheme.All {
		if s.Name != "http" && s.Name != "https" { // not only schemes of sources
			names = append(names, regexp.QuoteMeta(s.Name))
		}
	}
	named := regexp.MustCompile(`\b(` + strings.Join(names, "|") + `)\b`)
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "test/") || strings.HasPrefix(p.ImportPath, "shared/source") {
			continue
		}
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING && named.MatchString(lit.Value) {
					t.Errorf("%s: %s names a scheme: ask shared/source, or its table shared/source/scheme", fset.Position(lit.Pos()), lit.Value)
				}
				return true
			})
		}
	}
}

// TestCalls tests that the environment is read in one place, the clock is
// injected, only one package runs jobs, and the client of sources is configured
// once.
func TestCalls(t *testing.T) {
	banned := map[string][]string{ // call to the packages that may make it
		"os.Getenv":    {"shared/config"},
		"os.LookupEnv": {"shared/config"},
		"os.Environ":   {"shared/config"},
		"time.Sleep":   {},
		// The end of a job and the fenced publish are written once, in the runner. A
		// checkpoint of the index is fenced by its lease.
		"record.Swap": {"shared/job", "shared/index", "functions/upload"},
		"source.New":  {"shared/kit/sources"},
		".JobEnded":   {"shared/job"}, // a method
	}
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "test/") || p.ImportPath == "shared/store/storetest" {
			continue
		}
		for _, name := range p.GoFiles {
			path := filepath.Join(p.Dir, name)
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			fset := token.NewFileSet()
			file, err := parser.ParseFile(fset, path, src, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(file, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				call := "." + sel.Sel.Name
				if x, ok := sel.X.(*ast.Ident); ok && banned[call] == nil {
					call = x.Name + call
				}
				allowed, ok := banned[call]
				if !ok {
					return true
				}
				for _, a := range allowed {
					if a == p.ImportPath {
						return true
					}
				}
				t.Errorf("%s: %s", fset.Position(n.Pos()), call)
				return true
			})
		}
	}
}

package main

import (
	"regexp"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	const (
		passed  = `{"Action":"pass","Package":"p","Test":"TestGood"}` + "\n"
		failed  = `{"Action":"fail","Package":"p","Test":"TestBad"}` + "\n"
		skipped = `{"Action":"output","Package":"p","Test":"TestSkipped","Output":"    x_test.go:1: plain files are a matter of the gateway\n"}` + "\n" +
			`{"Action":"skip","Package":"p","Test":"TestSkipped"}` + "\n"
	)
	for _, tt := range []struct {
		name, in string
		may      string
		ok       bool
	}{
		{"passed", passed, "", true},
		{"failed", passed + failed, "", false},
		{"nothing ran", "", "", false},
		{"a package failed", passed + `{"Action":"fail","Package":"p"}` + "\n", "", false},
		{"a build failed", passed + "x.go:1: undefined\n", "", false},
		{"skipped", passed + skipped, "", false},
		{"skipped for that reason", passed + skipped, "plain files", true},
		{"skipped for another reason", passed + skipped, "gigabytes", false},
		{"skipped and failed", passed + skipped + failed, "plain files", false},
		{"all skipped", skipped, "plain files", false},
	} {
		var may *regexp.Regexp
		if tt.may != "" {
			may = regexp.MustCompile(tt.may)
		}
		var out strings.Builder
		if ok, err := run(strings.NewReader(tt.in), &out, may); err != nil || ok != tt.ok {
			t.Errorf("%s: %v, %v\n%s", tt.name, ok, err, out.String())
		}
		if !strings.Contains(out.String(), " failed, ") {
			t.Errorf("%s: no counts:\n%s", tt.name, out.String())
		}
	}
}

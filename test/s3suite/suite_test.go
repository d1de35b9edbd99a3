// Package s3suite runs versitygw's own integration suite against the gateway
// inside. The suite is part of the module that the gateway uses.
package s3suite

import (
	_ "embed"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/versity/versitygw/tests/integration"

	"imageroot/local/gateway"
)

// exceptions lists tests that fail by design, under their reasons.
//
//go:embed exceptions.txt
var exceptions string

// TestSuite runs every test of the suite. A test that is not in the list must
// pass, and one in it must fail, unless the list leaves it out.
func TestSuite(t *testing.T) {
	t.Setenv("AWS_CA_BUNDLE", "") // the suite's HTTP client ignores it
	const access, secret, region = "SUITEACCESSKEY", "suite-secret-key", "us-east-1"
	g, err := gateway.Start(t.Context(), gateway.Config{
		Listen: "127.0.0.1:0", Dir: t.TempDir(), AccessKey: access, SecretKey: secret,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = g.Close() })
	conf := integration.NewS3Conf(
		integration.WithAccess(access), integration.WithSecret(secret), integration.WithRegion(region),
		integration.WithEndpoint("http://"+g.Addr()), integration.WithPartSize(5<<20), integration.WithConcurrency(1))

	tests := integration.GetIntTests()
	leftOut, failing := parse(t, slices.Sorted(maps.Keys(tests)))
	// Failed tests leave buckets, which other tests would see.
	var last []string
	for _, name := range slices.Sorted(maps.Keys(tests)) {
		switch {
		case leftOut[name] != "":
		case failing[name] != "":
			last = append(last, name)
		default:
			t.Run(name, func(t *testing.T) {
				if err := run(tests[name], conf); err != nil {
					t.Error(err)
				}
			})
		}
	}
	for _, name := range last {
		t.Run(name, func(t *testing.T) {
			if run(tests[name], conf) == nil {
				t.Errorf("it passes; take it out of exceptions.txt, where it is under %q", failing[name])
			}
		})
	}
}

// run runs a test of the suite. Some tests panic instead of failing.
func run(test integration.IntTest, conf *integration.S3Conf) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return test(conf)
}

// parse reads the list of exceptions. It maps names to reasons.
func parse(t *testing.T, names []string) (leftOut, failing map[string]string) {
	t.Helper()
	leftOut, failing = map[string]string{}, map[string]string{}
	reason := ""
	for line := range strings.Lines(exceptions) {
		line = strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(line, "# "); ok {
			reason = text
			continue
		}
		if line == "" {
			reason = ""
			continue
		}
		if reason == "" {
			t.Fatalf("exceptions.txt gives no reason for %q", line)
		}
		into, pattern := failing, line
		if out, ok := strings.CutPrefix(line, "not run: "); ok {
			into, pattern = leftOut, out
		}
		known := false
		for _, name := range names {
			if ok, err := path.Match(pattern, name); err != nil {
				t.Fatal(err)
			} else if ok {
				known, into[name] = true, reason
			}
		}
		if !known {
			t.Errorf("exceptions.txt has %q, and the suite no such test", line)
		}
	}
	return leftOut, failing
}

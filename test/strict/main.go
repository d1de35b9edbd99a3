// Command strict reads the output of go test -json and prints it as go test
// does. It fails if a test failed, if none passed, or if one was skipped: a
// machine without a program that a test needs must not pass. With -may-skip, a
// test may be skipped if its output, which has the reason, matches an
// expression.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

func main() {
	maySkip := flag.String("may-skip", "", "regular `expression` for the output of tests that may be skipped")
	flag.Parse()
	var may *regexp.Regexp
	if *maySkip != "" {
		var err error
		if may, err = regexp.Compile(*maySkip); err != nil {
			fmt.Fprintln(os.Stderr, "strict:", err)
			os.Exit(2)
		}
	}
	ok, err := run(os.Stdin, os.Stdout, may)
	if err != nil {
		fmt.Fprintln(os.Stderr, "strict:", err)
		os.Exit(2)
	}
	if !ok {
		os.Exit(1)
	}
}

// run reports whether the tests passed. If may is nil, no test may be skipped.
func run(r io.Reader, w io.Writer, may *regexp.Regexp) (bool, error) {
	output := map[string][]string{} // by test, until it has passed
	counts := map[string]int{}
	var skipped, failed []string
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Fprintln(w, in.Text()) // a failed build
			failed = append(failed, "build")
			continue
		}
		name := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Test == "" {
				if e.Output != "PASS\n" && !strings.HasPrefix(e.Output, "? ") {
					fmt.Fprint(w, e.Output)
				}
			} else {
				output[name] = append(output[name], e.Output)
			}
			continue
		case "pass", "skip", "fail":
		case "build-fail":
			failed = append(failed, "build of "+e.Package)
			continue
		default:
			continue
		}
		if e.Test == "" {
			if e.Action == "fail" {
				failed = append(failed, e.Package)
			}
			continue
		}
		counts[e.Action]++
		said := strings.Join(output[name], "")
		delete(output, name)
		switch {
		case e.Action == "pass" || e.Action == "skip" && may != nil && may.MatchString(said):
			continue
		case e.Action == "skip":
			skipped = append(skipped, name)
		default:
			failed = append(failed, name)
		}
		fmt.Fprint(w, said)
	}
	if err := in.Err(); err != nil {
		return false, err
	}
	slices.Sort(skipped)
	for _, s := range skipped {
		fmt.Fprintln(w, "SKIPPED, which counts as failed here:", s)
	}
	for _, f := range failed {
		fmt.Fprintln(w, "FAILED:", f)
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", counts["pass"], counts["fail"], counts["skip"])
	return len(skipped) == 0 && len(failed) == 0 && counts["pass"] > 0, nil
}

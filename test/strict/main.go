// Command strict reads what go test -json prints and shows it as go test
// would. It fails where a test failed, and where one was skipped: a machine
// that lacks what a test needs must not pass for one where it passed. With
// -may-skip, those may be skipped whose output matches an expression: what
// says why, not who they are.
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
	maySkip := flag.String("may-skip", "", "regular `expression` of what a test that may be skipped says")
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

// run returns whether all is well. A nil may lets no test be skipped.
func run(r io.Reader, w io.Writer, may *regexp.Regexp) (bool, error) {
	output := map[string][]string{} // by test, until it has passed
	counts := map[string]int{}
	var skipped, failed []string
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20)
	for in.Scan() {
		var e event
		if err := json.Unmarshal(in.Bytes(), &e); err != nil {
			fmt.Fprintln(w, in.Text()) // a build that failed
			failed = append(failed, "build")
			continue
		}
		name := e.Package + " " + e.Test
		switch e.Action {
		case "output", "build-output":
			if e.Test == "" {
				fmt.Fprint(w, e.Output)
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
		if e.Action != "pass" {
			fmt.Fprint(w, said)
		}
		delete(output, name)
		switch e.Action {
		case "skip":
			if may == nil || !may.MatchString(said) {
				skipped = append(skipped, name)
			}
		case "fail":
			failed = append(failed, name)
		}
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

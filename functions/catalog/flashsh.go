package catalog

import (
	_ "embed"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"imageroot/shared/problem"
	"imageroot/shared/visible"
	"imageroot/shared/web"
)

// flashScript is the script of GET /flash.sh, with serverMark in place of the server's URL.
//
//go:embed flash.sh
var flashScript string

const serverMark = "@SERVER@"

// shellURLs matches the URLs that the script may have in it: none has a character that ends
// a string in single quotes, or starts anything in a shell.
var shellURLs = regexp.MustCompile(`^https?://[A-Za-z0-9._:\[\]-]{1,300}$`)

// flash answers GET /flash.sh: the script, or with a name what the script needs to know
// of that image.
func (f *Function) flash(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	var offset int64
	if from := q.Get("from"); from != "" {
		var err error
		if offset, err = strconv.ParseInt(from, 10, 64); err != nil || offset < 0 {
			return problem.New(problem.Invalid, "from must be a number of bytes")
		}
	}
	if q.Has("name") {
		return f.flashState(w, r, q.Get("name"), offset)
	}
	server := web.BaseURL(r)
	if !shellURLs.MatchString(server) {
		return problem.New(problem.Invalid, "the URL of this server has characters that the script cannot have in it: set IMAGEROOT_PUBLIC_URL")
	}
	return sendText(w, r, strings.Replace(flashScript, serverMark, server, 1))
}

// A disk's state for the script, in the answer's line "state".
const (
	flashReady = "ready" // to be downloaded; more lines say what
	flashWait  = "wait"  // to be asked for again; the line "reason" says why
	flashFail  = "fail"  // never; the line "reason" says why
)

// flashState answers whether the disk in an image can be downloaded from an offset on, as
// lines of a word and a text. The status is 200 also if it cannot, since the wget of
// BusyBox shows no other answer, neither its head nor its body.
func (f *Function) flashState(w http.ResponseWriter, r *http.Request, name string, offset int64) error {
	var lines string
	err := f.withObject(r.Context(), name, f.findDisk, func(c *object) (err error) {
		if err = c.Unchanged(r.Context()); err == nil {
			lines, err = f.flashLines(r, c, offset)
		}
		return err
	})
	switch p := problem.From(err); {
	case err == nil:
	case p.Code == problem.Unavailable, p.Code == problem.TooMany:
		lines = flashReason(flashWait, p.Detail)
	case p.Code.Status() < http.StatusInternalServerError:
		lines = flashReason(flashFail, p.Detail) + "code " + string(p.Code) + "\n"
	default:
		return err
	}
	return sendText(w, r, lines)
}

// flashReason returns the lines of a state with its reason, which is one line.
func flashReason(state, reason string) string {
	return "state " + state + "\nreason " + strings.Join(strings.Fields(visible.Text(reason)), " ") + "\n"
}

// flashLines returns the lines about the disk in c, from offset on. It has the disk made if
// nothing else can answer: for an offset, or if the check ended without the SHA-256 of the
// disk.
func (f *Function) flashLines(r *http.Request, c *object, offset int64) (string, error) {
	of := func(state, reason string) (string, error) { return flashReason(state, string(c.name)+": "+reason), nil }
	if c.sha256 == "" || c.known == nil {
		return of(flashWait, "it is not hashed and inspected yet")
	}
	if no := c.known.NoDisk(); no != "" {
		return of(flashFail, no)
	}
	ranges, linked, unchecked := "yes", f.links(c) != nil, c.rawSHA256 == "" && c.known.Check != nil
	if c.known.Checkable() && (offset > 0 || linked || unchecked) {
		wait, fail, err := f.bootState(r.Context(), c, r.Method == http.MethodGet)
		switch {
		case err != nil:
			return "", err
		case wait != "":
			return of(flashWait, wait)
		case fail != "" && linked:
			return of(flashFail, fail)
		case fail != "": // but it can be decompressed as a stream
			ranges = "no"
		}
	}
	switch {
	case unchecked:
		return of(flashFail, "it was not checked to its end, so that the SHA-256 of its disk is unknown. "+c.known.Check.Reason)
	case c.rawSHA256 == "":
		return of(flashWait, "the SHA-256 of its disk is known once it was checked")
	}
	lines := fmt.Sprintf("state %s\nsize %d\nsha256 %s\npath raw/%s\nranges %s\n", flashReady, c.rawSize, c.rawSHA256, c.sha256, ranges)
	if linked {
		lines += "redirect yes\n"
	}
	return lines, nil
}

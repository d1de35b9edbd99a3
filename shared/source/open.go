package source

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	"imageroot/shared/image"
)

// Open reads length bytes of a source from offset, or all to the end if length is
// negative. A server may ignore the range: the body's Offset and Ranged say what
// it holds. The error is [ErrChanged] if the source no longer has the validators
// v.
//
// Other errors are [*Retryable], [ErrRange] (ask for the whole), [*Malformed],
// [*Unresolvable], and ctx's if ctx ends. Each call asks the URL of loc, since
// URLs that it redirects to expire. ctx bounds the reading of the body too.
func (c *Client) Open(ctx context.Context, loc Location, offset, length int64, v Validators) (*Body, error) {
	u, err := loc.Parse()
	if err != nil {
		return nil, err
	}
	if offset < 0 || length == 0 {
		return nil, malformed("%d bytes from %d are not a range", length, offset)
	}
	return u.open(ctx, c, loc.Digest, offset, length, v)
}

// open is Open for the file at url. If name is not empty, the file is the image of
// that name.
func (c *Client) open(ctx context.Context, client doer, url string, name image.Name, offset, length int64, v Validators) (*Body, error) {
	parent := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	req, err := c.newRequest(ctx, http.MethodGet, url)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	ranged := offset > 0 || length > 0
	if ranged {
		req.Header.Set("Range", rangeField(offset, length))
		if ir := v.ifRange(); ir != "" {
			req.Header.Set("If-Range", ir)
		}
	}
	// The time includes the documents of redirectors and token servers, which a
	// server may send a byte at a time.
	late := time.AfterFunc(c.config.ResolveTimeout, func() { cancel(errLate) })
	resp, err := client.Do(req)
	if late.Stop(); err != nil {
		if parent.Err() == nil && context.Cause(ctx) == errLate {
			err = c.late(req.URL.Host)
		} else {
			err = c.explain(parent, req.URL.Host, err)
		}
		cancel(nil)
		return nil, err
	}
	b := &Body{
		Validators: validators(resp),
		host:       resp.Request.URL.Host,
		body:       resp.Body,
		parent:     parent,
		ctx:        ctx,
		cancel:     cancel,
		stall:      c.config.StallTimeout,
	}
	if err := c.accept(b, resp, name, offset, length, v); err != nil {
		b.Close()
		return nil, err
	}
	b.arm()
	return b, nil
}

// errLate is the cause of the end of a request without an answer in time.
var errLate = errors.New("no answer in time")

func (c *Client) late(host string) error {
	return retryable(errLate, "%s did not answer within %s", host, c.config.ResolveTimeout)
}

func rangeField(offset, length int64) string {
	if length < 0 {
		return fmt.Sprintf("bytes=%d-", offset)
	}
	return fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
}

// accept checks the answer to a request for a range, and describes it in b.
func (c *Client) accept(b *Body, resp *http.Response, name image.Name, offset, length int64, v Validators) error {
	asked := offset > 0 || length > 0
	switch resp.StatusCode {
	case http.StatusOK:
		b.Size, b.want = resp.ContentLength, resp.ContentLength
	case http.StatusPartialContent:
		if !asked {
			return fmt.Errorf("%s sent a part instead of the whole: %w", b.host, ErrRange)
		}
	case http.StatusRequestedRangeNotSatisfiable:
		if !asked {
			return c.status(resp, "image")
		}
		total, err := unsatisfiedTotal(resp.Header.Get("Content-Range"))
		if err == nil && total == offset && !v.Differ(b.Validators) {
			// Nothing is left: no error for a caller that resumes at the end.
			b.Size, b.Offset, b.Ranged = total, offset, true
			b.body = http.NoBody
			return resp.Body.Close()
		}
		if offset == 0 {
			return fmt.Errorf("%s has no range from the first byte on (%q): %w", b.host, resp.Header.Get("Content-Range"), ErrRange)
		}
		return fmt.Errorf("%s no longer has %d bytes (%q): %w", b.host, offset, resp.Header.Get("Content-Range"), ErrChanged)
	default:
		return c.status(resp, "image")
	}
	if err := checkImage(resp, name); err != nil {
		return err
	}
	if v.Differ(b.Validators) {
		return fmt.Errorf("%s has another version of %s than before: %w", b.host, name, ErrChanged)
	}
	if resp.StatusCode == http.StatusPartialContent {
		return b.acceptRange(resp, offset, length)
	}
	return nil
}

// acceptRange compares a 206 with the range that was asked for. A server may send
// less (RFC 9110 section 15.3.7); the body then ends as a [ShortBody].
func (b *Body) acceptRange(resp *http.Response, offset, length int64) error {
	field := resp.Header.Get("Content-Range")
	cr, err := parseContentRange(field)
	served := cr.end - cr.start + 1
	switch {
	case err != nil:
	case cr.start != offset:
		err = fmt.Errorf("it should begin at %d", offset)
	case length > 0 && served > length:
		err = fmt.Errorf("it should have %d bytes", length)
	case resp.ContentLength >= 0 && resp.ContentLength != served:
		err = fmt.Errorf("the body has %d bytes", resp.ContentLength)
	}
	if err != nil {
		return fmt.Errorf("%s sent Content-Range %.100q: %w: %w", b.host, field, err, ErrRange)
	}
	b.Size, b.Offset, b.Ranged = cr.total, offset, true
	b.want = served
	if cr.total >= 0 {
		b.want = cr.total - offset
		if length > 0 {
			b.want = min(length, b.want)
		}
	}
	b.limit = served
	return nil
}

// A contentRange is the Content-Range field of a 206 (RFC 9110 section 14.4). end
// is inclusive; total is -1 if unknown.
type contentRange struct{ start, end, total int64 }

var (
	rangeOf     = regexp.MustCompile(`(?i)^bytes +(\d+)-(\d+)/(\d+|\*)$`)
	unsatisfied = regexp.MustCompile(`(?i)^bytes +\*/(\d+)$`)
)

func parseContentRange(field string) (contentRange, error) {
	m := rangeOf.FindStringSubmatch(strings.TrimSpace(field))
	if m == nil {
		return contentRange{}, errors.New("it is not of the form bytes FIRST-LAST/TOTAL")
	}
	first, err1 := parseSize(m[1])
	last, err2 := parseSize(m[2])
	total, err3 := int64(-1), error(nil)
	if m[3] != "*" {
		total, err3 = parseSize(m[3])
	}
	if err := cmp.Or(err1, err2, err3); err != nil {
		return contentRange{}, err
	}
	if last < first || total >= 0 && last >= total {
		return contentRange{}, errors.New("it contradicts itself")
	}
	return contentRange{first, last, total}, nil
}

// unsatisfiedTotal parses the Content-Range field of a 416: "bytes */TOTAL".
func unsatisfiedTotal(field string) (int64, error) {
	m := unsatisfied.FindStringSubmatch(strings.TrimSpace(field))
	if m == nil {
		return 0, errors.New("it is not of the form bytes */TOTAL")
	}
	return parseSize(m[1])
}

// parseSize accepts digits only, and numbers far enough below the largest int64 to
// add to.
func parseSize(s string) (int64, error) {
	n, err := strconv.ParseUint(s, 10, 62)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a number of bytes", s)
	}
	return int64(n), nil
}

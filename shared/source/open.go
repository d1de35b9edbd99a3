package source

import (
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

// Open reads length bytes of a source from offset on, or all bytes to the end if length
// is negative. A server may ignore the range, so check the body's Offset and Ranged.
// The error is [ErrChanged] if the source no longer has the validators v.
//
// Other errors are [*Retryable], [ErrRange] (request the whole), [*Malformed],
// [*Unresolvable], and ctx's if ctx ends. Each call requests the URL of loc, since URLs
// that it redirects to expire. The end of ctx also ends the body.
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

// open is Open for the file at url. If name is not empty, the file must be an image of
// this name.
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
	// The limit includes the documents of redirectors and token servers, which may
	// arrive a byte at a time.
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
	b := newBody(parent, ctx, cancel, resp, c.config.StallTimeout)
	if err := c.accept(b, resp, name, offset, length, v); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// errLate is the context's cause if a request has no answer in time.
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

// accept checks the answer to a request for a range, and sets the fields of b.
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
		if unsatisfiedTotal(resp) == offset && !v.Differ(b.Validators) {
			// Nothing is left, which is no error for a caller that resumes at the end.
			b.Size, b.Offset, b.Ranged = offset, offset, true
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

// acceptRange compares a 206 with the requested range. A server may send less (RFC 9110
// section 15.3.7). Then the body ends with a [ShortBody].
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

// The Content-Range fields of a 206 and of a 416. Numbers of 18 digits can be added
// without overflow of an int64.
var (
	rangeOf     = regexp.MustCompile(`(?i)^bytes +(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$`)
	unsatisfied = regexp.MustCompile(`(?i)^bytes +\*/(\d{1,18})$`)
)

func parseContentRange(field string) (contentRange, error) {
	m := rangeOf.FindStringSubmatch(strings.TrimSpace(field))
	if m == nil {
		return contentRange{}, errors.New("it is not of the form bytes FIRST-LAST/TOTAL")
	}
	cr := contentRange{number(m[1]), number(m[2]), -1}
	if m[3] != "*" {
		cr.total = number(m[3])
	}
	if cr.end < cr.start || cr.total >= 0 && cr.end >= cr.total {
		return contentRange{}, errors.New("it contradicts itself")
	}
	return cr, nil
}

// unsatisfiedTotal returns the size that a 416 gives, or -1 if it gives none.
func unsatisfiedTotal(resp *http.Response) int64 {
	if m := unsatisfied.FindStringSubmatch(strings.TrimSpace(resp.Header.Get("Content-Range"))); m != nil {
		return number(m[1])
	}
	return -1
}

// number parses at most 18 digits.
func number(digits string) int64 {
	n, _ := strconv.ParseInt(digits, 10, 64) // never fails
	return n
}

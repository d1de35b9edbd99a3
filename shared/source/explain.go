package source

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"imageroot/shared/netpolicy"
)

// explain returns the [*Unresolvable] or [*Retryable] for the error of a request to
// host, or ctx's error if ctx has ended.
func (c *Client) explain(ctx context.Context, host string, err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		// After redirects, another host has failed.
		if u, perr := url.Parse(ue.URL); perr == nil && u.Host != "" {
			host = u.Host
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("waiting for %s was stopped: %w", host, context.Cause(ctx))
	}
	direct := ""
	if c.config.UnusedProxy != "" {
		direct = fmt.Sprintf("; %s is set, and imageroot does not use it: the host must be reachable without a proxy, or through IMAGEROOT_PROXY_URL", c.config.UnusedProxy)
	}
	if known, ok := errors.AsType[*Unresolvable](err); ok { // from checkRedirect
		return known
	}
	if refused, ok := errors.AsType[*netpolicy.Refused](err); ok {
		return unresolvable(err, "%s is not a permitted source: %s", host, refused.Reason)
	}
	if through, ok := errors.AsType[*netpolicy.ProxyError](err); ok {
		return retryable(err, "%s cannot be reached: %v", host, through)
	}
	dns, lookup := errors.AsType[*net.DNSError](err)
	bad, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	nerr, network := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, http.ErrSchemeMismatch):
		return unresolvable(err, "%s answers without TLS: use http:// or another port", host)
	case lookup && dns.IsNotFound:
		return unresolvable(err, "the host %s does not exist: check its spelling%s", dns.Name, direct)
	case lookup:
		return retryable(err, "the address of %s could not be resolved: %s%s", dns.Name, dns.Err, direct)
	case untrusted:
		return unresolvable(err, "the TLS certificate of %s is not valid: %s", host, c.certificate(bad.Err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return retryable(err, "%s refuses connections: is the server running, and the port right?%s", host, direct)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return retryable(err, "%s cannot be reached from here: check the network%s", host, direct)
	case network && nerr.Timeout():
		return retryable(err, "%s did not answer in time%s", host, direct)
	case errors.Is(err, io.EOF):
		// Do not wrap io.EOF, which means the end of a source.
		return retryable(io.ErrUnexpectedEOF, "%s closed the connection without an answer", host)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return retryable(err, "%s closed the connection without an answer", host)
	case isTLS(err):
		return unresolvable(err, "no TLS connection to %s could be made: %v", host, cause(err))
	}
	return retryable(err, "the request to %s failed: %v", host, cause(err))
}

// cause returns err without the method and URL of a [url.Error]: URLs can be long,
// and signed ones are secrets.
func cause(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

func isTLS(err error) bool {
	_, record := errors.AsType[tls.RecordHeaderError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	op, ok := errors.AsType[*net.OpError](err)
	return record || alert || ok && (op.Op == "remote error" || op.Op == "local error") ||
		strings.HasPrefix(cause(err).Error(), "tls: ")
}

// certificate describes what is wrong with a certificate.
func (c *Client) certificate(err error) string {
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		if now := c.config.Now(); now.Before(invalid.Cert.NotBefore) {
			return fmt.Sprintf("it begins on %s, and here it is %s; check this machine's clock",
				invalid.Cert.NotBefore.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
		}
		return fmt.Sprintf("it expired on %s", invalid.Cert.NotAfter.UTC().Format(time.DateTime))
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return "it is signed by an unknown authority"
	}
	if hostname, ok := errors.AsType[x509.HostnameError](err); ok {
		return fmt.Sprintf("it is for another host than %s", hostname.Host)
	}
	return err.Error()
}

// status returns the error for an unsuccessful answer to a request for what ("image").
func (c *Client) status(resp *http.Response, what string) error {
	return refused(resp.Request.URL.Host, resp.StatusCode, what, c.retryAfter(resp.Header.Get("Retry-After")))
}

func answered(host string, code int) string {
	return fmt.Sprintf("%s answered %d %s", host, code, http.StatusText(code))
}

func refused(host string, code int, what string, after time.Duration) error {
	reason := answered(host, code)
	switch {
	case code == http.StatusNotFound || code == http.StatusGone:
		reason += fmt.Sprintf(": there is no %s at this URL", what)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		reason += fmt.Sprintf(": it does not give the %s without a login, or the URL has expired", what)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		if after > 0 {
			return &Retryable{Reason: fmt.Sprintf("%s: it asks to wait for %s", reason, after), After: after}
		}
		return &Retryable{Reason: reason + ": it may work later"}
	default:
		reason += fmt.Sprintf(" instead of the %s", what)
	}
	return &Unresolvable{Reason: reason, Status: code}
}

// retryAfter parses a Retry-After field (RFC 9110 section 10.2.3). It returns 0 for
// anything else.
func (c *Client) retryAfter(field string) time.Duration {
	if n, err := strconv.ParseUint(field, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(field); err == nil {
		return max(0, t.Sub(c.config.Now()).Round(time.Second))
	}
	return 0
}

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

// explain turns the error of a request to host into a sentence, and decides
// whether trying again can help. What ends with ctx stays ctx's error.
func (c *Client) explain(ctx context.Context, host string, err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		// After redirects it is another host that failed.
		if u, perr := url.Parse(ue.URL); perr == nil && u.Host != "" {
			host = u.Host
		}
	}
	if ctx.Err() != nil {
		return fmt.Errorf("waiting for %s was stopped: %w", host, context.Cause(ctx))
	}
	direct := ""
	if c.config.UnusedProxy != "" {
		direct = fmt.Sprintf("; %s is set, and imageroot uses no proxy: the host must be reachable without one", c.config.UnusedProxy)
	}
	var refused *netpolicy.Refused
	var redirect *redirectError
	var dns *net.DNSError
	var nerr net.Error
	switch {
	case errors.As(err, &refused):
		return unresolvable(err, "%s is not a permitted source: %s", host, refused.Reason)
	case errors.As(err, &redirect):
		return unresolvable(err, "%s", redirect.reason)
	case errors.Is(err, http.ErrSchemeMismatch):
		return unresolvable(err, "%s answers without TLS: use http:// or another port", host)
	case errors.As(err, &dns) && dns.IsNotFound:
		return unresolvable(err, "the host %s does not exist: check its spelling%s", dns.Name, direct)
	case errors.As(err, &dns):
		return retryable(err, "the address of %s could not be looked up: %s%s", dns.Name, dns.Err, direct)
	case isCertificate(err):
		return unresolvable(err, "the TLS certificate of %s is not valid: %s", host, c.certificate(err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return retryable(err, "%s refuses connections: is the server running, and the port right?%s", host, direct)
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return retryable(err, "there is no way to %s from here: check the network%s", host, direct)
	case errors.As(err, &nerr) && nerr.Timeout():
		return retryable(err, "%s did not answer in time%s", host, direct)
	case errors.Is(err, io.EOF):
		// Not the end of the source, which io.EOF means to who reads one.
		return retryable(io.ErrUnexpectedEOF, "%s closed the connection without an answer", host)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return retryable(err, "%s closed the connection without an answer", host)
	case isTLS(err):
		return unresolvable(err, "no TLS connection to %s could be made: %v", host, cause(err))
	}
	return retryable(err, "the request to %s failed: %v", host, cause(err))
}

// cause is what went wrong without the method and URL before it: URLs can be
// long, and signed ones are secrets.
func cause(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

func isCertificate(err error) bool {
	var v *tls.CertificateVerificationError
	return errors.As(err, &v)
}

func isTLS(err error) bool {
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var op *net.OpError
	return errors.As(err, &record) || errors.As(err, &alert) ||
		errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error") ||
		strings.HasPrefix(cause(err).Error(), "tls: ")
}

func (c *Client) certificate(err error) string {
	var invalid x509.CertificateInvalidError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		if now := c.now(); now.Before(invalid.Cert.NotBefore) {
			return fmt.Sprintf("it begins on %s, and here it is %s; check this machine's clock",
				invalid.Cert.NotBefore.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
		}
		return fmt.Sprintf("it expired on %s", invalid.Cert.NotAfter.UTC().Format(time.DateTime))
	case errors.As(err, &authority):
		return "it is signed by an unknown authority"
	case errors.As(err, &hostname):
		return fmt.Sprintf("it is for another host than %s", hostname.Host)
	}
	var v *tls.CertificateVerificationError
	if errors.As(err, &v) {
		err = v.Err
	}
	return err.Error()
}

// status turns an answer that is not a success into an error.
func (c *Client) status(resp *http.Response, what string) error {
	host := resp.Request.URL.Host
	answer := fmt.Sprintf("%s answered %d %s", host, resp.StatusCode, http.StatusText(resp.StatusCode))
	refused := &Unresolvable{Reason: fmt.Sprintf("%s where the %s was expected", answer, what), Status: resp.StatusCode}
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound || code == http.StatusGone:
		refused.Reason = fmt.Sprintf("%s: there is no %s at this URL", answer, what)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		refused.Reason = fmt.Sprintf("%s: it does not give the %s without a login, or the URL has expired", answer, what)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500 && code != http.StatusNotImplemented && code != http.StatusHTTPVersionNotSupported:
		after := c.retryAfter(resp.Header.Get("Retry-After"))
		reason := answer + ": it may work later"
		if after > 0 {
			reason = fmt.Sprintf("%s: it asks to wait for %s", answer, after)
		}
		return &Retryable{Reason: reason, After: after}
	}
	return refused
}

// retryAfter reads a Retry-After field (RFC 9110 section 10.2.3).
func (c *Client) retryAfter(field string) time.Duration {
	if n, err := strconv.ParseUint(field, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(field); err == nil {
		return max(0, t.Sub(c.now()).Round(time.Second))
	}
	return 0
}

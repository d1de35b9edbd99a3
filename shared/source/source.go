// Package source reads images from where their publishers keep them: web
// servers (http, https) and OCI registries (oras).
//
// [Client.Resolve] learns what a URL names, once, when an operator gives it.
// [Client.Open] reads bytes from there, from any offset where the server
// allows that, and tells a body that was cut from one that has ended. Every
// connection of both, redirects and token servers included, goes through the
// address policy.
package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"runtime"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/net/publicsuffix"
	"oras.land/oras-go/v2/registry/remote/auth"

	"imageroot/shared/image"
	"imageroot/shared/netpolicy"
)

// Config is what a [Client] needs to know. The zero value works.
type Config struct {
	// Policy says which addresses may be dialled.
	Policy netpolicy.Policy
	// DockerConfig is the path of a Docker configuration file with the
	// credentials of registries. It is read anew whenever a registry asks for
	// credentials; empty means none, and the file need not exist.
	DockerConfig string
	// PlainHTTP names registries (HOST or HOST:PORT) that are spoken to
	// without TLS. Those on loopback are anyway.
	PlainHTTP []string
	// UnusedProxy is a variable that names a proxy, which is not used, or empty.
	// Errors of connections mention it.
	UnusedProxy string
	// Platform chooses from an image index; without OS and architecture it
	// is linux on this machine's, arm64 standing for 32-bit ARM too.
	Platform ocispec.Platform
	// UserAgent is what servers see; empty means "imageroot".
	UserAgent string
	// RootCAs are who may sign certificates; nil means the system's.
	RootCAs *x509.CertPool

	// ResolveTimeout bounds a Resolve, and the wait for the answer to an Open:
	// all requests together, those to redirectors and token servers included.
	// Zero means a minute.
	ResolveTimeout time.Duration
	// HeaderTimeout ends the wait for an answer to one request. Zero means 30 s.
	HeaderTimeout time.Duration
	// StallTimeout ends the wait for the next bytes of a body. There is no
	// limit to the time of a whole body. Zero means a minute.
	StallTimeout time.Duration
	// Now is the clock; nil means [time.Now].
	Now func() time.Time
}

// A Client reads from sources. It is safe for concurrent use.
type Client struct {
	config    Config
	now       func() time.Time
	transport *http.Transport
	signedIn  auth.Cache // tokens of registries, with stored credentials
	anonymous auth.Cache // tokens of registries, without
}

// New returns a client.
func New(config Config) *Client {
	config.UserAgent = cmp.Or(config.UserAgent, "imageroot")
	config.ResolveTimeout = cmp.Or(config.ResolveTimeout, time.Minute)
	config.HeaderTimeout = cmp.Or(config.HeaderTimeout, 30*time.Second)
	config.StallTimeout = cmp.Or(config.StallTimeout, time.Minute)
	if config.Platform.Architecture == "" {
		config.Platform.Architecture = runtime.GOARCH
		if runtime.GOARCH == "arm" {
			config.Platform.Architecture = "arm64"
		}
	}
	config.Platform.OS = cmp.Or(config.Platform.OS, "linux")
	c := &Client{config: config, now: config.Now}
	if c.now == nil {
		c.now = time.Now
	}
	c.transport = newTransport(&c.config)
	c.signedIn, c.anonymous = auth.NewCache(), auth.NewCache()
	return c
}

// Reach names the settings that decide which sources the client may read: two
// clients with the same name may read the same.
func (c *Client) Reach() string {
	p := c.config.Policy
	sum := sha256.Sum256(fmt.Append(nil, p.Loopback, p.Private, p.Allow, c.config.PlainHTTP))
	return hex.EncodeToString(sum[:6])
}

// newTransport speaks HTTP/1.1 only: CDNs reset long HTTP/2 streams, and ranges
// in parallel are to be connections in parallel.
func newTransport(config *Config) *http.Transport {
	t := config.Policy.Transport()
	t.DisableCompression = true
	t.Protocols = new(http.Protocols)
	t.Protocols.SetHTTP1(true)
	t.ResponseHeaderTimeout = config.HeaderTimeout
	t.MaxIdleConnsPerHost = 8
	t.ReadBufferSize = 64 << 10
	t.TLSClientConfig = &tls.Config{RootCAs: config.RootCAs, Time: config.Now}
	return t
}

// session returns an HTTP client for the requests of one operation: cookies that
// a redirect sets go to the hosts that they are for, and end with it.
func (c *Client) session() *http.Client {
	jar, _ := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List}) // never fails
	return &http.Client{
		Transport: c.transport, Jar: jar,
		CheckRedirect: func(req *http.Request, via []*http.Request) error { return checkRedirect(jar, req, via) },
	}
}

// Close closes the connections that wait for another request.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// A Location is where the bytes of a resolved source are.
type Location struct {
	// URL is canonical (see [ParseURL]).
	URL string `json:"url"`
	// Digest is the layer ("sha256:HEX") that an oras URL meant when it was
	// resolved. It is empty for http and https.
	Digest string `json:"digest,omitempty"`
}

// Validators tell one content of a web source from another (RFC 9110 section
// 8.8). Registries need none: a [Location] there names its content.
type Validators struct {
	ETag         string `json:"etag,omitempty"` // as sent, with quotes and W/
	LastModified string `json:"last_modified,omitempty"`
}

// A Resolved is what is known of a source before any of it is fetched.
type Resolved struct {
	Location
	Validators
	Name   string       // image name
	Format image.Format // by Name
	Size   int64        // bytes, or -1 if the server does not say
	// SHA256 and SHA512 are what the publisher says, in lower case
	// hexadecimal; at most one is known.
	SHA256, SHA512 string
	// Manifest is the digest of the manifest that an oras URL meant, if it
	// meant one.
	Manifest string
}

// Resolve learns what imageURL names and, for http and https, what the
// checksum list at shaURL (optional) says of it. The error is a [*Malformed]
// where a URL can never be one, an [*Unresolvable] where the source does not
// give what it should, and ctx's error where ctx ends.
func (c *Client) Resolve(ctx context.Context, imageURL, shaURL string) (*Resolved, error) {
	u, err := ParseURL(imageURL)
	if err != nil {
		return nil, err
	}
	limited, cancel := context.WithTimeout(ctx, c.config.ResolveTimeout)
	defer cancel()
	var r *Resolved
	if u.Scheme == "oras" {
		r, err = c.resolveORAS(limited, u)
	} else {
		r, err = c.resolveWeb(limited, u, shaURL)
	}
	var retry *Retryable
	switch {
	case err == nil:
	case ctx.Err() == nil && limited.Err() != nil:
		err = c.late(u.Host)
		return nil, unresolvable(err, "%v", err)
	case errors.As(err, &retry):
		return nil, unresolvable(err, "%s", retry.Reason)
	default:
		return nil, err
	}
	r.URL = u.Canonical
	if r.Format, err = image.ParseName(r.Name); err != nil {
		return nil, unresolvable(err, "%s holds %q, which is not an image: %v", u.Host, r.Name, err)
	}
	if r.Size == 0 {
		return nil, unresolvable(nil, "%s says that %s is empty", u.Host, r.Name)
	}
	return r, nil
}

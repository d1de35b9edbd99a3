// Package source reads images from their publishers: web servers (http, https)
// and OCI registries (oras).
//
// [Client.Resolve] describes what a URL names, once, when an operator gives it.
// [Client.Open] reads its bytes, from any offset if the server supports ranges, and
// distinguishes a truncated body from a complete one. The address policy checks every
// connection of both, including those to redirectors and token servers.
//
// Each scheme is a [place] in its own file, such as oras.go. https and http share
// web.go. The HTTP code that all share is in http.go and open.go.
package source

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"imageroot/shared/image"
	"imageroot/shared/layout"
	"imageroot/shared/netpolicy"
)

// Config configures a [Client]. The zero value works.
type Config struct {
	// Policy decides which addresses may be dialled.
	Policy netpolicy.Policy
	// DockerConfig is the path of a Docker configuration file with the credentials of
	// registries. The file is read each time a registry requires credentials. The path
	// may be empty, and the file need not exist.
	DockerConfig string
	// PlainHTTP lists registries (HOST or HOST:PORT) that are contacted without TLS, in
	// addition to those on loopback.
	PlainHTTP []string
	// UnusedProxy is the name of an environment variable that names a proxy, or empty.
	// The proxy is not used, but errors of connections mention the variable.
	UnusedProxy string
	// Platform selects a manifest of an image index. An empty OS means linux, and an
	// empty architecture this machine's, or arm64 on 32-bit ARM.
	Platform ocispec.Platform
	// UserAgent is sent to servers; empty means "imageroot".
	UserAgent string
	// RootCAs are the authorities that may sign certificates; nil means the
	// system's.
	RootCAs *x509.CertPool

	// ResolveTimeout bounds a Resolve, and the wait for the answer to an Open,
	// including all requests to redirectors and token servers. Zero means a minute.
	ResolveTimeout time.Duration
	// HeaderTimeout bounds the wait for the answer to one request. Zero means 30 s.
	HeaderTimeout time.Duration
	// StallTimeout bounds the wait for the next bytes of a body. The time of a
	// whole body has no limit. Zero means a minute.
	StallTimeout time.Duration
	// Now is the clock; nil means [time.Now].
	Now func() time.Time
}

// A Client reads from sources. It is safe for concurrent use.
type Client struct {
	config    Config
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
	if config.Now == nil {
		config.Now = time.Now
	}
	return &Client{config: config, transport: newTransport(config), signedIn: auth.NewCache(), anonymous: auth.NewCache()}
}

// Reach returns a digest of the settings that decide which sources the client may
// read. Two clients with the same digest may read the same sources.
func (c *Client) Reach() string {
	p := c.config.Policy
	sum := sha256.Sum256(fmt.Append(nil, p.Loopback, p.Private, p.Allow, c.config.PlainHTTP))
	return hex.EncodeToString(sum[:6])
}

// Close closes idle connections.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// A Location names the bytes of a resolved source.
type Location struct {
	URL string
	// Name is the name of the image. It may be empty if the URL ends in one.
	Name image.Name
	// Digest names the content ("sha256:HEX") of a pinned source (see
	// [URL.Pinned]), and is empty for others.
	Digest string
}

// Validators distinguish the contents of a source (RFC 9110 section 8.8).
// Those of a pinned source are empty: its [Location] names the content.
type Validators struct {
	ETag         string `json:"etag,omitempty"` // as sent, with quotes and W/
	LastModified string `json:"last_modified,omitempty"`
}

// Differ reports whether two validators belong to different contents. Validators
// without a common field do not differ. ETags are compared weakly (RFC 9110 section
// 8.8.3.2), since servers change weak ones with the content, too.
func (v Validators) Differ(w Validators) bool {
	if v.ETag != "" && w.ETag != "" {
		return strings.TrimPrefix(v.ETag, "W/") != strings.TrimPrefix(w.ETag, "W/")
	}
	return v.LastModified != "" && w.LastModified != "" && v.LastModified != w.LastModified
}

// ifRange returns the value of an If-Range field, a strong ETag or a date, or ""
// (RFC 9110 section 13.1.5).
func (v Validators) ifRange() string {
	if strings.HasPrefix(v.ETag, `"`) {
		return v.ETag
	}
	return v.LastModified
}

// A Resolved describes a source before its bytes are fetched.
type Resolved struct {
	Location
	Validators
	Format image.Format // by Name
	Size   int64        // bytes, or -1 if the server does not say
	// SHA256 and SHA512 are the publisher's digests in lower-case hexadecimal.
	// At most one is known.
	SHA256 layout.SHA256
	SHA512 string
	// About is what an artifact in a registry says about itself.
	About About
}

// About is what an artifact in a registry says about itself, in the terms of the OCI image
// specification.
type About struct {
	// Annotations are those of the layer, of its manifest and of the index, of which the
	// first that has a key counts. A title is never the name of a file.
	Annotations map[string]string
	// Architecture and Variant are of the platform that an index names.
	Architecture, Variant string
}

// Resolve describes the source at l, which has the name of l if l has one. If it is not
// pinned, the checksum list at shaURL (optional) gives its digest. The error is a [*Malformed] if a URL can never be
// a source, an [*Unresolvable] if the source does not give an image, and ctx's error if
// ctx ends.
func (c *Client) Resolve(ctx context.Context, l Location, shaURL string) (*Resolved, error) {
	return c.resolve(ctx, l, func(ctx context.Context, p place) (*Resolved, error) { return p.resolve(ctx, c, shaURL) })
}

// resolve is Resolve with the description that ask gets from the source.
func (c *Client) resolve(ctx context.Context, l Location, ask func(context.Context, place) (*Resolved, error)) (*Resolved, error) {
	limited, cancel := context.WithTimeout(ctx, c.config.ResolveTimeout)
	defer cancel()
	u, err := c.parse(limited, l)
	if err != nil {
		return nil, err
	}
	r, err := ask(limited, u.place)
	if err != nil {
		if ctx.Err() == nil && limited.Err() != nil {
			err = c.late(u.Host)
		}
		if retry, ok := errors.AsType[*Retryable](err); ok {
			return nil, unresolvable(err, "%s", retry.Reason)
		}
		return nil, err
	}
	r.URL, r.Name = u.Canonical, cmp.Or(l.Name, r.Name)
	if _, err = image.ParseName(string(r.Name)); err != nil && l.Name == "" {
		return nil, unresolvable(err, "%s holds %q, which is not an image: %v", u.Host, r.Name, err)
	}
	r.Format, _ = image.FormatOf(r.Name)
	if r.Size == 0 {
		return nil, unresolvable(nil, "%s says that %s is empty", u.Host, r.Name)
	}
	return r, nil
}

package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// maxManifestBytes is the size up to which registries accept manifests.
const maxManifestBytes = 4 << 20

// An oras is an image in an OCI registry, pushed with oras or a similar tool.
type oras struct {
	ref  registry.Reference
	name image.Name // of the layer, if that has no title; or ""
}

func (o oras) String() string { return "oras://" + o.ref.String() }

func parseORAS(raw string, name image.Name) (URL, error) {
	errForm := malformed("the URL is not of the form oras://HOST[:PORT]/REPO:TAG or oras://HOST[:PORT]/REPO@sha256:DIGEST")
	raw, _, _ = strings.Cut(raw, "#")
	rest, slashes := strings.CutPrefix(raw[len("oras:"):], "//")
	host, path, ok := strings.Cut(rest, "/")
	host = strings.ToLower(host)
	if !slashes || !ok || host == "" || path == "" {
		return URL{}, errForm
	}
	if strings.Contains(host, "@") {
		return URL{}, malformed("the URL holds a user name or password, which the catalog would show: store credentials in the Docker configuration file")
	}
	ref, err := registry.ParseReference(host + "/" + path)
	if err != nil {
		if repo, _, _ := strings.Cut(path, ":"); repo != strings.ToLower(repo) {
			return URL{}, malformed("the repository %q must be in lower case", repo)
		}
		return URL{}, errForm
	}
	if ref.Reference == "" {
		return URL{}, malformed("the URL needs a :TAG or @sha256:DIGEST after the repository")
	}
	if d, err := ref.Digest(); err == nil && d.Algorithm() != "sha256" {
		return URL{}, malformed("the digest must be a sha256, not a %s", d.Algorithm())
	}
	u, err := url.Parse("oras://" + host)
	if err != nil || u.Hostname() == "" || u.Host != host || strings.HasSuffix(host, ":") {
		return URL{}, errForm
	}
	if err := checkPort(u.Port()); err != nil {
		return URL{}, err
	}
	o := oras{ref, name}
	return URL{Canonical: o.String(), Host: host, place: o}, nil
}

// Pinned returns true: the digest of the layer names its content.
func (oras) Pinned() bool { return true }

// registryClient returns a client for one operation in the registry of ref.
func (c *Client) registryClient(ref registry.Reference, cred auth.CredentialFunc, tokens auth.Cache) *auth.Client {
	client := c.session()
	client.Transport = &registryTransport{client.Transport, ref.Host(), c.config.PlainHTTP}
	return &auth.Client{
		Client:     client,
		Header:     http.Header{"User-Agent": {c.config.UserAgent}},
		Credential: cred,
		Cache:      tokens,
		// The address policy checks token servers when it dials them.
		BlockedRealmPrefixes: []netip.Prefix{},
	}
}

// A credentialError is a failure to use stored credentials.
type credentialError struct{ err error }

func (e *credentialError) Error() string {
	return fmt.Sprintf("the credentials in the Docker configuration file cannot be used: %v", e.err)
}

func (e *credentialError) Unwrap() error { return e.err }

// credential returns the stored credential for a registry. It reads the file each time,
// so that a "docker login" takes effect immediately.
func (c *Client) credential(ctx context.Context, hostport string) (auth.Credential, error) {
	if c.config.DockerConfig == "" {
		return auth.EmptyCredential, nil
	}
	store, err := credentials.NewStore(c.config.DockerConfig, credentials.StoreOptions{})
	if err != nil {
		return auth.EmptyCredential, &credentialError{err}
	}
	cred, err := credentials.Credential(store)(ctx, hostport)
	if err != nil {
		return auth.EmptyCredential, &credentialError{err}
	}
	if cred.RefreshToken == "" && cred.AccessToken == "" && (cred.Username == "") != (cred.Password == "") {
		return auth.EmptyCredential, &credentialError{errors.New("a user name or password is missing")}
	}
	return cred, nil
}

// withCredentials runs op with the stored credentials, and again without them if the
// registry may have refused them: registries refuse expired ones even for public
// images.
func (c *Client) withCredentials(ctx context.Context, ref registry.Reference, op func(*auth.Client) error) error {
	err := op(c.registryClient(ref, c.credential, c.signedIn))
	if err == nil || !refusesCredentials(err) {
		return err
	}
	if cred, cerr := c.credential(ctx, ref.Host()); cerr == nil && cred == auth.EmptyCredential {
		return err
	}
	if op(c.registryClient(ref, nil, c.anonymous)) == nil {
		return nil
	}
	return err
}

// refusesCredentials reports whether bad credentials may be the cause. Registries
// and token servers answer them with nearly any 4xx.
func refusesCredentials(err error) bool {
	_, cred := errors.AsType[*credentialError](err)
	resp, ok := errors.AsType[*errcode.ErrorResponse](err)
	return cred || errors.Is(err, auth.ErrBasicCredentialNotFound) || errors.Is(err, errdef.ErrNotFound) ||
		ok && resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests
}

// explainRegistry is [Client.explain] for the errors of oras-go.
func (c *Client) explainRegistry(ctx context.Context, ref registry.Reference, err error) error {
	_, known := errors.AsType[*Unresolvable](err)
	_, retry := errors.AsType[*Retryable](err)
	cred, unusable := errors.AsType[*credentialError](err)
	resp, refusal := errors.AsType[*errcode.ErrorResponse](err)
	switch {
	case errors.Is(err, ErrRange), errors.Is(err, ErrChanged), ctx.Err() == nil && (known || retry):
		return err
	case unusable:
		return unresolvable(err, "%s asks for a login, and %v", ref.Registry, cred)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return unresolvable(err, "%s asks for a login to read %s: store one in the Docker configuration file (docker login %s)", ref.Registry, ref.Repository, ref.Registry)
	case errors.Is(err, errdef.ErrNotFound):
		return unresolvable(err, "%s has no %s: check repository and tag or digest", ref.Registry, ref)
	case refusal:
		host := ref.Registry
		if resp.URL != nil && resp.URL.Host != "" {
			host = resp.URL.Host
		}
		if code := resp.StatusCode; code == http.StatusUnauthorized || code == http.StatusForbidden {
			return &Unresolvable{Status: code, Err: err, Reason: fmt.Sprintf("%s: reading %s needs a login that it accepts; store one in the Docker configuration file (docker login %s)",
				answered(host, code), ref.Repository, ref.Registry)}
		}
		return refused(host, resp.StatusCode, "manifest of "+ref.String(), 0)
	case errors.Is(err, content.ErrMismatchedDigest), errors.Is(err, content.ErrTrailingData), errors.Is(err, errdef.ErrSizeExceedsLimit):
		return unresolvable(err, "%s sent a manifest of %s that is not what its digest says: %v", ref.Registry, ref, err)
	}
	return c.explain(ctx, ref.Registry, err)
}

func (c *Client) plainHTTP(ref registry.Reference) bool {
	return isLoopback(ref.Registry) || slices.Contains(c.config.PlainHTTP, ref.Registry)
}

func (c *Client) repository(client *auth.Client, ref registry.Reference) *remote.Repository {
	return &remote.Repository{
		Client:           client,
		Reference:        ref,
		PlainHTTP:        c.plainHTTP(ref),
		MaxMetadataBytes: maxManifestBytes,
	}
}

// resolve finds the layer that is the image, and pins its digest.
func (o oras) resolve(ctx context.Context, c *Client, _ string) (*Resolved, error) {
	var layers []ocispec.Descriptor
	var about About
	err := c.withCredentials(ctx, o.ref, func(client *auth.Client) (err error) {
		layers, about, err = c.findLayers(ctx, client, o.ref)
		return err
	})
	if err != nil {
		return nil, c.explainRegistry(ctx, o.ref, err)
	}
	layer, err := chooseLayer(layers)
	if err != nil {
		return nil, unresolvable(nil, "%s %v", o.ref, err)
	}
	r := &Resolved{Location: Location{Name: image.Name(titleOf(layer)), Digest: layer.Digest.String()}, Size: layer.Size, About: about}
	r.About.add(layer.Annotations)
	switch layer.Digest.Algorithm() {
	case digest.SHA256:
		r.SHA256 = layout.SHA256(layer.Digest.Encoded())
	case digest.SHA512:
		r.SHA512 = layer.Digest.Encoded()
	}
	if r.Name == "" {
		if err := o.checkWhole(ctx, c, layers); err != nil {
			return nil, err
		}
		if r.Name = o.name; r.Name == "" {
			r.Name, err = o.nameUntitled(ctx, c, layer.Digest)
		}
		if err != nil {
			return nil, err
		}
	}
	return r, nil
}

// findLayers returns the layers of the manifest that ref names, and what it says about
// them, or the one blob that it names.
func (c *Client) findLayers(ctx context.Context, client *auth.Client, ref registry.Reference) (layers []ocispec.Descriptor, about About, err error) {
	repo := c.repository(client, ref)
	m, err := fetchManifest(ctx, repo, ref.Reference)
	if err != nil {
		if d, derr := ref.Digest(); derr == nil && isAbsent(err) {
			if layer, err := repo.Blobs().Resolve(ctx, d.String()); err == nil || !errors.Is(err, errdef.ErrNotFound) {
				return []ocispec.Descriptor{layer}, about, err
			}
		}
		return nil, about, err
	}
	about.add(m.Annotations)
	const maxDepth = 3 // an index of indexes is rare, and only a hostile registry has one that contains itself
	for depth := 0; len(m.Manifests) > 0; depth++ {
		if depth == maxDepth {
			return nil, about, unresolvable(nil, "%s is an index of indexes without end", ref)
		}
		chosen, err := choosePlatform(m.Manifests, c.config.Platform)
		if err != nil {
			return nil, about, unresolvable(nil, "%s %v", ref, err)
		}
		if p := chosen.Platform; p != nil {
			about.Architecture, about.Variant = p.Architecture, p.Variant
		}
		about.add(chosen.Annotations)
		if m, err = fetchManifest(ctx, repo, chosen.Digest.String()); err != nil {
			return nil, about, err
		}
		about.add(m.Annotations)
	}
	return append(m.Layers, m.Blobs...), about, nil
}

// isAbsent reports whether err means that the registry has no such manifest. For the
// digest of a blob, some registries answer with another status than 404.
func isAbsent(err error) bool {
	resp, ok := errors.AsType[*errcode.ErrorResponse](err)
	return errors.Is(err, errdef.ErrNotFound) ||
		ok && (resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusUnprocessableEntity)
}

func fetchManifest(ctx context.Context, repo *remote.Repository, reference string) (m manifest, err error) {
	desc, body, err := repo.Manifests().FetchReference(ctx, reference)
	if err != nil {
		return m, err
	}
	defer body.Close()
	if desc.Size > maxManifestBytes {
		return m, fmt.Errorf("manifest of %d bytes: %w", desc.Size, errdef.ErrSizeExceedsLimit)
	}
	data, err := content.ReadAll(body, desc)
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, unresolvable(err, "%s sent a manifest of %s that is not valid: %v", repo.Reference.Registry, repo.Reference, err)
	}
	return m, nil
}

// open reads a layer by its digest. Its content cannot change, so it needs no
// validators.
func (o oras) open(ctx context.Context, c *Client, layer string, offset, length int64, _ Validators) (*Body, error) {
	d, err := digest.Parse(layer)
	if err != nil {
		return nil, malformed("%s was not resolved: %q is not the digest of its layer", o, layer)
	}
	scheme := "https"
	if c.plainHTTP(o.ref) {
		scheme = "http"
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", scheme, o.ref.Host(), o.ref.Repository, d)
	scoped := auth.AppendRepositoryScope(ctx, o.ref, auth.ActionPull)
	var body *Body
	err = c.withCredentials(ctx, o.ref, func(client *auth.Client) (err error) {
		body, err = c.open(scoped, registryDoer{client}, url, "", offset, length, Validators{})
		return err
	})
	if err != nil {
		return nil, c.explainRegistry(ctx, o.ref, err)
	}
	body.Validators = Validators{}
	return body, nil
}

// A registryDoer returns refused credentials as the error that oras-go returns, for
// [Client.withCredentials].
type registryDoer struct{ *auth.Client }

func (d registryDoer) Do(req *http.Request) (*http.Response, error) {
	resp, err := d.Client.Do(req)
	if err == nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) {
		resp.Body.Close()
		return nil, &errcode.ErrorResponse{Method: req.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	}
	return resp, err
}

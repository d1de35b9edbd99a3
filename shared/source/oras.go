package source

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// maxManifestBytes is what registries accept as a manifest.
const maxManifestBytes = 4 << 20

func (c *Client) registryClient(ref registry.Reference, cred auth.CredentialFunc, tokens auth.Cache) *auth.Client {
	client := c.session()
	client.Transport = &registryTransport{client.Transport, ref.Host(), c.config.PlainHTTP}
	return &auth.Client{
		Client:     client,
		Header:     http.Header{"User-Agent": {c.config.UserAgent}},
		Credential: cred,
		Cache:      tokens,
		// Where a token server is gets checked where it is dialled.
		BlockedRealmPrefixes: []netip.Prefix{},
	}
}

// A credentialError is a failure to get at stored credentials.
type credentialError struct{ err error }

func (e *credentialError) Error() string {
	return fmt.Sprintf("the credentials in the Docker configuration file cannot be used: %v", e.err)
}

func (e *credentialError) Unwrap() error { return e.err }

// credential is the stored credential for a registry. The file is read each
// time, so that a "docker login" counts at once.
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

// withCredentials runs op with the stored credentials, and if a registry
// refuses them once more without: expired ones get public images refused.
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

// refusesCredentials reports whether bad credentials may be why. Registries
// and token servers answer those with nearly any status of a client's error.
func refusesCredentials(err error) bool {
	var cred *credentialError
	if errors.As(err, &cred) || errors.Is(err, auth.ErrBasicCredentialNotFound) {
		return true
	}
	var resp *errcode.ErrorResponse
	return errors.As(err, &resp) && resp.StatusCode/100 == 4 && resp.StatusCode != http.StatusTooManyRequests ||
		errors.Is(err, errdef.ErrNotFound)
}

// explainRegistry is [Client.explain] for what oras-go returns.
func (c *Client) explainRegistry(ctx context.Context, ref registry.Reference, err error) error {
	var known *Unresolvable
	var retry *Retryable
	var cred *credentialError
	var resp *errcode.ErrorResponse
	switch {
	case ctx.Err() == nil && (errors.As(err, &known) || errors.As(err, &retry)):
		return err
	case errors.As(err, &cred):
		return unresolvable(err, "%s asks for a login, and %v", ref.Registry, cred)
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return unresolvable(err, "%s asks for a login to read %s: store one in the Docker configuration file (docker login %s)", ref.Registry, ref.Repository, ref.Registry)
	case errors.Is(err, errdef.ErrNotFound):
		return unresolvable(err, "%s has no %s: check repository and tag or digest", ref.Registry, ref)
	case errors.As(err, &resp):
		host := ref.Registry
		if resp.URL != nil && resp.URL.Host != "" {
			host = resp.URL.Host
		}
		answer := fmt.Sprintf("%s answered %d %s", host, resp.StatusCode, http.StatusText(resp.StatusCode))
		reason := fmt.Sprintf("%s to the request for %s", answer, ref)
		switch code := resp.StatusCode; {
		case code == http.StatusUnauthorized || code == http.StatusForbidden:
			reason = fmt.Sprintf("%s: reading %s needs a login that it accepts; store one in the Docker configuration file (docker login %s)", answer, ref.Repository, ref.Registry)
		case code == http.StatusTooManyRequests || code >= 500:
			return retryable(err, "%s: it may work later", answer)
		}
		return &Unresolvable{Reason: reason, Status: resp.StatusCode, Err: err}
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

// resolveORAS finds the layer that is the image and freezes its digest.
func (c *Client) resolveORAS(ctx context.Context, u URL) (*Resolved, error) {
	var layers []ocispec.Descriptor
	var manifest ocispec.Descriptor
	err := c.withCredentials(ctx, u.ref, func(client *auth.Client) (err error) {
		layers, manifest, err = c.findLayers(ctx, client, u.ref)
		return err
	})
	if err != nil {
		return nil, c.explainRegistry(ctx, u.ref, err)
	}
	layer, err := chooseLayer(layers)
	if err != nil {
		return nil, unresolvable(nil, "%s %v", u.ref, err)
	}
	r := &Resolved{
		Location: Location{URL: u.Canonical, Digest: layer.Digest.String()},
		Name:     titleOf(layer),
		Size:     layer.Size,
		Manifest: manifest.Digest.String(),
	}
	switch layer.Digest.Algorithm() {
	case digest.SHA256:
		r.SHA256 = layer.Digest.Encoded()
	case digest.SHA512:
		r.SHA512 = layer.Digest.Encoded()
	}
	if r.Name == "" {
		if err := c.checkWhole(ctx, u, layers); err != nil {
			return nil, err
		}
		if r.Name, err = c.nameUntitled(ctx, u, layer.Digest); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// findLayers follows ref to the layers of a manifest; that is empty where ref is
// the digest of a blob.
func (c *Client) findLayers(ctx context.Context, client *auth.Client, ref registry.Reference) (layers []ocispec.Descriptor, manifest ocispec.Descriptor, err error) {
	repo := c.repository(client, ref)
	m, manifest, err := fetchManifest(ctx, repo, ref.Reference)
	if err != nil {
		if d, derr := ref.Digest(); derr == nil && isAbsent(err) {
			if layer, err := repo.Blobs().Resolve(ctx, d.String()); err == nil || !errors.Is(err, errdef.ErrNotFound) {
				return []ocispec.Descriptor{layer}, ocispec.Descriptor{}, err
			}
		}
		return nil, manifest, err
	}
	const maxDepth = 3 // an index of indexes is rare, one in itself impossible but by lying
	for depth := 0; m.isIndex(); depth++ {
		if depth == maxDepth {
			return nil, manifest, unresolvable(nil, "%s is an index of indexes without end", ref)
		}
		chosen, err := choosePlatform(m.Manifests, c.config.Platform)
		if err != nil {
			return nil, manifest, unresolvable(nil, "%s %v", ref, err)
		}
		if m, manifest, err = fetchManifest(ctx, repo, chosen.Digest.String()); err != nil {
			return nil, manifest, err
		}
	}
	return m.layers(), manifest, nil
}

// isAbsent reports whether a registry has no such manifest. Some say so with
// other words than 404 where the digest is a blob's.
func isAbsent(err error) bool {
	var resp *errcode.ErrorResponse
	return errors.Is(err, errdef.ErrNotFound) ||
		errors.As(err, &resp) && (resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusUnprocessableEntity)
}

func fetchManifest(ctx context.Context, repo *remote.Repository, reference string) (manifest, ocispec.Descriptor, error) {
	desc, body, err := repo.Manifests().FetchReference(ctx, reference)
	if err != nil {
		return manifest{}, desc, err
	}
	defer body.Close()
	if desc.Size > maxManifestBytes {
		return manifest{}, desc, fmt.Errorf("a manifest of %d bytes: %w", desc.Size, errdef.ErrSizeExceedsLimit)
	}
	data, err := content.ReadAll(body, desc)
	if err != nil {
		return manifest{}, desc, err
	}
	var m manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return manifest{}, desc, unresolvable(err, "%s sent a manifest of %s that is not valid: %v", repo.Reference.Registry, repo.Reference, err)
	}
	return m, desc, nil
}

// openBlob reads a layer by its digest. Its content cannot change, so there
// is nothing to validate.
func (c *Client) openBlob(ctx context.Context, u URL, layer string, offset, length int64) (*Body, error) {
	d, err := digest.Parse(layer)
	if err != nil {
		return nil, malformed("%s was not resolved: %q is not the digest of its layer", u.Canonical, layer)
	}
	scheme := "https"
	if c.plainHTTP(u.ref) {
		scheme = "http"
	}
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", scheme, u.ref.Host(), u.ref.Repository, d)
	scoped := auth.AppendRepositoryScope(ctx, u.ref, auth.ActionPull)
	var body *Body
	err = c.withCredentials(ctx, u.ref, func(client *auth.Client) (err error) {
		body, err = c.open(scoped, registryDoer{client}, url, "", offset, length, Validators{})
		return err
	})
	if err != nil {
		if errors.Is(err, ErrRange) || errors.Is(err, ErrChanged) {
			return nil, err
		}
		return nil, c.explainRegistry(ctx, u.ref, err)
	}
	body.Validators = Validators{}
	return body, nil
}

// A registryDoer tells refused credentials from other answers in the way that
// oras-go does, so that [Client.withCredentials] sees no difference.
type registryDoer struct{ *auth.Client }

func (d registryDoer) Do(req *http.Request) (*http.Response, error) {
	resp, err := d.Client.Do(req)
	if err == nil && (resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden) {
		resp.Body.Close()
		return nil, &errcode.ErrorResponse{Method: req.Method, URL: resp.Request.URL, StatusCode: resp.StatusCode}
	}
	return resp, err
}

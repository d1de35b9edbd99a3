// Package s3store implements [store.Root] over AWS S3 and other servers with its
// protocol. It is the only store that imports the S3 client.
//
// The client retries requests, except those that stream a body, which can be read only
// once, and writes of records, whose outcome would become unclear.
package s3store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"imageroot/shared/store"
)

// Config selects a server. The zero value is AWS, with the region and credentials
// of the standard AWS_* environment.
type Config struct {
	// Endpoint is the URL of an S3 server other than AWS.
	Endpoint string
	// Region defaults to AWS_REGION of the environment, then to us-east-1.
	Region string
	// AccessKey and SecretKey, if both are set, replace the standard credential
	// chain.
	AccessKey, SecretKey string
	// Direct connects to the endpoint without a proxy, even if the environment names
	// one. It is for servers on this machine.
	Direct bool
	// Dial, if not nil, opens all connections to the server, whatever the host of
	// Endpoint. It implies Direct.
	Dial func(context.Context) (net.Conn, error)
}

// A Client is a client of one server. It is safe for concurrent use.
type Client struct {
	s3          *s3.Client
	credentials aws.CredentialsProvider
	transport   http.RoundTripper
}

// Explain adds advice to the error of the first request to a server, if it has any.
func Explain(endpoint string, err error) error {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("the certificate of %s is not trusted: give its authority's in AWS_CA_BUNDLE (%w)", endpoint, err)
	}
	return err
}

// Open returns a client. It does not contact the server.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	// One request can carry gigabytes, so these timeouts apply only before its first
	// byte.
	httpClient := awshttp.NewBuildableClient().WithDialerOptions(func(d *net.Dialer) {
		d.Timeout = 10 * time.Second
	}).WithTransportOptions(func(t *http.Transport) {
		t.MaxIdleConnsPerHost = 64
		t.WriteBufferSize = 256 << 10
		t.ReadBufferSize = 256 << 10
		if cfg.Direct || cfg.Dial != nil {
			t.Proxy = nil
		}
		if cfg.Dial != nil {
			t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return cfg.Dial(ctx) }
		}
	})
	opts := []func(*awsconfig.LoadOptions) error{awsconfig.WithHTTPClient(httpClient)}
	if cfg.Region != "" {
		opts = append(opts, awsconfig.WithRegion(cfg.Region))
	}
	if cfg.AccessKey != "" && cfg.SecretKey != "" {
		opts = append(opts, awsconfig.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(cfg.AccessKey, cfg.SecretKey, "")))
	}
	ac, err := awsconfig.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("load the S3 client's configuration: %w", err)
	}
	if ac.Region == "" {
		ac.Region = "us-east-1"
	}
	transport := http.DefaultTransport
	if c, ok := ac.HTTPClient.(*awshttp.BuildableClient); ok { // it has the root certificates of AWS_CA_BUNDLE
		transport = c.GetTransport()
	}
	return &Client{credentials: ac.Credentials, transport: transport, s3: s3.NewFromConfig(ac, func(o *s3.Options) {
		if cfg.Endpoint == "" {
			return
		}
		o.BaseEndpoint = aws.String(cfg.Endpoint)
		o.UsePathStyle = true
		// Some servers other than AWS refuse the checksums that the client adds by
		// default.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})}, nil
}

// FindBucket returns nil if the bucket exists, [store.ErrNoBucket] if it does not, and
// [store.ErrDenied] if the server does not say.
func (c *Client) FindBucket(ctx context.Context, bucket string) error {
	_, err := c.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &bucket})
	if status(err) == http.StatusNotFound {
		return fmt.Errorf("find bucket %q: %w", bucket, store.ErrNoBucket)
	}
	return wrap("find bucket", bucket, err)
}

// EnsureBucket creates the bucket if it does not exist. The error is [store.ErrDenied]
// if the credentials allow neither that nor the use of an existing bucket. It also
// wraps [ErrCredentials] if the server does not know them.
func (c *Client) EnsureBucket(ctx context.Context, bucket string) error {
	err := c.FindBucket(ctx, bucket)
	// Credentials without the right to list get "denied" for a missing bucket, too.
	denied := errors.Is(err, store.ErrDenied)
	if !denied && !errors.Is(err, store.ErrNoBucket) {
		return err
	}
	_, err = c.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	switch code(err) {
	case "BucketAlreadyOwnedByYou":
		if denied {
			return fmt.Errorf("use bucket %q: %w", bucket, store.ErrDenied)
		}
		return nil // another process has just created it
	case "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return fmt.Errorf("%w: %w", ErrCredentials, wrap("make bucket", bucket, err))
	}
	return wrap("make bucket", bucket, err)
}

// ErrCredentials means that the server does not know the credentials.
var ErrCredentials = errors.New("the server does not know these credentials")

// An Access has what another S3 client needs to use the same server with the same
// credentials.
type Access struct {
	Region                             string
	AccessKey, SecretKey, SessionToken string
	// Transport trusts the certificates that this client trusts.
	Transport http.RoundTripper
}

// Access returns credentials that are valid now but may expire.
func (c *Client) Access(ctx context.Context) (Access, error) {
	creds, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return Access{}, fmt.Errorf("credentials for the S3 server: %w", err)
	}
	return Access{c.s3.Options().Region, creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken, c.transport}, nil
}

// Root returns the root at prefix in bucket. prefix must be empty or end in "/".
func (c *Client) Root(bucket, prefix string) *Root {
	return &Root{s3: c.s3, bucket: bucket, prefix: prefix}
}

// Root implements store.Root over a bucket or a prefix in one.
type Root struct {
	s3             *s3.Client
	bucket, prefix string
}

var _ store.Root = (*Root)(nil)

func (r *Root) key(key store.Key) *string { return aws.String(r.prefix + string(key)) }

func (r *Root) relative(key *string) store.Key {
	return store.Key(strings.TrimPrefix(aws.ToString(key), r.prefix))
}

func unquote(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }

func quote(etag string) *string { return aws.String(`"` + etag + `"`) }

// wrap adds to an error the operation and the matching error of package store. It
// returns nil for nil.
func wrap[S ~string](doing string, key S, err error) error {
	if err == nil {
		return nil
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%s %q: %w (%w)", doing, key, kind, err)
	}
	return fmt.Errorf("%s %q: %w", doing, key, err)
}

func kindOf(err error) error {
	kind := Kind(code(err), status(err))
	if kind == nil && status(err) == 0 && unanswered(err) {
		return store.ErrUnavailable
	}
	return kind
}

// Kind returns the error of package store for an S3 error code and an HTTP status, or
// nil. Either may be missing.
func Kind(code string, status int) error {
	switch code {
	case "NoSuchKey", "NotFound", "NoSuchUpload":
		return store.ErrNotFound
	case "NoSuchBucket":
		return store.ErrNoBucket
	case "PreconditionFailed", "ConditionalRequestConflict":
		return store.ErrConflict
	case "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch":
		return store.ErrDenied
	case "BadDigest", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch":
		return store.ErrBadDigest
	case "EntityTooLarge":
		return store.ErrTooLarge
	case "XMinioStorageFull", "NoSpaceLeftOnDevice", "QuotaExceeded":
		return store.ErrFull
	case "ExistingObjectIsDirectory", "ObjectParentIsFile", "ExistingObjectIsSpecial", // the gateway inside
		"XMinioObjectExistsAsDirectory", "XMinioParentIsObject":
		return store.ErrOccupied
	case "ServerDiskFailed": // the gateway inside
		return store.ErrDisk
	case "RequestTimeout", "IncompleteBody", "ExpiredToken", "TokenRefreshRequired", "OperationAborted":
		// This 400 or 409 is temporary.
		return store.ErrUnavailable
	case "NotImplemented":
		return errors.ErrUnsupported
	}
	switch {
	case status == http.StatusNotFound:
		return store.ErrNotFound
	case status == http.StatusPreconditionFailed:
		return store.ErrConflict
	case status == http.StatusForbidden:
		return store.ErrDenied
	case status == http.StatusInsufficientStorage:
		return store.ErrFull
	case status == http.StatusNotImplemented:
		return errors.ErrUnsupported
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return store.ErrUnavailable
	case status >= 400:
		return store.ErrRefused
	}
	return nil
}

// unanswered reports whether an error without a response is one of the connection.
func unanswered(err error) bool {
	if errors.Is(err, context.Canceled) {
		return false // the caller's context has ended
	}
	_, sending := errors.AsType[*smithyhttp.RequestSendError](err)
	_, network := errors.AsType[net.Error](err)
	return sending || network || errors.Is(err, io.ErrUnexpectedEOF)
}

// answerTimeout bounds requests whose duration does not depend on the size of the
// object.
const answerTimeout = 30 * time.Second

func brief(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, answerTimeout)
}

// code returns the error code of the response, or "" if it has none.
func code(err error) string {
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		return api.ErrorCode()
	}
	return ""
}

// status returns the HTTP status of the response, or 0 if there was none.
func status(err error) int {
	if re, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return re.HTTPStatusCode()
	}
	return 0
}

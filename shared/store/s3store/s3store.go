// Package s3store implements store.Root over S3 and what speaks its protocol.
// It is the one place that imports the S3 client.
package s3store

import (
	"context"
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

// Config says which server to use. The zero value is AWS, with the region
// and credentials that the standard AWS_* environment gives.
type Config struct {
	// Endpoint is the URL of an S3 server other than AWS.
	Endpoint string
	// Region defaults to the AWS_REGION of the environment, then us-east-1.
	Region string
	// AccessKey and SecretKey are used where both are given, in place of the
	// standard credential chain.
	AccessKey, SecretKey string
	// Direct reaches the endpoint without a proxy, whatever the environment
	// says: it is on this very machine.
	Direct bool
	// Dial, if not nil, opens the connections to the server, whatever the host
	// of Endpoint. It implies Direct.
	Dial func(context.Context) (net.Conn, error)
}

// A Client speaks to one server. It is safe for concurrent use.
type Client struct {
	s3          *s3.Client
	credentials aws.CredentialsProvider
	transport   http.RoundTripper
}

// Open prepares a client. It does not contact the server.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	// A body of gigabytes goes through one connection in one request, so only
	// the ways to get stuck before bytes flow have limits here.
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
	if c, ok := ac.HTTPClient.(*awshttp.BuildableClient); ok { // with the roots of AWS_CA_BUNDLE by now
		transport = c.GetTransport()
	}
	return &Client{credentials: ac.Credentials, transport: transport, s3: s3.NewFromConfig(ac, func(o *s3.Options) {
		if cfg.Endpoint == "" {
			return
		}
		o.BaseEndpoint = aws.String(cfg.Endpoint)
		o.UsePathStyle = true
		// Servers other than AWS do not all know the checksums that the client
		// would add by default.
		o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	})}, nil
}

// FindBucket returns [store.ErrNoBucket] if the bucket does not exist, and
// [store.ErrDenied] if the server does not say.
func (c *Client) FindBucket(ctx context.Context, bucket string) error {
	_, err := c.s3.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &bucket})
	if isStatus(err, http.StatusNotFound) {
		return fmt.Errorf("look for bucket %q: %w", bucket, store.ErrNoBucket)
	}
	return wrap("look for bucket", bucket, err)
}

// EnsureBucket makes the bucket if it does not exist. Where that is not
// allowed, or it is there and may not be used, the error is [store.ErrDenied];
// where the server does not know the credentials it is [ErrCredentials] too.
func (c *Client) EnsureBucket(ctx context.Context, bucket string) error {
	err := c.FindBucket(ctx, bucket)
	// Whoever may not look may still not be told that it is missing.
	denied := errors.Is(err, store.ErrDenied)
	if !denied && !errors.Is(err, store.ErrNoBucket) {
		return err
	}
	_, err = c.s3.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket})
	code := ""
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		code = api.ErrorCode()
	}
	switch {
	case code == "BucketAlreadyOwnedByYou" && denied:
		return fmt.Errorf("look into bucket %q: %w", bucket, store.ErrDenied)
	case code == "BucketAlreadyOwnedByYou":
		return nil // made by somebody else just now
	case code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch":
		return fmt.Errorf("%w: %w", ErrCredentials, wrap("make bucket", bucket, err))
	}
	return wrap("make bucket", bucket, err)
}

// ErrCredentials means that the server does not know whose a request is.
var ErrCredentials = errors.New("the server does not know these credentials")

// Access is what another client needs to speak to the same server as the same
// user.
type Access struct {
	Region                             string
	AccessKey, SecretKey, SessionToken string
	// Transport trusts whom this client trusts.
	Transport http.RoundTripper
}

// Access returns credentials that are good for now.
func (c *Client) Access(ctx context.Context) (Access, error) {
	creds, err := c.credentials.Retrieve(ctx)
	if err != nil {
		return Access{}, fmt.Errorf("credentials for the S3 server: %w", err)
	}
	return Access{c.s3.Options().Region, creds.AccessKeyID, creds.SecretAccessKey, creds.SessionToken, c.transport}, nil
}

// Root returns the root at prefix in bucket. The prefix is empty or ends in a
// slash.
func (c *Client) Root(bucket, prefix string) *Root {
	return &Root{s3: c.s3, bucket: bucket, prefix: prefix}
}

// Root implements store.Root over a bucket or a prefix in one.
type Root struct {
	s3             *s3.Client
	bucket, prefix string
}

var _ store.Root = (*Root)(nil)

func (r *Root) key(key string) *string { return aws.String(r.prefix + key) }

func (r *Root) relative(key *string) string { return strings.TrimPrefix(aws.ToString(key), r.prefix) }

func unquote(etag *string) string { return strings.Trim(aws.ToString(etag), `"`) }

func quote(etag string) *string { return aws.String(`"` + etag + `"`) }

// wrap places an error of the server in the store's terms and names what was
// tried. A nil error stays nil.
func wrap(doing, key string, err error) error {
	if err == nil {
		return nil
	}
	if kind := kindOf(err); kind != nil {
		return fmt.Errorf("%s %q: %w (%w)", doing, key, kind, err)
	}
	return fmt.Errorf("%s %q: %w", doing, key, err)
}

func kindOf(err error) error {
	var api smithy.APIError
	if errors.As(err, &api) {
		switch api.ErrorCode() {
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
			// A 400 or 409 that passes.
			return store.ErrUnavailable
		case "NotImplemented":
			return errors.ErrUnsupported
		}
	}
	switch {
	case isStatus(err, http.StatusNotFound):
		return store.ErrNotFound
	case isStatus(err, http.StatusPreconditionFailed):
		return store.ErrConflict
	case isStatus(err, http.StatusForbidden):
		return store.ErrDenied
	case isStatus(err, http.StatusInsufficientStorage):
		return store.ErrFull
	case isStatus(err, http.StatusNotImplemented):
		return errors.ErrUnsupported
	case unavailable(err):
		return store.ErrUnavailable
	case status(err) >= 400:
		return store.ErrRefused
	}
	return nil
}

// unavailable reports whether there was no answer, or one that says that
// there may be a better one later.
func unavailable(err error) bool {
	if s := status(err); s != 0 {
		return s >= 500 || s == http.StatusTooManyRequests || s == http.StatusRequestTimeout
	}
	if errors.Is(err, context.Canceled) {
		return false // by the caller
	}
	_, sending := errors.AsType[*smithyhttp.RequestSendError](err)
	_, network := errors.AsType[net.Error](err)
	return sending || network || errors.Is(err, io.ErrUnexpectedEOF)
}

// answerTimeout bounds requests that are answered at once, however large the
// object: a server that needs longer is as good as gone.
const answerTimeout = 30 * time.Second

func brief(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, answerTimeout)
}

func isStatus(err error, want int) bool { return status(err) == want }

// status returns the HTTP status that the server answered, or 0 if there was no
// answer.
func status(err error) int {
	if re, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		return re.HTTPStatusCode()
	}
	return 0
}

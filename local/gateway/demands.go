package gateway

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/versity/versitygw/s3api/middlewares"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"golang.org/x/net/http/httpguts"
)

// A demand is a request header for a feature that the gateway lacks and versitygw
// ignores.
type demand struct {
	prefix   string   // of its name, in lower case
	harmless []string // values that demand nothing, in lower case
	answer   s3err.S3Error
}

var demands = []demand{
	// Nothing is encrypted on the disk.
	{"x-amz-server-side-encryption", nil, nil},
	{"x-amz-copy-source-server-side-encryption", nil, nil},
	// Nothing is locked against deletion.
	{"x-amz-object-lock-", nil, nil},
	{"x-amz-bucket-object-lock-enabled", []string{"false"}, nil},
	// There is one storage class, and at most one account.
	{"x-amz-storage-class", []string{"standard", "reduced_redundancy"}, apiError(fiber.StatusBadRequest, "InvalidStorageClass", "The storage class you specified is not valid")},
	{"x-amz-acl", []string{"private", "bucket-owner-full-control", "bucket-owner-read"}, s3err.GetAPIError(s3err.ErrAclNotSupported)},
	{"x-amz-grant-", nil, s3err.GetAPIError(s3err.ErrAclNotSupported)},
	// Without these, the request would replace the object.
	{"x-amz-write-offset-bytes", nil, nil},
	{"x-amz-rename-source", nil, nil},
}

// asks returns the answer to a demand by the header with that name and value,
// or nil if there is none.
func asks(name, value string) s3err.S3Error {
	name = strings.ToLower(name)
	for _, d := range demands {
		switch {
		case !strings.HasPrefix(name, d.prefix):
		case slices.Contains(d.harmless, strings.ToLower(value)):
			return nil
		case d.answer != nil:
			return d.answer
		default:
			return unsupported(name)
		}
	}
	return nil
}

// formAsks returns the answer to a demand or a malformed field in the form of the
// request behind ctx, or nil if there is none.
func formAsks(ctx context.Context, now time.Time) error {
	form, _ := ctx.Value(string(s3utils.ContextKeyObjectPostResult)).(middlewares.PostObjectResult)
	for name, value := range form.Fields {
		// These are documents, whose line breaks are not stored.
		if name != "policy" && name != "tagging" {
			if answer := printable(name, value); answer != nil {
				return answer
			}
		}
		if name == "x-amz-date" {
			if answer := early(value, now); answer != nil {
				return answer
			}
		}
		if name == "acl" {
			name = "x-amz-acl"
		}
		if answer := asks(name, value); answer != nil {
			return answer
		}
	}
	return nil
}

// unrouted are subresources of S3 that versitygw has no route for: it would remove
// the bucket on DELETE /BUCKET?metadataTable, and store an empty object on PUT
// /BUCKET/KEY?renameObject.
var unrouted = []string{
	"abac", "metadataConfiguration", "metadataInventoryTable", "metadataJournalTable", "metadataTable", "renameObject", "session", "torrent",
}

// unroutedOfObjects are subresources that versitygw has routes for on buckets, but
// not on objects.
var unroutedOfObjects = []string{
	"accelerate", "analytics", "cors", "delete", "encryption", "intelligent-tiering", "inventory", "lifecycle", "location", "logging",
	"metrics", "notification", "object-lock", "ownershipControls", "policy", "policyStatus", "publicAccessBlock", "replication",
	"requestPayment", "versioning", "website",
}

// isOldSignature reports whether a request is signed with Signature Version 2,
// in a header or in its URL.
func isOldSignature(ctx fiber.Ctx) bool {
	query := ctx.Request().URI().QueryArgs()
	return strings.HasPrefix(ctx.Get("Authorization"), "AWS ") || query.Has("AWSAccessKeyId") && query.Has("Signature")
}

// decline returns the middleware that refuses what versitygw would ignore:
// demands in headers, in the query of a presigned URL, and subresources. It also
// refuses what is malformed, and explains the refusal of old signatures.
func decline(now func() time.Time) fiber.Handler {
	return func(ctx fiber.Ctx) error {
		if answer := declined(ctx, now()); answer != nil {
			return reject(ctx, answer)
		}
		return ctx.Next()
	}
}

func declined(ctx fiber.Ctx, now time.Time) s3err.S3Error {
	if isOldSignature(ctx) {
		return errOldSignature
	}
	for k, v := range ctx.Request().Header.All() {
		name, value := strings.ToLower(string(k)), string(v)
		if answer := cmp.Or(printable(name, value), condition(name, value, now), asks(name, value)); answer != nil {
			return answer
		}
	}
	key := keyOf(ctx)
	for k, v := range ctx.Request().URI().QueryArgs().All() {
		name, value := string(k), string(v)
		if strings.HasPrefix(name, "response-") && !httpguts.ValidHeaderFieldValue(value) {
			return invalid(name, "The value has control characters.")
		}
		if name == "X-Amz-Date" {
			if answer := early(value, now); answer != nil {
				return answer
			}
		}
		if answer := asks(name, value); answer != nil {
			return answer
		}
		if slices.Contains(unrouted, name) || key != "" && slices.Contains(unroutedOfObjects, name) {
			return unsupported(name)
		}
	}
	return nil
}

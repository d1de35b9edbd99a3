package gateway

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/gofiber/fiber/v3"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"
	"golang.org/x/net/http/httpguts"
)

// maxSkew is how far the clock of a client may be ahead, as on AWS.
const maxSkew = 15 * time.Minute

// printable returns an error if a header with that name and value would break
// RFC 9110 §5.1 or §5.5.
func printable(name, value string) s3err.S3Error {
	switch {
	case !httpguts.ValidHeaderFieldName(name):
		return invalid("", "The name of a header or field has characters that HTTP does not allow.")
	case !httpguts.ValidHeaderFieldValue(value):
		return invalid(name, "The value has control characters.")
	}
	return nil
}

// early returns an error if a date in the form of a signature is in the future,
// which would make a presigned URL valid for longer than it says. versitygw refuses
// one that does not parse.
func early(date string, now time.Time) s3err.S3Error {
	t, err := time.Parse("20060102T150405Z", date)
	if err == nil && t.After(now.Add(maxSkew)) {
		return apiError(fiber.StatusForbidden, "AccessDenied", "Request is not valid yet")
	}
	return nil
}

// ofETag and ofDate are the conditional headers. versitygw drops a value that it
// cannot parse, which makes the request unconditional.
var (
	ofETag = []string{"if-match", "if-none-match", "x-amz-copy-source-if-match", "x-amz-copy-source-if-none-match"}
	ofDate = []string{
		"if-modified-since", "if-unmodified-since", "x-amz-copy-source-if-modified-since", "x-amz-copy-source-if-unmodified-since",
		"x-amz-if-match-last-modified-time", "x-amz-if-match-initiated-time",
	}
)

// condition returns an error if the header with that name, in lower case, is a
// condition that versitygw would drop.
func condition(name, value string, now time.Time) s3err.S3Error {
	switch {
	case name == "x-amz-trailer":
		algorithm, sum := strings.CutPrefix(strings.ToUpper(value), "X-AMZ-CHECKSUM-")
		if value != "" && !sum || s3utils.IsChecksumAlgorithmValid(types.ChecksumAlgorithm(algorithm)) != nil {
			return s3err.GetAPIError(s3err.ErrTrailerHeaderNotSupported) // versitygw would answer with an internal error
		}
	case name == "x-amz-if-match-size":
		if _, err := strconv.ParseUint(value, 10, 63); err != nil {
			return invalid(name, "The value is not a size in bytes.")
		}
	case slices.Contains(ofETag, name):
		if strings.Trim(value, `" `) == "" {
			return invalid(name, "The value has no ETag.")
		}
	case slices.Contains(ofDate, name):
		date, err := time.Parse(http.TimeFormat, value)
		if err != nil {
			date, err = time.Parse(time.RFC3339, value)
		}
		if err == nil {
			// versitygw drops a date in the future, too. S3 does so for all but
			// this one, which no object meets.
			if name == "x-amz-if-match-last-modified-time" && date.After(now) {
				return s3err.GetPreconditionFailedErr(s3err.ConditionIfMatchLastModTime)
			}
			return nil
		}
		// RFC 9110 §13.1.3 and §13.1.4: a value that is not an HTTP-date is ignored.
		if _, old := http.ParseTime(value); old == nil || strings.HasPrefix(name, "x-amz-") {
			return invalid(name, "The value is not a date like Mon, 02 Jan 2006 15:04:05 GMT or 2006-01-02T15:04:05Z.")
		}
	}
	return nil
}

package gateway

import (
	"context"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/valyala/fasthttp"
)

// An encoding is the encoding-type of a listing, which versitygw does not read.
type encoding types.EncodingType

// encodingOf returns the encoding that the request behind ctx has.
func encodingOf(ctx context.Context) (encoding, error) {
	req, ok := ctx.(*fasthttp.RequestCtx)
	if !ok {
		return "", nil
	}
	switch asked := string(req.QueryArgs().Peek("encoding-type")); asked {
	case "", string(types.EncodingTypeUrl):
		return encoding(asked), nil
	default:
		return "", apiError(fasthttp.StatusBadRequest, "InvalidArgument", "Invalid Encoding Method specified in Request")
	}
}

// s3Encoding turns url.QueryEscape into S3's encoding: that of Java's URLEncoder,
// except for the slash.
var s3Encoding = strings.NewReplacer("%2F", "/", "%2A", "*", "~", "%7E")

// encode encodes fields in place. It ignores nil.
func (e encoding) encode(fields ...*string) {
	for _, f := range fields {
		if e != "" && f != nil {
			*f = s3Encoding.Replace(url.QueryEscape(*f))
		}
	}
}

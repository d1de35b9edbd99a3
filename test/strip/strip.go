// Package strip simulates an S3 server that ignores a header, such as
// If-None-Match: a proxy removes the header on the way to a good server.
package strip

import (
	"net/http/httputil"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Proxy returns a handler that forwards requests to the server at endpoint. It
// removes header from requests with this method, and signs every request again
// with the keys.
func Proxy(endpoint, accessKey, secretKey, method, header string) (*httputil.ReverseProxy, error) {
	to, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	signer := v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true })
	keys := aws.Credentials{AccessKeyID: accessKey, SecretAccessKey: secretKey}
	return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		if r.Out.Method == method {
			r.Out.Header.Del(header)
		}
		for k := range r.Out.Header {
			if k != "Content-Type" && k != "Content-Length" && k != "Range" && !strings.HasPrefix(k, "X-Amz-") && !strings.HasPrefix(k, "If-") {
				r.Out.Header.Del(k)
			}
		}
		// Signing fails only without keys, which the server reports.
		_ = signer.SignHTTP(r.Out.Context(), keys, r.Out, r.Out.Header.Get("X-Amz-Content-Sha256"), "s3", "us-east-1", time.Now())
	}}, nil
}

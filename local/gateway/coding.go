package gateway

import "strings"

// attrEncoding is the Content-Encoding of an object.
const attrEncoding = "content-encoding"

// withoutChunking returns a Content-Encoding without aws-chunked, which is how
// a client framed its request and not how the object is encoded. S3 does not
// store it.
func withoutChunking(encoding string) string {
	var kept []string
	for coding := range strings.SplitSeq(encoding, ",") {
		if coding = strings.TrimSpace(coding); coding != "" && !strings.EqualFold(coding, "aws-chunked") {
			kept = append(kept, coding)
		}
	}
	return strings.Join(kept, ",")
}

package lambda_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"

	"imageroot/test/template"
)

// A guard is a proxy between one function and the services that acts as IAM: it
// forwards requests that the function's policy allows, and records the grants
// that were used.
type guard struct {
	function string
	grants   []template.Grant
	s3, sqs  *httptest.Server
	secrets  *httptest.Server

	mu     sync.Mutex
	denied []string
	rate   int64                     // bytes a second of answers of S3; 0: no limit
	refuse func(r *http.Request) int // the status of a refusal; 0: none
}

// used are the grants that were used, by function.
var used = struct {
	sync.Mutex
	by map[string]map[template.Grant]bool
}{by: map[string]map[template.Grant]bool{}}

func newGuard(function string, grants []template.Grant, s3, sqs string, secrets map[string]string) (*guard, error) {
	g := &guard{function: function, grants: grants}
	s3URL, err := url.Parse(s3)
	if err != nil {
		return nil, err
	}
	sqsURL, err := url.Parse(sqs)
	if err != nil {
		return nil, err
	}
	proxy := func(to *url.URL) *httputil.ReverseProxy {
		return &httputil.ReverseProxy{
			// The signature covers the host.
			Rewrite: func(r *httputil.ProxyRequest) {
				r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
			},
			ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		}
	}
	s3Proxy, sqsProxy := proxy(s3URL), proxy(sqsURL)
	s3Proxy.ModifyResponse = func(resp *http.Response) error {
		g.mu.Lock()
		rate := g.rate
		g.mu.Unlock()
		if rate > 0 {
			resp.Body = &slow{resp.Body, rate}
		}
		// Only a caller with the right to list learns that an object does not
		// exist.
		bucket, key, _ := strings.Cut(strings.TrimPrefix(resp.Request.URL.Path, "/"), "/")
		if resp.StatusCode == http.StatusNotFound && key != "" && !g.allow("s3:ListBucket", "arn:aws:s3:::"+bucket) {
			resp.StatusCode = http.StatusForbidden
		}
		return nil
	}
	g.s3 = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, n := range s3Needs(r) {
			if !g.allow(n.Action, n.Resource) {
				w.Header().Set("Content-Type", "application/xml")
				w.WriteHeader(http.StatusForbidden)
				_, _ = io.WriteString(w, "<Error><Code>AccessDenied</Code><Message>"+n.Action+"</Message></Error>")
				return
			}
		}
		g.mu.Lock()
		refuse := g.refuse
		g.mu.Unlock()
		if refuse != nil {
			if status := refuse(r); status != 0 {
				w.Header().Set("Access-Control-Allow-Origin", "*")
				w.WriteHeader(status)
				return
			}
		}
		s3Proxy.ServeHTTP(w, r)
	}))
	g.sqs = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		action := "sqs:" + strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
		body, _ := io.ReadAll(r.Body) // half of one does not decode
		var in struct{ QueueURL string }
		_ = json.Unmarshal(body, &in) // and is of no queue
		if !g.allow(action, "arn:aws:sqs:us-east-1:"+template.Account+":"+in.QueueURL[strings.LastIndex(in.QueueURL, "/")+1:]) {
			deny(w, "com.amazonaws.sqs#AccessDenied")
			return
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
		sqsProxy.ServeHTTP(w, r)
	}))
	g.secrets = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in struct{ SecretID string }
		err := json.NewDecoder(r.Body).Decode(&in)
		if err != nil || !g.allow(strings.Replace(r.Header.Get("X-Amz-Target"), "secretsmanager.", "secretsmanager:", 1), in.SecretID) {
			deny(w, "AccessDeniedException")
			return
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		_ = json.NewEncoder(w).Encode(map[string]string{"ARN": in.SecretID, "SecretString": secrets[in.SecretID]})
	}))
	return g, nil
}

func deny(w http.ResponseWriter, code string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.WriteHeader(http.StatusBadRequest)
	_ = json.NewEncoder(w).Encode(map[string]string{"__type": code, "message": "denied"})
}

func (g *guard) close() {
	for _, s := range []*httptest.Server{g.s3, g.sqs, g.secrets} {
		s.CloseClientConnections()
		s.Close()
	}
}

// refusing makes S3 refuse some requests from now on.
func (g *guard) refusing(refuse func(r *http.Request) int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refuse = refuse
}

// allow reports whether the policy allows an action.
func (g *guard) allow(action, resource string) bool {
	// Only the first matching grant counts as used, so that a redundant one is
	// reported.
	for _, grant := range g.grants {
		if grant.Allows(action, resource) {
			used.Lock()
			if used.by[g.function] == nil {
				used.by[g.function] = map[template.Grant]bool{}
			}
			used.by[g.function][grant] = true
			used.Unlock()
			return true
		}
	}
	g.mu.Lock()
	g.denied = append(g.denied, fmt.Sprintf("%s may not %s on %s", g.function, action, resource))
	g.mu.Unlock()
	return false
}

// s3Needs returns the grants that a request to S3 needs.
func s3Needs(r *http.Request) []template.Grant {
	if r.Method == http.MethodOptions {
		return nil // up to the CORS rule
	}
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	q := r.URL.Query()
	arn := "arn:aws:s3:::" + bucket
	if key == "" {
		action := "s3:ListBucket"
		if q.Has("uploads") {
			action = "s3:ListBucketMultipartUploads"
		}
		return []template.Grant{{Action: action, Resource: arn}}
	}
	arn += "/" + key
	upload := q.Has("uploadId")
	switch {
	case r.Method == http.MethodGet && upload:
		return []template.Grant{{Action: "s3:ListMultipartUploadParts", Resource: arn}}
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return []template.Grant{{Action: "s3:GetObject", Resource: arn}}
	case r.Method == http.MethodDelete && upload:
		return []template.Grant{{Action: "s3:AbortMultipartUpload", Resource: arn}}
	case r.Method == http.MethodDelete:
		return []template.Grant{{Action: "s3:DeleteObject", Resource: arn}}
	}
	needs := []template.Grant{{Action: "s3:PutObject", Resource: arn}}
	if source := r.Header.Get("X-Amz-Copy-Source"); source != "" {
		if s, err := url.PathUnescape(source); err == nil {
			source = s
		}
		needs = append(needs, template.Grant{Action: "s3:GetObject", Resource: "arn:aws:s3:::" + strings.TrimPrefix(source, "/")})
	}
	return needs
}

// slow is a body with a limited rate.
type slow struct {
	io.ReadCloser
	rate int64
}

func (s *slow) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p[:min(int64(len(p)), s.rate/20)])
	time.Sleep(time.Duration(n) * time.Second / time.Duration(s.rate))
	return n, err
}

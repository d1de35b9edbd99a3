package lambda

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
)

// invoke passes h a plain event, changed by edit.
func invoke(t *testing.T, h http.HandlerFunc, edit func(e *events.APIGatewayV2HTTPRequest)) events.APIGatewayV2HTTPResponse {
	t.Helper()
	e := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RawPath: "/images", Headers: map[string]string{"host": "api.example", "x-forwarded-proto": "https"},
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			DomainName: "abc.execute-api.us-east-1.amazonaws.com",
			HTTP:       events.APIGatewayV2HTTPRequestContextHTTPDescription{Method: "GET", SourceIP: "203.0.113.7"},
		},
	}
	if edit != nil {
		edit(&e)
	}
	payload, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	f := &Function{HTTP: h, Log: slog.New(slog.DiscardHandler)}
	data, err := f.Invoke(t.Context(), payload)
	if err != nil {
		t.Fatal(err)
	}
	var out events.APIGatewayV2HTTPResponse
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// Header values with commas, which known adapters split, stay whole.
func TestHeaders(t *testing.T) {
	want := map[string]string{
		"Range":           "bytes=0-1, 4-5",
		"If-Match":        `"a,b", "c"`,
		"If-None-Match":   `W/"x", "y,z"`,
		"Accept":          "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
		"Authorization":   "Bearer a,b",
		"X-Amz-Something": "1,2,3",
	}
	invoke(t, func(_ http.ResponseWriter, r *http.Request) {
		for name, value := range want {
			if got := r.Header[name]; len(got) != 1 || got[0] != value {
				t.Errorf("%s: %q", name, got)
			}
		}
		if r.Host != "api.example" || r.RemoteAddr != "203.0.113.7:0" || r.Header.Get("Host") != "" {
			t.Errorf("host %q, from %q", r.Host, r.RemoteAddr)
		}
	}, func(e *events.APIGatewayV2HTTPRequest) {
		for name, value := range want {
			e.Headers[strings.ToLower(name)] = value
		}
	})
	// Without a Host field, the host is the API's domain name. IPv6 addresses get
	// brackets.
	invoke(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.Host != "abc.execute-api.us-east-1.amazonaws.com" || r.RemoteAddr != "[2001:db8::1]:0" {
			t.Errorf("host %q, from %q", r.Host, r.RemoteAddr)
		}
	}, func(e *events.APIGatewayV2HTTPRequest) {
		delete(e.Headers, "host")
		e.RequestContext.HTTP.SourceIP = "2001:db8::1"
	})
}

func TestCookies(t *testing.T) {
	out := invoke(t, func(w http.ResponseWriter, r *http.Request) {
		for name, value := range map[string]string{"a": "1", "b": "x=y"} {
			if c, err := r.Cookie(name); err != nil || c.Value != value {
				t.Errorf("cookie %s: %v, %v", name, c, err)
			}
		}
		http.SetCookie(w, &http.Cookie{Name: "c", Value: "1", Expires: time.Unix(2e9, 0)})
		http.SetCookie(w, &http.Cookie{Name: "d", Value: "2"})
	}, func(e *events.APIGatewayV2HTTPRequest) { e.Cookies = []string{"a=1", "b=x=y"} })
	if len(out.Cookies) != 2 || !strings.HasPrefix(out.Cookies[0], "c=1; Expires=Wed, 18 May") || out.Cookies[1] != "d=2" || out.Headers["Set-Cookie"] != "" {
		t.Errorf("cookies %q, headers %v", out.Cookies, out.Headers)
	}
}

func TestPaths(t *testing.T) {
	mux := http.NewServeMux()
	var got string
	mux.HandleFunc("GET /images/{key}", func(_ http.ResponseWriter, r *http.Request) { got = r.PathValue("key") })
	for _, tt := range []struct{ domain, raw, want string }{
		// An HTTP API decodes paths.
		{"abc.execute-api.us-east-1.amazonaws.com", "/images/a b+c.img", "a b+c.img"},
		{"abc.execute-api.us-east-1.amazonaws.com", "/images/100%41.img", "100%41.img"},
		{"abc.execute-api.us-east-1.amazonaws.com", "/images/50%.img", "50%.img"},
		{"abc.execute-api.us-east-1.amazonaws.com", "/images/ü#?.img", "ü#?.img"},
		{"images.example.com", "/images/a%2Fb.img", "a%2Fb.img"},
		// A function URL does not.
		{"abc.lambda-url.us-east-1.on.aws", "/images/a%20b+c.img", "a b+c.img"},
		{"abc.lambda-url.us-east-1.on.aws", "/images/100%2541.img", "100%41.img"},
		{"abc.lambda-url.us-east-1.on.aws", "/images/a%2Fb.img", "a/b.img"},
		{"abc.lambda-url.us-east-1.on.aws", "/images/%C3%BC%23%3F.img", "ü#?.img"},
	} {
		got = ""
		invoke(t, mux.ServeHTTP, func(e *events.APIGatewayV2HTTPRequest) { e.RawPath, e.RequestContext.DomainName = tt.raw, tt.domain })
		if got != tt.want {
			t.Errorf("%s at %s: %q, want %q", tt.raw, tt.domain, got, tt.want)
		}
	}
	if out := invoke(t, mux.ServeHTTP, func(e *events.APIGatewayV2HTTPRequest) {
		e.RawPath, e.RequestContext.DomainName = "/images/%zz", "abc.lambda-url.us-east-1.on.aws"
	}); out.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a path that does not decode: %d", out.StatusCode)
	}
}

func TestQueryIsRaw(t *testing.T) {
	const query = "q=a+b%2Bc&q=d%26e&src=oras%3A%2F%2Fr%2Fx%3Ay&empty=&flag"
	invoke(t, func(_ http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if r.URL.RawQuery != query || len(q["q"]) != 2 || q["q"][0] != "a b+c" || q["q"][1] != "d&e" || q.Get("src") != "oras://r/x:y" || !q.Has("flag") {
			t.Errorf("%q: %v", r.URL.RawQuery, q)
		}
		if r.RequestURI != "/images?"+query {
			t.Errorf("URI %q", r.RequestURI)
		}
	}, func(e *events.APIGatewayV2HTTPRequest) { e.RawQueryString = query })
}

func TestBody(t *testing.T) {
	for name, edit := range map[string]func(*events.APIGatewayV2HTTPRequest){
		"text":   func(e *events.APIGatewayV2HTTPRequest) { e.Body = "a=ü\x00" },
		"base64": func(e *events.APIGatewayV2HTTPRequest) { e.Body, e.IsBase64Encoded = "YT3DvAA=", true },
	} {
		invoke(t, func(_ http.ResponseWriter, r *http.Request) {
			data, err := io.ReadAll(r.Body)
			if err != nil || string(data) != "a=ü\x00" || r.ContentLength != 5 {
				t.Errorf("%s: %q, %d, %v", name, data, r.ContentLength, err)
			}
		}, edit)
	}
	out := invoke(t, func(http.ResponseWriter, *http.Request) { t.Error("handled") },
		func(e *events.APIGatewayV2HTTPRequest) { e.Body, e.IsBase64Encoded = "?", true })
	if out.StatusCode != http.StatusUnprocessableEntity {
		t.Errorf("a body that does not decode: %d", out.StatusCode)
	}
}

func TestAnswers(t *testing.T) {
	binary := "PK\x03\x04 that happens to be UTF-8"
	for _, tt := range []struct {
		name    string
		handler http.HandlerFunc
		method  string
		status  int
		typ     string
		body    string
		encoded bool
	}{
		{"nothing", func(http.ResponseWriter, *http.Request) {}, "GET", 200, "", "", false},
		{"status only", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, "GET", 204, "", "", false},
		{"first status counts", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(103)
			w.WriteHeader(404)
			w.WriteHeader(200)
		}, "GET", 404, "", "", false},
		{"sniffed", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>ü") }, "GET", 200, "text/html; charset=utf-8", "<html>ü", false},
		{"JSON", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "{}")
		}, "GET", 200, "application/problem+json", "{}", false},
		{"binary", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = io.WriteString(w, binary)
		}, "GET", 200, "application/octet-stream", binary, true},
		{"text that is not UTF-8", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(w, "\xff\xfe")
		}, "GET", 200, "text/plain", "\xff\xfe", true},
		{"compressed", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/css")
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = io.WriteString(w, "plain by accident")
		}, "GET", 200, "text/css", "plain by accident", true},
		{"HEAD", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/plain")
			w.Header().Set("Content-Length", "7")
			_, _ = io.WriteString(w, "nothing")
		}, "HEAD", 200, "text/plain", "", false},
	} {
		out := invoke(t, tt.handler, func(e *events.APIGatewayV2HTTPRequest) { e.RequestContext.HTTP.Method = tt.method })
		body := out.Body
		if out.IsBase64Encoded {
			b, err := base64.StdEncoding.DecodeString(body)
			if err != nil {
				t.Errorf("%s: %v", tt.name, err)
			}
			body = string(b)
		}
		if out.StatusCode != tt.status || out.Headers["Content-Type"] != tt.typ || body != tt.body || out.IsBase64Encoded != tt.encoded {
			t.Errorf("%s: %d %q %q, encoded %v", tt.name, out.StatusCode, out.Headers["Content-Type"], body, out.IsBase64Encoded)
		}
	}
	out := invoke(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Vary"] = []string{"Accept", "Cookie"}
		w.WriteHeader(200)
		w.Header().Set("X-Late", "1")
	}, nil)
	if out.Headers["Vary"] != "Accept, Cookie" || out.Headers["X-Late"] != "" {
		t.Errorf("headers %v", out.Headers)
	}
}

func TestTooLargeAnswer(t *testing.T) {
	for n, status := range map[int]int{4 << 20: 200, 5 << 20: 501} { // base64 adds a third
		out := invoke(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/octet-stream")
			_, _ = w.Write(make([]byte, n))
		}, nil)
		if out.StatusCode != status || status != 200 && !strings.Contains(out.Body, "ask for less") {
			t.Errorf("%d bytes: %d %.200s", n, out.StatusCode, out.Body)
		}
	}
	out := invoke(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(strings.Repeat("\"", 4<<20))) }, nil)
	if out.StatusCode != 501 {
		t.Errorf("text that grows when it is quoted: %d", out.StatusCode)
	}
}

func TestPanics(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"before": func(http.ResponseWriter, *http.Request) { panic("secret") },
		"after": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Disposition", "attachment")
			w.WriteHeader(201)
			_, _ = io.WriteString(w, "half")
			panic(http.ErrAbortHandler)
		},
	} {
		out := invoke(t, h, nil)
		if out.StatusCode != 500 || strings.Contains(out.Body, "secret") || strings.Contains(out.Body, "half") ||
			out.Headers["Content-Type"] != "application/problem+json" || out.Headers["Content-Disposition"] != "" {
			t.Errorf("%s: %d %v %s", name, out.StatusCode, out.Headers, out.Body)
		}
	}
}

func TestDeadlineOfRequests(t *testing.T) {
	invoke(t, func(_ http.ResponseWriter, r *http.Request) {
		end, ok := r.Context().Deadline()
		if left := time.Until(end); !ok || left > answerTime || left < answerTime/2 {
			t.Errorf("a request has %v", left)
		}
	}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	ctx, cancel = deadline(ctx, margin)
	defer cancel()
	if end, _ := ctx.Deadline(); time.Until(end) > 2*time.Second || time.Until(end) < time.Second {
		t.Errorf("of 3 s, %v are for the work", time.Until(end))
	}
	if ctx, cancel := deadline(context.Background(), margin); ctx.Err() != nil {
		t.Error("without a deadline there is no time at all")
	} else {
		cancel()
	}
}

func TestStrangeEvents(t *testing.T) {
	f := &Function{HTTP: http.NotFoundHandler(), Log: slog.New(slog.DiscardHandler)}
	for _, e := range []string{
		"", "null", "{}", "[]", "5", `{"Records":[]}`, `{"Records":[{"eventSource":"aws:s3"}]}`, `{"source":"aws.events"}`,
		`{"source":"aws.ec2"}`, `{"requestContext":{"http":{"method":"GET"}},"cookies":5}`,
	} {
		if out, err := f.Invoke(t.Context(), []byte(e)); err == nil {
			t.Errorf("%s: %s", e, out)
		}
	}
	f.Handle = func(_ context.Context, body []byte) error { return fmt.Errorf("handled %s", body) }
	if _, err := f.Invoke(t.Context(), []byte(`{"source":"aws.events","detail-type":"Scheduled Event"}`)); err == nil || err.Error() != `handled {"reconcile":true}` {
		t.Errorf("a schedule: %v", err)
	}
	f.Handle = func(context.Context, []byte) error { panic("broken") }
	if _, err := f.Invoke(t.Context(), []byte(`{"source":"aws.events"}`)); err == nil {
		t.Error("a schedule whose handler panics is a success")
	}
	// Messages of an unknown queue are not handled.
	out, err := f.Invoke(t.Context(), []byte(`{"Records":[{"eventSource":"aws:sqs","messageId":"m","eventSourceARN":"arn:aws:sqs:us-east-1:1:other","body":"{}"}]}`))
	if err != nil || string(out) != `{"batchItemFailures":[{"itemIdentifier":"m"}]}` {
		t.Errorf("%s, %v", out, err)
	}
}

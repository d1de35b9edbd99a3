package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/klauspost/compress/zstd"

	"imageroot/test/emulator"
	"imageroot/test/runner"
	"imageroot/test/template"
)

// functionTimeout is how long API Gateway waits for a function.
const functionTimeout = 30 * time.Second

// functionSettings returns the environment of a function in template.yaml, and its memory in
// MiB. Its store is at endpoint, and nothing is at its queues. Secrets are in the variables.
func functionSettings(name, endpoint, access, secret string) (env []string, memory int, err error) {
	tpl, err := template.Load(nil)
	if err != nil {
		return nil, 0, err
	}
	tpl.SQS = "http://127.0.0.1:9"
	id, ok := tpl.Functions()[name]
	if !ok {
		return nil, 0, fmt.Errorf("template.yaml has no function %s", name)
	}
	vars := tpl.Environment(id)
	vars["IMAGEROOT_S3_ENDPOINT"], vars["IMAGEROOT_IMAGE_ROOT"], vars["IMAGEROOT_CATALOG_ROOT"] = endpoint, "s3://images", "s3://catalog"
	for variable, value := range map[string]string{
		"IMAGEROOT_TOKEN": token, "IMAGEROOT_SESSION_KEY": strings.Repeat("0123456789abcdef", 2), "IMAGEROOT_PASSWORD": password,
	} {
		if vars[variable] != "" {
			vars[variable] = value
		}
	}
	env = []string{"AWS_REGION=" + template.Region, "AWS_ACCESS_KEY_ID=" + access, "AWS_SECRET_ACCESS_KEY=" + secret}
	for variable, value := range vars {
		env = append(env, variable+"="+value)
	}
	return env, tpl.Setting(id, "MemorySize").(int), nil
}

// catalogFunction measures the catalog function under the emulator, over the store that is far
// away: the first answer of a new instance, and an open page.
func (b *bench) catalogFunction(ctx context.Context, p *proxy, count int) error {
	binary := b.path("catalog-function", "bootstrap")
	if _, err := os.Stat(binary); err != nil {
		if err := emulator.Build(ctx, "", "./functions/catalog/lambda", binary); err != nil {
			return err
		}
	}
	env, memory, err := functionSettings("catalog", p.URL, accessKey, secretKey)
	if err != nil {
		return err
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		return err
	}
	s := &server{Process: &runner.Process{Pages: "https://" + functionHost}}
	cold := func() (*emulator.Emulator, error) {
		e, err := emulator.Start(ctx, emulator.Config{
			Command: []string{binary}, Env: env, Timeout: functionTimeout, Memory: memory,
		})
		if err == nil {
			s.http = &http.Client{Transport: invoker{e}, Jar: jar}
		}
		return e, err
	}
	e, err := cold()
	if err != nil {
		return err
	}
	defer func() { e.Kill() }()
	if err := s.login(ctx); err != nil {
		return err
	}
	what := fmt.Sprintf("%d images, %v away, catalog function", count, b.delay)
	for _, path := range firstPaths {
		var all []first
		for range b.rounds {
			e.Kill()
			if e, err = cold(); err != nil {
				return err
			}
			before, began := p.sent(), time.Now()
			if _, err := s.getFrom(ctx, s.Pages, path); err != nil {
				return err
			}
			f := first{took: time.Since(began).Seconds(), sent: p.sent().since(before)}
			pid, err := e.PID()
			if err != nil {
				return err
			}
			if f.used, err = cpuTime(pid); err != nil {
				return err
			}
			all = append(all, f)
		}
		b.reportFirst(what, path, firstBound(count, path, true), all)
	}
	if err := b.openPage(ctx, s, p, what); err != nil {
		return err
	}
	pid, err := e.PID()
	if err != nil {
		return err
	}
	return b.peakMemory(pid, what, count)
}

// functionHost is the host of a function's HTTP API.
const functionHost = "function.example"

// An invoker is the HTTP API in front of a function: it sends each request as an event. A
// request to another host, to which the function redirects, goes there.
type invoker struct{ function *emulator.Emulator }

// RoundTrip implements http.RoundTripper.
func (i invoker) RoundTrip(r *http.Request) (*http.Response, error) {
	send := i.invoke
	if r.URL.Host != functionHost {
		send = http.DefaultTransport.RoundTrip
	}
	res, err := send(r)
	if err == nil && res.Header.Get("Content-Encoding") == "zstd" {
		var unpacked *zstd.Decoder
		if unpacked, err = zstd.NewReader(res.Body); err == nil {
			res.Body = unpacked.IOReadCloser()
		}
	}
	return res, err
}

func (i invoker) invoke(r *http.Request) (*http.Response, error) {
	event := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RawPath: r.URL.Path, RawQueryString: r.URL.RawQuery,
		Headers: map[string]string{"host": r.URL.Host, "x-forwarded-proto": "https", "accept-encoding": "zstd"},
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			DomainName: r.URL.Host, Stage: "$default",
			HTTP: events.APIGatewayV2HTTPRequestContextHTTPDescription{Method: r.Method, Path: r.URL.Path, Protocol: "HTTP/1.1", SourceIP: "203.0.113.7"},
		},
	}
	for name, values := range r.Header {
		event.Headers[strings.ToLower(name)] = strings.Join(values, ",")
	}
	delete(event.Headers, "cookie")
	for _, c := range r.Cookies() {
		event.Cookies = append(event.Cookies, c.String())
	}
	if r.Body != nil {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		event.Body, event.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	data, err := json.Marshal(event)
	if err != nil {
		return nil, err
	}
	if data, err = i.function.Invoke(r.Context(), data); err != nil {
		return nil, err
	}
	var answer events.APIGatewayV2HTTPResponse
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, err
	}
	body := io.Reader(strings.NewReader(answer.Body))
	if answer.IsBase64Encoded {
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	res := &http.Response{StatusCode: answer.StatusCode, Status: fmt.Sprint(answer.StatusCode), Header: http.Header{}, Body: io.NopCloser(body), Request: r}
	for name, v := range answer.Headers {
		res.Header.Set(name, v)
	}
	for _, c := range answer.Cookies {
		res.Header.Add("Set-Cookie", c)
	}
	return res, nil
}

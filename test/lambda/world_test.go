// Package lambda runs the compiled functions under AWS's Lambda emulator, over the
// S3 gateway inside and a queue server, with the environment, the timeouts and the
// policies of template.yaml in force.
package lambda_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-sdk-go-v2/aws"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"imageroot/local/gateway"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/test/emulator"
	"imageroot/test/sqs"
	"imageroot/test/template"
)

const (
	accessKey = "LAMBDATEST1234567890"
	secretKey = "lambda-test-secret-0123456789abcdef"
	password  = "sam local password"
	token     = "sam-local-token-0123456789"
)

var (
	bootstraps string    // the directory of the compiled functions
	moto       *sqs.Moto // nil if moto_server is not installed
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "lambda:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if bootstraps, err = os.MkdirTemp("", "imageroot-lambda-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(bootstraps)) }()
	for _, f := range []string{"upload", "catalog", "addbyurl", "hash", "fetch"} {
		if err := emulator.Build(context.Background(), "", "./functions/"+f+"/lambda", bootstrap(f)); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if moto, err = sqs.StartMoto(ctx); err == nil {
		defer moto.Close()
	}
	if code = m.Run(); code != 0 {
		return code, nil
	}
	if flag.Lookup("test.run").Value.String() == "" {
		return 0, unused()
	}
	return 0, nil
}

// bootstrap returns the file of a compiled function.
func bootstrap(name string) string { return filepath.Join(bootstraps, name, "bootstrap") }

// unused reports grants of the template that no test has used: either the grant
// is too much, or a test is missing.
func unused() error {
	tpl, err := template.Load(nil)
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range tpl.Functions() {
		grants, err := tpl.Grants(id)
		if err != nil {
			return err
		}
		for _, g := range grants {
			if !strings.HasPrefix(g.Action, "logs:") && !used.by[id][g] {
				errs = append(errs, fmt.Errorf("%s may %s on %s and never does", id, g.Action, g.Resource))
			}
		}
	}
	return errors.Join(errs...)
}

// A world is the stack of template.yaml, running here.
type world struct {
	t        testing.TB
	tpl      *template.Template
	routes   []template.Route
	data     string // directory of the gateway
	endpoint string // of the gateway
	queues   string // address of the queue server
	catalog  store.Root
	api      *httptest.Server
	fn       map[string]*function // by logical ID
	ctx      context.Context      // ends with the test
	wg       sync.WaitGroup
}

// A function is one of the stack. As Lambda does, it runs an instance for each
// concurrent event.
type function struct {
	w     *world
	id    string
	guard *guard

	mu         sync.Mutex
	cfg        emulator.Config
	generation int // of the instances that may get another event
	idle, all  []*emulator.Emulator
}

// newWorld starts the stack, which ends with the test. Its queues are in moto_server if
// that is installed.
func newWorld(t testing.TB) *world {
	t.Helper()
	if moto == nil {
		return newHurriedWorld(t)
	}
	t.Log("the queues are in moto_server")
	if err := moto.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	return startWorld(t, moto.URL())
}

// newHurriedWorld is newWorld with the queue server of test/sqs, at which a message
// waits 20 ms for each second of its delay.
func newHurriedWorld(t testing.TB) *world {
	t.Helper()
	t.Log("the queues are in the server of test/sqs")
	s := sqs.Start()
	t.Cleanup(s.Close)
	s.Hurry(20 * time.Millisecond)
	return startWorld(t, s.URL())
}

func startWorld(t testing.TB, queues string) *world {
	t.Helper()
	tpl, err := template.Load(map[string]string{"AllowNet": "loopback"})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, tpl: tpl, queues: queues, fn: map[string]*function{}, data: t.TempDir()}
	if w.routes, err = tpl.Routes(); err != nil {
		t.Fatal(err)
	}
	w.createQueues()
	images := fmt.Sprint(tpl.Properties("ImageBucket")["BucketName"])
	g, err := gateway.Start(t.Context(), gateway.Config{
		Listen: "127.0.0.1:0", Dir: w.data, AccessKey: accessKey, SecretKey: secretKey, Watch: []string{images},
		Changed: func(e gateway.Event) {
			if e.Bucket == images {
				w.changed(e)
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.endpoint = "http://" + g.Addr()
	client, err := s3store.Open(t.Context(), s3store.Config{Endpoint: w.endpoint, Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range tpl.Resources("AWS::S3::Bucket") {
		if err := client.EnsureBucket(t.Context(), fmt.Sprint(tpl.Properties(id)["BucketName"])); err != nil {
			t.Fatal(err)
		}
	}
	w.catalog = client.Root(fmt.Sprint(tpl.Properties("CatalogBucket")["BucketName"]), "")
	secrets := map[string]string{}
	for id, v := range map[string]string{"PasswordSecret": password, "TokenSecret": token, "SessionKeySecret": strings.Repeat("0123456789abcdef", 4)} {
		secrets["arn:aws:secretsmanager:us-east-1:"+template.Account+":secret:"+id] = v
	}
	for name, id := range tpl.Functions() {
		grants, err := tpl.Grants(id)
		if err != nil {
			t.Fatal(err)
		}
		f := &function{w: w, id: id}
		if f.guard, err = newGuard(id, grants, "http://"+g.Addr(), queues, secrets); err != nil {
			t.Fatal(err)
		}
		timeout, memory := tpl.Setting(id, "Timeout").(int), tpl.Setting(id, "MemorySize").(int)
		f.cfg = emulator.Config{Command: []string{bootstrap(name)}, Env: f.environment(), Timeout: time.Duration(timeout) * time.Second, Memory: memory}
		w.fn[id] = f
	}
	w.api = httptest.NewServer(http.HandlerFunc(w.gatewayAPI))
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithCancel(context.Background())
	t.Cleanup(func() {
		cancel()
		w.api.CloseClientConnections()
		w.api.Close()
		w.wg.Wait()
		for _, f := range w.fn {
			f.kill()
			f.guard.close()
			for _, d := range f.guard.denied {
				t.Error(d)
			}
		}
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, f := range w.fn {
		for _, e := range template.Map(tpl.Properties(f.id)["Events"]) {
			if p := template.Map(template.Map(e)["Properties"]); template.Map(e)["Type"] == "SQS" {
				arn := fmt.Sprint(p["Queue"])
				batch, _ := strconv.Atoi(fmt.Sprint(p["BatchSize"]))
				for range 2 { // MaximumConcurrency
					w.wg.Go(func() { f.poll(w.ctx, arn, int32(max(batch, 1))) })
				}
			}
		}
	}
	return w
}

// environment returns the template's variables, with the services of this
// machine.
func (f *function) environment() []string {
	vars := f.w.tpl.Environment(f.id)
	vars["IMAGEROOT_S3_ENDPOINT"] = f.guard.s3.URL
	for name, v := range vars {
		if rest, ok := strings.CutPrefix(v, f.w.tpl.SQS); ok {
			vars[name] = f.guard.sqs.URL + rest
		}
	}
	env := []string{
		"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + secretKey,
		"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + f.guard.secrets.URL,
	}
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		env = append(env, name+"="+vars[name])
	}
	return env
}

// invoke has an idle instance of the function handle an event, or a new one.
func (f *function) invoke(ctx context.Context, payload []byte) ([]byte, error) {
	f.mu.Lock()
	var e *emulator.Emulator
	if n := len(f.idle); n > 0 {
		e, f.idle = f.idle[n-1], f.idle[:n-1]
	}
	generation, cfg := f.generation, f.cfg
	f.mu.Unlock()
	if e == nil {
		var err error
		if e, err = emulator.Start(ctx, cfg); err != nil {
			return nil, err
		}
		f.mu.Lock()
		f.all = append(f.all, e)
		f.mu.Unlock()
	}
	out, err := e.Invoke(ctx, payload)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case generation != f.generation:
		e.Kill()
	case e.Alive():
		f.idle = append(f.idle, e)
	}
	return out, err
}

// restart has new instances handle further events, after change has changed the
// function. Lambda may do so at any time.
func (f *function) restart(change func(cfg *emulator.Config)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if change != nil {
		change(&f.cfg)
	}
	for _, e := range f.idle {
		e.Kill()
	}
	f.idle = nil
	f.generation++
}

// limit changes the function's timeout.
func (f *function) limit(timeout time.Duration) {
	f.restart(func(cfg *emulator.Config) { cfg.Timeout = timeout })
}

// kill kills all instances, idle or not.
func (f *function) kill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, e := range f.all {
		e.Kill()
	}
	f.idle = nil
}

// logs returns the logs of the idle instances.
func (f *function) logs() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var b strings.Builder
	for _, e := range f.idle {
		b.WriteString(e.Log())
	}
	return b.String()
}

// apiEvent encodes a request as the HTTP API does.
func apiEvent(r *http.Request, rt template.Route) ([]byte, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	// A payload of more than 10 MB is refused, and the rest of a path after a
	// question mark is cut off.
	if len(body) > 10<<20 {
		return nil, errors.New("too large")
	}
	path, _, _ := strings.Cut(r.URL.Path, "?")
	ip, _, _ := net.SplitHostPort(r.RemoteAddr)
	e := events.APIGatewayV2HTTPRequest{
		Version: "2.0", RouteKey: rt.Method + " " + rt.Path, RawPath: path, RawQueryString: r.URL.RawQuery,
		Headers: map[string]string{"host": r.Host, "x-forwarded-proto": "https", "content-length": strconv.Itoa(len(body))},
		RequestContext: events.APIGatewayV2HTTPRequestContext{
			DomainName: "abcdefghij.execute-api.us-east-1.amazonaws.com", Stage: "$default",
			HTTP: events.APIGatewayV2HTTPRequestContextHTTPDescription{Method: r.Method, Path: path, Protocol: "HTTP/1.1", SourceIP: ip},
		},
	}
	for name, values := range r.Header {
		if name != "Cookie" {
			e.Headers[strings.ToLower(name)] = strings.Join(values, ",")
		}
	}
	for _, c := range r.Cookies() {
		e.Cookies = append(e.Cookies, c.Name+"="+c.Value)
	}
	if len(body) > 0 {
		e.Body, e.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	return json.Marshal(e)
}

// gatewayAPI is the HTTP API of the template.
func (w *world) gatewayAPI(rw http.ResponseWriter, r *http.Request) {
	rt, ok := template.Find(w.routes, r.Method, r.URL.Path)
	if !ok {
		rw.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(rw, `{"message":"Not Found"}`)
		return
	}
	payload, err := apiEvent(r, rt)
	if err != nil {
		rw.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	data, err := w.fn[rt.Function].invoke(w.ctx, payload)
	var out events.APIGatewayV2HTTPResponse
	if err == nil {
		err = json.Unmarshal(data, &out)
	}
	if err != nil {
		w.t.Logf("%s %s: %v", r.Method, r.URL, err)
		rw.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(rw, `{"message":"Internal Server Error"}`)
		return
	}
	for name, v := range out.Headers {
		// Here each function has its own host name for S3.
		if http.CanonicalHeaderKey(name) == "Content-Security-Policy" {
			v = strings.Replace(v, w.fn["CatalogFunction"].guard.s3.URL, w.fn["UploadFunction"].guard.s3.URL, 1)
		}
		rw.Header().Set(name, v)
	}
	for _, c := range out.Cookies {
		rw.Header().Add("Set-Cookie", c)
	}
	body := []byte(out.Body)
	if out.IsBase64Encoded {
		body, _ = base64.StdEncoding.DecodeString(out.Body)
	}
	rw.WriteHeader(out.StatusCode)
	_, _ = rw.Write(body)
}

// changed sends the event of an object to the queue, as S3 does.
func (w *world) changed(e gateway.Event) {
	name := "ObjectCreated:Put"
	if e.Removed {
		name = "ObjectRemoved:Delete"
	}
	body, _ := json.Marshal(map[string]any{"Records": []any{map[string]any{
		"eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-east-1", "eventName": name, "eventTime": time.Now().UTC(),
		"s3": map[string]any{"bucket": map[string]any{"name": e.Bucket}, "object": map[string]any{"key": url.QueryEscape(e.Key)}},
	}}}) // strings always encode
	w.send("InspectionQueue", string(body))
}

// createQueues creates the queues of the template, dead-letter queues first.
func (w *world) createQueues() {
	w.t.Helper()
	ids := w.tpl.Resources("AWS::SQS::Queue")
	redrive := func(id string) map[string]any { return template.Map(w.tpl.Properties(id)["RedrivePolicy"]) }
	slices.SortFunc(ids, func(a, b string) int { return cmp.Compare(len(redrive(a)), len(redrive(b))) })
	for _, id := range ids {
		arn := fmt.Sprint(redrive(id)["deadLetterTargetArn"])
		count, _ := strconv.Atoi(fmt.Sprint(redrive(id)["maxReceiveCount"])) // 0 without a dead-letter queue
		dead := ""
		if count > 0 {
			dead = arn[strings.LastIndex(arn, ":")+1:]
		}
		if _, err := sqs.Create(w.t.Context(), w.queues, id, 10*time.Minute, dead, count); err != nil {
			w.t.Fatal(err)
		}
	}
}

// queue returns the URL of a queue, by which the guards are bypassed.
func (w *world) queue(name string) string { return w.queues + "/" + template.Account + "/" + name }

// length returns the number of messages in a queue.
func (w *world) length(name string) int {
	w.t.Helper()
	n, err := sqs.Len(w.t.Context(), w.queue(name))
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func (w *world) send(queue, body string) {
	_, err := sqs.Client(w.queues).SendMessage(context.Background(), &awssqs.SendMessageInput{QueueUrl: aws.String(w.queue(queue)), MessageBody: &body})
	if err != nil {
		w.t.Errorf("send to %s: %v", queue, err)
	}
}

// poll is the event source mapping of a queue: it reads the queue with the
// function's rights, and deletes the messages that the function has handled.
func (f *function) poll(ctx context.Context, arn string, batch int32) {
	c := sqs.Client(f.guard.sqs.URL)
	queue := f.guard.sqs.URL + "/" + template.Account + "/" + arn[strings.LastIndex(arn, ":")+1:]
	if _, err := c.GetQueueAttributes(ctx, &awssqs.GetQueueAttributesInput{QueueUrl: &queue, AttributeNames: []types.QueueAttributeName{"All"}}); err != nil && ctx.Err() == nil {
		f.w.t.Errorf("%s: %v", queue, err)
	}
	for ctx.Err() == nil {
		out, err := c.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{
			QueueUrl: &queue, MaxNumberOfMessages: batch, WaitTimeSeconds: 20, MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"},
		})
		if err != nil || len(out.Messages) == 0 {
			continue
		}
		var e events.SQSEvent
		for _, m := range out.Messages {
			e.Records = append(e.Records, events.SQSMessage{
				MessageId: *m.MessageId, ReceiptHandle: *m.ReceiptHandle, Body: *m.Body, Attributes: m.Attributes,
				EventSource: "aws:sqs", EventSourceARN: arn, AWSRegion: "us-east-1",
			})
		}
		payload, err := json.Marshal(e)
		if err != nil {
			f.w.t.Error(err)
			return
		}
		data, err := f.invoke(ctx, payload)
		var failed events.SQSEventResponse
		if err != nil || json.Unmarshal(data, &failed) != nil {
			// No message is deleted; all are redelivered.
			for _, m := range out.Messages {
				_, _ = c.ChangeMessageVisibility(ctx, &awssqs.ChangeMessageVisibilityInput{QueueUrl: &queue, ReceiptHandle: m.ReceiptHandle, VisibilityTimeout: 1})
			}
			continue
		}
		for _, m := range out.Messages {
			if !slices.ContainsFunc(failed.BatchItemFailures, func(b events.SQSBatchItemFailure) bool { return b.ItemIdentifier == *m.MessageId }) {
				_, _ = c.DeleteMessage(ctx, &awssqs.DeleteMessageInput{QueueUrl: &queue, ReceiptHandle: m.ReceiptHandle})
			}
		}
	}
}

// reconcile invokes the target of each schedule of the template.
func (w *world) reconcile() {
	w.t.Helper()
	event := w.eventFile("reconcile")
	for _, id := range []string{"UploadFunction", "HashFunction", "FetchFunction"} {
		if _, err := w.fn[id].invoke(w.t.Context(), event); err != nil {
			w.t.Errorf("reconcile of %s: %v", id, err)
		}
	}
}

func (w *world) eventFile(name string) []byte {
	w.t.Helper()
	root, err := template.Root()
	if err != nil {
		w.t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, "infra/events", name+".json"))
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

// A reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	body   []byte
}

func (r reply) String() string { return fmt.Sprintf("%d %.500s", r.status, r.body) }

// do sends a request with the token and does not follow redirects.
func (w *world) do(method, path string, body any, header ...string) reply {
	w.t.Helper()
	u := path
	if strings.HasPrefix(path, "/") {
		u = w.api.URL + path
	}
	var data []byte
	switch b := body.(type) {
	case nil:
	case []byte:
		data = b
	default:
		var err error
		if data, err = json.Marshal(b); err != nil {
			w.t.Fatal(err)
		}
		header = append([]string{"Content-Type", "application/json"}, header...)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, u, bytes.NewReader(data))
	if err != nil {
		w.t.Fatal(err)
	}
	if strings.HasPrefix(path, "/") {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i+1] == "" {
			req.Header.Del(header[i])
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	c := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := c.Do(req)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(resp.Body)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{resp.StatusCode, resp.Header, data}
}

// want is do for an answer that must have that status.
func (w *world) want(status int, method, path string, body any, header ...string) reply {
	w.t.Helper()
	r := w.do(method, path, body, header...)
	if r.status != status {
		w.t.Fatalf("%s %s: %v, want %d", method, path, r, status)
	}
	return r
}

// until waits until ok returns true.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	deadline := time.NewTimer(2 * time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			for id, f := range w.fn {
				log := f.logs()
				w.t.Logf("%s: %s", id, log[max(0, len(log)-2000):])
			}
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// jobView is a job as the API shows it.
type jobView struct {
	Name, Status    string
	SHA256, Error   *string
	Attempt         int
	BytesHashed     int64 `json:"bytes_hashed"`
	BytesDownloaded int64 `json:"bytes_downloaded"`
}

// jobs lists jobs: "hashes" or "downloads".
func (w *world) jobs(kind string) []jobView {
	w.t.Helper()
	return as[map[string][]jobView](w.t, bytes.Replace(w.want(200, "GET", "/catalog/"+kind, nil).body, []byte(`,"max_parallel":2`), nil, 1))[kind]
}

// ended waits until a job has ended and returns it.
func (w *world) ended(kind, name string) jobView {
	w.t.Helper()
	var job jobView
	w.until("the job of "+name+" in "+kind+" has ended", func() bool {
		for _, j := range w.jobs(kind) {
			if j.Name == name && j.Status != "queued" && j.Status != "running" {
				job = j
				return true
			}
		}
		return false
	})
	return job
}

// as decodes the answer of a function.
func as[T any](t testing.TB, data []byte) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", data, err)
	}
	return v
}

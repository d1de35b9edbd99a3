package sqsqueue_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssqs "github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"imageroot/shared/queue"
	"imageroot/shared/queue/queuetest"
	"imageroot/shared/queue/sqsqueue"
	"imageroot/test/need"
	"imageroot/test/sqs"
)

var awsConfig = aws.Config{Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}

// A received queue delivers its messages one by one, as Lambda does.
type received struct {
	*sqsqueue.Queue
	sqs *awssqs.Client
	url string
}

func open(url string, giveUp queue.Handler) *received {
	q := sqsqueue.New(sqsqueue.Config{AWS: awsConfig, URL: url, GiveUp: giveUp, Backoff: time.Second, Log: slog.New(slog.DiscardHandler)})
	endpoint, _, _ := strings.Cut(strings.TrimPrefix(url, "http://"), "/")
	return &received{q, awssqs.NewFromConfig(awsConfig, func(o *awssqs.Options) { o.BaseEndpoint = aws.String("http://" + endpoint) }), url}
}

func (q *received) Receive(ctx context.Context, workers int, handle queue.Handler) error {
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				q.receive(ctx, handle) // a failed message is redelivered
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

func (q *received) receive(ctx context.Context, handle queue.Handler) {
	out, err := q.sqs.ReceiveMessage(ctx, &awssqs.ReceiveMessageInput{
		QueueUrl: &q.url, MaxNumberOfMessages: 1, WaitTimeSeconds: 20,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{types.MessageSystemAttributeNameApproximateReceiveCount},
	})
	if err != nil {
		return
	}
	for _, m := range out.Messages {
		count, _ := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
		if q.Deliver(ctx, sqsqueue.Message{Body: *m.Body, Receipt: *m.ReceiptHandle, Receives: count}, handle) {
			_, _ = q.sqs.DeleteMessage(context.WithoutCancel(ctx), &awssqs.DeleteMessageInput{QueueUrl: &q.url, ReceiptHandle: m.ReceiptHandle})
		}
	}
}

func TestContract(t *testing.T) {
	s := sqs.Start()
	t.Cleanup(s.Close)
	s.Queue("dead", time.Minute, "", 0)
	var n atomic.Int32
	queuetest.Run(t, func(t *testing.T) queuetest.Queue {
		return open(s.Queue(fmt.Sprint("q", n.Add(1)), 5*time.Second, "dead", sqsqueue.MaxReceives), nil)
	})
}

// TestContractOverMoto runs the suite over moto's server.
func TestContractOverMoto(t *testing.T) {
	need.Programs(t)
	program, err := exec.LookPath("moto_server")
	if err != nil {
		t.Log("moto_server is not installed: the suite ran over the server in test/sqs only")
		return
	}
	endpoint, ok := startMoto(t, program)
	if !ok {
		t.Log("moto_server does not start here: the suite ran over the server in test/sqs only")
		return
	}
	client := awssqs.NewFromConfig(awsConfig, func(o *awssqs.Options) { o.BaseEndpoint = &endpoint })
	var n atomic.Int32
	queuetest.Run(t, func(t *testing.T) queuetest.Queue {
		name := fmt.Sprint("q", n.Add(1))
		out, err := client.CreateQueue(t.Context(), &awssqs.CreateQueueInput{QueueName: &name, Attributes: map[string]string{"VisibilityTimeout": "5"}})
		if err != nil {
			t.Fatal(err)
		}
		return open(*out.QueueUrl, nil)
	})
}

func startMoto(t *testing.T, program string) (endpoint string, ok bool) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	ln.Close()
	cmd := exec.Command(program, "-H", "127.0.0.1", "-p", port)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		return "", false
	}
	exited := make(chan struct{})
	go func() {
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
		}
		_ = cmd.Wait() // killed, or failed to start
		close(exited)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // its process group
		<-exited
	})
	endpoint = "http://127.0.0.1:" + port
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		if resp, err := http.Get(endpoint + "/moto-api/"); err == nil {
			resp.Body.Close()
			return endpoint, true
		}
		select {
		case <-tick.C:
		case <-exited:
			return "", false
		case <-ctx.Done():
			return "", false
		}
	}
}

// receive runs a handler until done returns true or a time limit.
func receive(t *testing.T, q *received, handle queue.Handler, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		_ = q.Receive(ctx, 1, handle) // ends with ctx
	}()
	for !done() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Error("what was waited for did not happen")
			cancel()
			<-stopped
			return
		}
	}
	cancel()
	<-stopped
}

func TestPoison(t *testing.T) {
	for name, broken := range map[string]queue.Handler{
		"error": func(context.Context, []byte) error { return errors.New("broken") },
		"panic": func(context.Context, []byte) error { panic("broken") },
		"retry": func(context.Context, []byte) error { return &queue.Retry{Err: errors.New("store")} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := sqs.Start()
			defer s.Close()
			s.Hurry(50 * time.Millisecond)
			s.Queue("dead", time.Minute, "", 0)
			var tries, given atomic.Int32
			q := open(s.Queue("q", time.Minute, "dead", sqsqueue.MaxReceives), func(_ context.Context, body []byte) error {
				if string(body) == "poison" {
					given.Add(1)
				}
				return nil
			})
			for _, body := range []string{"poison", "good"} {
				if err := q.Send(t.Context(), []byte(body), 0); err != nil {
					t.Fatal(err)
				}
			}
			receive(t, q, func(ctx context.Context, body []byte) error {
				if string(body) == "good" {
					return nil
				}
				tries.Add(1)
				return broken(ctx, body)
			}, func() bool { return len(s.Bodies("dead")) > 0 })
			if got := s.Bodies("dead"); !slices.Equal(got, []string{"poison"}) || len(s.Bodies("q")) != 0 {
				t.Errorf("dead letters %q, queue %q", got, s.Bodies("q"))
			}
			// At its last receive it is given up without a try.
			if tries.Load() != sqsqueue.MaxReceives-1 || given.Load() != 1 {
				t.Errorf("%d tries, given up %d times", tries.Load(), given.Load())
			}
		})
	}
}

// A task that needs more tries than a message has receives is sent anew.
func TestHandOver(t *testing.T) {
	for name, goesOn := range map[string]error{
		"stopped": fmt.Errorf("hash: %w", &queue.Retry{Free: true, Err: context.DeadlineExceeded}),
		"later":   queue.RetryAfter(0, errors.New("not yet")),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := sqs.Start()
			defer s.Close()
			s.Queue("dead", time.Minute, "", 0)
			q := open(s.Queue("q", time.Minute, "dead", sqsqueue.MaxReceives), nil)
			if err := q.Send(t.Context(), []byte("long"), 0); err != nil {
				t.Fatal(err)
			}
			var runs atomic.Int32
			const parts = 4 * sqsqueue.MaxReceives
			receive(t, q, func(context.Context, []byte) error {
				if runs.Add(1) < parts {
					return goesOn
				}
				return nil
			}, func() bool { return runs.Load() == parts && len(s.Bodies("q")) == 0 })
			if runs.Load() != parts || len(s.Bodies("dead")) != 0 {
				t.Errorf("%d runs, dead letters %q", runs.Load(), s.Bodies("dead"))
			}
		})
	}
}

func TestBusyIsLeft(t *testing.T) {
	s := sqs.Start()
	defer s.Close()
	q := open(s.Queue("q", time.Minute, "", 0), nil)
	if err := q.Send(t.Context(), []byte("held"), 0); err != nil {
		t.Fatal(err)
	}
	receive(t, q, func(context.Context, []byte) error {
		return &queue.Retry{After: time.Hour, Held: true, Err: errors.New("another process runs the job")}
	}, func() bool { return s.Seen("ReceiveMessage") > 1 && len(s.Bodies("q")) == 0 })
}

// Every action fails now and then, and no message is lost.
func TestServerFails(t *testing.T) {
	s := sqs.Start()
	defer s.Close()
	q := open(s.Queue("q", time.Second, "", 0), nil)
	for i := range 5 {
		if err := q.Send(t.Context(), fmt.Append(nil, i), 0); err != nil {
			t.Fatal(err)
		}
	}
	var n atomic.Int32
	s.Fail(func(action string) bool { return action != "SendMessage" && n.Add(1)%5 == 0 })
	seen := map[string]bool{}
	var count atomic.Int32
	receive(t, q, func(_ context.Context, body []byte) error {
		seen[string(body)] = true
		count.Store(int32(len(seen)))
		return nil
	}, func() bool { return count.Load() == 5 && len(s.Bodies("q")) == 0 })
	s.Fail(func(string) bool { return true })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := q.Send(ctx, []byte("x"), 0); err == nil || !strings.Contains(err.Error(), "queue q") {
		t.Errorf("a send to a server that fails: %v", err)
	}
}

func TestName(t *testing.T) {
	if q := open("https://sqs.eu-west-1.amazonaws.com/123456789012/imageroot-hash", nil); q.Name() != "imageroot-hash" {
		t.Errorf("the name is %q", q.Name())
	}
}

package sqsqueue_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
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
	return &received{q, sqs.Client(url), url}
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

// overServers runs a test with the URL of each queue server: of the one in test/sqs, at
// which the delays of clients are shorter if second is, and of moto_server if it is
// installed.
func overServers(t *testing.T, second time.Duration, test func(t *testing.T, server string)) {
	t.Run("own", func(t *testing.T) {
		t.Parallel()
		s := sqs.Start()
		t.Cleanup(s.Close)
		s.Hurry(second)
		test(t, s.URL())
	})
	t.Run("moto", func(t *testing.T) {
		t.Parallel()
		need.Programs(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		m, err := sqs.StartMoto(ctx)
		if err != nil {
			t.Logf("over the server in test/sqs only: %v", err)
			return
		}
		t.Cleanup(m.Close)
		test(t, m.URL())
	})
}

// create creates a queue at a server, and its dead-letter queue. It returns their URLs.
func create(t *testing.T, server, name string, visibility time.Duration) (url, dead string) {
	t.Helper()
	dead, err := sqs.Create(t.Context(), server, "dead-"+name, time.Minute, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	if url, err = sqs.Create(t.Context(), server, name, visibility, "dead-"+name, sqsqueue.MaxReceives); err != nil {
		t.Fatal(err)
	}
	return url, dead
}

// length returns the number of messages in a queue, or -1 if the server does not say.
func length(url string) int {
	n, err := sqs.Len(context.Background(), url)
	if err != nil {
		return -1
	}
	return n
}

func TestContract(t *testing.T) {
	t.Parallel()
	overServers(t, time.Second, func(t *testing.T, server string) {
		var n atomic.Int32
		queuetest.Run(t, func(t *testing.T) queuetest.Queue {
			url, _ := create(t, server, fmt.Sprint("q", n.Add(1)), 5*time.Second)
			return open(url, nil)
		})
	})
}

// receive runs a handler until done returns true or a time limit.
func receive(t *testing.T, q *received, handle queue.Handler, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
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
	t.Parallel()
	overServers(t, 50*time.Millisecond, func(t *testing.T, server string) {
		for name, broken := range map[string]queue.Handler{
			"error": func(context.Context, []byte) error { return errors.New("broken") },
			"panic": func(context.Context, []byte) error { panic("broken") },
			"retry": func(context.Context, []byte) error { return &queue.Retry{Err: errors.New("store")} },
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				url, dead := create(t, server, name, time.Minute)
				var tries, good, given atomic.Int32
				q := open(url, func(_ context.Context, body []byte) error {
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
						good.Add(1)
						return nil
					}
					tries.Add(1)
					return broken(ctx, body)
				}, func() bool { return length(dead) > 0 })
				if n := length(dead); n != 1 || length(url) != 0 || good.Load() == 0 {
					t.Errorf("%d dead letters, %d messages in the queue, the good one came %d times", n, length(url), good.Load())
				}
				// At its last receive it is given up without a try.
				if tries.Load() != sqsqueue.MaxReceives-1 || given.Load() != 1 {
					t.Errorf("%d tries, given up %d times", tries.Load(), given.Load())
				}
			})
		}
	})
}

// A task that needs more tries than a message has receives is sent anew.
func TestHandOver(t *testing.T) {
	t.Parallel()
	overServers(t, time.Second, func(t *testing.T, server string) {
		for name, goesOn := range map[string]error{
			"stopped": fmt.Errorf("hash: %w", &queue.Retry{Free: true, Err: context.DeadlineExceeded}),
			"later":   queue.RetryAfter(0, errors.New("not yet")),
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				url, dead := create(t, server, name, time.Minute)
				q := open(url, nil)
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
				}, func() bool { return runs.Load() == parts && length(url) == 0 })
				if n := length(dead); runs.Load() != parts || n != 0 {
					t.Errorf("%d runs, %d dead letters", runs.Load(), n)
				}
			})
		}
	})
}

func TestBusyIsLeft(t *testing.T) {
	s := sqs.Start()
	defer s.Close()
	url, _ := create(t, s.URL(), "q", time.Minute)
	q := open(url, nil)
	if err := q.Send(t.Context(), []byte("held"), 0); err != nil {
		t.Fatal(err)
	}
	receive(t, q, func(context.Context, []byte) error {
		return &queue.Retry{After: time.Hour, Held: true, Err: errors.New("another process runs the job")}
	}, func() bool { return s.Seen("ReceiveMessage") > 1 && length(url) == 0 })
}

// Every action fails now and then, and no message is lost.
func TestServerFails(t *testing.T) {
	s := sqs.Start()
	defer s.Close()
	url, _ := create(t, s.URL(), "q", time.Second)
	q := open(url, nil)
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
	}, func() bool { return count.Load() == 5 && length(url) == 0 })
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

// Package sqsqueue is a queue in SQS. Its messages are durable, and a message that
// fails too often goes to the dead-letter queue.
package sqsqueue

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"imageroot/shared/queue"
)

// MaxReceives is the maxReceiveCount that the redrive policy of every queue must have.
// A message is given up at its last receive, without another try.
const MaxReceives = 5

// maxDelay is the longest delay that SQS supports.
const maxDelay = 15 * time.Minute

// Config configures a [Queue].
type Config struct {
	// AWS has credentials and region.
	AWS aws.Config
	// URL is the queue's URL. Requests go to its scheme and host.
	URL string
	// GiveUp, if not nil, ends the work of a message that has failed too often, so that
	// users see the failure.
	GiveUp queue.Handler
	// Backoff is the delay after the first failure of a message. It doubles with each
	// further failure, up to 15 minutes. The default is 30 s.
	Backoff time.Duration
	Log     *slog.Logger
}

// A Queue implements queue.Sender, and handles the messages that Lambda receives. It is
// safe for concurrent use. The queue's visibility timeout must exceed the time that a
// handler takes.
type Queue struct {
	cfg Config
	sqs *sqs.Client
}

var _ queue.Sender = (*Queue)(nil)

// New returns the queue at cfg.URL. It does not contact the server. It panics if the
// URL does not parse, which config.LoadLambda has checked.
func New(cfg Config) *Queue {
	u, err := url.Parse(cfg.URL)
	if err != nil {
		panic(err)
	}
	return &Queue{cfg, sqs.NewFromConfig(cfg.AWS, func(o *sqs.Options) {
		o.BaseEndpoint = aws.String(u.Scheme + "://" + u.Host)
	})}
}

// Name returns the queue's name, which is the last segment of its URL.
func (q *Queue) Name() string { return path.Base(q.cfg.URL) }

// Send implements queue.Sender. It caps delay at 15 minutes and rounds it up to
// seconds.
func (q *Queue) Send(ctx context.Context, body []byte, delay time.Duration) error {
	_, err := q.sqs.SendMessage(ctx, &sqs.SendMessageInput{
		QueueUrl: &q.cfg.URL, MessageBody: aws.String(string(body)), DelaySeconds: seconds(min(delay, maxDelay)),
	})
	if err != nil {
		return fmt.Errorf("send to the queue %s: %w", q.Name(), err)
	}
	return nil
}

// seconds rounds up, since no message may be delivered before its delay.
func seconds(d time.Duration) int32 { return int32((max(d, 0) + time.Second - 1) / time.Second) }

// A Message is a received message. It is hidden from other receivers until its
// visibility timeout.
type Message struct {
	Body     string
	Receipt  string
	Receives int // including this one
}

// short returns the beginning of a message, for the log.
func (m Message) short() string {
	const most = 300
	if len(m.Body) <= most {
		return m.Body
	}
	return strings.ToValidUTF8(m.Body[:most], "") + "..."
}

const (
	firstBackoff = 30 * time.Second
	maxBackoff   = 15 * time.Minute
	// patience bounds reporting the outcome of a message to SQS, even after the end of
	// ctx.
	patience = 10 * time.Second
)

// Deliver handles a message. If it returns true, the caller must delete the message.
// Otherwise SQS redelivers it, after a delay that grows with each failure.
//
// SQS counts every receive of a message. So after a try that does not count as a
// failure (see [queue.Retry]), Deliver sends the message anew. It gives a message up at
// its last receive without another try, since the handler may have crashed the process
// each time.
func (q *Queue) Deliver(ctx context.Context, m Message, handle queue.Handler) (done bool) {
	if m.Receives >= MaxReceives {
		q.giveUp(ctx, m)
		return false
	}
	err := handle.Safely(ctx, []byte(m.Body))
	if err == nil {
		return true
	}
	out := queue.Outcome(err)
	report, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	switch {
	case out.Held:
		q.cfg.Log.Info("task left to the process that holds its job", "task", m.short(), "because", err)
		return true
	case out.Free:
		serr := q.Send(report, []byte(m.Body), out.After)
		if serr == nil {
			q.cfg.Log.Info("task sent on", "task", m.short(), "in", out.After, "because", err)
			return true
		}
		err = errors.Join(err, serr)
	}
	again := max(out.After, q.backoff(m.Receives-1))
	if ctx.Err() != nil {
		again = 0
	}
	q.cfg.Log.Warn("task failed, will try again", "task", m.short(), "receives", m.Receives, "in", again, "error", err)
	q.show(report, m, again)
	return false
}

func (q *Queue) backoff(failures int) time.Duration {
	return min(cmp.Or(q.cfg.Backoff, firstBackoff)<<min(max(failures, 0), 10), maxBackoff)
}

// giveUp ends the work of a message. SQS then moves the message to the dead-letter
// queue instead of delivering it again.
func (q *Queue) giveUp(ctx context.Context, m Message) {
	q.cfg.Log.Error("task given up; it goes to the dead-letter queue", "task", m.short(), "receives", m.Receives)
	if q.cfg.GiveUp != nil {
		if err := q.cfg.GiveUp.Safely(ctx, []byte(m.Body)); err != nil {
			q.cfg.Log.Error("the end of a task that was given up could not be recorded", "task", m.short(), "error", err)
		}
	}
	q.show(ctx, m, 0)
}

// show makes a message visible to receivers after a delay.
func (q *Queue) show(ctx context.Context, m Message, in time.Duration) {
	_, err := q.sqs.ChangeMessageVisibility(ctx, &sqs.ChangeMessageVisibilityInput{
		QueueUrl: &q.cfg.URL, ReceiptHandle: &m.Receipt, VisibilityTimeout: seconds(in),
	})
	if err != nil {
		q.cfg.Log.Warn("a task is redelivered later than it should be", "task", m.short(), "error", err)
	}
}

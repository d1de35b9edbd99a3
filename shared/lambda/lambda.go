// Package lambda runs a function's handlers as a Lambda function. It passes an event of
// an HTTP API (payload format 2.0) to a net/http handler. It handles the messages of an
// SQS batch one by one, and answers with a partial batch response. An EventBridge
// schedule becomes a reconcile task.
package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-lambda-go/events"
	runtime "github.com/aws/aws-lambda-go/lambda"

	"imageroot/shared/queue"
	"imageroot/shared/queue/sqsqueue"
)

// A Function is a Lambda function. It is safe for concurrent use if its handlers are.
type Function struct {
	// HTTP answers the requests of an HTTP API (payload format 2.0).
	HTTP http.Handler
	// Handle handles messages and schedules. It is nil for a function without either.
	Handle queue.Handler
	// Queues are the SQS queues that invoke the function.
	Queues []*sqsqueue.Queue
	// Run, if not nil, runs during each invocation, until its context ends.
	Run func(ctx context.Context)
	// Flush, if not nil, is called at the end of each invocation, before its answer:
	// Lambda then suspends the process. Its error is logged.
	Flush func(ctx context.Context) error
	Log   *slog.Logger
}

// Start calls open once and serves events until the process ends. If open fails, Start
// writes the error to stderr and exits with status 1.
func Start(open func(ctx context.Context) (*Function, error)) {
	f, err := open(context.Background())
	if err != nil {
		// Lambda logs stderr and starts the function again.
		fmt.Fprintln(os.Stderr, "imageroot:", err)
		os.Exit(1)
	}
	runtime.StartWithOptions(f)
}

const (
	// margin is the time reserved at the end of an invocation for writing a job's
	// checkpoint and sending its task again.
	margin = 30 * time.Second
	// answerMargin is the time reserved for writing the response to a request.
	answerMargin = time.Second
	// answerTime bounds a request: the HTTP API waits for a response no longer than 30 s.
	answerTime = 29 * time.Second
)

// deadline returns ctx with a deadline before the end of the invocation: by margin, or by
// a third of the remaining time if that is less.
func deadline(ctx context.Context, margin time.Duration) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-min(margin, time.Until(end)/3)))
}

// An event holds the members that distinguish the kinds of events.
type event struct {
	RequestContext struct {
		HTTP struct {
			Method string `json:"method"`
		} `json:"http"`
	} `json:"requestContext"`
	Records []struct {
		EventSource string `json:"eventSource"`
	} `json:"Records"`
	Source string `json:"source"`
}

// Invoke implements lambda.Handler of aws-lambda-go. It recovers from a panic of a handler,
// which would end the process: a request is answered with 500, a message counts as failed,
// and a schedule returns an error.
func (f *Function) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	if f.Run != nil {
		wg.Go(func() { f.Run(running) })
	}
	answer, err := f.invoke(ctx, payload)
	stop()
	wg.Wait()
	if f.Flush != nil {
		if err := f.Flush(ctx); err != nil {
			f.Log.Warn("what this invocation has changed is told later", "error", err)
		}
	}
	return answer, err
}

func (f *Function) invoke(ctx context.Context, payload []byte) ([]byte, error) {
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		return nil, fmt.Errorf("not an event: %w", err)
	}
	switch {
	case e.RequestContext.HTTP.Method != "":
		var req events.APIGatewayV2HTTPRequest
		if err := json.Unmarshal(payload, &req); err != nil {
			return nil, fmt.Errorf("not an event of an HTTP API: %w", err)
		}
		ctx, cancel := context.WithTimeout(ctx, answerTime)
		defer cancel()
		ctx, cancel = deadline(ctx, answerMargin)
		defer cancel()
		return json.Marshal(f.answer(ctx, &req))
	case len(e.Records) > 0 && e.Records[0].EventSource == "aws:sqs":
		var batch events.SQSEvent
		if err := json.Unmarshal(payload, &batch); err != nil {
			return nil, fmt.Errorf("not an event of a queue: %w", err)
		}
		ctx, cancel := deadline(ctx, margin)
		defer cancel()
		return json.Marshal(f.deliver(ctx, batch.Records))
	case e.Source == "aws.events" || e.Source == "aws.scheduler":
		if f.Handle == nil {
			break
		}
		ctx, cancel := deadline(ctx, margin)
		defer cancel()
		return nil, f.Handle.Safely(ctx, queue.Reconcile{}.Encode())
	}
	return nil, errors.New("an event of no kind that this function handles")
}

// deliver handles the messages of a batch in order.
func (f *Function) deliver(ctx context.Context, batch []events.SQSMessage) events.SQSEventResponse {
	answer := events.SQSEventResponse{BatchItemFailures: []events.SQSBatchItemFailure{}}
	for _, r := range batch {
		if !f.deliverOne(ctx, r) {
			answer.BatchItemFailures = append(answer.BatchItemFailures, events.SQSBatchItemFailure{ItemIdentifier: r.MessageId})
		}
	}
	return answer
}

func (f *Function) deliverOne(ctx context.Context, r events.SQSMessage) bool {
	name := r.EventSourceARN[strings.LastIndex(r.EventSourceARN, ":")+1:]
	for _, q := range f.Queues {
		if q.Name() != name {
			continue
		}
		receives, err := strconv.Atoi(r.Attributes["ApproximateReceiveCount"])
		if err != nil {
			receives = 1
		}
		return q.Deliver(ctx, sqsqueue.Message{Body: r.Body, Receipt: r.ReceiptHandle, Receives: receives}, f.Handle)
	}
	f.Log.Error("a message of a queue that is none of this function's", "queue", r.EventSourceARN)
	return false
}

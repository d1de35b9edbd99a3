// Package lambda runs a function's handlers as a Lambda function: events of an
// HTTP API become net/http requests, messages of SQS are handled one by one
// with a partial batch response, and a schedule becomes a task.
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
	"time"

	"github.com/aws/aws-lambda-go/events"
	runtime "github.com/aws/aws-lambda-go/lambda"

	"imageroot/shared/queue"
	"imageroot/shared/queue/sqsqueue"
)

// A Function is what one Lambda function does.
type Function struct {
	// HTTP answers the requests of an HTTP API (payload format 2.0).
	HTTP http.Handler
	// Handle handles messages and schedules. Nil: there are none.
	Handle queue.Handler
	// Queues are the event sources of the function.
	Queues []*sqsqueue.Queue
	Log    *slog.Logger
}

// Start serves events until the process ends. If open fails the process exits,
// with the error in the log.
func Start(open func(ctx context.Context) (*Function, error)) {
	f, err := open(context.Background())
	if err != nil {
		// Lambda logs stderr, and retries the start.
		fmt.Fprintln(os.Stderr, "imageroot:", err)
		os.Exit(1)
	}
	runtime.StartWithOptions(f)
}

const (
	// margin is the time at the end of an invocation for writing the checkpoint of
	// a job and sending its task anew.
	margin = 30 * time.Second
	// answerMargin is that of a request.
	answerMargin = time.Second
	// answerTime is how long the HTTP API waits for an answer.
	answerTime = 29 * time.Second
)

// deadline ends ctx some time before the invocation ends: margin, or a third of
// a short one.
func deadline(ctx context.Context, margin time.Duration) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, end.Add(-min(margin, time.Until(end)/3)))
}

// An event has the members that tell kinds of events apart.
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

// Invoke implements lambda.Handler of aws-lambda-go. It does not panic, which would
// end the process.
func (f *Function) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
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
		return nil, f.scheduled(ctx)
	}
	return nil, errors.New("an event of no kind that this function handles")
}

// deliver handles a batch, one message after the other.
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

// scheduled reconciles.
func (f *Function) scheduled(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("panic: %v", v)
		}
	}()
	return f.Handle(ctx, queue.Reconcile{}.Encode())
}

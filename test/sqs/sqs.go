// Package sqs has queue servers for tests that speak SQS's JSON protocol: moto_server,
// and one of its own, whose delays, visibility, redelivery and dead letters behave as
// the documentation of SQS says. Messages are in memory.
package sqs

import (
	"cmp"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// account is the account of every queue.
const account = "123456789012"

// A Server is the package's own server. It runs until Close. It is safe for concurrent
// use.
type Server struct {
	http *httptest.Server

	mu     sync.Mutex
	queues map[string]*queue
	fail   func(action string) bool
	seen   map[string]int // actions
	second time.Duration
}

// A queue is one queue of the server.
type queue struct {
	visibility time.Duration
	dead       string // name of the dead-letter queue
	maxReceive int
	messages   []*message
	changed    chan struct{} // closed and replaced when a message may have become visible
}

type message struct {
	id, body, receipt string
	visible           time.Time
	receives          int
}

// Start starts a server on loopback.
func Start() *Server {
	s := &Server{queues: map[string]*queue{}, seen: map[string]int{}, second: time.Second}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	return s
}

// URL returns the address of the server.
func (s *Server) URL() string { return s.http.URL }

// Hurry makes each second of the delays and timeouts of clients last d.
func (s *Server) Hurry(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.second = d
}

// Close stops the server.
func (s *Server) Close() {
	s.http.CloseClientConnections()
	s.http.Close()
}

// Fail makes the actions fail for which f returns true. With a nil f, none
// fails.
func (s *Server) Fail(f func(action string) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = f
}

// Seen returns the number of requests with this action.
func (s *Server) Seen(action string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[action]
}

// A request has the fields of every action.
type request struct {
	QueueName           string
	Attributes          map[string]string
	QueueURL            string
	MessageBody         string
	DelaySeconds        int
	MaxNumberOfMessages int
	WaitTimeSeconds     int
	VisibilityTimeout   *int
	ReceiptHandle       string
}

type failure struct {
	status     int
	code, text string
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	action, ok := strings.CutPrefix(r.Header.Get("X-Amz-Target"), "AmazonSQS.")
	var in request
	var out any
	f := &failure{http.StatusBadRequest, "InvalidAction", "not an action of this server: " + action}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		f.text = err.Error()
	} else if ok {
		out, f = s.act(r, action, in)
	}
	if f != nil {
		w.WriteHeader(f.status)
		out = map[string]string{"__type": "com.amazonaws.sqs#" + f.code, "message": f.text}
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) act(r *http.Request, action string, in request) (any, *failure) {
	s.mu.Lock()
	s.seen[action]++
	q := s.queues[in.QueueURL[strings.LastIndex(in.QueueURL, "/")+1:]]
	failing := s.fail != nil && s.fail(action)
	s.mu.Unlock()
	switch {
	case failing:
		return nil, &failure{http.StatusServiceUnavailable, "ServiceUnavailable", "made to fail"}
	case action == "CreateQueue":
		return s.create(in)
	case q == nil:
		return nil, &failure{http.StatusBadRequest, "QueueDoesNotExist", "there is no queue " + in.QueueURL}
	}
	switch action {
	case "SendMessage":
		return s.send(q, in)
	case "ReceiveMessage":
		return s.receive(r, q, in)
	case "GetQueueAttributes":
		return s.attributes(q), nil
	case "DeleteMessage":
		return s.withReceipt(q, in, func(i int) { q.messages = slices.Delete(q.messages, i, i+1) })
	case "ChangeMessageVisibility":
		if in.VisibilityTimeout == nil || *in.VisibilityTimeout < 0 || *in.VisibilityTimeout > 43200 {
			return nil, &failure{http.StatusBadRequest, "InvalidParameterValue", "VisibilityTimeout must be 0 to 43200"}
		}
		return s.withReceipt(q, in, func(i int) {
			q.messages[i].visible = time.Now().Add(time.Duration(*in.VisibilityTimeout) * s.second)
			q.wake()
		})
	}
	return nil, &failure{http.StatusBadRequest, "InvalidAction", "not an action of this server: " + action}
}

func (s *Server) create(in request) (any, *failure) {
	var redrive struct {
		DeadLetterTargetArn string
		MaxReceiveCount     int
	}
	if policy := in.Attributes["RedrivePolicy"]; policy != "" {
		if err := json.Unmarshal([]byte(policy), &redrive); err != nil {
			return nil, &failure{http.StatusBadRequest, "InvalidParameterValue", "RedrivePolicy: " + err.Error()}
		}
	}
	seconds, err := strconv.Atoi(cmp.Or(in.Attributes["VisibilityTimeout"], "30"))
	if err != nil {
		return nil, &failure{http.StatusBadRequest, "InvalidParameterValue", "VisibilityTimeout: " + err.Error()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.queues[in.QueueName] = &queue{
		visibility: time.Duration(seconds) * time.Second, dead: redrive.DeadLetterTargetArn[strings.LastIndex(redrive.DeadLetterTargetArn, ":")+1:],
		maxReceive: redrive.MaxReceiveCount, changed: make(chan struct{}),
	}
	return map[string]string{"QueueUrl": s.http.URL + "/" + account + "/" + in.QueueName}, nil
}

func (s *Server) attributes(q *queue) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	s.bury(q, now)
	visible := 0
	for _, m := range q.messages {
		if !m.visible.After(now) {
			visible++
		}
	}
	return map[string]any{"Attributes": map[string]string{
		"VisibilityTimeout":                     strconv.Itoa(int(q.visibility.Seconds())),
		"ApproximateNumberOfMessages":           strconv.Itoa(visible),
		"ApproximateNumberOfMessagesNotVisible": strconv.Itoa(len(q.messages) - visible), // delayed ones included
	}}
}

func (q *queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (s *Server) send(q *queue, in request) (any, *failure) {
	const maxBytes, maxDelay = 1 << 20, 900
	switch {
	case in.MessageBody == "" || len(in.MessageBody) > maxBytes:
		return nil, &failure{http.StatusBadRequest, "InvalidParameterValue", "a message has 1 to 1048576 bytes"}
	case in.DelaySeconds < 0 || in.DelaySeconds > maxDelay:
		return nil, &failure{http.StatusBadRequest, "InvalidParameterValue", fmt.Sprintf("DelaySeconds must be 0 to %d", maxDelay)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	m := &message{id: rand.Text(), body: in.MessageBody, visible: time.Now().Add(time.Duration(in.DelaySeconds) * s.second)}
	q.messages = append(q.messages, m)
	q.wake()
	return map[string]string{"MessageId": m.id, "MD5OfMessageBody": sum(m.body)}, nil
}

func sum(s string) string {
	d := md5.Sum([]byte(s)) // as the protocol requires
	return hex.EncodeToString(d[:])
}

// receive waits for messages up to the wait time of the request.
func (s *Server) receive(r *http.Request, q *queue, in request) (any, *failure) {
	late := time.NewTimer(time.Duration(in.WaitTimeSeconds) * time.Second)
	defer late.Stop()
	for {
		s.mu.Lock()
		got, next := s.take(q, in, time.Now())
		changed := q.changed
		s.mu.Unlock()
		if len(got) > 0 || in.WaitTimeSeconds == 0 || r.Context().Err() != nil {
			return map[string]any{"Messages": got}, nil
		}
		due := time.NewTimer(next)
		select {
		case <-changed:
		case <-due.C:
		case <-late.C:
			in.WaitTimeSeconds = 0
		case <-r.Context().Done():
		}
		due.Stop()
	}
}

// bury moves messages that were received too often to the dead-letter queue.
func (s *Server) bury(q *queue, now time.Time) {
	dead := s.queues[q.dead]
	if dead == nil {
		return
	}
	q.messages = slices.DeleteFunc(q.messages, func(m *message) bool {
		if m.receives < q.maxReceive || m.visible.After(now) {
			return false
		}
		dead.messages = append(dead.messages, &message{id: m.id, body: m.body, receives: m.receives})
		dead.wake()
		return true
	})
}

// take hides and returns the visible messages; if there are none, it returns
// the time until one becomes visible.
func (s *Server) take(q *queue, in request, now time.Time) ([]map[string]any, time.Duration) {
	s.bury(q, now)
	hide := q.visibility
	if in.VisibilityTimeout != nil {
		hide = time.Duration(*in.VisibilityTimeout) * s.second
	}
	next := time.Minute
	var got []map[string]any
	for _, m := range q.messages {
		if wait := m.visible.Sub(now); wait > 0 {
			next = min(next, wait)
			continue
		}
		if len(got) == cmp.Or(in.MaxNumberOfMessages, 1) {
			break
		}
		m.receives++
		m.visible, m.receipt = now.Add(hide), rand.Text()
		got = append(got, map[string]any{
			"MessageId": m.id, "ReceiptHandle": m.receipt, "Body": m.body, "MD5OfBody": sum(m.body),
			"Attributes": map[string]string{"ApproximateReceiveCount": strconv.Itoa(m.receives)},
		})
	}
	return got, next
}

func (s *Server) withReceipt(q *queue, in request, do func(i int)) (any, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(q.messages, func(m *message) bool { return m.receipt == in.ReceiptHandle && m.receipt != "" })
	if i >= 0 {
		do(i)
	}
	return map[string]string{}, nil // also for a receipt that has expired
}

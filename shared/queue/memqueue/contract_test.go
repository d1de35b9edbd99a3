package memqueue_test

import (
	"log/slog"
	"testing"

	"imageroot/shared/queue/memqueue"
	"imageroot/shared/queue/queuetest"
)

func TestContract(t *testing.T) {
	queuetest.Run(t, func(*testing.T) queuetest.Queue { return memqueue.New(slog.New(slog.DiscardHandler)) })
}

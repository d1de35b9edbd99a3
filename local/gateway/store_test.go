package gateway_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/storetest"
)

func TestStore(t *testing.T) {
	g := start(t, t.TempDir())
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Root {
		return root(t, g.Endpoint(), fmt.Sprintf("bucket-%d", n.Add(1)))
	})
}

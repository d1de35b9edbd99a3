package gateway_test

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/storetest"
)

func TestStore(t *testing.T) {
	g := start(t, t.TempDir())
	// Names that begin with a dot are hidden here, whatever follows it.
	storetest.HostileKeys = slices.DeleteFunc(slices.Clone(storetest.HostileKeys), func(key store.Key) bool { return key[0] == '.' })
	var n atomic.Int32
	storetest.Run(t, func(t *testing.T) store.Root {
		return root(t, g.Endpoint(), fmt.Sprintf("bucket-%d", n.Add(1)))
	})
}

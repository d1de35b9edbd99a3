package memstore_test

import (
	"testing"

	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Root { return memstore.New() })
}

package layout_test

import (
	"fmt"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// The key of an entry's record follows from its URL.
func ExampleEntryKey() {
	key := layout.EntryKey(layout.RefOf("https://example.org/x.img"))
	ref, ok := layout.EntryRef(key)
	fmt.Println(key)
	fmt.Println(ref[:12], ok)
	// Output:
	// entries/76811c141dc7db3557e5ad8fc8488d6c234d58c9ba20dbe3c3f3261fac2516b1
	// 76811c141dc7 true
}

func ExampleImageOfSidecar() {
	for _, key := range []string{"debian-12.qcow2.sha256", "debian-12.qcow2", "notes.txt.sha256"} {
		name, algorithm, ok := layout.ImageOfSidecar(store.Key(key))
		fmt.Printf("%q %q %v\n", name, algorithm, ok)
	}
	// Output:
	// "debian-12.qcow2" "sha256" true
	// "" "" false
	// "" "" false
}

// In a listing of the store, the newest event is first.
func ExampleNewEventID() {
	first := layout.NewEventID(time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC), "0000000000000001")
	second := layout.NewEventID(time.Date(2026, 11, 28, 12, 0, 1, 0, time.UTC), "0000000000000002")
	at, _ := second.Time()
	fmt.Println(layout.EventKey(second) < layout.EventKey(first), at)
	// Output: true 2026-11-28 12:00:01 +0000 UTC
}

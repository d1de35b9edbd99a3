package index

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// Data can be read in any order, while more are put.
func TestArchive(t *testing.T) {
	a := archive{codec: &codec{}}
	want := map[datum]string{{}: ""}
	var wg sync.WaitGroup
	for i := range 2000 {
		data := fmt.Sprint(i, strings.Repeat("x", i%300))
		if i == 1000 {
			data = strings.Repeat(data, 1<<10) // larger than a block
		}
		d := a.put(data)
		want[d] = data
		if i%10 == 0 {
			wg.Go(func() {
				if got := string(d.bytes()); got != data {
					t.Errorf("the data %d are %.20q of %d bytes", i, got, len(got))
				}
			})
		}
	}
	wg.Wait()
	var r dataReader
	for d, data := range want {
		if got := string(r.get(d)); got != data || string(d.bytes()) != data {
			t.Errorf("the data are %.20q of %d bytes, want %.20q", got, len(got), data)
		}
	}
	if len(want) != 2001 {
		t.Errorf("%d of 2000 data have a place", len(want))
	}
}

package upload

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"imageroot/shared/store"
)

// TestETagsOfManyParts tests that a request with the ETags of as many parts as an upload may
// have is read, and not refused for its size.
func TestETagsOfManyParts(t *testing.T) {
	w := newWorld(t)
	data := content(1, 2*testPart)
	v := w.begun("a.img", len(data))
	w.send(v, data, 1)
	w.send(v, data, 2)
	etags := make([]string, store.MaxParts)
	for i := range etags {
		etags[i] = `"CRC64NVME-dsXf8JLzQSM=-` + strings.Repeat("A", 26) + `"`
	}
	body, err := json.Marshal(map[string]any{"etags": etags})
	if err != nil {
		t.Fatal(err)
	}
	// There are two parts, so what it says is wrong.
	w.must(http.StatusUnprocessableEntity, http.MethodPost, "/uploads/"+v.ID+"/complete", body, "Content-Type", "application/json")
}

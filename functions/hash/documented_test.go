package hash

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[checkpoint](t, "../..", "The checkpoint of a hash job")
}

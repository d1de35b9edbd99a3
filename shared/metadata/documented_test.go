package metadata

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[Record](t, "../..", "metadata/HEX")
}

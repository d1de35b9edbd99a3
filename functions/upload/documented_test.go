package upload

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[pending](t, "../..", "uploads/ID")
}

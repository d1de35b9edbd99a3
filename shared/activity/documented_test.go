package activity

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[stored](t, "../..", "events/STAMP-ID")
}

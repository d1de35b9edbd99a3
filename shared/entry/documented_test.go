package entry_test

import (
	"testing"

	"imageroot/shared/entry"
	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[entry.Entry](t, "../..", "entries/REF")
	recordtest.Documented[entry.Fetched](t, "../..", "fetched/REF")
}

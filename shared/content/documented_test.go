package content_test

import (
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[content.Record](t, "../..", "contents/HEX")
}

package digest_test

import (
	"testing"

	"imageroot/shared/digest"
	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[digest.Record](t, "../..", "digests/NAME")
}

package index_test

import (
	"testing"

	"imageroot/shared/index"
	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[index.Current](t, "../..", "index/current")
	recordtest.Documented[index.Trimmed](t, "../..", "index/trimmed")
}

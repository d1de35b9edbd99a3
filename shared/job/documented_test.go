package job_test

import (
	"testing"

	"imageroot/shared/job"
	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[job.Job](t, "../..", "jobs/hash/NAME, jobs/check/HEX, jobs/disk/HEX, jobs/fetch/REF, jobs/rename/NAME")
}

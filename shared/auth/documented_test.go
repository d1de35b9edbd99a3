package auth

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[passwordRecord](t, "../..", "auth/password")
	recordtest.Documented[keyRecord](t, "../..", "auth/session-key")
	recordtest.Documented[endedRecord](t, "../..", "auth/ended")
}

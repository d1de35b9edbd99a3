package auth

import (
	"testing"

	"imageroot/shared/record/recordtest"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[passwordRecord](t, "../..", "auth/password")
	recordtest.Documented[keyRecord](t, "../..", "auth/session-key")
	recordtest.Documented[tokensRecord](t, "../..", "auth/tokens")
	recordtest.Documented[usedRecord](t, "../..", "auth/used")
	recordtest.Documented[endedRecord](t, "../..", "auth/ended")
}

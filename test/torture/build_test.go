package main

import "testing"

// TestOverlay tests that the source still has what the build for make torture changes.
func TestOverlay(t *testing.T) {
	if _, err := overlay(t.Context(), t.TempDir()); err != nil {
		t.Error(err)
	}
}

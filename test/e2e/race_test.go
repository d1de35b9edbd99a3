//go:build race

package e2e

// Tests that look for data races look for them in the binary, too.
const raceEnabled = true

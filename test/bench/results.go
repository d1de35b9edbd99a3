package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// readResults reads the runs of a file that -json has written. A missing file has none.
func readResults(path string) ([]*report, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var runs []*report
	if err := json.Unmarshal(data, &runs); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return runs, nil
}

// save writes the run to a file. Runs that are in the file stay there, except the measurements
// that this run has completed.
func (r *report) save(path string) error {
	runs, err := readResults(path)
	if err != nil {
		return err
	}
	kept := []*report{}
	for _, old := range runs {
		old.Measurements = slices.DeleteFunc(old.Measurements, func(m string) bool { return slices.Contains(r.Measurements, m) })
		old.Rows = slices.DeleteFunc(old.Rows, func(row row) bool { return !slices.Contains(old.Measurements, row.Measurement) })
		if len(old.Measurements) > 0 {
			kept = append(kept, old)
		}
	}
	r.LoadEnd = loadAverage()
	data, err := json.Marshal(append(kept, r))
	if err != nil {
		return err
	}
	// A line for each row. Inside a string, the quotation marks would be escaped.
	text := strings.ReplaceAll(string(data), `{"measurement"`, "\n"+`{"measurement"`)
	return os.WriteFile(path, []byte(text+"\n"), 0o644)
}

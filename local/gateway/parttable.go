package gateway

import (
	"encoding/json"
	"fmt"

	vgw "github.com/versity/versitygw/backend"
)

// A partTable has the sizes of an object's parts as runs of equal ones. Clients
// use one size for all parts but the last, so ten thousand parts take a few
// bytes; versitygw's own form exceeds ext4's attributes at some 760 parts.
type partTable struct {
	UploadID string     `json:"uploadId"`
	Runs     [][2]int64 `json:"runs,omitempty"` // size, count
}

// maxPartTable limits the size in bytes, which leaves room for the other attributes.
const maxPartTable = 1536

func newPartTable(m vgw.MpUploadMetadata) partTable {
	t := partTable{UploadID: m.UploadID}
	var before int64
	for _, end := range m.Parts {
		size := end - before
		before = end
		if n := len(t.Runs); n > 0 && t.Runs[n-1][0] == size {
			t.Runs[n-1][1]++
		} else {
			t.Runs = append(t.Runs, [2]int64{size, 1})
		}
	}
	return t
}

// marshal encodes the table. It omits the sizes if there are too many different
// ones; ?partNumber= does not work then.
func (t partTable) marshal() ([]byte, error) {
	data, err := json.Marshal(t)
	if err == nil && len(data) > maxPartTable {
		t.Runs = nil
		data, err = json.Marshal(t)
	}
	return data, err
}

func parsePartTable(data []byte) (partTable, error) {
	var t partTable
	if err := json.Unmarshal(data, &t); err != nil {
		// An object written by versitygw alone has its own form.
		m, err := vgw.UnmarshalMpUploadMetadata(data, false)
		if err != nil {
			return partTable{}, fmt.Errorf("part table: %w", err)
		}
		return newPartTable(m), nil
	}
	return t, nil
}

// offsets returns the table as versitygw has it: the end of each part.
func (t partTable) offsets() vgw.MpUploadMetadata {
	m := vgw.MpUploadMetadata{UploadID: t.UploadID}
	var end int64
	for _, run := range t.Runs {
		for range min(run[1], 10_000) {
			end += run[0]
			m.Parts = append(m.Parts, end)
		}
	}
	return m
}

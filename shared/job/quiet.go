package job

import (
	"bytes"
	"encoding/json"

	"imageroot/shared/store"
)

// Quiet reports whether the record at key is a running job that changed from old to new
// only in its progress, its checkpoint or its lease. The journal omits such changes.
func Quiet(key store.Key, old, new []byte) bool {
	if !isJob(key) {
		return false
	}
	a, aok := still(old)
	b, bok := still(new)
	return aok && bok && bytes.Equal(a, b)
}

// Live reports whether the record at key is a running job, which can have [Quiet]
// changes.
func Live(key store.Key, data []byte) bool {
	if !isJob(key) {
		return false // most records, at a start
	}
	var j Job
	return json.Unmarshal(data, &j) == nil && j.Status == Running
}

// still returns a running job without the fields that quiet changes affect, and false
// for any other record.
func still(data []byte) ([]byte, bool) {
	var j Job
	if json.Unmarshal(data, &j) != nil || j.Status != Running {
		return nil, false
	}
	j.Nonce, j.BytesDone, j.BytesTotal, j.LeaseUntil, j.Checkpoint = "", 0, nil, j.QueuedAt, nil
	rest, err := json.Marshal(j)
	return rest, err == nil
}

func isJob(key store.Key) bool {
	for _, k := range Kinds {
		if _, ok := k.ParseKey(key); ok {
			return true
		}
	}
	return false
}

package job

import (
	"bytes"
	"encoding/json"

	"imageroot/shared/store"
)

// Quiet reports whether the record at key, of any kind, changed from old to new as
// jobs do all the time while they run: in their progress, their checkpoint and the end
// of their lease. Such a change is not news to other processes.
func Quiet(key store.Key, old, new []byte) bool {
	if !isJob(key) {
		return false
	}
	a, aok := still(old)
	b, bok := still(new)
	return aok && bok && bytes.Equal(a, b)
}

// Live reports whether the record at key, of any kind, is a job that runs, so that it
// has changes that are [Quiet].
func Live(key store.Key, data []byte) bool {
	var j Job
	return isJob(key) && json.Unmarshal(data, &j) == nil && j.Status == Running
}

// still returns a running job without what moves.
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

// Package record changes the JSON records that processes share, over the
// compare-and-swap of store.Records.
package record

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// Format is embedded in every record: it carries the version of the record's
// format.
type Format struct {
	// Schema is the version that the record was written in; 0 means 1.
	Schema int `json:"schema,omitempty"`
}

// SchemaVersion returns the newest version of the format that this program
// knows. A type whose meaning has changed since version 1 has a method of its
// own, and reads the older versions too. docs/records.md has the rule.
func (Format) SchemaVersion() int { return 1 }

func (f Format) schema() int { return f.Schema }

// Meta is embedded in every record that is changed more than once.
type Meta struct {
	Format
	// Nonce is new with every write. It makes each content differ from all
	// before it, and tells a writer whose answer was lost whether the write
	// took effect.
	Nonce string `json:"nonce"`
}

func (m *Meta) stamp(schema int, nonce string) { m.Schema, m.Nonce = schema, nonce }
func (m *Meta) nonce() string                  { return m.Nonce }

// A Pointer is a *T whose T embeds [Meta].
type Pointer[T any] interface {
	*T
	SchemaVersion() int
	stamp(schema int, nonce string)
	nonce() string
}

// ErrKeep is returned by a change that wants the record left as it is.
var ErrKeep = errors.New("keep the record")

const (
	// maxTries bounds how often a change is tried against others' writes.
	maxTries = 100
	// maxUnknown bounds how often it is tried against a server that answers
	// reads and no writes: each try may wait as long as a request may take.
	maxUnknown = 10
)

// ErrDamaged is matched by every [DamagedError].
var ErrDamaged = errors.New("the record is damaged")

// A DamagedError says that there is no record of the expected type in the
// content at Key. It also matches store.ErrNotFound: a damaged record counts
// as missing, so that it is made again in place of the damaged content.
type DamagedError struct {
	Key string
	Err error // what is wrong with the content
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the record %q is damaged and counts as missing: %v", e.Key, e.Err)
}

// Is implements the interface of errors.Is.
func (e *DamagedError) Is(target error) bool {
	return target == ErrDamaged || target == store.ErrNotFound //nolint:errorlint // errors.Is does the unwrapping
}

// Unwrap returns what is wrong with the content.
func (e *DamagedError) Unwrap() error { return e.Err }

// ErrNewer is matched by every [NewerError].
var ErrNewer = errors.New("the record is of a newer version")

// A NewerError says that a newer program wrote the record at Key, in a version
// of its format that this one does not know. The record is not damaged and
// does not count as missing: nothing here changes or removes it, and the rest
// of the catalog does without it.
type NewerError struct {
	Key            string
	Version, Known int
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("the record %q has version %d and this imageroot knows version %d: run the newer imageroot that wrote it; this one leaves the record as it is",
		e.Key, e.Version, e.Known)
}

// Is implements the interface of errors.Is.
func (e *NewerError) Is(target error) bool { return target == ErrNewer } //nolint:errorlint // errors.Is does the unwrapping

// Remedy says what to do about the record at key, which [Decode] refused with
// err.
func Remedy(key string, err error) string {
	if errors.Is(err, ErrNewer) {
		return "run the newer imageroot that wrote it"
	}
	return layout.Remedy(key)
}

// A Validator is a record that can tell whether it is complete. The error says
// what is missing.
type Validator interface{ Validate() error }

// Decode returns the record in data, the content at key. The error is a
// [NewerError] if its version is newer than T's, and a [DamagedError] if data is not JSON of that type, has no nonce where the type
// has one, or is not valid (see [Validator]).
func Decode[T any](key string, data []byte) (T, error) {
	var v, zero T
	err := json.Unmarshal(data, &v)
	if f, ok := any(&v).(interface {
		SchemaVersion() int
		schema() int
	}); ok {
		written := Format{Schema: f.schema()}
		if err != nil {
			_ = json.Unmarshal(data, &written) // it may be its version that keeps it from decoding
		}
		if written.Schema > f.SchemaVersion() {
			return zero, &NewerError{key, written.Schema, f.SchemaVersion()}
		}
	}
	if m, ok := any(&v).(interface{ nonce() string }); err == nil && ok && m.nonce() == "" {
		err = errors.New("it has no nonce")
	}
	if c, ok := any(&v).(Validator); err == nil && ok {
		err = c.Validate()
	}
	if err != nil {
		return zero, &DamagedError{key, err}
	}
	return v, nil
}

// Read returns a record and the tag of its content. It returns
// store.ErrNotFound and an empty tag if there is none, and a [DamagedError]
// and the tag of the damaged content if it is damaged. Of a record of a newer
// version it returns a [NewerError] and no tag, so that nothing replaces it.
func Read[T any](ctx context.Context, s store.Records, key string) (T, string, error) {
	data, tag, err := s.ReadRecord(ctx, key)
	if err != nil {
		var zero T
		return zero, "", err
	}
	v, err := Decode[T](key, data)
	if errors.Is(err, ErrNewer) {
		tag = ""
	}
	return v, tag, err
}

// Delete removes the record at key, also a damaged one. It removes nothing and
// returns a [NewerError] if the record is of a newer version. It is no error
// if there is none.
func Delete[T any](ctx context.Context, s store.Records, key string) error {
	_, _, err := Read[T](ctx, s, key)
	switch {
	case err == nil, errors.Is(err, ErrDamaged):
		return s.DeleteRecord(ctx, key)
	case errors.Is(err, store.ErrNotFound):
		return nil
	}
	return err
}

// Swap writes v in place of the content that tag names; an empty tag means
// that there must be no record yet. It resolves an unknown outcome by reading
// back. The error is store.ErrConflict where somebody else's write is in force
// (v may have been for a moment before, if its outcome was unknown); any other
// error leaves open whether v will be.
func Swap[T any, P Pointer[T]](ctx context.Context, s store.Records, key string, v P, tag string) (newTag string, err error) {
	v.stamp(v.SchemaVersion(), rand.Text())
	data, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("record %q: %w", key, err)
	}
	if tag == "" {
		newTag, err = s.CreateRecord(ctx, key, data)
	} else {
		newTag, err = s.ReplaceRecord(ctx, key, data, tag)
	}
	if err == nil || errors.Is(err, store.ErrConflict) {
		return newTag, err
	}
	found, foundTag, readErr := Read[T](ctx, s, key)
	switch {
	case readErr == nil && P(&found).nonce() == v.nonce():
		return foundTag, nil
	case readErr == nil && foundTag != tag, errors.Is(readErr, ErrNewer), errors.Is(readErr, store.ErrNotFound) && tag != "":
		return "", fmt.Errorf("record %q: %w", key, store.ErrConflict)
	}
	return "", err
}

// Change reads the record, calls change to edit it, and writes the result,
// and repeats this until no other write comes between. exists is false, and v
// zero, if there is no record or a damaged one. Change returns the record in
// force afterwards and its tag. If change returns an error, nothing is written
// and Change returns that error; [ErrKeep] counts as none.
//
// A write whose answer was lost counts if it is found in force. If another
// write has replaced it before it could be found, the change is made again: a
// change that must not happen twice has to check what it finds.
func Change[T any, P Pointer[T]](ctx context.Context, s store.Records, key string, change func(v P, exists bool) error) (T, string, error) {
	return Repair(ctx, s, key, func(v P, found error) error { return change(v, found == nil) })
}

// Repair is [Change] for a caller that treats a damaged record other than a
// missing one: found is nil, or the error of [Read].
func Repair[T any, P Pointer[T]](ctx context.Context, s store.Records, key string, change func(v P, found error) error) (T, string, error) {
	var err error
	var unknown []string // nonces of writes that may yet arrive
	for range maxTries {
		var v T
		var tag string
		v, tag, err = Read[T](ctx, s, key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return v, "", err
		}
		if err == nil && slices.Contains(unknown, P(&v).nonce()) {
			return v, tag, nil
		}
		if cerr := change(P(&v), err); cerr != nil {
			if errors.Is(cerr, ErrKeep) {
				cerr = nil
			}
			return v, tag, cerr
		}
		tag, err = Swap[T, P](ctx, s, key, P(&v), tag)
		if err == nil {
			return v, tag, nil
		}
		// After an unknown outcome the write may still be on its way; writing
		// again against the same tag lets only one of the two take effect.
		if !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrUnknown) {
			return v, "", err
		}
		if errors.Is(err, store.ErrUnknown) {
			unknown = append(unknown, P(&v).nonce())
		}
		if ctx.Err() != nil || len(unknown) == maxUnknown {
			break
		}
	}
	var zero T
	return zero, "", err
}

// Package record reads and changes the JSON records that processes share.
//
// [Read] distinguishes a missing record (store.ErrNotFound) from a damaged one
// ([ErrDamaged]) and from one of a newer program ([ErrNewer]). Records change by
// compare-and-swap of store.Records: [Swap] is one attempt, and [Change] and [Repair]
// repeat it until no other write intervenes. A write is as durable as store.Records makes
// it. All functions are safe for concurrent use, from several processes too.
// docs/records.md documents the format of each record.
package record

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"

	// What encoding/json is from Go 1.27 on: a start with many images decodes in half the time.
	"github.com/go-json-experiment/json/v1"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// Format is embedded in every record. It holds the version of the record's format.
type Format struct {
	// Schema is the version of the format in which the record was written; 0 means 1.
	Schema int `json:"schema,omitempty"`
}

// SchemaVersion returns the newest version of the format that this program supports. A
// type whose meaning has changed since version 1 overrides it, and still reads older
// versions. docs/records.md states the rule.
func (Format) SchemaVersion() int { return 1 }

func (f Format) schema() int { return f.Schema }

// Meta is embedded in every record that is replaced by compare-and-swap.
type Meta struct {
	Format
	// Nonce is random and new with every write. It makes each content differ from all
	// earlier ones, as store.Records requires, and lets a writer that received no
	// response find out whether its write took effect.
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

// ErrKeep is the error with which a change function leaves the record unchanged.
var ErrKeep = errors.New("keep the record")

const (
	// maxTries bounds the attempts of one change that conflict with other writes.
	maxTries = 100
	// maxUnknown bounds its attempts with an unknown outcome: if a server answers reads
	// but no writes, each attempt lasts until the timeout of a request.
	maxUnknown = 10
)

// ErrDamaged is matched by every [DamagedError].
var ErrDamaged = errors.New("the record is damaged")

// A DamagedError reports that the content at Key is not a record of the expected
// type. It matches [ErrDamaged], and store.ErrNotFound too: a damaged record
// counts as missing, so that a new record replaces the damaged content.
type DamagedError struct {
	Key store.Key
	Err error // the defect of the content
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the record %q is damaged and counts as missing: %v", e.Key, e.Err)
}

// Is implements the interface of errors.Is.
func (e *DamagedError) Is(target error) bool {
	return target == ErrDamaged || target == store.ErrNotFound //nolint:errorlint // errors.Is does the unwrapping
}

// Unwrap returns the defect of the content.
func (e *DamagedError) Unwrap() error { return e.Err }

// ErrNewer is matched by every [NewerError].
var ErrNewer = errors.New("the record is of a newer version")

// A NewerError reports that a newer program wrote the record at Key, in a version of
// the format that this program does not support. It matches [ErrNewer]. The record is
// not damaged and does not count as missing: this package neither changes nor removes
// it.
type NewerError struct {
	Key            store.Key
	Version, Known int
}

func (e *NewerError) Error() string {
	return fmt.Sprintf("the record %q has version %d and this imageroot knows version %d: run the newer imageroot that wrote it; this one leaves the record as it is",
		e.Key, e.Version, e.Known)
}

// Is implements the interface of errors.Is.
func (e *NewerError) Is(target error) bool { return target == ErrNewer } //nolint:errorlint // errors.Is does the unwrapping

// Remedy returns what the operator can do about the record at key, which [Decode]
// refused with err.
func Remedy(key store.Key, err error) string {
	if errors.Is(err, ErrNewer) {
		return "run the newer imageroot that wrote it"
	}
	return layout.Remedy(key)
}

// A Validator is a record that checks its own fields. [Decode] refuses a record
// whose Validate returns an error.
type Validator interface{ Validate() error }

// Decode returns the record in data, the content at key. The error is a [NewerError] if
// the record's version is newer than the one that T supports. It is a [DamagedError] if
// data is not JSON of type T, lacks the nonce of a T that embeds [Meta], or is not
// valid (see [Validator]).
func Decode[T any](key store.Key, data []byte) (T, error) {
	var v, zero T
	err := json.Unmarshal(data, &v)
	if f, ok := any(&v).(interface {
		SchemaVersion() int
		schema() int
	}); ok {
		written := Format{Schema: f.schema()}
		if err != nil {
			_ = json.Unmarshal(data, &written) // the newer version may be the reason for err
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

// Read returns the record at key and the tag of its content. If there is no record, the
// error is store.ErrNotFound and the tag empty. If it is damaged, the error is a
// [DamagedError] and the tag that of the damaged content. If its version is newer, the
// error is a [NewerError] and the tag empty, so that no write can replace it.
func Read[T any](ctx context.Context, s store.Records, key store.Key) (T, string, error) {
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

// Delete removes the record at key, even if it is damaged. It returns nil if there is
// none. If the record's version is newer, it returns a [NewerError] and removes
// nothing. It is no compare-and-swap: it may remove the result of a concurrent write.
func Delete[T any](ctx context.Context, s store.Records, key store.Key) error {
	_, _, err := Read[T](ctx, s, key)
	switch {
	case err == nil, errors.Is(err, ErrDamaged):
		return s.Delete(ctx, key)
	case errors.Is(err, store.ErrNotFound):
		return nil
	}
	return err
}

// CheckVersion returns a [NewerError] if the version of the record at key is newer, or
// the error of the store. It returns nil for any other record, also a damaged or
// missing one. An operation on several records should check all of them before it
// changes the first, so that a newer record leaves the others unchanged, too.
func CheckVersion[T any](ctx context.Context, s store.Records, key store.Key) error {
	_, _, err := Read[T](ctx, s, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// Swap replaces the content that tag identifies with v, and returns the new tag. An
// empty tag requires that there is no record yet. It sets v's nonce and schema. It
// resolves an unknown outcome by reading back. The error is store.ErrConflict if
// another write is in force. If the outcome was unknown, v may have been in force
// before that. After any other error, v may be in force or take effect later.
func Swap[T any, P Pointer[T]](ctx context.Context, s store.Records, key store.Key, v P, tag string) (newTag string, err error) {
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

// A Watcher is a store.Records that is told when [Change] or [Repair] has replaced
// damaged content, for which [Read] returned err. No other reader may have seen the damage.
type Watcher interface {
	Repaired(key store.Key, err error)
}

// Change reads the record, calls change to edit it, and writes the result, and repeats
// this until no other write intervenes: at most 100 times, and 10 times with an unknown
// outcome. exists is false and v is zero if there is no record or a damaged one. Change
// returns the record in force afterwards and its tag. If change returns an error,
// Change writes nothing and returns that error, or nil if it is [ErrKeep]. After the
// last attempt it returns store.ErrConflict or store.ErrUnknown. It returns a
// [NewerError] without calling change.
//
// If the response to a write is lost, the write counts if a later read finds it in
// force. If another write has replaced it by then, Change calls change again. So a
// change that must not happen twice has to check the record that it receives.
func Change[T any, P Pointer[T]](ctx context.Context, s store.Records, key store.Key, change func(v P, exists bool) error) (T, string, error) {
	return Repair(ctx, s, key, func(v P, found error) error { return change(v, found == nil) })
}

// Repair is [Change] for a caller that distinguishes a damaged record from a missing
// one: found is nil, or the error of [Read].
func Repair[T any, P Pointer[T]](ctx context.Context, s store.Records, key store.Key, change func(v P, found error) error) (T, string, error) {
	var err error
	var unknown []string // nonces of writes that may still arrive
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
		found := err
		tag, err = Swap[T, P](ctx, s, key, P(&v), tag)
		if err == nil {
			if w, ok := s.(Watcher); ok && errors.Is(found, ErrDamaged) {
				w.Repaired(key, found)
			}
			return v, tag, nil
		}
		// After an unknown outcome the write may still be in flight. A new write
		// against the same tag lets only one of the two take effect.
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

// Package storetest checks the contract of package store. Every implementation of
// [store.Root] passes it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"imageroot/shared/store"
)

// Run tests the roots that open returns. Each must be empty and independent of the
// others. A prefix of its own suffices. Run calls open concurrently.
func Run(t *testing.T, open func(t *testing.T) store.Root) {
	tests := []struct {
		name string
		test func(*suite)
	}{
		{"Missing", (*suite).missing},
		{"PutAndGet", (*suite).putAndGet},
		{"Ranges", (*suite).ranges},
		{"IfMatch", (*suite).ifMatch},
		{"UnknownSize", (*suite).unknownSize},
		{"LargeOfUnknownSize", (*suite).largeOfUnknownSize},
		{"FailedPut", (*suite).failedPut},
		{"CancelledPut", (*suite).cancelledPut},
		{"Delete", (*suite).delete},
		{"Create", (*suite).createObject},
		{"CreateObjectRace", (*suite).createObjectRace},
		{"Move", (*suite).move},
		{"MoveRace", (*suite).moveRace},
		{"HostileKeys", (*suite).hostile},
		{"List", (*suite).list},
		{"ListPages", (*suite).listPages},
		{"EndedContext", (*suite).endedContext},
		{"OneVersionWhole", (*suite).oneVersionWhole},
		{"Multipart", (*suite).multipart},
		{"MultipartOverwrites", (*suite).multipartOverwrites},
		{"CompleteNew", (*suite).completeNew},
		{"CompleteNewRace", (*suite).completeNewRace},
		{"FailedPart", (*suite).failedPart},
		{"WrongComplete", (*suite).wrongComplete},
		{"Abort", (*suite).abort},
		{"PendingUploads", (*suite).pendingUploads},
		{"Records", (*suite).records},
		{"RecordsAreObjects", (*suite).recordsAreObjects},
		{"RecordSizes", (*suite).recordSizes},
		{"CreateRace", (*suite).createRace},
		{"ReplaceRace", (*suite).replaceRace},
		{"Counter", (*suite).counter},
	}
	t.Run("Contract", func(t *testing.T) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				t.Parallel()
				// A hanging test fails alone, and the others still run.
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
				defer cancel()
				tt.test(&suite{T: t, ctx: ctx, root: open(t)})
			})
		}
	})
}

// A suite is one test and its own root.
type suite struct {
	*testing.T
	ctx  context.Context
	root store.Root
}

// fails checks that err matches want.
func (s *suite) fails(what string, err, want error) {
	s.Helper()
	if !errors.Is(err, want) {
		s.Errorf("%s: the error is %v, want %v", what, err, want)
	}
}

func (s *suite) must(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

func (s *suite) put(key store.Key, data []byte) store.Version {
	s.Helper()
	v, err := s.root.Put(s.ctx, key, bytes.NewReader(data), int64(len(data)))
	s.must("put "+string(key), err)
	return v
}

// puts calls Put with body, and checks that the object has data.
func (s *suite) puts(key store.Key, body io.Reader, size int64, data []byte) store.Version {
	s.Helper()
	v, err := s.root.Put(s.ctx, key, body, size)
	s.must("put "+string(key), err)
	if got := s.holds(key, data); !got.Equal(v) {
		s.Errorf("Put returned %+v, and the object is %+v", v, got)
	}
	return v
}

func (s *suite) get(key store.Key) ([]byte, store.Info) {
	s.Helper()
	data, info, err := s.read(key, store.All, "")
	s.must("get "+string(key), err)
	return data, info
}

func (s *suite) read(key store.Key, r store.Range, ifMatch string) ([]byte, store.Info, error) {
	body, info, err := s.root.Get(s.ctx, key, r, ifMatch)
	if err != nil {
		return nil, info, err
	}
	data, err := io.ReadAll(body)
	return data, info, errors.Join(err, body.Close())
}

// hasRange checks a range of the object, and returns the Info of the whole.
func (s *suite) hasRange(key store.Key, r store.Range, ifMatch string, want []byte) store.Info {
	s.Helper()
	got, info, err := s.read(key, r, ifMatch)
	if err != nil || !bytes.Equal(got, want) {
		s.Errorf("range %+v of %q: %d bytes, %v; want %d", r, key, len(got), err, len(want))
	}
	return info
}

// holds checks the content of key, and that Head and Get agree on its version, which
// it returns.
func (s *suite) holds(key store.Key, want []byte) store.Version {
	s.Helper()
	got, info := s.get(key)
	if !bytes.Equal(got, want) {
		s.Errorf("%q has %s, want %s", key, short(got), short(want))
	}
	head, err := s.root.Head(s.ctx, key)
	s.must("head "+string(key), err)
	if !head.Equal(info.Version) || head.Key != key || info.Key != key {
		s.Errorf("Head says %+v, Get says %+v", head, info)
	}
	if head.Size != int64(len(want)) {
		s.Errorf("%q has a size of %d, want %d", key, head.Size, len(want))
	}
	if head.ETag == "" || strings.Contains(head.ETag, `"`) {
		s.Errorf("%q has the ETag %q", key, head.ETag)
	}
	return info.Version
}

func (s *suite) isMissing(key store.Key) {
	s.Helper()
	_, err := s.root.Head(s.ctx, key)
	s.fails("head "+string(key), err, store.ErrNotFound)
	_, _, err = s.read(key, store.All, "")
	s.fails("get "+string(key), err, store.ErrNotFound)
}

func (s *suite) keys(prefix string, after store.Key) []store.Key {
	s.Helper()
	var keys []store.Key
	for info, err := range s.root.List(s.ctx, prefix, after) {
		s.must("list "+prefix, err)
		keys = append(keys, info.Key)
	}
	return keys
}

func (s *suite) lists(prefix string, after store.Key, want ...store.Key) {
	s.Helper()
	if got := s.keys(prefix, after); !slices.Equal(got, want) {
		s.Errorf("listing of %q after %q: %q, want %q", prefix, after, got, want)
	}
}

// short returns the beginning of data for a message.
func short(data []byte) string {
	if len(data) > 40 {
		return string(data[:40]) + "..."
	}
	return string(data)
}

// pattern returns n bytes without short repetitions.
func pattern(seed byte, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(data) // never fails
	return data
}

// breaks returns a reader of n bytes of a pattern and then err.
func breaks(n int, err error) io.Reader {
	return io.MultiReader(bytes.NewReader(pattern(2, n)), iotest.ErrReader(err))
}

// plain hides all methods of a reader but Read.
type plain struct{ io.Reader }

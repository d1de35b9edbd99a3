package api

import "testing"

// A server that lies about the parts of an upload is refused, before they are used.
func TestUploadCheck(t *testing.T) {
	part := func(number int, size int64) Part { return Part{Number: number, SizeBytes: size} }
	good := Upload{SizeBytes: 25, PartSize: 10, Parts: []Part{part(1, 10), part(2, 10), part(3, 5)}}
	if err := good.check(); err != nil {
		t.Error(err)
	}
	good.Parts = nil // not uploading
	if err := good.check(); err != nil {
		t.Error(err)
	}
	for what, u := range map[string]Upload{
		"no size of parts": {SizeBytes: 25}, "no size": {PartSize: 10}, "a part too few": {SizeBytes: 25, PartSize: 10, Parts: []Part{part(1, 10), part(2, 10)}},
		"part 0": {SizeBytes: 10, PartSize: 10, Parts: []Part{part(0, 10)}}, "part 9": {SizeBytes: 10, PartSize: 10, Parts: []Part{part(9, 10)}},
		"another size": {SizeBytes: 10, PartSize: 10, Parts: []Part{part(1, 11)}},
	} {
		if u.check() == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

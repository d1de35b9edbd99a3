package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// A maker makes images with the usual tools.
type maker struct {
	t   testing.TB
	dir string
}

// newMaker returns a maker with an image, raw, of 8 MiB: a MiB of noise, a MiB
// of text, and zeros.
func newMaker(t testing.TB) *maker {
	t.Helper()
	m := &maker{t, t.TempDir()}
	raw := make([]byte, 8<<20)
	copy(raw[1<<20:], content(61, 1<<20))
	for i := 3 << 20; i < 4<<20; i += 32 {
		copy(raw[i:], fmt.Sprintf("line %d of a file\n", i))
	}
	copy(raw[510:], "\x55\xaa") // one partition, of the whole disk
	copy(raw[446:], "\x80\x01\x01\x00\x83\x3f\x20\x05\x00\x08\x00\x00\x00\x38\x00\x00")
	if err := os.WriteFile(m.path("raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *maker) path(name string) string { return filepath.Join(m.dir, name) }

// make runs a script and returns the file x that it made.
func (m *maker) make(script string) []byte {
	m.t.Helper()
	cmd := exec.Command("sh", "-ec", script)
	cmd.Dir = m.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", script, err, out)
	}
	b, err := os.ReadFile(m.path("x"))
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.Remove(m.path("x")); err != nil {
		m.t.Fatal(err)
	}
	return b
}

func (m *maker) raw() []byte {
	m.t.Helper()
	b, err := os.ReadFile(m.path("raw"))
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

// check returns the check job of name.
func (s *Server) check(t testing.TB, name string) (job, bool) {
	t.Helper()
	jobs, _ := s.Jobs(t, hashes)
	for _, j := range jobs {
		if j.Name == name && j.Stage == "check" {
			return j, true
		}
	}
	return job{}, false
}

// waitCheck waits until ok accepts the check of name.
func (s *Server) waitCheck(t testing.TB, name, what string, ok func(job) bool) job {
	t.Helper()
	var got job
	eventually(t, within, fmt.Sprintf("check of %q: %s", name, what), func() error {
		j, found := s.check(t, name)
		if !found {
			return errors.New("there is no such job")
		}
		if got = j; !ok(j) {
			return fmt.Errorf("it is %+v", j)
		}
		return nil
	})
	return got
}

// luks is a command that makes an encrypted image of the size that follows it.
// QEMU measures the speed of the machine for that, and fails if the clock is
// too coarse, so the command is repeated.
const luks = `luks() {
	for n in $(seq 50); do
		qemu-img create -q -f qcow2 --object secret,id=s,data=geheim -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 x $1 && return
	done
	return 1
}
luks`

// TestContentOfGoodImages uploads every kind of image under a fitting name: its
// kind, its disk, and no warning.
func TestContentOfGoodImages(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	raw := m.raw()
	for _, c := range []struct{ name, script, content string }{
		{"plain.img", "cp raw x", "mbr"},
		{"plain.raw", "cp raw x; echo >>x", "mbr"},
		{"v3.qcow2", "qemu-img convert -O qcow2 raw x", "qcow2"},
		{"v2.qcow2", "qemu-img convert -O qcow2 -o compat=0.10 raw x", "qcow2"},
		{"zlib.qcow2", "qemu-img convert -c -O qcow2 raw x", "qcow2"},
		{"zstd.qcow2", "qemu-img convert -c -O qcow2 -o compression_type=zstd raw x", "qcow2"},
		{"stream.vmdk", "qemu-img convert -O vmdk -o subformat=streamOptimized raw x", "vmdk"},
		{"fixed.vhd", "qemu-img convert -O vpc -o subformat=fixed,force_size=on raw x", "vhd"},
		{"a.vhdx", "qemu-img convert -O vhdx raw x", "vhdx"},
		{"a.vdi", "qemu-img convert -O vdi raw x", "vdi"},
		{"a.img.gz", "gzip -c raw >x", "gzip"},
		{"members.img.gz", "head -c 1500000 raw | gzip >x; tail -c +1500001 raw | gzip >>x", "gzip"},
		{"a.img.xz", "xz -c -0 -T1 raw >x", "xz"},
		{"blocks.img.xz", "xz -c -0 -T2 --block-size=768KiB raw >x", "xz"},
		{"streams.img.xz", "head -c 1500000 raw | xz -0 >x; tail -c +1500001 raw | xz -0 >>x", "xz"},
		{"a.img.zst", "zstd -q -c raw >x", "zstd"},
		{"pipe.img.zst", "zstd -q -c <raw >x", "zstd"},
		{"long.img.zst", "zstd -q -c --long=27 <raw >x", "zstd"},
		{"frames.img.zst", `printf '\123\052\115\030\5\0\0\0skip!' >x; head -c 1500000 raw | zstd -q >>x; tail -c +1500001 raw | zstd -q >>x`, "zstd"},
		{"pzstd.img.zst", "pzstd -q -c raw >x", "zstd"},
		{"bgzip.img.gz", "bgzip -c raw >x", "gzip"},
		{"a.raw.bz2", "bzip2 -c raw >x", "bzip2"},
		{"parallel.img.bz2", "pbzip2 -c -b1 raw >x", "bzip2"},
		{"a.zip", "cp raw a.img; zip -q y a.img; mv y.zip x", "zip"},
		{"a.iso", "mkdir -p d; cp raw d/file; genisoimage -quiet -R -o x d", "iso9660"},
	} {
		data := m.make(c.script)
		s.Put(t, c.name, data)
		r := s.WaitRow(t, c.name, "known through and through", func(r row) bool { return r.RawSHA256 != "" })
		want := raw
		if c.content == "mbr" || c.content == "iso9660" {
			want = data
		}
		switch {
		case r.Content != c.content || len(r.Warnings) > 0:
			t.Errorf("%s: %s, %q", c.name, r.Content, r.Warnings)
		case r.RawSize == nil || *r.RawSize != int64(len(want)) || r.RawSHA256 != sum(want):
			t.Errorf("%s: %v raw bytes, %s", c.name, r.RawSize, r.RawSHA256)
		case r.Virtual == nil || *r.Virtual != int64(len(want)):
			t.Errorf("%s: a disk of %v bytes", c.name, r.Virtual)
		}
		if _, ok := s.check(t, c.name); ok { // the verdict is published before the job ends
			j := s.waitCheck(t, c.name, "completed", func(j job) bool { return j.Status == "completed" })
			if j.SHA256 != r.SHA256 || j.BytesTotal == nil || j.BytesHashed != *j.BytesTotal {
				t.Errorf("%s: check %+v", c.name, j)
			}
		}
		// It is decompressed otherwise than before the check.
		if r := s.get(t, rawRoute(c.name), anonymous).Must(t, 200); !bytes.Equal(r.Body, want) {
			t.Errorf("%s: /raw has %d bytes, or wrong ones", c.name, len(r.Body))
		}
	}
}

// TestContentOfBadImages reports what is wrong with an image; the digest is
// published all the same.
func TestContentOfBadImages(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	// Damages a file: one byte in its middle.
	const damage = "; printf '\\377\\252\\0\\125' | dd of=x bs=1 seek=750000 conv=notrunc status=none"
	const cut = "; truncate -s 900000 x"
	for _, c := range []struct {
		name, script string
		says         []string // of each warning
		done         bool     // without a check
	}{
		{"noble-server-cloudimg-amd64.img", "qemu-img convert -O qcow2 raw x", []string{"named .img, but it is a qcow2 image"}, false},
		{"wrong.img.gz", "xz -0 -c raw >x", []string{"named .img.gz, but it is an xz file"}, false},
		{"plain.img.xz", "cp raw x", []string{"not compressed"}, true},
		{"page.iso", "printf '<!DOCTYPE html>\\n<html><title>404 Not Found</title>' >x", []string{"this is a web page"}, true},
		{"error.img", "printf '<?xml version=\"1.0\"?>\\n<Error><Code>AccessDenied</Code></Error>' >x", []string{"this is text"}, true},
		{"virtual.img", "qemu-img create -q -f qed x 10M", []string{"QED"}, true},
		{"fixed.img", "qemu-img convert -O vpc -o subformat=fixed,force_size=on raw x", []string{"named .img, but it is a fixed VHD"}, false},
		{"rockchip.img", "printf RKFW >x; truncate -s 1M x", []string{"Rockchip"}, true},
		{"bad.vmdk", "qemu-img convert -O vmdk -o subformat=streamOptimized raw x; printf '\\377' | dd of=x bs=1 seek=300000 conv=notrunc status=none", []string{"does not expand"}, false},
		{"cut.vdi", "qemu-img convert -O vdi raw x" + cut, []string{"cut short"}, false},
		{"cut.img", "cp raw x; truncate -s 1000000 x", []string{"cut short: the last partition begins at byte 1048576"}, true},
		{"shrunk.img", "cp raw x; truncate -s 3500000 x", []string{"the last partition extends 4888608 bytes beyond the image: some publishers"}, true},
		{"cut.iso", "mkdir -p d; cp raw d/f; genisoimage -quiet -o x d" + cut, []string{"cut short: the ISO 9660 volume ends at byte"}, true},
		{"cut.qcow2", "qemu-img convert -O qcow2 raw x" + cut, []string{"cut short"}, false},
		{"cut.img.gz", "gzip -c raw >x" + cut, []string{"ends at byte 900000"}, false},
		{"cut.img.xz", "xz -0 -c raw >x" + cut, []string{"ends at byte 900000"}, false},
		{"cut.img.zst", "zstd -q -c raw >x" + cut, []string{"ends at byte 900000"}, false},
		{"cut.img.bz2", "bzip2 -1 -c raw >x" + cut, []string{"ends at byte 900000"}, false},
		{"bad.img.gz", "gzip -c raw >x" + damage, []string{"damaged at or before byte"}, false},
		{"bad.img.xz", "xz -0 -c raw >x" + damage, []string{"damaged at or before byte"}, false},
		{"bad.img.zst", "zstd -q -c raw >x" + damage, []string{"damaged at or before byte"}, false},
		{"bad.img.bz2", "bzip2 -1 -c raw >x" + damage, []string{"damaged at or before byte"}, false},
		{"bad.zip", "cp raw a.img; zip -q y a.img; mv y.zip x" + damage, []string{"damaged at or before byte"}, false},
		{"two.zip", "cp raw a.img; cp raw b.img; zip -q y a.img b.img; mv y.zip x", []string{"has 2 images in it"}, true},
		{"none.zip", "zip -q y raw; mv y.zip x", []string{"has no image in it"}, true},
		{"bad.qcow2", "qemu-img convert -c -O qcow2 raw x; dd if=/dev/urandom of=x bs=100k seek=3 count=1 conv=notrunc status=none", []string{"does not expand"}, false},
		{"long.img.zst", "zstd -q -c --long=28 <raw >x", []string{"--long=27"}, false},
		{"filtered.img.xz", "xz -c --x86 --lzma2=preset=0 raw >x", []string{"filters other than LZMA2"}, false},
		{"secret.qcow2", luks + " 10M", []string{"encrypted (LUKS)"}, false},
		{"half.qcow2", "qemu-img create -q -f qcow2 -b raw -F raw x", []string{`backing file "raw"`}, false},
		{"subclusters.qcow2", "qemu-img create -q -f qcow2 -o extended_l2=on x 10M", []string{"extended L2"}, false},
		{"signed.img.gz", "gzip -c raw >x; echo signature >>x", []string{"10 bytes after the end of the gzip data are ignored"}, false},
		{"paged.img.gz", "echo '<html>not here</html>' | gzip >x", []string{"decompressed: this is a web page"}, false},
	} {
		data := m.make(c.script)
		s.Put(t, c.name, data)
		r := s.WaitRow(t, c.name, "known", func(r row) bool { return r.Content != "" && r.SHA256 == sum(data) })
		if !c.done {
			j := s.waitCheck(t, c.name, "ended", ended)
			r, _ = s.Row(t, c.name)
			if bad := r.RawSHA256 == ""; bad != (j.Status == "failed") || bad && (len(r.Warnings) == 0 || j.Error != r.Warnings[len(r.Warnings)-1]) {
				t.Errorf("%s: check %+v of %+v", c.name, j, r)
			} else if bad {
				s.WaitEvent(t, "image.check_failed", r.SHA256)
			}
		}
		if len(r.Warnings) != len(c.says) {
			t.Errorf("%s: %q", c.name, r.Warnings)
			continue
		}
		for i, w := range r.Warnings {
			if !strings.Contains(w, c.says[i]) {
				t.Errorf("%s: %q, want one that says %q", c.name, w, c.says[i])
			}
		}
		if strings.HasPrefix(c.name, "bad.img") {
			var at int
			if _, err := fmt.Sscanf(r.Warnings[0][strings.Index(r.Warnings[0], "byte"):], "byte %d", &at); err != nil || at < 750_000 || at > len(data) {
				t.Errorf("%s, damaged at 750000: %s", c.name, r.Warnings[0])
			}
		}
		s.Do(t, http.MethodHead, imageRoute(r.SHA256), nil).Must(t, 200)
	}
}

// TestContentByDigest inspects two images of one content once, and reports the
// fault of a name for that name only. Fetched bytes are inspected too.
func TestContentByDigest(t *testing.T) {
	t.Parallel()
	m := newMaker(t)
	data := m.make("xz -0 -c raw >x")
	src := publish(t).File("/fetched.img.xz", data)
	s := Start(t, Options{})
	s.AddEntry(t, src, "").Must(t, http.StatusCreated)
	s.Fetch(t, "fetched.img.xz")
	r := s.WaitRow(t, "fetched.img.xz", "checked", func(r row) bool { return r.RawSHA256 != "" })
	if r.Content != "xz" || r.RawSHA256 != sum(m.raw()) || len(r.Warnings) != 0 {
		t.Errorf("fetched: %+v", r)
	}
	s.Put(t, "also.img", data)
	r = s.WaitRow(t, "also.img", "warned of", func(r row) bool { return len(r.Warnings) > 0 })
	if len(r.Names) != 2 || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "also.img is named .img") {
		t.Errorf("twice: %+v", r)
	}
	jobs, _ := s.Jobs(t, hashes)
	checks := slices.DeleteFunc(jobs, func(j job) bool { return j.Stage != "check" })
	if len(checks) != 1 || checks[0].Name != "fetched.img.xz" {
		t.Errorf("checks: %+v", checks)
	}
}

// slowImages returns an image whose check takes a fraction of a second, and one
// whose check takes a minute or more: noise in bzip2, then 24 GiB of zeros in
// streams of a few bytes each, then noise that a check reads late.
func slowImages(t testing.TB) (brief, slow []byte) {
	t.Helper()
	pack := func(b []byte) []byte {
		cmd := exec.Command("bzip2", "-9", "-c")
		cmd.Stdin = bytes.NewReader(b)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	brief = pack(content(62, 2<<20))
	const stream = 32 << 20
	noise := bytes.Repeat(brief, 2)
	return brief, slices.Concat(noise, bytes.Repeat(pack(make([]byte, stream)), 24<<30/stream), noise)
}

// TestCheckJobs turns checks off, cancels them, requests them again, and
// resumes them after a kill. The digest is published before, and stays.
func TestCheckJobs(t *testing.T) {
	t.Parallel()
	brief, data := slowImages(t)
	digest := sum(data)
	const name, second = "slow.img.bz2", "brief.img.bz2"
	s := Start(t, Options{Env: []string{"IMAGEROOT_CHECK=false"}})
	s.Put(t, name, data)
	r := s.WaitRow(t, name, "looked into", func(r row) bool { return r.Content == "bzip2" })
	if _, ok := s.check(t, name); ok || r.SHA256 != digest || r.RawSHA256 != "" {
		t.Errorf("without checks: %+v", r)
	}

	// Turned on, it checks the images that exist already.
	s.Stop(t)
	s.launch.Env = append(s.launch.Env, "IMAGEROOT_CHECK=true")
	s.start(t)
	running := func(j job) bool { return j.Status == "running" && j.BytesHashed > 1<<20 }
	j := s.waitCheck(t, name, "under way", running)
	if j.BytesTotal == nil || *j.BytesTotal != int64(len(data)) || j.BytesHashed >= int64(len(data)) || j.SHA256 != digest {
		t.Errorf("under way: %+v", j)
	}
	// Hashing does not wait for a check.
	other := content(63, 1<<20)
	s.Put(t, "other.img", other)
	s.WaitHashed(t, "other.img", sum(other))

	s.Kill(t)
	s.start(t)
	s.WaitHashed(t, name, digest)
	again := s.waitCheck(t, name, "under way again", func(j job) bool { return running(j) && j.Attempt == 2 })
	if again.BytesHashed >= int64(len(data)) {
		t.Errorf("begun again: %+v", again)
	}
	// One check runs at a time: the next one waits, and is cancelled too.
	s.Put(t, second, brief)
	s.waitCheck(t, second, "queued", func(j job) bool { return j.Status == "queued" })
	for _, name := range []string{second, name} {
		s.Cancel(t, hashes, name).Must(t, http.StatusNoContent)
		s.waitCheck(t, name, "cancelled", func(j job) bool { return j.Status == "cancelled" })
	}
	if r := s.WaitHashed(t, name, digest); len(r.Warnings) != 0 || r.RawSHA256 != "" {
		t.Errorf("cancelled: %+v", r)
	}
	s.Restart(t)
	s.WaitHashed(t, name, digest)
	s.Put(t, "later.img.gz", gzipped(t))
	s.waitCheck(t, "later.img.gz", "ended", ended)
	for _, name := range []string{second, name} {
		if j, ok := s.check(t, name); !ok || j.Status != "cancelled" {
			t.Errorf("a cancelled check came back by itself: %+v", j)
		}
	}

	s.Enqueue(t, hashes, "name", second).Must(t, http.StatusAccepted)
	s.waitCheck(t, second, "completed", func(j job) bool { return j.Status == "completed" })
	if r := s.WaitHashed(t, second, sum(brief)); r.RawSize == nil || *r.RawSize != 2<<20 || len(r.Warnings) != 0 {
		t.Errorf("checked: %+v", r)
	}
}

func gzipped(t testing.TB) []byte {
	t.Helper()
	cmd := exec.Command("gzip", "-c")
	cmd.Stdin = bytes.NewReader(make([]byte, 1<<20))
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

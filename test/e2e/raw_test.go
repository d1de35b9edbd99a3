package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// rawRoute is the route of the disk in an image.
func rawRoute(key string) string { return "/raw/" + url.PathEscape(key) }

// sh runs a pipeline, of which every stage must succeed.
func sh(t testing.TB, dir, script string) error {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-o", "pipefail", "-ec", script)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return nil
}

// A packed image is the output of the command pack for the file raw, and unpack
// turns it into the disk again.
type packed struct{ name, pack, unpack string }

// packedImages are images of every kind.
var packedImages = []packed{
	{"plain.img", "cp raw x", "cp x y"},
	{"v3.qcow2", "qemu-img convert -O qcow2 raw x", "qemu-img convert -O raw x y"},
	{"v2.qcow2", "qemu-img convert -O qcow2 -o compat=0.10 raw x", "qemu-img convert -O raw x y"},
	{"small.qcow2", "qemu-img convert -O qcow2 -o cluster_size=512 raw x", "qemu-img convert -O raw x y"},
	{"large.qcow2", "qemu-img convert -O qcow2 -c -o cluster_size=2M raw x", "qemu-img convert -O raw x y"},
	{"named.img", "qemu-img convert -O qcow2 -c raw x", "qemu-img convert -O raw x y"},
	{"zstd.qcow2", "qemu-img convert -O qcow2 -c -o compression_type=zstd raw x", "qemu-img convert -O raw x y"},
	{"used.qcow2", `qemu-img convert -O qcow2 -o preallocation=metadata raw x
		qemu-img snapshot -c before x
		qemu-io -c 'write -P 7 1536K 2M' -c 'write -z 3712K 1M' -c 'discard 6M 1M' x`, "qemu-img convert -O raw x y"},
	{"sparse.vmdk", "qemu-img convert -O vmdk raw x", "qemu-img convert -O raw x y"},
	{"stream.vmdk", "qemu-img convert -O vmdk -o subformat=streamOptimized raw x", "qemu-img convert -O raw x y"},
	{"dynamic.vhd", "qemu-img convert -O vpc raw x", "qemu-img convert -O raw x y"},
	{"fixed.vhd", "qemu-img convert -O vpc -o subformat=fixed,force_size=on raw x", "qemu-img convert -f vpc -O raw x y"},
	{"a.vhdx", "qemu-img convert -O vhdx raw x", "qemu-img convert -O raw x y"},
	{"dynamic.vdi", "qemu-img convert -O vdi raw x", "qemu-img convert -O raw x y"},
	{"static.img", "qemu-img convert -O vdi -o static=on raw x", "qemu-img convert -O raw x y"},
	{"a.img.gz", "gzip -c raw >x", "gzip -dc x >y"},
	{"members.img.gz", "head -c 1500000 raw | gzip >x; tail -c +1500001 raw | gzip -1 >>x; gzip </dev/null >>x", "gzip -dc x >y"},
	{"a.img.xz", "xz -0 -T1 -c raw >x", "xz -dc x >y"},
	{"blocks.img.xz", "xz -0 -T2 --block-size=768KiB -c raw >x", "xz -dc x >y"},
	{"streams.img.xz", "head -c 1500000 raw | xz -0 >x; head -c 8 /dev/zero >>x; tail -c +1500001 raw | xz -0 --check=crc32 >>x", "xz -dc x >y"},
	{"a.raw.zst", "zstd -q -c raw >x", "zstd -dc x >y"},
	{"long.img.zst", "zstd -q --long=27 -c <raw >x", "zstd -dc --long=27 x >y"},
	{"frames.img.zst", `printf '\123\052\115\030\005\0\0\0skip!' >x; head -c 1500000 raw | zstd -q >>x
		printf '\120\052\115\030\0\0\0\0' >>x; tail -c +1500001 raw | zstd -q --check >>x`, "zstd -dc x >y"},
	{"a.img.bz2", "bzip2 -c raw >x", "bzip2 -dc x >y"},
	{"bgzip.img.gz", "bgzip -c raw >x", "gzip -dc x >y"},
	{"pzstd.img.zst", "pzstd -q -c raw >x", "zstd -dc x >y"},
	{"parallel.img.bz2", "pbzip2 -b1 -c raw >x", "bzip2 -dc x >y"},
	{"a.zip", "cp raw a.img; zip -q y a.img; mv y.zip x", "unzip -p x >y"},
	{"read.me.zip", "cp raw a.img; echo hello >README; zip -q -0 -fz y README a.img; mv y.zip x", "unzip -p x a.img >y"},
	{"a.iso", "mkdir -p d; cp raw d/file; genisoimage -quiet -R -o x d", "cp x y"},
}

// TestRawFlash flashes with curl | dd, whatever the image is: the bytes on the
// disk are those that the image's own tool writes. It does so by SHA-256, by
// name and under any name; with and without zeros on the wire; from this
// server's disk, and by a runner that has the bytes from S3.
func TestRawFlash(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{Env: []string{"IMAGEROOT_CHECK=false"}}), newMaker(t)
	digests := map[string]string{}
	for _, p := range packedImages {
		data := m.make(p.pack)
		digests[p.name] = s.Put(t, p.name, data).SHA256
		if err := os.WriteFile(m.path("x"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := sh(t, m.dir, p.unpack+"; rm x; mv y "+p.name+".y"); err != nil {
			t.Fatal(err)
		}
	}
	far := Start(t, Options{Over: s, Env: []string{"IMAGEROOT_CHECK=false"}})
	for _, p := range packedImages {
		for where, curl := range map[string]string{
			"by digest":       "curl -fsS " + s.Pages + rawRoute(digests[p.name]) + "/x",
			"by name in zstd": "curl -fsS -H 'Accept-Encoding: zstd' " + s.Pages + rawRoute(p.name) + " | zstd -dcq",
		} {
			if err := sh(t, m.dir, "rm -f disk; "+curl+" | dd of=disk bs=4M status=none; cmp disk "+p.name+".y"); err != nil {
				t.Errorf("%s, %s: %v", p.name, where, err)
			}
		}
		want, err := os.ReadFile(m.path(p.name + ".y"))
		if err != nil {
			t.Fatal(err)
		}
		if r := far.get(t, rawRoute(p.name), anonymous).Must(t, 200); !bytes.Equal(r.Body, want) {
			t.Errorf("%s, from S3: %d bytes, or wrong ones", p.name, len(r.Body))
		}
		r := far.get(t, rawRoute(p.name), anonymous, header("Accept-Encoding", "zstd")).Must(t, 200)
		if d, err := zstd.NewReader(bytes.NewReader(r.Body)); err != nil {
			t.Fatal(err)
		} else if disk, err := io.ReadAll(d); err != nil || !bytes.Equal(disk, want) {
			t.Errorf("%s, from S3 in zstd: %d bytes, %v, or wrong ones", p.name, len(disk), err)
		}
		// The digest of the output is not known yet: it is sent in the trailer.
		res, err := s.send(t.Context(), http.MethodGet, rawRoute(p.name), nil, anonymous)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		_, err = got.ReadFrom(res.Body)
		_ = res.Body.Close()
		if err != nil || sum(got.Bytes()) != sum(want) {
			t.Errorf("%s: %d bytes, %v", p.name, got.Len(), err)
		}
		digest := res.Header.Get("Repr-Digest") + res.Trailer.Get("Repr-Digest")
		if ranges := res.Header.Get("Accept-Ranges"); ranges != "bytes" {
			if ranges != "none" || digest != structuredDigest(sum(want)) {
				t.Errorf("%s: Accept-Ranges: %s, Repr-Digest: %q", p.name, ranges, digest)
			}
			continue
		}
		if res.ContentLength != int64(len(want)) || digest != "" && digest != structuredDigest(sum(want)) {
			t.Errorf("%s: %d bytes, Repr-Digest: %q", p.name, res.ContentLength, digest)
		}
		for _, from := range []int{0, 1, 1_499_999, 3_500_001, len(want) - 70_000} {
			r := s.get(t, rawRoute(p.name), anonymous, header("Range", fmt.Sprintf("bytes=%d-%d", from, from+69_999))).Must(t, 206)
			if !bytes.Equal(r.Body, want[from:from+70_000]) {
				t.Errorf("%s: wrong bytes from %d on", p.name, from)
			}
		}
	}
}

// TestRawBmaptool copies with bmaptool, which decompresses by the suffix of the
// URL. If it cannot decompress, it copies nothing and reports no error.
func TestRawBmaptool(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{Env: []string{"IMAGEROOT_CHECK=false"}}), newMaker(t)
	want := m.raw()
	if err := os.WriteFile(m.path("want"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, pack := range map[string]string{
		"plain.img": "cp raw x", "v3.qcow2": "qemu-img convert -O qcow2 raw x", "packed.img.zst": "zstd -q -c raw >x",
		"packed.raw.xz": "xz -0 -c raw >x", "packed.iso.gz": "gzip -1 -c raw >x", "other.img.bz2": "bzip2 -1 -c raw >x",
	} {
		s.Put(t, name, m.make(pack))
		l, ok := s.Listed(t, name)
		if !ok || l.RawURL == nil {
			t.Fatalf("%s is listed as %+v", name, l)
		}
		stem, suffix, _ := strings.Cut(name, ".")
		suffix, _, _ = strings.Cut(strings.Replace(suffix, "qcow2", "img", 1), ".")
		for _, at := range []string{*l.RawURL, s.Pages + rawRoute(stem+"."+suffix)} {
			if err := sh(t, m.dir, "rm -f disk; bmaptool -q copy --nobmap "+at+" disk; cmp disk want"); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// TestRawChecked tests that after the check the head of the answer has length
// and digest.
func TestRawChecked(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	raw := m.raw()
	for name, script := range map[string]string{
		"a.img.gz": "gzip -c raw >x", "a.img.zst": "zstd -q -c raw >x", "a.img": "cp raw x", "a.qcow2": "qemu-img convert -O qcow2 -c raw x",
	} {
		s.Put(t, name, m.make(script))
		s.WaitRow(t, name, "checked", func(r row) bool { return r.RawSHA256 != "" })
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			r := s.Do(t, method, rawRoute(name), nil, anonymous).Must(t, 200)
			if r.Header.Get("Content-Length") != strconv.Itoa(len(raw)) || r.Header.Get("Repr-Digest") != structuredDigest(sum(raw)) {
				t.Errorf("%s %s: %v", method, name, r.Header)
			}
			if method == http.MethodGet && sum(r.Body) != sum(raw) {
				t.Errorf("%s: %d bytes, or wrong ones", name, len(r.Body))
			}
		}
	}
	t.Run("as any other", func(t *testing.T) {
		r, _ := s.Row(t, "a.qcow2")
		for _, path := range []string{rawRoute("a.qcow2"), rawRoute(r.SHA256) + "/x"} {
			checkRanges(t, s, path, raw)
			checkSeveralRanges(t, s, path, raw)
			checkConditions(t, s, path, raw)
			checkIfRange(t, s, path, raw)
		}
	})
}

// TestRawCurlResumes resumes an interrupted download of a qcow2 image with
// curl.
func TestRawCurlResumes(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	s.Put(t, "a.qcow2", m.make("qemu-img convert -O qcow2 -c raw x"))
	at := cuttingProxy(t, s, 3_000_000) + rawRoute("a.qcow2")
	if sh(t, m.dir, "curl -fsS -o disk "+at) == nil {
		t.Fatal("the download was not cut")
	}
	if err := sh(t, m.dir, "curl -fsS -C - -o disk "+at+"; cmp disk raw"); err != nil {
		t.Error(err)
	}
}

// TestRawBad tests that a bad image stops the pipeline: before the first byte
// if the fault is known by then, otherwise in the middle, after right bytes
// only.
func TestRawBad(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{Env: []string{"IMAGEROOT_CHECK=false"}}), newMaker(t)
	const damage = "; printf '\\377\\252\\0\\125' | dd of=x bs=1 seek=750000 conv=notrunc status=none"
	const cut = "; truncate -s 900000 x"
	raw := m.raw()
	for _, c := range []struct {
		name, script string
		says         string // in an answer of status 422
	}{
		{"cut.qcow2", "qemu-img convert -O qcow2 raw x" + cut, "cut short"},
		{"cut-small.qcow2", "qemu-img convert -O qcow2 -c -o cluster_size=512 raw x" + cut, "cut short"},
		{"cut-zstd.qcow2", "qemu-img convert -O qcow2 -c -o compression_type=zstd raw x" + cut, "cut short"},
		{"bad.qcow2", "qemu-img convert -c -O qcow2 raw x; dd if=/dev/zero of=x bs=1 seek=$(($(stat -c %s x) - 60000)) count=50000 conv=notrunc status=none", ""},
		{"bad-tables.qcow2", "qemu-img convert -c -O qcow2 raw x; yes | dd of=x bs=64k seek=4 count=1 conv=notrunc status=none", "qcow2 image is"},
		{"cut.img.gz", "gzip -c raw >x" + cut, ""},
		{"cut.img.xz", "xz -0 -c raw >x" + cut, ""},
		{"cut.img.zst", "zstd -q -c raw >x" + cut, ""},
		{"cut.img.bz2", "bzip2 -1 -c raw >x" + cut, ""},
		{"bad.img.gz", "gzip -c raw >x" + damage, ""},
		{"bad.img.xz", "xz -0 -c raw >x" + damage, ""},
		{"bad.img.zst", "zstd -q -c raw >x" + damage, ""},
		{"bad.img.bz2", "bzip2 -1 -c raw >x" + damage, ""},
		{"sum.img.gz", "gzip -c raw >x; truncate -s -8 x; printf '\\1\\2\\3\\4\\5\\6\\7\\10' >>x", ""},
		{"sum.img.zst", "zstd -q --check -c raw >x; truncate -s -4 x; printf '\\1\\2\\3\\4' >>x", ""},
		{"beginning.img.gz", "gzip -c raw | tail -c +100000 >x; printf '\\037\\213\\010\\0\\0\\0\\0\\0\\0\\0' | dd of=x conv=notrunc status=none", "damaged"},
		{"long.img.zst", "zstd -q -c --long=31 <raw >x", "--long=27"},
		{"half.qcow2", "qemu-img create -q -f qcow2 -b raw -F raw x", "backing file"},
		{"subclusters.qcow2", "qemu-img create -q -f qcow2 -o extended_l2=on x 10M", "extended L2"},
		{"external.qcow2", "qemu-img create -q -f qcow2 -o data_file=data x 10M", "another file"},
		{"secret.qcow2", "qemu-img create -q -f qcow2 --object secret,id=s,data=geheim -o encrypt.format=aes,encrypt.key-secret=s x 10M", "encrypted"},
		{"inner.img.xz", "gzip -c raw | xz -0 >x", "once decompressed, this is a gzip file"},
		{"page.iso", "printf '<!DOCTYPE html>\\n<html><title>404 Not Found</title>' >x", "web page"},
	} {
		s.Put(t, c.name, m.make(c.script))
		if c.says != "" {
			s.get(t, rawRoute(c.name), anonymous).Problem(t, []int{422}, c.says)
			s.Do(t, http.MethodHead, rawRoute(c.name), nil, anonymous).Must(t, 422)
			// The command of the guide prints the reason, and writes nothing.
			for _, flash := range []string{"", "-H 'Accept-Encoding: zstd' "} {
				err := sh(t, m.dir, `curl -f -w '%{stderr}%header{problem-detail}\n' `+flash+s.Pages+rawRoute(c.name)+" | dd of=flashed status=none")
				if got, _ := os.ReadFile(m.path("flashed")); err == nil || !strings.Contains(err.Error(), c.says) || len(got) > 0 {
					t.Errorf("%s: flashing it says %v and writes %d bytes", c.name, err, len(got))
				}
			}
			continue
		}
		for _, as := range []string{"", "-H 'Accept-Encoding: zstd' ", "--http1.0 ", "--http1.0 -H 'Accept-Encoding: zstd' "} {
			_ = os.Remove(m.path("disk"))
			if sh(t, m.dir, "curl -fsS -o disk "+as+s.Pages+rawRoute(c.name)) == nil {
				t.Errorf("%s: curl %stook it for whole", c.name, as)
			}
			got, err := os.ReadFile(m.path("disk"))
			if as != "" || strings.HasPrefix(c.name, "bad.") {
				continue // the fault is found behind the bytes that were read
			}
			if err != nil || len(got) == 0 || !bytes.HasPrefix(raw, got) {
				t.Errorf("%s: %d bytes arrived before, %v, or wrong ones", c.name, len(got), err)
			}
		}
	}
}

// TestRawSparse sends a huge empty disk in almost no bytes.
func TestRawSparse(t *testing.T) {
	t.Parallel()
	s, m := Start(t, Options{}), newMaker(t)
	s.Put(t, "vast.qcow2", m.make("qemu-img create -q -f qcow2 x 1T; qemu-io -c 'write -P 7 1023G 1M' x >&2"))
	r := s.Do(t, http.MethodHead, rawRoute("vast.qcow2"), nil, anonymous).Must(t, 200)
	if r.Header.Get("Content-Length") != strconv.Itoa(1<<40) {
		t.Errorf("Content-Length: %s", r.Header.Get("Content-Length"))
	}
	const at = 1023<<30 - 10
	r = s.get(t, rawRoute("vast.qcow2"), anonymous, header("Range", fmt.Sprintf("bytes=%d-%d", at, at+19))).Must(t, 206)
	if string(r.Body) != "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07" {
		t.Errorf("%q", r.Body)
	}
	s.Put(t, "large.qcow2", m.make("qemu-img create -q -f qcow2 x 5G; qemu-io -c 'write -P 7 4500M 1M' x >&2"))
	if err := sh(t, m.dir, "curl -fsS -H 'Accept-Encoding: zstd' -o disk.zst "+s.Pages+rawRoute("large.qcow2")+`
		test $(stat -c %s disk.zst) -lt 1500000
		zstd -dq --sparse disk.zst -o disk
		test $(stat -c %s disk) = 5368709120
		test $(du -k disk | cut -f1) -lt 20000
		cmp -n 1048576 -i 4718592000:0 disk <(head -c 1M /dev/zero | tr '\0' '\7')`); err != nil {
		t.Error(err)
	}
}

package unpack_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/unpack"
	"imageroot/test/need"
)

// A made file is the output of a script that compresses the file raw.
type made struct {
	name, script string
	// refused is part of the error of a file that the tool reads and this package
	// refuses by design.
	refused string
}

// matrix has the options of the tools, by kind.
var matrix = []struct {
	unpack  []string // a command to which the file's path is appended
	accepts []int    // statuses of the command beside 0
	// strict is part of the error for damage that the tool does not detect; empty
	// if there is none.
	strict string
	made   []made
}{
	{[]string{"xz", "-dc"}, nil, "", []made{
		{"xz -0", "xz -0 -c raw >x", ""},
		{"xz -9e", "xz -9e -c raw >x", ""},
		{"no check", "xz --check=none -c raw >x", ""},
		{"CRC32", "xz --check=crc32 -c raw >x", ""},
		{"SHA-256", "xz --check=sha256 -c raw >x", ""},
		{"blocks", "xz --block-size=1000 -c raw >x", ""},
		{"blocks of several sizes", "xz --block-list=100,2000,0 -c raw >x", ""},
		{"threads", "xz -T2 --block-size=1500 -c raw >x", ""},
		{"no compression", "head -c 3000 /dev/urandom >noise; xz -c noise >x", ""},
		{"lc, lp, pb", "xz --lzma2=preset=6,lc=1,lp=2,pb=0 -c raw >x", ""},
		{"small dictionary", "xz --lzma2=dict=4KiB -c raw >x", ""},
		{"small dictionary, no check", "xz --lzma2=preset=9e,dict=4KiB,lc=0,lp=4,pb=4 --check=none -c raw >x", ""},
		{"streams", "xz -c raw >x; xz --check=crc32 -c raw >>x", ""},
		{"streams and padding", "xz -c raw >x; head -c 8 /dev/zero >>x; xz -c raw >>x; head -c 4 /dev/zero >>x", ""},
		{"wrong padding", "xz -c raw >x; head -c 3 /dev/zero >>x", ""},
		{"something behind", "xz -c raw >x; echo more >>x", ""},
		{"nothing", "xz </dev/null >x", ""},
		{"x86", "xz --x86 --lzma2 -c raw >x", "filters other than LZMA2"},
		{"delta", "xz --delta=dist=4 --lzma2 -c raw >x", "filters other than LZMA2"},
		{"ARM", "xz --arm --lzma2 -c raw >x", "filters other than LZMA2"},
		{"LZMA alone", "xz --format=lzma -c raw >x", "LZMA file without the header of xz"},
	}},
	// RFC 8878, section 3.1.1.3.2.1: these bits must be zero.
	{[]string{"zstd", "-dcq"}, nil, "reserved bits not zero", []made{
		{"zstd -1", "zstd -q -1 -c raw >x", ""},
		{"zstd -19", "zstd -q -19 -c raw >x", ""},
		{"fast", "zstd -q --fast=5 -c raw >x", ""},
		{"ultra, long", "zstd -q --ultra -22 --long=27 -c raw >x", ""},
		{"no checksum", "zstd -q --no-check -c raw >x", ""},
		{"no size", "zstd -q -c <raw >x", ""},
		{"frames", "zstd -q -c raw >x; zstd -q --no-check -c <raw >>x", ""},
		{"skippable frames", `printf '\120\052\115\030\5\0\0\0skip!' >x; zstd -q -c raw >>x; printf '\137\052\115\030\0\0\0\0' >>x`, ""},
		{"threads", "zstd -q -T2 -c raw >x", ""},
		{"one byte, repeated", "head -c 100000 /dev/zero >zeros; zstd -q -c zeros >x", ""},
		{"no compression", "head -c 3000 /dev/urandom >noise; zstd -q -c noise >x", ""},
		{"something behind", "zstd -q -c raw >x; echo more >>x", ""},
		{"nothing", "zstd -q </dev/null >x", ""},
		{"rsyncable", "zstd -q --rsyncable -T1 -c raw >x", ""},
		{"legacy 0.7", legacyZstd, "no zstd"},
	}},
	{[]string{"gzip", "-dc"}, []int{2}, "", []made{ // 2: a warning
		{"gzip -1", "gzip -1 -c raw >x", ""},
		{"gzip -9n", "gzip -9n -c raw >x", ""},
		{"members", "gzip -c raw >x; gzip -1 -c raw >>x", ""},
		{"members of nothing", "gzip </dev/null >x; gzip -c raw >>x; gzip </dev/null >>x", ""},
		{"padding", "gzip -c raw >x; head -c 512 /dev/zero >>x", ""},
		{"something behind", "gzip -c raw >x; echo signature >>x", ""},
		{"something like a header behind", `gzip -c raw >x; printf '\037' >>x`, ""},
		{"half a header behind", `gzip -c raw >x; printf '\037\213\010' >>x`, ""},
		{"a long name", header(`\010`) + `; head -c 5000 /dev/zero | tr '\0' n >>x; printf '\0' >>x; ` + body, ""},
		{"a comment", header(`\020`) + `; printf 'a comment\0' >>x; ` + body, ""},
		{"bgzip", "bgzip -c raw >x; bgzip -c raw >>x", ""},
		{"bgzip and gzip", "gzip -c raw >x; bgzip -c raw >>x; gzip -c raw >>x", ""},
		{"bgzip, something behind", "bgzip -c raw >x; echo signature >>x", ""},
		{"extra", header(`\004`) + `; printf '\006\0BC\2\0\1\1' >>x; ` + body, ""}, // as bgzip writes, with a wrong length
		{"text", header(`\001`) + "; " + body, ""},
		{"reserved", header(`\100`) + "; " + body, ""},
		{"encrypted", header(`\040`) + "; " + body, ""},
		{"no compression", "head -c 3000 /dev/urandom >noise; gzip -c noise >x", ""},
		{"nothing", "gzip </dev/null >x", ""},
	}},
	{[]string{"bzip2", "-dc"}, nil, "", []made{
		{"bzip2 -1", "bzip2 -1 -c raw >x", ""},
		{"bzip2 -9", "bzip2 -9 -c raw >x", ""},
		{"pbzip2", "pbzip2 -b1 -c raw >x", ""},
		{"streams", "bzip2 -1 -c raw >x; bzip2 -9 -c raw >>x", ""},
		{"streams of nothing", "bzip2 </dev/null >x; bzip2 -c raw >>x; bzip2 </dev/null >>x", ""},
		{"runs", `head -c 5000 /dev/zero >zeros; printf aaaa >>zeros; bzip2 -c zeros >x`, ""},
		{"codes that are incomplete", crafted(1, 1, false), ""},
		{"more selectors than are used", crafted(1, 20_000, false), ""},
		{"randomised", crafted(1, 1, true), "randomised blocks"},
		{"a run without its length", crafted(4, 1, false), ""},

		{"zeros behind", "bzip2 -c raw >x; head -c 100 /dev/zero >>x", ""},
		{"something behind", "bzip2 -c raw >x; echo signature >>x", ""},
		{"B behind", "bzip2 -c raw >x; printf B >>x", ""},
		{"a header behind", "bzip2 -c raw >x; printf BZh9 >>x", ""},
		{"nothing", "bzip2 </dev/null >x", ""},
	}},
}

const (
	// header begins a gzip member with flags, and body ends it.
	body = "gzip -nc raw | tail -c +11 >>x"
	// legacyZstd is a frame of zstd 0.7 with an uncompressed block.
	legacyZstd = `printf '\047\265\057\375\044\003\100\0\003abc\300\0\0' >x`
)

func header(flags string) string {
	return `printf '\037\213\010` + flags + `\0\0\0\0\0\003' >x`
}

// This package reads the same bytes as the tools from their files, whole and damaged,
// or refuses them if the tool does.
func TestDeepMatrix(t *testing.T) {
	need.Programs(t, "bash")
	for _, m := range matrix {
		for _, made := range m.made {
			t.Run(strings.Join(m.unpack[:1], " ")+"/"+made.name, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				raw := append(disk(3000), bytes.Repeat([]byte("a disk "), 200)...)
				if err := os.WriteFile(filepath.Join(dir, "raw"), raw, 0o600); err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command("bash", "-o", "pipefail", "-ec", made.script)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				x, err := os.ReadFile(filepath.Join(dir, "x"))
				if err != nil {
					t.Fatal(err)
				}
				for what, data := range variants(x) {
					file := filepath.Join(dir, "damaged")
					if err := os.WriteFile(file, data, 0o600); err != nil {
						t.Fatal(err)
					}
					theirs, refused := toolReads(t, m.accepts, append(slices.Clone(m.unpack), file)...)
					ours, err := weRead(data)
					switch {
					case refused != nil && err == nil:
						t.Errorf("%s: %d bytes are read, and the tool reads none (%v)", what, len(ours), refused)
					case refused != nil:
					case made.refused != "":
						if err == nil || what == "whole" && !strings.Contains(err.Error(), made.refused) {
							t.Errorf("%s: %v; want a reason that says %q", what, err, made.refused)
						}
					case err != nil && m.strict != "" && strings.Contains(err.Error(), m.strict):
					case err != nil:
						t.Errorf("%s: refused (%v), and the tool reads %d bytes", what, err, len(theirs))
					case !bytes.Equal(ours, theirs):
						t.Errorf("%s: %d bytes, and the tool reads %d or others", what, len(ours), len(theirs))
					}
				}
			})
		}
	}
}

// variants returns a file unchanged, with single bits flipped, and cut.
func variants(x []byte) map[string][]byte {
	all := map[string][]byte{"whole": x}
	const edge, middle = 20, 16
	for i := range x {
		if i >= edge && i < len(x)-edge && i%max(1, len(x)/middle) != 0 {
			continue
		}
		bad := bytes.Clone(x)
		bad[i] ^= 1 << (i % 8)
		all[fmt.Sprintf("byte %d of %d flipped", i, len(x))] = bad
		if i%3 == 0 && i > 0 { // an empty file is refused before any decoder reads it
			all[fmt.Sprintf("cut at %d of %d", i, len(x))] = x[:i]
		}
	}
	return all
}

// toolReads returns the output of a command, or its error.
func toolReads(t *testing.T, accepts []int, command ...string) ([]byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, command[0], command[1:]...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && slices.Contains(accepts, exit.ExitCode()) {
		err = nil
	}
	return out, err
}

// weRead returns the disk in a compressed image.
func weRead(data []byte) ([]byte, error) {
	c := content.Head(data[:min(len(data), content.HeadBytes)], int64(len(data)))
	if !c.Kind.Compressed() {
		return nil, errors.New(cmp.Or(c.NoDisk(), "no "+string(c.Kind)))
	}
	one, err := read(c.Kind, bytes.NewReader(data), unpack.Limit{})
	if c.Kind == content.Zstd { // another decoder
		parallel, perr := read(c.Kind, bytes.NewReader(data), unpack.Limit{Intact: true})
		if (err == nil) != (perr == nil) || err == nil && !bytes.Equal(one, parallel) {
			return nil, fmt.Errorf("one block at a time: %d bytes, %w; in parallel: %d, %w", len(one), err, len(parallel), perr)
		}
	}
	return one, err
}

// crafted returns a script that writes files unlike those of today's bzip2: a block of
// run (1 or 4) times "a" with incomplete codes, many selectors, or randomised.
func crafted(run, selectors int, randomised bool) string {
	var bits []byte
	add := func(n int, v uint64) {
		for n--; n >= 0; n-- {
			bits = append(bits, byte(v>>n&1))
		}
	}
	sum := map[int]uint64{1: 0x19939b6b, 4: 0x881233a6}[run]
	add(32, 'B'<<24|'Z'<<16|'h'<<8|'1')
	add(48, 0x314159265359)
	add(32, sum)
	add(1, map[bool]uint64{true: 1}[randomised])
	add(24, 0)
	add(16, 1<<(15-'a'/16))
	add(16, 1<<(15-'a'%16))
	add(3, 2)
	add(15, uint64(selectors))
	add(selectors, 0)
	for range 2 { // codes of three symbols of two bits
		add(5, 2)
		add(3, 0)
	}
	if run == 4 {
		add(2, 1)
	}
	add(2, 0)
	add(2, 2) // the end
	add(48, 0x177245385090)
	add(32, sum)
	for len(bits)%8 != 0 {
		bits = append(bits, 0)
	}
	var b strings.Builder
	for ; len(bits) > 0; bits = bits[8:] {
		n := 0
		for _, bit := range bits[:8] {
			n = n<<1 | int(bit)
		}
		fmt.Fprintf(&b, `\%03o`, n)
	}
	return "printf '" + b.String() + "' >x"
}

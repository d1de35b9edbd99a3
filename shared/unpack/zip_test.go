package unpack_test

import (
	"archive/zip"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/shared/content"
	"imageroot/shared/unpack"
)

// archived returns an archive that script makes as x of the file disk.img, which has data.
func archived(t testing.TB, data []byte, script string) []byte {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.img"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	return tool(t, nil, "bash", "-ec", "cd "+dir+"; { "+script+"; } >&2; cat x")
}

func unzip(b []byte) ([]byte, error) {
	u, err := unpack.NewReader(content.Zip, bytes.NewReader(b), unpack.Limit{})
	if err != nil {
		return nil, err
	}
	defer u.Close()
	return io.ReadAll(u)
}

// zips are commands that make an archive of one image.
var zips = []string{
	"zip -q y disk.img; mv y.zip x",
	"zip -q -0 y disk.img; mv y.zip x",
	"zip -q -fz y disk.img; mv y.zip x",     // ZIP64
	"zip -q -fd y disk.img; mv y.zip x",     // sizes behind the data
	"zip -q -fz -fd y disk.img; mv y.zip x", // both
	"cat disk.img | zip -q -fz- y - ; printf '@ -\\n@=a.img\\n' | zipnote -w y.zip; mv y.zip x",
	"echo hello >README; mkdir d; mv disk.img d; zip -q -r y README d; mv y.zip x",
	"mkdir __MACOSX; echo x >__MACOSX/._disk.img; zip -q y __MACOSX/._disk.img disk.img; mv y.zip x",
	"echo comment | zip -q -z y disk.img; mv y.zip x",
}

func TestZip(t *testing.T) {
	t.Parallel()
	data := disk(1 << 20)
	for _, script := range zips {
		b := archived(t, data, script)
		got, err := unzip(b)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", script, len(got), err)
		}
		// Whatever is changed or missing in the file is found.
		begin := bytes.Index(b, data[len(data)-100:])
		for at := len(b) / 10; at < len(b)*9/10; at += len(b) / 7 {
			bad := bytes.Clone(b)
			bad[at] ^= 0x10
			if got, err := unzip(bad); err == nil && !bytes.Equal(got, data) {
				t.Errorf("%s: byte %d was changed, and %d wrong bytes come out (%d)", script, at, len(got), begin)
			}
			_, err := unzip(b[:at])
			if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Truncated {
				t.Errorf("%s: cut at %d: %v", script, at, err)
			}
		}
	}
}

func TestZipRefused(t *testing.T) {
	t.Parallel()
	data := disk(100 << 10)
	for script, says := range map[string]string{
		"zip -q -P secret y disk.img; mv y.zip x":                    "encrypted",
		"zip -q -Z bzip2 y disk.img; mv y.zip x":                     "number 12",
		"mv disk.img disk.txt; zip -q y disk.txt; mv y.zip x":        "no image",
		"truncate -s 65M a.txt; zip -q y a.txt disk.img; mv y.zip x": "precede the image",
	} {
		_, err := unzip(archived(t, data, script))
		if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Refused || !strings.Contains(e.Reason, says) {
			t.Errorf("%s: %v", script, err)
		}
	}
	// A file that is stored, and whose size follows it, has no end.
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, err := w.CreateHeader(&zip.FileHeader{Name: "../a.img", Method: zip.Store})
	if err == nil {
		_, err = f.Write(data)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := unzip(b.Bytes()); err == nil || !strings.Contains(err.Error(), "where a file ends") {
		t.Error(err)
	}
}

// TestZipListed hides an image from the directory, in which other programs find another one.
func TestZipListed(t *testing.T) {
	t.Parallel()
	hidden, shown := disk(4000), disk(5000)
	b := archived(t, hidden, "cp disk.img a.img; zip -q y a.img; mv y.zip x")
	hidden = b[:bytes.Index(b, []byte("PK\x01\x02"))]
	b = archived(t, shown, "zip -q y disk.img; mv y.zip x")
	directory, end := bytes.Index(b, []byte("PK\x01\x02")), bytes.Index(b, []byte("PK\x05\x06"))
	move := func(at int) {
		binary.LittleEndian.PutUint32(b[at:], binary.LittleEndian.Uint32(b[at:])+uint32(len(hidden)))
	}
	if got, err := unzip(b); err != nil || !bytes.Equal(got, shown) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	move(directory + 42)
	move(end + 16)
	b = append(hidden, b...)
	other, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(other.File) != 1 || other.File[0].Name != "disk.img" {
		t.Fatalf("the archive is read as %+v, %v", other, err)
	}
	_, err = unzip(b)
	if e, ok := errors.AsType[*unpack.Error](err); !ok || e.Problem != unpack.Damaged {
		t.Errorf("a hidden image: %v", err)
	}
}

func FuzzZip(f *testing.F) {
	for _, script := range zips {
		f.Add(archived(f, disk(2000), script))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		u, err := unpack.NewReader(content.Zip, bytes.NewReader(b), unpack.Limit{})
		if err == nil {
			_, err = io.CopyN(io.Discard, u, 1<<20)
			u.Close()
		}
		if _, ok := errors.AsType[*unpack.Error](err); err != nil && !ok && !errors.Is(err, io.EOF) {
			t.Errorf("%v is no error of this package", err)
		}
	})
}

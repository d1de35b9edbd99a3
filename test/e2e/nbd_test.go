package e2e

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"imageroot/test/need"
	"imageroot/test/runner"
)

var nbdLine = regexp.MustCompile(`(?m)^\s*nbd\s+(nbd://\S+)`)

// nbdServer starts a server with NBD exports, and returns the URL that they have in
// common.
func nbdServer(t testing.TB, o Options) (s *Server, exports string) {
	t.Helper()
	need.Programs(t, "nbdinfo", "nbdcopy", "qemu-img", "qemu-io")
	o.Env = append([]string{"IMAGEROOT_CHECK=false"}, o.Env...)
	o.Args = append(o.Args, "--nbd-listen", "127.0.0.1:0")
	s = Start(t, o)
	m := nbdLine.FindStringSubmatch(s.Stdout())
	if m == nil {
		t.Fatalf("no line of NBD:\n%s", s.Stdout())
	}
	return s, m[1] + "/"
}

// runIn runs a program in a directory, and returns its output and whether it has succeeded.
func runIn(t testing.TB, dir, name string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	return string(out), err == nil
}

// TestNBDReads reads every kind of image that has a disk with other programs, which get
// what qemu-img converts, and skip what they are told is zero.
func TestNBDReads(t *testing.T) {
	t.Parallel()
	s, exports := nbdServer(t, Options{})
	m := newMaker(t)
	var names, packed []string
	digests := map[string]string{}
	for _, p := range packedImages {
		data := m.make(p.pack)
		digests[p.name] = s.Put(t, p.name, data).SHA256
		if strings.Contains(p.unpack, " -dc ") || strings.HasPrefix(p.unpack, "unzip ") {
			packed = append(packed, p.name)
			continue
		}
		names = append(names, p.name)
		if err := os.WriteFile(m.path("x"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := sh(t, m.dir, p.unpack+"; rm x; mv y "+p.name+".y"); err != nil {
			t.Fatal(err)
		}
	}
	_, far := nbdServer(t, Options{Over: s})
	for _, name := range names {
		if err := sh(t, m.dir, "qemu-img convert -f raw -O raw '"+exports+name+"' disk; cmp disk "+name+".y; rm disk; "+
			"nbdcopy '"+exports+digests[name]+"' disk; cmp disk "+name+".y; rm disk; "+
			"nbdcopy '"+far+digests[name][:12]+"' disk; cmp disk "+name+".y; rm disk"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkMap(t, m, exports+name, name+".y")
	}
	if *s3Endpoint == "" { // a dropped file has holes, one that was uploaded has none
		if err := sh(t, m.dir, "cp --sparse=always raw '"+s.imagePath("dropped.img")+"'"); err != nil {
			t.Fatal(err)
		}
		names = append(names, "dropped.img")
		s.WaitRow(t, "dropped.img", "listed", nil)
		if holes := checkMap(t, m, exports+"dropped.img", "raw"); holes < 4<<20 {
			t.Errorf("%d bytes of a sparse file are holes", holes)
		}
	}
	if holes := checkMap(t, m, exports+"v3.qcow2", "v3.qcow2.y"); holes < 4<<20 {
		t.Errorf("%d bytes of a qcow2 image are holes", holes)
	}
	list, ok := runIn(t, m.dir, "nbdinfo", "--list", exports)
	for _, name := range names {
		if !ok || !strings.Contains(list, `export="`+name+`"`) && name != "dropped.img" { // one name for each content
			t.Errorf("%s is not listed:\n%s", name, list)
		}
	}
	for _, name := range append([]string{"nothing.img", ""}, packed...) { // of which a disk is made then
		if out, ok := runIn(t, m.dir, "qemu-img", "info", exports+name); ok || strings.Contains(list, `export="`+name+`"`) {
			t.Errorf("%s is an export: %s", name, out)
		}
	}
	for _, name := range packed {
		eventually(t, within, "the disk of "+name, func() error {
			out, ok := runIn(t, m.dir, "qemu-img", "convert", "-f", "raw", "-O", "raw", exports+name, "disk")
			if !ok && strings.Contains(out, "expanded first") {
				return errors.New(out)
			}
			if !ok {
				t.Fatal(out)
			}
			return nil
		})
		if err := sh(t, m.dir, "cmp disk raw; nbdcopy '"+exports+digests[name]+"' disk; cmp disk raw"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if holes := checkMap(t, m, exports+name, "raw"); *s3Endpoint == "" && holes < 4<<20 {
			t.Errorf("%d bytes of the disk of %s are holes", holes, name)
		}
	}
	if list, _ := runIn(t, m.dir, "nbdinfo", "--list", exports); strings.Count(list, "export=") < len(digests) {
		t.Errorf("compressed images with disks are not listed:\n%s", list)
	}
	if out, _ := runIn(t, m.dir, "qemu-io", "-f", "raw", "-c", "write 0 4k", exports+names[0]); strings.Contains(out, "wrote ") {
		t.Errorf("a write has succeeded: %s", out)
	}
	s.Stop(t)
}

// checkMap compares the map of an export with the disk in a file, and returns the number
// of bytes in holes.
func checkMap(t *testing.T, m *maker, export, file string) (holes int) {
	t.Helper()
	out, ok := runIn(t, m.dir, "nbdinfo", "--map", export)
	disk, err := os.ReadFile(m.path(file))
	if !ok || err != nil {
		t.Fatalf("%s: %s, %v", export, out, err)
	}
	end := 0
	for _, l := range regexp.MustCompile(`(?m)^\s*(\d+)\s+(\d+)\s+(\d)\s`).FindAllStringSubmatch(out, -1) {
		from, _ := strconv.Atoi(l[1])
		n, _ := strconv.Atoi(l[2])
		if from != end || from+n > len(disk) {
			t.Fatalf("%s: %d bytes from %d on, after %d", export, n, from, end)
		}
		end = from + n
		if l[3] == "3" {
			holes += n
			if !bytes.Equal(disk[from:end], make([]byte, n)) {
				t.Errorf("%s: %d bytes from %d on are said to be zero", export, n, from)
			}
		}
	}
	if end != len(disk) {
		t.Errorf("%s: the map ends at %d of %d:\n%s", export, end, len(disk), out)
	}
	return holes
}

// TestNBDChangedImage tests that a client that has an image open gets no bytes of what
// replaces it.
func TestNBDChangedImage(t *testing.T) {
	t.Parallel()
	s, exports := nbdServer(t, Options{})
	const size = 8 << 20
	for what, change := range map[string]func(t *testing.T, name string){
		"replaced": func(t *testing.T, name string) { s.Put(t, name, content(72, size)) },
		"edited": func(t *testing.T, name string) {
			needsPlainFiles(t)
			if err := sh(t, t.TempDir(), "printf x | dd of='"+s.imagePath(name)+"' bs=1 seek=6000000 conv=notrunc status=none"); err != nil {
				t.Fatal(err)
			}
		},
		"removed": func(t *testing.T, name string) { s.Do(t, "DELETE", imageRoute(name), nil).Must(t, 204) },
	} {
		t.Run(what, func(t *testing.T) {
			name := what + ".img"
			s.Put(t, name, content(71, size))
			cmd := exec.CommandContext(t.Context(), "qemu-io", "-r", "-f", "raw", exports+name)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			var out runner.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(in, "read 0 1M")
			eventually(t, within, "the first read", func() error {
				if !strings.Contains(out.String(), "read 1048576/1048576 bytes at offset 0") {
					return fmt.Errorf("the output is %s", out.String())
				}
				return nil
			})
			change(t, name)
			fmt.Fprintln(in, "read 5M 1M")
			in.Close()
			_ = cmd.Wait()
			if got := out.String(); !strings.Contains(got, "read failed") {
				t.Errorf("the second read: %s", got)
			}
		})
	}
}

// TestNBDStrangers tests that connections that are cut off at any byte, or never ask for
// an export, do no harm.
func TestNBDStrangers(t *testing.T) {
	t.Parallel()
	s, exports := nbdServer(t, Options{})
	image := content(73, 1<<20)
	s.Put(t, "a.img", image)
	addr := strings.Trim(strings.TrimPrefix(exports, "nbd:"), "/")
	hello := "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0b\x00\x00\x00\x05a.img\x00\x00" +
		strings.Repeat("\x25\x60\x95\x13\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x10\x00\x00", 3)
	for n := range len(hello) { // fewer than one address may have
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(hello[:n]))
		if n%3 != 0 {
			_ = c.Close()
		} else {
			t.Cleanup(func() { _ = c.Close() })
		}
	}
	s.Put(t, "large.img", content(75, 64<<20))
	random := rand.New(rand.NewPCG(75, 0))
	for range 20 { // programs are killed anywhere in their work
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(random.IntN(100))*time.Millisecond)
		_ = exec.CommandContext(ctx, "nbdcopy", exports+"large.img", "null:").Run()
		cancel()
	}
	if err := sh(t, t.TempDir(), "nbdcopy '"+exports+"a.img' disk; echo '"+sum(image)+"  disk' | sha256sum -c --quiet"); err != nil {
		t.Error(err)
	}
	began := time.Now()
	s.Stop(t)
	if took := time.Since(began); took > within {
		t.Errorf("it stops after %v", took)
	}
}

// TestNBDWrites writes to cow/NAME, which only the connection that wrote sees, and only
// until it ends.
func TestNBDWrites(t *testing.T) {
	t.Parallel()
	s, exports := nbdServer(t, Options{Env: []string{"IMAGEROOT_NBD_COW_MAX=4MiB"}})
	m := newMaker(t)
	for name, pack := range map[string]string{"a.qcow2": "qemu-img convert -O qcow2 -c raw x", "a.img": "cp raw x"} {
		s.Put(t, name, m.make(pack))
		out, ok := runIn(t, m.dir, "qemu-io", "-f", "raw",
			"-c", "write -P 7 1000K 70K", "-c", "flush", "-c", "write -z 3M 64K", "-c", "discard 4M 1M", "-c", "write -P 9 1001K 1K",
			"-c", "read -P 7 1000K 1K", "-c", "read -P 9 1001K 1K", "-c", "read -P 7 1002K 68K", "-c", "read -P 0 3M 64K",
			exports+"cow/"+name)
		if !ok || strings.Count(out, "bytes at offset") != 8 || strings.Contains(out, "failed") {
			t.Errorf("%s: %s", name, out)
		}
		out, ok = runIn(t, m.dir, "qemu-io", "-f", "raw", "-c", "write 0 6M", "-c", "read 6M 1M", exports+"cow/"+name)
		if !strings.Contains(out, "No space left on device") || !strings.Contains(out, "read 1048576/1048576") {
			t.Errorf("%s, a write beyond the limit: %v, %s", name, ok, out)
		}
		noLayers := func() error {
			m := s.metrics(t)
			if bytes, open := m.value("imageroot_nbd_cow_bytes"), m.value("imageroot_nbd_connections"); bytes != 0 || open != 0 {
				return fmt.Errorf("%v bytes, %v connections", bytes, open)
			}
			return nil
		}
		eventually(t, within, "the end of the layer", noLayers)
		// The client is killed while it has written something.
		cmd := exec.CommandContext(t.Context(), "qemu-io", "-f", "raw", exports+"cow/"+name)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(in, "write 1M 2M")
		eventually(t, within, "the write", func() error {
			if taken := s.metrics(t).value("imageroot_nbd_cow_bytes"); taken < 2<<20 {
				return fmt.Errorf("%v bytes are written", taken)
			}
			return nil
		})
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		eventually(t, within, "the end of the layer", noLayers)
		for _, export := range []string{name, "cow/" + name} {
			if err := sh(t, m.dir, "nbdcopy '"+exports+export+"' disk; cmp disk raw; rm disk"); err != nil {
				t.Errorf("%s: %v", export, err)
			}
		}
	}
	if out, _ := runIn(t, m.dir, "nbdinfo", exports+"cow/a.img"); !strings.Contains(out, "can_multi_conn: false") || !strings.Contains(out, "is_read_only: false") {
		t.Errorf("cow/a.img: %s", out)
	}
}

// pemFiles writes a certificate and its key as CERT and KEY into a directory, which it
// returns.
func pemFiles(t testing.TB, dir, cert, key string) string {
	t.Helper()
	pair := certificate(t)
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestNBDTLS tests that clients need TLS if there is a certificate, and a certificate of
// their own if there are authorities of clients, which is so with PUBLIC_READ=false.
func TestNBDTLS(t *testing.T) {
	t.Parallel()
	server := pemFiles(t, t.TempDir(), "cert.pem", "key.pem")
	known, stranger := t.TempDir(), t.TempDir()
	for _, dir := range []string{known, stranger} {
		pemFiles(t, dir, "client-cert.pem", "client-key.pem")
		if err := sh(t, dir, "cp '"+server+"/cert.pem' ca-cert.pem"); err != nil {
			t.Fatal(err)
		}
	}
	bare := t.TempDir()
	if err := sh(t, bare, "cp '"+server+"/cert.pem' ca-cert.pem"); err != nil {
		t.Fatal(err)
	}
	image := content(74, 3<<20)
	for _, certified := range []bool{false, true} {
		o := Options{Args: []string{"--nbd-tls-cert", server + "/cert.pem", "--nbd-tls-key", server + "/key.pem"}}
		if certified {
			o.Args = append(o.Args, "--nbd-tls-client-ca", known+"/client-cert.pem", "--public-read=false")
		}
		s, exports := nbdServer(t, o)
		s.Put(t, "a.img", image)
		if out, ok := runIn(t, bare, "nbdinfo", exports+"a.img"); ok {
			t.Errorf("without TLS: %s", out)
		}
		over := strings.Replace(exports, "nbd:", "nbds:", 1)
		for dir, want := range map[string]bool{known: true, stranger: !certified, bare: !certified} {
			out, ok := runIn(t, bare, "nbdcopy", over+"a.img?tls-certificates="+dir, "disk")
			if ok != want {
				t.Errorf("certificates of clients: %v, known: %v: %s", certified, dir == known, out)
			}
			if disk, _ := os.ReadFile(filepath.Join(bare, "disk")); ok && !bytes.Equal(disk, image) {
				t.Errorf("wrong bytes")
			}
		}
		if certified {
			continue // qemu takes no certificate of an authority for a client's
		}
		host, port, _ := strings.Cut(strings.Trim(strings.TrimPrefix(exports, "nbd:"), "/"), ":")
		if out, ok := runIn(t, bare, "qemu-img", "info", "--object", "tls-creds-x509,id=tls,endpoint=client,dir="+bare,
			"--image-opts", "driver=nbd,host="+host+",port="+port+",export=a.img,tls-creds=tls"); !ok {
			t.Errorf("qemu: %s", out)
		}
	}
}

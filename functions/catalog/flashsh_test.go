package catalog

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/store"
	"imageroot/test/need"
)

// rescueTools are the programs that flash.sh takes from coreutils or BusyBox.
var rescueTools = []string{"dd", "sha256sum", "od", "sed", "tr", "head", "tail", "readlink", "cat", "stat", "cut", "sleep", "grep", "sync", "mktemp", "rm"}

// A rescue is a system that runs flash.sh.
type rescue struct {
	name  string
	shell []string
	path  string // the directory with its programs
}

// rescues returns systems with each shell and each downloader.
func rescues(t *testing.T) []rescue {
	need.Programs(t, append([]string{"dash", "bash", "busybox", "curl", "wget"}, rescueTools...)...)
	var all []rescue
	for _, download := range []string{"curl", "wget", "busybox wget"} {
		dir := t.TempDir()
		link := func(program, from string) {
			path, err := exec.LookPath(from)
			if err == nil {
				err = os.Symlink(path, filepath.Join(dir, program))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		box := strings.HasPrefix(download, "busybox")
		for _, program := range rescueTools {
			if box {
				link(program, "busybox")
			} else {
				link(program, program)
			}
		}
		link(strings.TrimPrefix(download, "busybox "), strings.Fields(download)[0])
		shells := [][]string{{"dash"}, {"bash"}, {"busybox", "sh"}}
		if box {
			shells = shells[2:]
		}
		for _, shell := range shells {
			path, err := exec.LookPath(shell[0])
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, rescue{strings.Join(shell, " ") + " with " + download, append([]string{path}, shell[1:]...), dir})
		}
	}
	return all
}

// run pipes the script of a server to the shell, without a terminal. The error is that of
// the shell, with what it printed.
func (r rescue) run(t *testing.T, server string, args ...string) (string, error) {
	t.Helper()
	cmd := r.command(t, server, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return string(out), err
}

func (r rescue) command(t *testing.T, server string, args ...string) *exec.Cmd {
	t.Helper()
	res, err := http.Get(server + "/flash.sh")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		t.Fatal(res.Status)
	}
	cmd := exec.CommandContext(t.Context(), r.shell[0], append(r.shell[1:len(r.shell):len(r.shell)], append([]string{"-s", "--"}, args...)...)...)
	cmd.Env, cmd.Dir, cmd.Stdin = []string{"PATH=" + r.path}, t.TempDir(), res.Body
	script, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(script)
	return cmd
}

// device returns the path of a file of that size, full of old bytes.
func device(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "device")
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// flashed reports an error unless the device begins with disk, and the rest is unchanged.
func flashed(t *testing.T, path string, disk []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) < len(disk) || !bytes.Equal(got[:len(disk)], disk) {
		t.Error("the disk is not on the device")
	} else if rest := got[len(disk):]; len(bytes.Trim(rest, "\xaa")) > 0 {
		t.Error("what is behind the disk was changed")
	}
}

// pattern returns bytes that do not repeat.
func pattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i>>16 + i>>8 + i)
	}
	return b
}

const hostileName = `-a b'$(touch pwned)";touch pwned;` + "`touch pwned`" + ` %41+ü #?&.img`

func TestFlashScript(t *testing.T) {
	s := newRawServer(t, true)
	disk := pattern(3<<20 + 4097)
	s.hashed(hostileName, disk, content.Record{Content: content.Content{Kind: content.MBR}})
	damaged := content.Record{Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Damaged, Reason: "it is damaged at byte 7"}}
	s.hashed("damaged.img.gz", gzipped(t, []byte("damaged")), damaged)
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			path := device(t, len(disk)+5000)
			out, err := r.run(t, s.url, "--yes", "--", hostileName, path)
			if err != nil || !strings.Contains(out, string(sum(disk))) {
				t.Fatalf("%v %s", err, out)
			}
			flashed(t, path, disk)
			if found, _ := filepath.Glob(filepath.Join(t.TempDir(), "..", "*", "pwned")); found != nil {
				t.Errorf("the name was run: %q", found)
			}
			small := device(t, len(disk)-1)
			for _, refused := range [][]string{
				{"too small", "--yes", "--", hostileName, small},
				{"does not exist", "--yes", "--", hostileName, filepath.Join(t.TempDir(), "sdx")},
				{"neither", "--yes", "--", hostileName, "/dev/null"},
				{"no image of this name", "--yes", "other.img", small},
				{"damaged at byte 7", "--yes", "damaged.img.gz", small},
				{"no terminal", "--", hostileName, path},
				{"usage", hostileName},
				{"usage", "--no", "a", "b"},
				{"usage", "", path},
			} {
				if out, err := r.run(t, s.url, refused[1:]...); err == nil || !strings.Contains(out, refused[0]) {
					t.Errorf("%q: %v\n%s", refused, err, out)
				}
			}
			flashed(t, small, nil)
		})
	}
}

// The question is asked on the terminal, since the standard input is the script.
func TestFlashScriptAsks(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(5000)
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			for answer, want := range map[string][]byte{"yes": disk, "no": nil, "": nil, "yess": nil} {
				path := device(t, len(disk))
				cmd := r.command(t, s.url, "a.img", path)
				master, slave := need.Terminal(t)
				cmd.Stderr, cmd.Stdout = slave, slave
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
				if _, err := io.WriteString(master, answer+"\n"); err != nil {
					t.Fatal(err)
				}
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				slave.Close()
				out, _ := io.ReadAll(master) // ends with EIO
				if err := cmd.Wait(); (err == nil) != (want != nil) {
					t.Errorf("%q: %v\n%s", answer, err, out)
				}
				flashed(t, path, want)
			}
		})
	}
}

// between returns the URL of a proxy of s. It sends disks by send, and breaks the connection
// if that returns false.
func between(t *testing.T, s *rawServer, send func(w io.Writer, disk io.Reader) bool) string {
	t.Helper()
	target := must(url.Parse(s.url))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out := r.Clone(r.Context())
		out.URL.Scheme, out.URL.Host, out.RequestURI = target.Scheme, target.Host, ""
		res, err := s.client.Transport.RoundTrip(out)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		defer res.Body.Close()
		maps.Copy(w.Header(), res.Header)
		w.WriteHeader(res.StatusCode)
		if !strings.HasPrefix(r.URL.Path, "/raw/") {
			_, _ = io.Copy(w, res.Body)
		} else if !send(w, res.Body) {
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(proxy.Close)
	return proxy.URL
}

// cutting returns the URL of a proxy of s that sends only so many bytes of the first disks.
func cutting(t *testing.T, s *rawServer, cuts int32, bytes int64) string {
	t.Helper()
	var cut atomic.Int32
	return between(t, s, func(w io.Writer, disk io.Reader) bool {
		whole := cut.Add(1) > cuts
		if !whole {
			disk = io.LimitReader(disk, bytes)
		}
		_, err := io.Copy(w, disk)
		return err == nil && whole
	})
}

func TestFlashScriptResumes(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(5<<20 + 100)
	size := int64(len(disk))
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	// Of a compressed image without a disk, and with nothing that makes one, the download
	// begins again.
	s.hashed("z.img.gz", gzipped(t, disk), content.Record{
		Content: content.Content{Kind: content.Gzip},
		Check:   &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(disk)},
	})
	for _, r := range rescues(t) {
		for _, name := range []image.Name{"a.img", "z.img.gz"} {
			t.Run(r.name+" "+string(name), func(t *testing.T) {
				t.Parallel()
				path := device(t, len(disk))
				out, err := r.run(t, cutting(t, s, 2, 1<<20+5000), "--yes", string(name), path)
				if err != nil || strings.Count(out, "cut off") != 2 {
					t.Errorf("%v %s", err, out)
				}
				flashed(t, path, disk)
			})
		}
	}
}

// A device that is removed during a cut is not made anew as a file.
func TestFlashScriptDeviceRemoved(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(3 << 20)
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			path := device(t, len(disk))
			cut := between(t, s, func(w io.Writer, disk io.Reader) bool {
				_, _ = io.CopyN(w, disk, 2<<20)
				_ = http.NewResponseController(w.(http.ResponseWriter)).Flush()
				f, err := os.Open(path)
				first := []byte{0xaa}
				for begun := time.Now(); err == nil && first[0] == 0xaa; _, err = f.ReadAt(first, 0) { // until dd has written
					if time.Since(begun) > time.Minute {
						t.Error("dd writes nothing")
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				_ = f.Close()
				_ = os.Remove(path)
				return false
			})
			if out, err := r.run(t, cut, "--yes", "a.img", path); err == nil || !strings.Contains(out, "was removed or replaced") {
				t.Errorf("%v\n%s", err, out)
			}
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("a file was made: %v", err)
			}
		})
	}
}

// What is read back is compared with what the server says.
func TestFlashScriptReadsBack(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(2 << 20)
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	faulty := between(t, s, func(w io.Writer, disk io.Reader) bool {
		all, _ := io.ReadAll(disk)
		all[1234567] ^= 1
		_, _ = w.Write(all)
		return true
	})
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if out, err := r.run(t, faulty, "--yes", "a.img", device(t, len(disk))); err == nil || !strings.Contains(out, "does not hold the image") {
				t.Errorf("%v\n%s", err, out)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Nothing that a client sends becomes a part of the script, but a host.
func TestFlashScriptHosts(t *testing.T) {
	s := newRawServer(t, false)
	address := strings.TrimPrefix(s.url, "http://")
	script := func(host string) string {
		conn := must(net.Dial("tcp", address))
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /flash.sh HTTP/1.1\r\nHost: %s\r\nX-Forwarded-Host: a'b\r\nX-Forwarded-Proto: '\r\nConnection: close\r\n\r\n", host); err != nil {
			t.Fatal(err)
		}
		answer := string(must(io.ReadAll(conn)))
		_, script, _ := strings.Cut(answer, "\r\n\r\n")
		return script
	}
	for _, host := range []string{"pi:8080", "images.example.org", "192.0.2.1:80", "[2001:db8::1]:8080"} {
		if !strings.Contains(script(host), "\nserver='http://"+host+"'") {
			t.Errorf("%s is not the server", host)
		}
	}
	for _, host := range []string{
		"a';touch pwned;'", "$(touch pwned)", "`id`", "a b", "a'b", `a"b`, `a\b`, "a;b", "a&b", "a|b", "a>b", "a\tb", "é", "[::1]'", "a:b", "a/'", "[fe80::1%25'eth0']", "@SERVER@", "", strings.Repeat("a", 300),
	} {
		text := script(host)
		if strings.Contains(text, "\nserver=") && !strings.Contains(text, "\nserver='http://"+address+"' ") {
			_, line, _ := strings.Cut(text, "\nserver=")
			line, _, _ = strings.Cut(line, "\n")
			t.Errorf("%q: %s", host, line)
		}
	}
}

// The lines about an image are of the kinds that the script reads, whatever its name.
func TestFlashState(t *testing.T) {
	s := newRawServer(t, false)
	disk := []byte("disk\x00")
	size := int64(len(disk))
	checked := content.Record{Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(disk)}}
	sha := s.hashed(hostileName, disk, content.Record{Content: content.Content{Kind: content.MBR}})
	z := s.hashed("z.img.gz", gzipped(t, disk), checked)
	s.hashed("new.img.gz", gzipped(t, []byte("new")), content.Record{Content: content.Content{Kind: content.Gzip}})
	s.hashed("given-up.img.gz", gzipped(t, []byte("given up")), content.Record{
		Content: content.Content{Kind: content.Gzip}, Check: &content.Check{Verdict: content.Unchecked, Reason: "It takes\nstate ready\ntoo long."},
	})
	s.put("unhashed.img", []byte("unhashed"))
	ready := func(path, ranges string) string {
		return fmt.Sprintf("state ready\nsize 5\nsha256 %s\npath raw/%s\nranges %s\n", sum(disk), path, ranges)
	}
	for query, want := range map[string]string{
		"name=" + escaped(hostileName):                ready(string(sha), "yes"),
		"name=" + escaped(hostileName) + "&from=3":    ready(string(sha), "yes"),
		"name=" + string(z):                           ready(string(z), "yes"),
		"name=z.img&from=0":                           ready(string(z), "yes"),
		"name=z.img.gz&from=1":                        ready(string(z), "no"),
		"name=unhashed.img":                           "state wait\nreason ",
		"name=new.img.gz":                             "state wait\nreason ",
		"name=given-up.img.gz":                        "state fail\nreason ",
		"name=other.img":                              "state fail\nreason ",
		"name=":                                       "state fail\nreason ",
		"name=" + escaped("a\nstate ready\nsize 1\n"): "state fail\nreason ",
	} {
		got := string(s.want(s.ask("GET", "/flash.sh?"+query), 200).body)
		if !strings.HasPrefix(got, want) || strings.HasSuffix(want, " ") && strings.Count(got, "state ready\n") > 0 {
			t.Errorf("%s: %q", query, got)
		}
	}
	s.want(s.ask("GET", "/flash.sh?name=z.img&from=x"), 400)
}

// storeLinks presigns URLs of a store that is at another address.
type storeLinks struct {
	bucketLinks
	url string
}

func (l storeLinks) PresignGet(context.Context, store.Key, store.GetHeader) (string, error) {
	return l.url + "/disk?signature=a%2Fb", nil
}

// flash.sh sends the token to the server only, and shows it to no other process.
func TestFlashScriptToken(t *testing.T) {
	const secret = `to\k"en-$(id)-of-TestFlashScriptToken`
	disk := pattern(3<<20 + 100)
	shown := func(r *http.Request) {
		all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range all {
			if line, _ := os.ReadFile(file); bytes.Contains(line, []byte("of-TestFlashScriptToken")) {
				t.Errorf("%s has the token: %q", r.URL, line)
			}
		}
	}
	s := newRawServer(t, false)
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	linked := newRawServer(t, false)
	linked.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shown(r)
		if r.Header.Get("Authorization") != "" || r.URL.Query().Get("signature") != "a/b" {
			t.Errorf("%s got %q", r.URL, r.Header.Get("Authorization"))
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(disk))
	}))
	t.Cleanup(other.Close)
	linked.f.ImageLinks = storeLinks{url: other.URL}
	away := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("%s was asked with %q", r.URL, r.Header.Get("Authorization"))
	}))
	t.Cleanup(away.Close)
	// gate returns the URL of a closed server before another one.
	gate := func(to string, redirects bool) string {
		proxy := httputil.NewSingleHostReverseProxy(must(url.Parse(to)))
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.RawQuery == "" && r.URL.Path == "/flash.sh" {
				proxy.ServeHTTP(w, r) // by the test
				return
			}
			shown(r)
			switch {
			case r.Header.Get("Authorization") != "Bearer "+secret:
				w.WriteHeader(http.StatusUnauthorized)
			case redirects:
				http.Redirect(w, r, away.URL+r.URL.Path, http.StatusTemporaryRedirect)
			default:
				proxy.ServeHTTP(w, r)
			}
		}))
		t.Cleanup(server.Close)
		return server.URL
	}
	closed, closedLinked, redirecting := gate(s.url, false), gate(linked.url, false), gate(s.url, true)
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			run := func(server, token string, args ...string) (string, error) {
				cmd := r.command(t, server, append([]string{"--yes"}, args...)...)
				cmd.Env = append(cmd.Env, "TMPDIR="+dir, "IMAGEROOT_TOKEN="+token)
				cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			path := device(t, len(disk)+20)
			for token, why := range map[string]string{"": "set IMAGEROOT_TOKEN", "a\nb": "no token has"} {
				if out, err := run(closed, token, "a.img", path); err == nil || !strings.Contains(out, why) {
					t.Errorf("%q: %v %s", token, err, out)
				}
			}
			// The shell of BusyBox has a wget of its own, which it prefers.
			if strings.HasPrefix(r.name, "busybox") && !strings.HasSuffix(r.name, "curl") {
				if out, err := run(closed, secret, "a.img", path); err == nil || !strings.Contains(out, "install curl") {
					t.Errorf("%v %s", err, out)
				}
				return
			}
			if out, err := run(closed, secret, "a.img", path); err != nil {
				t.Errorf("%v %s", err, out)
			}
			flashed(t, path, disk)
			path = device(t, len(disk)+20)
			if out, err := run(closedLinked, secret, "a.img", path); err != nil {
				t.Errorf("%v %s", err, out)
			}
			flashed(t, path, disk)
			if out, err := run(redirecting, secret, "a.img", path); err == nil || !strings.Contains(out, "redirects") {
				t.Errorf("%v %s", err, out)
			}
			if left := must(os.ReadDir(dir)); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// Of a SHA-256 that was given, the server cannot send another image.
func TestFlashScriptGiven(t *testing.T) {
	s := newRawServer(t, false)
	disk := pattern(1 << 20)
	sha := s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	size := int64(len(disk))
	z := s.hashed("z.img.gz", gzipped(t, disk), content.Record{
		Content: content.Content{Kind: content.Gzip},
		Check:   &content.Check{Verdict: content.Good, RawSizeBytes: &size, RawSHA256: sum(disk)},
	})
	another := s.hashed("b.img", pattern(2<<20), content.Record{Content: content.Content{Kind: content.MBR}})
	lying := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Has("name") {
			r.URL.RawQuery = "name=" + string(another)
		}
		httputil.NewSingleHostReverseProxy(must(url.Parse(s.url))).ServeHTTP(w, r)
	}))
	t.Cleanup(lying.Close)
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			for given, says := range map[string]string{string(sha): "the one that was given", string(z): "the server's word"} {
				path := device(t, len(disk))
				if out, err := r.run(t, s.url, "--yes", given, path); err != nil || !strings.Contains(out, says) {
					t.Errorf("%v\n%s", err, out)
				}
				flashed(t, path, disk)
			}
			path := device(t, 2<<20)
			if out, err := r.run(t, lying.URL, "--yes", string(sha), path); err == nil || !strings.Contains(out, "another image") {
				t.Errorf("%v\n%s", err, out)
			}
			flashed(t, path, nil)
		})
	}
}

// What a server says cannot change the terminal.
func TestFlashScriptHostileServer(t *testing.T) {
	s := newRawServer(t, false)
	hostile := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("name") {
			_, _ = io.WriteString(w, "state fail\nreason die \x1b[2JGr\u00fc\u00dfe \u0090\u009b2J\u00a0\r\x7f.\n")
			return
		}
		httputil.NewSingleHostReverseProxy(must(url.Parse(s.url))).ServeHTTP(w, r)
	}))
	t.Cleanup(hostile.Close)
	for _, r := range rescues(t) {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			if out, err := r.run(t, hostile.URL, "--yes", "a.img", device(t, 100)); err == nil || out != "flash.sh: die [2JGr\u00fc\u00dfe 2J\u00a0.\n" {
				t.Errorf("%v %q", err, out)
			}
		})
	}
}

func TestShellcheck(t *testing.T) {
	need.Programs(t, "shellcheck")
	if out, err := exec.CommandContext(t.Context(), "shellcheck", "-s", "sh", "flash.sh").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// deviceTools are the programs of util-linux or BusyBox that flash.sh uses if they exist.
var deviceTools = []string{"blockdev", "blkid"}

func TestDeepFlashScriptDevices(t *testing.T) {
	need.Programs(t, "sfdisk", "partx", "mkfs.ext4", "mkfs.btrfs", "mkswap", "mount", "umount", "swapon", "swapoff", "cmp")
	s := newRawServer(t, false)
	disk := pattern(5<<20 + 512)
	s.hashed("a.img", disk, content.Record{Content: content.Content{Kind: content.MBR}})
	const mib = 1 << 20
	run := func(t *testing.T, command string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "sh", "-ec", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	for _, r := range rescues(t) {
		for _, tool := range deviceTools {
			from := tool
			if strings.Contains(r.name, "busybox wget") {
				from = "busybox"
			}
			if err := os.Symlink(must(exec.LookPath(from)), filepath.Join(r.path, tool)); err != nil && !os.IsExist(err) {
				t.Fatal(err)
			}
		}
		refused := func(t *testing.T, device, why string) {
			t.Helper()
			if out, err := r.run(t, s.url, "--yes", "a.img", device); err == nil || !strings.Contains(out, why) {
				t.Errorf("%s: %v\n%s", why, err, out)
			}
		}
		file := func(t *testing.T, size int64) string {
			path := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			return path
		}
		t.Run(r.name, func(t *testing.T) {
			t.Run("right and cut", func(t *testing.T) {
				path := file(t, 8*mib)
				loop := need.Loop(t, path)
				if out, err := r.run(t, cutting(t, s, 1, 2*mib+5), "--yes", "a.img", loop); err != nil || !strings.Contains(out, "cut off") {
					t.Errorf("%v %s", err, out)
				}
				want := filepath.Join(t.TempDir(), "want")
				if err := os.WriteFile(want, disk, 0o600); err != nil {
					t.Fatal(err)
				}
				run(t, fmt.Sprintf("cmp -n %d %s %s", len(disk), want, loop))
				refused(t, path, "is made of it") // the file of the loop device
			})
			t.Run("too small", func(t *testing.T) { refused(t, need.Loop(t, file(t, 5*mib)), "too small") })
			t.Run("read-only", func(t *testing.T) { refused(t, need.Loop(t, file(t, 8*mib), "--read-only"), "read-only") })
			t.Run("lies", func(t *testing.T) {
				if strings.HasPrefix(r.name, "busybox") {
					return // its shell runs its own dd
				}
				// The medium changes before the first direct read, below what the kernel keeps.
				path, dd := file(t, 8*mib), must(exec.LookPath("dd"))
				wrapper := fmt.Sprintf("#!/bin/sh\ncase $* in *of=/dev/null*count=1*) printf X | %s of=%s bs=1 seek=1234567 conv=notrunc 2>/dev/null ;; esac\nexec %[1]s \"$@\"\n", dd, path)
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "dd"), []byte(wrapper), 0o700); err != nil {
					t.Fatal(err)
				}
				liar := rescue{r.name, r.shell, dir + ":" + r.path}
				if out, err := liar.run(t, s.url, "--yes", "a.img", need.Loop(t, path)); err == nil || !strings.Contains(out, "does not hold the image") {
					t.Errorf("%v\n%s", err, out)
				}
			})
			t.Run("write error", func(t *testing.T) {
				path := filepath.Join(need.Mount(t, "tmpfs", "size=2m"), "disk")
				if err := os.WriteFile(path, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(path, 8*mib); err != nil {
					t.Fatal(err)
				}
				out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", path).Output()
				if err != nil {
					t.Fatal(err)
				}
				loop := strings.TrimSpace(string(out))
				refused(t, loop, "cannot be written")
				run(t, "losetup --detach "+loop) // before the file system
			})
			t.Run("in use", func(t *testing.T) {
				loop, dir := need.Loop(t, file(t, 64*mib)), t.TempDir()
				run(t, fmt.Sprintf("mkfs.ext4 -q %s && mount %[1]s %s", loop, dir))
				refused(t, loop, "mounted at "+dir)
				run(t, "umount "+dir)
				run(t, fmt.Sprintf("mkswap -q %s && swapon %[1]s", loop))
				refused(t, loop, "swap")
				run(t, "swapoff "+loop)
				// partx adds partitions, whatever tables the kernel reads.
				run(t, fmt.Sprintf("printf 'size=20MiB\\nsize=20MiB\\n' | sfdisk -q --no-reread %s && partx --add %[1]s && mkfs.ext4 -q %[1]sp1 && mount %[1]sp1 %s", loop, dir))
				refused(t, loop, "mounted at "+dir)
				refused(t, loop+"p1", "mounted at "+dir)
				if out, err := r.run(t, s.url, "--yes", "a.img", loop+"p2"); err != nil {
					t.Errorf("%v %s", err, out)
				}
				run(t, "umount "+dir)
				// Another process that has copied the mounts meanwhile may hold the file system until it ends.
				for end := time.Now().Add(time.Minute); exec.Command("partx", "--delete", loop).Run() != nil; time.Sleep(50 * time.Millisecond) {
					if time.Now().After(end) {
						t.Fatalf("the partitions of %s are in use", loop)
					}
				}
			})
			t.Run("second disk of a file system", func(t *testing.T) {
				first, second, dir := need.Loop(t, file(t, 128*mib)), need.Loop(t, file(t, 128*mib)), t.TempDir()
				run(t, fmt.Sprintf("mkfs.btrfs -q -f %s %s && mount -o device=%[2]s %[1]s %[3]s", first, second, dir))
				refused(t, first, "in use")
				refused(t, second, "in use")
				run(t, "umount "+dir)
			})
			root := strings.TrimSpace(string(must(exec.Command("findmnt", "-no", "SOURCE", "/").Output())))
			if strings.HasPrefix(root, "/dev/") {
				refused(t, root, "runs this system")
			}
		})
	}
}

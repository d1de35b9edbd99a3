package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imageroot/test/need"
)

// setting is the name in the message of a refused source.
const setting = "IMAGEROOT_ALLOW_NET"

func allowNet(networks string) []string { return []string{setting + "=" + networks} }

// trapsOn sets a trap at one port of every loopback address that a source might
// resolve to.
func trapsOn(t *testing.T) (port int, check func()) {
	t.Helper()
	for range 20 {
		first := newTrap(t, "127.0.0.1:0")
		traps := []*trap{first}
		for _, host := range []string{"127.0.0.2", "127.1.2.3", "::1"} {
			if l, err := net.Listen("tcp", hostPort(host, first.Port())); err == nil {
				traps = append(traps, trapOn(t, l))
			} // else in use, or no IPv6 here
		}
		if len(traps) >= 3 {
			return first.Port(), func() {
				t.Helper()
				for _, tr := range traps {
					tr.Check(t)
				}
			}
		}
	}
	t.Fatal("no port is free on several loopback addresses")
	return 0, nil
}

// hostsOfLoopback are the names that /etc/hosts gives to loopback addresses.
func hostsOfLoopback(t *testing.T) []string {
	t.Helper()
	f, err := os.Open("/etc/hosts")
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	var names []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		if ip, err := netip.ParseAddr(fields[0]); err == nil && ip.IsLoopback() {
			names = append(names, fields[1:]...)
		}
	}
	return names
}

// TestNetPolicyLoopback refuses every spelling of a loopback address without a
// setting.
func TestNetPolicyLoopback(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Env: allowNet("")})
	port, check := trapsOn(t)
	plain := append([]string{"127.0.0.1", "127.0.0.2", "127.1.2.3", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "localhost", "LOCALHOST"}, hostsOfLoopback(t)...)
	slices.Sort(plain)
	for _, host := range slices.Compact(plain) {
		for _, u := range []string{"http://%s:%d/a.img", "https://%s:%d/a.img", "oras://%s:%d/lab/a:v1"} {
			u = fmt.Sprintf(u, host, port)
			t.Run(u, func(t *testing.T) {
				r := s.AddEntry(t, u, "")
				if strings.HasPrefix(u, "oras:") && strings.HasPrefix(host, "[") && r.Status == http.StatusUnprocessableEntity {
					r.Problem(t, []int{422}) // references cannot have such hosts
					return
				}
				r.Problem(t, []int{400}, setting, "loopback")
			})
		}
	}
	// Other spellings of such an address, or names that lead to one. This
	// machine cannot resolve some of them, which is as good.
	for _, host := range []string{
		"2130706433", "0x7f000001", "0x7f.0.0.1", "017700000001", "0177.0.0.1", "127.1", "127.0.1", "0.0.0.0", "0", "[::]", "[::127.0.0.1]",
		"[64:ff9b::127.0.0.1]", "[2002:7f00:1::1]", "127.0.0.1.", "localhost.", "127.0.0.1%2500", "\uff11\uff12\uff17.0.0.1", "127\u30020.0.1", "[::1%25lo]",
	} {
		t.Run(host, func(t *testing.T) {
			s.AddEntry(t, fmt.Sprintf("http://%s:%d/a.img", host, port), "").Problem(t, []int{400, 422})
		})
	}
	check()
	t.Run("from the manifest", func(t *testing.T) {
		s.putManifest(t, manifestOf(manifestImage{Name: "m.img", Src: fmt.Sprintf("http://127.0.0.1:%d/m.img", port)})).Must(t, accepted...)
		failing(t, s, "m.img", setting)
		check()
	})
}

// always matches the message for an address that no setting allows.
var always = regexp.MustCompile(`(?i)metadata|link-local`)

// TestNetPolicyNever refuses cloud metadata and link-local addresses whatever
// is allowed. The reason must be the policy's: a failed dial would give another
// one.
func TestNetPolicyNever(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Env: allowNet("loopback, private, 0.0.0.0/0, ::/0, 169.254.169.254, fd00:ec2::254")})
	p := publish(t)
	for _, host := range []string{
		"169.254.169.254", "169.254.170.2", "169.254.1.1", "[fd00:ec2::254]", "[fd00:ec2:0:0:0:0:0:254]", "[::ffff:169.254.169.254]",
		"[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]", "[fe80::1]", "100.100.100.200",
	} {
		t.Run(host, func(t *testing.T) {
			refused := func(r *Reply) {
				t.Helper()
				if d := r.Problem(t, []int{400}).Detail; !always.MatchString(d) {
					t.Errorf("%s", d)
				}
			}
			refused(s.AddEntry(t, "http://"+host+"/latest/meta-data/a.img", ""))
			refused(s.AddEntry(t, "https://"+host+"/a.img", ""))
			if !strings.HasPrefix(host, "[") {
				refused(s.AddEntry(t, "oras://"+host+"/lab/a:v1", ""))
			}
			from := p.Handle("/to-"+url.PathEscape(host)+".img", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, "http://"+host+"/latest/meta-data/", http.StatusTemporaryRedirect)
			})
			refused(s.AddEntry(t, from, ""))
			refused(s.AddEntry(t, p.File("/a.img", content(1, 1000)), "http://"+host+"/SHA256SUMS"))
		})
	}
	for _, host := range []string{"2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "169.254.169.254."} {
		t.Run(host, func(t *testing.T) { s.AddEntry(t, "http://"+host+"/a.img", "").Problem(t, []int{400, 422}) })
	}
	s.putManifest(t, manifestOf(manifestImage{Name: "m.img", Src: "http://169.254.169.254/m.img"})).Must(t, accepted...)
	if j := failing(t, s, "m.img"); !always.MatchString(j.Error) {
		t.Errorf("%+v", j)
	}
}

// TestNetPolicyRedirects has an allowed publisher redirect to a denied address.
func TestNetPolicyRedirects(t *testing.T) {
	t.Parallel()
	s := Start(t, Options{Env: allowNet("127.0.0.2/32")})
	p := publishOn(t, "127.0.0.2:0")
	tr := newTrap(t, "127.0.0.1:0")
	inside := fmt.Sprintf("http://127.0.0.1:%d/inside.img", tr.Port())
	b := content(1, 10_000)
	p.File("/good.img", b)
	for name, to := range map[string]string{
		"302":         inside,
		"by its name": fmt.Sprintf("http://localhost:%d/inside.img", tr.Port()),
		"mapped":      fmt.Sprintf("http://[::ffff:127.0.0.1]:%d/inside.img", tr.Port()),
		"TLS":         fmt.Sprintf("https://127.0.0.1:%d/inside.img", tr.Port()),
	} {
		t.Run(name, func(t *testing.T) {
			u := p.Handle("/"+url.PathEscape(name)+".img", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
			s.AddEntry(t, u, "").Problem(t, []int{400}, setting)
		})
	}
	t.Run("the second hop", func(t *testing.T) {
		p.Handle("/hop-2.img", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, inside, http.StatusPermanentRedirect)
		})
		u := p.Handle("/hop-1.img", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/hop-2.img", http.StatusSeeOther)
		})
		s.AddEntry(t, u, "").Problem(t, []int{400}, setting)
	})
	t.Run("the GET only", func(t *testing.T) {
		u := p.Handle("/get.img", func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				whole(w, r, b, len(b))
				return
			}
			http.Redirect(w, r, inside, http.StatusFound)
		})
		if r := s.AddEntry(t, u, ""); r.Status != http.StatusCreated {
			r.Problem(t, []int{400}, setting)
			return
		}
		failing(t, s, "get.img", setting)
	})
	t.Run("since it was added", func(t *testing.T) {
		u := p.File("/later.img", b)
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		p.Handle("/later.img", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside, http.StatusFound) })
		failing(t, s, "later.img", setting)
	})
	t.Run("the SHA URL", func(t *testing.T) {
		sums := p.Handle("/sums", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, inside, http.StatusFound) })
		s.AddEntry(t, p.At("/good.img"), sums).Problem(t, []int{400}, setting)
		s.AddEntry(t, p.At("/good.img"), inside).Problem(t, []int{400}, setting)
	})
	t.Run("to what is no web", func(t *testing.T) {
		for i, to := range []string{"file:///etc/hostname", "ftp://127.0.0.2/a.img", "gopher://127.0.0.1:1/x", "oras://127.0.0.2/x:v1", "javascript:1"} {
			u := p.Handle(fmt.Sprintf("/scheme-%d.img", i), func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", to)
				w.WriteHeader(http.StatusFound)
			})
			s.AddEntry(t, u, "").Problem(t, []int{400})
		}
	})
	t.Run("to another that is allowed", func(t *testing.T) {
		other := publishOn(t, "127.0.0.2:0")
		to := other.File("/real.img", b)
		u := p.Handle("/away.img", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, to, http.StatusFound) })
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		if j := s.Fetch(t, "away.img"); j.SHA256 != sum(b) {
			t.Errorf("%+v", j)
		}
	})
	tr.Check(t)
}

// startWithHosts starts the server with another /etc/hosts, which takes a mount
// namespace.
func startWithHosts(t *testing.T, o Options, hosts string) *Server {
	t.Helper()
	need.Root(t)
	o.Via = []string{"unshare", "--mount", "--", "sh", "-ec", `mount --bind "$0" /etc/hosts; exec "$@"`, tempFile(t, []byte(hosts))}
	return Start(t, o)
}

// TestDeepNetPolicyNames checks a name by its address at the time of the dial.
func TestDeepNetPolicyNames(t *testing.T) {
	t.Parallel()
	p := publishOn(t, "127.0.0.2:0")
	port := p.Listener.Addr().(*net.TCPAddr).Port
	tr := newTrap(t, hostPort("127.0.0.1", port)) // the same port of a denied address
	b := content(1, 10_000)
	p.File("/a.img", b)
	s := startWithHosts(t, Options{Env: allowNet("127.0.0.2")}, `
127.0.0.1       localhost
127.0.0.1       inside.example intranet
::1             six.example
127.0.0.2       outside.example
127.0.0.1       both.example
127.0.0.2       both.example
169.254.169.254 metadata.example metadata.google.internal
0.0.0.0         zero.example
::ffff:127.0.0.1 mapped.example
`)
	for host, word := range map[string]string{
		"inside.example": setting, "intranet": setting, "six.example": setting, "mapped.example": setting, "INSIDE.example": setting,
		"metadata.example": "metadata", "metadata.google.internal": "metadata", "zero.example": "refused",
	} {
		t.Run(host, func(t *testing.T) {
			s.AddEntry(t, fmt.Sprintf("http://%s:%d/a.img", host, port), "").Problem(t, []int{400}, word)
			s.AddEntry(t, fmt.Sprintf("http://outside.example:%d/a.img", port), fmt.Sprintf("http://%s:%d/sums", host, port)).Problem(t, []int{400}, word)
			s.AddEntry(t, fmt.Sprintf("oras://%s:%d/lab/a:v1", strings.ToLower(host), port), "").Problem(t, []int{400}, word)
			u := p.Handle("/to-"+host+".img", func(w http.ResponseWriter, r *http.Request) {
				http.Redirect(w, r, fmt.Sprintf("http://%s:%d/a.img", host, port), http.StatusFound)
			})
			s.AddEntry(t, u, "").Problem(t, []int{400}, word)
		})
	}
	for _, host := range []string{"outside.example", "both.example"} {
		u := fmt.Sprintf("http://%s:%d/a.img", host, port)
		s.AddEntry(t, u, "").Must(t, http.StatusCreated)
		s.Enqueue(t, downloads, "src", u).Must(t, http.StatusAccepted)
		eventually(t, within, "fetched from "+host, func() error {
			jobs, _ := s.Jobs(t, downloads)
			for _, j := range jobs {
				if j.Src == u && j.Status == "completed" && j.SHA256 == sum(b) {
					return nil
				}
			}
			return fmt.Errorf("%+v", jobs)
		})
	}
	tr.Check(t)
}

func TestNetPolicyRegistries(t *testing.T) {
	t.Parallel()
	b := content(1, 10_000)
	t.Run("on an address that is refused", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{Env: allowNet("")})
		tr := newTrap(t, "127.0.0.1:0")
		for _, ref := range []string{":v1", "@sha256:" + sum(b)} {
			s.AddEntry(t, fmt.Sprintf("oras://127.0.0.1:%d/lab/disk%s", tr.Port(), ref), "").Problem(t, []int{400}, setting)
		}
		tr.Check(t)
	})
	t.Run("whose tokens come from one", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{Env: allowNet("127.0.0.2")})
		tr := newTrap(t, "127.0.0.1:0")
		reg := newRegistry(t, "127.0.0.2:0")
		reg.Push(t, "lab/disk", "v1", layer{"disk.img", b})
		reg.mu.Lock()
		reg.realm = fmt.Sprintf("http://127.0.0.1:%d/token", tr.Port())
		reg.mu.Unlock()
		reg.Guard(false, "", "")
		s.AddEntry(t, "oras://"+reg.Host+"/lab/disk:v1", "").Problem(t, []int{400}, setting)
		tr.Check(t)
	})
	t.Run("whose blobs are on one", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{Env: allowNet("127.0.0.2")})
		tr := newTrap(t, "127.0.0.1:0")
		reg := newRegistry(t, "127.0.0.1:0")
		reg.Push(t, "lab/disk", "v1", layer{"disk.img", b})
		to, err := url.Parse(reg.URL)
		if err != nil {
			t.Fatal(err)
		}
		behind := httputil.NewSingleHostReverseProxy(to)
		front := serveOn(t, "127.0.0.2:0", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "/blobs/") {
				http.Redirect(w, r, fmt.Sprintf("http://127.0.0.1:%d/blob", tr.Port()), http.StatusTemporaryRedirect)
				return
			}
			behind.ServeHTTP(w, r)
		}))
		u := "oras://" + strings.TrimPrefix(front.URL, "http://") + "/lab/disk:v1"
		if r := s.AddEntry(t, u, ""); r.Status == http.StatusCreated {
			failing(t, s, "disk.img", setting)
		} else {
			r.Problem(t, []int{400}, setting)
		}
		tr.Check(t)
	})
}

// ownAddress is an address of this machine that is not loopback.
func ownAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no address but loopback")
	return ""
}

// TestNetPolicyS3Endpoint denies the S3 endpoint, which holds the operator's
// bytes, to sources.
func TestNetPolicyS3Endpoint(t *testing.T) {
	t.Parallel()
	t.Run("on loopback", func(t *testing.T) {
		t.Parallel()
		s := Start(t, Options{Env: allowNet("127.0.0.2")})
		s.AddEntry(t, s.S3+"/images/a.img", "").Problem(t, []int{400}, setting)
	})
	if *s3Endpoint != "" {
		return // the address of that server is not up to this test
	}
	t.Run("on another address", func(t *testing.T) {
		t.Parallel()
		ip := ownAddress(t)
		// Another port of that address is allowed: private networks are.
		p := publishOn(t, hostPort(ip, 0))
		b := content(1, 10_000)
		p.File("/a.img", b)
		for _, listen := range []string{ip + ":0", "0.0.0.0:0", ":0"} {
			t.Run(listen, func(t *testing.T) {
				s := Start(t, Options{Env: allowNet(""), Args: []string{"--s3-listen", listen}})
				s.Put(t, "own.img", b)
				u, err := url.Parse(s.S3)
				if err != nil {
					t.Fatal(err)
				}
				endpoint := "http://" + net.JoinHostPort(ip, u.Port())
				s.AddEntry(t, endpoint+"/images/own.img", "").Problem(t, []int{400}, setting)
				from := p.Handle("/to-s3.img", func(w http.ResponseWriter, r *http.Request) {
					http.Redirect(w, r, endpoint+"/images/own.img", http.StatusFound)
				})
				s.AddEntry(t, from, "").Problem(t, []int{400}, setting)
				s.AddEntry(t, p.At("/a.img"), "").Must(t, http.StatusCreated)
				if j := s.Fetch(t, "a.img"); j.SHA256 != sum(b) {
					t.Errorf("%+v", j)
				}
			})
		}
		t.Run("of another server", func(t *testing.T) {
			holds := Start(t, Options{Args: []string{"--s3-listen", ip + ":0"}})
			s := Start(t, Options{Env: allowNet(""), Over: holds})
			s.AddEntry(t, holds.S3+"/images/own.img", "").Problem(t, []int{400}, setting)
			allowed := Start(t, Options{Env: allowNet(ip), Over: holds})
			if d := allowed.AddEntry(t, holds.S3+"/images/own.img", "").Problem(t, []int{400}).Detail; strings.Contains(d, setting) {
				t.Errorf("allowed, and refused: %s", d)
			}
		})
	})
}

// TestNetPolicyProxies ignores proxies: a proxy would dial for itself, without
// the policy. The process needs none to reach the gateway inside either.
func TestNetPolicyProxies(t *testing.T) {
	t.Parallel()
	needsPlainFiles(t)
	ip := ownAddress(t)
	p := publishOn(t, hostPort(ip, 0))
	b := content(1, 10_000)
	for _, listen := range []string{"127.0.0.1:0", ip + ":0"} {
		t.Run(listen, func(t *testing.T) {
			t.Parallel()
			tr := newTrap(t, "127.0.0.1:0")
			var env []string
			for _, name := range []string{"HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"} {
				env = append(env, name+"=http://"+tr.Addr().String())
			}
			s := Start(t, Options{Env: append(env, allowNet("")...), Args: []string{"--s3-listen", listen}})
			s.AddEntry(t, p.File("/a.img", b), "").Must(t, http.StatusCreated)
			if j := s.Fetch(t, "a.img"); j.SHA256 != sum(b) {
				t.Errorf("%+v", j)
			}
			s.AddEntry(t, "https://"+p.Listener.Addr().String()+"/a.img", "").Problem(t, []int{400})
			s.AddEntry(t, "oras://"+p.Listener.Addr().String()+"/lab/a:v1", "").Problem(t, []int{400})
			tr.Check(t)
		})
	}
}

// TestNetPolicyAllows allows what the setting names, and no more.
func TestNetPolicyAllows(t *testing.T) {
	t.Parallel()
	b := content(1, 10_000)
	for networks, allowed := range map[string][]string{
		"loopback":                    {"127.0.0.1", "127.0.0.2", "127.0.0.3"},
		"127.0.0.2":                   {"127.0.0.2"},
		"127.0.0.2/31":                {"127.0.0.2", "127.0.0.3"},
		"10.0.0.0/8, 127.0.0.3":       {"127.0.0.3"},
		"127.0.0.1/32 127.0.0.3/32":   {"127.0.0.1", "127.0.0.3"},
		"private":                     nil,
		"::ffff:127.0.0.2/128, fc::1": {"127.0.0.2"},
	} {
		t.Run(networks, func(t *testing.T) {
			t.Parallel()
			s := Start(t, Options{Env: allowNet(networks)})
			for _, ip := range []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"} {
				p := publishOn(t, ip+":0")
				name := "from-" + ip + ".img"
				r := s.AddEntry(t, p.File("/"+name, b), "")
				if !slices.Contains(allowed, ip) {
					r.Problem(t, []int{400}, setting)
					continue
				}
				r.Must(t, http.StatusCreated)
				if j := s.Fetch(t, name); j.SHA256 != sum(b) {
					t.Errorf("%s: %+v", ip, j)
				}
			}
		})
	}
}

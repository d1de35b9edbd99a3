package netpolicy_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"imageroot/shared/netpolicy"
)

func mustParse(t *testing.T, allow string, base netpolicy.Policy) *netpolicy.Policy {
	t.Helper()
	p, err := netpolicy.Parse(allow, base)
	if err != nil {
		t.Fatal(err)
	}
	return &p
}

func TestCheck(t *testing.T) {
	const everything = "loopback private 0.0.0.0/0 ::/0"
	for _, tt := range []struct {
		allow, addr string
		reason      string // part of the reason; empty if the address is allowed
	}{
		{"", "93.184.215.14", ""},
		{"", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", ""},
		{"", "64:ff9b::5db8:d70e", ""}, // NAT64 of a public address

		{"", "127.0.0.1", "=loopback"},
		{"", "127.255.1.1", "=loopback"},
		{"", "::1", "=loopback"},
		{"", "::ffff:127.0.0.1", "=loopback"},
		{"", "64:ff9b::7f00:1", "=loopback"},
		{"", "::ffff:0:5db8:d70e", ""}, // SIIT of a public address
		{"", "::ffff:0:7f00:1", "=loopback"},
		{"", "2001:db8::5efe:7f00:1", "=loopback"}, // ISATAP
		{"", "2002:5db8:d70e::5efe:7f00:1", "=loopback"},
		{"", "2002:7f00:1::", "=loopback"},
		{"", "::127.0.0.1", "=loopback"},
		{"", "2001:0:1:2:3:4:80ff:fffe", "=loopback"}, // Teredo of 127.0.0.1
		{"loopback", "127.0.0.1", ""},
		{"loopback", "::1", ""},
		{"loopback", "::ffff:127.0.0.1", ""},
		{"127.0.0.1", "127.0.0.1", ""},
		{"127.0.0.1", "127.0.0.2", "=loopback"},
		{"::ffff:127.0.0.0/104", "127.0.0.2", ""},

		{"", "10.0.0.1", "=private"},
		{"", "172.31.0.1", "=private"},
		{"", "172.32.0.1", ""},
		{"", "192.168.1.1", "=192.168.1.1"},
		{"", "100.64.0.1", "=private"},
		{"", "fd12::1", "=private"},
		{"", "::ffff:10.0.0.1", "=private"},
		{"", "64:ff9b::a00:1", "=private"},
		{"", "::ffff:0:a00:1", "=private"},
		{"", "2001:db8::200:5efe:a00:1", "=private"},
		{"", "2002:a00:1::1", "=private"},
		{"private", "10.0.0.1", ""},
		{"private", "fd12::1", ""},
		{"private", "64:ff9b::a00:1", ""},
		{"private", "127.0.0.1", "=loopback"},
		{"10.1.0.0/16, 192.168.7.0/24", "10.1.2.3", ""},
		{"10.1.0.0/16, 192.168.7.0/24", "192.168.7.1", ""},
		{"10.1.0.0/16, 192.168.7.0/24", "10.2.0.1", "=private"},

		{everything, "10.0.0.1", ""},
		{everything, "169.254.169.254", "metadata"},
		{everything, "::ffff:169.254.169.254", "metadata"},
		{everything, "64:ff9b::a9fe:a9fe", "metadata"},
		{everything, "::ffff:0:a9fe:a9fe", "metadata"},
		{everything, "2001:db8::5efe:a9fe:a9fe", "metadata"},
		{everything, "2002:a9fe:a9fe::1", "metadata"},
		{everything, "fd00:ec2::254", "metadata"},
		{everything, "fd00:ec2::23", "metadata"},
		{everything, "100.100.100.200", "metadata"},
		{everything, "168.63.129.16", "metadata"},
		{everything, "169.254.1.1", "link-local"},
		{everything, "fe80::1", "link-local"},
		{everything, "fe80::1%lo", "link-local"},
		{everything, "224.0.0.1", "multicast"},
		{everything, "ff02::1", "multicast"},
		{everything, "0.0.0.0", "unspecified"},
		{everything, "0.1.2.3", "unspecified"},
		{everything, "::", "unspecified"},
		{everything, "::ffff:0.0.0.0", "unspecified"},
		{everything, "255.255.255.255", "broadcast"},
		{everything, "64:ff9b:1::a9fe:a9fe", "NAT64"},
	} {
		p := mustParse(t, tt.allow, netpolicy.Policy{})
		err := p.Check(t.Context(), netip.AddrPortFrom(netip.MustParseAddr(tt.addr), 80))
		_, refused := errors.AsType[*netpolicy.Refused](err)
		switch {
		case tt.reason == "" && err != nil:
			t.Errorf("%q, %s: refused: %v", tt.allow, tt.addr, err)
		case tt.reason != "" && !refused:
			t.Errorf("%q, %s: %v, want it refused", tt.allow, tt.addr, err)
		case tt.reason != "" && !strings.Contains(err.Error(), tt.reason):
			t.Errorf("%q, %s: %v, want it to say %q", tt.allow, tt.addr, err, tt.reason)
		}
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"lopback", "10.0.0.0/33", "10.0.0", "http://x", "::ffff:1.2.3.4/40"} {
		if p, err := netpolicy.Parse(bad, netpolicy.Policy{}); err == nil {
			t.Errorf("%q is taken as %+v", bad, p)
		}
	}
	base := netpolicy.Policy{Private: true, Allow: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}
	p := mustParse(t, " fd00::/8,\tLOOPBACK ", base)
	if !p.Loopback || !p.Private || len(p.Allow) != 2 || len(base.Allow) != 1 || base.Loopback {
		t.Errorf("got %+v of %+v", p, base)
	}
}

func TestEndpoints(t *testing.T) {
	resolver := dns(t, map[string]string{"s3.lan.": "10.0.0.9"})
	for _, tt := range []struct {
		allow, endpoint, addr string
		refused               bool
	}{
		{"", "10.0.0.9:9000", "10.0.0.9:9000", true},
		{"", "10.0.0.9:9000", "[64:ff9b::a00:9]:9000", true},
		{"", "10.0.0.9:9000", "10.0.0.9:80", false},
		{"", "10.0.0.9:9000", "10.0.0.8:9000", false},
		{"10.0.0.0/24", "10.0.0.9:9000", "10.0.0.9:9000", false},
		{"", "s3.lan:9000", "10.0.0.9:9000", true},
		{"", "gone.lan:9000", "10.0.0.9:9000", true}, // fails closed
		{"", "127.0.0.1:9000", "127.0.0.1:9000", true},
		{"loopback", "127.0.0.1:9000", "127.0.0.1:9000", false},
	} {
		p := mustParse(t, tt.allow, netpolicy.Policy{Private: true, Endpoints: []string{tt.endpoint}, Resolver: resolver})
		err := p.Check(t.Context(), netip.MustParseAddrPort(tt.addr))
		if (err != nil) != tt.refused {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}

// A gateway that listens on every address is refused at each of them.
func TestEndpointOfAllAddresses(t *testing.T) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, a := range addrs {
		ip := netip.MustParsePrefix(a.String()).Addr()
		if ip.IsLoopback() || ip.IsLinkLocalUnicast() {
			continue
		}
		checked++
		for _, ep := range []string{":9000", "0.0.0.0:9000", "[::]:9000"} {
			p := &netpolicy.Policy{Private: true, Endpoints: []string{ep}}
			err := p.Check(t.Context(), netip.AddrPortFrom(ip, 9000))
			if _, ok := errors.AsType[*netpolicy.Refused](err); !ok {
				t.Errorf("%s, endpoint %s: %v", ip, ep, err)
			}
			if err := p.Check(t.Context(), netip.AddrPortFrom(ip, 9001)); err != nil {
				t.Errorf("%s, port 9001, endpoint %s: %v", ip, ep, err)
			}
		}
	}
	if checked == 0 {
		t.Log("this machine has no address but loopback: nothing to check")
	}
}

// The dialler checks the addresses of a name, not the name.
func TestNamesThatLeadToRefusedAddresses(t *testing.T) {
	hit := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hit++ }))
	defer srv.Close()
	_, port, _ := net.SplitHostPort(srv.Listener.Addr().String())
	resolver := dns(t, map[string]string{
		"images.example.": "127.0.0.1", "meta.example.": "169.254.169.254",
		"lan.example.": "10.255.255.1", "zero.example.": "0.0.0.0",
	})
	client := &http.Client{Transport: (&netpolicy.Policy{Resolver: resolver}).Transport()}
	for _, host := range []string{"images.example", "meta.example", "lan.example", "zero.example", "127.0.0.1", "[::1]", "[::ffff:7f00:1]", "0.0.0.0"} {
		resp, err := client.Get("http://" + host + ":" + port + "/")
		if _, ok := errors.AsType[*netpolicy.Refused](err); !ok {
			t.Errorf("%s: %v, want it refused", host, err)
		}
		if err == nil {
			resp.Body.Close()
		}
	}
	if hit != 0 {
		t.Errorf("the server was reached %d times", hit)
	}
	allowed := &http.Client{Transport: mustParse(t, "loopback", netpolicy.Policy{Resolver: resolver}).Transport()}
	resp, err := allowed.Get("http://images.example:" + port + "/")
	if err != nil || hit != 1 {
		t.Fatalf("loopback allowed: %v, reached %d times", err, hit)
	}
	resp.Body.Close()
}

// A redirect is dialled like any other address.
func TestRedirectToRefusedAddress(t *testing.T) {
	inner := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the inner server was reached") }))
	defer inner.Close()
	_, port, _ := net.SplitHostPort(inner.Listener.Addr().String())
	outer := httptest.NewServer(http.RedirectHandler("http://inner.example:"+port+"/", http.StatusFound))
	defer outer.Close()
	resolver := dns(t, map[string]string{"inner.example.": "127.0.0.2"})
	p := mustParse(t, "127.0.0.1/32", netpolicy.Policy{Resolver: resolver})
	resp, err := (&http.Client{Transport: p.Transport()}).Get(outer.URL)
	refused, ok := errors.AsType[*netpolicy.Refused](err)
	if !ok {
		t.Fatalf("got %v", err)
	}
	if resp != nil {
		resp.Body.Close()
	}
	if refused.Addr != netip.MustParseAddr("127.0.0.2") {
		t.Errorf("refused %s", refused.Addr)
	}
}

// The policy cannot check the addresses that a proxy dials.
func TestProxyFromEnvironmentIsNotUsed(t *testing.T) {
	proxy := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the proxy was asked") }))
	defer proxy.Close()
	t.Setenv("HTTP_PROXY", proxy.URL)
	t.Setenv("http_proxy", proxy.URL)
	tr := mustParse(t, "loopback", netpolicy.Policy{Resolver: dns(t, map[string]string{"a.example.": "10.0.0.1"})}).Transport()
	if tr.Proxy != nil {
		t.Error("the transport has a proxy function")
	}
	resp, err := (&http.Client{Transport: tr}).Get("http://a.example/")
	if _, ok := errors.AsType[*netpolicy.Refused](err); !ok {
		t.Errorf("got %v", err)
	}
	if err == nil {
		resp.Body.Close()
	}
}

// dns starts a name server with these A records, and returns a resolver that uses it.
func dns(t *testing.T, a map[string]string) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Header = dnsmessage.Header{ID: m.ID, Response: true, RecursionAvailable: true}
			m.Additionals = nil
			addr, known := a[q.Name.String()]
			switch {
			case !known:
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
					Body:   &dnsmessage.AResource{A: netip.MustParseAddr(addr).As4()},
				}}
			}
			if out, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(out, from)
			}
		}
	}()
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

package api

import (
	"net"
	"testing"
)

func TestParseURL(t *testing.T) {
	for in, want := range map[string]string{
		"pi:8080": "http://pi:8080", "https://Images.example.org/": "https://images.example.org", "http://[::1]:80": "http://[::1]:80",
		"ftp://a": "", "http://": "", "": "", "http://a/b": "", "http://a?b": "", "http://me:word@a": "",
	} {
		if got, err := ParseURL(in); got != want || (err == nil) != (want != "") {
			t.Errorf("%q is %q, %v", in, got, err)
		}
	}
}

// TestPublic tests to which addresses credentials go by HTTP without a warning.
func TestPublic(t *testing.T) {
	for ip, want := range map[string]bool{
		"127.0.0.1": false, "::1": false, "10.1.2.3": false, "192.168.1.1": false, "172.16.0.1": false, "fd00::1": false,
		"fe80::1": false, "169.254.1.1": false, "100.64.0.1": false, "::ffff:10.0.0.1": false,
		"8.8.8.8": true, "2001:4860:4860::8888": true, "172.32.0.1": true, "::ffff:8.8.8.8": true,
	} {
		if got := public(&net.TCPAddr{IP: net.ParseIP(ip), Port: 80}); got != want {
			t.Errorf("%s is public: %v", ip, got)
		}
	}
}

package netpolicy

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"time"
)

// A ProxyError is the error of a connection that the proxy does not make.
type ProxyError struct {
	Proxy string // HOST:PORT
	Err   error
}

func (e *ProxyError) Error() string {
	return "the proxy " + e.Proxy + " makes no connection: " + e.Err.Error()
}

func (e *ProxyError) Unwrap() error { return e.Err }

// dial dials an address through p.Proxy. The proxy gets an address that was checked, and no
// name that it could resolve to another one. Loopback is this machine, not the proxy's.
func (p *Policy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return nil, err
	}
	var ips []netip.Addr
	if ip, err := netip.ParseAddr(host); err == nil {
		ips = []netip.Addr{ip}
	} else if ips, err = p.Resolver.LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	first := error(&net.DNSError{Err: "it has no address", Name: host, IsNotFound: true})
	for i, ip := range ips {
		to := netip.AddrPortFrom(ip.Unmap(), uint16(port))
		var conn net.Conn
		if to.Addr().IsLoopback() {
			conn, err = p.Dialer().DialContext(ctx, network, to.String())
		} else if err = p.Check(ctx, to); err == nil {
			conn, err = connect(ctx, p.Proxy, to.String())
		}
		if err == nil {
			return conn, nil
		}
		if i == 0 {
			first = err
		}
	}
	return nil, first
}

// connect returns a connection to an address, which the proxy makes (RFC 9110 section 9.3.6).
func connect(ctx context.Context, proxy *url.URL, to string) (net.Conn, error) {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	at := proxy.Host
	if proxy.Port() == "" {
		at = net.JoinHostPort(proxy.Hostname(), map[string]string{"http": "80", "https": "443"}[proxy.Scheme])
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", at)
	if err != nil {
		return nil, &ProxyError{at, err}
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
	conn := raw
	if proxy.Scheme == "https" {
		conn = tls.Client(raw, &tls.Config{ServerName: proxy.Hostname()})
	}
	err = ask(conn, proxy.User, to)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		_ = conn.Close()
		return nil, &ProxyError{at, err}
	}
	return conn, nil
}

// ask asks the proxy at the other end of conn to connect it to an address.
func ask(conn io.ReadWriter, user *url.Userinfo, to string) error {
	head := "CONNECT " + to + " HTTP/1.1\r\nHost: " + to + "\r\n"
	if user != nil {
		password, _ := user.Password()
		head += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, head+"\r\n"); err != nil {
		return err
	}
	const maxHead = 64 << 10
	r := bufio.NewReader(io.LimitReader(conn, maxHead))
	resp, err := http.ReadResponse(r, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil:
		return err
	case resp.StatusCode != http.StatusOK:
		return fmt.Errorf("it answers %s to CONNECT %s", resp.Status, to)
	case r.Buffered() > 0:
		return errors.New("it sends more than its answer")
	}
	return nil
}

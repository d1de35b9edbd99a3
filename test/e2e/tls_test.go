package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// A tlsPublisher is a publisher over TLS that can switch to a bad certificate.
type tlsPublisher struct {
	*publisher
	Roots string // PEM file of the authority that signed the good certificate
	bad   atomic.Bool
}

// newTLSPublisher returns a publisher with a self-signed certificate.
// Turn(true) switches to one that Roots has signed.
func newTLSPublisher(t testing.TB) *tlsPublisher {
	t.Helper()
	p := &tlsPublisher{publisher: &publisher{files: map[string]http.Handler{}, hits: map[string]int{}}}
	p.bad.Store(true)
	good, bad := certificate(t), certificate(t)
	p.Roots = filepath.Join(t.TempDir(), "roots.pem")
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: good.Certificate[0]})
	if err := os.WriteFile(p.Roots, b, 0o644); err != nil {
		t.Fatal(err)
	}
	p.Server = httptest.NewUnstartedServer(p)
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if p.bad.Load() {
			return &tls.Config{Certificates: []tls.Certificate{bad}}, nil
		}
		return &tls.Config{Certificates: []tls.Certificate{good}}, nil
	}}
	p.StartTLS()
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

// Turn switches the certificate and drops the connections made with the other
// one.
func (p *tlsPublisher) Turn(good bool) {
	p.bad.Store(!good)
	p.CloseClientConnections()
}

// certificate makes a self-signed certificate for 127.0.0.1.
func certificate(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "publisher"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

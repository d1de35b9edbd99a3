package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"

	"imageroot/shared/config"
)

// nbdTLS returns the configuration of TLS for NBD, or nil if there is no certificate. It
// reads the files again for each client, so that a renewed certificate needs no restart.
func nbdTLS(cfg config.Config, log *slog.Logger) (*tls.Config, error) {
	if cfg.NBDTLSCert == "" {
		return nil, nil
	}
	if _, err := readNBDTLS(cfg); err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		c, err := readNBDTLS(cfg)
		if err != nil {
			log.Error("no client of NBD is served", "error", err)
		}
		return c, err
	}}, nil
}

func readNBDTLS(cfg config.Config) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cfg.NBDTLSCert, cfg.NBDTLSKey)
	if err != nil {
		return nil, fmt.Errorf("the certificate of NBD cannot be used (--nbd-tls-cert, --nbd-tls-key): %w", err)
	}
	// Without tickets every client shows its certificate.
	c := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true}
	if cfg.NBDTLSClientCA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(cfg.NBDTLSClientCA)
	if err != nil {
		return nil, fmt.Errorf("the authorities of NBD clients cannot be read (--nbd-tls-client-ca): %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s has no certificate in PEM (--nbd-tls-client-ca)", cfg.NBDTLSClientCA)
	}
	return c, nil
}

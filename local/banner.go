package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"imageroot/local/doctor"
	"imageroot/shared/config"
)

// banner returns the text that the start prints: addresses, and generated credentials.
func (s *server) banner() string {
	var b strings.Builder
	line := func(what, is string) { fmt.Fprintf(&b, "  %-11s %s\n", what, is) }
	fmt.Fprintf(&b, "imageroot %s\n\n", config.Version())
	line("pages", doctor.LocalURL(s.listener.Addr().String(), "localhost"))
	if s.nbdListener != nil {
		line("nbd", strings.Replace(doctor.LocalURL(s.nbdListener.Addr().String(), "localhost"), "http:", "nbd:", 1))
	}
	if s.gateway != nil {
		line("s3", doctor.LocalURL(s.gateway.Addr(), "localhost"))
		line("images", filepath.Join(s.cfg.Data, s.cfg.ImageRoot.Bucket, s.cfg.ImageRoot.Prefix))
	} else {
		line("s3", s.cfg.S3Endpoint)
		line("images", s.cfg.ImageRoot.String())
	}
	if s.password != "" {
		line("password", s.password+" (not kept anywhere, not printed again; IMAGEROOT_PASSWORD sets another one)")
	}
	if c := s.credentials; c != nil {
		if c.freshPassword {
			line("password", c.Password)
		}
		if c.freshKeys {
			line("access key", c.AccessKey)
			line("secret key", c.SecretKey)
		}
		switch {
		case c.freshPassword || c.freshKeys:
			line("kept in", c.path+" (not printed again)")
		case c.Password == s.cfg.Password:
			line("log in", "with what "+c.path+" says")
		}
	}
	b.WriteString("\n")
	return b.String()
}

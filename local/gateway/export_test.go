package gateway

import (
	"log/slog"

	"github.com/versity/versitygw/s3err"
)

// Answer returns the error that a client gets for err.
func Answer(err error) s3err.S3Error {
	return (&backend{log: slog.New(slog.DiscardHandler)}).answer("test", place{}, err).(s3err.S3Error)
}

// Endpoint returns the URL of a gateway that listens on one address.
func (g *Gateway) Endpoint() string { return "http://" + g.Addr() }

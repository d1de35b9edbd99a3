package feed

import (
	"bytes"
	"io"

	"imageroot/shared/inventory"
	"imageroot/shared/problem"
)

const openPGPType = "application/pgp-signature"

// signed returns the encoder of the signature of a feed whose file has this name.
func signed(name string, encode encoder, sign func(k Signer, to io.Writer, message io.Reader, name string, on Server) error) encoder {
	return func(to io.Writer, s *inventory.Snapshot, on Server) error {
		key, err := on.Key()
		if err != nil {
			return err
		}
		message, feed := io.Pipe()
		go func() { feed.CloseWithError(encode(feed, s, on)) }()
		defer message.Close()
		var signature bytes.Buffer
		if err := sign(key, &signature, message, name, on); err != nil {
			return err
		}
		_, err = to.Write(signature.Bytes())
		return err
	}
}

func openPGP(k Signer, to io.Writer, message io.Reader, _ string, on Server) error {
	return k.SignOpenPGP(to, message, on.Now)
}

func miniSign(k Signer, to io.Writer, message io.Reader, name string, on Server) error {
	return k.SignMinisign(to, message, name, on.Now)
}

// Key returns the key that signs, or an error that says that there is none.
func (on *Server) Key() (Signer, error) {
	if on.SigningKey != nil {
		if key, err := on.SigningKey(); key != nil || err != nil {
			return key, err
		}
	}
	return nil, problem.New(problem.NotFound, "this server signs nothing: imageroot key makes its signing key")
}

// Package signing signs documents so that clients can tell that they come from this server:
// as OpenPGP (RFC 9580) does with a detached signature, and as minisign does. A [Key] has one
// key for each, which are not used for anything else.
package signing

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"aead.dev/minisign"
	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"imageroot/shared/record"
	"imageroot/shared/store"
)

// A Key signs. It is safe for concurrent use.
type Key struct {
	entity   *openpgp.Entity
	minisign minisign.PrivateKey
}

// A File is how a key is kept.
type File struct {
	record.Format
	OpenPGP  []byte `json:"openpgp"`  // a transferable secret key (RFC 9580, section 10.2)
	Minisign string `json:"minisign"` // an unencrypted secret key of minisign
}

// config makes OpenPGP keys that gpgv 2.2 reads: EdDSA of version 4.
func config(now time.Time) *packet.Config {
	return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return now }}
}

// New returns a new key with this name.
func New(name string, now time.Time) (*Key, error) {
	entity, err := openpgp.NewEntity(name, "", "", config(now))
	if err != nil {
		return nil, fmt.Errorf("make an OpenPGP key: %w", err)
	}
	_, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a minisign key: %w", err)
	}
	return &Key{entity, private}, nil
}

// Encode returns the key as [Decode] reads it. Who has it can sign.
func (k *Key) Encode() ([]byte, error) {
	var f File
	f.Schema = f.SchemaVersion()
	var entity bytes.Buffer
	if err := k.entity.SerializePrivate(&entity, nil); err != nil {
		return nil, err
	}
	text, err := k.minisign.MarshalText()
	if err != nil {
		return nil, err
	}
	f.OpenPGP, f.Minisign = entity.Bytes(), string(text)
	return json.MarshalIndent(f, "", "  ")
}

// Decode returns the key in data, which was read from path. It returns the errors of
// [record.Decode].
func Decode(path string, data []byte) (*Key, error) {
	f, err := record.Decode[File](store.Key(path), data)
	if err != nil {
		return nil, err
	}
	entity, err := openpgp.ReadEntity(packet.NewReader(bytes.NewReader(f.OpenPGP)))
	if err == nil && (entity.PrivateKey == nil || entity.PrivateKey.Encrypted) {
		err = errors.New("it has no secret key")
	}
	if err != nil {
		return nil, fmt.Errorf("%s: the OpenPGP key: %w", path, err)
	}
	k := &Key{entity: entity}
	if err := k.minisign.UnmarshalText([]byte(f.Minisign)); err != nil {
		return nil, fmt.Errorf("%s: the minisign key: %w", path, err)
	}
	return k, nil
}

// Fingerprint returns the fingerprint of the OpenPGP key in upper case hex.
func (k *Key) Fingerprint() string { return fmt.Sprintf("%X", k.entity.PrimaryKey.Fingerprint) }

// OpenPGP returns the public OpenPGP key, binary, as gpgv --keyring takes it.
func (k *Key) OpenPGP() ([]byte, error) {
	var b bytes.Buffer
	if err := k.entity.Serialize(&b); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Minisign returns the public key file of minisign. Its second line is the key.
func (k *Key) Minisign() ([]byte, error) {
	public, ok := k.minisign.Public().(minisign.PublicKey)
	if !ok {
		return nil, errors.New("not a minisign key")
	}
	text, err := public.MarshalText()
	return append(text, '\n'), err
}

// SignOpenPGP writes a detached signature of message, in ASCII.
func (k *Key) SignOpenPGP(to io.Writer, message io.Reader, now time.Time) error {
	return openpgp.ArmoredDetachSign(to, k.entity, message, config(now))
}

// ClearSign returns text with its signature inside (RFC 9580, section 7).
func (k *Key) ClearSign(text string, now time.Time) (string, error) {
	var b strings.Builder
	w, err := clearsign.Encode(&b, k.entity.PrivateKey, config(now))
	if err == nil {
		_, err = io.WriteString(w, text)
		err = errors.Join(err, w.Close())
	}
	return b.String() + "\n", err
}

// SignMinisign writes the signature file of message, which has this name.
func (k *Key) SignMinisign(to io.Writer, message io.Reader, name string, now time.Time) error {
	r := minisign.NewReader(message)
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	trusted := fmt.Sprintf("timestamp:%d\tfile:%s\thashed", now.Unix(), name)
	_, err := to.Write(r.SignWithComments(k.minisign, trusted, "signature of an imageroot server"))
	return err
}

package signing

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"aead.dev/minisign"
	"github.com/ProtonMail/go-crypto/openpgp"

	"imageroot/shared/record"
)

// A key that was kept signs as before, and its signatures fit its public half only.
func TestKey(t *testing.T) {
	t.Parallel()
	now := time.Now()
	made, err := New("test", now)
	if err != nil {
		t.Fatal(err)
	}
	text, err := made.Encode()
	if err != nil {
		t.Fatal(err)
	}
	key, err := Decode("signing.json", text)
	if err != nil {
		t.Fatal(err)
	}
	other, err := New("test", now)
	if err != nil {
		t.Fatal(err)
	}
	const message = "a list\n"
	var pgp, mini bytes.Buffer
	if err := errors.Join(key.SignOpenPGP(&pgp, strings.NewReader(message), now), key.SignMinisign(&mini, strings.NewReader(message), "LIST", now)); err != nil {
		t.Fatal(err)
	}
	for _, k := range []*Key{made, key, other} {
		for _, text := range []string{message, "another"} {
			right := k != other && text == message
			ring, err1 := k.OpenPGP()
			file, err2 := k.Minisign()
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			entities, err := openpgp.ReadKeyRing(bytes.NewReader(ring))
			if err != nil {
				t.Fatal(err)
			}
			_, err = openpgp.CheckArmoredDetachedSignature(entities, strings.NewReader(text), bytes.NewReader(pgp.Bytes()), nil)
			if (err == nil) != right {
				t.Errorf("OpenPGP, %q: %v", text, err)
			}
			var public minisign.PublicKey
			if err := public.UnmarshalText(bytes.TrimSpace(file)); err != nil {
				t.Fatal(err)
			}
			r := minisign.NewReader(strings.NewReader(text))
			if _, err := bytes.NewBuffer(nil).ReadFrom(r); err != nil {
				t.Fatal(err)
			}
			if got := r.Verify(public, mini.Bytes()); got != right {
				t.Errorf("minisign, %q: %v", text, got)
			}
			if bytes.ContainsRune(pgp.Bytes(), 0) || strings.Contains(string(ring), "PRIVATE") {
				t.Error("a signature with a zero byte, or a private key")
			}
		}
	}
	for _, bad := range []string{"", "{}", `{"openpgp": "AAAA", "minisign": "x"}`, string(text[:len(text)/2]), strings.Replace(string(text), "RWQ", "RWA", 1)} {
		if _, err := Decode("signing.json", []byte(bad)); err == nil {
			t.Errorf("%.40q is a key", bad)
		}
	}
	if _, err := Decode("signing.json", []byte(`{"schema": 99}`)); !errors.Is(err, record.ErrNewer) {
		t.Errorf("a newer file: %v", err)
	}
}

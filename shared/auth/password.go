package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

const (
	// MinPassword is the minimum length of a configured password, in bytes.
	MinPassword = 8
	maxPassword = 1024
)

// The cost of Argon2id (RFC 9106) is the minimum that OWASP recommends, to fit machines
// with little memory. The encoded hash includes it, so that it can be raised later.
const (
	argonTime    = 2
	argonKiB     = 19 << 10
	argonThreads = 1
	argonKey     = 32
)

// NewPassword returns a random password of 100 bits for the operator, in four groups
// of five lower-case letters and digits.
func NewPassword() string {
	s := strings.ToLower(rand.Text()[:20])
	return s[:5] + "-" + s[5:10] + "-" + s[10:15] + "-" + s[15:]
}

// hashPassword returns the encoded form of the password's argon2id hash.
func hashPassword(password string) string {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	key := argon2.IDKey([]byte(password), salt, argonTime, argonKiB, argonThreads, argonKey)
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, argonKiB, argonTime, argonThreads,
		base64.RawStdEncoding.EncodeToString(salt), base64.RawStdEncoding.EncodeToString(key))
}

// An argonHash is the parsed encoded form of an argon2id hash.
type argonHash struct {
	memory, time uint32
	threads      uint8
	salt, key    []byte
}

var errHash = errors.New("it is not an argon2id hash within the limits")

// parseHash parses the encoded form of a hash. It refuses costs that this program
// would not have chosen: verifying such a hash could exhaust memory or time.
func parseHash(encoded string) (h argonHash, err error) {
	var version int
	fields := strings.Split(encoded, "$")
	if len(fields) != 6 || fields[1] != "argon2id" {
		return h, errHash
	}
	if _, err := fmt.Sscanf(fields[2]+" "+fields[3], "v=%d m=%d,t=%d,p=%d", &version, &h.memory, &h.time, &h.threads); err != nil {
		return h, errHash
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.DecodeString(fields[4])
	h.key, err2 = base64.RawStdEncoding.DecodeString(fields[5])
	const mostKiB, mostTime = 1 << 20, 100
	if err1 != nil || err2 != nil || version != argon2.Version || len(h.key) == 0 ||
		h.memory == 0 || h.memory > mostKiB || h.time == 0 || h.time > mostTime || h.threads == 0 {
		return h, errHash
	}
	return h, nil
}

// verify reports whether encoded is the hash of password. It returns false if encoded
// does not parse.
func verify(encoded, password string) bool {
	h, err := parseHash(encoded)
	if err != nil {
		return false
	}
	got := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.key)))
	return subtle.ConstantTimeCompare(got, h.key) == 1
}

package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

const (
	// MinPassword is the fewest bytes of a password that is given.
	MinPassword = 8
	maxPassword = 1024
)

// Argon2id's cost: the least that OWASP recommends, since it has to work on a
// machine with little memory. It is written into the hash, so that it can be
// raised later.
const (
	argonTime    = 2
	argonKiB     = 19 << 10
	argonThreads = 1
	argonKey     = 32
)

// NewPassword returns a password to give to the operator, of 100 bits.
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

// verify reports whether encoded is the hash of password. A hash that is not
// of this form is nobody's.
func verify(encoded, password string) bool {
	var version int
	var memory, time uint32
	var threads uint8
	fields := strings.Split(encoded, "$")
	if len(fields) != 6 || fields[1] != "argon2id" {
		return false
	}
	if _, err := fmt.Sscanf(fields[2]+" "+fields[3], "v=%d m=%d,t=%d,p=%d", &version, &memory, &time, &threads); err != nil {
		return false
	}
	salt, err1 := base64.RawStdEncoding.DecodeString(fields[4])
	key, err2 := base64.RawStdEncoding.DecodeString(fields[5])
	const mostKiB, mostTime = 1 << 20, 100
	if err1 != nil || err2 != nil || version != argon2.Version || len(key) == 0 ||
		memory == 0 || memory > mostKiB || time == 0 || time > mostTime || threads == 0 {
		return false
	}
	got := argon2.IDKey([]byte(password), salt, time, memory, threads, uint32(len(key)))
	return subtle.ConstantTimeCompare(got, key) == 1
}

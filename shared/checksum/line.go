package checksum

import (
	"encoding/hex"
	"errors"
	"regexp"
	"strings"
)

// tagged matches "SHA256 (name) = hex" of BSD and of sha256sum --tag, and
// "SHA2-256(name)= hex" of openssl dgst. The name is greedy: it may itself
// have ") = " in it.
var tagged = regexp.MustCompile(`^([A-Za-z0-9/_-]+) ?\((.*)\) ?= ?([0-9A-Fa-f]+)[ \t]*$`)

var algorithmOfTag = map[string]string{
	"SHA256": SHA256, "SHA-256": SHA256, "SHA2-256": SHA256,
	"SHA512": SHA512, "SHA-512": SHA512, "SHA2-512": SHA512,
}

// hexDigits of each algorithm.
var hexDigits = map[string]int{SHA256: 64, SHA512: 128}

// parseLine reads one line that is not blank. It reports false for a line
// that is no digest at all. The algorithm is empty for a digest that is none
// of ours, the name for a digest without one.
func parseLine(line string) (entry, bool) {
	// GNU puts a backslash before a line whose name it had to escape.
	line, escaped := strings.CutPrefix(strings.TrimLeft(line, " \t"), `\`)
	var e entry
	if m := tagged.FindStringSubmatch(line); m != nil {
		e = entry{m[2], Sum{algorithmOfTag[strings.ToUpper(m[1])], strings.ToLower(m[3])}}
		if e.sum.Algorithm != "" && len(e.sum.Hex) != hexDigits[e.sum.Algorithm] {
			return entry{}, false
		}
	} else {
		digest, rest := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			digest, rest = line[:i], line[i+1:]
		}
		if !isDigest(digest) {
			return entry{}, false
		}
		e = entry{untaggedName(rest), Sum{algorithmOfLength(len(digest)), strings.ToLower(digest)}}
	}
	if escaped {
		e.name = unescape.Replace(e.name)
	}
	e.name = strings.TrimPrefix(e.name, "./")
	if e.name == "-" { // standard input: says nothing of a file
		e.name = ""
	}
	return e, true
}

// untaggedName returns the name in what follows the digest and one blank:
// another blank (text) or an asterisk (binary) and the name, or, as BSD's
// sha256 -r writes it, the name at once.
func untaggedName(rest string) string {
	if rest != "" && (rest[0] == ' ' || rest[0] == '*') {
		rest = rest[1:]
	}
	if strings.TrimSpace(rest) == "" {
		return ""
	}
	return rest
}

// unescape undoes GNU's escapes.
var unescape = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r")

// isDigest reports whether s looks like any digest: MD5 has 32 digits,
// SHA-512 has 128.
func isDigest(s string) bool {
	if len(s) < 32 || len(s) > 128 {
		return false
	}
	_, err := hex.DecodeString(s)
	return err == nil
}

func algorithmOfLength(digits int) string {
	for alg, n := range hexDigits {
		if n == digits {
			return alg
		}
	}
	return ""
}

const (
	beginSigned    = "-----BEGIN PGP SIGNED MESSAGE-----"
	beginSignature = "-----BEGIN PGP SIGNATURE-----"
	endSignature   = "-----END PGP SIGNATURE-----"
	beginPGP       = "-----BEGIN PGP "
)

// signedText returns text without the cleartext signature framework of RFC
// 9580, section 7, around it. Of a text that is signed in parts, only the
// signed parts count. A text that is not signed is returned as it is.
func signedText(text string) (string, error) {
	if !strings.Contains(text, beginPGP) {
		return text, nil
	}
	var b strings.Builder
	const (
		outside = iota
		headers
		body
		signature
	)
	state, messages := outside, 0
	for line := range strings.Lines(text) {
		bare := strings.TrimRight(line, " \t\r\n")
		switch {
		case state == outside && bare == beginSigned:
			state = headers
			messages++
		case state == headers && bare == "":
			state = body
		case state == body && bare == beginSignature:
			state = signature
		case state == body:
			b.WriteString(strings.TrimPrefix(line, "- "))
		case state == signature && bare == endSignature:
			state = outside
		}
	}
	switch {
	case messages == 0:
		return "", errors.New("this is a PGP signature or message, not a checksum list; give the URL of the list itself")
	case state != outside:
		return "", errors.New("the signed checksum list ends before its signature does; it was cut off")
	}
	return b.String(), nil
}

package checksum

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"regexp"
	"strings"
)

var (
	// tagged matches "SHA256 (name) = digest" of BSD and of GNU's --tag, and
	// "SHA2-256(name)= digest" of openssl dgst. The name is greedy: it may contain
	// ") = ".
	tagged = regexp.MustCompile(`^([A-Za-z0-9/_-]+) ?\((.*)\) ?= ?([0-9A-Za-z+/]+={0,2})[ \t]*$`)
	// prefixed matches "sha256:digest  name", "SHA256 = digest" and the
	// "sha256-digest" of subresource integrity.
	prefixed = regexp.MustCompile(`^([A-Za-z0-9/_-]+)(?: ?[:=] ?|-)([0-9A-Za-z+/]+={0,2})(?:[ \t](.*))?$`)
	// suffixed matches "name sha256:digest" and "name: sha256:digest".
	suffixed = regexp.MustCompile(`^(.+?):?[ \t]+([A-Za-z0-9/_-]+)[:=]([0-9A-Za-z+/]+={0,2})[ \t]*$`)

	// algorithmWords matches the names of algorithms in a title or a file name.
	algorithmWords = regexp.MustCompile(`(?i)\b(sha[- ]?(?:2-)?512[-/](?:224|256)|sha-?3(?:[- ]?(?:224|256|384|512))?|sha-?(?:2-)?(?:1|224|256|384|512)|md[245]` +
		`|blake-?[23][bsp]{0,2}|b[23]sum|sm3|keccak|shake-?(?:128|256)|whirlpool|streebog|gost|ripemd|rmd160)(?:-?\d{3})?s?(?:sums?)?\b`)
	// titleWords matches the rest of a title.
	titleWords = regexp.MustCompile(`(?i)^(?:[^\pL\pN]|checksums?|sums?|digests?|hash(?:es)?)*$`)
)

// algorithmNamed has the names of the algorithms of a [Sum].
var algorithmNamed = map[string]string{
	"SHA256": SHA256, "SHA-256": SHA256, "SHA2-256": SHA256, "SHA-2-256": SHA256,
	"SHA512": SHA512, "SHA-512": SHA512, "SHA2-512": SHA512, "SHA-2-512": SHA512,
}

// hexDigits is the length of a digest of each algorithm.
var hexDigits = map[string]int{SHA256: 64, SHA512: 128}

// otherDigits is the length, or the usual length, of digests of other algorithms.
var otherDigits = map[string]int{
	"BLAKE2B": 128, "BLAKE-2B": 128, "B2SUM": 128,
	"MD2": 32, "MD4": 32, "MD5": 32, "SHA1": 40, "SHA-1": 40, "SHA224": 56, "SHA-224": 56, "SHA384": 96, "SHA-384": 96,
}

// parseLine parses a line that is not blank. It returns false if the line has no
// digest. The algorithm is empty if it is not one of a [Sum], the name if the line has
// none. If the line does not name its algorithm, that is one of section (see
// [algorithmsIn]), unless section is empty.
func parseLine(line string, section []string) (entry, bool) {
	// GNU puts a backslash before a line whose name it had to escape.
	line, escaped := strings.CutPrefix(strings.TrimLeft(line, " \t"), `\`)
	e, ok := parseNamed(line)
	if !ok {
		first, rest := line, ""
		if i := strings.IndexAny(line, " \t"); i >= 0 {
			first, rest = line[:i], line[i+1:]
		}
		digits := hexOf(first)
		if digits == "" || tagged.MatchString(line) {
			return entry{}, false
		}
		e = entry{untaggedName(rest), Sum{algorithmOf(len(digits), section), digits}}
	}
	if escaped {
		e.name = unescape.Replace(e.name)
	}
	e.name = strings.TrimPrefix(e.name, "./")
	if e.name == "-" { // standard input, not a file
		e.name = ""
	}
	return e, true
}

// parseNamed parses a line that names its algorithm.
func parseNamed(line string) (entry, bool) {
	var tag, name, digest string
	isTagged := false
	if m := tagged.FindStringSubmatch(line); m != nil {
		isTagged, tag, name, digest = true, m[1], m[2], m[3]
	} else if m := prefixed.FindStringSubmatch(line); m != nil {
		tag, digest, name = m[1], m[2], untaggedName(m[3])
	} else if m := suffixed.FindStringSubmatch(line); m != nil {
		name, tag, digest = m[1], m[2], m[3]
	}
	alg := ""
	named, only := algorithmsIn(tag)
	if only {
		alg = algorithmNamed[named[0]]
	}
	digits := hexOf(digest)
	if digits == "" || !only && !isTagged || alg != "" && len(digits) != hexDigits[alg] {
		return entry{}, false
	}
	return entry{name, Sum{alg, digits}}, true
}

// hexOf returns the digest s in lower-case hexadecimal, or "" if s is not a digest. A
// digest has 32 (MD5) to 128 (SHA-512) hexadecimal digits, or is the base64 of 32 or 64
// bytes.
func hexOf(s string) string {
	if _, err := hex.DecodeString(s); err == nil && len(s) >= 32 && len(s) <= 128 {
		return strings.ToLower(s)
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 32 && len(b) != 64 {
		return ""
	}
	return hex.EncodeToString(b)
}

// untaggedName returns the name in the text after a digest and one blank: another
// blank (text) or an asterisk (binary) and the name, or, with BSD's sha256 -r, the
// name only.
func untaggedName(rest string) string {
	if rest != "" && (rest[0] == ' ' || rest[0] == '*') {
		rest = rest[1:]
	}
	if strings.TrimSpace(rest) == "" {
		return ""
	}
	return rest
}

// unescape reverses GNU's escapes.
var unescape = strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\r`, "\r")

// algorithmsIn returns the algorithms that text names, in upper case, and whether text
// is a title, which contains nothing else.
func algorithmsIn(text string) (algorithms []string, title bool) {
	text = strings.ReplaceAll(text, "_", "-")
	for _, m := range algorithmWords.FindAllStringSubmatch(text, -1) {
		algorithms = append(algorithms, strings.ToUpper(m[1]))
	}
	return algorithms, algorithms != nil && titleWords.MatchString(algorithmWords.ReplaceAllString(text, ""))
}

// algorithmOf returns the algorithm of a digest below a title that names the algorithms
// of section, or "" if it may be an algorithm that a [Sum] does not have. If the title
// names no algorithm with a digest of this length, the length alone decides.
func algorithmOf(digits int, section []string) string {
	ours, other, cut := "", false, false
	for _, name := range section {
		switch alg := algorithmNamed[name]; {
		case alg != "":
			if hexDigits[alg] == digits {
				ours = alg
			}
		case otherDigits[name] == 0 || otherDigits[name] == digits:
			other = true
		case strings.HasPrefix(name, "B"): // BLAKE2b can have any length
			cut = true
		}
	}
	switch {
	case other, ours == "" && cut:
		return ""
	case ours != "":
		return ours
	}
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

// signedText returns the signed parts of a text with cleartext signatures (RFC 9580
// section 7), and any other text unchanged.
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

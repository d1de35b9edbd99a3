package checksum

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"imageroot/shared/image"
)

// digest returns n digits that differ from those of any other c.
func digest(c byte, n int) string { return strings.Repeat(string(c), n) }

var (
	a256, b256, c256 = digest('a', 64), digest('b', 64), digest('c', 64)
	a512, b512       = digest('a', 128), digest('b', 128)
	md5Sum, sha1Sum  = digest('d', 32), digest('e', 40)
)

const signature = `-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE0123456789abcdefABCDEFGHIJKLMNOPQRSTUVWXYZ+/AAAA
-----END PGP SIGNATURE-----
`

// publishers are lists in the forms that real publishers use.
var publishers = []struct {
	name, list, file string
	want             Sum
}{
	{
		"ubuntu SHA256SUMS",
		a256 + " *ubuntu-24.04.1-desktop-amd64.iso\n" + b256 + " *ubuntu-24.04.1-live-server-amd64.iso\n",
		"ubuntu-24.04.1-live-server-amd64.iso",
		Sum{SHA256, b256},
	},
	{
		"debian SHA512SUMS",
		a512 + "  debian-12-generic-amd64.json\n" + b512 + "  debian-12-generic-amd64.qcow2\n" + a512 + "  debian-12-generic-amd64.tar.xz\n",
		"debian-12-generic-amd64.qcow2",
		Sum{SHA512, b512},
	},
	{
		"fedora CHECKSUM",
		"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" +
			"# Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2: 491716608 bytes\n" +
			"SHA256 (Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2) = " + a256 + "\n" +
			"# Fedora-Cloud-Base-GCE-41-1.4.x86_64.tar.gz: 1 bytes\n" +
			"SHA256 (Fedora-Cloud-Base-GCE-41-1.4.x86_64.tar.gz) = " + b256 + "\n" + signature,
		"Fedora-Cloud-Base-Generic-41-1.4.x86_64.qcow2",
		Sum{SHA256, a256},
	},
	{
		"rocky CHECKSUM",
		"# Rocky-9-GenericCloud.latest.x86_64.qcow2: 609812480 bytes\nSHA256 (Rocky-9-GenericCloud.latest.x86_64.qcow2) = " + a256 + "\n",
		"Rocky-9-GenericCloud.latest.x86_64.qcow2",
		Sum{SHA256, a256},
	},
	{
		"freebsd CHECKSUM.SHA256",
		"SHA256 (FreeBSD-14.1-RELEASE-amd64-bootonly.iso) = " + a256 + "\nSHA256 (FreeBSD-14.1-RELEASE-amd64-disc1.iso.xz) = " + b256 + "\n",
		"FreeBSD-14.1-RELEASE-amd64-disc1.iso.xz",
		Sum{SHA256, b256},
	},
	{"alpine .sha512", a512 + "  alpine-virt-3.20.3-x86_64.iso\n", "alpine-virt-3.20.3-x86_64.iso", Sum{SHA512, a512}},
	{"raspberry pi os .sha256", a256 + "  2024-07-04-raspios-bookworm-arm64-lite.img.xz\n", "2024-07-04-raspios-bookworm-arm64-lite.img.xz", Sum{SHA256, a256}},
	{
		"arch sha256sums.txt",
		a256 + "  archlinux-2024.10.01-x86_64.iso\n" + a256 + "  archlinux-x86_64.iso\n" + b256 + "  archlinux-bootstrap-x86_64.tar.zst\n",
		"archlinux-x86_64.iso",
		Sum{SHA256, a256},
	},
	{"bare digest", a256 + "\n", "any.img", Sum{SHA256, a256}},
	{"dot and directory", a256 + "  ./cloud/x.img\n" + b256 + "  ./cloud/y.img\n", "y.img", Sum{SHA256, b256}},
}

func TestPublishers(t *testing.T) {
	for _, tt := range publishers {
		t.Run(tt.name, func(t *testing.T) {
			expect(t, tt.list, tt.file, tt.want)
			// The same list as a Windows editor leaves it.
			expect(t, "\ufeff"+strings.ReplaceAll(tt.list, "\n", "\r\n"), tt.file, tt.want)
			// And without its last newline.
			expect(t, strings.TrimRight(tt.list, "\n"), tt.file, tt.want)
		})
	}
}

func expect(t *testing.T, list, file string, want Sum) {
	t.Helper()
	l, err := Parse(strings.NewReader(list))
	if err != nil {
		t.Fatalf("Parse(%q): %v", list, err)
	}
	got, err := l.Find(file)
	if err != nil || got != want {
		t.Errorf("Find(%q) = %v, %v; want %v", file, got, err, want)
	}
}

func TestFind(t *testing.T) {
	tests := []struct {
		name, list, file string
		want             Sum
	}{
		{"bare, upper case, blank lines and comments", "\n# of the image\n  " + strings.ToUpper(a256) + "  \n\n", "x.img", Sum{SHA256, a256}},
		{"bare SHA-512", b512, "x.img", Sum{SHA512, b512}},
		{"bare, both algorithms", b512 + "\n" + a256, "x.img", Sum{SHA256, a256}},
		{"bare, beside a bare MD5", md5Sum + "\n" + a256, "x.img", Sum{SHA256, a256}},
		{"of standard input", a256 + "  -\n", "x.img", Sum{SHA256, a256}},
		{"both algorithms, SHA-512 first", a512 + "  x.img\n" + b256 + "  x.img\n", "x.img", Sum{SHA256, b256}},
		{"MD5 and SHA-1 beside", md5Sum + "  x.img\n" + sha1Sum + "  x.img\nMD5 (x.img) = " + md5Sum + "\n" + a512 + "  x.img\n", "x.img", Sum{SHA512, a512}},
		{"BSD, both", "SHA512 (x.img) = " + a512 + "\nSHA256 (x.img) = " + a256, "x.img", Sum{SHA256, a256}},
		{"BSD, upper case, parentheses in the name", "SHA256 (x (1) = y.img) = " + strings.ToUpper(a256), "x (1) = y.img", Sum{SHA256, a256}},
		{"BSD, other algorithms", "SHA512/256 (x.img) = " + b256 + "\nBLAKE2b (x.img) = " + b512 + "\nSHA256 (x.img) = " + a256, "x.img", Sum{SHA256, a256}},
		{"openssl", "SHA2-256(x.img)= " + a256, "x.img", Sum{SHA256, a256}},
		{"sha256 -r", a256 + " x.img", "x.img", Sum{SHA256, a256}},
		{"tab", a256 + "\tx.img", "x.img", Sum{SHA256, a256}},
		{"aligned with blanks", a256 + "     x.img", "x.img", Sum{SHA256, a256}},
		{"trailing blanks", a256 + "  x.img \t", "x.img", Sum{SHA256, a256}},
		{"the name begins with a blank", a256 + "   x.img\n" + b256 + "  x.img\n", " x.img", Sum{SHA256, a256}},
		{"the name begins with an asterisk", a256 + "  *x.img\n" + b256 + " *x.img\n", "*x.img", Sum{SHA256, a256}},
		{"spaces and non-ASCII", a256 + "  Übung 1+1 #2 50%.img\n", "Übung 1+1 #2 50%.img", Sum{SHA256, a256}},
		{"GNU escapes", `\` + a256 + `  a\\b\nc.img` + "\n" + b256 + `  anb.img`, "b\nc.img", Sum{SHA256, a256}},
		{"GNU escapes, tagged", `\SHA256 (a\nb.img) = ` + a256, "a\nb.img", Sum{SHA256, a256}},
		{"backslash without escape mark", a256 + ` *release\x.img`, "x.img", Sum{SHA256, a256}},
		{"listed twice, agreeing", a256 + "  x.img\n" + strings.ToUpper(a256) + " *x.img\n", "x.img", Sum{SHA256, a256}},
		{"two directories, agreeing", a256 + "  a/x.img\n" + a256 + "  b/x.img\n", "x.img", Sum{SHA256, a256}},
		{"the name itself before directories", b256 + "  old/x.img\n" + a256 + "  ./x.img\n" + c256 + "  older/x.img\n", "x.img", Sum{SHA256, a256}},
		{"others listed twice", a256 + "  x.img\n" + a256 + "  y.img\n" + b256 + "  y.img\n", "x.img", Sum{SHA256, a256}},
		{"prose around", "The sums of release 1:\n" + a256 + "  x.img\nVerify with sha256sum -c.\n", "x.img", Sum{SHA256, a256}},
		{"a bare digest beside names", b256 + "\n" + a256 + "  x.img\n", "x.img", Sum{SHA256, a256}},
		{
			"clear-signed, dash-escaped, text outside",
			b256 + "  x.img\n-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\nComment: x\n\n- ----- sums -----\n- " + a256 + "  x.img\n" + signature + b256 + "  x.img\n",
			"x.img",
			Sum{SHA256, a256},
		},
		{"clear-signed without headers", "-----BEGIN PGP SIGNED MESSAGE-----\n\n" + a256 + "  x.img\n" + signature, "x.img", Sum{SHA256, a256}},
		{"clear-signed bare digest", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + a256 + "\n" + signature, "x.img", Sum{SHA256, a256}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { expect(t, tt.list, tt.file, tt.want) })
	}
}

func TestErrors(t *testing.T) {
	var many strings.Builder
	for i := range 14 {
		fmt.Fprintf(&many, "%s  n%d.img\n%s  n%d.img\n", a256, i, a512, i)
	}
	tests := []struct {
		name, list, want string
	}{
		{"empty", "", "no SHA-256 or SHA-512 digest"},
		{"only comments", "# nothing\n\n", "no SHA-256 or SHA-512 digest"},
		{"only MD5", md5Sum + "  x.img\n", "too weak"},
		{"digest cut short", "SHA256 (x.img) = " + a256[1:] + "\n", "no SHA-256 or SHA-512 digest"},
		{"not hexadecimal", strings.Repeat("g", 64) + "  x.img\n", "no SHA-256 or SHA-512 digest"},
		{"web page", "\n <!DOCTYPE html>\n<html>" + a256 + "</html>", "web page"},
		{"S3 error", "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>", "web page or an XML error"},
		{"detached signature", signature, "PGP signature"},
		{"signed list cut off", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + a256 + "  x.img\n", "cut off"},
		{"binary", "\x00\x01" + a256 + "  x.img\n", "not UTF-8 text"},
		{"too large", strings.Repeat("#", MaxBytes+1), "larger than 1 MiB"},
		{"bare in prose", "old.img:\n" + a256 + "\n", "must stand alone"},
		{"two bare digests", a256 + "\n" + b256 + "\n", "two different sha256 digests"},
		{"listed twice", a256 + "  x.img\n" + b256 + "  x.img\n", `gives "x.img" two different sha256 digests, ` + a256 + " and " + b256},
		{"listed twice, the other algorithm agrees", a512 + "  x.img\n" + a256 + "  x.img\n" + b256 + "  x.img\n", "two different sha256 digests"},
		{"two directories", a256 + "  a/x.img\n" + b256 + "  b/x.img\n", "two different sha256 digests"},
		{"absent", a256 + "  y.img\n" + b256 + "  z.img\n", `does not name "x.img"; it lists "y.img", "z.img"`},
		{"absent, many", many.String(), `"n9.img" and 4 more`},
		{"absent, other case", a256 + "  X.img\n", `does not name "x.img"`},
		{"absent, suffix of another", a256 + "  ax.img\n", `does not name "x.img"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Parse(strings.NewReader(tt.list))
			if err == nil {
				_, err = l.Find("x.img")
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
}

func TestParseAtTheLimit(t *testing.T) {
	line := a256 + "  x.img\n"
	list := strings.Repeat("#", MaxBytes-len(line)-1) + "\n" + line
	expect(t, list, "x.img", Sum{SHA256, a256})
}

func TestParseReadError(t *testing.T) {
	broken := errors.New("connection reset")
	_, err := Parse(io.MultiReader(strings.NewReader(a256+"  x.img\n"), iotest.ErrReader(broken)))
	if !errors.Is(err, broken) {
		t.Errorf("Parse = %v, want %v wrapped", err, broken)
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range publishers {
		f.Add([]byte(p.list), p.file)
	}
	f.Add([]byte(`\`+a256+`  a\\b\nc.img`), ") = x.img")
	f.Add([]byte("\ufeff"+a256+"\r\n"), " x.img ")
	f.Fuzz(func(t *testing.T, data []byte, name string) {
		if l, err := Parse(strings.NewReader(string(data))); err == nil {
			sum, err := l.Find(name)
			switch {
			case err != nil:
				if n := len(err.Error()); n > 20_000+12*len(name) {
					t.Errorf("an error of %d bytes", n)
				}
			case len(sum.Hex) != hexDigits[sum.Algorithm] || strings.Trim(sum.Hex, "0123456789abcdef") != "":
				t.Errorf("Find = %+v", sum)
			}
		}
		// Whatever an image may be called, its own line finds it.
		if !image.IsName(name) {
			return
		}
		for _, line := range []string{a256 + "  " + name, a256 + " *" + name, a256 + "  ./" + name, "SHA256 (" + name + ") = " + a256} {
			expect(t, b256+"  other\x01\n"+line+"\n", name, Sum{SHA256, a256})
		}
	})
}

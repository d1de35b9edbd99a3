package checksum

import (
	"encoding/base64"
	"encoding/hex"
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

// b64 is a hexadecimal digest in base64.
func b64(digits string) string {
	b, _ := hex.DecodeString(digits) // of digest
	return base64.StdEncoding.EncodeToString(b)
}

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
	{"dot and directory", a256 + "  ./cloud/x.img\n" + b256 + "  ./cloud/y.img\n", "cloud/y.img", Sum{SHA256, b256}},
	{
		"debian netboot",
		a256 + "  ./netboot/gtk/mini.iso\n" + b256 + "  ./netboot/mini.iso\n" + c256 + "  ./netboot/xen/mini.iso\n",
		"netboot/mini.iso",
		Sum{SHA256, b256},
	},
	{
		"gentoo DIGESTS",
		"# BLAKE2B HASH\n" + b512 + "  di-amd64-console.qcow2\n# SHA512 HASH\n" + a512 + "  di-amd64-console.qcow2\n",
		"di-amd64-console.qcow2",
		Sum{SHA512, a512},
	},
	{
		"clonezilla CHECKSUMS.TXT",
		"### MD5SUMS:\n" + md5Sum + "  clonezilla-live-3.1.iso\n### SHA1SUMS:\n" + sha1Sum + "  clonezilla-live-3.1.iso\n### SHA256SUMS:\n" +
			a256 + "  clonezilla-live-3.1.iso\n### SHA512SUMS:\n" + a512 + "  clonezilla-live-3.1.iso\n### B2SUMS:\n" + b512 + "  clonezilla-live-3.1.iso\n",
		"clonezilla-live-3.1.iso",
		Sum{SHA256, a256},
	},
}

func TestPublishers(t *testing.T) {
	for _, tt := range publishers {
		t.Run(tt.name, func(t *testing.T) {
			expect(t, tt.list, tt.file, tt.want)
			// The same list as saved by a Windows editor.
			expect(t, "\ufeff"+strings.ReplaceAll(tt.list, "\n", "\r\n"), tt.file, tt.want)
			// And without its last newline.
			expect(t, strings.TrimRight(tt.list, "\n"), tt.file, tt.want)
		})
	}
}

func expect(t *testing.T, list, file string, want Sum) {
	t.Helper()
	l, err := Parse(strings.NewReader(list), "host/dir/SUMS")
	if err != nil {
		t.Fatalf("Parse(%q): %v", list, err)
	}
	got, err := l.Find("host/dir/" + file)
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
		{"decomposed in the list", a256 + "  U\u0308bung.img\n", "\u00dcbung.img", Sum{SHA256, a256}},
		{"composed in the list", a256 + "  \u00dcbung.img\n", "U\u0308bung.img", Sum{SHA256, a256}},
		{"GNU escapes", `\` + a256 + `  a\\b\nc.img` + "\n" + b256 + `  anb.img`, "a/b\nc.img", Sum{SHA256, a256}},
		{"GNU escapes, tagged", `\SHA256 (a\nb.img) = ` + a256, "a\nb.img", Sum{SHA256, a256}},
		{"backslash without escape mark", a256 + ` *release\x.img`, "release/x.img", Sum{SHA256, a256}},
		{"listed twice, agreeing", a256 + "  x.img\n" + strings.ToUpper(a256) + " *x.img\n", "x.img", Sum{SHA256, a256}},
		{"base64", b64(a256) + "  x.img\n", "x.img", Sum{SHA256, a256}},
		{"base64, tagged", "SHA512 (x.img) = " + b64(a512) + "\n", "x.img", Sum{SHA512, a512}},
		{"base64, of subresource integrity", "sha256-" + b64(a256) + "\n", "x.img", Sum{SHA256, a256}},
		{"prefixed", "sha256:" + a256 + "  x.img\n", "x.img", Sum{SHA256, a256}},
		{"prefixed, bare", "sha512:" + a512 + "\n", "x.img", Sum{SHA512, a512}},
		{"prefixed, as a field", "SHA256: " + strings.ToUpper(a256) + "\n", "x.img", Sum{SHA256, a256}},
		{"prefixed, behind the name", "x.img: sha256:" + a256 + "\ny.img: sha256:" + b256 + "\n", "x.img", Sum{SHA256, a256}},
		{"prefixed, another algorithm beside", "blake2b:" + b512 + "  x.img\nsha512:" + a512 + "  x.img\n", "x.img", Sum{SHA512, a512}},
		{"below titles", "SHA3-256:\n" + b256 + "  x.img\n\nSHA-256 checksums\n" + a256 + "  x.img\n", "x.img", Sum{SHA256, a256}},
		{"below a title, bare", "SHA256\n" + a256 + "\n", "x.img", Sum{SHA256, a256}},
		{"below a title of two", "# SHA256 and BLAKE2b\n" + a256 + "  x.img\n" + b512 + "  x.img\n", "x.img", Sum{SHA256, a256}},
		{"below a title of another length", "# signed with RSA/SHA512\n" + a256 + "  x.img\n", "x.img", Sum{SHA256, a256}},
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
		{"only SHA-3", "# SHA3-256\n" + a256 + "  x.img\n", "too weak or not known"},
		{"only BLAKE2b", "BLAKE2b (x.img) = " + a512 + "\n", "too weak or not known"},
		{"only BLAKE2b, of 256 bits", "# BLAKE2b\n" + a256 + "  x.img\n", "too weak or not known"},
		{"only BLAKE2b, prefixed", "blake2b:" + a512 + "  x.img\n", "too weak or not known"},
		{"which of two is not said", "SHA512 or BLAKE2b sums:\n" + a512 + "  x.img\n", "too weak or not known"},
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
		{"other directories", a256 + "  a/x.img\n" + b256 + "  b/x.img\n", `does not name "x.img"; it lists "a/x.img"`},
		{"absent", a256 + "  y.img\n" + b256 + "  z.img\n", `does not name "x.img"; it lists "y.img", "z.img"`},
		{"absent, many", many.String(), `"n9.img" and 4 more`},
		{"absent, other case", a256 + "  X.img\n", `does not name "x.img"`},
		{"absent, suffix of another", a256 + "  ax.img\n", `does not name "x.img"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l, err := Parse(strings.NewReader(tt.list), "host/dir/SUMS")
			if err == nil {
				_, err = l.Find("host/dir/x.img")
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one that says %q", err, tt.want)
			}
		})
	}
}

// TestLocations finds images by their location and that of the list.
func TestLocations(t *testing.T) {
	const debian = "deb.example/dists/stable/images/"
	tree := a256 + "  ./netboot/gtk/mini.iso\n" + b256 + "  ./mini.iso\n"
	line := func(name string) string { return a256 + "  " + name + "\n" }
	for _, tt := range []struct{ name, list, location, image, want string }{
		{"a path from the list", tree, debian + "SHA256SUMS", debian + "netboot/gtk/mini.iso", a256},
		{"beside the list", tree, debian + "SHA256SUMS", debian + "mini.iso", b256},
		{"a file of that name elsewhere", tree, debian + "SHA256SUMS", debian + "netboot/mini.iso", `does not name "mini.iso"`},
		{"a mirror", tree, debian + "SHA256SUMS", "mirror.example/debian/netboot/gtk/mini.iso", a256},
		{"another directory of the same server", tree, debian + "SHA256SUMS", "deb.example/dists/trixie/images/netboot/gtk/mini.iso", a256},
		{"a mirror, in another directory", line("./netboot/gtk/mini.iso"), debian + "SHA256SUMS", "mirror.example/gtk/mini.iso", "does not name"},
		{"a directory up", line("../iso/x.iso"), "h/sums/SHA256SUMS", "h/iso/x.iso", a256},
		{"a list of names, a directory up", line("x.iso"), "h/release/SHA256SUMS", "h/release/iso/x.iso", a256},
		{"a list of names, elsewhere", line("x.iso"), "h/sums/SHA256SUMS", "h/iso/x.iso", a256},
		{"named after the image, with a directory of the build", line("/home/build/out/x.img"), "h/d/x.img.sha256", "h/d/x.img", a256},
		{"not named after the image", line("/home/build/out/x.img"), "h/d/SHA256SUMS", "h/d/x.img", "does not name"},
		{"named after the image, another name", line("build-17.img"), "h/d/x.img.sha256", "h/d/x.img", `only line is of "build-17.img"`},
		{"of what is compressed", line("x.img"), "h/d/x.img.xz.sha256", "h/d/x.img.xz", `"x.img", which is what "x.img.xz" decompresses to`},
		{"the list's name says SHA3", line("x.img"), "h/d/SHA3-256SUMS", "h/d/x.img", "too weak or not known"},
		{"the list's name says BLAKE2b", digest('a', 128) + "  x.img\n", "h/d/b2sums.txt", "h/d/x.img", "too weak or not known"},
		{"the list's name says BLAKE2b, a title SHA-512", "SHA512:\n" + digest('a', 128) + "  x.img\n", "h/d/b2sums.txt", "h/d/x.img", a512},
		{"the list's name says no algorithm", line("tiger.img"), "h/d/tiger-shake.CHECKSUM", "h/d/tiger.img", a256},
		{"the image's name says SHA-512", line("x-sha512.img"), "h/d/x-sha512.img.sha256", "h/d/x-sha512.img", a256},
	} {
		l, err := Parse(strings.NewReader(tt.list), tt.location)
		var got Sum
		if err == nil {
			got, err = l.Find(tt.image)
		}
		if said := fmt.Sprint(got.Hex, err); !strings.Contains(said, tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, said, tt.want)
		}
	}
}

func TestParseAtTheLimit(t *testing.T) {
	line := a256 + "  x.img\n"
	list := strings.Repeat("#", MaxBytes-len(line)-1) + "\n" + line
	expect(t, list, "x.img", Sum{SHA256, a256})
}

func TestParseReadError(t *testing.T) {
	broken := errors.New("connection reset")
	_, err := Parse(io.MultiReader(strings.NewReader(a256+"  x.img\n"), iotest.ErrReader(broken)), "SUMS")
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
		if l, err := Parse(strings.NewReader(string(data)), "SUMS"); err == nil {
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
		// Find finds every valid image name by its line.
		if !image.Name(name).Valid() {
			return
		}
		for _, line := range []string{"sha256:" + a256 + "  " + name, a256 + "  " + name, a256 + " *" + name, a256 + "  ./" + name, "SHA256 (" + name + ") = " + a256} {
			expect(t, b256+"  other\x01\n"+line+"\n", name, Sum{SHA256, a256})
		}
	})
}

package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"imageroot/test/minio"
	"imageroot/test/runner"
	"imageroot/test/strip"
)

// TestPrivateCA trusts a TLS server whose certificate a private authority has
// signed, if either of the usual variables names the authority.
func TestPrivateCA(t *testing.T) {
	t.Parallel()
	ca, certs := authority(t)
	s := start(t, minio.Options{Certs: certs})
	for _, name := range []string{"AWS_CA_BUNDLE", "SSL_CERT_FILE"} {
		t.Run(name, func(t *testing.T) {
			trust := name + "=" + ca
			ir := run(t, launch(t, s.URL, trust, "IMAGEROOT_EVENTS=poll"))
			data := content(1, 1<<20)
			tool(t, append(keys(s.URL), "AWS_CA_BUNDLE="+ca), "aws", "--endpoint-url", s.URL, "s3", "cp", "--only-show-errors", file(t, data), "s3://images/a.img")
			ir.knows(t, map[string][]byte{"a.img": data})
		})
	}
	t.Run("not named", func(t *testing.T) {
		refused(t, launch(t, s.URL), "AWS_CA_BUNDLE", s.URL)
	})
	t.Run("a file that is none", func(t *testing.T) {
		refused(t, launch(t, s.URL, "AWS_CA_BUNDLE="+file(t, []byte("no certificate"))), "CA")
	})
}

// authority makes an authority, and a certificate for loopback that it has
// signed. It returns the path of the former, and the directory of the latter.
func authority(t *testing.T) (ca, certs string) {
	t.Helper()
	dir := t.TempDir()
	certs = filepath.Join(dir, "certs")
	if err := os.MkdirAll(certs, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(path, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	sign := func(template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) []byte {
		t.Helper()
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "an authority of one's own"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	ca = filepath.Join(dir, "ca.pem")
	write(ca, "CERTIFICATE", sign(root, root, caKey, caKey))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "minio"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	write(filepath.Join(certs, "public.crt"), "CERTIFICATE", sign(leaf, root, key, caKey))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(filepath.Join(certs, "private.key"), "PRIVATE KEY", der)
	return ca, certs
}

// rights is a policy of all rights that imageroot needs on its buckets.
func rights(buckets ...string) map[string]any {
	var of, in []string
	for _, b := range buckets {
		of, in = append(of, "arn:aws:s3:::"+b), append(in, "arn:aws:s3:::"+b+"/*")
	}
	return map[string]any{"Version": "2012-10-17", "Statement": []any{
		map[string]any{"Effect": "Allow", "Action": []string{"s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:ListenBucketNotification"}, "Resource": of},
		map[string]any{"Effect": "Allow", "Action": []string{"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}, "Resource": in},
	}}
}

// user creates a user with those rights, and returns its keys.
func user(t *testing.T, s *minio.Server, name string, policy map[string]any) []string {
	t.Helper()
	const secret = "secret-of-the-user"
	p, err := json.Marshal(policy)
	if err != nil {
		t.Fatal(err)
	}
	admin := func(args ...string) { tool(t, keys(s.URL), mc, append([]string{"admin"}, args...)...) }
	admin("user", "add", "s3", name, secret)
	admin("policy", "create", "s3", name, file(t, p))
	admin("policy", "attach", "s3", name, "--user", name)
	return []string{"AWS_ACCESS_KEY_ID=" + name, "AWS_SECRET_ACCESS_KEY=" + secret}
}

// TestBucketsOfOthers prints the one command that creates the buckets if the
// user may not, and starts after an administrator has run it.
func TestBucketsOfOthers(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	o := launch(t, s.URL, append(user(t, s, "operator", rights("images", "catalog")), "IMAGEROOT_EVENTS=poll")...)
	line := refused(t, o, "images", "catalog")
	command := line[strings.Index(line, "aws --endpoint-url"):]
	command, _, _ = strings.Cut(command, " (")
	tool(t, keys(s.URL), "sh", "-c", command)
	ir := run(t, o)
	data := content(1, 1<<20)
	uploaders["aws"](t, s.URL, file(t, data), "a.img")
	ir.knows(t, map[string][]byte{"a.img": data})
	// Rights on one of the two are not enough, and the error names the other.
	line = refused(t, launch(t, s.URL, user(t, s, "half", rights("images"))...), "catalog")
	if strings.Contains(line, "s3://images") {
		t.Errorf("it asks for a bucket that is there: %s", line)
	}
	refused(t, launch(t, s.URL, "AWS_ACCESS_KEY_ID=nobody", "AWS_SECRET_ACCESS_KEY=nobodys-secret"), "AWS_ACCESS_KEY_ID", "does not accept")
	refused(t, launch(t, s.URL, "AWS_SECRET_ACCESS_KEY=wrong-secret"), "AWS_SECRET_ACCESS_KEY", "does not accept")
}

// TestOneBucket uses one bucket, beside other objects in it.
func TestOneBucket(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	tool(t, keys(s.URL), mc, "mb", "--quiet", "s3/images")
	uploaders["mc"](t, s.URL, file(t, []byte("of others")), "theirs.img")
	ir := run(t, launch(t, s.URL, append(user(t, s, "operator", rights("images")),
		"IMAGEROOT_EVENTS=poll", "IMAGEROOT_IMAGE_ROOT=s3://images/os", "IMAGEROOT_CATALOG_ROOT=s3://images/of imageroot/")...))
	want := map[string][]byte{}
	for how, upload := range uploaders {
		want[how+".img"] = content(uint64(len(want)), 6<<20)
		upload(t, s.URL, file(t, want[how+".img"]), "os/"+how+".img")
	}
	uploaders["aws"](t, s.URL, file(t, []byte("below")), "os/below/that.img")
	ir.knows(t, want)
	if listing := tool(t, keys(s.URL), mc, "ls", "s3/images/"); strings.Count(listing, "\n") != 3 {
		t.Errorf("in the bucket beside os/ and theirs.img is more than one place:\n%s", listing)
	}
}

// TestNoCompareAndSwap refuses a server without compare-and-swap at the start.
func TestNoCompareAndSwap(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	for header, what := range map[string]string{"If-Match": "conditional replace", "If-None-Match": "conditional create"} {
		proxy, err := strip.Proxy(s.URL, minio.AccessKey, minio.SecretKey, http.MethodPut, header)
		if err != nil {
			t.Fatal(err)
		}
		front := httptest.NewServer(proxy)
		defer front.Close()
		refused(t, launch(t, front.URL), what, header, front.URL)
	}
	if left := tool(t, keys(s.URL), mc, "ls", "--recursive", "s3/catalog"); left != "" {
		t.Errorf("left over:\n%s", left)
	}
}

// TestChecksum tests what docs/providers.md says of checksums: bytes that do
// not match are refused.
func TestChecksum(t *testing.T) {
	t.Parallel()
	s := start(t, minio.Options{})
	tool(t, keys(s.URL), mc, "mb", "--quiet", "s3/images")
	data := content(1, 1000)
	for announced, good := range map[string]bool{sum(data): true, sum(content(2, 1000)): false} {
		raw, err := hex.DecodeString(announced)
		if err != nil {
			t.Fatal(err)
		}
		_, err = tryTool(t, keys(s.URL), "aws", "--endpoint-url", s.URL, "s3api", "put-object", "--bucket", "images", "--key", announced,
			"--body", file(t, data), "--checksum-sha256", base64.StdEncoding.EncodeToString(raw))
		if (err == nil) != good {
			t.Errorf("with the sum %s: %v", announced, err)
		}
	}
	if listing := tool(t, keys(s.URL), mc, "ls", "s3/images/"); strings.Count(listing, "\n") != 1 {
		t.Errorf("in the bucket is not what was good alone:\n%s", listing)
	}
}

// TestGatewayInside puts images into the gateway inside with mc.
func TestGatewayInside(t *testing.T) {
	t.Parallel()
	ir := run(t, runner.Options{Binary: imageroot, Dir: t.TempDir(), Env: append(keys(""),
		"PATH="+os.Getenv("PATH"), "HOME="+t.TempDir(), "TMPDIR="+os.TempDir(), "IMAGEROOT_LISTEN=127.0.0.1:0", "IMAGEROOT_S3_LISTEN=127.0.0.1:0", "IMAGEROOT_TOKEN="+token,
		"IMAGEROOT_S3_ACCESS_KEY="+minio.AccessKey, "IMAGEROOT_S3_SECRET_KEY="+minio.SecretKey)})
	small, large := content(1, 1000), content(2, 40<<20)
	uploaders["mc"](t, ir.S3, file(t, small), "a b+c%41.img")
	uploaders["mc"](t, ir.S3, file(t, large), "large.img")
	ir.knows(t, map[string][]byte{"a b+c%41.img": small, "large.img": large})
	back := filepath.Join(t.TempDir(), "back")
	tool(t, keys(ir.S3), mc, "cp", "--quiet", "s3/images/large.img", back)
	if b, err := os.ReadFile(back); err != nil || sum(b) != sum(large) {
		t.Errorf("mc got other bytes: %v", err)
	}
	tool(t, keys(ir.S3), mc, "rm", "--quiet", "s3/images/large.img")
	ir.knows(t, map[string][]byte{"a b+c%41.img": small})
}

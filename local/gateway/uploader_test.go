package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/build"
	"go/parser"
	"go/token"
	"net/http"
	"net/url"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/pkg/xattr"
	vgw "github.com/versity/versitygw/backend"

	"imageroot/local/gateway"
	"imageroot/shared/store"
)

const uploaderKey, uploaderSecret = "UPLOADER", "secret-of-uploaders"

// uploader configures the uploaders' account with a root.
func uploader(bucket, prefix string) func(*gateway.Config) {
	return func(cfg *gateway.Config) {
		cfg.Uploader = gateway.Uploader{Access: uploaderKey, Secret: uploaderSecret, Bucket: bucket, Prefix: prefix}
	}
}

// asUploader returns the S3 client with the uploaders' key.
func asUploader(endpoint string) *s3.Client {
	return s3.New(raw(endpoint).Options(), func(o *s3.Options) {
		o.Credentials = credentials.NewStaticCredentialsProvider(uploaderKey, uploaderSecret, "")
	})
}

// signed returns a request with the uploaders' signature.
func signed(t testing.TB, method, url, body string, header http.Header) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if header != nil {
		req.Header = header
	}
	const payload = "UNSIGNED-PAYLOAD"
	req.Header.Set("X-Amz-Content-Sha256", payload)
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(context.Background(),
		aws.Credentials{AccessKeyID: uploaderKey, SecretAccessKey: uploaderSecret}, req, payload, "s3", "us-east-1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// A route is one of versitygw's, as its router names it.
type route struct {
	method, path string
	query        []string // arguments that it needs, with values if they matter
	headers      []string // that it needs
}

func (r route) String() string {
	s := r.method + " " + r.path
	if len(r.query) > 0 {
		s += "?" + strings.Join(r.query, "&")
	}
	return strings.Join(append([]string{s}, r.headers...), " +")
}

// routes returns the routes of the linked versitygw.
func routes(t *testing.T) []route {
	t.Helper()
	pkg, err := build.Import("github.com/versity/versitygw/s3api", ".", build.FindOnly)
	if err != nil {
		t.Fatal(err)
	}
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(pkg.Dir, "router.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	literal := func(e ast.Expr) string {
		if lit, ok := e.(*ast.BasicLit); ok {
			s, _ := strconv.Unquote(lit.Value)
			return s
		}
		return ""
	}
	called := func(e ast.Expr) (of, name string, args []ast.Expr) {
		if call, ok := e.(*ast.CallExpr); ok {
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok {
					of = x.Name
				}
				return of, sel.Sel.Name, call.Args
			}
		}
		return "", "", nil
	}
	bases := map[string]string{"bucketRouter": "/:bucket", "objectRouter": "/:bucket/*", "": ""}
	var found []route
	ast.Inspect(file, func(n ast.Node) bool {
		stmt, ok := n.(*ast.ExprStmt)
		if !ok {
			return true
		}
		of, verb, args := called(stmt.X)
		base, ok := bases[of]
		if !ok || len(args) == 0 || !strings.HasPrefix(literal(args[0]), "/") && literal(args[0]) != "" {
			return true
		}
		r := route{method: strings.ToUpper(verb), path: strings.TrimSuffix(base+literal(args[0]), "/")}
		if r.path == "" {
			r.path = "/"
		}
		for _, arg := range args[1:] {
			_, matcher, values := called(arg)
			var texts []string
			for _, v := range values {
				texts = append(texts, literal(v))
			}
			switch matcher {
			case "MatchQueryArgs":
				r.query = append(r.query, texts...)
			case "MatchQueryArgWithValue":
				r.query = append(r.query, strings.Join(texts, "="))
			case "MatchHeader":
				r.headers = append(r.headers, texts...)
			}
		}
		found = append(found, r)
		return true
	})
	if len(found) < 100 {
		t.Fatalf("the router has %d routes: it is written in another way now", len(found))
	}
	return found
}

// allowedRoutes are the routes for uploaders.
var allowedRoutes = []string{
	"GET /", "GET /:bucket?location", "GET /:bucket?versioning", "HEAD /:bucket", "PUT /:bucket",
	"GET /:bucket", "GET /:bucket?list-type=2", "GET /:bucket?uploads",
	"POST /:bucket?delete",
	"POST /:bucket", // a form; it has its own signature
	"HEAD /:bucket/*", "GET /:bucket/*", "GET /:bucket/*?attributes", "GET /:bucket/*?tagging",
	"PUT /:bucket/*", "PUT /:bucket/* +X-Amz-Copy-Source", "DELETE /:bucket/*",
	"POST /:bucket/*?uploads", "GET /:bucket/*?uploadId", "POST /:bucket/*?uploadId", "DELETE /:bucket/*?uploadId",
	"PUT /:bucket/*?uploadId&partNumber", "PUT /:bucket/*?uploadId&partNumber +X-Amz-Copy-Source",
	"OPTIONS /", "OPTIONS /:bucket", "OPTIONS /:bucket/*", // CORS preflights have no signature
}

// TestUploaderRoutes sends a request for each route of versitygw with the
// uploaders' key. A route that is not listed here is refused, and changes nothing.
func TestUploaderRoutes(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, uploader("images", ""))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "copied.img", []byte("copied"))
	refused := 0
	for _, route := range routes(t) {
		put(t, r, "k.img", []byte("kept"))
		u := g.Endpoint() + strings.NewReplacer(":bucket", "images", "*", "k.img").Replace(route.path)
		query, header := url.Values{}, http.Header{}
		for _, arg := range route.query {
			name, value, _ := strings.Cut(arg, "=")
			if name == "partNumber" {
				value = "1"
			}
			query.Set(name, value)
		}
		for _, name := range route.headers {
			header.Set(name, "images/copied.img")
		}
		req := signed(t, route.method, u+"?"+query.Encode(), "", header)
		code, body := status(t, req)
		if slices.Contains(allowedRoutes, route.String()) {
			if code == http.StatusForbidden || code == http.StatusNotImplemented {
				t.Errorf("%v is refused: %d %s", route, code, body)
			}
			continue
		}
		refused++
		if code < 400 && !strings.Contains(body, "NotImplemented") {
			t.Errorf("%v is answered: %d %s", route, code, body)
		}
		if set := gateway.Settings(dir, "images"); len(set) > 0 {
			t.Errorf("%v has set %q", route, set)
		}
		if data, _ := get(t, r, "k.img"); string(data) != "kept" {
			t.Errorf("%v has written %q", route, data)
		}
	}
	if refused < 50 {
		t.Errorf("%d routes are refused", refused)
	}
}

// TestUploaderDecided fails if versitygw has an operation that is neither
// allowed to uploaders nor refused.
func TestUploaderDecided(t *testing.T) {
	const allowed = `ListBuckets HeadBucket CreateBucket GetBucketVersioning ListObjects ListObjectsV2
		HeadObject GetObject GetObjectAttributes GetObjectTagging GetObjectAcl PutObject CopyObject DeleteObject DeleteObjects
		CreateMultipartUpload UploadPart UploadPartCopy CompleteMultipartUpload AbortMultipartUpload ListMultipartUploads ListParts`
	const refused = `GetBucketAcl PutBucketAcl PutObjectAcl DeleteBucket ChangeBucketOwner ListBucketsAndOwners
		PutBucketVersioning ListObjectVersions GetBucketPolicy PutBucketPolicy DeleteBucketPolicy
		GetBucketOwnershipControls PutBucketOwnershipControls DeleteBucketOwnershipControls
		GetBucketCors PutBucketCors DeleteBucketCors GetBucketWebsite PutBucketWebsite DeleteBucketWebsite
		GetBucketTagging PutBucketTagging DeleteBucketTagging PutObjectTagging DeleteObjectTagging
		GetObjectLockConfiguration PutObjectLockConfiguration GetObjectRetention PutObjectRetention GetObjectLegalHold PutObjectLegalHold
		RestoreObject SelectObjectContent`
	const none = `String Shutdown NormalizeObjectKey` // no operations
	decided := strings.Fields(allowed + " " + refused + " " + none)
	for m := range reflect.TypeFor[vgw.Backend]().Methods() {
		if !slices.Contains(decided, m.Name) {
			t.Errorf("is %s for uploaders? See gateway.actions, and say it here and in TestUploaderRoutes", m.Name)
		}
	}
}

// TestUploaderStaysInRoot sends each kind of request that is allowed in the root
// for keys outside of it.
func TestUploaderStaysInRoot(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir, uploader("images", "up/"))
	r, catalog := root(t, g.Endpoint(), "images"), root(t, g.Endpoint(), "catalog")
	put(t, r, "up/mine.img", []byte("mine"))
	put(t, r, "uphill/secret", []byte("secret"))
	put(t, r, "secret", []byte("secret"))
	put(t, catalog, "up/secret", []byte("secret"))
	c := asUploader(g.Endpoint())
	if _, err := c.PutObject(t.Context(), &s3.PutObjectInput{Bucket: aws.String("images"), Key: aws.String("up/new.img"), Body: strings.NewReader("new")}); err != nil {
		t.Fatal(err)
	}
	list, err := c.ListObjectsV2(t.Context(), &s3.ListObjectsV2Input{Bucket: aws.String("images"), Prefix: aws.String("up/")})
	if err != nil || len(list.Contents) != 2 {
		t.Fatalf("the root has %+v (%v)", list, err)
	}
	buckets, err := c.ListBuckets(t.Context(), nil)
	if err != nil || len(buckets.Buckets) != 1 || *buckets.Buckets[0].Name != "images" {
		t.Errorf("buckets are %+v (%v)", buckets, err)
	}
	for _, at := range [][2]string{{"images", "secret"}, {"images", "uphill/secret"}, {"images", "up/../secret"}, {"images", "up"}, {"catalog", "up/secret"}, {"none", "up/secret"}, {".imageroot", "credentials.json"}} {
		object := fmt.Sprintf("/%s/%s", at[0], (&url.URL{Path: at[1]}).EscapedPath())
		prefix := url.QueryEscape(at[1])
		form := func(method, target string, header ...string) {
			h := http.Header{}
			if len(header) > 0 {
				h.Set(header[0], header[1])
			}
			code, body := status(t, signed(t, method, g.Endpoint()+target, "", h))
			listing := strings.HasPrefix(body, "<?xml") && !strings.Contains(body, "secret</Key>") && method == http.MethodGet
			if code < 400 && !listing {
				t.Errorf("%s %s %q: %d %s", method, target, header, code, body)
			}
		}
		form("GET", object)
		form("HEAD", object)
		form("PUT", object)
		form("DELETE", object)
		form("GET", object+"?attributes", "X-Amz-Object-Attributes", "ObjectSize")
		form("GET", object+"?tagging=")
		form("POST", object+"?uploads=")
		form("PUT", "/images/up/copy.img", "X-Amz-Copy-Source", at[0]+"/"+at[1])
		form("PUT", "/images/up/copy.img", "X-Amz-Copy-Source", "/"+at[0]+"/"+at[1])
		form("PUT", "/images/up/copy.img", "X-Amz-Copy-Source", at[0]+"%2F"+url.QueryEscape(at[1]))
		form("PUT", object, "X-Amz-Copy-Source", "images/up/mine.img")
		form("GET", "/"+at[0]+"?list-type=2&prefix="+prefix)
		form("GET", "/"+at[0]+"?prefix="+prefix)
		form("GET", "/"+at[0]+"?list-type=2&prefix="+prefix+"&prefix=up%2F")
		form("GET", "/"+at[0])
		form("GET", "/"+at[0]+"?uploads=&prefix="+prefix)
		form("DELETE", "/"+at[0])
		out, err := c.DeleteObjects(t.Context(), deletion(at[0], at[1]))
		if err == nil && len(out.Errors) != 1 {
			t.Errorf("deleting %q: %+v", at, out)
		}
		u, err := s3.NewPresignClient(c).PresignGetObject(t.Context(), &s3.GetObjectInput{Bucket: &at[0], Key: &at[1]})
		if err != nil {
			t.Fatal(err)
		}
		if code, body := status(t, request(t, "GET", u.URL)); code < 400 {
			t.Errorf("a presigned GET of %q: %d %s", at, code, body)
		}
	}
	for key, may := range map[string]bool{"up/form.img": true, "secret": false, "uphill/secret": false, "up/../secret": false} {
		if code, body := sendForm(t, g.Endpoint(), key, "x-ignore-it", ""); (code < 300) != may {
			t.Errorf("a form to %q: %d %s", key, code, body)
		}
	}
	for _, data := range [][]byte{first(get(t, r, "secret")), first(get(t, r, "uphill/secret")), first(get(t, catalog, "up/secret"))} {
		if string(data) != "secret" {
			t.Errorf("%q was written over it", data)
		}
	}
	if _, err := r.Head(t.Context(), "up/copy.img"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("something was copied: %v", err)
	}
}

// TestUploaderCopySource copies from a key that would be in the root if its plus
// were a space.
func TestUploaderCopySource(t *testing.T) {
	g := start(t, t.TempDir(), uploader("images", "a b/"))
	r := root(t, g.Endpoint(), "images")
	put(t, r, "a+b/secret", []byte("secret"))
	put(t, r, "a b/mine+yours.img", []byte("mine"))
	for source, may := range map[string]bool{"images/a+b/secret": false, "images/a%2Bb/secret": false, "images/a%20b/mine+yours.img": true} {
		code, body := status(t, signed(t, "PUT", g.Endpoint()+"/images/a%20b/copy.img", "", http.Header{"X-Amz-Copy-Source": {source}}))
		if (code == http.StatusOK) != may {
			t.Errorf("a copy of %s: %d %s", source, code, body)
		}
	}
}

// TestSettingsAreCleared starts a gateway over buckets with settings that give
// others access.
func TestSettingsAreCleared(t *testing.T) {
	dir := t.TempDir()
	g := start(t, dir)
	put(t, root(t, g.Endpoint(), "images"), "a.img", []byte("a"))
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if set := gateway.Settings(dir, "images"); len(set) > 0 {
		t.Errorf("a new bucket has %q", set)
	}
	for name, value := range map[string]string{
		"user.policy": `{"Statement":[{"Effect":"Allow","Principal":"*","Action":"s3:*","Resource":["arn:aws:s3:::images","arn:aws:s3:::images/*"]}]}`,
		"user.cors":   "<CORSConfiguration></CORSConfiguration>",
		"user.acl":    `{"Owner":"someone","Grantees":[{"Permission":"FULL_CONTROL","Access":"all-users","Type":"Group"}]}`,
	} {
		if err := xattr.Set(filepath.Join(dir, "images"), name, []byte(value)); err != nil {
			t.Fatal(err)
		}
	}
	if set := gateway.Settings(dir, "images"); !slices.Equal(set, []string{"policy", "cors"}) {
		t.Errorf("settings are %q", set)
	}
	g = start(t, dir)
	for _, method := range []string{"GET", "PUT", "DELETE"} {
		if code, body := status(t, request(t, method, g.Endpoint()+"/images/a.img")); code != http.StatusForbidden {
			t.Errorf("anonymous %s: %d %s", method, code, body)
		}
	}
	if set := gateway.Settings(dir, "images"); len(set) > 0 {
		t.Errorf("after the start there are %q", set)
	}
}

func first[T, U any](v T, _ U) T { return v }

func deletion(bucket, key string) *s3.DeleteObjectsInput {
	return &s3.DeleteObjectsInput{Bucket: &bucket, Delete: &types.Delete{Objects: []types.ObjectIdentifier{{Key: &key}}}}
}

func request(t testing.TB, method, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

package lambda_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"imageroot/test/template"
)

var chromium = flag.String("chromium", "/usr/bin/chromium", "path of Chromium")

// allowOrigin gives the image bucket the CORS rules of the template, for an
// origin.
func (w *world) allowOrigin(origin string) {
	w.t.Helper()
	images := w.tpl.Properties("ImageBucket")
	var rules []types.CORSRule
	for _, r := range template.List(template.Map(images["CorsConfiguration"])["CorsRules"]) {
		rule := types.CORSRule{AllowedOrigins: []string{origin}}
		for _, m := range template.List(template.Map(r)["AllowedMethods"]) {
			rule.AllowedMethods = append(rule.AllowedMethods, fmt.Sprint(m))
		}
		for _, h := range template.List(template.Map(r)["AllowedHeaders"]) {
			rule.AllowedHeaders = append(rule.AllowedHeaders, fmt.Sprint(h))
		}
		for _, h := range template.List(template.Map(r)["ExposedHeaders"]) {
			rule.ExposeHeaders = append(rule.ExposeHeaders, fmt.Sprint(h))
		}
		rules = append(rules, rule)
	}
	c := s3.New(s3.Options{
		BaseEndpoint: &w.endpoint, UsePathStyle: true, Region: "us-east-1", Credentials: credentials.NewStaticCredentialsProvider(accessKey, secretKey, ""),
	})
	if _, err := c.PutBucketCors(w.t.Context(), &s3.PutBucketCorsInput{
		Bucket: aws.String(fmt.Sprint(images["BucketName"])), CORSConfiguration: &types.CORSConfiguration{CORSRules: rules},
	}); err != nil {
		w.t.Fatal(err)
	}
}

// TestPage uploads an image in Chromium by the page. The parts go to S3 only,
// by presigned URLs and the CORS rule of the template; a page of another origin
// can upload nothing.
func TestPage(t *testing.T) {
	w := newWorld(t)
	uploads := w.fn["UploadFunction"].guard.s3.URL
	w.allowOrigin(w.api.URL)

	var (
		mu     sync.Mutex
		parts  = map[string]bool{} // where they were sent
		errors []string
	)
	listen := func(ev any) {
		mu.Lock()
		defer mu.Unlock()
		switch e := ev.(type) {
		case *network.EventRequestWillBeSent:
			if e.Request.Method == http.MethodPut {
				u, _, _ := strings.Cut(e.Request.URL, "/imageroot-images-")
				parts[u] = true
			}
		case *runtime.EventExceptionThrown:
			errors = append(errors, e.ExceptionDetails.Text)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, chromedp.ExecPath(*chromium), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("headless", "new"), chromedp.Flag("no-sandbox", true), chromedp.Flag("disable-gpu", true), chromedp.Flag("disable-dev-shm-usage", true))
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithListener(listen))
	t.Cleanup(cancel)
	do := func(what string, steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		if err := chromedp.Do(ctx, steps...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	until := func(what, script string) {
		t.Helper()
		w.until(what, func() bool {
			ok, err := chromedp.Run(ctx, chromedp.Evaluate[bool]("!!("+script+")"))
			return ok && err == nil
		})
	}
	do("start Chromium")
	if _, err := chromedp.Call(ctx, network.Enable, network.EnableParams{}); err != nil {
		t.Fatal(err)
	}
	do("open the page", chromedp.Navigate(w.api.URL+"/ui/login"), chromedp.SendKeys(chromedp.CSS("#password"), password+kb.Enter))
	until("the page of images", "location.pathname === '/ui/images' && document.getElementById('catalog')")

	// The first URL's signature expires; then no bytes arrive for a while; then
	// the second URL expires.
	refusals := []int{400, 400, 0, 403}
	w.fn["UploadFunction"].guard.refusing(func(r *http.Request) int {
		if r.Method != http.MethodPut || !r.URL.Query().Has("partNumber") {
			return 0
		}
		mu.Lock()
		defer mu.Unlock()
		if len(refusals) == 0 {
			return 0
		}
		status := refusals[0]
		refusals = refusals[1:]
		return status
	})

	data := bytes.Repeat([]byte("0123456789abcdef"), 65<<20/16) // two parts
	file := filepath.Join(t.TempDir(), "by page.img")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	do("choose a file", chromedp.SetUploadFiles(chromedp.CSS("#file"), []string{file}))
	until("the upload is done", `document.querySelector('#uploads .upload')?.dataset.state === 'done'`)
	w.hashed("by page.img", hexSum(data))
	until("the row shows the digest", fmt.Sprintf(`document.querySelector('#catalog [data-name]')?.pathname === '/ui/images/%s'`, hexSum(data)))
	got := w.want(200, "GET", w.want(307, "GET", "/images/"+url.PathEscape("by page.img"), nil).header.Get("Location"), nil)
	if !bytes.Equal(got.body, data) {
		t.Errorf("%d other bytes", len(got.body))
	}
	mu.Lock()
	if len(refusals) > 0 {
		t.Errorf("%v were not met with", refusals)
	}
	if len(parts) != 1 || !parts[uploads] {
		t.Errorf("parts were sent to %v, want %s only", parts, uploads)
	}
	if len(errors) > 0 {
		t.Errorf("errors of the page: %v", errors)
	}
	mu.Unlock()

	// A page of another origin: without permission from the bucket, the
	// browser does not send the part.
	w.allowOrigin("https://another.example")
	begun := as[struct {
		Parts []struct{ URL string }
	}](t, w.want(201, "POST", "/uploads", map[string]any{"name": "other.img", "size_bytes": 3}).body)
	target, err := json.Marshal(begun.Parts[0].URL)
	if err != nil {
		t.Fatal(err)
	}
	refused, err := chromedp.Run(ctx, chromedp.Evaluate[bool](
		fmt.Sprintf(`fetch(%s, {method: 'PUT', body: 'lab'}).then(() => false, () => true)`, target), chromedp.EvalAwaitPromise))
	if err != nil {
		t.Fatal(err)
	}
	if !refused {
		t.Error("a part was sent from an origin that the bucket does not know")
	}
}

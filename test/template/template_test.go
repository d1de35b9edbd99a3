package template

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imageroot/functions/addbyurl"
	"imageroot/functions/catalog"
	"imageroot/functions/catalog/pages"
	"imageroot/functions/fetch"
	"imageroot/functions/hash"
	"imageroot/functions/upload"
	"imageroot/shared/config"
	"imageroot/shared/queue/sqsqueue"
	"imageroot/shared/web"
	"imageroot/test/need"
)

func load(t *testing.T) *Template {
	t.Helper()
	tpl, err := Load(nil)
	if err != nil {
		t.Fatal(err)
	}
	return tpl
}

// tables returns the routes of the functions, by package.
func tables() map[string][]web.Route {
	return map[string][]web.Route{
		"upload": (&upload.Function{}).Routes(), "catalog": append((&catalog.Function{}).Routes(), (&pages.Pages{}).Routes()...), "addbyurl": (&addbyurl.Function{}).Routes(),
		"hash": (&hash.Function{}).Routes(), "fetch": (&fetch.Function{}).Routes(),
	}
}

var parameter = regexp.MustCompile(`\{[a-z0-9]+(\.\.\.)?\}`)

// example returns a path that a pattern matches.
func example(pattern string) string {
	path := strings.ReplaceAll(pattern, "{$}", "")
	return parameter.ReplaceAllStringFunc(path, func(s string) string {
		if strings.Contains(s, "...") {
			return "x/y.css"
		}
		return "x"
	})
}

// TestRoutes: each route of a function reaches it, by GET and HEAD, by a form
// and a script; and no other request does.
func TestRoutes(t *testing.T) {
	tpl := load(t)
	routes, err := tpl.Routes()
	if err != nil {
		t.Fatal(err)
	}
	ids := tpl.Functions()
	used := map[Route]bool{}
	for function, table := range tables() {
		for _, rt := range table {
			method, pattern, _ := strings.Cut(rt.Pattern, " ")
			methods := []string{method}
			switch method {
			case "GET":
				methods = append(methods, "HEAD")
			case "PUT", "DELETE":
				methods = append(methods, "POST") // with _method
			}
			for _, m := range methods {
				r, ok := Find(routes, m, example(pattern))
				if !ok || r.Function != ids[function] {
					t.Errorf("%s %s of %s goes to %q", m, pattern, function, r.Function)
				}
				used[r] = true
			}
		}
	}
	for _, r := range routes {
		if !used[r] {
			t.Errorf("%s %s is in the API and no function's", r.Method, r.Path)
		}
	}
	if r, _ := Find(routes, "GET", "/metrics"); r.Path != Default {
		t.Error("/metrics is local and in the API")
	}
}

func TestFind(t *testing.T) {
	routes := []Route{
		{"GET", "/images/{name}", "get"}, {"ANY", "/images/{name}", "any"}, {"ANY", "/images/list", "list"}, {"ANY", "/static/{file+}", "static"}, {"ANY", Default, "default"},
	}
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/images/x", "get"},
		{"PUT", "/images/x", "any"},
		{"GET", "/images/list", "list"},
		{"GET", "/static/a/b", "static"},
		{"GET", "/ui/", "default"},
		{"GET", "/images/", "default"},
		{"GET", "/static/", "default"},
		{"GET", "/images/x/y", "default"},
		{"GET", "/", "default"},
	} {
		if r, _ := Find(routes, tt.method, tt.path); r.Function != tt.want {
			t.Errorf("%s %s: %q, want %q", tt.method, tt.path, r.Function, tt.want)
		}
	}
}

// TestOpenRoutesHaveTheirOwnLimit: clients that exhaust the limit of an open
// route do not affect the operator's routes.
func TestOpenRoutesHaveTheirOwnLimit(t *testing.T) {
	tpl := load(t)
	routes, err := tpl.Routes()
	if err != nil {
		t.Fatal(err)
	}
	api := tpl.Properties("Api")
	limits := Map(api["RouteSettings"])
	all := number(t, Map(api["DefaultRouteSettings"])["ThrottlingRateLimit"])
	for _, rt := range tables()["catalog"] {
		method, pattern, _ := strings.Cut(rt.Pattern, " ")
		if rt.Access != web.Open && rt.Access != web.Always {
			continue
		}
		r, _ := Find(routes, method, example(pattern))
		key := r.Method + " " + r.Path
		if r.Path == Default {
			key = "$default"
		}
		if limit := Map(limits[key]); limit == nil || number(t, limit["ThrottlingRateLimit"]) >= all {
			t.Errorf("%s has the limit %v, and all routes %d", key, limit, all)
		}
	}
	for key := range limits {
		if !slices.ContainsFunc(routes, func(r Route) bool { return key == "$default" || key == r.Method+" "+r.Path }) {
			t.Errorf("%s has a limit and is no route", key)
		}
	}
	log := Map(api["AccessLogSettings"])
	if log["DestinationArn"] != tpl.arn("AccessLogs") || tpl.Properties("AccessLogs")["RetentionInDays"] == nil {
		t.Errorf("requests are logged to %v", log)
	}
	var line map[string]string
	if err := json.Unmarshal([]byte(fmt.Sprint(log["Format"])), &line); err != nil || line["ip"] == "" || line["status"] == "" {
		t.Errorf("a line of the access log is %v: %v", log["Format"], err)
	}
}

// TestParameters: resources that exist only if a parameter asks for them.
func TestParameters(t *testing.T) {
	tpl, err := Load(map[string]string{"CatalogConcurrency": "20", "KeepDeletedDays": "9"})
	if err != nil {
		t.Fatal(err)
	}
	images := tpl.Properties("ImageBucket")
	if Map(images["VersioningConfiguration"])["Status"] != "Enabled" || !slices.ContainsFunc(List(Map(images["LifecycleConfiguration"])["Rules"]), func(r any) bool {
		return fmt.Sprint(Map(Map(r)["NoncurrentVersionExpiration"])["NoncurrentDays"]) == "9"
	}) {
		t.Errorf("nothing is kept of what is deleted: %v", images)
	}
	if got := tpl.Setting("CatalogFunction", "ReservedConcurrentExecutions"); got != "20" {
		t.Errorf("the catalog function has %v reserved", got)
	}
	none := load(t)
	if images := none.Properties("ImageBucket"); images["VersioningConfiguration"] != nil || len(List(Map(images["LifecycleConfiguration"])["Rules"])) != 1 {
		t.Errorf("versions are kept without being asked for: %v", images)
	}
	if got := none.Setting("CatalogFunction", "ReservedConcurrentExecutions"); got != nil {
		t.Errorf("the catalog function has %v reserved without being asked for", got)
	}
}

// TestAPIMayInvoke: the API may invoke each function, and no one else may.
func TestAPIMayInvoke(t *testing.T) {
	tpl := load(t)
	may := map[string]int{}
	for _, id := range tpl.Resources("AWS::Lambda::Permission") {
		p := tpl.Properties(id)
		if p["Principal"] != "apigateway.amazonaws.com" || p["SourceArn"] != "arn:aws:execute-api:us-east-1:123456789012:Api/*" || p["Action"] != "lambda:InvokeFunction" {
			t.Errorf("%s: %v", id, p)
		}
		may[fmt.Sprint(p["FunctionName"])]++
	}
	for _, id := range tpl.Functions() {
		if may[id] != 1 {
			t.Errorf("%s may be invoked %d times", id, may[id])
		}
	}
}

func TestFunctions(t *testing.T) {
	tpl := load(t)
	if got, want := slices.Sorted(maps.Keys(tpl.Functions())), slices.Sorted(maps.Keys(tables())); !slices.Equal(got, want) {
		t.Errorf("functions %q, want %q", got, want)
	}
	roles := map[any]string{}
	for _, id := range tpl.Functions() {
		if tpl.Setting(id, "Runtime") != "provided.al2023" || fmt.Sprint(tpl.Setting(id, "Architectures")) != "[arm64]" || tpl.Setting(id, "Handler") != "bootstrap" {
			t.Errorf("%s runs on %v %v", id, tpl.Setting(id, "Runtime"), tpl.Setting(id, "Architectures"))
		}
		// Lambda takes jobs that queue their own continuation for loops.
		if tpl.Setting(id, "RecursiveLoop") != "Allow" {
			t.Errorf("Lambda stops jobs of %s that take more than 16 invocations", id)
		}
		role := tpl.Setting(id, "Role")
		if other, ok := roles[role]; ok {
			t.Errorf("%s and %s have one role", id, other)
		}
		roles[role] = id
		group := fmt.Sprint(Map(tpl.Setting(id, "LoggingConfig"))["LogGroup"])
		if tpl.Properties(group)["RetentionInDays"] == nil {
			t.Errorf("the logs of %s are kept for ever", id)
		}
		grants, err := tpl.Grants(id)
		if err != nil {
			t.Fatal(err)
		}
		logs := false
		for _, g := range grants {
			if strings.Contains(g.Action, "*") || g.Resource == "*" {
				t.Errorf("%s may %s on %s", id, g.Action, g.Resource)
			}
			logs = logs || g.Allows("logs:PutLogEvents", tpl.arn(group))
		}
		if !logs {
			t.Errorf("%s may not write its logs", id)
		}
	}
}

// number returns a property that is a number, literal or of a parameter.
func number(t *testing.T, v any) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscan(fmt.Sprint(v), &n); err != nil {
		t.Errorf("%v is no number", v)
	}
	return n
}

// TestQueues: every queue has a reader with partial batch responses, a
// visibility of six times the reader's timeout, and a dead-letter queue with an
// alarm.
func TestQueues(t *testing.T) {
	tpl := load(t)
	timeouts := map[string]int{} // by the queue's ARN
	for _, id := range tpl.Functions() {
		for name, e := range Map(tpl.Properties(id)["Events"]) {
			p := Map(Map(e)["Properties"])
			switch Map(e)["Type"] {
			case "Schedule":
				if p["Schedule"] == "" {
					t.Errorf("%s of %s is never", name, id)
				}
			case "SQS":
				if fmt.Sprint(p["FunctionResponseTypes"]) != "[ReportBatchItemFailures]" || number(t, Map(p["ScalingConfig"])["MaximumConcurrency"]) < 2 {
					t.Errorf("%s of %s: %v", name, id, p)
				}
				timeouts[fmt.Sprint(p["Queue"])] = number(t, tpl.Setting(id, "Timeout"))
			default:
				t.Errorf("%s of %s is of type %v", name, id, Map(e)["Type"])
			}
		}
	}
	alarms := map[string]bool{}
	for _, id := range tpl.Resources("AWS::CloudWatch::Alarm") {
		p := tpl.Properties(id)
		d := Map(List(p["Dimensions"])[0])
		if d["Name"] == "QueueName" && p["MetricName"] == "ApproximateNumberOfMessagesVisible" && len(List(p["AlarmActions"])) == 1 {
			alarms[fmt.Sprint(d["Value"])] = true
		}
	}
	dead := map[string]bool{}
	for _, id := range tpl.Resources("AWS::SQS::Queue") {
		if r := Map(tpl.Properties(id)["RedrivePolicy"]); r != nil {
			arn := fmt.Sprint(r["deadLetterTargetArn"])
			if number(t, r["maxReceiveCount"]) != sqsqueue.MaxReceives || dead[arn] || !alarms[arn[strings.LastIndex(arn, ":")+1:]] {
				t.Errorf("dead letters of %s: %v, with an alarm: %v", id, r, alarms)
			}
			dead[arn] = true
		}
	}
	for _, id := range tpl.Resources("AWS::SQS::Queue") {
		arn := tpl.arn(id)
		p := tpl.Properties(id)
		if p["SqsManagedSseEnabled"] != true {
			t.Errorf("%s is not encrypted", id)
		}
		if dead[arn] {
			continue
		}
		if p["RedrivePolicy"] == nil || timeouts[arn] == 0 || number(t, p["VisibilityTimeout"]) < 6*timeouts[arn] {
			t.Errorf("%s: visibility %v, its reader has %d s, dead letters %v", id, p["VisibilityTimeout"], timeouts[arn], p["RedrivePolicy"])
		}
	}
}

// TestBuckets: buckets are encrypted, closed and swept, and their events may
// enter the queue.
func TestBuckets(t *testing.T) {
	tpl := load(t)
	buckets := tpl.Resources("AWS::S3::Bucket")
	if len(buckets) == 0 {
		t.Fatal("there are no buckets")
	}
	for _, id := range buckets {
		p := tpl.Properties(id)
		for _, what := range []string{"BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"} {
			if Map(p["PublicAccessBlockConfiguration"])[what] != true {
				t.Errorf("%s: not %s", id, what)
			}
		}
		if p["BucketEncryption"] == nil || tpl.Resource(id)["DeletionPolicy"] != "RetainExceptOnCreate" {
			t.Errorf("%s is not encrypted, or goes with the stack", id)
		}
		if !tlsOnly(tpl, id) {
			t.Errorf("%s can be reached without TLS", id)
		}
		aborts := false
		for _, r := range List(Map(p["LifecycleConfiguration"])["Rules"]) {
			days := Map(Map(r)["AbortIncompleteMultipartUpload"])["DaysAfterInitiation"]
			// imageroot itself expires uploads, seven days after their last
			// part, which may be sent long after the first.
			aborts = aborts || days != nil && number(t, days) >= 30
		}
		if !aborts {
			t.Errorf("%s keeps stale uploads", id)
		}
	}
	for _, prefix := range []string{"jobs/", "events/"} {
		if !slices.ContainsFunc(List(Map(tpl.Properties("CatalogBucket")["LifecycleConfiguration"])["Rules"]), func(r any) bool {
			return Map(r)["Prefix"] == prefix && Map(r)["ExpirationInDays"] != nil
		}) {
			t.Errorf("nothing expires %s", prefix)
		}
	}

	images := tpl.Properties("ImageBucket")
	bucket := "arn:aws:s3:::" + fmt.Sprint(images["BucketName"])
	var told []string
	for _, q := range List(Map(images["NotificationConfiguration"])["QueueConfigurations"]) {
		told = append(told, fmt.Sprint(Map(q)["Event"]))
		if !letsIn(tpl, fmt.Sprint(Map(q)["Queue"]), bucket) {
			t.Errorf("the policy of %v does not let %s in", Map(q)["Queue"], bucket)
		}
	}
	slices.Sort(told)
	if !slices.Equal(told, []string{"s3:ObjectCreated:*", "s3:ObjectRemoved:*"}) {
		t.Errorf("events %q", told)
	}
	if tpl.Resource("ImageBucket")["DependsOn"] != "InspectionQueuePolicy" {
		t.Error("the bucket may come before the policy that lets it in")
	}
	cors := List(Map(images["CorsConfiguration"])["CorsRules"])
	if len(cors) != 1 || fmt.Sprint(Map(cors[0])["AllowedOrigins"]) != "[https://Api.execute-api.us-east-1.amazonaws.com]" || fmt.Sprint(Map(cors[0])["AllowedMethods"]) != "[PUT]" {
		t.Errorf("CORS %v", cors)
	}
	// Both roots are in these buckets.
	env := tpl.Environment("HashFunction")
	if env["IMAGEROOT_IMAGE_ROOT"] != "s3://"+fmt.Sprint(images["BucketName"]) || env["IMAGEROOT_CATALOG_ROOT"] != "s3://"+fmt.Sprint(tpl.Properties("CatalogBucket")["BucketName"]) {
		t.Errorf("roots %v", env)
	}
}

// tlsOnly reports whether a policy denies all requests without TLS to a bucket
// and its objects.
func tlsOnly(tpl *Template, bucket string) bool {
	arn := tpl.arn(bucket)
	for _, id := range tpl.Resources("AWS::S3::BucketPolicy") {
		p := tpl.Properties(id)
		for _, s := range List(Map(p["PolicyDocument"])["Statement"]) {
			st := Map(s)
			if p["Bucket"] == tpl.ref(bucket) && st["Effect"] == "Deny" && st["Principal"] == "*" && st["Action"] == "s3:*" &&
				fmt.Sprint(st["Resource"]) == fmt.Sprintf("[%s %[1]s/*]", arn) && Map(Map(st["Condition"])["Bool"])["aws:SecureTransport"] == "false" {
				return true
			}
		}
	}
	return false
}

// letsIn reports whether a queue's policies allow S3 to send for a bucket, and
// for that one only.
func letsIn(tpl *Template, queue, bucket string) bool {
	for _, id := range tpl.Resources("AWS::SQS::QueuePolicy") {
		p := tpl.Properties(id)
		for _, s := range List(Map(p["PolicyDocument"])["Statement"]) {
			st := Map(s)
			condition := Map(st["Condition"])
			if st["Effect"] == "Allow" && st["Action"] == "sqs:SendMessage" && st["Resource"] == queue &&
				Map(st["Principal"])["Service"] == "s3.amazonaws.com" && Map(condition["ArnEquals"])["aws:SourceArn"] == bucket &&
				Map(condition["StringEquals"])["aws:SourceAccount"] == Account &&
				slices.ContainsFunc(List(p["Queues"]), func(q any) bool { return strings.HasSuffix(fmt.Sprint(q), queue[strings.LastIndex(queue, ":")+1:]) }) {
				return true
			}
		}
	}
	return false
}

// qualified returns a name with its package. The package go/types, which has such
// a function, takes seconds to compile.
func qualified(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return qualified(e.X) + "." + e.Sel.Name
	}
	return fmt.Sprintf("%T", e)
}

// TestEnvironment: the template sets for a function what its code reads; the
// function itself checks that when it starts.
func TestEnvironment(t *testing.T) {
	tpl := load(t)
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{} // of the settings, by constant
	inspect(t, filepath.Join(root, "shared/config/lambda.go"), func(n ast.Node) {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Names) != len(v.Values) {
			return
		}
		for i, value := range v.Values {
			if lit, ok := value.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				names[v.Names[i].Name] = strings.Trim(lit.Value, `"`)
			}
		}
	})
	secret := func(context.Context, string) (string, error) { return strings.Repeat("0123456789abcdef", 4), nil }
	for function, id := range tpl.Functions() {
		t.Run(function, func(t *testing.T) {
			var reads []string
			opens := 0
			inspect(t, filepath.Join(root, "functions", function, "lambda/main.go"), func(n ast.Node) {
				call, ok := n.(*ast.CallExpr)
				if !ok || qualified(call.Fun) != "cloud.Open" {
					return
				}
				opens++
				for _, arg := range call.Args[1:] {
					name, ok := names[strings.TrimPrefix(qualified(arg), "config.")]
					if !ok {
						t.Fatalf("cloud.Open of %s", qualified(arg))
					}
					reads = append(reads, name)
				}
			})
			if opens != 1 {
				t.Fatalf("cloud.Open is called %d times", opens)
			}
			for name, value := range tpl.Environment(id) {
				t.Setenv(name, value)
			}
			if _, err := config.LoadLambda(t.Context(), secret, reads...); err != nil {
				t.Error(err)
			}
		})
	}
}

// inspect calls see for every node of a source file.
func inspect(t *testing.T, path string, see func(ast.Node)) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		see(n)
		return true
	})
}

// TestLocalEnvironment: sam local passes only the variables that the template
// names.
func TestLocalEnvironment(t *testing.T) {
	tpl := load(t)
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(root, "infra/env.local.json"))
	if err != nil {
		t.Fatal(err)
	}
	var local map[string]map[string]string
	if err := json.Unmarshal(data, &local); err != nil {
		t.Fatal(err)
	}
	for _, id := range tpl.Functions() {
		env := tpl.Environment(id)
		if len(local[id]) == 0 {
			t.Errorf("nothing for %s", id)
		}
		for name := range local[id] {
			if _, ok := env[name]; !ok && strings.HasPrefix(name, "IMAGEROOT_") {
				t.Errorf("%s of %s is not in the template", name, id)
			}
		}
		// Addresses on AWS are other addresses here.
		for name, v := range env {
			if _, ok := local[id][name]; !ok && (strings.HasPrefix(v, "arn:") || strings.HasPrefix(v, "https:") || strings.HasPrefix(v, "s3:")) {
				t.Errorf("%s of %s has no local value", name, id)
			}
		}
	}
}

// TestTranslation inspects the translation of the template by AWS's tool, and
// lints both, if the tools are installed.
func TestTranslation(t *testing.T) {
	need.Programs(t)
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "template.yaml")
	lint := func(file string) {
		tool, err := exec.LookPath("cfn-lint")
		if err != nil || exec.Command(tool, "--version").Run() != nil {
			t.Log("cfn-lint is not installed: not linted")
			return
		}
		if out, err := exec.Command(tool, "--regions", Region, "--", file).CombinedOutput(); err != nil {
			t.Errorf("cfn-lint %s: %v\n%s", file, err, out)
		}
	}
	lint(file)
	if exec.Command("python3", "-c", "import samtranslator").Run() != nil {
		t.Log("aws-sam-translator is not installed: not translated")
		return
	}
	cmd := exec.Command("python3", filepath.Join(root, "infra/translate.py"), file)
	cmd.Env = append(os.Environ(), "AWS_DEFAULT_REGION="+Region)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	translated, err := cmd.Output()
	if err != nil {
		t.Fatalf("translate: %v\n%s", err, stderr.Bytes())
	}
	path := filepath.Join(t.TempDir(), "translated.json")
	if err := os.WriteFile(path, translated, 0o600); err != nil {
		t.Fatal(err)
	}
	lint(path)
	tpl, err := Parse(translated, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range tpl.Resources("AWS::IAM::Role") {
		// A function with a queue may get managed policies for every queue.
		if p := tpl.Properties(id); p["ManagedPolicyArns"] != nil {
			t.Errorf("%s has %v", id, p["ManagedPolicyArns"])
		}
	}
	for _, id := range tpl.Resources("AWS::Lambda::EventSourceMapping") {
		p := tpl.Properties(id)
		if fmt.Sprint(p["FunctionResponseTypes"]) != "[ReportBatchItemFailures]" || Map(p["ScalingConfig"])["MaximumConcurrency"] == nil {
			t.Errorf("%s: %v", id, p)
		}
	}
	for id, want := range map[string]int{"AWS::Lambda::Function": 5, "AWS::Lambda::EventSourceMapping": 4, "AWS::Events::Rule": 3, "AWS::IAM::Role": 5} {
		if got := tpl.Resources(id); len(got) != want {
			t.Errorf("%d of %s, want %d: %q", len(got), id, want, got)
		}
	}
}

func TestParse(t *testing.T) {
	for _, bad := range []string{"", "5", "a: &x 1\nb: *x", "a: 1\na: 2"} {
		if _, err := Parse([]byte(bad), nil); err == nil {
			t.Errorf("%q is a template", bad)
		}
	}
	if _, err := Load(map[string]string{"Nothing": "x"}); err == nil {
		t.Error("a parameter that there is not")
	}
	for _, tt := range []struct {
		g                Grant
		action, resource string
		want             bool
	}{
		{Grant{"s3:GetObject", "arn:aws:s3:::b/*"}, "s3:GetObject", "arn:aws:s3:::b/x/y", true},
		{Grant{"s3:GetObject", "arn:aws:s3:::b/*"}, "s3:GetObject", "arn:aws:s3:::b", false},
		{Grant{"s3:GetObject", "arn:aws:s3:::b/x/*"}, "s3:GetObject", "arn:aws:s3:::b/y", false},
		{Grant{"s3:GetObject", "arn:aws:s3:::b/*"}, "s3:PutObject", "arn:aws:s3:::b/x", false},
		{Grant{"s3:GetObject", "arn:aws:s3:::b.c"}, "s3:GetObject", "arn:aws:s3:::bxc", false},
	} {
		if tt.g.Allows(tt.action, tt.resource) != tt.want {
			t.Errorf("%v for %s on %s: not %v", tt.g, tt.action, tt.resource, tt.want)
		}
	}
}

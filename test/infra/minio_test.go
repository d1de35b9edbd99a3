package infra

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"imageroot/test/minio"
	"imageroot/test/runner"
)

// compose is the resolved compose.yaml, as far as it matters here.
type compose struct {
	Services map[string]struct {
		Image       string
		Environment map[string]string
		ReadOnly    bool     `json:"read_only"`
		CapDrop     []string `json:"cap_drop"`
		SecurityOpt []string `json:"security_opt"`
		Volumes     []struct{ Source, Target string }
		DependsOn   map[string]struct{ Condition string } `json:"depends_on"`
	}
}

var composeSecrets = []string{
	"MINIO_ROOT_PASSWORD=root-secret", "AWS_SECRET_ACCESS_KEY=s3-secret-of-imageroot", "IMAGEROOT_WEBHOOK_TOKEN=0123456789abcdef", "IMAGEROOT_PASSWORD=correct horse",
}

// loadCompose loads compose.yaml with its secrets in the environment.
func loadCompose(t *testing.T) compose {
	t.Helper()
	path := abs(t, filepath.Join(root, "infra", "compose.yaml"))
	out, log, err := tool(t, composeSecrets, "run", "./compose", path)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	var c compose
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCompose(t *testing.T) {
	c := loadCompose(t)
	if names := slices.Sorted(maps.Keys(c.Services)); !slices.Equal(names, []string{"imageroot", "minio", "setup"}) {
		t.Fatalf("it has %q", names)
	}
	for name, s := range c.Services {
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s is not kept in: %+v", name, s)
		}
	}
	if c.Services["imageroot"].DependsOn["setup"].Condition != "service_completed_successfully" || c.Services["setup"].DependsOn["minio"].Condition != "service_healthy" {
		t.Errorf("they do not wait for each other: %+v", c.Services)
	}
	if _, err := os.Stat(c.Services["setup"].Volumes[0].Source); err != nil || c.Services["setup"].Volumes[0].Target != "/setup.sh" {
		t.Errorf("the script is not there: %v", err)
	}
	// Without its secrets it does not start.
	path := abs(t, filepath.Join(root, "infra", "compose.yaml"))
	for i, kv := range composeSecrets {
		without := slices.Concat(composeSecrets[:i], composeSecrets[i+1:])
		name, _, _ := strings.Cut(kv, "=")
		if _, log, err := run(t, without, "env", "-u", name, "go", "-C", filepath.Join(root, "tools"), "run", "./compose", path); err == nil || !strings.Contains(log, name) {
			t.Errorf("without %s: %v %s", name, err, log)
		}
	}
}

// TestWebhookVariables tests that all files configure MinIO's webhook alike.
func TestWebhookVariables(t *testing.T) {
	variables := regexp.MustCompile(`MINIO_NOTIFY_WEBHOOK_[A-Z_]+_IMAGEROOT\b`)
	in := func(texts ...string) []string {
		all := variables.FindAllString(strings.Join(texts, "\n"), -1)
		slices.Sort(all)
		return slices.Compact(all)
	}
	files := ours(t)
	want := in(files["compose.yaml"])
	if len(want) == 0 {
		t.Error("compose.yaml has none")
	}
	for name, got := range map[string][]string{
		"the units": in(files["minio/minio.service"], files["minio/minio.env"]), "the Quadlet files": in(files["minio/quadlet/minio.container"]),
	} {
		if !slices.Equal(got, want) {
			t.Errorf("%s have %q, and compose.yaml %q", name, got, want)
		}
	}
}

// TestOverMinIO runs the compose file's services, in its order and with its
// variables, as processes of a real MinIO and of the release: events arrive,
// and are not lost while imageroot is down.
func TestOverMinIO(t *testing.T) {
	c := loadCompose(t)
	dir := t.TempDir()
	at := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	var minioURL string
	environment := func(service string) (env []string) {
		for k, v := range c.Services[service].Environment {
			v = strings.ReplaceAll(v, "http://imageroot:8080", "http://"+at)
			v = strings.ReplaceAll(v, "http://minio:9000", minioURL)
			v = strings.ReplaceAll(v, "/minio/queue", filepath.Join(dir, "queue"))
			env = append(env, k+"="+v)
		}
		return append(env, "PATH="+os.Getenv("PATH"), "HOME="+t.TempDir())
	}
	server, err := minio.Start(t.Context(), minio.Options{Dir: filepath.Join(dir, "data"), Env: environment("minio")})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Kill() }()
	minioURL = server.URL

	mc, err := minio.Tool("mc")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it may be run again
		cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(root, "infra", "minio", "setup.sh"))
		cmd.Env = append(environment("setup"), "PATH="+filepath.Dir(mc)+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("setup.sh: %v\n%s", err, out)
		}
	}
	env := environment("imageroot")
	launch := runner.Options{Binary: released, Args: []string{"--listen", at}, Env: env}
	aws := func(args ...string) (string, string, error) {
		return run(t, env, "aws", append([]string{"--endpoint-url", minioURL}, args...)...)
	}
	put := func(name string) {
		t.Helper()
		if _, log, err := aws("s3", "cp", "--only-show-errors", write(t, filepath.Join(t.TempDir(), name), "the bytes of "+name), "s3://images/"); err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
	}
	kept := func() int {
		all, err := filepath.Glob(filepath.Join(dir, "queue", "*", "*.event"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}

	put("before.img")
	eventually(t, "MinIO keeps an event for an imageroot that is not there yet", func() error {
		if n := kept(); n != 1 {
			return fmt.Errorf("it keeps %d", n)
		}
		return nil
	})
	if _, log, err := aws("s3", "mb", "s3://others"); err == nil {
		t.Errorf("imageroot's user may make any bucket: %s", log)
	}
	p, err := runner.Start(t.Context(), launch)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.Kill() }()
	put("after.img")
	for _, name := range []string{"before.img", "after.img"} {
		eventually(t, name+" is hashed", func() error {
			body, err := get(t, p.Pages+"/images")
			if err == nil && !strings.Contains(body, `"`+name+`"`) {
				err = fmt.Errorf("there is %s", body)
			}
			return err
		})
	}
	eventually(t, "MinIO has sent what it kept", func() error {
		if n := kept(); n > 0 || !strings.Contains(p.Log(), "the first one has come") {
			return fmt.Errorf("it keeps %d, and the log is\n%s", n, p.Log())
		}
		return nil
	})
	cmd := exec.CommandContext(t.Context(), released, "doctor", "--listen", at)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "ok    server") || !strings.Contains(string(out), "ok    events") {
		t.Errorf("the doctor: %v\n%s", err, out)
	}
}

func get(t *testing.T, url string) (string, error) {
	res, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer func() { _ = res.Body.Close() }()
	var body []json.RawMessage
	if err := json.NewDecoder(res.Body).Decode(&body); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s", body), nil
}

func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	const patience = 3 * time.Minute
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
	}
}

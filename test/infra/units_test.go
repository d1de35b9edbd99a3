package infra

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// exposure is the limit for systemd-analyze security, in tenths: 0 is a service
// that can do nothing, 100 one that can do everything.
const exposure = "20"

// verify has systemd read units. programs replaces programs that this machine
// lacks.
func verify(t *testing.T, dir string, names []string, programs map[string]string) {
	t.Helper()
	var paths []string
	for _, name := range names {
		path := filepath.Join(dir, name)
		text := read(t, path)
		for from, to := range programs {
			text = strings.ReplaceAll(text, "="+from+" ", "="+to+" ")
			text = strings.ReplaceAll(text, "="+from+"\n", "="+to+"\n")
		}
		paths = append(paths, write(t, path, text))
	}
	out, log, err := run(t, []string{"SYSTEMD_UNIT_PATH=" + dir + ":"}, "systemd-analyze", append([]string{"verify", "--man=no"}, paths...)...)
	if err != nil {
		t.Errorf("systemd-analyze verify: %v", err)
	}
	// systemd does not fail for an unknown key.
	for line := range strings.Lines(out + log) {
		for _, name := range names {
			if strings.Contains(line, name) {
				t.Error(line)
			}
		}
	}
}

func TestUnits(t *testing.T) {
	dir := t.TempDir()
	units := map[string]string{"imageroot.service": "systemd", "minio.service": "minio"}
	var names []string
	for name, from := range units {
		names = append(names, name)
		write(t, filepath.Join(dir, name), read(t, filepath.Join(root, "infra", from, name)))
	}
	verify(t, dir, names, map[string]string{"/usr/local/bin/imageroot": abs(t, released), "/usr/local/bin/minio": "/bin/true"})
	for name := range units {
		out, log, err := run(t, nil, "systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold="+exposure, filepath.Join(dir, name))
		if err != nil {
			t.Errorf("%s is exposed too much: %v\n%s%s", name, err, out, log)
		}
		t.Log(strings.TrimSpace(out[max(0, strings.LastIndex(out, "Overall")):]))
	}
	// A faulty unit fails, so the check is effective.
	bad := write(t, filepath.Join(dir, "bad.service"), "[Service]\nExecStart=/bin/true\nProtectSystems=strict\n")
	if _, log, _ := run(t, nil, "systemd-analyze", "verify", "--man=no", bad); !strings.Contains(log, "ProtectSystems") {
		t.Errorf("a misspelled key was not found: %s", log)
	}
	if _, _, err := run(t, nil, "systemd-analyze", "security", "--offline=true", "--threshold="+exposure, bad); err == nil {
		t.Error("a unit without any protection passes")
	}
}

// section splits the output of quadlet -dryrun into services.
var section = regexp.MustCompile(`(?m)^---(\S+\.service)---\n`)

// quadlets has Podman's own generator make services from the files in dirs.
func quadlets(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range dirs {
		if err := os.CopyFS(dir, os.DirFS(filepath.Join(root, "infra", d))); err != nil {
			t.Fatal(err)
		}
	}
	out, log, err := tool(t, []string{"QUADLET_UNIT_DIRS=" + dir}, "tool", "quadlet", "-dryrun")
	if err != nil {
		t.Fatalf("quadlet: %v\n%s", err, log)
	}
	for line := range strings.Lines(log) {
		if strings.Contains(line, "quadlet-generator") && !strings.Contains(line, "Loading source ") {
			t.Errorf("quadlet: %s", line)
		}
	}
	made := map[string]string{}
	at := section.FindAllStringSubmatchIndex(out, -1)
	for i, m := range at {
		end := len(out)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		made[out[m[2]:m[3]]] = out[m[1]:end]
	}
	return made
}

func TestQuadlet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		dirs  []string
		holds map[string][]string
	}{
		{"alone", []string{"quadlet"}, map[string][]string{
			"imageroot.service": {
				"--publish 8080:8080", "--publish 9000:9000", "--read-only", "--cap-drop all", "no-new-privileges",
				"--user 65532:65532", "-v systemd-imageroot:/data", "--network systemd-imageroot", "Restart=always",
			},
			"imageroot-volume.service":  {"systemd-imageroot"},
			"imageroot-network.service": {"systemd-imageroot"},
		}},
		{"with MinIO", []string{"quadlet", "minio/quadlet"}, map[string][]string{
			"imageroot.service": {"--publish 8080:8080", "IMAGEROOT_S3_ENDPOINT=http://minio:9000", "target=IMAGEROOT_WEBHOOK_TOKEN"},
			"minio.service": {
				"--publish 9000:9000", "--publish 127.0.0.1:9001:9001", "--read-only", "--cap-drop all", "no-new-privileges",
				"MINIO_NOTIFY_WEBHOOK_ENABLE_IMAGEROOT=on", "MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_IMAGEROOT=/minio/", "target=MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_IMAGEROOT",
				"http://imageroot:8080/", "-v systemd-minio:/minio",
			},
			"minio-volume.service": {"systemd-minio"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made := quadlets(t, tt.dirs...)
			dir := t.TempDir()
			var names []string
			for name, text := range made {
				names = append(names, name)
				write(t, filepath.Join(dir, name), text)
			}
			for name, holds := range tt.holds {
				for _, h := range holds {
					if !strings.Contains(made[name], h) {
						t.Errorf("%s has no %q:\n%s", name, h, made[name])
					}
				}
			}
			if tt.name == "with MinIO" && strings.Contains(made["imageroot.service"], "--publish 9000:9000") {
				t.Error("both have port 9000")
			}
			verify(t, dir, names, map[string]string{"/usr/bin/podman": "/bin/true", "-/usr/bin/podman": "/bin/true"})
		})
	}
}

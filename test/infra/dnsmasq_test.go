package infra

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDnsmasq has dnsmasq read the files in the guide.
func TestDnsmasq(t *testing.T) {
	guide, err := os.ReadFile("../../docs/boot.md")
	if err != nil {
		t.Fatal(err)
	}
	files := regexp.MustCompile("(?s)```ini\n(.*?)```").FindAllSubmatch(guide, -1)
	if len(files) != 2 {
		t.Errorf("the guide has %d files", len(files))
	}
	for _, f := range files {
		path := filepath.Join(t.TempDir(), "dnsmasq.conf")
		if err := os.WriteFile(path, f[1], 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("dnsmasq", "--test", "-C", path).CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, f[1])
		}
	}
}

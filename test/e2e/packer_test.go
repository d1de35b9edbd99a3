package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/test/need"
)

// TestDeepPacker builds a machine's disk from an image here with Packer, which verifies it
// by the list beside it. The disk switches the machine off.
func TestDeepPacker(t *testing.T) {
	t.Parallel()
	need.Programs(t, "packer", "qemu-system-x86_64", "gzip")
	s, dir := Start(t, Options{}), t.TempDir()
	disk := make([]byte, 1<<20)
	// mov dx, 0x604; mov ax, 0x2000; out dx, ax; hlt: as ACPI switches a PC of qemu off.
	copy(disk, "\xba\x04\x06\xb8\x00\x20\xef\xf4")
	copy(disk[510:], "\x55\xaa")
	s.Put(t, "off.img", disk)
	if err := os.WriteFile(filepath.Join(dir, "off.img"), disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sh(t, dir, "gzip off.img"); err != nil {
		t.Fatal(err)
	}
	packed, err := os.ReadFile(filepath.Join(dir, "off.img.gz"))
	if err != nil {
		t.Fatal(err)
	}
	s.Put(t, "packed.img.gz", packed)
	sha := s.WaitRow(t, "packed.img.gz", "checked", func(r row) bool { return r.RawSHA256 != "" }).SHA256
	s.WaitRow(t, "off.img", "inspected", func(r row) bool { return r.RawSHA256 != "" })

	build := func(image, list string) error {
		template, err := json.Marshal(map[string]any{"builders": []any{map[string]any{
			"type": "qemu", "accelerator": "tcg", "headless": true, "disable_vnc": true, "qemuargs": [][]string{{"-display", "none"}}, "communicator": "none",
			"iso_url": image, "iso_checksum": "file:" + list, "disk_image": true, "disk_size": "1M", "format": "raw", "skip_compaction": true,
			"output_directory": "built", "vm_name": "off.img",
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "template.json"), template, 0o600); err != nil {
			t.Fatal(err)
		}
		return sh(t, dir, "rm -rf built cache; CHECKPOINT_DISABLE=1 PACKER_CACHE_DIR=cache HOME=$PWD packer build -color=false template.json 2>&1")
	}
	for image, list := range map[string]string{
		"/images/off.img": "/images/SHA256SUMS", "/raw/packed.img": "/raw/SHA256SUMS", "/raw/" + sha + "/packed.img": "/raw/" + sha + "/packed.img.sha256",
	} {
		if err := build(s.Pages+image, s.Pages+list); err != nil {
			t.Errorf("%s: %v", image, err)
			continue
		}
		if built, err := os.ReadFile(filepath.Join(dir, "built", "off.img")); err != nil || string(built) != string(disk) {
			t.Errorf("%s: Packer built another disk (%v)", image, err)
		}
	}
	for what, change := range map[string]func(path string, body []byte){
		"image": func(path string, body []byte) {
			if !strings.Contains(path, "SUMS") {
				body[1000]++
			}
		},
		"list": func(path string, body []byte) {
			if strings.Contains(path, "SUMS") {
				body[0] ^= 1 // still a digit or a letter of a digest, or no line at all
			}
		},
	} {
		damaged := damaging(t, s, change)
		if err := build(damaged+"/images/off.img", damaged+"/images/SHA256SUMS"); err == nil || !strings.Contains(err.Error(), "hecksum") {
			t.Errorf("a changed %s: %v", what, err)
		}
	}
}

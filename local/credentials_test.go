package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"imageroot/shared/config"
	"imageroot/shared/record/recordtest"
	"imageroot/shared/signing"
)

func TestRecords(t *testing.T) {
	recordtest.Documented[credentials](t, "..", "credentials.json")
	recordtest.Documented[signing.File](t, "..", "signing.json")
}

// A start finds the credentials of an earlier one: whole, damaged, or readable by
// others.
func TestCredentialsFound(t *testing.T) {
	load := func(dir string) (config.Config, *logged) {
		t.Helper()
		cfg, log := config.Config{Data: dir}, &logged{}
		if _, err := loadCredentials(&cfg, slog.New(slog.NewTextHandler(log, nil))); err != nil {
			t.Fatal(err)
		}
		return cfg, log
	}
	dir := t.TempDir()
	path := filepath.Join(dir, secretsFile)
	state := filepath.Dir(path)
	first, _ := load(dir)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if again, log := load(dir); again.Password != first.Password || again.S3SecretKey != first.S3SecretKey || log.String() != "" {
		t.Errorf("the second start has other credentials, or logs %s", log)
	}

	for _, p := range []string{path, state} {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
		again, log := load(dir)
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm() != 0o700 || again.Password != first.Password || !strings.Contains(log.String(), p) {
			t.Errorf("%s that others can read: %v, %v; the log says %s", p, info.Mode(), err, log)
		}
	}

	newer := `{"schema": 99, "password": ["another type"]}`
	if err := os.WriteFile(path, []byte(newer), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = loadCredentials(&config.Config{Data: dir}, slog.New(slog.DiscardHandler))
	if kept, rerr := os.ReadFile(path); err == nil || !strings.Contains(err.Error(), "version 99") || rerr != nil || string(kept) != newer {
		t.Errorf("of a newer version: %v; the file has %s (%v)", err, kept, rerr)
	}

	for how, bad := range map[string]string{"cut": string(whole[:20]), "garbled": "\x00\x01", "emptied": "", "a list": "[]"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		fresh, log := load(dir)
		if fresh.Password == "" || fresh.Password == first.Password || !strings.Contains(log.String(), path+".damaged") {
			t.Errorf("%s: the password is %q, the log says %s", how, fresh.Password, log)
		}
		if kept, err := os.ReadFile(path + ".damaged"); err != nil || string(kept) != bad {
			t.Errorf("%s: the damaged file is not kept: %q, %v", how, kept, err)
		}
		if again, _ := load(dir); again.Password != fresh.Password {
			t.Errorf("%s: the start after has another password", how)
		}
	}
}

package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"imageroot/local/gateway"
	"imageroot/shared/activity"
	"imageroot/shared/boot"
	"imageroot/shared/content"
	"imageroot/shared/digest"
	"imageroot/shared/disk"
	"imageroot/shared/image"
	"imageroot/shared/incus"
	"imageroot/shared/layout"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
)

// A filled store is the gateway, in this process, over a directory that has images and their
// records, and no index.
type filled struct {
	dir     string
	gateway *gateway.Gateway
}

// fill starts a store with count images. The files are written without S3, which would take
// hours. Images are sparse, so their digests are invented; the program reads none of their
// bytes, since all records are complete.
func (b *bench) fill(ctx context.Context, dir string, count int) (*filled, error) {
	f := &filled{dir: b.path(dir)}
	g, err := gateway.Start(ctx, gateway.Config{
		Listen: "127.0.0.1:0", Dir: f.dir, AccessKey: accessKey, SecretKey: secretKey,
		Watch: []string{"images"}, Poll: time.Hour, Changed: func(gateway.Event) {}, Exempt: netip.Addr.IsLoopback,
	})
	if err != nil {
		return nil, err
	}
	f.gateway = g
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: "http://" + g.Addr(), Region: "us-east-1", AccessKey: accessKey, SecretKey: secretKey, Direct: true})
	if err != nil {
		return nil, err
	}
	for _, bucket := range []string{"images", "catalog"} {
		if err := client.EnsureBucket(ctx, bucket); err != nil {
			return nil, err
		}
	}
	for _, prefix := range []string{layout.DigestPrefix, layout.ContentPrefix, layout.EventPrefix} {
		if err := os.MkdirAll(filepath.Join(f.dir, "catalog", prefix), 0o755); err != nil {
			return nil, err
		}
	}
	for i := range count {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := f.add(i); err != nil {
			return nil, err
		}
	}
	for i := range min(2*count, 3000) {
		at := time.Now().UTC().Add(time.Duration(-i) * time.Minute).Truncate(time.Microsecond)
		e := activity.Event{
			ID: layout.NewEventID(at, layout.Nonce()), TS: at, Kind: activity.ImageHashed, SubjectKind: activity.SubjectImage, SubjectID: nameOf(i % count),
			Actor: activity.System, Summary: "hashed " + nameOf(i%count), Details: map[string]any{},
		}
		if err := f.write(layout.EventKey(e.ID), &event{record.Format{Schema: 1}, e}); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *filled) close() error { return f.gateway.Close() }

// Parts of the names of images.
var (
	systems = []string{"debian-12-genericcloud", "ubuntu-24.04-server-cloudimg", "fedora-cloud-base-41", "alpine-virt-3.21", "freebsd-14.2-release", "opensuse-leap-15.6-minimal-vm", "rocky-9-genericcloud-base"}
	archs   = []string{"amd64", "arm64", "riscv64"}
	kinds   = []struct {
		suffix string
		kind   content.Kind
		what   string
		size   int64 // of a typical image
	}{
		{"qcow2", content.QCOW2, "a qcow2 image", 350 * mib},
		{"img", content.GPT, "a disk with a GPT", 2 * gib},
		{"iso", content.ISO9660, "an ISO 9660 image", 800 * mib},
		{"img.xz", content.XZ, "an xz stream", 450 * mib},
		{"raw.zst", content.Zstd, "a zstd stream", 500 * mib},
	}
)

// nameOf returns the name of image i.
func nameOf(i int) string {
	built := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(0, 0, i%700)
	return fmt.Sprintf("%s-%s-%s-%05d.%s", systems[i%len(systems)], archs[i%len(archs)], built.Format("20060102"), i, kinds[i%len(kinds)].suffix)
}

// add creates image i and its records.
func (f *filled) add(i int) error {
	name, kind := image.Name(nameOf(i)), kinds[i%len(kinds)]
	size := kind.size + int64(i)*4096
	if err := sparse(filepath.Join(f.dir, "images", string(name)), size); err != nil {
		return err
	}
	file, err := f.gateway.Open("images", string(name))
	if err != nil {
		return err
	}
	version := store.Version{ETag: file.ETag, Size: file.Size, LastModified: file.LastModified}
	file.Close()
	now := time.Now().UTC()
	whole := invented("image", name)
	known := content.Record{
		Meta: meta(), SHA256: whole, SizeBytes: size, SniffedAt: now,
		Content: content.Content{Kind: kind.kind, What: kind.what}, Boot: &boot.Ways{}, Inside: &disk.Inside{Inspector: disk.Version},
	}
	if known.Checkable() {
		disk := int64(8 * gib)
		known.VirtualSize = &disk
		known.Check = &content.Check{Verdict: content.Good, RawSizeBytes: &disk, RawSHA256: invented("disk", name), At: now}
	}
	if t := incus.Missing(&known, archs[i%len(archs)]); t != nil {
		known.Fingerprint = &content.Fingerprint{Metadata: t.SHA256, SHA256: invented("fingerprint", name)}
	}
	return errors.Join(
		f.write(layout.ContentKey(whole), &known),
		f.write(layout.DigestKey(name), &digest.Record{Meta: meta(), Name: name, Version: version, SHA256: whole, HashedAt: now, By: digest.ByUpload}),
	)
}

// invented returns the SHA-256 of a part of an image.
func invented(part string, name image.Name) layout.SHA256 {
	sum := sha256.Sum256([]byte(part + " " + string(name)))
	return layout.SHA256(hex.EncodeToString(sum[:]))
}

// An event is an event as package activity stores it.
type event struct {
	record.Format
	activity.Event
}

func meta() record.Meta { return record.Meta{Format: record.Format{Schema: 1}, Nonce: rand.Text()} }

// write writes a record.
func (f *filled) write(key store.Key, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(f.dir, "catalog", string(key)), data, 0o600)
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// diskKinds are the images that are expanded, and the tools that one would use.
var diskKinds = []struct {
	name, pack, unpack string
	bound              *bound
}{
	// The job also computes the SHA-256, which takes longer than zstd.
	{"disk.img.zst", "zstd -q -c", "zstd -dc", atLeast(0.6)},
	{"disk.img.gz", "gzip -c", "gzip -dc", atLeast(1)},
	{"disk.img.xz", "xz -1 -T1 -c", "xz -dc", atLeast(0.9)},
}

// disk compares the job that makes the disk of a compressed image with the kind's own tool and
// dd, both until the disk is in a sparse file that is synced. The job verifies the disk, too.
func (b *bench) disk(ctx context.Context) error {
	raw, size, err := b.files(ctx, 4)
	if err != nil {
		return err
	}
	defer os.Remove(raw)
	s, err := b.server(ctx, "disk")
	if err != nil {
		return err
	}
	defer s.remove()
	for _, k := range diskKinds {
		packed := b.path(k.name) // the server would hash and check an image that grows
		if err := (tool{args: []string{"sh", "-ec", k.pack + " " + raw + " > " + packed}}).run(ctx, b.dir); err != nil {
			return err
		}
		if err := os.Rename(packed, s.image(k.name)); err != nil {
			return err
		}
		if _, err := s.completed(ctx, hashes, k.name); err != nil {
			return err
		}
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	for _, k := range diskKinds {
		var blocks [2]int64
		ours := func(int) (took float64, err error) {
			if err := settle(s.image(k.name)); err != nil {
				return 0, err
			}
			took, blocks[0], err = s.makeDisk(ctx, k.name)
			return took, err
		}
		peer := func(int) (float64, error) {
			if err := settle(s.image(k.name)); err != nil {
				return 0, err
			}
			out := b.path("raw.out")
			defer os.Remove(out)
			took, err := tool{args: []string{"sh", "-ec", k.unpack + " " + s.image(k.name) + " | dd of=" + out + " iflag=fullblock bs=64k conv=sparse,fsync status=none"}}.time(ctx, b.dir)
			if err == nil {
				blocks[1], err = allocated(out)
			}
			return took, err
		}
		o, p, err := b.turns(ours, peer)
		if err != nil {
			return err
		}
		b.report.faster("disk", formatBytes(size)+" of "+k.name, series{"imageroot", unitSeconds, o},
			series{k.unpack + " | dd conv=sparse,fsync", unitSeconds, p}, k.bound)
		b.report.absolute("disk", "blocks that the disk of "+k.name+" takes", unitOfDD, []float64{float64(blocks[0]) / float64(blocks[1])}, atMost(1.05))
	}
	return nil
}

// makeDisk makes the disk of an image, which it removes then. It returns the seconds that the
// job took, and the bytes that the disk takes.
func (s *server) makeDisk(ctx context.Context, name string) (took float64, bytes int64, err error) {
	if _, err := s.do(ctx, http.MethodPost, "/catalog/disks", map[string]any{"name": name}); err != nil {
		return 0, 0, err
	}
	var j job
	err = until(ctx, 10*time.Minute, 10*time.Millisecond, "the disk of "+name, func() (bool, error) {
		data, err := s.do(ctx, http.MethodGet, "/catalog/disks", nil)
		if err != nil {
			return false, err
		}
		var list struct{ Jobs []job }
		if err := json.Unmarshal(data, &list); err != nil {
			return false, err
		}
		for _, j = range list.Jobs {
			if j.Name == name {
				break
			}
		}
		if j.Status == "failed" || j.Attempt > 1 {
			return false, fmt.Errorf("the job is %+v", j)
		}
		return j.Status == "completed", nil
	})
	if err != nil {
		return 0, 0, err
	}
	if bytes, err = allocated(filepath.Join(s.data, "catalog", "disks", j.SHA256)); err != nil {
		return 0, 0, err
	}
	_, err = s.do(ctx, http.MethodDelete, "/catalog/disks/"+j.SHA256, nil)
	return j.FinishedAt.Sub(*j.StartedAt).Seconds(), bytes, err
}

// allocated returns the bytes of the blocks that a file takes.
func allocated(path string) (int64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	const block = 512 // of st_blocks, whatever the file system
	return info.Sys().(*syscall.Stat_t).Blocks * block, nil
}

// unitOfDD is a share of what dd takes.
const unitOfDD = "of dd's"

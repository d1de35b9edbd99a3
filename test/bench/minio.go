package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"imageroot/test/minio"
)

// minio measures PUT, GET and hash again with a MinIO server instead of the gateway, if "make
// servers" has built one.
func (b *bench) minio(ctx context.Context) error {
	if _, err := minio.Tool("minio"); err != nil {
		b.say("left out: %v", err)
		return nil
	}
	f, err := b.large(ctx)
	if err != nil {
		return err
	}
	if err := b.room(3 * f.size); err != nil {
		return err
	}
	starting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	m, err := minio.Start(starting, minio.Options{Dir: b.path("minio")})
	if err != nil {
		return err
	}
	defer func() { _ = m.Kill() }() // the results do not depend on its end
	s := b.serverOver("over-minio", m.URL, minio.AccessKey, minio.SecretKey)
	if err := s.start(ctx); err != nil {
		return err
	}
	defer s.remove()
	remove := func(name string) error {
		if err := s.idle(ctx); err != nil {
			return err
		}
		_, err := s.do(ctx, http.MethodDelete, "/images/"+name, nil)
		return err
	}
	size := formatBytes(f.size)

	put, copied, err := b.turns(
		func(int) (float64, error) {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			took, err := tool{args: []string{"curl", "-sS", "--fail", "-o", "/dev/null", "-H", "Authorization: Bearer " + token, "-T", f.path, s.Pages + "/images/put.img"}}.time(ctx, b.dir)
			if err != nil {
				return 0, err
			}
			return took, remove("put.img")
		},
		func(int) (float64, error) {
			if err := settle(f.path); err != nil {
				return 0, err
			}
			took, err := s.aws("s3", "cp", "--only-show-errors", f.path, "s3://images/copied.bin").time(ctx, b.dir) // not an image, so it is not hashed
			if err != nil {
				return 0, err
			}
			return took, s.aws("s3", "rm", "--only-show-errors", "s3://images/copied.bin").run(ctx, b.dir)
		})
	if err != nil {
		return err
	}
	b.report.longer("minio", size+" uploaded, with its digest", series{"imageroot over MinIO", unitSeconds, put}, series{"aws s3 cp, no digest", unitSeconds, copied}, nil)

	if err := s.aws("s3", "cp", "--only-show-errors", f.path, "s3://images/served.img").run(ctx, b.dir); err != nil {
		return err
	}
	var hashed []float64
	hash := func(name string) error {
		j, err := s.completed(ctx, hashes, name)
		if err == nil && (j.SHA256 != f.sha256 || j.Attempt != 1) {
			err = fmt.Errorf("job %+v, want the digest %s at the first attempt", j, f.sha256)
		}
		if err == nil {
			hashed = append(hashed, j.FinishedAt.Sub(*j.StartedAt).Seconds())
		}
		return err
	}
	if err := hash("served.img"); err != nil {
		return err
	}
	if err := s.idle(ctx); err != nil {
		return err
	}
	got, fetched, err := b.turns(
		func(int) (float64, error) {
			return tool{args: []string{"curl", "-sS", "--fail", "-o", "/dev/null", s.Pages + "/images/" + f.sha256 + "/served.img"}}.time(ctx, b.dir)
		},
		func(int) (float64, error) {
			return s.aws("s3", "cp", "--only-show-errors", "s3://images/served.img", "-").time(ctx, b.dir)
		})
	if err != nil {
		return err
	}
	b.report.longer("minio", size+" by digest, to /dev/null", series{"imageroot over MinIO, curl", unitSeconds, got}, series{"aws s3 cp s3://... -", unitSeconds, fetched}, nil)

	for round := 1; round < b.rounds; round++ {
		name := fmt.Sprintf("hashed-%d.img", round)
		if err := s.aws("s3", "cp", "--only-show-errors", "s3://images/served.img", "s3://images/"+name).run(ctx, b.dir); err != nil {
			return err
		}
		if err := hash(name); err != nil {
			return err
		}
		if err := remove(name); err != nil {
			return err
		}
	}
	var openssl []float64
	for range b.rounds {
		if err := settle(f.path); err != nil {
			return err
		}
		var out strings.Builder
		took, err := tool{args: []string{"openssl", "dgst", "-sha256", f.path}, out: &out}.time(ctx, b.dir)
		if err != nil {
			return err
		}
		openssl = append(openssl, took)
	}
	b.report.faster("minio", size+" hashed", series{"imageroot over MinIO", unitSeconds, hashed}, series{"openssl dgst -sha256", unitSeconds, openssl}, nil)
	return nil
}

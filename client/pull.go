package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/progress"
	"imageroot/shared/digest"
	"imageroot/shared/image"
	"imageroot/shared/layout"
)

// A pull is the command imageroot pull.
type pull struct {
	*app
	*api.Client
	out   string // --output
	raw   bool   // --raw
	force bool   // --force
}

func (a *app) pull() *cobra.Command {
	p := &pull{app: a}
	cmd := &cobra.Command{
		Use:   "pull NAME|SHA256",
		Short: "Download an image, verified",
		Long: `Downloads an image to a file, and verifies its SHA-256. The file has its name once all bytes are there and
right; until then they are in a file that ends in .part. If the connection breaks, it tries again; if the
command is ended, the same command resumes.

With --raw, the disk in the image is downloaded: decompressed, or read from the virtual image. Zeros take no
room in the file.`,
		Example: `  imageroot pull debian-13.qcow2
  imageroot pull 080acf35a507 -o lab.img
  imageroot pull --raw debian-13.qcow2 -o disk.img
  imageroot pull lab.iso -o - | head -c 1M | file -`,
		Args: one("image"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if p.Client, err = a.connect(); err != nil {
				return err
			}
			err = p.pull(cmd.Context(), args[0])
			if errors.Is(err, context.Canceled) {
				return exit.With(exit.Interrupted, errors.New("interrupted; the same command resumes"))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVarP(&p.out, "output", "o", "", "file or directory to write to, or - for standard output (default: the image's name, here)")
	f.BoolVar(&p.raw, "raw", false, "download the disk in the image")
	f.BoolVar(&p.force, "force", false, "replace a file of that name")
	return cmd
}

// A remote is what the server says of the bytes to download.
type remote struct {
	path   string
	name   string // for the file; empty if the server gives none
	sha256 string // empty if the server does not know it yet
	size   int64  // -1 if the server does not know it yet
	etag   string
	ranges bool
}

func (p *pull) pull(ctx context.Context, key string) error {
	r, err := p.head(ctx, key)
	if err != nil {
		return err
	}
	if layout.SHA256(key).Valid() && !p.raw {
		r.sha256 = key // whatever the server says
	}
	if p.out == "-" {
		return p.toStdout(ctx, r)
	}
	path, err := p.place(r)
	if err != nil {
		return err
	}
	if r.sha256 == "" {
		return fmt.Errorf("the server does not know the SHA-256 of %s yet, so it cannot be verified: try again later, or use -o - to have the bytes as they are", line(r.name))
	}
	begun := time.Now()
	size, err := p.download(ctx, r, path)
	if err != nil {
		return err
	}
	if p.json {
		doc, err := json.Marshal(map[string]any{"path": path, "size_bytes": size, "sha256": r.sha256})
		if err != nil {
			return err
		}
		return p.printJSON(doc)
	}
	_, err = fmt.Fprintf(p.Stdout, "%s: %s in %s, SHA-256 %s\n", line(path), progress.Bytes(size), progress.Duration(time.Since(begun)), r.sha256)
	return err
}

// head asks for the image that key names. The beginning of a SHA-256 needs the operator.
func (p *pull) head(ctx context.Context, key string) (remote, error) {
	r, err := p.ask(ctx, key)
	if api.IsStatus(err, http.StatusNotFound) && api.IsPrefix(key) && p.HasCredentials() {
		row, ferr := p.Find(ctx, key)
		if ferr != nil {
			return remote{}, ferr
		}
		return p.ask(ctx, row.SHA256)
	}
	return r, err
}

func (p *pull) ask(ctx context.Context, key string) (r remote, err error) {
	r.path, r.size = "/images/"+url.PathEscape(key), -1
	if p.raw {
		r.path = "/raw/" + url.PathEscape(key)
	}
	header := http.Header{"Accept": {"*/*"}}
	res, err := p.Send(ctx, api.Request{Method: http.MethodHead, Path: r.path, Header: header, NoRedirect: true})
	if api.IsStatus(err, http.StatusNotFound) {
		return r, &api.Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("%s has no image %q, or it is available but not cached (imageroot ls lists the images)", p.URL(), key)}
	}
	if err != nil {
		return r, p.reason(ctx, r, err)
	}
	_ = res.Body.Close()
	if e, err := digest.ParseRequest(http.Header{"Repr-Digest": res.Header.Values("Repr-Digest")}); err == nil {
		r.sha256 = string(e.SHA256)
	}
	if sha256, ok := layout.ParseSHA256(strings.ToLower(key)); ok && !p.raw {
		r.sha256 = string(sha256) // whatever the server says
	}
	if name, err := image.ParseName(key); err == nil {
		r.name = string(name)
		if p.raw {
			r.name = string(image.DiskName(name))
		}
	}
	if res.StatusCode >= 300 { // to a store, which knows the rest
		res, err = p.Send(ctx, api.Request{Method: http.MethodHead, Path: r.path, Header: header})
		if err != nil {
			return r, err
		}
		_ = res.Body.Close()
	}
	r.size, r.etag, r.ranges = res.ContentLength, res.Header.Get("ETag"), res.Header.Get("Accept-Ranges") == "bytes"
	if _, params, err := mime.ParseMediaType(res.Header.Get("Content-Disposition")); err == nil && params["filename"] != "" {
		r.name = params["filename"]
	}
	return r, nil
}

// reason returns the problem behind the answer to a HEAD, which has no body.
func (p *pull) reason(ctx context.Context, r remote, err error) error {
	if _, ok := errors.AsType[*api.Problem](err); !ok {
		return err
	}
	res, gerr := p.Send(ctx, api.Request{Method: http.MethodGet, Path: r.path, Header: http.Header{"Accept": {"application/json"}}})
	if gerr != nil {
		return gerr
	}
	_ = res.Body.Close()
	return err
}

// place returns the path of the file to write.
func (p *pull) place(r remote) (string, error) {
	path := p.out
	if info, err := os.Stat(path); path == "" || err == nil && info.IsDir() {
		name, err := image.ParseName(r.name)
		if err != nil { // from a server that is not to choose any path
			return "", exit.With(exit.Usage, errors.New("the server gives the image no name that a file can have: give one with -o"))
		}
		path = filepath.Join(path, string(name))
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return path, nil
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file: imageroot flash writes to devices", line(path))
	case !p.force:
		return "", fmt.Errorf("%s exists: --force replaces it, -o names another file", line(path))
	}
	return path, nil
}

// download writes the bytes to path, and returns their number.
func (p *pull) download(ctx context.Context, r remote, path string) (int64, error) {
	part := partOf(path, r.sha256)
	f, err := os.OpenFile(part, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := lock(f); err != nil {
		return 0, fmt.Errorf("another imageroot pull writes %s", line(part))
	}
	bar := progress.New(p.Stderr, filepath.Base(path), r.size)
	defer bar.End()
	w := newDownload(func(b []byte, at int64) error { return writeSparse(f, b, at) }, func() error { return f.Truncate(0) })
	defer w.close()
	bar.Say("reading what is there")
	if err := w.resume(ctx, f, bar); err != nil {
		return 0, err
	}
	bar.Say("")
	if err := p.transfer(ctx, r, w, bar); err != nil {
		return 0, err
	}
	if got := string(w.sha256()); got != r.sha256 {
		_ = os.Remove(part)
		return 0, exit.With(exit.Mismatch, fmt.Errorf("%s came with the SHA-256 %s, not %s: it is removed", line(r.name), got, r.sha256))
	}
	if err := f.Truncate(w.size); err != nil { // it may end with a hole
		return 0, err
	}
	return w.size, os.Rename(part, path)
}

// partOf returns the path of the file for the first bytes of a download to path. Its name has
// the digest, so that they are always the beginning of these bytes.
func partOf(path, sha256 string) string {
	dir, name := filepath.Split(path)
	end := fmt.Sprintf(".%.12s.part", sha256)
	name = strings.ToValidUTF8(name[:min(len(name), image.MaxNameBytes-len(end))], "")
	return filepath.Join(dir, name+end)
}

// transfer writes the bytes from w.size on, and tries again where the connection breaks.
func (p *pull) transfer(ctx context.Context, r remote, w *download, bar *progress.Bar) error {
	return trying(ctx, bar, func(moved func()) error {
		if w.size == r.size {
			return nil
		}
		if w.size > 0 && (!r.ranges || w.size > r.size) {
			if err := w.reset(); err != nil {
				return err
			}
		}
		bar.Set(w.size)
		return p.get(ctx, r, w, func(n int) { moved(); bar.Add(int64(n)) })
	})
}

// get requests the bytes from w.size on, or all if the server cannot send those. An error
// of the connection is an api.Unreachable.
func (p *pull) get(ctx context.Context, r remote, w *download, count func(int)) error {
	watched, alive, stop := watch(ctx)
	defer stop()
	from := w.size
	header := http.Header{"Accept": {"*/*"}}
	if from > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", from))
		if r.etag != "" {
			header.Set("If-Range", r.etag)
		}
	}
	res, err := p.Send(watched, api.Request{Method: http.MethodGet, Path: r.path, Header: header})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if from > 0 && res.StatusCode != http.StatusPartialContent {
		if err := w.reset(); err != nil {
			return err
		}
	}
	if got := res.Header.Get("Content-Range"); from > 0 && res.StatusCode == http.StatusPartialContent && !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", from)) {
		return fmt.Errorf("%s sent another range than it was asked for: %q", p.URL(), got)
	}
	for {
		block := w.block()
		n, err := res.Body.Read(block)
		alive()
		count(n)
		if err := w.write(block[:n]); err != nil {
			return err
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return &api.Unreachable{Host: p.URL(), Err: err}
		}
	}
}

// toStdout writes the bytes to standard output. It resumes after a broken connection. It
// returns an error for a wrong digest after it has written the bytes.
func (p *pull) toStdout(ctx context.Context, r remote) error {
	w := newDownload(func(b []byte, _ int64) error { _, err := p.Stdout.Write(b); return err },
		func() error { return errors.New("the server cannot resume where the connection broke") })
	defer w.close()
	if err := p.transfer(ctx, r, w, nil); err != nil {
		return err
	}
	if got := string(w.sha256()); r.sha256 != "" && got != r.sha256 {
		return exit.With(exit.Mismatch, fmt.Errorf("the bytes have the SHA-256 %s, not %s", got, r.sha256))
	}
	return nil
}

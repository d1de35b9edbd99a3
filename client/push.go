package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/progress"
	"imageroot/shared/image"
)

// A push is the command imageroot push.
type push struct {
	*app
	*api.Client
	name     string // --name
	force    bool   // --force
	parallel int    // --parallel
}

// pushed is the result of a push: UploadedImage of docs/openapi.yaml.
type pushed struct {
	Name      string `json:"name"`
	SizeBytes int64  `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	Format    string `json:"format"`
}

func (a *app) push() *cobra.Command {
	p := &push{app: a}
	cmd := &cobra.Command{
		Use:   "push FILE ...",
		Short: "Upload images",
		Long: `Uploads image files in parts. If the connection breaks, it tries again; if the command is ended, or the
machine restarts, the same command resumes: what was sent is compared with the file, and not sent again. At
the end, the server's SHA-256 is compared with that of the file.

The name of an image is that of its file, unless --name gives another one. An image of that name is not
replaced without --force, also if another machine uploads it at the same time. If it has the same bytes,
nothing is sent.

With - as FILE, the image is read from standard input. That cannot be resumed.`,
		Example: `  imageroot push debian-13.qcow2
  imageroot push *.img.xz
  imageroot push --force --name lab.img /tmp/new.img
  zstd -c lab.img | imageroot push --name lab.img.zst -`,
		Args: func(_ *cobra.Command, files []string) error {
			switch {
			case len(files) == 0:
				return errors.New("give the files to upload")
			case len(files) > 1 && p.name != "":
				return errors.New("--name is for one file")
			case p.parallel < 0 || p.parallel > 32:
				return errors.New("--parallel is a number from 1 to 32")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, files []string) (err error) {
			if p.Client, err = a.connect(); err != nil {
				return err
			}
			all := []pushed{}
			for _, file := range files {
				done, perr := p.push(cmd.Context(), file)
				if errors.Is(perr, context.Canceled) {
					return exit.With(exit.Interrupted, fmt.Errorf("interrupted; the same command resumes the upload of %s", line(file)))
				}
				if perr != nil {
					err = errors.Join(err, fmt.Errorf("%s: %w", line(file), perr))
					continue
				}
				all = append(all, done)
			}
			if a.json {
				doc, jerr := json.Marshal(all)
				return errors.Join(err, jerr, a.printJSON(doc))
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.name, "name", "", "name of the image (default: that of the file)")
	f.BoolVar(&p.force, "force", false, "replace an image of that name")
	f.IntVar(&p.parallel, "parallel", 0, "how many parts are sent at once (default: 1, and 4 if they go directly to a store)")
	return cmd
}

// push uploads a file.
func (p *push) push(ctx context.Context, path string) (pushed, error) {
	if path == "-" {
		return p.pushStdin(ctx)
	}
	f, err := os.Open(path)
	if err != nil {
		if perr, ok := errors.AsType[*fs.PathError](err); ok {
			err = perr.Err // the caller names the file
		}
		return pushed{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return pushed{}, err
	}
	size, err := f.Seek(0, io.SeekEnd) // the size of a drive, too
	switch {
	case info.IsDir():
		return pushed{}, errors.New("this is a directory: give the image files in it")
	case err != nil:
		return pushed{}, err
	case size == 0:
		return pushed{}, errors.New("the file is empty")
	}
	name, err := p.nameOf(filepath.Base(path))
	if err != nil {
		return pushed{}, err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return pushed{}, err
	}
	state, err := openState(p.Environment.StateDir, stateHead{URL: p.URL(), Name: name, Path: abs, Size: size, Modified: info.ModTime()})
	if err != nil {
		return pushed{}, err
	}
	done := false
	defer func() { state.close(done) }()

	begun := time.Now()
	bar := progress.New(p.Stderr, name, size)
	u := &upload{Client: p.Client, name: name, file: f, size: size, replace: p.force, parallel: p.parallel, state: state, bar: bar}
	sum, there, err := p.upload(ctx, u)
	bar.End()
	if err != nil {
		done = errors.Is(err, errChanged)
		return pushed{}, err
	}
	done = true
	text := fmt.Sprintf("%s: %s in %s", name, progress.Bytes(size), progress.Duration(time.Since(begun)))
	if there {
		text = name + ": the server has these bytes already"
	}
	return p.report(name, size, sum, text)
}

// report prints what was done, unless --json does.
func (p *push) report(name string, size int64, sum, text string) (pushed, error) {
	format, _ := image.FormatOf(image.Name(name))
	if !p.json {
		if _, err := fmt.Fprintf(p.Stdout, "%s, SHA-256 %s\n", line(text), sum); err != nil {
			return pushed{}, err
		}
	}
	return pushed{Name: name, SizeBytes: size, SHA256: sum, Format: string(format)}, nil
}

// nameOf returns the name for an image from a file.
func (p *push) nameOf(file string) (string, error) {
	if p.name != "" {
		file = p.name
	}
	name, err := image.ParseName(file)
	if err != nil {
		return "", exit.With(exit.Usage, fmt.Errorf("%w; --name gives the image another name", err))
	}
	return string(name), nil
}

// upload sends a file, and returns its SHA-256. An image of its name is replaced only with
// --force. If that has the same bytes, there is true.
func (p *push) upload(ctx context.Context, u *upload) (sum string, there bool, err error) {
	if p.force && u.state.head.ID == "" {
		if sum, err := p.same(ctx, u); err != nil || sum != "" {
			return sum, true, err
		}
	}
	view, sum, err := u.run(ctx)
	taken := api.IsStatus(err, http.StatusPreconditionFailed)
	if taken {
		err = fmt.Errorf("the server has an image %s: --force replaces it, and --name gives this one another name", line(u.name))
	}
	if taken || view.Status == api.Failed {
		if sum, serr := p.same(ctx, u); serr == nil && sum != "" {
			if u.view.ID != "" {
				_ = u.AbandonUpload(ctx, u.view.ID)
			}
			return sum, true, nil
		}
	}
	if err != nil || view.SHA256 != "" {
		return sum, false, err
	}
	return sum, false, p.hashed(ctx, u, sum)
}

// same returns the SHA-256 of the file if the image of its name has that, or "".
func (p *push) same(ctx context.Context, u *upload) (string, error) {
	r, err := p.Stored(ctx, u.name)
	if err != nil || r == nil || r.SHA256 == "" || r.SizeBytes == nil || *r.SizeBytes != u.size {
		return "", err
	}
	u.bar.Say("comparing the file with the image on the server")
	defer u.bar.Say("")
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(u.file, 0, u.size)); err != nil {
		return "", err
	}
	if sum := hex.EncodeToString(h.Sum(nil)); sum == r.SHA256 {
		return sum, nil
	}
	return "", nil
}

// hashed waits until the server has hashed an image, and compares its SHA-256 with sum.
func (p *push) hashed(ctx context.Context, u *upload, sum string) error {
	begun := time.Now()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		var r *api.Row
		err := trying(ctx, u.bar, func(func()) (err error) { r, err = p.Stored(ctx, u.name); return err })
		switch {
		case err != nil:
			return err
		case r != nil && r.SHA256 == sum:
			return nil
		case r != nil && r.HashState == "failed":
			return errors.New("the server has the image, and could not hash it: imageroot show says why")
		case r != nil && r.SHA256 != "" && time.Since(begun) > 10*time.Second: // before, it may be that of the image before
			return errChanged
		}
		u.bar.Say("all bytes are sent; the server hashes them")
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// pushStdin uploads standard input.
func (p *push) pushStdin(ctx context.Context) (pushed, error) {
	if p.name == "" {
		return pushed{}, exit.With(exit.Usage, errors.New("an image from standard input needs a name: --name NAME"))
	}
	name, err := p.nameOf("")
	if err != nil {
		return pushed{}, err
	}
	bar := progress.New(p.Stderr, name, 0)
	defer bar.End()
	h := sha256.New()
	ctx, alive, stop := watch(ctx)
	defer stop()
	begun := time.Now()
	body := &counted{Reader: io.TeeReader(p.Stdin, h), count: func(n int64) { alive(); bar.Add(n) }}
	header := api.Condition(p.force)
	header.Set("Expect", "100-continue") // the server refuses before the bytes are sent
	header.Set("Content-Type", "application/octet-stream")
	res, err := p.Send(ctx, api.Request{Method: http.MethodPut, Path: api.ImagePath(name), Body: body, Length: -1, NoRedirect: true, Header: header})
	if api.IsStatus(err, http.StatusPreconditionFailed) {
		return pushed{}, fmt.Errorf("the server has an image %s: --force replaces it", line(name))
	}
	if err != nil {
		return pushed{}, err
	}
	defer res.Body.Close()
	var got pushed
	if res.StatusCode != http.StatusCreated || json.NewDecoder(io.LimitReader(res.Body, 64<<10)).Decode(&got) != nil {
		return pushed{}, errors.New("this server needs to know the size of an image before it is sent: write it to a file, and push that")
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if got.SHA256 != sum {
		return pushed{}, errChanged
	}
	bar.End()
	return p.report(name, body.n, sum, fmt.Sprintf("%s: %s in %s", name, progress.Bytes(body.n), progress.Duration(time.Since(begun))))
}

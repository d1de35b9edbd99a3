package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/flash"
	"imageroot/client/progress"
	"imageroot/shared/layout"
)

// A flashing is one run of imageroot flash.
type flashing struct {
	*app
	*api.Client
	name string
	yes  bool // --yes

	device *flash.Device
	disk   api.Disk
	bar    *progress.Bar
}

// flashed is the result of a flash.
type flashed struct {
	Name      string `json:"name"`
	Device    string `json:"device"`
	SizeBytes int64  `json:"size_bytes"`
	RawSHA256 string `json:"raw_sha256"`
	// Direct is false if what was read back may have been in memory.
	Direct bool `json:"direct"`
}

func (a *app) flash() *cobra.Command {
	f := &flashing{app: a}
	cmd := &cobra.Command{
		Use:   "flash NAME|SHA256 DEVICE",
		Short: "Write an image to a disk, and verify it",
		Long: `Writes the disk in an image to DEVICE, whatever the image's format: a compressed one decompressed, a
virtual one as a guest would read it. Then it reads the device back, past the memory that the system keeps
of it, and compares the SHA-256 with the server's. By its SHA-256, an image is what you gave, whatever the
server says: one that is compressed or virtual is downloaded twice, to find out first which disk is in it.

It refuses a disk that is mounted or otherwise in use, that has the running system on it, or that is too
small. It shows what DEVICE is and what is on it, and asks on the terminal before it overwrites that. DEVICE
may be a regular file that is large enough.

Zeros are not written if the device makes holes by itself, or has zeros there. A download that is cut off
resumes. If the command is ended, the same one resumes, after it has compared what is on the device.

The device is opened as you: run it as root, or let your user write to the device.`,
		Example: `  imageroot flash raspios-lite.img.xz /dev/sdX
  imageroot flash --yes ci-runner.img.zst /dev/disk/by-id/usb-Generic_STORAGE_DEVICE-0:0`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("give an image and a device")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if f.Client, err = a.connect(); err != nil {
				return err
			}
			f.name = args[0]
			err = f.run(cmd.Context(), args[1])
			if errors.Is(err, context.Canceled) {
				return exit.With(exit.Interrupted, fmt.Errorf("interrupted; %s may be overwritten in part, and the same command resumes", line(args[1])))
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&f.yes, "yes", "y", false, "do not ask")
	return cmd
}

func (f *flashing) run(ctx context.Context, path string) (err error) {
	if f.device, err = flash.Open(path); err != nil {
		return err
	}
	defer f.device.Close()
	if err := f.ready(ctx, 0); err != nil {
		return err
	}
	if err := f.device.Fits(f.disk.Size); err != nil {
		return err
	}
	if err := f.confirm(); err != nil {
		return err
	}
	if err := f.prove(ctx); err != nil {
		return err
	}
	begun := time.Now()
	kept := newFlashState(f.Environment.StateDir, flashHead{Device: f.device.Path, ID: f.device.ID, RawSHA256: f.disk.SHA256})
	w, err := f.resume(ctx, kept)
	if err != nil {
		return err
	}
	if err := f.write(ctx, w, kept); err != nil {
		return err
	}
	kept.remove()
	if w.Sum() != f.disk.SHA256 {
		return exit.With(exit.Mismatch, fmt.Errorf("the download was damaged: its SHA-256 is %s, and that of the disk in %s %s", w.Sum(), line(f.name), f.disk.SHA256))
	}
	f.bar = progress.New(f.Stderr, "reading back", f.disk.Size)
	defer f.bar.End()
	direct, err := f.device.Verify(ctx, f.disk.Size, f.disk.SHA256, f.bar.Add)
	if errors.Is(err, flash.ErrDiffers) {
		err = exit.With(exit.Mismatch, err)
	}
	if err != nil {
		return err
	}
	f.bar.End()
	f.device.ReadPartitions()
	if f.json {
		doc, err := json.Marshal(flashed{f.name, f.device.Path, f.disk.Size, f.disk.SHA256, direct})
		return errors.Join(err, f.printJSON(doc))
	}
	from := ""
	if !direct {
		from = ", perhaps from memory,"
	}
	whose := "the server's SHA-256"
	switch {
	case f.name == f.disk.SHA256:
		whose = "the SHA-256 that was given"
	case layout.SHA256(f.name).Valid():
		whose = "the SHA-256 of the disk in the image that was given"
	}
	_, err = fmt.Fprintf(f.Stdout, "%s is on %s, after %s. Verified: %s were read back%s and have %s, %s\n",
		line(f.name), line(f.device.Path), progress.Duration(time.Since(begun)), progress.Bytes(f.disk.Size), from, whose, f.disk.SHA256)
	return err
}

// ready sets the disk once the server can send it from an offset on.
func (f *flashing) ready(ctx context.Context, from int64) error {
	if f.bar == nil {
		f.bar = progress.New(f.Stderr, f.name, 0)
		defer func() { f.bar.End(); f.bar = nil }()
	}
	return trying(ctx, f.bar, func(moved func()) error {
		d, err := f.Disk(ctx, f.name, from)
		if p, ok := errors.AsType[*api.Problem](err); ok && p.Temporary() {
			moved() // the server works on it
		}
		if err == nil && f.disk.SHA256 != "" && d.SHA256 != f.disk.SHA256 {
			err = fmt.Errorf("another image has the name %s now: begin again", line(f.name))
		}
		if err == nil {
			f.disk = d
		}
		return err
	})
}

// confirm shows the device and asks whether to overwrite it.
func (f *flashing) confirm() error {
	d := f.device
	what := "a regular file"
	if !d.Regular {
		what = d.Model
		if what == "" {
			what = "a disk of unknown model"
		}
		if d.Removable {
			what += ", removable"
		}
	}
	fmt.Fprintf(f.Stderr, "%s: %s, %s\n", line(d.Path), line(what), progress.Bytes(d.Size))
	for _, p := range d.Parts {
		text := fmt.Sprintf("%s: %s", p.Name, progress.Bytes(p.Size))
		for _, more := range []string{p.PartLabel, p.FileSystem, p.Label} {
			if more != "" {
				text += ", " + more
			}
		}
		fmt.Fprintln(f.Stderr, "  "+line(text))
	}
	if f.yes {
		return nil
	}
	ok, err := confirm(fmt.Sprintf("Overwrite it with %s (%s)?", line(f.name), progress.Bytes(f.disk.Size)))
	switch {
	case errors.Is(err, errNoTerminal):
		return exit.With(exit.Usage, fmt.Errorf("%w: --yes overwrites %s without a question", err, line(d.Path)))
	case err != nil:
		return err
	case !ok:
		return errors.New("nothing was written")
	}
	return nil
}

// resume returns the writer of an earlier run, if the device has what that wrote, or a new
// one.
func (f *flashing) resume(ctx context.Context, kept *flashState) (*flash.Writer, error) {
	if kept.Offset == 0 || kept.Offset > f.disk.Size {
		return f.device.Writer(), nil
	}
	bar := progress.New(f.Stderr, "comparing", kept.Offset)
	defer bar.End()
	w, err := f.device.Resume(ctx, kept.Offset, kept.Sum, bar.Add)
	bar.End()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		f.warn(fmt.Sprintf("%s is written from its beginning: %v", f.device.Path, err))
		return f.device.Writer(), nil
	}
	f.warn(fmt.Sprintf("%s has the first %s of the image: resuming there", f.device.Path, progress.Bytes(kept.Offset)))
	return w, nil
}

// keepBytes is what a run writes before it keeps that, and the most that another run
// downloads again.
const keepBytes = 256 << 20

// write downloads the rest of the disk to w.
func (f *flashing) write(ctx context.Context, w *flash.Writer, kept *flashState) error {
	f.bar = progress.New(f.Stderr, f.name, f.disk.Size)
	defer f.bar.End()
	f.bar.Set(w.Offset())
	again := false
	err := trying(ctx, f.bar, func(moved func()) error {
		if again {
			if err := f.ready(ctx, w.Offset()); err != nil {
				return err
			}
			if !f.disk.Ranges {
				*w = *f.device.Writer()
			}
		}
		again = true
		stream, alive, stop := watch(ctx)
		defer stop()
		body, err := f.Raw(stream, f.disk, w.Offset())
		if err != nil {
			return err
		}
		defer body.Close()
		for w.Offset() < f.disk.Size {
			w.Moved = func(n int64) { alive(); moved(); f.bar.Set(w.Offset() + n) }
			n := min(keepBytes, f.disk.Size-w.Offset())
			got, err := w.ReadFrom(io.LimitReader(body, n))
			if err == nil && got < n {
				err = io.ErrUnexpectedEOF
			}
			if _, ok := errors.AsType[*flash.DeviceError](err); ok {
				return err
			}
			if serr := w.Sync(); serr != nil {
				return serr
			}
			kept.keep(w)
			if stream.Err() != nil {
				return context.Cause(stream)
			}
			if err != nil {
				return &api.Unreachable{Host: f.URL(), Err: err}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s is overwritten in part: %w", line(f.device.Path), err)
	}
	return nil
}

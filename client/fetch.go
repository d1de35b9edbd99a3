package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/client/progress"
)

func (a *app) fetch() *cobra.Command {
	var detach, cancel bool
	cmd := &cobra.Command{
		Use:   "fetch NAME|SHA256",
		Short: "Have the server fetch an image that it knows by URL",
		Long: `Has the server download an image that it knows by URL, verified, and waits for the end. Ctrl-C ends the
waiting only: the server continues.`,
		Example: `  imageroot fetch debian-13.qcow2
  imageroot fetch --detach debian-13.qcow2
  imageroot fetch --cancel debian-13.qcow2`,
		Args: one("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, r, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if cancel {
				return c.JSON(cmd.Context(), http.MethodDelete, "/catalog/downloads/"+url.PathEscape(r.Name()), nil, nil, nil)
			}
			want := map[string]string{"name": r.Name()}
			for _, s := range r.Sources {
				if s.Kind != "local" {
					want = map[string]string{"src": s.Location}
					break
				}
			}
			return a.fetchAndWait(cmd.Context(), c, want, detach)
		},
	}
	cmd.Flags().BoolVarP(&detach, "detach", "d", false, "do not wait for the end")
	cmd.Flags().BoolVar(&cancel, "cancel", false, "cancel the fetch of the image")
	return cmd
}

// fetchAndWait queues a fetch job and, unless detach is true, waits for its end.
func (a *app) fetchAndWait(ctx context.Context, c *api.Client, want map[string]string, detach bool) error {
	job, err := c.Fetch(ctx, want)
	if err != nil {
		return err
	}
	if !detach {
		if job, err = a.wait(ctx, c, job); err != nil {
			return err
		}
	}
	switch {
	case a.json:
		return a.printJSON(job.JSON)
	case !job.Ended():
		_, err = fmt.Fprintf(a.Stdout, "%s: the server fetches it\n", line(job.Name))
	default:
		_, err = fmt.Fprintf(a.Stdout, "%s: fetched, SHA-256 %s\n", line(job.Name), line(job.SHA256))
	}
	return err
}

// wait shows the progress of a fetch job until it has ended. The error says why it failed.
func (a *app) wait(ctx context.Context, c *api.Client, job api.FetchJob) (api.FetchJob, error) {
	total := int64(0)
	if job.BytesTotal != nil {
		total = *job.BytesTotal
	}
	bar := progress.New(a.Stderr, job.Name, total)
	defer bar.End()
	for pause := 100 * time.Millisecond; !job.Ended(); pause = min(2*pause, time.Second) {
		bar.Set(job.BytesDownloaded)
		switch {
		case job.Error != "":
			bar.Say(job.Error)
		case job.Status == "queued":
			bar.Say("waiting for its turn")
		default:
			bar.Say("")
		}
		err := sleep(ctx, pause)
		if err == nil {
			err = trying(ctx, bar, func(func()) (err error) { job, err = c.FetchJob(ctx, job); return err })
		}
		if errors.Is(err, context.Canceled) {
			return job, exit.With(exit.Interrupted, fmt.Errorf("the server still fetches %s; the same command waits for it again, and --cancel ends it", line(job.Name)))
		}
		if err != nil {
			return job, err
		}
	}
	if job.Status != api.Completed {
		return job, fmt.Errorf("the fetch of %s is %s: %s", line(job.Name), line(job.Status), line(job.Error))
	}
	return job, nil
}

func (a *app) add() *cobra.Command {
	var sha256, shaURL string
	var refresh, fetch bool
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "Add an image by URL",
		Long: `Adds an image that is on another server to the catalog. The server asks there for its name, size and digest,
and fetches it when it is asked to, by --fetch or imageroot fetch. Of a URL that is in the catalog already,
--refresh asks the source again, and --fetch alone fetches what the catalog has.

What is fetched is compared with the publisher's digest. The server looks for the usual checksum lists
beside the image; --sha-url names another one, and --sha256 gives the digest itself. For an image in a
registry, its own digest is used.`,
		Example: `  imageroot add https://example.org/debian-13.qcow2 --sha-url https://example.org/SHA512SUMS
  imageroot add --fetch https://example.org/lab.img.xz --sha256 080acf35a507ac9849cfcba47dc2ad83e01b75663a516279c8b9d243b719643e`,
		Args: one("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if shaURL == "" && sha256 == "" {
				shaURL = c.FindChecksums(cmd.Context(), args[0])
			}
			entry, err := c.AddEntry(cmd.Context(), api.EntryRequest{ImageURL: args[0], SHAURL: shaURL, SHA256: sha256, Refresh: refresh})
			if !refresh && api.IsStatus(err, http.StatusConflict) {
				given := cmd.Flags().Changed("sha256") || cmd.Flags().Changed("sha-url")
				if !fetch || given {
					return fmt.Errorf("the catalog has %s already: --fetch fetches it as it is, and --refresh asks the source again, and takes another digest", line(args[0]))
				}
				a.warn(args[0] + " is in the catalog already")
				return a.fetchAndWait(cmd.Context(), c, map[string]string{"src": args[0]}, false)
			}
			if api.IsStatus(err, http.StatusUnprocessableEntity) { // the URL or the digest does not parse
				return exit.With(exit.Usage, err)
			}
			if err != nil {
				return err
			}
			if !fetch {
				if a.json {
					return a.printJSON(entry.JSON)
				}
				return a.printEntry(entry)
			}
			return a.fetchAndWait(cmd.Context(), c, map[string]string{"src": entry.Src}, false)
		},
	}
	f := cmd.Flags()
	f.StringVar(&sha256, "sha256", "", "the SHA-256 that the image must have")
	f.StringVar(&shaURL, "sha-url", "", "URL of a checksum list that names the image")
	f.BoolVar(&refresh, "refresh", false, "ask the source again if the URL is in the catalog already")
	f.BoolVar(&fetch, "fetch", false, "fetch it, and wait for the end")
	cmd.MarkFlagsMutuallyExclusive("sha256", "sha-url")
	return cmd
}

func (a *app) printEntry(e api.Entry) error {
	digest := "without a digest to compare it with (--refresh with --sha-url or --sha256 gives one)"
	switch {
	case e.SHA256 != "":
		digest = "SHA-256 " + e.SHA256
	case e.SHA512 != "":
		digest = "SHA-512 " + e.SHA512
	}
	_, err := fmt.Fprintf(a.Stdout, "%s: added, %s, %s\n", line(e.Name), size(e.SizeBytes), line(digest))
	return err
}

package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
)

// A removal is one request that removes something.
type removal struct {
	what  string
	path  string
	query url.Values
}

func (a *app) rm() *cobra.Command {
	var yes, cached bool
	cmd := &cobra.Command{
		Use:   "rm NAME|SHA256",
		Short: "Remove an image",
		Long: `Removes an image from the catalog, after asking on the terminal.

By a name, the uploaded image of that name is removed; if there is none, the URLs that the image was added
by, with what was fetched from them. By a SHA-256, or the beginning of one, all of these are removed.
An image of the manifest (catalog.toml) stays in the catalog.`,
		Example: `  imageroot rm old.img
  imageroot rm --yes 080acf35a507
  imageroot rm --cached debian-13.qcow2    # only the fetched bytes: the URL stays`,
		Args: one("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, r, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			all, err := removals(r, args[0], cached)
			if err != nil {
				return err
			}
			if !yes {
				var question strings.Builder
				question.WriteString("This removes:\n")
				for _, x := range all {
					fmt.Fprintf(&question, "  %s\n", line(x.what))
				}
				ok, err := confirm(question.String() + "Remove?")
				if errors.Is(err, errNoTerminal) {
					err = exit.With(exit.Usage, fmt.Errorf("%w: --yes removes without asking", err))
				}
				if err != nil {
					return err
				}
				if !ok {
					return errors.New("nothing is removed")
				}
			}
			return a.remove(cmd.Context(), c, all)
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(&cached, "cached", false, "remove only the bytes that were fetched")
	return cmd
}

// removals returns what removes the image that key names.
func removals(r *api.Row, key string, cached bool) ([]removal, error) {
	if cached {
		if r.SHA256 == "" {
			return nil, errors.New("nothing of this image was fetched")
		}
		return []removal{{"what was fetched of " + r.Name(), "/catalog/cache/" + r.SHA256, nil}}, nil
	}
	named := r.HasName(key)
	var all []removal
	for _, s := range r.Sources {
		if s.Kind == "local" && (!named || api.SameName(s.Location, key)) {
			all = append(all, removal{"the uploaded image " + s.Location, api.ImagePath(s.Location), nil})
		}
	}
	for _, s := range r.Sources {
		if s.Kind == "url" && (!named || !r.Local(key)) {
			all = append(all, removal{"the entry " + s.Location + ", and what was fetched from it", "/catalog/entries", url.Values{"src": {s.Location}}})
		}
	}
	if len(all) == 0 {
		return nil, errors.New("only the manifest names this image: remove it from catalog.toml, or its bytes with --cached")
	}
	return all, nil
}

func (a *app) remove(ctx context.Context, c *api.Client, all []removal) error {
	for _, x := range all {
		if err := c.JSON(ctx, http.MethodDelete, x.path, x.query, nil, nil); err != nil {
			return err
		}
		if !a.json {
			if _, err := fmt.Fprintln(a.Stdout, "removed", line(x.what)); err != nil {
				return err
			}
		}
	}
	return nil
}

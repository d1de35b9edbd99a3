package client

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"imageroot/client/api"
)

func (a *app) ls() *cobra.Command {
	var quiet bool
	var sort string
	var archs, systems, labels, formats, states []string
	cmd := &cobra.Command{
		Use:     "ls [WORD ...]",
		Aliases: []string{"list"},
		Short:   "List the images",
		Long: `Lists the images of the catalog, one line for each content. With words, those that have all of them in
a name, a source, the metadata, or at the beginning of the SHA-256.

A filter that is given several times selects images that have any of its values.`,
		Example: `  imageroot ls
  imageroot ls --arch arm64 --os debian
  imageroot ls --label room=lab --sort -size
  imageroot ls -q debian | xargs -d '\n' -n 1 imageroot pull
  imageroot ls --json | jq -r '.images[] | select(.cached | not) | .names[0]'`,
		RunE: func(cmd *cobra.Command, words []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			query := url.Values{"arch": archs, "os": systems, "label": labels, "format": formats, "state": states}
			if len(words) > 0 {
				query.Set("q", strings.Join(words, " "))
			}
			if sort != "" {
				query.Set("sort", sort)
			}
			rows := []*api.Row{}
			for r, err := range c.Catalog(cmd.Context(), query) {
				if err != nil {
					return wrongUsage(err)
				}
				rows = append(rows, r)
			}
			switch {
			case a.json:
				return a.printRows(rows)
			case quiet:
				return a.printNames(rows)
			}
			return a.printTable(rows)
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "print only the names")
	f.StringVar(&sort, "sort", "", "order: name, size, format, sha256, state or added, with - before it the reverse")
	f.StringArrayVar(&archs, "arch", nil, "only images for this architecture, like amd64 or arm64")
	f.StringArrayVar(&systems, "os", nil, "only images of this system, like debian or raspbian")
	f.StringArrayVar(&labels, "label", nil, "only images with this label: key=value, or key")
	f.StringArrayVar(&formats, "format", nil, "only images of this format, like qcow2 or img.xz")
	f.StringArrayVar(&states, "state", nil, "only images in this state: cached (the server has their bytes), available (it can fetch them), attention, failed and so on")
	return cmd
}

// printRows prints one document, as GET /catalog would answer without a limit.
func (a *app) printRows(rows []*api.Row) error {
	images := make([]json.RawMessage, len(rows))
	for i, r := range rows {
		images[i] = r.JSON
	}
	doc, err := json.Marshal(map[string]any{"images": images, "total": len(images), "next": nil})
	if err != nil {
		return err
	}
	return a.printJSON(doc)
}

// printNames prints the primary names. Programs get them as they are.
func (a *app) printNames(rows []*api.Row) error {
	for _, r := range rows {
		name := r.Name()
		if isTerminal(a.Stdout) || strings.ContainsAny(name, "\n\r") {
			name = line(name)
		}
		if _, err := fmt.Fprintln(a.Stdout, name); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) printTable(rows []*api.Row) error {
	t := table{heads: []string{"NAME", "SYSTEM", "ARCH", " SIZE", " DISK", "STATE", "REF"}}
	for _, r := range rows {
		system := strings.TrimSpace(r.Text("system") + " " + r.Text("version"))
		t.add(r.Name(), system, r.Text("architecture"), size(r.SizeBytes), size(r.RawSizeBytes), state(r), r.Ref)
	}
	return t.print(a.Stdout)
}

// state returns the state of an image in a word or two.
func state(r *api.Row) string {
	s := "cached"
	switch {
	case !r.Cached:
		s = "available"
	case r.HashState != "hashed" && r.HashState != "published":
		s = r.HashState
	}
	if len(r.Warnings) > 0 {
		s += " (!)"
	}
	return s
}

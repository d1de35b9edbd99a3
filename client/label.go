package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/spf13/cobra"

	"imageroot/client/exit"
)

// fields are the members of the metadata that imageroot label sets by flags.
var fields = []struct{ name, usage string }{
	{"title", "a name for people"},
	{"description", "a text"},
	{"system", "the system, like debian"},
	{"version", "its version"},
	{"architecture", "amd64, arm64 and so on"},
	{"release_date", "YYYY-MM-DD"},
	{"icon", "URL of an icon"},
	{"home_page", "URL of a page about the image"},
	{"init_format", "how Raspberry Pi Imager configures it: systemd, cloudinit, cloudinit-rpi or none"},
	{"name", "which of its names is the primary one"},
}

func (a *app) label() *cobra.Command {
	values := make([]string, len(fields))
	cmd := &cobra.Command{
		Use:   "label NAME|SHA256 [KEY=VALUE ... KEY- ...]",
		Short: "Set labels and other metadata of an image",
		Long: `Sets labels, removes those that end in -, and sets other metadata by flags, where an empty value goes back to
what the manifest, the publisher or the image itself says. What you set takes precedence over those.`,
		Example: `  imageroot label lab.img room=lab owner=ada
  imageroot label lab.img room-
  imageroot label lab.img --title "Lab machines" --architecture arm64
  imageroot ls --label room=lab`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("give an image, and labels")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			patch, err := labels(args[1:])
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			for i, f := range fields {
				switch {
				case !cmd.Flags().Changed(flagOf(f.name)):
				case values[i] == "":
					patch[f.name] = nil
				default:
					patch[f.name] = values[i]
				}
			}
			if len(patch) == 0 {
				return exit.With(exit.Usage, fmt.Errorf("give labels (KEY=VALUE, or KEY- to remove one) or flags"))
			}
			c, r, err := a.find(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if r.SHA256 == "" {
				return fmt.Errorf("%s is not hashed yet, and metadata belong to the bytes: try again later", line(r.Name()))
			}
			var doc json.RawMessage
			if err := c.JSON(cmd.Context(), http.MethodPatch, "/catalog/images/"+r.SHA256, nil, patch, &doc); err != nil {
				return wrongUsage(err)
			}
			if a.json {
				return a.printJSON(doc)
			}
			if err := r.Decode(doc); err != nil {
				return err
			}
			return a.printImage(r)
		},
	}
	for i, f := range fields {
		cmd.Flags().StringVar(&values[i], flagOf(f.name), "", f.usage)
	}
	return cmd
}

func flagOf(field string) string { return strings.ReplaceAll(field, "_", "-") }

// labels returns the merge patch (RFC 7396) for labels of the form KEY=VALUE or KEY-.
func labels(args []string) (map[string]any, error) {
	change := map[string]any{}
	for _, arg := range args {
		key, value, ok := strings.Cut(arg, "=")
		if ok && key != "" {
			change[key] = value
			continue
		}
		key, ok = strings.CutSuffix(arg, "-")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is neither KEY=VALUE nor KEY-", arg)
		}
		change[key] = nil
	}
	if len(change) == 0 {
		return map[string]any{}, nil
	}
	return map[string]any{"labels": change}, nil
}

package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
)

func (a *app) mv() *cobra.Command {
	return &cobra.Command{
		Use:   "mv NAME NEW",
		Short: "Rename an image",
		Long: `Renames an image that was uploaded, and waits for the end. The new name may have another suffix: .qcow2 for a
qcow2 image that is named .img. Another image is never replaced. Nothing is hashed again.

With its own storage, the server renames at once; over another S3 server, it copies the image. Ctrl-C ends
the waiting only.`,
		Example: `  imageroot mv lab.img lab.qcow2`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("give an image and its new name")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var raw json.RawMessage
			if err := c.JSON(cmd.Context(), http.MethodPost, api.ImagePath(args[0])+"/rename", nil, map[string]string{"name": args[1]}, &raw); err != nil {
				return err
			}
			j, err := renamed(cmd.Context(), c, raw)
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(j.JSON)
			}
			_, err = fmt.Fprintf(a.Stdout, "%s: renamed to %s\n", line(j.Name), line(j.NewName))
			return err
		},
	}
}

// A renameJob is a rename job of the server.
type renameJob struct {
	Name    string
	NewName string `json:"new_name"`
	Status  string
	Error   string
	JSON    json.RawMessage `json:"-"`
}

// renamed waits for the end of a job. The error says why it failed.
func renamed(ctx context.Context, c *api.Client, raw json.RawMessage) (j renameJob, err error) {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if err := json.Unmarshal(raw, &j); err != nil {
			return j, fmt.Errorf("the server's answer: %w", err)
		}
		j.JSON = raw
		switch j.Status {
		case api.Completed:
			return j, nil
		case "failed", "cancelled":
			return j, fmt.Errorf("the rename of %s is %s: %s", line(j.Name), j.Status, line(j.Error))
		}
		if err := sleep(ctx, pause); err != nil {
			return j, exit.With(exit.Interrupted, fmt.Errorf("the server still renames %s; the same command waits for it again", line(j.Name)))
		}
		var list struct{ Renames []json.RawMessage }
		if err := c.JSON(ctx, http.MethodGet, "/catalog/renames", nil, nil, &list); err != nil {
			return j, err
		}
		for _, r := range list.Renames {
			var other renameJob
			if json.Unmarshal(r, &other) == nil && other.Name == j.Name && other.NewName == j.NewName {
				raw = r
			}
		}
	}
}

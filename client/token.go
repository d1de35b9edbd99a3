package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"
)

// A token is one of a machine in the API.
type token struct {
	Name       string     `json:"name"`
	Scope      string     `json:"scope"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at"`
	Token      string     `json:"token"` // only of a new one
}

func (a *app) token() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "token",
		Short: "Make and revoke the tokens of machines",
		Long: `Makes, lists and revokes tokens by which machines and scripts use the server. It takes the server's
password or API token: see imageroot login.`,
		Example: `  imageroot token add ci --scope upload >ci.token
  imageroot token ls
  imageroot token rm ci`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.tokenAdd(), a.tokenLs(), a.tokenRm())
	return cmd
}

func (a *app) tokenAdd() *cobra.Command {
	var scope string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a token, and print it",
		Long: `Makes a token and prints it. The server does not show it again. The scopes are

  read     the bytes of images, and documents about them
  upload   that, and adding images
  operate  everything but to make and revoke tokens`,
		Example:           "  imageroot token add ci --scope upload >ci.token",
		Args:              one("name"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var doc json.RawMessage
			if err := c.JSON(cmd.Context(), http.MethodPost, "/tokens", nil, map[string]string{"name": args[0], "scope": scope}, &doc); err != nil {
				return wrongUsage(err)
			}
			if a.json {
				return a.printJSON(doc)
			}
			var t token
			if err := json.Unmarshal(doc, &t); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.Stdout, line(t.Token))
			return err
		},
	}
	cmd.Flags().StringVar(&scope, "scope", "read", "what it allows: read, upload or operate")
	return cmd
}

func (a *app) tokenLs() *cobra.Command {
	return &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List the tokens",
		Example: "  imageroot token ls",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			var doc json.RawMessage
			if err := c.JSON(cmd.Context(), http.MethodGet, "/tokens", nil, nil, &doc); err != nil {
				return err
			}
			if a.json {
				return a.printJSON(doc)
			}
			var list struct{ Tokens []token }
			if err := json.Unmarshal(doc, &list); err != nil {
				return err
			}
			t := table{heads: []string{"NAME", "SCOPE", "MADE", "LAST USED"}}
			for _, k := range list.Tokens {
				used := "-"
				if k.LastUsedAt != nil {
					used = moment(*k.LastUsedAt)
				}
				t.add(k.Name, k.Scope, moment(k.CreatedAt), used)
			}
			return t.print(a.Stdout)
		},
	}
}

func (a *app) tokenRm() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME",
		Short:             "Revoke a token",
		Example:           "  imageroot token rm ci",
		Args:              one("name"),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			if err := c.JSON(cmd.Context(), http.MethodDelete, "/tokens/"+url.PathEscape(args[0]), nil, nil, nil); err != nil {
				return err
			}
			if !a.json {
				_, err = fmt.Fprintln(a.Stdout, "revoked", line(args[0]))
			}
			return err
		},
	}
}

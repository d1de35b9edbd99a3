package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
)

func (a *app) login() *cobra.Command {
	return &cobra.Command{
		Use:   "login [URL]",
		Short: "Choose the server, and store the credentials for it",
		Long: `Asks for the server's password or a token, checks it, and stores the URL and the credentials in
~/.config/imageroot/config.toml, which only you can read. The commands then use that server.

Of a password, the session that it opens is stored, which lasts 30 days. A token (the server's
IMAGEROOT_TOKEN, or one of imageroot token) is stored as it is. Without a terminal, the secret is the first line of standard input.`,
		Example: `  imageroot login http://pi.local:8080
  pass show imageroot | imageroot login https://images.example.org`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := a.readSettings()
			if err != nil {
				return exit.With(exit.Usage, err)
			}
			at := a.url
			if len(args) > 0 {
				at = args[0]
			}
			if at == "" {
				if at, _, _, err = a.server(); err != nil {
					return exit.With(exit.Usage, err)
				}
			}
			if at, err = api.ParseURL(at); err != nil {
				return exit.With(exit.Usage, err)
			}
			word, err := a.credential(at)
			if err != nil {
				return err
			}
			l, err := a.try(cmd.Context(), at, word)
			if err != nil {
				return err
			}
			if s.Servers == nil {
				s.Servers = map[string]login{}
			}
			s.URL, s.Servers[at] = at, l
			if err := a.writeSettings(s); err != nil {
				return err
			}
			fmt.Fprintln(a.Stderr, "Logged in to", at)
			if a.Environment.URL != "" || a.Environment.Token != "" {
				a.warn("IMAGEROOT_URL or IMAGEROOT_TOKEN is set, and takes precedence over this login")
			}
			return nil
		},
	}
}

// credential returns the password or token for a server.
func (a *app) credential(at string) (string, error) {
	if a.tokenFile != "" {
		_, token, _, err := a.server()
		return token, exit.With(exit.Usage, err)
	}
	word, err := secret("Password or token of "+at+": ", a.Stdin)
	if err == nil && word == "" {
		err = errors.New("no password or token was given")
	}
	return word, exit.With(exit.Usage, err)
}

// try logs in with a word that is a token or the password.
func (a *app) try(ctx context.Context, at, word string) (login, error) {
	c, err := api.New(api.Config{URL: at, Token: word, Version: a.Version, Warn: a.warn})
	if err != nil {
		return login{}, err
	}
	err = c.JSON(ctx, http.MethodGet, "/catalog", url.Values{"limit": {"1"}}, nil, nil)
	if err == nil {
		return login{Token: word}, nil
	}
	if !api.IsStatus(err, http.StatusUnauthorized) {
		return login{}, err
	}
	session, err := c.LogIn(ctx, word)
	if api.IsStatus(err, http.StatusUnauthorized) {
		return login{}, exit.With(exit.Refused, fmt.Errorf("this is neither the password nor a token of %s", at))
	}
	return login{Session: session}, err
}

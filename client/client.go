// Package client has the commands of imageroot that use a server: imageroot ls and so on.
package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/exit"
	"imageroot/shared/config"
	"imageroot/shared/visible"
)

// A Program is the rest of the binary. All fields are required.
type Program struct {
	// Usage writes the flags of the server.
	Usage func(io.Writer)
	// Doctor runs imageroot doctor with its flags.
	Doctor func(ctx context.Context, args []string) error
	// Key runs imageroot key with its flags.
	Key func(ctx context.Context, args []string) error
	// Environment is what the environment says.
	Environment config.Client
	Version     string

	Stdin          *os.File
	Stdout, Stderr io.Writer
}

// An app is one run of a command.
type app struct {
	Program
	url       string // --url
	tokenFile string // --token-file
	json      bool   // --json
	running   bool   // the command line was right
}

// Run runs the command that args name. The error says what failed, and [exit.Code] has
// the exit status for it. Nothing is printed for it.
func Run(ctx context.Context, args []string, p Program) error {
	a := &app{Program: p}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(p.Stdout)
	root.SetErr(p.Stderr)
	root.SetIn(p.Stdin)
	cmd, err := root.ExecuteContextC(ctx)
	if err != nil && !a.running {
		what, meant, _ := strings.Cut(err.Error(), "\n\nDid you mean this?")
		if words := strings.Fields(meant); len(words) > 0 {
			what += ", did you mean " + strings.Join(words, " or ") + "?"
		}
		return exit.With(exit.Usage, fmt.Errorf("%s (%s --help shows how)", what, cmd.CommandPath()))
	}
	return err
}

// The groups of commands in the help.
const (
	groupImages = "images"
	groupOther  = "other"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "imageroot",
		Short: "A catalog for OS disk images",
		Long: `imageroot is a catalog for OS disk images.

Without a command, imageroot runs the server. The commands use a server that runs here
or elsewhere: imageroot login says which. To begin with one on this machine:

  imageroot                                # runs the server, and prints its password
  imageroot login http://localhost:8080    # in another terminal
  imageroot push debian-13.qcow2
  imageroot ls`,
		SilenceUsage: true, SilenceErrors: true,
		PersistentPreRun:  func(*cobra.Command, []string) { a.running = true },
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	root.AddGroup(&cobra.Group{ID: groupImages, Title: "Images:"}, &cobra.Group{ID: groupOther, Title: "More:"})
	flags := root.PersistentFlags()
	flags.StringVar(&a.url, "url", "", "URL of the server (default: IMAGEROOT_URL, the last login, http://localhost:8080)")
	flags.StringVar(&a.tokenFile, "token-file", "", "file with a token (default: IMAGEROOT_TOKEN, the login)")
	flags.BoolVar(&a.json, "json", false, "print the server's JSON")
	for _, c := range []*cobra.Command{a.ls(), a.show(), a.push(), a.flash(), a.add(), a.fetch(), a.pull(), a.label(), a.mv(), a.rm()} {
		c.GroupID = groupImages
		switch c.Name() {
		case "show", "fetch", "pull", "label", "rm", "flash":
			c.ValidArgsFunction = a.images
		case "ls", "add":
			c.ValidArgsFunction = cobra.NoFileCompletions
		}
		root.AddCommand(c)
	}
	for _, c := range []*cobra.Command{a.login(), a.token(), a.completion(), a.doctor(), a.key()} {
		c.GroupID = groupOther
		root.AddCommand(c)
	}
	root.SetHelpCommandGroupID(groupOther)
	root.InitDefaultHelpCmd()
	if help, _, err := root.Find([]string{"help"}); err == nil {
		help.Args = func(_ *cobra.Command, args []string) error {
			_, _, err := root.Find(args)
			return err
		}
	}
	help := root.HelpFunc()
	root.SetHelpFunc(func(c *cobra.Command, args []string) {
		help(c, args)
		if c == root {
			fmt.Fprintln(a.Stdout)
			a.Usage(a.Stdout)
		}
	})
	return root
}

func (a *app) doctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor [FLAGS OF THE SERVER]",
		Short: "Check the setup of a server on this machine",
		// The server's own parser reads the flags.
		DisableFlagParsing: true,
		RunE:               func(c *cobra.Command, args []string) error { return a.Doctor(c.Context(), args) },
	}
}

func (a *app) key() *cobra.Command {
	return &cobra.Command{
		Use:     "key [FLAGS OF THE SERVER]",
		Short:   "Make the key by which a server on this machine signs SHA256SUMS",
		Long:    "Makes the key, once, and prints its public half. The running server signs from then on. Run it as the user of\nthe server, with its flags and variables.",
		Example: "  imageroot key --data /var/lib/imageroot",
		// The server's own parser reads the flags.
		DisableFlagParsing: true,
		RunE:               func(c *cobra.Command, args []string) error { return a.Key(c.Context(), args) },
	}
}

// one checks that there is one argument, which what names.
func one(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return fmt.Errorf("give one %s, not %d arguments", what, len(args))
		}
		return nil
	}
}

// wrongUsage gives err the status of a wrong command line if the server says that the values
// on it are wrong.
func wrongUsage(err error) error {
	if api.IsStatus(err, http.StatusBadRequest) || api.IsStatus(err, http.StatusUnprocessableEntity) {
		return exit.With(exit.Usage, err)
	}
	return err
}

// warn prints a line for people, beside the output.
func (a *app) warn(text string) {
	fmt.Fprintln(a.Stderr, "imageroot: "+line(text))
}

// printJSON prints a document, which the server may have made.
func (a *app) printJSON(doc []byte) error {
	_, err := fmt.Fprintf(a.Stdout, "%s\n", visible.JSON(bytes.TrimSpace(doc)))
	return err
}

// connect returns a client of the server that flags, environment and settings name.
func (a *app) connect() (*api.Client, error) {
	url, token, session, err := a.server()
	if err != nil {
		return nil, exit.With(exit.Usage, err)
	}
	return api.New(api.Config{URL: url, Token: token, Session: session, Version: a.Version, Warn: a.warn})
}

// server returns the server to use, and the credentials for it.
func (a *app) server() (url, token, session string, err error) {
	s, err := a.readSettings()
	if err != nil {
		return "", "", "", err
	}
	url = defaultURL
	for _, u := range []string{a.url, a.Environment.URL, s.URL} {
		if u != "" {
			url = u
			break
		}
	}
	if url, err = api.ParseURL(url); err != nil {
		return "", "", "", err
	}
	switch {
	case a.tokenFile != "":
		b, err := os.ReadFile(a.tokenFile)
		if err != nil {
			return "", "", "", err
		}
		if token = strings.TrimSpace(string(b)); token == "" {
			return "", "", "", errors.New(a.tokenFile + " is empty")
		}
		return url, token, "", nil
	case a.Environment.Token != "" && a.tokenIsFor(url):
		return url, a.Environment.Token, "", nil
	}
	known, ok := s.Servers[url]
	if a.Environment.Token != "" && !ok {
		a.warn("IMAGEROOT_TOKEN is for the server of IMAGEROOT_URL, and not sent to " + url + " (imageroot login, or --token-file)")
	}
	return url, known.Token, known.Session, nil
}

// tokenIsFor reports whether IMAGEROOT_TOKEN is for the server at url: any one, or that of
// IMAGEROOT_URL if it is set, too.
func (a *app) tokenIsFor(url string) bool {
	if a.Environment.URL == "" {
		return true
	}
	of, err := api.ParseURL(a.Environment.URL)
	return err == nil && of == url
}

// find returns the image that key names; see [api.Client.Find].
func (a *app) find(ctx context.Context, key string) (*api.Client, *api.Row, error) {
	c, err := a.connect()
	if err != nil {
		return nil, nil, err
	}
	r, err := c.Find(ctx, key)
	return c, r, err
}

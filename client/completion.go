package client

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"
)

var shells = []string{"bash", "zsh", "fish"}

func (a *app) completion() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "completion bash|zsh|fish",
		Short: "Print the script that completes commands in a shell",
		Long:  `Prints the script with which a shell completes commands, flags and the names of images.`,
		Example: `  imageroot completion bash > ~/.local/share/bash-completion/completions/imageroot
  imageroot completion zsh > ~/.zfunc/_imageroot     # with fpath+=~/.zfunc before compinit
  imageroot completion fish > ~/.config/fish/completions/imageroot.fish`,
		ValidArgs: shells,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || !slices.Contains(shells, args[0]) {
				return errors.New("give one of " + strings.Join(shells, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			default:
				return root.GenFishCompletion(a.Stdout, true)
			}
		},
	}
	return cmd
}

// sameInShells reports whether a name needs no quotes in a shell. Other names are not
// completed: bash inserts the common prefix of several names without quotes, and the
// completion script then evaluates it.
func sameInShells(name string) bool {
	return name != "" && name[0] != '-' && name == line(name) && !strings.ContainsFunc(name, func(r rune) bool {
		return !unicode.In(r, unicode.L, unicode.M, unicode.N) && !strings.ContainsRune("._+,@%-", r)
	})
}

// images completes the name of an image, as the first argument. The second one of flash is a file.
func (a *app) images(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	switch {
	case len(args) == 1 && cmd.Name() == "flash":
		return nil, cobra.ShellCompDirectiveDefault // a device
	case len(args) > 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
	defer cancel()
	var names []string
	for r, err := range c.Catalog(ctx, url.Values{"q": {begun}}) {
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		for _, name := range r.Names {
			if strings.HasPrefix(name, begun) && sameInShells(name) {
				names = append(names, name)
			}
		}
		if len(names) >= 100 {
			break
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

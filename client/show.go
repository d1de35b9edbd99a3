package client

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"imageroot/client/api"
	"imageroot/client/progress"
)

func (a *app) show() *cobra.Command {
	return &cobra.Command{
		Use:   "show NAME|SHA256",
		Short: "Show what is known of an image",
		Long: `Shows what the server knows of an image: names, sizes, digests, metadata, what is in its disk, the result of its
check, images with the same disk, sources, what the publishers say, who got it last, and warnings. Behind a value is where it comes from.

An image is named by a name, by its SHA-256, or by the beginning of that, if it is of one image only.`,
		Example: `  imageroot show debian-13.qcow2
  imageroot show 080acf35a507
  imageroot show --json debian-13.qcow2 | jq -r .raw_sha256`,
		Args: one("image"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, r, err := a.find(cmd.Context(), args[0])
			if err == nil && r.SHA256 != "" {
				r, err = c.Details(cmd.Context(), r.SHA256)
			}
			if err != nil {
				return err
			}
			if a.json {
				return a.printJSON(r.JSON)
			}
			return a.printImage(r)
		},
	}
}

func (a *app) printImage(r *api.Row) error {
	var b strings.Builder
	put := func(what string, values ...string) {
		for i, v := range values {
			if v == "" {
				continue
			}
			if i > 0 {
				what = ""
			}
			fmt.Fprintf(&b, "%-14s %s\n", line(what), line(v))
		}
	}
	put("Name", r.Names...)
	put("SHA-256", r.SHA256)
	put("Format", strings.TrimSpace(r.Format+" "+aside(r.Content)))
	put("Size", exact(r.SizeBytes))
	put("Disk", exact(r.RawSizeBytes))
	put("Disk SHA-256", r.RawSHA256)
	var same []string
	for _, s := range r.SameDisk {
		same = append(same, fmt.Sprintf("%s (%.12s)", s.Name, s.SHA256))
	}
	put("Same disk", same...)
	put("State", state(r))
	if c := r.Check; c != nil {
		put("Check", strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Verdict, aside(moment(c.At)), c.Reason)))
	}
	for _, field := range slices.Sorted(maps.Keys(r.Metadata)) {
		put(label(field), strings.TrimSpace(r.Text(field)+" "+aside(r.Metadata[field].From)))
	}
	put("Inside", inside(r.Inside)...)
	var sources []string
	for _, s := range r.Sources {
		sources = append(sources, s.Kind+" "+s.Location)
	}
	put("Sources", sources...)
	var publishers []string
	for _, p := range r.Publishers {
		publishers = append(publishers, verdict(p))
	}
	put("Publishers", publishers...)
	var served []string
	for _, s := range r.Served {
		how := s.What
		if s.Link {
			how = "link to the " + s.What
		}
		if s.Token != "" {
			how += " with the token " + s.Token
		}
		served = append(served, fmt.Sprintf("%s %s (%s)", s.To, how, moment(s.At)))
	}
	put("Served to", served...)
	put("Warnings", r.Warnings...)
	_, err := fmt.Fprint(a.Stdout, b.String())
	return err
}

// inside returns lines about the disk: its partitions, how it boots, and what is not known.
func inside(d *api.Inside) []string {
	if d == nil {
		return nil
	}
	lines := []string{}
	if d.Table != "" {
		lines = append(lines, "partition table "+d.Table)
	}
	for _, p := range d.Partitions {
		words := "whole disk: " + progress.Bytes(p.SizeBytes)
		if p.Number > 0 {
			words = fmt.Sprintf("%d: %s", p.Number, progress.Bytes(p.SizeBytes))
		}
		for _, w := range []string{cmp.Or(p.Filesystem, p.Type), p.Label, p.FSLabel} {
			if w != "" {
				words += ", " + w
			}
		}
		lines = append(lines, words)
	}
	for _, b := range d.Boot {
		lines = append(lines, strings.TrimSpace("boots by "+b.Kind+" "+b.Arch))
	}
	if d.CloudInit != nil {
		lines = append(lines, map[bool]string{true: "has cloud-init", false: "has no cloud-init"}[*d.CloudInit])
	}
	return append(lines, d.Unknown...)
}

// verdict returns a sentence about what a publisher says.
func verdict(p api.Publisher) string {
	switch {
	case p.Error != "":
		return p.List + ": " + p.Error
	case p.Match == nil:
		return p.List + ": the bytes are compared when they are fetched"
	case *p.Match:
		return strings.TrimSpace(fmt.Sprintf("%s: the %s is right %s", p.List, p.Algorithm, aside(p.At)))
	default:
		return fmt.Sprintf("%s: the %s is another one", p.List, p.Algorithm)
	}
}

// label returns the name of a field of the metadata for people: "release_date" is "Release date".
func label(field string) string {
	if field == "" {
		return ""
	}
	words := strings.ReplaceAll(field, "_", " ")
	return strings.ToUpper(words[:1]) + words[1:]
}

func aside(text string) string {
	if text == "" {
		return ""
	}
	return "(" + text + ")"
}

// moment returns a time for people, in their time zone.
func moment(t time.Time) string { return t.Local().Format(time.DateTime) }

// exact returns a number of bytes in two forms, or "" if it is not known.
func exact(n *int64) string {
	if n == nil {
		return ""
	}
	return fmt.Sprintf("%s (%d bytes)", progress.Bytes(*n), *n)
}

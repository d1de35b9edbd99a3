package source

import (
	"context"
	"fmt"
	"maps"
	"mime"
	"regexp"
	"slices"
	"strconv"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"imageroot/shared/image"
)

// partNumber returns the number of a layer that is part of a disk, or "". It is the
// value of an annotation, or of a parameter of the media type, whose name ends in
// part.number.
func partNumber(d ocispec.Descriptor) string {
	_, params, _ := mime.ParseMediaType(d.MediaType)
	for _, fields := range []map[string]string{d.Annotations, params} {
		for key, value := range fields {
			if key = strings.ToLower(key); key == "part.number" || strings.HasSuffix(key, ".part.number") {
				return value
			}
		}
	}
	return ""
}

var (
	// behindImage matches a name to which split(1), an archiver or a script has added
	// a part's number.
	behindImage = regexp.MustCompile(`(?i)^(.+?)[._-]?(?:(?:part|chunk|piece|slice|segment|vol)?[._-]?\d+(?:[._-]?of[._-]?\d+)?|a[a-z]{1,2})$`)
	// partWithin matches a part's number before the suffix of an image.
	partWithin = regexp.MustCompile(`(?i)^(.*?)[._-]?(?:part|chunk|piece|slice|segment)[._-]?\d+(?:[._-]?of[._-]?\d+)?(\..+)$`)
	// numberWithin matches any number before the suffix.
	numberWithin = regexp.MustCompile(`^(.*?)(\d+)(\.[^0-9].*)$`)
)

// wholeOf returns the name of the image that title names a part of, or "".
func wholeOf(title string) string {
	if m := partWithin.FindStringSubmatch(title); m != nil {
		return m[1] + m[2]
	}
	if m := behindImage.FindStringSubmatch(title); m != nil && image.Name(m[1]).Valid() && !image.Name(title).Valid() {
		return m[1]
	}
	return ""
}

// splitParts returns the candidates that are parts of one image, because they have part
// numbers, or equal or numbered titles.
func splitParts(candidates []ocispec.Descriptor) []ocispec.Descriptor {
	var numbered []ocispec.Descriptor
	groups := map[string][]ocispec.Descriptor{}
	titles := map[string]bool{}
	for _, c := range candidates {
		titles[titleOf(c)] = true
	}
	for _, c := range candidates {
		if partNumber(c) != "" {
			numbered = append(numbered, c)
		}
		title := titleOf(c)
		if title == "" {
			continue
		}
		groups["="+title] = append(groups["="+title], c)
		if whole := wholeOf(title); whole != "" && !titles[whole] {
			groups["part "+whole] = append(groups["part "+whole], c)
		}
		if m := numberWithin.FindStringSubmatch(title); m != nil {
			groups["number "+m[1]+m[3]] = append(groups["number "+m[1]+m[3]], c)
		}
	}
	if len(numbered) > 1 {
		return numbered
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		parts := groups[key]
		if len(parts) > 1 && (!strings.HasPrefix(key, "number ") || cutEvenly(parts)) {
			return parts
		}
	}
	return nil
}

// cutEvenly reports whether the titles count from 0 or 1 and all layers are of equal
// size, except for a smaller last one. Otherwise disk-1.img and disk-2.img are two
// versions.
func cutEvenly(parts []ocispec.Descriptor) bool {
	for i, p := range parts {
		n, err := strconv.Atoi(numberWithin.FindStringSubmatch(titleOf(p))[2])
		last := i == len(parts)-1
		if err != nil || n != i && n != i+1 || !last && p.Size != parts[0].Size || last && p.Size > parts[0].Size {
			return false
		}
	}
	return true
}

func errSplit(parts []ocispec.Descriptor) error {
	title := titleOf(parts[0])
	if title == "" {
		title = "without a title"
	}
	return fmt.Errorf("holds a disk that is split over %d layers (the first is %.100s), and none of them is an image: push it as one layer", len(parts), title)
}

// checkWhole returns an error if there are several layers without a title and the first
// one begins like a disk: the others may be the rest of it, or other disks.
func (o oras) checkWhole(ctx context.Context, c *Client, layers []ocispec.Descriptor) error {
	var untitled []ocispec.Descriptor
	for _, l := range candidates(layers) {
		if titleOf(l) == "" {
			untitled = append(untitled, l)
		}
	}
	if len(untitled) < 2 {
		return nil
	}
	head, err := o.head(ctx, c, untitled[0].Digest)
	if err != nil {
		return err
	}
	if format, _ := formatOf(head); format != "" {
		return unresolvable(nil, "%s %v", o.ref, errSplit(untitled))
	}
	return nil
}

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

// partNumber is what a layer says that it is the nth part of, in an annotation
// or a parameter of its media type that ends in part.number, or "".
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
	// behindImage is what split(1), archivers and scripts add to an image's name.
	behindImage = regexp.MustCompile(`(?i)^(.+?)[._-]?(?:(?:part|chunk|piece|slice|segment|vol)?[._-]?\d+(?:[._-]?of[._-]?\d+)?|a[a-z]{1,2})$`)
	// partWithin is a part's number before the suffix of an image.
	partWithin = regexp.MustCompile(`(?i)^(.*?)[._-]?(?:part|chunk|piece|slice|segment)[._-]?\d+(?:[._-]?of[._-]?\d+)?(\..+)$`)
	// numberWithin is a number there.
	numberWithin = regexp.MustCompile(`^(.*?)(\d+)(\.[^0-9].*)$`)
)

// wholeOf is the name of the image that title says it is a part of, or "".
func wholeOf(title string) string {
	if m := partWithin.FindStringSubmatch(title); m != nil {
		return m[1] + m[2]
	}
	if m := behindImage.FindStringSubmatch(title); m != nil && image.IsName(m[1]) && !image.IsName(title) {
		return m[1]
	}
	return ""
}

// splitParts returns the candidates that say that they are parts of one image:
// by a part's number, or titles that are equal or numbered.
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

// cutEvenly reports whether titles count from 0 or 1 and layers are as large as
// the first, but for a smaller last one: disk-1.img and disk-2.img may be two
// versions, and then differ otherwise.
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

// checkWhole refuses several layers without a title the first of which begins
// as a disk does: the others are the rest of it, or it is one of many.
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

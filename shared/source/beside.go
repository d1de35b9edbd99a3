package source

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"

	"imageroot/shared/bmap"
	"imageroot/shared/checksum"
	"imageroot/shared/image"
)

// checksumNames are the usual names of the checksum list of an image in its directory, in
// order of preference. NAME stands for the file name of the image.
var checksumNames = []string{
	"NAME.sha256", "SHA256SUMS", "NAME.sha256sum", "sha256sums.txt", "SHA256SUMS.txt", "CHECKSUM", "NAME.CHECKSUM", "sha256sum.txt",
	"NAME.SHA256SUM", "checksums.txt", "CHECKSUM.SHA256", "NAME.sha512", "SHA512SUMS", "sha512sums.txt",
}

// FindChecksums looks for a checksum list beside the image at imageURL, which names it. It
// returns the URL of the list and the image as [Client.Resolve] describes it with that, or
// "" and the image without a digest if there is none. A pinned source needs no list. It
// requests at most four lists at once. The errors are those of Resolve without a list.
func (c *Client) FindChecksums(ctx context.Context, imageURL string) (shaURL string, r *Resolved, err error) {
	r, err = c.resolve(ctx, Location{URL: imageURL}, func(ctx context.Context, p place) (*Resolved, error) {
		w, ok := p.(web)
		if !ok {
			return p.resolve(ctx, c, "")
		}
		client := c.session()
		r, final, err := w.probe(ctx, c, client)
		if err != nil {
			return nil, err
		}
		list, sum := w.findSum(ctx, c, client, final)
		if list != "" {
			shaURL = list
			r.learn(sum)
		}
		return r, nil
	})
	return shaURL, r, err
}

// findSum returns the URL of the first list of checksumNames that names the image, and its
// digest there, or "".
func (w web) findSum(ctx context.Context, c *Client, client doer, final *url.URL) (string, checksum.Sum) {
	asked, err := parseWeb(w.url)
	if err != nil {
		return "", checksum.Sum{}
	}
	const atOnce = 4
	sums := make([]*checksum.Sum, len(checksumNames))
	lists := make([]*url.URL, len(checksumNames))
	free := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, name := range checksumNames {
		free <- struct{}{}
		lists[i] = beside(asked, strings.ReplaceAll(name, "NAME", path.Base(asked.Path)))
		wg.Go(func() {
			defer func() { <-free }()
			if sum, err := w.publishedSum(ctx, c, client, lists[i], final); err == nil {
				sums[i] = &sum
			}
		})
	}
	wg.Wait()
	for i, sum := range sums {
		if sum != nil {
			return lists[i].String(), *sum
		}
	}
	return "", checksum.Sum{}
}

// beside returns the URL of a file in the directory of u.
func beside(u *url.URL, name string) *url.URL {
	file := u.ResolveReference(&url.URL{Path: "./" + name})
	file.RawQuery = ""
	return file
}

// FindBmap looks for a block map beside the image at l, under the names that bmaptool tries, and
// returns its text, or nil if there is none. It requests one file after the other, at most three,
// and none for a pinned source. The errors are those of [Client.Document]: of a refusal other than
// "not found" only if no name has a map, since some servers refuse files that they do not have.
func (c *Client) FindBmap(ctx context.Context, l Location) ([]byte, error) {
	u, err := l.Parse()
	if err != nil {
		return nil, err
	}
	w, ok := u.place.(web)
	if !ok {
		return nil, nil
	}
	asked, err := parseWeb(w.url)
	if err != nil {
		return nil, err
	}
	var refusal error
	for _, name := range bmapNames(path.Base(asked.Path)) {
		text, err := c.Document(ctx, &Document{URL: beside(asked, name).String(), What: "block map", MaxBytes: bmap.MaxBytes})
		switch refused, ok := errors.AsType[*Unresolvable](err); {
		case ok && (refused.Status == http.StatusNotFound || refused.Status == http.StatusGone): // there is no such file
		case ok && refused.Status != 0:
			refusal = err
		case err != nil:
			return nil, err
		case bytes.Contains(text, []byte("<bmap")): // else it is a page that says that there is none
			return text, nil
		}
	}
	return nil, refusal
}

// bmapNames returns the names of the block map of a file, none if that is no image: bmaptool
// adds .bmap to the whole name, then removes one suffix after the other.
func bmapNames(file string) (names []string) {
	format, ok := image.FormatOf(image.Name(file))
	if !ok {
		return nil
	}
	c, _ := format.Compression()
	for _, of := range slices.Compact([]string{file, file[:len(file)-len(c.Suffix)], file[:len(file)-len(format)-1]}) {
		names = append(names, of+".bmap")
	}
	return names
}

package source

import (
	"context"
	"net/url"
	"path"
	"strings"
	"sync"

	"imageroot/shared/checksum"
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
	free := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for i, name := range checksumNames {
		free <- struct{}{}
		wg.Go(func() {
			defer func() { <-free }()
			if sum, err := w.publishedSum(ctx, c, client, beside(asked, name), final); err == nil {
				sums[i] = &sum
			}
		})
	}
	wg.Wait()
	for i, sum := range sums {
		if sum != nil {
			return beside(asked, checksumNames[i]).String(), *sum
		}
	}
	return "", checksum.Sum{}
}

// beside returns the URL of a file in the directory of u. NAME in its name stands for that
// of u.
func beside(u *url.URL, name string) *url.URL {
	_, file := path.Split(u.Path)
	list := u.ResolveReference(&url.URL{Path: "./" + strings.ReplaceAll(name, "NAME", file)})
	list.RawQuery = ""
	return list
}

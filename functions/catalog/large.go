package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/store"
)

// listingAge is the age up to which the object of a listing is used. It must be less than
// the time after which such objects are removed, by the lifetime of a link.
const listingAge = 12 * time.Hour

// estimate returns the approximate size of an answer with the listing. The size in gzip
// is about 1.4 times that in zstd.
func (l *listing) estimate(base []byte, coding string) int64 {
	if coding == "" {
		return l.length(base)
	}
	return l.size * 3 / 2
}

// redirectListing redirects the client to an object with the listing, and creates the
// object unless an earlier request for the same bytes did.
func (f *Function) redirectListing(w http.ResponseWriter, r *http.Request, l *listing, base []byte, coding, contentType string) error {
	name := sha256.Sum256([]byte(w.Header().Get("ETag")))
	key := layout.ListingKey(layout.SHA256(hex.EncodeToString(name[:])))
	info, err := f.Catalog.Head(r.Context(), key)
	if errors.Is(err, store.ErrNotFound) || err == nil && f.Now().Sub(info.LastModified) > listingAge {
		err = f.putListing(r.Context(), key, l, base, coding)
	}
	if err != nil {
		return err
	}
	url, err := f.CatalogLinks.PresignGet(r.Context(), key, store.GetHeader{Type: contentType, Encoding: coding})
	if err != nil {
		return err
	}
	sendAway(w, url)
	return nil
}

// putListing creates the object of a listing.
func (f *Function) putListing(ctx context.Context, key store.Key, l *listing, base []byte, coding string) error {
	size := int64(-1)
	if coding == "" {
		size = l.length(base)
	}
	body, encoded := io.Pipe()
	go func() {
		for piece, err := range l.encoded(base, coding) {
			if err == nil {
				_, err = encoded.Write(piece)
			}
			if err != nil {
				encoded.CloseWithError(err)
				return
			}
		}
		encoded.Close()
	}()
	_, err := f.Catalog.Put(ctx, key, body, size)
	body.Close()
	if errors.Is(err, store.ErrChanged) {
		return nil // by another request, with the same bytes
	}
	return err
}

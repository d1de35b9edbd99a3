package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"imageroot/client/exit"
)

// An EntryRequest adds an image by URL. ImageURL is required, and one of SHAURL and SHA256
// may be set.
type EntryRequest struct {
	ImageURL string `json:"image_url"`
	SHAURL   string `json:"sha_url,omitempty"`
	SHA256   string `json:"sha256,omitempty"`
	Refresh  bool   `json:"refresh,omitempty"`
}

// An Entry is an image that the catalog knows by URL. What is null in the API is empty or nil.
type Entry struct {
	Name      string `json:"name"`
	Src       string `json:"src"`
	SizeBytes *int64 `json:"size_bytes"`
	SHA256    string `json:"sha256"`
	SHA512    string `json:"sha512"`

	JSON json.RawMessage `json:"-"` // the entry as the server sent it
}

// FindChecksums returns the URL of a checksum list beside the image at a URL, which names
// it, or "" if there is none, or the server does not say.
func (c *Client) FindChecksums(ctx context.Context, imageURL string) string {
	var found struct {
		SHAURL string `json:"sha_url"`
	}
	if err := c.JSON(ctx, http.MethodPost, "/catalog/sources", nil, EntryRequest{ImageURL: imageURL}, &found); err != nil {
		return "" // to add the image says why
	}
	return found.SHAURL
}

// AddEntry adds an image by URL. If the request has a SHA-256, the entry has it, too.
func (c *Client) AddEntry(ctx context.Context, q EntryRequest) (e Entry, err error) {
	if err := c.JSON(ctx, http.MethodPost, "/catalog/entries", nil, q, &e.JSON); err != nil {
		return e, err
	}
	if err := json.Unmarshal(e.JSON, &e); err != nil {
		return e, fmt.Errorf("%s did not answer as imageroot does: %w", c.URL(), err)
	}
	if q.SHA256 == "" || strings.EqualFold(q.SHA256, e.SHA256) {
		return e, nil
	}
	// A server that does not know the member ignores it, and would verify nothing.
	err = exit.With(exit.Mismatch, fmt.Errorf("the server has added %s with the SHA-256 %q, not with the one given", e.Src, e.SHA256))
	if e.SHA256 == "" {
		err = errors.New("this server cannot compare an image with a SHA-256 that is given: use --sha-url")
	}
	return e, errors.Join(err, c.JSON(ctx, http.MethodDelete, "/catalog/entries", url.Values{"src": {e.Src}}, nil, nil))
}

// A FetchJob is the fetch of an image: FetchJob of docs/openapi.yaml.
type FetchJob struct {
	Name            string `json:"name"`
	Status          string `json:"status"`
	BytesTotal      *int64 `json:"bytes_total"`
	BytesDownloaded int64  `json:"bytes_downloaded"`
	SHA256          string `json:"sha256"`
	Src             string `json:"src"`
	Error           string `json:"error"`

	JSON json.RawMessage `json:"-"` // the job as the server sent it
}

// Ended reports whether the job has ended.
func (j *FetchJob) Ended() bool { return j.Status != "queued" && j.Status != "running" }

func (j *FetchJob) decode(raw json.RawMessage) error {
	*j = FetchJob{JSON: raw}
	return json.Unmarshal(raw, j)
}

// Fetch queues the fetch of an image by name, ref or src.
func (c *Client) Fetch(ctx context.Context, want map[string]string) (j FetchJob, err error) {
	var raw json.RawMessage
	if err := c.JSON(ctx, http.MethodPost, "/catalog/downloads", nil, want, &raw); err != nil {
		return j, err
	}
	return j, j.decode(raw)
}

// FetchJob returns the present state of a job.
func (c *Client) FetchJob(ctx context.Context, was FetchJob) (FetchJob, error) {
	var list struct {
		Downloads []json.RawMessage `json:"downloads"`
	}
	if err := c.JSON(ctx, http.MethodGet, "/catalog/downloads", nil, nil, &list); err != nil {
		return was, err
	}
	for _, raw := range list.Downloads {
		var j FetchJob
		if err := j.decode(raw); err != nil {
			return was, err
		}
		if j.Src == was.Src {
			return j, nil
		}
	}
	return was, fmt.Errorf("the server has no fetch of %s any more", was.Name)
}

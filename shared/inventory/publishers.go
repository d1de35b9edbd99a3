package inventory

import (
	"time"

	"imageroot/shared/layout"
)

// A Publisher is what a source says about the digest of its bytes.
type Publisher struct {
	Kind     string `json:"kind"` // of the source
	Location string `json:"location"`
	// List is where the digest is from: the name of a checksum file beside the image, the
	// URL of a checksum list, "catalog.toml", or the URL of an artifact in a registry.
	List      string `json:"list"`
	Algorithm string `json:"algorithm"` // "sha256" or "sha512"
	Expected  string `json:"expected"`  // "" if Error is not
	// Match is the verdict, or nil if the bytes were not compared with the digest: they
	// are not here, or Error says why.
	Match *bool      `json:"match"`
	At    *time.Time `json:"at"` // of the comparison, UTC; nil if it is unknown
	Error string     `json:"error,omitempty"`
}

// Publishers returns what the sources of a row of this snapshot say about its digest.
func (s *Snapshot) Publishers(r *Row) []Publisher {
	all := []Publisher{}
	for _, src := range r.Sources {
		p := Publisher{Kind: src.Kind, Location: src.Location}
		switch src.Kind {
		case Local:
			rec, _ := s.in.digests.Value(src.Name)
			if rec.SHA256 != r.Digest() {
				continue
			}
			for _, found := range rec.Publishers {
				p.Algorithm, p.Expected, p.Error, p.Match, p.At = found.Algorithm, found.Expected, found.Error, nil, nil
				p.List = string(layout.SidecarKey(src.Name, found.Algorithm))
				if found.Error == "" {
					p.Match, p.At = &found.Match, &rec.HashedAt
				}
				all = append(all, p)
			}
			continue
		case Manifest:
			p.List = string(layout.ManifestKey)
		default:
			e, _ := s.in.entries.Value(src.Ref)
			if p.List = e.SHAURL; p.List == "" {
				p.List = e.URL
			}
		}
		if f, ok := s.in.fetched.Value(src.Ref); ok && f.SHA256 == r.Digest() { // a fetch compares them
			match := true
			p.Match, p.At = &match, &f.At
		}
		for _, said := range [][2]string{{"sha256", string(src.SHA256)}, {"sha512", src.SHA512}} {
			if p.Algorithm, p.Expected = said[0], said[1]; p.Expected != "" {
				if p.Match == nil && r.HashState == Hashed && p.Expected == string(r.Digest()) { // the upload of the same bytes was hashed
					match := true
					p.Match = &match
				}
				all = append(all, p)
			}
		}
	}
	return all
}

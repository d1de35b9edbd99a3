package metadata

import "strings"

// FromAnnotations returns what the annotations of an artifact in a registry say, and the
// platform that its index names, in the names of the OCI image specification. It returns nil
// if they say nothing. The specification is that of image-spec, "Annotations" and "Image
// Index".
func FromAnnotations(annotations map[string]string, architecture, variant string) *Fields {
	const prefix = "org.opencontainers.image."
	f := &Fields{
		Title: annotations[prefix+"title"], Description: annotations[prefix+"description"],
		Version: annotations[prefix+"version"], HomePage: annotations[prefix+"url"],
		Architecture: architecture,
	}
	if f.HomePage == "" {
		f.HomePage = annotations[prefix+"documentation"]
	}
	if architecture == "arm" {
		f.Architecture = map[string]string{"v7": "armhf", "v5": "armel"}[variant]
	}
	// RFC 3339, of which the date is the beginning.
	f.ReleaseDate, _, _ = strings.Cut(annotations[prefix+"created"], "T")
	for _, key := range []string{"vendor", "licenses"} {
		if v := annotations[prefix+key]; v != "" {
			if f.Labels == nil {
				f.Labels = map[string]string{}
			}
			f.Labels[key] = v
		}
	}
	return f.Clean()
}

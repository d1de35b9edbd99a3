package metadata

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"

	"imageroot/shared/image"
)

// Patch returns w as changed by a merge patch (RFC 7396): a member of the patch replaces
// that of w, null removes it, and labels are merged one by one. The error is an [*Error] if
// a member is unknown or the result is not valid. Patch does not change w.
func (w Words) Patch(patch map[string]any) (Words, error) {
	for key := range patch {
		if !slices.Contains(append(Keys(), "name"), key) {
			return w, invalid("metadata", "has no field %.100q; known are %s and name", key, strings.Join(Keys(), ", "))
		}
	}
	data, err := json.Marshal(w)
	if err != nil {
		return w, err
	}
	var target any
	if err := json.Unmarshal(data, &target); err != nil {
		return w, err
	}
	if data, err = json.Marshal(mergePatch(target, patch)); err != nil {
		return w, err
	}
	var next Words
	if err := json.Unmarshal(data, &next); err != nil {
		if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
			field, _, _ := strings.Cut(strings.TrimPrefix(e.Field, "Fields."), ".")
			return w, invalid(field, "must be %s, not %s", kindOf(field), article(e.Value))
		}
		return w, err
	}
	if next.Name != "" {
		if _, err := image.ParseName(string(next.Name)); err != nil {
			return w, invalid("name", "is no name of an image: %v", err)
		}
	}
	return next, next.Check()
}

func kindOf(field string) string {
	switch field {
	case "devices":
		return "an array of strings"
	case "labels":
		return "an object of strings"
	}
	return "a string"
}

func article(value string) string {
	kind, _, _ := strings.Cut(value, " ") // "number 5"
	switch kind {
	case "array", "object":
		return "an " + kind
	case "bool":
		return "true or false"
	}
	return "a " + kind
}

// mergePatch is MergePatch of RFC 7396 section 2.
func mergePatch(target, patch any) any {
	members, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	merged, ok := target.(map[string]any)
	if !ok {
		merged = map[string]any{}
	}
	for name, value := range members {
		if value == nil {
			delete(merged, name)
		} else {
			merged[name] = mergePatch(merged[name], value)
		}
	}
	return merged
}

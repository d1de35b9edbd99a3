package pages

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"imageroot/functions/catalog"
	"imageroot/shared/activity"
	"imageroot/shared/image"
	"imageroot/shared/inventory"
	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/templates"
)

func (p *Pages) eventsPage(w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	for name := range v {
		if v.Get(name) == "" {
			delete(v, name) // a form sends empty fields, too
		}
	}
	page := templates.Events{
		Frame:     p.frame(w, r, "Activity", "events"),
		Kinds:     kindOptions(v.Get("kind")),
		Subjects:  options(v.Get("subject_kind"), "all", activity.SubjectKinds()...),
		Actors:    options(v.Get("actor"), "all", activity.Actors()...),
		SubjectID: v.Get("subject_id"), SourceIP: v.Get("source_ip"),
		Outcomes: []templates.Option{
			{Value: "", Text: "all"},
			{Value: "true", Text: "failed", Selected: v.Get("failed") == "true"},
			{Value: "false", Text: "did not fail", Selected: v.Get("failed") == "false"},
		},
		Filtered: len(v) > 0,
	}
	if filter := v.Get("actor"); strings.HasPrefix(filter, activity.TokenPrefix) {
		page.Actors = append(page.Actors, templates.Option{Value: filter, Text: filter, Selected: true})
	}
	var err error
	if page.Strip, err = p.strip(r.Context()); err != nil {
		return err
	}
	page.Live = stripPath
	filter, err := catalog.ParseFilter(v)
	for _, n := range []int{20, catalog.DefaultEvents, 100, catalog.MaxEvents} {
		page.Limits = append(page.Limits, templates.Option{Value: strconv.Itoa(n), Text: strconv.Itoa(n) + " events", Selected: n == filter.Limit})
	}
	if err != nil {
		e := problem.From(err)
		page.Error = e.Detail
		return p.show(w, r, e.Code.Status(), page)
	}
	events, older, err := p.Activity.List(r.Context(), filter)
	if err != nil {
		return err
	}
	s, err := p.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	page.Events = p.eventViews(s, events)
	if older != "" {
		page.Older = eventsPath + "?" + with(v, "before", string(older))
	}
	if v.Has("before") {
		page.Newest = eventsPath + "?" + with(v, "before", "")
	}
	return p.show(w, r, http.StatusOK, page)
}

// with returns a query with one field changed; an empty value removes it.
func with(v url.Values, name, value string) string {
	v = maps.Clone(v)
	if value == "" {
		v.Del(name)
	} else {
		v[name] = []string{value}
	}
	return v.Encode()
}

func options(selected, all string, values ...string) []templates.Option {
	list := []templates.Option{{Value: "", Text: all}}
	for _, v := range values {
		list = append(list, templates.Option{Value: v, Text: v, Selected: v == selected})
	}
	return list
}

// eventViews returns events, with links to the images that s has.
func (p *Pages) eventViews(s *inventory.Snapshot, events []activity.Event) []templates.Event {
	now := p.Now()
	views := make([]templates.Event, len(events))
	for i := range events {
		e := &events[i]
		v := templates.Event{
			When: timeOf(e.TS, now), Kind: kindWords(e.Kind), Failed: e.Failed(), Subject: e.SubjectKind, SubjectID: e.SubjectID,
			Page: subjectPage(s, e), Actor: e.Actor, SourceIP: e.SourceIP, Summary: e.Summary,
		}
		if e.Kind == activity.ImageMissed && v.Page == "" {
			v.Fetch = e.SubjectID
		}
		for _, name := range slices.Sorted(maps.Keys(e.Details)) {
			if text := detail(name, e.Details[name]); text != "" {
				v.Details = append(v.Details, templates.Detail{Name: name, Value: text})
			}
		}
		views[i] = v
	}
	return views
}

// words are the kinds of events as people say them.
var words = map[string]string{
	activity.ImageUploaded: "uploaded", activity.ImageUploadFailed: "upload failed", activity.ImageHashed: "hashed", activity.ImageHashFailed: "hash failed",
	activity.ImageCheckFailed: "check failed", activity.ImageDiskMade: "disk made", activity.ImageDiskFailed: "disk failed",
	activity.ImageFetched: "fetched", activity.ImageFetchFailed: "fetch failed", activity.ImageDescribed: "described", activity.ImageRenamed: "renamed", activity.ImageRenameFailed: "rename failed", activity.ImageDeleted: "deleted",
	activity.ImageUncached: "bytes dropped", activity.ImageMissed: "asked for", activity.EntryAdded: "URL added", activity.EntryAddFailed: "adding a URL failed", activity.EntryDeleted: "URL deleted",
	activity.ExportAdded: "export added", activity.ExportDeleted: "export deleted", activity.ManifestReplaced: "manifest replaced",
	activity.TokenAdded: "token made", activity.TokenDeleted: "token revoked", activity.LoginSucceeded: "logged in", activity.LoginFailed: "log-in failed", activity.Logout: "logged out",
}

func kindWords(kind string) string { return cmp.Or(words[kind], kind) }

func kindOptions(selected string) []templates.Option {
	list := options(selected, "all kinds", activity.Kinds()...)
	for i := range list[1:] {
		list[i+1].Text = kindWords(list[i+1].Value)
	}
	return list
}

// subjectPage returns the page of the image that an event is about, or "".
func subjectPage(s *inventory.Snapshot, e *activity.Event) string {
	switch e.SubjectKind {
	case activity.SubjectImage:
		if row, ok := s.BySource(layout.RefOf(e.SubjectID)); ok && row.Cached {
			return pageOf(row)
		}
		if h := s.Named(image.Name(e.SubjectID)); h != nil {
			return imagePath(h.SHA256, h.Name, "")
		}
	case activity.SubjectCatalog:
		if row, ok := s.BySource(layout.RefOf(e.SubjectID)); ok {
			return pageOf(row)
		}
	}
	return ""
}

// detail formats a value of an event's details, which were decoded from JSON.
func detail(name string, v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		if s := strconv.FormatFloat(v, 'f', -1, 64); name != "size_bytes" {
			return s
		}
		s := sizeOf(int64(v))
		return s.Text + " (" + s.Exact + ")"
	}
	data, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(data)
}

package contract

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// keywords are the keywords of JSON Schema that [checker] implements. The file
// may use no other.
var keywords = []string{
	"$ref", "type", "const", "enum", "pattern", "format", "minLength", "maxLength", "minimum", "maximum", "multipleOf",
	"items", "minItems", "maxItems", "properties", "required", "additionalProperties", "minProperties", "anyOf",
	"default", "description", "title", "examples",
}

// A checker compares values with schemas.
type checker struct {
	doc *document
	// seen, if not nil, is called for each member that the schema at ("Part",
	// or a path for one without a name) has, and whether it was null.
	seen func(at, member string, null bool)
}

// check returns the faults of v, as [decode] returns it. Unlike JSON Schema it
// refuses a member that the schema does not name, unless the schema has
// additionalProperties: true.
func (c *checker) check(schema object, v any, at string) []string {
	var wrong []string
	fail := func(format string, args ...any) {
		wrong = append(wrong, at+": "+fmt.Sprintf(format, args...))
	}
	if ref, ok := schema["$ref"].(string); ok {
		target, err := c.doc.find(ref)
		if err != nil {
			return []string{at + ": " + err.Error()}
		}
		return c.check(target, v, ref[strings.LastIndexByte(ref, '/')+1:])
	}
	if choices := list(schema, "anyOf"); choices != nil && !slices.ContainsFunc(choices, func(s any) bool {
		o, _ := s.(object)
		return len(c.check(o, v, at)) == 0
	}) {
		fail("%v is none of anyOf", v)
	}
	if types := typesOf(schema); len(types) > 0 && !slices.ContainsFunc(types, func(t string) bool { return is(t, v) }) {
		fail("%v is not %s", v, strings.Join(types, " or "))
		return wrong
	}
	if want, ok := schema["const"]; ok && want != v {
		fail("%v is not %v", v, want)
	}
	if enum := list(schema, "enum"); enum != nil && !slices.Contains(enum, v) {
		fail("%v is none of %v", v, enum)
	}
	switch v := v.(type) {
	case string:
		wrong = append(wrong, checkString(schema, v, at)...)
	case json.Number:
		wrong = append(wrong, checkNumber(schema, v, at)...)
	case []any:
		if n, ok := schema["minItems"].(int); ok && len(v) < n {
			fail("%d items", len(v))
		}
		if n, ok := schema["maxItems"].(int); ok && len(v) > n {
			fail("%d items", len(v))
		}
		for _, item := range v {
			wrong = append(wrong, c.check(child(schema, "items"), item, at+"[]")...)
		}
	case object:
		wrong = append(wrong, c.checkObject(schema, v, at)...)
	}
	return wrong
}

func (c *checker) checkObject(schema, v object, at string) []string {
	var wrong []string
	for _, name := range list(schema, "required") {
		if _, ok := v[name.(string)]; !ok {
			wrong = append(wrong, fmt.Sprintf("%s: %s is missing", at, name))
		}
	}
	if n, ok := schema["minProperties"].(int); ok && len(v) < n {
		wrong = append(wrong, fmt.Sprintf("%s: %d members", at, len(v)))
	}
	properties := child(schema, "properties")
	for _, name := range slices.Sorted(maps.Keys(v)) {
		property, ok := properties[name].(object)
		if !ok {
			if schema["additionalProperties"] != true {
				wrong = append(wrong, fmt.Sprintf("%s: %s is not in docs/openapi.yaml", at, name))
			}
			continue
		}
		if c.seen != nil {
			c.seen(at, name, v[name] == nil)
		}
		wrong = append(wrong, c.check(property, v[name], at+"."+name)...)
	}
	return wrong
}

func checkString(schema object, v, at string) []string {
	var wrong []string
	if p, ok := schema["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(v) {
		wrong = append(wrong, fmt.Sprintf("%s: %q does not match %s", at, v, p))
	}
	if n, ok := schema["minLength"].(int); ok && utf8.RuneCountInString(v) < n {
		wrong = append(wrong, fmt.Sprintf("%s: %q is too short", at, v))
	}
	if n, ok := schema["maxLength"].(int); ok && utf8.RuneCountInString(v) > n {
		wrong = append(wrong, fmt.Sprintf("%s: %q is too long", at, v))
	}
	var err error
	switch format := text(schema, "format"); format {
	case "":
	case "date-time":
		_, err = time.Parse(time.RFC3339Nano, v)
	case "date":
		_, err = time.Parse(time.DateOnly, v)
	case "uri", "uri-reference":
		var u *url.URL
		if u, err = url.Parse(v); err == nil && format == "uri" && !u.IsAbs() {
			err = fmt.Errorf("it is relative")
		}
	default:
		err = fmt.Errorf("this format is not known here")
	}
	if err != nil {
		wrong = append(wrong, fmt.Sprintf("%s: %q is no %s: %v", at, v, schema["format"], err))
	}
	return wrong
}

func checkNumber(schema object, v json.Number, at string) []string {
	n, err := v.Int64()
	if err != nil {
		return []string{fmt.Sprintf("%s: %s is not an integer of 64 bits", at, v)}
	}
	var wrong []string
	for name, ok := range map[string]func(limit int64) bool{
		"minimum":    func(limit int64) bool { return n >= limit },
		"maximum":    func(limit int64) bool { return n <= limit },
		"multipleOf": func(unit int64) bool { return n%unit == 0 },
	} {
		if limit, has := schema[name].(int); has && !ok(int64(limit)) {
			wrong = append(wrong, fmt.Sprintf("%s: %d, and %s is %d", at, n, name, limit))
		}
	}
	return wrong
}

// typesOf returns the types that a schema names, or nil.
func typesOf(schema object) []string {
	switch t := schema["type"].(type) {
	case string:
		return []string{t}
	case []any:
		var types []string
		for _, s := range t {
			types = append(types, fmt.Sprint(s))
		}
		return types
	}
	return nil
}

func is(typ string, v any) bool {
	switch v := v.(type) {
	case nil:
		return typ == "null"
	case bool:
		return typ == "boolean"
	case string:
		return typ == "string"
	case json.Number:
		_, err := v.Int64()
		return typ == "number" || typ == "integer" && err == nil
	case []any:
		return typ == "array"
	case object:
		return typ == "object"
	}
	return false
}

// members calls f for each member of each object that a schema describes.
func (d *document) members(schema object, at string, f func(at, member string, property object)) {
	if ref, ok := schema["$ref"].(string); ok {
		target, _ := d.find(ref)
		d.members(target, ref[strings.LastIndexByte(ref, '/')+1:], f)
		return
	}
	for name, p := range child(schema, "properties") {
		property, _ := p.(object)
		f(at, name, property)
		d.members(property, at+"."+name, f)
	}
	if items := child(schema, "items"); items != nil {
		d.members(items, at+"[]", f)
	}
}

// TestChecker tests that the checker finds faults.
func TestChecker(t *testing.T) {
	d, err := parse([]byte(`
components:
  schemas:
    Thing:
      type: object
      required: [num, s]
      properties:
        num: {type: [integer, 'null'], minimum: 1, maximum: 8, multipleOf: 2}
        s: {type: string, pattern: '^[a-z]*$', minLength: 1, maxLength: 3}
        t: {type: string, format: date-time}
        u: {type: string, format: uri}
        e: {enum: [a, b]}
        c: {const: x}
        l: {type: array, items: {$ref: '#/components/schemas/Thing'}, minItems: 1, maxItems: 1}
        a: {anyOf: [{type: 'null'}, {type: boolean}]}
        free: {type: object, additionalProperties: true, minProperties: 1}
        lost: {$ref: '#/components/schemas/Nothing'}
`))
	if err != nil {
		t.Fatal(err)
	}
	schema := object{"$ref": "#/components/schemas/Thing"}
	for _, tt := range []struct{ json, want string }{
		{`{"num": 2, "s": "a", "t": "2026-01-02T03:04:05.6Z", "u": "oras://a/b:c", "e": "b", "c": "x", "l": [{"num": null, "s": "b"}], "a": null, "free": {"z": 1}}`, ""},
		{`[]`, "Thing: [] is not object"},
		{`{"num": 2}`, "Thing: s is missing"},
		{`{"num": 2, "s": "a", "x": 1}`, "Thing: x is not in docs/openapi.yaml"},
		{`{"num": "2", "s": "a"}`, "Thing.num: 2 is not integer or null"},
		{`{"num": 2.5, "s": "a"}`, "Thing.num: 2.5 is not integer or null"},
		{`{"num": 0, "s": "a"}`, "Thing.num: 0, and minimum is 1"},
		{`{"num": 10, "s": "a"}`, "Thing.num: 10, and maximum is 8"},
		{`{"num": 3, "s": "a"}`, "Thing.num: 3, and multipleOf is 2"},
		{`{"num": 2, "s": null}`, "Thing.s: <nil> is not string"},
		{`{"num": 2, "s": "A"}`, `Thing.s: "A" does not match ^[a-z]*$`},
		{`{"num": 2, "s": ""}`, `Thing.s: "" is too short`},
		{`{"num": 2, "s": "abcd"}`, `Thing.s: "abcd" is too long`},
		{`{"num": 2, "s": "a", "t": "yesterday"}`, `Thing.t: "yesterday" is no date-time`},
		{`{"num": 2, "s": "a", "u": "/here"}`, `Thing.u: "/here" is no uri: it is relative`},
		{`{"num": 2, "s": "a", "e": "c"}`, "Thing.e: c is none of [a b]"},
		{`{"num": 2, "s": "a", "c": "y"}`, "Thing.c: y is not x"},
		{`{"num": 2, "s": "a", "l": []}`, "Thing.l: 0 items"},
		{`{"num": 2, "s": "a", "l": [{"num": 2, "s": "a"}, {"num": 2, "s": "a"}]}`, "Thing.l: 2 items"},
		{`{"num": 2, "s": "a", "l": [{"num": 2}]}`, "Thing: s is missing"},
		{`{"num": 2, "s": "a", "a": 1}`, "Thing.a: 1 is none of anyOf"},
		{`{"num": 2, "s": "a", "free": {}}`, "Thing.free: 0 members"},
		{`{"num": 2, "s": "a", "lost": 1}`, `Thing.lost: the reference "#/components/schemas/Nothing" leads nowhere`},
	} {
		v, err := decode([]byte(tt.json))
		if err != nil {
			t.Fatalf("%s: %v", tt.json, err)
		}
		wrong := (&checker{doc: d}).check(schema, v, "")
		if tt.want == "" && len(wrong) > 0 || tt.want != "" && (len(wrong) != 1 || !strings.HasPrefix(wrong[0], tt.want)) {
			t.Errorf("%s\n got %q\nwant %q", tt.json, wrong, tt.want)
		}
	}
}

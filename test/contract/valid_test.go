package contract

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"imageroot/functions/exports"
)

// grammar is the part of OpenAPI 3.1 that the file may use: for each kind of
// object its fields and their kinds. "!" marks a required field, "[]" a list,
// "{}" a mapping of any keys, and "&" a value that may be a reference.
var grammar = map[string]map[string]string{
	"openapi": {
		"openapi!": "string", "info!": "info", "servers": "[]server", "security": "[]security", "tags": "[]tag",
		"paths!": "{}path", "components": "components",
	},
	"info":    {"title!": "string", "version!": "string", "summary": "string", "description": "string", "license": "license"},
	"license": {"name!": "string", "identifier": "string"},
	"server":  {"url!": "string", "description": "string"},
	"tag":     {"name!": "string", "description": "string"},
	"path": {
		"parameters": "[]&parameter", "get": "operation", "head": "operation", "put": "operation", "post": "operation", "delete": "operation",
		"patch": "operation",
	},
	"operation": {
		"operationId!": "string", "tags!": "[]string", "summary!": "string", "description": "string", "security": "[]security",
		"parameters": "[]&parameter", "requestBody": "body", "responses!": "{}&response",
	},
	"parameter": {"name!": "string", "in!": "string", "required": "bool", "description": "string", "schema!": "schema", "example": "any"},
	"body":      {"required!": "bool", "description": "string", "content!": "{}media"},
	"response":  {"description!": "string", "headers!": "{}&header", "content": "{}media"},
	"header":    {"description": "string", "required": "bool", "schema!": "schema"},
	"media":     {"schema": "schema", "example": "any"},
	"scheme": {
		"type!": "string", "scheme": "string", "in": "string", "name": "string", "description": "string",
	},
	"components": {
		"securitySchemes": "{}scheme", "headers": "{}header", "parameters": "{}parameter", "responses": "{}response", "schemas": "{}schema",
	},
}

// sections are the sections of the components for each kind that may be
// referred to.
var sections = map[string]string{"parameter": "parameters", "response": "responses", "header": "headers", "schema": "schemas"}

// A validator collects the faults of a document.
type validator struct {
	doc   *document
	wrong []string
	used  map[string]bool // references
}

func (v *validator) fail(at, format string, args ...any) {
	v.wrong = append(v.wrong, at+": "+fmt.Sprintf(format, args...))
}

// TestValid tests that the file is OpenAPI 3.1, as far as it uses it.
func TestValid(t *testing.T) {
	for _, wrong := range validate(load(t)) {
		t.Error(wrong)
	}
}

func validate(d *document) []string {
	v := &validator{doc: d, used: map[string]bool{}}
	v.value("openapi", d.root, "#")
	if s := text(d.root, "openapi"); !regexp.MustCompile(`^3\.1\.\d+$`).MatchString(s) {
		v.fail("#/openapi", "%q", s)
	}
	v.operations()
	for section, c := range child(d.root, "components") {
		for name := range c.(object) {
			if ref := "#/components/" + section + "/" + name; section != "securitySchemes" && !v.used[ref] {
				v.fail(ref, "nothing refers to it")
			}
		}
	}
	slices.Sort(v.wrong)
	return v.wrong
}

// value checks a value of some kind.
func (v *validator) value(kind string, value any, at string) {
	if inner, ok := strings.CutPrefix(kind, "[]"); ok {
		items, ok := value.([]any)
		if !ok {
			v.fail(at, "not a list")
		}
		for i, item := range items {
			v.value(inner, item, fmt.Sprintf("%s/%d", at, i))
		}
		return
	}
	if inner, ok := strings.CutPrefix(kind, "{}"); ok {
		o, ok := value.(object)
		if !ok || len(o) == 0 {
			v.fail(at, "not a mapping, or an empty one")
		}
		for name, item := range o {
			v.value(inner, item, at+"/"+name)
		}
		return
	}
	if inner, ok := strings.CutPrefix(kind, "&"); ok {
		o, _ := value.(object)
		if ref, ok := o["$ref"].(string); ok {
			v.reference(inner, ref, at)
			for name := range o {
				if name != "$ref" && name != "description" {
					v.fail(at, "%s beside a reference", name)
				}
			}
			return
		}
		kind = inner
	}
	ok := true
	switch kind {
	case "any":
	case "string":
		var s string
		s, ok = value.(string)
		ok = ok && strings.TrimSpace(s) != ""
	case "bool":
		_, ok = value.(bool)
	case "security":
		v.security(value, at)
	case "schema":
		o, isObject := value.(object)
		if ok = isObject; ok {
			v.schema(o, at)
		}
	default:
		o, isObject := value.(object)
		if ok = isObject; ok {
			v.fields(kind, o, at)
		}
	}
	if !ok {
		v.fail(at, "not a %s", kind)
	}
}

func (v *validator) fields(kind string, o object, at string) {
	fields := grammar[kind]
	for name, value := range o {
		inner, ok := fields[name]
		if !ok {
			inner, ok = fields[name+"!"]
		}
		if !ok {
			v.fail(at, "%s is no field of a %s", name, kind)
			continue
		}
		v.value(inner, value, at+"/"+name)
	}
	for name := range fields {
		if must, ok := strings.CutSuffix(name, "!"); ok {
			if _, ok := o[must]; !ok {
				v.fail(at, "%s is missing", must)
			}
		}
	}
	if example, ok := o["example"]; ok {
		v.example(child(o, "schema"), example, at+"/example")
	}
}

func (v *validator) reference(kind, ref, at string) {
	if !strings.HasPrefix(ref, "#/components/"+sections[kind]+"/") {
		v.fail(at, "the reference %q is to no %s", ref, kind)
	}
	if _, err := v.doc.find(ref); err != nil {
		v.fail(at, "%v", err)
	}
	v.used[ref] = true
}

func (v *validator) security(value any, at string) {
	o, ok := value.(object)
	if !ok {
		v.fail(at, "not a mapping")
	}
	for name, scopes := range o {
		if child(child(v.doc.root, "components"), "securitySchemes")[name] == nil {
			v.fail(at, "there is no security scheme %s", name)
		}
		if _, ok := scopes.([]any); !ok {
			v.fail(at, "the scopes of %s are not a list", name)
		}
	}
}

func (v *validator) schema(o object, at string) {
	if ref, ok := o["$ref"].(string); ok {
		v.reference("schema", ref, at)
		if len(o) > 1 {
			v.fail(at, "a schema that is a reference says more")
		}
		return
	}
	for name := range o {
		if !slices.Contains(keywords, name) {
			v.fail(at, "the keyword %s is not known here", name)
		}
	}
	for _, typ := range typesOf(o) {
		if !slices.Contains([]string{"null", "boolean", "object", "array", "string", "integer"}, typ) {
			v.fail(at, "there is no type %s", typ)
		}
	}
	if p, ok := o["pattern"]; ok {
		if _, err := regexp.Compile(fmt.Sprint(p)); err != nil {
			v.fail(at, "%v", err)
		}
	}
	for name, p := range child(o, "properties") {
		v.value("schema", p, at+"/properties/"+name)
	}
	for _, name := range list(o, "required") {
		if child(o, "properties")[fmt.Sprint(name)] == nil {
			v.fail(at, "%v is required and has no schema", name)
		}
	}
	if items, ok := o["items"]; ok {
		v.value("schema", items, at+"/items")
	} else if slices.Contains(typesOf(o), "array") {
		v.fail(at, "an array without items")
	}
	for i, s := range list(o, "anyOf") {
		v.value("schema", s, fmt.Sprintf("%s/anyOf/%d", at, i))
	}
	for i, e := range list(o, "examples") {
		v.example(o, e, fmt.Sprintf("%s/examples/%d", at, i))
	}
	if e, ok := o["default"]; ok {
		v.example(o, e, at+"/default")
	}
	seen := map[any]bool{}
	for _, e := range list(o, "enum") {
		if seen[e] {
			v.fail(at, "%v is twice in the enum", e)
		}
		seen[e] = true
	}
}

func (v *validator) example(schema object, example any, at string) {
	if schema == nil {
		return
	}
	data, err := decodePlain(example)
	if err != nil {
		v.fail(at, "%v", err)
		return
	}
	for _, wrong := range (&checker{doc: v.doc}).check(schema, data, "the example") {
		v.fail(at, "%s", wrong)
	}
}

// operations checks the relations between the parts of an operation.
func (v *validator) operations() {
	ids, shapes, tags := map[string]string{}, map[string]string{}, map[string]bool{}
	for _, item := range list(v.doc.root, "tags") {
		tags[text(item.(object), "name")] = false
	}
	for path := range child(v.doc.root, "paths") {
		if !strings.HasPrefix(path, "/") {
			v.fail(path, "a path begins with a slash")
		}
		if other, ok := shapes[shape(path)]; ok {
			v.fail(path, "the same path as %s", other)
		}
		shapes[shape(path)] = path
	}
	for _, op := range v.doc.operations() {
		id := text(op.object, "operationId")
		if other, ok := ids[id]; ok {
			v.fail(op.id, "%s has the same operationId %s", other, id)
		}
		ids[id] = op.id
		for _, tag := range list(op.object, "tags") {
			if _, ok := tags[fmt.Sprint(tag)]; !ok {
				v.fail(op.id, "the tag %v is not declared", tag)
			}
			tags[fmt.Sprint(tag)] = true
		}
		v.parameters(op)
		if op.body != nil && op.method != "PUT" && op.method != "POST" && op.method != "PATCH" {
			v.fail(op.id, "a %s has no body", op.method)
		}
		for status := range op.responses {
			if status != "default" && !regexp.MustCompile(`^[2-5]\d\d$`).MatchString(status) {
				v.fail(op.id, "%s is no status", status)
			}
		}
	}
	for tag, used := range tags {
		if !used {
			v.fail(tag, "no operation has this tag")
		}
	}
}

var inBraces = regexp.MustCompile(`\{[^/}]+\}`)

// shape returns a path without the names of its parameters.
func shape(path string) string { return inBraces.ReplaceAllString(path, "{}") }

func (v *validator) parameters(op *operation) {
	var inPath []string
	seen := map[string]bool{}
	for _, p := range op.params {
		in, name := text(p, "in"), text(p, "name")
		switch in {
		case "path":
			inPath = append(inPath, "{"+name+"}")
			if p["required"] != true {
				v.fail(op.id, "the path parameter %s is not required", name)
			}
		case "query", "header":
		default:
			v.fail(op.id, "the parameter %s is in %q", name, in)
		}
		if key := in + " " + strings.ToLower(name); seen[key] {
			v.fail(op.id, "the parameter %s is there twice", name)
		} else {
			seen[key] = true
		}
	}
	want := inBraces.FindAllString(op.path, -1)
	slices.Sort(want)
	slices.Sort(inPath)
	if !slices.Equal(want, inPath) {
		v.fail(op.id, "the path has the parameters %v and declares %v", want, inPath)
	}
}

// TestValidator tests that the validator finds faults.
func TestValidator(t *testing.T) {
	const good = `
openapi: 3.1.1
info: {title: t, version: '1'}
tags: [{name: x}]
paths:
  /a/{b}:
    get:
      operationId: a
      tags: [x]
      summary: s
      security: [{k: []}]
      parameters: [{name: b, in: path, required: true, schema: {type: string}}]
      responses:
        '200': {$ref: '#/components/responses/R'}
components:
  securitySchemes: {k: {type: http, scheme: bearer}}
  responses: {R: {description: d, headers: {H: {schema: {type: string}}}, content: {a/b: {schema: {type: integer, maximum: 3}, example: 3}}}}
`
	if wrong := check(t, good); len(wrong) > 0 {
		t.Fatalf("the good one: %q", wrong)
	}
	for _, tt := range []struct{ old, new, want string }{
		{"3.1.1", "3.0.3", `#/openapi: "3.0.3"`},
		{"title: t, ", "", "#/info: title is missing"},
		{"summary: s", "summry: s", "summry is no field of a operation"},
		{"/R'", "/S'", "leads nowhere"},
		{"/responses/R'", "/securitySchemes/k'", "is to no response"},
		{"[{k: []}]", "[{l: []}]", "there is no security scheme l"},
		{"name: b", "name: c", "declares [{c}]"},
		{"required: true, ", "", "the path parameter b is not required"},
		{"in: path", "in: elsewhere", `is in "elsewhere"`},
		{"tags: [x]", "tags: [z]", "the tag z is not declared"},
		{"example: 3", "example: 4", "4, and maximum is 3"},
		{"maximum: 3", "maximun: 3", "the keyword maximun is not known here"},
		{"type: integer", "type: int", "there is no type int"},
		{"'200'", "'20x'", "20x is no status"},
		{"  responses: {R", "  responses: {Q: {description: d, headers: {H: {schema: {type: string}}}}, R", "responses/Q: nothing refers to it"},
		{"      operationId: a", "      requestBody: {required: true, content: {a/b: {}}}\n      operationId: a", "a GET has no body"},
		{"components:", "  /a/{c}: {}\ncomponents:", "the same path as"},
	} {
		if strings.Count(good, tt.old) != 1 {
			t.Fatalf("%q is %d times in the good one", tt.old, strings.Count(good, tt.old))
		}
		wrong := check(t, strings.Replace(good, tt.old, tt.new, 1))
		if !slices.ContainsFunc(wrong, func(s string) bool { return strings.Contains(s, tt.want) }) {
			t.Errorf("%s in place of %s: %q, not %q", tt.new, tt.old, wrong, tt.want)
		}
	}
	for _, bad := range []string{"a: 1\na: 2\n", "a: {200: b}\n", "- a\n", "a: [\n"} {
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func check(t *testing.T, source string) []string {
	t.Helper()
	d, err := parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	return validate(d)
}

// TestOperations tests that every operation states its access, its parameters
// and its errors.
func TestOperations(t *testing.T) {
	for _, op := range load(t).operations() {
		if _, ok := op.responses["default"]; !ok {
			t.Errorf("%s: no default response", op.id)
		}
		for status, r := range op.responses {
			content := slices.Sorted(maps.Keys(child(r, "content")))
			if _, ok := child(r, "headers")["X-Request-Id"]; !ok {
				t.Errorf("%s: %s has no X-Request-Id", op.id, status)
			}
			failed := status == "default" || status >= "400"
			if strings.HasPrefix(op.path, exports.Prefix) { // as nbdmux has it
				if len(content) > 0 && content[0] != "application/json" {
					t.Errorf("%s: %s has %v", op.id, status, content)
				}
			} else if isProblem := slices.Equal(content, []string{"application/problem+json"}); isProblem != failed {
				t.Errorf("%s: %s has %v", op.id, status, content)
			}
		}
	}
}

// Package contract tests that docs/openapi.yaml and the handlers agree: on
// paths, methods and access, and on the statuses, fields and members of
// answers. It also fails for what the file says and no test here causes, unless
// that is listed with the reason.
package contract

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v2"
)

const file = "../../docs/openapi.yaml"

// An object is a mapping of the file.
type object = map[string]any

// A document is the file, with an index of its operations.
type document struct {
	root object
	ops  map[string]*operation // by "GET /images/{key}"
}

// An operation is one method of one path. References to parameters, bodies
// and responses are followed; those to schemas and headers are not.
type operation struct {
	id           string // "GET /images/{key}"
	method, path string
	object       object
	params       []object
	body         object // nil if none
	responses    map[string]object
}

// load reads the file. Duplicate keys and keys that are no strings are errors,
// since other readers would drop them.
func load(t testing.TB) *document {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	d, err := parse(data)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return d
}

func parse(data []byte) (*document, error) {
	var raw any
	if err := yaml.UnmarshalStrict(data, &raw); err != nil {
		return nil, err
	}
	value, err := plain(raw, "#")
	if err != nil {
		return nil, err
	}
	root, ok := value.(object)
	if !ok {
		return nil, fmt.Errorf("the file is a %T", value)
	}
	d := &document{root: root, ops: map[string]*operation{}}
	for path, v := range child(root, "paths") {
		item, _ := v.(object)
		for _, method := range methods {
			o, ok := item[method].(object)
			if !ok {
				continue
			}
			op := &operation{method: strings.ToUpper(method), path: path, object: o, responses: map[string]object{}}
			op.id = op.method + " " + path
			for _, p := range append(list(item, "parameters"), list(o, "parameters")...) {
				op.params = append(op.params, d.follow(p))
			}
			if b, ok := o["requestBody"]; ok {
				op.body = d.follow(b)
			}
			for status, r := range child(o, "responses") {
				op.responses[status] = d.follow(r)
			}
			d.ops[op.id] = op
		}
	}
	return d, nil
}

var methods = []string{"get", "put", "post", "delete", "options", "head", "patch", "trace"}

// plain converts a YAML value to the one that JSON would give.
func plain(v any, at string) (any, error) {
	switch v := v.(type) {
	case map[any]any:
		o := object{}
		for key, value := range v {
			name, ok := key.(string)
			if !ok {
				return nil, fmt.Errorf("%s: the key %v is a %T; put it in quotes", at, key, key)
			}
			var err error
			if o[name], err = plain(value, at+"/"+name); err != nil {
				return nil, err
			}
		}
		return o, nil
	case []any:
		l := make([]any, len(v))
		for i := range v {
			var err error
			if l[i], err = plain(v[i], fmt.Sprintf("%s/%d", at, i)); err != nil {
				return nil, err
			}
		}
		return l, nil
	case nil, string, bool, int, float64:
		return v, nil
	}
	return nil, fmt.Errorf("%s: a %T has no place in JSON; put it in quotes", at, v)
}

// child returns a mapping in o, which is empty if it is missing.
func child(o object, name string) object {
	c, _ := o[name].(object)
	return c
}

func list(o object, name string) []any {
	l, _ := o[name].([]any)
	return l
}

func text(o object, name string) string {
	s, _ := o[name].(string)
	return s
}

// find returns the target of a reference ("#/components/schemas/Part").
func (d *document) find(ref string) (object, error) {
	path, ok := strings.CutPrefix(ref, "#/")
	if !ok {
		return nil, fmt.Errorf("the reference %q leads out of the file", ref)
	}
	at := d.root
	for name := range strings.SplitSeq(path, "/") {
		if at, ok = at[name].(object); !ok {
			return nil, fmt.Errorf("the reference %q leads nowhere", ref)
		}
	}
	return at, nil
}

// follow returns v, or the target if v is a reference. It returns an empty
// object if there is no target; [TestValid] reports that.
func (d *document) follow(v any) object {
	o, _ := v.(object)
	if ref, ok := o["$ref"].(string); ok {
		o, _ = d.find(ref)
	}
	return o
}

// operations returns all operations in the order of their IDs.
func (d *document) operations() []*operation {
	var ops []*operation
	for _, id := range slices.Sorted(maps.Keys(d.ops)) {
		ops = append(ops, d.ops[id])
	}
	return ops
}

// unsafe reports whether the operation changes something.
func (o *operation) unsafe() bool { return o.method != "GET" && o.method != "HEAD" }

func (o *operation) param(in, name string) object {
	for _, p := range o.params {
		if text(p, "in") == in && strings.EqualFold(text(p, "name"), name) {
			return p
		}
	}
	return nil
}

// operationFor returns the operation of a request's method and path, as
// escaped. A literal segment takes precedence over a parameter.
func (d *document) operationFor(method, path string) *operation {
	var found *operation
	for _, op := range d.operations() {
		if op.method == method && matches(op.path, path) && (found == nil || strings.Count(op.path, "{") < strings.Count(found.path, "{")) {
			found = op
		}
	}
	return found
}

func matches(template, path string) bool {
	a, b := strings.Split(template, "/"), strings.Split(path, "/")
	return slices.EqualFunc(a, b, func(a, b string) bool {
		return a == b || strings.HasPrefix(a, "{") && b != ""
	})
}

// decode reads JSON and keeps numbers as they are written.
func decode(data []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	if dec.More() {
		return nil, fmt.Errorf("more follows the first value")
	}
	return v, nil
}

// decodePlain converts a value of the file to the result of [decode].
func decodePlain(v any) (any, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return decode(data)
}

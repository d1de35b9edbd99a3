// Package template reads template.yaml as CloudFormation would: it replaces
// parameters and references by their values in a stack, so that tests can
// compare the template with the code.
package template

import (
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The account and region of the tests' stack.
const (
	Account = "123456789012"
	Region  = "us-east-1"
)

// A Template is a parsed template.
type Template struct {
	doc    map[string]any
	params map[string]string
	// SQS is the base URL of queues, without a slash at the end.
	SQS string
}

// Root is the directory of the repository.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "template.yaml")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no template.yaml above the working directory")
		}
		dir = filepath.Dir(dir)
	}
}

// Load reads template.yaml with these parameters, or their defaults.
func Load(params map[string]string) (*Template, error) {
	root, err := Root()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(root, "template.yaml"))
	if err != nil {
		return nil, err
	}
	return Parse(data, params)
}

// Parse reads a template in YAML or JSON.
func Parse(data []byte, params map[string]string) (*Template, error) {
	var node yaml.Node
	if err := yaml.Unmarshal(data, &node); err != nil {
		return nil, err
	}
	if len(node.Content) == 0 {
		return nil, fmt.Errorf("the template is empty")
	}
	v, err := value(node.Content[0])
	if err != nil {
		return nil, err
	}
	doc, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("the template is no mapping")
	}
	t := &Template{doc: doc, params: map[string]string{}, SQS: "https://sqs." + Region + ".amazonaws.com"}
	for name, p := range Map(doc["Parameters"]) {
		t.params[name] = fmt.Sprint(Map(p)["Default"])
	}
	for name, v := range params {
		if _, ok := t.params[name]; !ok {
			return nil, fmt.Errorf("the template has no parameter %s", name)
		}
		t.params[name] = v
	}
	return t, nil
}

// value returns the value of a node; short forms of functions (!Sub) become the
// long ones.
func value(n *yaml.Node) (any, error) {
	var v any
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, ok := m[key]; ok {
				return nil, fmt.Errorf("line %d: %s is there twice", n.Content[i].Line, key)
			}
			e, err := value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[key] = e
		}
		v = m
	case yaml.SequenceNode:
		list := make([]any, len(n.Content))
		for i, c := range n.Content {
			e, err := value(c)
			if err != nil {
				return nil, err
			}
			list[i] = e
		}
		v = list
	case yaml.ScalarNode:
		if strings.HasPrefix(n.Tag, "!!") {
			if err := n.Decode(&v); err != nil {
				return nil, err
			}
		} else {
			v = n.Value
		}
	default:
		return nil, fmt.Errorf("line %d: CloudFormation knows no aliases", n.Line)
	}
	switch {
	case strings.HasPrefix(n.Tag, "!!"):
		return v, nil
	case n.Tag == "!Ref" || n.Tag == "!Condition":
		return map[string]any{n.Tag[1:]: v}, nil
	case n.Tag == "!GetAtt":
		if s, ok := v.(string); ok {
			name, attribute, _ := strings.Cut(s, ".")
			v = []any{name, attribute}
		}
	}
	return map[string]any{"Fn::" + n.Tag[1:]: v}, nil
}

// Map returns v as a mapping, or nil if it is not one.
func Map(v any) map[string]any {
	m, _ := v.(map[string]any)
	return m
}

// List returns v as a list. A nil v is an empty list; any other v that is not a
// list is a list of one.
func List(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

// Resources returns the logical IDs of the resources of a type, sorted.
func (t *Template) Resources(typ string) []string {
	var ids []string
	for id, r := range Map(t.doc["Resources"]) {
		if Map(r)["Type"] == typ {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// Resource returns a resource, unresolved.
func (t *Template) Resource(id string) map[string]any { return Map(Map(t.doc["Resources"])[id]) }

// Properties returns a resource's properties, resolved.
func (t *Template) Properties(id string) map[string]any {
	return Map(t.Resolve(t.Resource(id)["Properties"]))
}

// Doc returns the template, unresolved.
func (t *Template) Doc() map[string]any { return t.doc }

var substitution = regexp.MustCompile(`\$\{([A-Za-z0-9:.]+)\}`)

// noValue is the reference that removes a property from the template.
const noValue = "AWS::NoValue"

// Resolve replaces references by their values in the tests' stack. It panics if
// a reference has no target.
func (t *Template) Resolve(v any) any {
	switch v := v.(type) {
	case []any:
		list := make([]any, 0, len(v))
		for _, e := range v {
			if e = t.Resolve(e); e != noValue {
				list = append(list, e)
			}
		}
		return list
	case map[string]any:
		if len(v) == 1 {
			for name, arg := range v {
				switch name {
				case "Ref":
					return t.ref(arg.(string))
				case "Fn::GetAtt":
					return t.attribute(arg.([]any))
				case "Fn::Sub":
					return substitution.ReplaceAllStringFunc(arg.(string), func(s string) string {
						name := s[2 : len(s)-1]
						if id, attribute, ok := strings.Cut(name, "."); ok {
							return t.attribute([]any{id, attribute})
						}
						return t.ref(name)
					})
				case "Fn::Equals":
					args := List(t.Resolve(arg))
					return fmt.Sprint(args[0]) == fmt.Sprint(args[1])
				case "Fn::Not":
					return t.Resolve(List(arg)[0]) != true
				case "Fn::And":
					return !slices.ContainsFunc(List(t.Resolve(arg)), func(c any) bool { return c != true })
				case "Condition":
					if name, ok := arg.(string); ok {
						return t.Resolve(Map(t.doc["Conditions"])[name])
					}
				case "Fn::If":
					args := List(arg)
					if t.Resolve(Map(t.doc["Conditions"])[fmt.Sprint(args[0])]) == true {
						return t.Resolve(args[1])
					}
					return t.Resolve(args[2])
				}
			}
		}
		m := make(map[string]any, len(v))
		for k, e := range v {
			if e = t.Resolve(e); e != noValue {
				m[k] = e
			}
		}
		return m
	}
	return v
}

func (t *Template) ref(name string) string {
	if p, ok := t.params[name]; ok {
		return p
	}
	switch name {
	case "AWS::AccountId":
		return Account
	case "AWS::Region":
		return Region
	case "AWS::Partition":
		return "aws"
	case "AWS::URLSuffix":
		return "amazonaws.com"
	case noValue:
		return noValue
	case "AWS::StackName":
		return t.params["Name"]
	}
	switch typ := t.Resource(name)["Type"]; typ {
	case nil:
		panic("the template has nothing that is called " + name)
	case "AWS::SQS::Queue":
		return t.SQS + "/" + Account + "/" + name
	case "AWS::SecretsManager::Secret", "AWS::SNS::Topic":
		return t.arn(name)
	case "AWS::S3::Bucket":
		return fmt.Sprint(t.Resolve(Map(t.Resource(name)["Properties"])["BucketName"]))
	}
	return name
}

func (t *Template) attribute(arg []any) string {
	id, attribute := fmt.Sprint(arg[0]), fmt.Sprint(arg[1])
	switch attribute {
	case "Arn":
		return t.arn(id)
	case "QueueName":
		return id
	}
	panic("an attribute that nobody knows here: " + id + "." + attribute)
}

func (t *Template) arn(id string) string {
	service := map[string]string{
		"AWS::SQS::Queue": "sqs:" + Region + ":" + Account + ":", "AWS::SecretsManager::Secret": "secretsmanager:" + Region + ":" + Account + ":secret:",
		"AWS::Serverless::Function": "lambda:" + Region + ":" + Account + ":function:", "AWS::Lambda::Function": "lambda:" + Region + ":" + Account + ":function:",
		"AWS::IAM::Role": "iam::" + Account + ":role/", "AWS::Logs::LogGroup": "logs:" + Region + ":" + Account + ":log-group:",
		"AWS::SNS::Topic": "sns:" + Region + ":" + Account + ":", "AWS::S3::Bucket": "s3:::", "AWS::Events::Rule": "events:" + Region + ":" + Account + ":rule/",
	}[fmt.Sprint(t.Resource(id)["Type"])]
	if service == "" {
		panic("no ARN of " + id)
	}
	if service == "s3:::" {
		id = t.ref(id)
	}
	return "arn:aws:" + service + id
}

// Functions returns the logical IDs of the functions, by their packages under
// functions/.
func (t *Template) Functions() map[string]string {
	all := map[string]string{}
	for _, id := range t.Resources("AWS::Serverless::Function") {
		all[strings.ToLower(strings.TrimSuffix(id, "Function"))] = id
	}
	return all
}

// Environment returns the variables of a function.
func (t *Template) Environment(id string) map[string]string {
	env := map[string]string{}
	for _, place := range []any{Map(Map(t.doc["Globals"])["Function"]), t.Resource(id)["Properties"]} {
		for name, v := range Map(Map(Map(place)["Environment"])["Variables"]) {
			env[name] = fmt.Sprint(t.Resolve(v))
		}
	}
	return env
}

// Setting returns a property of a function, from Globals if it has none itself.
func (t *Template) Setting(id, name string) any {
	if _, ok := Map(t.Resource(id)["Properties"])[name]; ok {
		return t.Properties(id)[name]
	}
	return t.Resolve(Map(Map(t.doc["Globals"])["Function"])[name])
}

// A Grant is one action that a function may do to one resource.
type Grant struct{ Action, Resource string }

// Allows reports whether the grant covers the action on the resource.
func (g Grant) Allows(action, resource string) bool {
	if g.Action != action {
		return false
	}
	pattern := regexp.QuoteMeta(g.Resource)
	return regexp.MustCompile("^" + strings.ReplaceAll(pattern, `\*`, ".*") + "$").MatchString(resource)
}

// Grants returns the grants of a function.
func (t *Template) Grants(id string) ([]Grant, error) {
	arn, _ := t.Setting(id, "Role").(string)
	role := arn[strings.LastIndex(arn, "/")+1:]
	var grants []Grant
	for _, p := range List(t.Properties(role)["Policies"]) {
		for _, s := range List(Map(Map(p)["PolicyDocument"])["Statement"]) {
			st := Map(s)
			for name := range st {
				if !slices.Contains([]string{"Effect", "Action", "Resource"}, name) {
					return nil, fmt.Errorf("%s: %s in a policy is more than this reads", role, name)
				}
			}
			if st["Effect"] != "Allow" {
				return nil, fmt.Errorf("%s: the effect %v is more than this reads", role, st["Effect"])
			}
			for _, a := range List(st["Action"]) {
				for _, r := range List(st["Resource"]) {
					grants = append(grants, Grant{fmt.Sprint(a), fmt.Sprint(r)})
				}
			}
		}
	}
	if len(grants) == 0 {
		return nil, fmt.Errorf("%s has no role with policies", id)
	}
	return grants, nil
}

// A Route is one of the API.
type Route struct {
	Method string // "ANY" for the methods without another route of the path
	Path   string // [Default] for requests without another route
	// Function is the logical ID of the function that answers.
	Function string
}

// Default is the path of the route for requests without another route.
const Default = "/$default"

// Routes returns the API's routes.
func (t *Template) Routes() ([]Route, error) {
	apis := t.Resources("AWS::Serverless::HttpApi")
	if len(apis) != 1 {
		return nil, fmt.Errorf("the template has %d HTTP APIs", len(apis))
	}
	body := Map(t.Properties(apis[0])["DefinitionBody"])
	integrations := Map(Map(body["components"])["x-amazon-apigateway-integrations"])
	var routes []Route
	for _, path := range slices.Sorted(maps.Keys(Map(body["paths"]))) {
		for method, op := range Map(Map(body["paths"])[path]) {
			ref := fmt.Sprint(Map(Map(op)["x-amazon-apigateway-integration"])["$ref"])
			name, ok := strings.CutPrefix(ref, "#/components/x-amazon-apigateway-integrations/")
			uri := fmt.Sprint(Map(integrations[name])["uri"])
			_, arn, found := strings.Cut(uri, "/functions/")
			if !ok || !found || Map(integrations[name])["payloadFormatVersion"] != "2.0" {
				return nil, fmt.Errorf("%s %s leads nowhere: %s", method, path, ref)
			}
			if path != "/" && strings.HasSuffix(path, "/") {
				return nil, fmt.Errorf("API Gateway leaves out the route %s: it ends in a slash", path)
			}
			if isDefault := Map(op)["isDefaultRoute"] == true; isDefault != (path == Default) {
				return nil, fmt.Errorf("%s %s is the default route: %v", method, path, isDefault)
			}
			arn = strings.TrimSuffix(arn, "/invocations")
			if method == "x-amazon-apigateway-any-method" {
				method = "ANY"
			}
			routes = append(routes, Route{strings.ToUpper(method), path, arn[strings.LastIndex(arn, ":")+1:]})
		}
	}
	return routes, nil
}

// Find returns the route that the API takes for a request: the one with the
// most literal segments, and its own method before ANY.
func Find(routes []Route, method, path string) (Route, bool) {
	var best Route
	score := math.MinInt
	for _, r := range routes {
		n, ok := match(r.Path, path)
		if !ok || r.Method != method && r.Method != "ANY" {
			continue
		}
		n *= 2
		if r.Method == method {
			n++
		}
		if n > score {
			best, score = r, n
		}
	}
	return best, score > math.MinInt
}

// match reports whether a route's path matches a request's, and the number of
// its literal segments, which is -1 for the default route.
func match(pattern, path string) (literal int, ok bool) {
	if pattern == Default {
		return -1, true
	}
	want, got := strings.Split(pattern, "/"), strings.Split(path, "/")
	for i, w := range want {
		greedy := strings.HasSuffix(w, "+}")
		switch {
		case i >= len(got):
			return 0, false
		case greedy && i == len(want)-1:
			return literal, got[i] != ""
		case strings.HasPrefix(w, "{"):
			if got[i] == "" {
				return 0, false
			}
		case w != got[i]:
			return 0, false
		default:
			literal++
		}
	}
	return literal, len(want) == len(got)
}

package config

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Lambda holds the settings of Lambda functions that the runner does not have.
type Lambda struct {
	// URLs of the SQS queues.
	InspectionQueue, HashJobQueue, FetchJobQueue, AssemblyQueue string
	// SessionKey signs session cookies. It has at least 32 characters.
	SessionKey string
}

// The names of settings for [LoadLambda], without the prefix IMAGEROOT_.
const (
	Password        = "PASSWORD"
	HashWorkers     = "HASH_WORKERS"
	FetchWorkers    = "FETCH_WORKERS"
	Check           = "CHECK"
	Disks           = "DISKS"
	DisksMax        = "DISKS_MAX"
	AllowNet        = "ALLOW_NET"
	PlainHTTP       = "PLAIN_HTTP"
	InspectionQueue = "INSPECTION_QUEUE"
	HashJobQueue    = "HASH_JOB_QUEUE"
	FetchJobQueue   = "FETCH_JOB_QUEUE"
	AssemblyQueue   = "ASSEMBLY_QUEUE"
)

// everyFunction lists the settings that each Lambda function reads.
var everyFunction = []string{"IMAGE_ROOT", "CATALOG_ROOT", "S3_ENDPOINT", "PUBLIC_READ", "TOKEN", "SESSION_KEY"}

var lambdaSettings = []setting{
	{InspectionQueue, "", "URL of the inspections queue", queueURL(func(c *Config) *string { return &c.Lambda.InspectionQueue })},
	{HashJobQueue, "", "URL of the hash jobs queue, which check jobs and disk jobs share", queueURL(func(c *Config) *string { return &c.Lambda.HashJobQueue })},
	{FetchJobQueue, "", "URL of the fetch jobs queue", queueURL(func(c *Config) *string { return &c.Lambda.FetchJobQueue })},
	{AssemblyQueue, "", "URL of the assemblies queue", queueURL(func(c *Config) *string { return &c.Lambda.AssemblyQueue })},
	{"SESSION_KEY", "", "what session cookies are signed with", sessionKey},
}

// mayBeUnset lists settings that may be unset, with the meaning of an empty value: it is
// not documented that Lambda passes on empty variables.
var mayBeUnset = []string{"S3_ENDPOINT", AllowNet, PlainHTTP}

// secrets lists the settings whose value may be the ARN of a secret.
var secrets = []string{Password, "TOKEN", "SESSION_KEY"}

// LoadLambda reads the settings of a Lambda function from the environment: those of
// every function and those named in reads. Each of these must be set, even if it is
// optional and its value empty, except that S3_ENDPOINT, ALLOW_NET and PLAIN_HTTP may
// be unset. No other IMAGEROOT_* variable may be set. So the template and the code
// agree. If the value of PASSWORD, TOKEN or SESSION_KEY is an ARN, LoadLambda calls
// lookup for the secret. The error names the variable.
func LoadLambda(ctx context.Context, lookup func(ctx context.Context, arn string) (string, error), reads ...string) (Config, error) {
	reads = append(slices.Clone(everyFunction), reads...)
	var c Config
	for _, s := range append(slices.Clone(settings), lambdaSettings...) {
		value, set := os.LookupEnv(s.env())
		read := slices.Contains(reads, s.name)
		switch {
		case read && !set && !slices.Contains(mayBeUnset, s.name):
			return Config{}, fmt.Errorf("%s is not set: %s", s.env(), s.usage)
		case set && !read:
			return Config{}, fmt.Errorf("%s is set, and this function does not read it", s.env())
		case !read:
			value = s.value
			if value == "" {
				continue
			}
		case slices.Contains(secrets, s.name) && strings.HasPrefix(value, "arn:"):
			var err error
			if value, err = lookup(ctx, value); err != nil {
				return Config{}, fmt.Errorf("%s: %w", s.env(), err)
			}
		}
		if err := s.assign(&c, value); err != nil {
			return Config{}, fmt.Errorf("%s: %s", s.env(), oneLine(err))
		}
	}
	if err := checkNames(os.Environ(), lambdaSettings...); err != nil {
		return Config{}, err
	}
	return c, nil
}

func queueURL(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		u, err := url.Parse(v)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Count(strings.TrimSuffix(u.Path, "/"), "/") != 2 {
			return fmt.Errorf("%q is not the URL of an SQS queue, like https://sqs.us-east-1.amazonaws.com/123456789012/NAME", v)
		}
		*field(c) = v
		return nil
	}
}

func sessionKey(c *Config, v string) error {
	if v == "" {
		return errors.New("the session key is empty")
	}
	return secret(func(c *Config) *string { return &c.Lambda.SessionKey }, 32, "session key")(c, v)
}

package config

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
)

// Lambda are the settings of functions at AWS that the local runner has no
// use for.
type Lambda struct {
	// URLs of queues.
	InspectionQueue, HashJobQueue, FetchJobQueue, AssemblyQueue string
	// SessionKey signs session cookies.
	SessionKey string
}

// Names of settings, for [LoadLambda].
const (
	Password        = "PASSWORD"
	HashWorkers     = "HASH_WORKERS"
	FetchWorkers    = "FETCH_WORKERS"
	Check           = "CHECK"
	AllowNet        = "ALLOW_NET"
	PlainHTTP       = "PLAIN_HTTP"
	InspectionQueue = "INSPECTION_QUEUE"
	HashJobQueue    = "HASH_JOB_QUEUE"
	FetchJobQueue   = "FETCH_JOB_QUEUE"
	AssemblyQueue   = "ASSEMBLY_QUEUE"
)

// everyFunction is what each function at AWS reads.
var everyFunction = []string{"IMAGE_ROOT", "CATALOG_ROOT", "S3_ENDPOINT", "PUBLIC_READ", "TOKEN", "SESSION_KEY"}

var lambdaSettings = []setting{
	{InspectionQueue, "", "URL of the inspections queue", queueURL(func(c *Config) *string { return &c.Lambda.InspectionQueue })},
	{HashJobQueue, "", "URL of the hash jobs queue, which check jobs share", queueURL(func(c *Config) *string { return &c.Lambda.HashJobQueue })},
	{FetchJobQueue, "", "URL of the fetch jobs queue", queueURL(func(c *Config) *string { return &c.Lambda.FetchJobQueue })},
	{AssemblyQueue, "", "URL of the assemblies queue", queueURL(func(c *Config) *string { return &c.Lambda.AssemblyQueue })},
	{"SESSION_KEY", "", "what session cookies are signed with", sessionKey},
}

// mayBeUnset are settings that mean the same unset and empty: nobody says that
// Lambda passes empty variables on.
var mayBeUnset = []string{"S3_ENDPOINT", AllowNet, PlainHTTP}

// secrets are the settings whose values may be ARNs of what has them.
var secrets = []string{Password, "TOKEN", "SESSION_KEY"}

// LoadLambda reads the settings of a function at AWS: those of every function
// and those named in reads. Each must be set, to nothing where it is not
// wanted (some need not be, then), and no other: the template and the code say the same. Where a secret
// is the ARN of one, lookup is asked for it.
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
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || strings.Trim(u.Path, "/") == "" {
			return fmt.Errorf("%q is not the URL of a queue", v)
		}
		*field(c) = v
		return nil
	}
}

func sessionKey(c *Config, v string) error {
	const least = 32
	if len(v) < least {
		return fmt.Errorf("the session key must have at least %d characters", least)
	}
	c.Lambda.SessionKey = v
	return nil
}

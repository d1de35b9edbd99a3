// Package config reads and validates the settings of imageroot: IMAGEROOT_* environment
// variables and, in the runner, flags of the same names. A table holds them all. No other
// package of the program reads IMAGEROOT_* variables.
package config

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"imageroot/shared/auth"
	"imageroot/shared/netpolicy"
	"imageroot/shared/web"
)

// A Location is a bucket of an S3 server, or a prefix in one.
type Location struct {
	Bucket string
	Prefix string // empty, or ends with a slash
}

func (l Location) String() string { return "s3://" + l.Bucket + "/" + l.Prefix }

// Config holds the settings. [Load] and [LoadLambda] return valid values only.
type Config struct {
	ImageRoot, CatalogRoot   Location
	Listen, S3Listen         string // HOST:PORT
	NBDListen                string // HOST:PORT; empty: no NBD
	NBDCowMax                int64  // bytes
	Data                     string // directory
	S3Endpoint               string // URL of an S3 server; empty: the gateway
	S3AccessKey, S3SecretKey string // the uploader's, for the gateway; empty: generated
	Password                 string // empty: the stored one, or a generated one
	Token                    string // empty: none
	Events                   string // one of the Events constants
	WebhookToken             string // empty: no webhook
	PublicRead               bool
	HashWorkers              int    // 1 to 64
	FetchWorkers             int    // 1 to 64
	FetchConnections         int    // to one host, 1 to 64
	Check                    bool   // decompress each image once it is hashed
	Disks                    string // one of the Disks constants
	DisksMax                 int64  // bytes that disks may take together
	TrustedProxies           web.Proxies
	PublicURL                string // without a trailing slash; empty: the host of each request
	ProxyURL                 string // of the proxy to sources; empty: none
	ManifestURL              string // of the manifest to subscribe to; empty: none
	// The paths of PEM files; empty: NBD without TLS, and without certificates of clients.
	NBDTLSCert, NBDTLSKey, NBDTLSClientCA string
	// AllowNet names the networks that sources may be in beyond the default policy. Its
	// syntax is that of netpolicy.Parse.
	AllowNet string
	// PlainHTTP lists the registries, in lower case, that are contacted without TLS.
	PlainHTTP []string
	// DockerConfig is the path of the Docker configuration file. It is empty if the
	// home directory is unknown. Only [Load] sets it and UnusedProxy.
	DockerConfig string
	// UnusedProxy is the name of the environment variable that sets a proxy for other
	// programs, or empty. imageroot reaches sources without a proxy.
	UnusedProxy string
	// Lambda holds the settings that only Lambda functions have. Only [LoadLambda] sets it.
	Lambda Lambda
}

// The values of Config.Events, which name the source of object events if the runner
// uses another S3 server than the gateway.
const (
	EventsAuto    = "auto"    // webhook if WebhookToken is set, otherwise listen
	EventsListen  = "listen"  // the server's event stream; like poll while it is down
	EventsWebhook = "webhook" // messages that the server POSTs; like poll until the first
	EventsPoll    = "poll"    // a listing every 15 seconds
	EventsOff     = "off"     // only the listing every 5 minutes
)

// The values of Config.Disks, which say for which compressed images a disk is made.
const (
	DisksOff     = "off"     // none
	DisksManual  = "manual"  // for those that an operator asks for
	DisksRequest = "request" // also when a request needs one
	DisksAll     = "all"     // also for every image, while there is room
)

const prefix = "IMAGEROOT_"

// A setting is a row of the table of settings.
type setting struct {
	name   string // as in the environment, without the prefix
	value  string // default
	usage  string
	assign func(c *Config, value string) error
}

func text(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error { *field(c) = v; return nil }
}

func address(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if _, _, err := net.SplitHostPort(v); err != nil {
			return fmt.Errorf("%q is not an address to listen on, like :8080 or 127.0.0.1:8080", v)
		}
		*field(c) = v
		return nil
	}
}

// optional parses a value that may be empty.
func optional(assign func(*Config, string) error) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v == "" {
			return nil
		}
		return assign(c, v)
	}
}

var settings = []setting{
	{"IMAGE_ROOT", "s3://images", "where images are: s3://BUCKET[/PREFIX]", func(c *Config, v string) (err error) { c.ImageRoot, err = parseLocation(v); return err }},
	{"CATALOG_ROOT", "s3://catalog", "where the catalog is: s3://BUCKET[/PREFIX]", func(c *Config, v string) (err error) { c.CatalogRoot, err = parseLocation(v); return err }},
	{"LISTEN", ":8080", "address of pages and API; port 0 takes a free one", address(func(c *Config) *string { return &c.Listen })},
	{"S3_LISTEN", ":9000", "address of the S3 gateway inside", address(func(c *Config) *string { return &c.S3Listen })},
	{"NBD_LISTEN", "", "address of the images as NBD exports, like :10809 (default: none)", optional(address(func(c *Config) *string { return &c.NBDListen }))},
	{"NBD_COW_MAX", "4GiB", "how much all clients of NBD may write to cow/NAME together, like 500MiB", size(func(c *Config) *int64 { return &c.NBDCowMax })},
	{"NBD_TLS_CERT", "", "PEM file of a certificate, with which NBD requires TLS", text(func(c *Config) *string { return &c.NBDTLSCert })},
	{"NBD_TLS_KEY", "", "PEM file of the key of that certificate", text(func(c *Config) *string { return &c.NBDTLSKey })},
	{"NBD_TLS_CLIENT_CA", "", "PEM file of the authorities of whose certificates NBD clients need one", text(func(c *Config) *string { return &c.NBDTLSClientCA })},
	{"DATA", "./data", "directory of the gateway inside; DATA/images/NAME are plain files", text(func(c *Config) *string { return &c.Data })},
	{"S3_ENDPOINT", "", "URL of an S3 server to use instead of the gateway inside, with AWS_* credentials", origin(func(c *Config) *string { return &c.S3Endpoint }, "an S3 server, like http://127.0.0.1:9000")},
	{"S3_ACCESS_KEY", "", "access key of the gateway inside (default: generated)", secret(func(c *Config) *string { return &c.S3AccessKey }, 3, "access key")},
	{"S3_SECRET_KEY", "", "secret key of the gateway inside (default: generated)", secretKey},
	{"PASSWORD", "", "operator password (default: generated)", secret(func(c *Config) *string { return &c.Password }, auth.MinPassword, "password")},
	{"TOKEN", "", "API token for scripts (default: none)", token(func(c *Config) *string { return &c.Token })},
	{"EVENTS", EventsAuto, "how to learn of objects that others put into --s3-endpoint: auto, listen, webhook, poll, off", oneOf(func(c *Config) *string { return &c.Events }, EventsAuto, EventsListen, EventsWebhook, EventsPoll, EventsOff)},
	{"WEBHOOK_TOKEN", "", "token that MinIO's webhook target sends (default: no webhook)", token(func(c *Config) *string { return &c.WebhookToken })},
	{"PUBLIC_READ", "true", "whether machines without credentials may list and download images", boolean(func(c *Config) *bool { return &c.PublicRead })},
	{"PUBLIC_URL", "", "URL of the pages and API as clients reach them, for listings (default: the host that each asks for)", origin(func(c *Config) *string { return &c.PublicURL }, "a server, like https://images.example.org")},
	{"MANIFEST_URL", "", "URL of a manifest that is read every hour and takes the place of the operator's (default: none)", manifestURL},
	{"TRUSTED_PROXIES", "", "proxies (addresses and CIDRs, separated by commas) whose X-Forwarded-For and X-Forwarded-Proto are believed", trustedProxies},
	{"HASH_WORKERS", "1", "how many images are hashed at once", workers(func(c *Config) *int { return &c.HashWorkers })},
	{"FETCH_WORKERS", "2", "how many images are fetched at once", workers(func(c *Config) *int { return &c.FetchWorkers })},
	{"FETCH_CONNECTIONS", "24", "how many connections to one host all fetches use at most", workers(func(c *Config) *int { return &c.FetchConnections })},
	{"CHECK", "true", "whether images are decompressed once, to check that they are complete", boolean(func(c *Config) *bool { return &c.Check })},
	{"DISKS", DisksRequest, "for which compressed images a disk is made, which machines can read from anywhere: off, manual, request (when one is needed), all", oneOf(func(c *Config) *string { return &c.Disks }, DisksOff, DisksManual, DisksRequest, DisksAll)},
	{"DISKS_MAX", "32GiB", "what these disks may take together, like 500GB or 32GiB; those used least recently are removed for others", size(func(c *Config) *int64 { return &c.DisksMax })},
	{"ALLOW_NET", "", "networks that sources may be in beyond the default policy: CIDRs, loopback, private", allowNet},
	{"PROXY_URL", "", "HTTP proxy through which sources are reached, like http://USER:PASSWORD@proxy.lan:3128 (default: none)", proxyURL},
	{"PLAIN_HTTP", "", "registries (HOST[:PORT], separated by commas) that are contacted without TLS", plainHTTP},
}

func (s setting) env() string  { return prefix + s.name }
func (s setting) flag() string { return strings.ToLower(strings.ReplaceAll(s.name, "_", "-")) }

// ErrHelp is returned by [Load] for --help, after it has written the usage, and
// ErrVersion for --version.
var (
	ErrHelp    = flag.ErrHelp
	ErrVersion = errors.New("version asked for")
)

// Load reads the settings of the runner from args, the flags, and the environment. A flag
// takes precedence over its variable, even if it is empty. An empty variable counts as
// unset, and an IMAGEROOT_* variable that is not a setting is an error. For --help, Load
// writes the usage to help. The error is [ErrHelp], [ErrVersion], or one line that names
// the wrong setting and the reason.
func Load(args []string, help io.Writer) (Config, error) {
	fs := flag.NewFlagSet("imageroot", flag.ContinueOnError)
	fs.SetOutput(io.Discard)
	values := make([]*string, len(settings))
	for i, s := range settings {
		values[i] = fs.String(s.flag(), s.value, s.usage)
	}
	version := fs.Bool("version", false, "print the version and exit")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		Usage(help)
		return Config{}, ErrHelp
	case err != nil:
		return Config{}, fmt.Errorf("%s (--help lists the flags)", oneLine(err))
	case fs.NArg() > 0:
		return Config{}, fmt.Errorf("%q is not a flag, and a command, like doctor, comes before the flags (--help lists both)", fs.Arg(0))
	case *version:
		return Config{}, ErrVersion
	}
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if err := checkNames(os.Environ(), clientURL); err != nil {
		return Config{}, err
	}
	var c Config
	from := map[string]string{} // the flag or variable of each setting, for errors
	for i, s := range settings {
		from[s.name] = s.env()
		value := *values[i]
		if given[s.flag()] {
			from[s.name] = "--" + s.flag()
		} else {
			value = cmp.Or(os.Getenv(s.env()), s.value)
		}
		if err := s.assign(&c, value); err != nil {
			return Config{}, fmt.Errorf("%s: %s", from[s.name], oneLine(err))
		}
	}
	if c.SharedBucket() && strings.HasPrefix(c.ImageRoot.Prefix, c.CatalogRoot.Prefix) {
		return Config{}, fmt.Errorf("%s: %s must be another place than the image root %s, and not around it", from["CATALOG_ROOT"], c.CatalogRoot, c.ImageRoot)
	}
	switch {
	case c.SharedBucket() && c.S3Endpoint == "":
		return Config{}, fmt.Errorf("%s: with the gateway inside, the catalog root %s needs another bucket than the image root %s, since a bucket is what the gateway keeps from uploaders; to move a catalog, stop imageroot and move its directory to a bucket's (mv %s %s)",
			from["CATALOG_ROOT"], c.CatalogRoot, c.ImageRoot, filepath.Join(c.Data, c.CatalogRoot.Bucket, c.CatalogRoot.Prefix), filepath.Join(c.Data, "catalog"))
	case c.Events != EventsAuto && c.S3Endpoint == "":
		return Config{}, fmt.Errorf("%s: the gateway inside tells of its objects itself; %s is for another S3 server (%s)", from["EVENTS"], c.Events, from["S3_ENDPOINT"])
	case (c.NBDTLSCert == "") != (c.NBDTLSKey == ""):
		return Config{}, fmt.Errorf("%s: give the certificate and its key both, or neither (%s)", from["NBD_TLS_CERT"], from["NBD_TLS_KEY"])
	case c.NBDTLSClientCA != "" && c.NBDTLSCert == "":
		return Config{}, fmt.Errorf("%s: certificates of clients need TLS (%s)", from["NBD_TLS_CLIENT_CA"], from["NBD_TLS_CERT"])
	case c.NBDListen != "" && !c.PublicRead && c.NBDTLSClientCA == "":
		return Config{}, fmt.Errorf("%s: while %s is false, clients of NBD need certificates, since it has no other credentials (%s)", from["NBD_LISTEN"], from["PUBLIC_READ"], from["NBD_TLS_CLIENT_CA"])
	case c.Events == EventsWebhook && c.WebhookToken == "":
		return Config{}, fmt.Errorf("%s: webhook needs the token that the server is to send (%s)", from["EVENTS"], from["WEBHOOK_TOKEN"])
	}
	c.DockerConfig = dockerConfig()
	if c.ProxyURL == "" {
		c.UnusedProxy = unusedProxy()
	}
	return c, nil
}

// SharedBucket reports whether both roots are in one bucket. A client that can read the
// whole bucket can read the session key.
func (c Config) SharedBucket() bool { return c.CatalogRoot.Bucket == c.ImageRoot.Bucket }

// checkNames returns an error for an IMAGEROOT_* variable that is not a setting: a
// misspelled name would be ignored silently.
func checkNames(environ []string, more ...setting) error {
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		is := func(s setting) bool { return s.env() == name }
		if strings.HasPrefix(name, prefix) && !slices.ContainsFunc(settings, is) && !slices.ContainsFunc(more, is) {
			return fmt.Errorf("%s is not a setting (--help lists them)", name)
		}
	}
	return nil
}

// Usage writes the flags of the server to w.
func Usage(w io.Writer) {
	var b strings.Builder
	b.WriteString("The server:\n  imageroot [FLAGS]         runs it\n  imageroot doctor [FLAGS]  checks the setup that these flags describe, and reports what is wrong\n\nEach flag of the server is an environment variable too: --image-root is IMAGEROOT_IMAGE_ROOT.\n\n")
	for _, s := range settings {
		fmt.Fprintf(&b, "  --%-17s %s", s.flag(), s.usage)
		if s.value != "" {
			fmt.Fprintf(&b, " (default %s)", s.value)
		}
		b.WriteString("\n")
	}
	b.WriteString("  --version           print the version and exit\n")
	_, _ = io.WriteString(w, b.String())
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// bucketName matches the bucket names that every S3 server accepts (S3 User Guide,
// "General purpose bucket naming rules").
var bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)

func parseLocation(v string) (Location, error) {
	rest, ok := strings.CutPrefix(v, "s3://")
	if !ok {
		return Location{}, fmt.Errorf("%q is not of the form s3://BUCKET[/PREFIX]", v)
	}
	bucket, p, _ := strings.Cut(rest, "/")
	if !bucketName.MatchString(bucket) || strings.Contains(bucket, "..") {
		return Location{}, fmt.Errorf("%q cannot be a bucket: 3 to 63 lower case letters, digits, dots and hyphens", bucket)
	}
	p = strings.Trim(p, "/")
	for segment := range strings.SplitSeq(p, "/") {
		if p != "" && (segment == "" || segment[0] == '.') {
			return Location{}, fmt.Errorf("the prefix %q has a segment that is empty or begins with a dot", p)
		}
	}
	if p != "" {
		p += "/"
	}
	return Location{bucket, p}, nil
}

// origin parses the URL of a server, without user information, path or query.
func origin(field func(*Config) *string, what string) func(*Config, string) error {
	return func(c *Config, v string) error {
		*field(c) = strings.TrimSuffix(v, "/")
		u, err := url.Parse(v)
		if v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || strings.Trim(u.Path, "/") != "") {
			return fmt.Errorf("%q is not the URL of %s", v, what)
		}
		return nil
	}
}

// proxyURL never quotes a value, which may have a password.
func proxyURL(c *Config, v string) error {
	u, err := url.Parse(v)
	if v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/")+u.RawQuery+u.Fragment != "") {
		return errors.New("it is not the URL of an HTTP proxy, like http://USER:PASSWORD@proxy.lan:3128")
	}
	c.ProxyURL = v
	return nil
}

func manifestURL(c *Config, v string) error {
	u, err := url.Parse(v)
	if v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil) {
		return fmt.Errorf("%q is not the http or https URL of a manifest, without a password", v)
	}
	c.ManifestURL = v
	return nil
}

// secret parses an empty value, or one of least bytes or more.
func secret(field func(*Config) *string, least int, what string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if v != "" && len(v) < least {
			return fmt.Errorf("the %s must have at least %d characters", what, least)
		}
		*field(c) = v
		return nil
	}
}

func secretKey(c *Config, v string) error {
	if err := secret(func(c *Config) *string { return &c.S3SecretKey }, 8, "secret key")(c, v); err != nil {
		return err
	}
	if (c.S3AccessKey == "") != (v == "") {
		return errors.New("give the access key and the secret key both, or neither")
	}
	return nil
}

func token(field func(*Config) *string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if strings.ContainsFunc(v, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return errors.New("the token must be of visible ASCII characters")
		}
		return secret(field, 16, "token")(c, v)
	}
}

func oneOf(field func(*Config) *string, all ...string) func(*Config, string) error {
	return func(c *Config, v string) error {
		if !slices.Contains(all, v) {
			return fmt.Errorf("%q is none of %s", v, strings.Join(all, ", "))
		}
		*field(c) = v
		return nil
	}
}

// units are the units of sizes, the longest names first.
var units = []struct {
	name  string
	bytes int64
}{
	{"KiB", 1 << 10},
	{"MiB", 1 << 20},
	{"GiB", 1 << 30},
	{"TiB", 1 << 40},
	{"kB", 1e3},
	{"MB", 1e6},
	{"GB", 1e9},
	{"TB", 1e12},
	{"", 1},
}

// size parses a number of bytes with a unit.
func size(field func(*Config) *int64) func(*Config, string) error {
	return func(c *Config, v string) error {
		for _, unit := range units {
			digits, ok := strings.CutSuffix(v, unit.name)
			if !ok {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
			if err != nil || n < 1 || n > math.MaxInt64/unit.bytes {
				break
			}
			*field(c) = n * unit.bytes
			return nil
		}
		return fmt.Errorf("%q is not a size, like 500GB or 32GiB", v)
	}
}

func boolean(field func(*Config) *bool) func(*Config, string) error {
	return func(c *Config, v string) error {
		b, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", v)
		}
		*field(c) = b
		return nil
	}
}

func workers(field func(*Config) *int) func(*Config, string) error {
	const most = 64
	return func(c *Config, v string) error {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > most {
			return fmt.Errorf("%q is not a number from 1 to %d", v, most)
		}
		*field(c) = n
		return nil
	}
}

func trustedProxies(c *Config, v string) (err error) {
	c.TrustedProxies, err = web.ParseProxies(v)
	return err
}

func allowNet(c *Config, v string) error {
	c.AllowNet = v
	_, err := netpolicy.Parse(v, netpolicy.Policy{})
	return err
}

func plainHTTP(c *Config, v string) error {
	c.PlainHTTP = nil
	for host := range strings.SplitSeq(v, ",") {
		if host = strings.TrimSpace(host); host == "" {
			continue
		}
		if strings.ContainsAny(host, "/ @") {
			return fmt.Errorf("%q is not a registry: give HOST or HOST:PORT", host)
		}
		c.PlainHTTP = append(c.PlainHTTP, strings.ToLower(host))
	}
	return nil
}

func unusedProxy() string {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"} {
		if os.Getenv(name) != "" {
			return name
		}
	}
	return ""
}

// dockerConfig returns the path of the file in which Docker's tools keep the credentials
// of registries.
func dockerConfig() string {
	if dir := os.Getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return ""
	}
	return filepath.Join(home, ".docker", "config.json")
}

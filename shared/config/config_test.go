package config

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"imageroot/shared/web"
)

// clean unsets every variable that config reads.
func clean(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, prefix) || strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			t.Setenv(name, value) // restores it
			os.Unsetenv(name)
		}
	}
	t.Setenv("HOME", "/home/me")
	t.Setenv("DOCKER_CONFIG", "")
}

func load(args ...string) (Config, error) { return Load(args, io.Discard) }

func defaults() Config {
	return Config{
		ImageRoot: Location{"images", ""}, CatalogRoot: Location{"catalog", ""}, Listen: ":8080", S3Listen: ":9000", Data: "./data", NBDCowMax: 4 << 30,
		Events: EventsAuto, PublicRead: true, Check: true, HashWorkers: 1, FetchWorkers: 2, FetchConnections: 24, Disks: DisksRequest, DisksMax: 32 << 30, DockerConfig: "/home/me/.docker/config.json",
	}
}

// TestSettings sets every setting by its variable and by its flag.
func TestSettings(t *testing.T) {
	clean(t)
	if got, err := load(); err != nil || !reflect.DeepEqual(got, defaults()) {
		t.Fatalf("by default: %+v, %v; want those of the function defaults: %+v", got, err, defaults())
	}
	seen := map[string]bool{}
	for _, tt := range []struct {
		name, value string
		set         func(c *Config)
		also        string // a setting that this one needs
	}{
		{"IMAGE_ROOT", "s3://my-images/some/place/", func(c *Config) { c.ImageRoot = Location{"my-images", "some/place/"} }, ""},
		{"CATALOG_ROOT", "s3://own/catalog", func(c *Config) { c.CatalogRoot = Location{"own", "catalog/"} }, ""},
		{"CATALOG_ROOT", "s3://images/own", func(c *Config) { c.CatalogRoot, c.S3Endpoint = Location{"images", "own/"}, "http://s3" }, "--s3-endpoint=http://s3"},
		{"LISTEN", "127.0.0.1:0", func(c *Config) { c.Listen = "127.0.0.1:0" }, ""},
		{"S3_LISTEN", "[::1]:9001", func(c *Config) { c.S3Listen = "[::1]:9001" }, ""},
		{"NBD_LISTEN", ":10809", func(c *Config) { c.NBDListen = ":10809" }, ""},
		{"NBD_TLS_CERT", "c.pem", func(c *Config) { c.NBDTLSCert, c.NBDTLSKey = "c.pem", "k.pem" }, "--nbd-tls-key=k.pem"},
		{"NBD_TLS_KEY", "k.pem", func(c *Config) { c.NBDTLSCert, c.NBDTLSKey = "c.pem", "k.pem" }, "--nbd-tls-cert=c.pem"},
		{"NBD_COW_MAX", "500MiB", func(c *Config) { c.NBDCowMax = 500 << 20 }, ""},
		{"DATA", "/srv/images", func(c *Config) { c.Data = "/srv/images" }, ""},
		{"S3_ENDPOINT", "https://s3.example:9000/", func(c *Config) { c.S3Endpoint = "https://s3.example:9000" }, ""},
		{"S3_SECRET_KEY", "a secret key", func(c *Config) { c.S3AccessKey, c.S3SecretKey = "key", "a secret key" }, "--s3-access-key=key"},
		{"S3_ACCESS_KEY", "key", func(c *Config) { c.S3AccessKey, c.S3SecretKey = "key", "a secret key" }, "--s3-secret-key=a secret key"},
		{"PASSWORD", "correct horse", func(c *Config) { c.Password = "correct horse" }, ""},
		{"TOKEN", "0123456789abcdef", func(c *Config) { c.Token = "0123456789abcdef" }, ""},
		{"EVENTS", "listen", func(c *Config) { c.Events, c.S3Endpoint = EventsListen, "http://s3" }, "--s3-endpoint=http://s3"},
		{"EVENTS", "poll", func(c *Config) { c.Events, c.S3Endpoint = EventsPoll, "http://s3" }, "--s3-endpoint=http://s3"},
		{"EVENTS", "off", func(c *Config) { c.Events, c.S3Endpoint = EventsOff, "http://s3" }, "--s3-endpoint=http://s3"},
		{"WEBHOOK_TOKEN", "0123456789abcdef", func(c *Config) { c.WebhookToken = "0123456789abcdef" }, ""},
		{"PUBLIC_READ", "false", func(c *Config) { c.PublicRead = false }, ""},
		{"PUBLIC_READ", "0", func(c *Config) { c.PublicRead = false }, ""},
		{"DISKS", "all", func(c *Config) { c.Disks = DisksAll }, ""},
		{"DISKS_MAX", "500GB", func(c *Config) { c.DisksMax = 500e9 }, ""},
		{"DISKS_MAX", "3 MiB", func(c *Config) { c.DisksMax = 3 << 20 }, ""},
		{"DISKS_MAX", "1234", func(c *Config) { c.DisksMax = 1234 }, ""},
		{"CHECK", "false", func(c *Config) { c.Check = false }, ""},
		{"HASH_WORKERS", "64", func(c *Config) { c.HashWorkers = 64 }, ""},
		{"FETCH_WORKERS", "1", func(c *Config) { c.FetchWorkers = 1 }, ""},
		{"FETCH_CONNECTIONS", "4", func(c *Config) { c.FetchConnections = 4 }, ""},
		{"ALLOW_NET", "loopback, 10.0.0.0/8", func(c *Config) { c.AllowNet = "loopback, 10.0.0.0/8" }, ""},
		{"PUBLIC_URL", "https://images.example.org/", func(c *Config) { c.PublicURL = "https://images.example.org" }, ""},
		{"MANIFEST_URL", "https://images.example.org/catalog.toml?latest", func(c *Config) { c.ManifestURL = "https://images.example.org/catalog.toml?latest" }, ""},
		{"PROXY_URL", "http://ada:secret@proxy.lan:3128", func(c *Config) { c.ProxyURL = "http://ada:secret@proxy.lan:3128" }, ""},
		{"TRUSTED_PROXIES", "127.0.0.1, 10.89.0.7/24", func(c *Config) {
			c.TrustedProxies = web.Proxies{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("10.89.0.0/24")}
		}, ""},
		{"PLAIN_HTTP", "Registry.lan:5000, other", func(c *Config) { c.PlainHTTP = []string{"registry.lan:5000", "other"} }, ""},
	} {
		seen[tt.name] = true
		flag := "--" + strings.ToLower(strings.ReplaceAll(tt.name, "_", "-"))
		want := defaults()
		tt.set(&want)
		also := func(args ...string) []string {
			if tt.also != "" {
				args = append(args, tt.also)
			}
			return args
		}
		if got, err := load(also(flag, tt.value)...); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s %s: %+v, %v", flag, tt.value, got, err)
		}
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv(prefix+tt.name, tt.value)
			if got, err := load(also()...); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s=%s: %+v, %v", tt.name, tt.value, got, err)
			}
			// An empty variable counts as unset.
			t.Setenv(prefix+tt.name, "")
			if tt.also == "" {
				if got, err := load(); err != nil || !reflect.DeepEqual(got, defaults()) {
					t.Errorf("%s empty: %+v, %v", tt.name, got, err)
				}
			}
		})
	}
	seen["NBD_TLS_CLIENT_CA"] = true // in TestNBDCredentials, since it needs two others
	var help strings.Builder
	if _, err := Load([]string{"--help"}, &help); !errors.Is(err, ErrHelp) {
		t.Errorf("--help: %v", err)
	}
	for _, s := range settings {
		if !seen[s.name] {
			t.Errorf("%s is not tested", s.name)
		}
		if !strings.Contains(help.String(), "--"+s.flag()) || !strings.Contains(help.String(), s.usage) {
			t.Errorf("--help does not tell of %s", s.flag())
		}
	}
	if _, err := load("--version"); !errors.Is(err, ErrVersion) {
		t.Errorf("--version: %v", err)
	}
}

func TestWebhook(t *testing.T) {
	clean(t)
	const endpoint = "--s3-endpoint=http://s3"
	if c, err := load(endpoint, "--events=webhook", "--webhook-token=0123456789abcdef"); err != nil || c.Events != EventsWebhook {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := load(endpoint, "--events=webhook"); err == nil || !strings.Contains(err.Error(), "IMAGEROOT_WEBHOOK_TOKEN") {
		t.Errorf("a webhook without its token: %v", err)
	}
}

func TestNBDCredentials(t *testing.T) {
	clean(t)
	c, err := load("--nbd-listen=:10809", "--public-read=false", "--nbd-tls-cert=c.pem", "--nbd-tls-key=k.pem", "--nbd-tls-client-ca=ca.pem")
	if err != nil || c.NBDTLSClientCA != "ca.pem" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := load("--nbd-listen=:10809", "--public-read=false", "--nbd-tls-cert=c.pem", "--nbd-tls-key=k.pem"); err == nil {
		t.Error("NBD for everybody, though images are not")
	}
	if _, err := load("--nbd-listen=:10809", "--public-read=false"); err == nil || !strings.Contains(err.Error(), "IMAGEROOT_PUBLIC_READ") && !strings.Contains(err.Error(), "--public-read") {
		t.Errorf("NBD for everybody, though images are not: %v", err)
	}
}

func TestFlagsWin(t *testing.T) {
	clean(t)
	t.Setenv("IMAGEROOT_HASH_WORKERS", "nonsense")
	t.Setenv("IMAGEROOT_LISTEN", ":1")
	c, err := load("--hash-workers=3", "-listen", ":2")
	if err != nil || c.HashWorkers != 3 || c.Listen != ":2" {
		t.Errorf("%+v, %v", c, err)
	}
	// An empty flag takes precedence, too.
	t.Setenv("IMAGEROOT_TOKEN", "0123456789abcdef")
	if c, err := load("--hash-workers=3", "--token="); err != nil || c.Token != "" {
		t.Errorf("%+v, %v", c, err)
	}
}

// The error of a wrong value is one line that names the flag or variable, and the
// reason.
func TestRefused(t *testing.T) {
	clean(t)
	for _, tt := range []struct {
		name, value, words string
	}{
		{"IMAGE_ROOT", "images", "s3://BUCKET"},
		{"IMAGE_ROOT", "s3://", "bucket"},
		{"IMAGE_ROOT", "s3://UPPER", "lower case"},
		{"IMAGE_ROOT", "s3://a", "3 to 63"},
		{"IMAGE_ROOT", "s3://images/a//b", "empty"},
		{"IMAGE_ROOT", "s3://images/../b", "dot"},
		{"IMAGE_ROOT", "s3://im..ages", "bucket"},
		{"CATALOG_ROOT", "s3://images", "another place"},
		{"CATALOG_ROOT", "s3://images/catalog", "another bucket"},
		{"CATALOG_ROOT", "http://catalog", "s3://BUCKET"},
		{"S3_ENDPOINT", "127.0.0.1:9000", "URL"},
		{"EVENTS", "nonsense", "auto, listen, webhook, poll, off"},
		{"EVENTS", "listen", "IMAGEROOT_S3_ENDPOINT"},
		{"EVENTS", "off", "IMAGEROOT_S3_ENDPOINT"},
		{"WEBHOOK_TOKEN", "short", "16 characters"},
		{"S3_ENDPOINT", "ftp://x", "URL"},
		{"S3_ENDPOINT", "http://user@x", "URL"},
		{"S3_ENDPOINT", "http://x/path", "URL"},
		{"S3_ACCESS_KEY", "xy", "3 characters"},
		{"S3_SECRET_KEY", "short", "8 characters"},
		{"S3_SECRET_KEY", "long enough", "both"},
		{"PASSWORD", "short", "8 characters"},
		{"TOKEN", "short", "16 characters"},
		{"TOKEN", "with spaces in it all", "visible ASCII"},
		{"NBD_LISTEN", "10809", "address to listen on"},
		{"NBD_COW_MAX", "much", "32GiB"},
		{"NBD_TLS_CERT", "c.pem", "both"},
		{"NBD_TLS_CLIENT_CA", "ca.pem", "IMAGEROOT_NBD_TLS_CERT"},
		{"PUBLIC_READ", "maybe", "neither true nor false"},
		{"CHECK", "maybe", "neither true nor false"},
		{"DISKS", "some", "off, manual, request, all"},
		{"DISKS_MAX", "much", "32GiB"},
		{"DISKS_MAX", "0GiB", "32GiB"},
		{"DISKS_MAX", "9999999999TiB", "32GiB"},
		{"HASH_WORKERS", "0", "from 1 to 64"},
		{"HASH_WORKERS", "65", "from 1 to 64"},
		{"FETCH_WORKERS", "two", "from 1 to 64"},
		{"FETCH_CONNECTIONS", "0", "from 1 to 64"},
		{"ALLOW_NET", "everything", "not a network"},
		{"PLAIN_HTTP", "http://registry", "HOST"},
		{"TRUSTED_PROXIES", "proxy.lan", "CIDR"},
		{"PUBLIC_URL", "images.example.org", "https://"},
		{"PROXY_URL", "socks5://proxy.lan", "HTTP proxy"},
		{"PROXY_URL", "http://proxy.lan/path", "HTTP proxy"},
		{"MANIFEST_URL", "/catalog.toml", "https URL"},
		{"MANIFEST_URL", "https://ada:secret@images.example.org/catalog.toml", "password"},
		{"PUBLIC_URL", "https://images.example.org/path", "https://"},
	} {
		flag := "--" + strings.ToLower(strings.ReplaceAll(tt.name, "_", "-"))
		t.Run(tt.name+" "+strings.ReplaceAll(tt.value, "/", "_"), func(t *testing.T) {
			_, err := load(flag + "=" + tt.value)
			wrong(t, err, flag, tt.words)
			t.Setenv(prefix+tt.name, tt.value)
			_, err = load()
			wrong(t, err, prefix+tt.name, tt.words)
		})
	}
	for _, args := range [][]string{{"--nonsense"}, {"stray"}, {"--listen"}} {
		_, err := load(args...)
		wrong(t, err, strings.TrimLeft(args[0], "-"), "--help")
	}
	_, err := load("doctr")
	wrong(t, err, "doctr", "doctor,")
	// A misspelled variable would be ignored silently.
	t.Setenv("IMAGEROOT_PASSWROD", "x")
	_, err = load()
	wrong(t, err, "IMAGEROOT_PASSWROD", "not a setting")
}

func wrong(t *testing.T, err error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("it is taken")
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the error does not say %q: %v", w, err)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is more than a line: %v", err)
	}
}

func TestLocation(t *testing.T) {
	for text, want := range map[string]string{"s3://abc": "s3://abc/", "s3://abc/": "s3://abc/", "s3://abc/d/e": "s3://abc/d/e/", "s3://abc//d/": "s3://abc/d/"} {
		l, err := parseLocation(text)
		if err != nil || l.String() != want {
			t.Errorf("%s: %s, %v", text, l, err)
		}
		if again, err := parseLocation(l.String()); err != nil || again != l {
			t.Errorf("%s: again %v, %v", text, again, err)
		}
	}
}

func TestDockerConfig(t *testing.T) {
	clean(t)
	t.Setenv("DOCKER_CONFIG", "/etc/docker-of-mine")
	if c, err := load(); err != nil || c.DockerConfig != filepath.Join("/etc/docker-of-mine", "config.json") {
		t.Errorf("%s, %v", c.DockerConfig, err)
	}
}

func TestUnusedProxy(t *testing.T) {
	clean(t)
	for _, name := range []string{"all_proxy", "HTTP_PROXY", "HTTPS_PROXY"} { // each takes precedence over those before
		t.Setenv(name, "http://user:secret@proxy.lan:3128")
		if c, err := load(); err != nil || c.UnusedProxy != name {
			t.Errorf("%s: %q, %v", name, c.UnusedProxy, err)
		}
	}
	t.Setenv("IMAGEROOT_PROXY_URL", "http://proxy.lan:3128")
	if c, err := load(); err != nil || c.UnusedProxy != "" {
		t.Errorf("with a proxy of our own: %q, %v", c.UnusedProxy, err)
	}
}

func TestQueueURL(t *testing.T) {
	setEnvironment := func(url string) {
		for name, value := range map[string]string{
			"IMAGE_ROOT": "s3://images", "CATALOG_ROOT": "s3://catalog", "PUBLIC_READ": "true", "TOKEN": "",
			"SESSION_KEY": strings.Repeat("k", 32), "ASSEMBLY_QUEUE": url,
		} {
			t.Setenv("IMAGEROOT_"+name, value)
		}
	}
	for _, url := range []string{"", "q", "https://sqs.us-east-1.amazonaws.com", "arn:aws:sqs:us-east-1:1:q", "ftp://x/1/q", "https://x/q"} {
		setEnvironment(url)
		if _, err := LoadLambda(t.Context(), nil, AssemblyQueue); err == nil || !strings.Contains(err.Error(), "IMAGEROOT_ASSEMBLY_QUEUE") {
			t.Errorf("%q: %v", url, err)
		}
	}
	const right = "https://sqs.eu-west-1.amazonaws.com/123456789012/imageroot-assemblies"
	setEnvironment(right)
	if c, err := LoadLambda(t.Context(), nil, AssemblyQueue); err != nil || c.Lambda.AssemblyQueue != right {
		t.Errorf("%q: %v", c.Lambda.AssemblyQueue, err)
	}
}

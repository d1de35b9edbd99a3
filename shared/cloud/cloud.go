// Package cloud puts together what the functions rest on at AWS, as package
// main of local does on one machine: S3, SQS, Secrets Manager and the
// environment.
package cloud

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"imageroot/shared/activity"
	"imageroot/shared/auth"
	"imageroot/shared/config"
	"imageroot/shared/inventory"
	"imageroot/shared/job"
	"imageroot/shared/lambda"
	"imageroot/shared/layout"
	"imageroot/shared/metric"
	"imageroot/shared/netpolicy"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/queue/sqsqueue"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

// relistAfter is how long what another function has changed may stay unseen.
const relistAfter = 2 * time.Second

// A Cloud is what a function needs, opened.
type Cloud struct {
	config.Config
	Images, Catalog          store.Root
	ImageLinks, CatalogLinks store.Presigner
	Inventory                *inventory.Inventory
	Operator                 *auth.Operator
	Activity                 *activity.Log
	Jobs                     *job.Jobs
	Metric                   *metric.Set
	Version                  string
	Now                      func() time.Time
	Log                      *slog.Logger

	aws aws.Config
}

// Open reads the settings that every function has and those that reads names
// (see config.LoadLambda), and opens what they say. The function that reads the
// operator's password keeps its hash, by which the others know sessions.
func Open(ctx context.Context, reads ...string) (*Cloud, error) {
	c := &Cloud{Metric: metric.New(job.Names()...), Version: config.Version(), Now: time.Now, Log: slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: web.CutAttr}))}
	var err error
	if c.aws, err = awsconfig.LoadDefaultConfig(ctx); err != nil {
		return nil, fmt.Errorf("load the configuration for AWS: %w", err)
	}
	if c.Config, err = config.LoadLambda(ctx, c.secret, reads...); err != nil {
		return nil, err
	}
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: c.S3Endpoint})
	if err != nil {
		return nil, err
	}
	images := client.Root(c.ImageRoot.Bucket, c.ImageRoot.Prefix)
	catalogRoot := client.Root(c.CatalogRoot.Bucket, c.CatalogRoot.Prefix)
	c.ImageLinks, c.CatalogLinks = images, catalogRoot
	c.Inventory = inventory.New(inventory.Config{
		Images: images, Catalog: catalogRoot, MaxAge: relistAfter, Wait: true, Now: c.Now, Log: c.Log,
	})
	c.Images, c.Catalog = c.Inventory.ObserveImages(images), c.Inventory.ObserveCatalog(catalogRoot)
	c.Activity = &activity.Log{Root: c.Catalog, Now: c.Now, Log: c.Log}
	c.Jobs = &job.Jobs{Records: c.Catalog, Owner: rand.Text(), Now: c.Now}
	c.Operator, err = auth.Open(ctx, auth.Config{
		Records: c.Catalog, Password: c.Password, Token: c.Token, SessionKey: c.Lambda.SessionKey,
		Follow: !slices.Contains(reads, config.Password), Now: c.Now, Log: c.Log,
	})
	return c, err
}

// secret asks Secrets Manager.
func (c *Cloud) secret(ctx context.Context, arn string) (string, error) {
	out, err := secretsmanager.NewFromConfig(c.aws).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
	if err != nil {
		return "", fmt.Errorf("the secret cannot be read: %w", err)
	}
	return aws.ToString(out.SecretString), nil
}

// Queue returns the queue at a URL. GiveUp is sqsqueue.Config's.
func (c *Cloud) Queue(url string, giveUp queue.Handler) (*sqsqueue.Queue, error) {
	return sqsqueue.New(sqsqueue.Config{AWS: c.aws, URL: url, GiveUp: giveUp, Log: c.Log})
}

// Pages are the paths of functions/catalog/pages, to which forms of the other
// functions return.
var Pages = web.Pages{Prefix: "/ui/", Home: "/ui/images", Login: "/ui/login"}

// Function is a function of these routes and, where there are queues, this
// handler of their messages. ErrorPage is web.Config's.
func (c *Cloud) Function(routes []web.Route, errorPage func(http.ResponseWriter, *http.Request, *problem.Error, int), handle queue.Handler, queues ...*sqsqueue.Queue) *lambda.Function {
	return &lambda.Function{
		HTTP: web.Handler(web.Config{
			Auth: c.Operator, PublicRead: c.PublicRead, Pages: Pages, ErrorPage: errorPage, Metric: c.Metric, Log: c.Log,
		}, routes),
		Handle: handle, Queues: queues, Log: c.Log,
	}
}

// Free is what is free in S3: nobody can tell.
func (c *Cloud) Free() int64 { return -1 }

// Ready reports whether the store answers.
func (c *Cloud) Ready(ctx context.Context) error {
	_, err := c.Images.Head(ctx, layout.ManifestKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	return err
}

// Policy is what sources may be: private networks are what a function may be
// connected to, and none of the sources'.
func (c *Cloud) Policy() (netpolicy.Policy, error) {
	var base netpolicy.Policy
	if scheme, host, ok := strings.Cut(c.S3Endpoint, "://"); ok {
		if _, _, err := net.SplitHostPort(host); err != nil {
			host = net.JoinHostPort(strings.Trim(host, "[]"), map[string]string{"http": "80", "https": "443"}[scheme])
		}
		base.Endpoints = []string{host}
	}
	return netpolicy.Parse(c.AllowNet, base)
}

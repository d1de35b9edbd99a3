// Package cloud opens the kit of the functions at AWS: over S3, with settings
// from the environment, secrets from Secrets Manager and queues in SQS. Package
// main of local does the same on one machine.
package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"imageroot/shared/config"
	"imageroot/shared/kit"
	"imageroot/shared/lambda"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/queue/sqsqueue"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

// relistAfter is how old a listing may be: how long a write of another function
// may stay unseen.
const relistAfter = 2 * time.Second

// A Cloud is the kit of a function, over S3.
type Cloud struct {
	*kit.Kit
	ImageLinks, CatalogLinks store.Presigner

	aws aws.Config
}

// Open reads the settings that every function has and those that reads names
// (see config.LoadLambda), and opens the kit with them. The function that reads
// the operator's password stores its hash, with which the others check sessions.
func Open(ctx context.Context, reads ...string) (*Cloud, error) {
	awsConfig, err := awsconfig.LoadDefaultConfig(ctx)
	if err != nil {
		return nil, fmt.Errorf("load the configuration for AWS: %w", err)
	}
	c := &Cloud{aws: awsConfig}
	cfg, err := config.LoadLambda(ctx, c.secret, reads...)
	if err != nil {
		return nil, err
	}
	client, err := s3store.Open(ctx, s3store.Config{Endpoint: cfg.S3Endpoint})
	if err != nil {
		return nil, err
	}
	images, catalog := client.Root(cfg.ImageRoot.Bucket, cfg.ImageRoot.Prefix), client.Root(cfg.CatalogRoot.Bucket, cfg.CatalogRoot.Prefix)
	c.ImageLinks, c.CatalogLinks = images, catalog
	c.Kit = kit.New(kit.Config{
		Config: cfg, Images: images, Catalog: catalog, Server: kit.HostPort(cfg.S3Endpoint), MaxAge: relistAfter, Wait: true,
		Follow: !slices.Contains(reads, config.Password),
		Log:    slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: web.CutAttr})),
	})
	return c, c.OpenOperator(ctx)
}

// secret returns a secret of Secrets Manager.
func (c *Cloud) secret(ctx context.Context, arn string) (string, error) {
	out, err := secretsmanager.NewFromConfig(c.aws).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", err)
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

// Free returns -1: S3 does not report free space.
func (c *Cloud) Free() int64 { return -1 }

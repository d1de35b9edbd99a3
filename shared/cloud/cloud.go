// Package cloud opens the kit of a Lambda function: over S3, with settings from the
// environment, secrets from Secrets Manager and queues in SQS. Package main in local does
// the same on one machine.
package cloud

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"imageroot/shared/config"
	"imageroot/shared/job"
	"imageroot/shared/kit"
	"imageroot/shared/lambda"
	"imageroot/shared/problem"
	"imageroot/shared/queue"
	"imageroot/shared/queue/sqsqueue"
	"imageroot/shared/store"
	"imageroot/shared/store/s3store"
	"imageroot/shared/web"
)

// A Cloud is the kit of a Lambda function, over S3. It is safe for concurrent use.
type Cloud struct {
	*kit.Kit
	ImageLinks, CatalogLinks store.Presigner

	aws aws.Config
}

// Open reads the settings of every function and those that reads names (see
// config.LoadLambda), and opens the kit and its operator with them. Only a function that
// reads config.Password stores the hash of the password and can begin sessions; the
// others check sessions with the stored hash. Only the one that reads config.HashWorkers,
// which every image passes, writes checkpoints of the index.
func Open(ctx context.Context, reads ...string) (*Cloud, error) {
	kit.SaveMemory()
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
		Config: cfg, Images: images, Catalog: catalog, Server: kit.HostPort(cfg.S3Endpoint),
		Compact: slices.Contains(reads, config.HashWorkers),
		Follow:  !slices.Contains(reads, config.Password),
		Log:     slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: web.CutAttr})),
	})
	return c, c.OpenOperator(ctx)
}

// secret returns the secret string with this ARN from Secrets Manager.
func (c *Cloud) secret(ctx context.Context, arn string) (string, error) {
	out, err := secretsmanager.NewFromConfig(c.aws).GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
	if err != nil {
		return "", fmt.Errorf("read the secret: %w", err)
	}
	return aws.ToString(out.SecretString), nil
}

// Queue returns the SQS queue at url. giveUp is that of sqsqueue.Config.
func (c *Cloud) Queue(url string, giveUp queue.Handler) *sqsqueue.Queue {
	return sqsqueue.New(sqsqueue.Config{AWS: c.aws, URL: url, GiveUp: giveUp, Log: c.Log})
}

// JobQueue returns the SQS queue at url and makes it the queue of the jobs of runners.
func (c *Cloud) JobQueue(url string, runners job.Runners) *sqsqueue.Queue {
	q := c.Queue(url, runners.GiveUp)
	c.Jobs.Queues = job.Queues{}
	for _, r := range runners {
		c.Jobs.Queues[r.Kind] = q
	}
	return q
}

// Pages holds the paths of functions/catalog/pages, to which the forms of the other
// functions redirect. It is constant.
var Pages = web.Pages{Prefix: "/ui/", Home: "/ui/images", Login: "/ui/login"}

// Function returns a Lambda function that serves routes, and handles schedules and the
// messages of queues with handle. A nil handle is for a function without either.
// errorPage is that of web.Config.
func (c *Cloud) Function(routes []web.Route, errorPage func(http.ResponseWriter, *http.Request, *problem.Error, int), handle queue.Handler, queues ...*sqsqueue.Queue) *lambda.Function {
	return &lambda.Function{
		HTTP: web.Handler(web.Config{
			Auth: c.Operator, PublicRead: c.PublicRead, Pages: Pages, ErrorPage: errorPage, Metric: c.Metric, Log: c.Log,
		}, routes),
		Handle: handle, Queues: queues, Run: c.Inventory.Run, Log: c.Log,
		Flush: func(ctx context.Context) error {
			c.Operator.Flush(ctx)
			return c.Inventory.Flush(ctx)
		},
	}
}

// Free returns -1: S3 does not report free space.
func (c *Cloud) Free() int64 { return -1 }

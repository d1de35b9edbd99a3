// Command lambda is the catalog function as a Lambda function. IMAGEROOT_* variables configure it.
package main

import (
	"context"

	"imageroot/functions/catalog"
	"imageroot/functions/catalog/pages"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/job"
	"imageroot/shared/lambda"
)

// maxAnswer limits the size of a listing in an answer: Lambda's limit is 6 MiB, with the
// body as a JSON string, which is a third larger in base64.
const maxAnswer = 4 << 20

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.Password, config.HashJobQueue, config.Disks, config.DisksMax)
	if err != nil {
		return nil, err
	}
	f := &catalog.Function{
		Images: c.Images, Catalog: c.Catalog, ImageLinks: c.ImageLinks, CatalogLinks: c.CatalogLinks, MaxAnswer: maxAnswer,
		Inventory: c.Inventory, Auth: c.Operator, Activity: c.Activity, Served: c.Served, Metric: c.Metric, Version: config.Version(), Ready: c.Ready, Now: c.Now, Log: c.Log,
	}
	if c.Disks != config.DisksOff {
		f.DisksMax = c.DisksMax
	}
	if c.Disks == config.DisksRequest || c.Disks == config.DisksAll {
		c.Jobs.Queues = job.Queues{job.Disk: c.Queue(c.Lambda.HashJobQueue, nil)}
		f.MakeDisk = c.Jobs.RequestDisk
	}
	p := &pages.Pages{Function: f, Location: c.ImageRoot.String(), S3Endpoint: c.S3Endpoint}
	return c.Function(append(f.Routes(), p.Routes()...), p.ErrorPage, nil), nil
}

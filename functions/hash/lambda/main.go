// Command lambda is the hash function as a Lambda function. IMAGEROOT_* variables configure it.
package main

import (
	"context"

	"imageroot/functions/hash"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/job"
	"imageroot/shared/lambda"
	"imageroot/shared/store"
)

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.InspectionQueue, config.HashJobQueue, config.HashWorkers, config.Check, config.Disks, config.DisksMax)
	if err != nil {
		return nil, err
	}
	inspections := c.Queue(c.Lambda.InspectionQueue, nil)
	f := &hash.Function{
		Images: c.Images, Catalog: c.Catalog, Bucket: c.ImageRoot.Bucket, Prefix: c.ImageRoot.Prefix,
		Jobs: c.Jobs, Inspections: inspections, Inventory: c.Inventory, Metric: c.Metric,
		Workers: c.HashWorkers, DisksMax: c.DisksMax, AllDisks: c.Disks == config.DisksAll, LinkTime: store.LinkTime, Now: c.Now, Log: c.Log,
	}
	jobs := c.JobQueue(c.Lambda.HashJobQueue, f.Runners())
	if c.Disks == config.DisksOff {
		delete(c.Jobs.Queues, job.Disk)
	}
	if !c.Check {
		delete(c.Jobs.Queues, job.Check)
	}
	return c.Function(f.Routes(), nil, f.Handle, inspections, jobs), nil
}

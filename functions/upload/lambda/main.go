// Command lambda is the upload function as a Lambda function. IMAGEROOT_* variables configure it.
package main

import (
	"context"

	"imageroot/functions/upload"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/job"
	"imageroot/shared/lambda"
)

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.InspectionQueue, config.AssemblyQueue)
	if err != nil {
		return nil, err
	}
	f := &upload.Function{
		Images: c.Images, Catalog: c.Catalog, Links: c.ImageLinks, Inspections: c.Queue(c.Lambda.InspectionQueue, nil), Jobs: c.Jobs, Inventory: c.Inventory, Activity: c.Activity, Metric: c.Metric,
		Free: c.Free, Now: c.Now, Log: c.Log,
	}
	assemblies := c.Queue(c.Lambda.AssemblyQueue, f.GiveUp)
	f.Assemblies, f.Jobs.Queues = assemblies, job.Queues{job.Rename: assemblies}
	return c.Function(f.Routes(), nil, f.Handle, assemblies), nil
}

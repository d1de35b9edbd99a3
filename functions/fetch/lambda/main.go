// Command lambda is the fetch function as a Lambda function. IMAGEROOT_* variables configure it.
package main

import (
	"context"

	"imageroot/functions/fetch"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/kit/sources"
	"imageroot/shared/lambda"
)

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.FetchJobQueue, config.InspectionQueue, config.FetchWorkers, config.AllowNet, config.PlainHTTP)
	if err != nil {
		return nil, err
	}
	client, err := sources.New(c.Kit)
	if err != nil {
		return nil, err
	}
	f := &fetch.Function{
		Catalog: c.Catalog, Sources: client, Jobs: c.Jobs, Inspections: c.Queue(c.Lambda.InspectionQueue, nil), Inventory: c.Inventory, Activity: c.Activity, Metric: c.Metric,
		Free: c.Free, Whole: true, Workers: c.FetchWorkers, Connections: c.FetchConnections, Now: c.Now, Log: c.Log,
	}
	return c.Function(f.Routes(), nil, f.Handle, c.JobQueue(c.Lambda.FetchJobQueue, f.Runners())), nil
}

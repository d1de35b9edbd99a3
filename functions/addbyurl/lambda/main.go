// Command lambda is the addbyurl function as a Lambda function. IMAGEROOT_* variables configure it.
package main

import (
	"context"

	"imageroot/functions/addbyurl"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/entry"
	"imageroot/shared/kit/sources"
	"imageroot/shared/lambda"
	"imageroot/shared/layout"
)

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.AllowNet, config.PlainHTTP)
	if err != nil {
		return nil, err
	}
	client, err := sources.New(c.Kit)
	if err != nil {
		return nil, err
	}
	f := &addbyurl.Function{
		Catalog: c.Catalog, Sources: client, Inventory: c.Inventory, Activity: c.Activity, Now: c.Now, Log: c.Log,
		Uncache: func(ctx context.Context, sha256 layout.SHA256) error {
			return entry.DeleteBytes(ctx, c.Catalog, sha256)
		},
	}
	return c.Function(f.Routes(), nil, nil), nil
}

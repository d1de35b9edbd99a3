// Command lambda is the catalog function at AWS.
package main

import (
	"context"

	"imageroot/functions/catalog"
	"imageroot/shared/cloud"
	"imageroot/shared/config"
	"imageroot/shared/lambda"
)

func main() { lambda.Start(open) }

func open(ctx context.Context) (*lambda.Function, error) {
	c, err := cloud.Open(ctx, config.Password)
	if err != nil {
		return nil, err
	}
	f := &catalog.Function{
		Images: c.Images, Catalog: c.Catalog, ImageLinks: c.ImageLinks, CatalogLinks: c.CatalogLinks,
		Inventory: c.Inventory, Activity: c.Activity, Auth: c.Operator, Metric: c.Metric,
		Version: c.Version, Location: c.ImageRoot.String(), S3Endpoint: c.S3Endpoint, Ready: c.Ready, Now: c.Now, Log: c.Log,
	}
	return c.Function(f.Routes(), f.ErrorPage, nil), nil
}

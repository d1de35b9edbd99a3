package catalog

import (
	"context"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"imageroot/shared/activity"
	"imageroot/shared/inventory"
	"imageroot/shared/metric"
	"imageroot/shared/served"
	"imageroot/shared/store"
	"imageroot/shared/store/memstore"
	"imageroot/shared/web"
)

// newCatalog returns the function over images, behind the real routing.
func newCatalog(t testing.TB, images store.Root) (*Function, http.Handler) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	catalog := memstore.New()
	inv := inventory.New(inventory.Config{Images: images, Catalog: catalog, Now: time.Now, Log: log})
	f := &Function{
		Images: inv.ObserveImages(images), Catalog: inv.ObserveCatalog(catalog), Inventory: inv,
		Activity: &activity.Log{Root: catalog, Now: time.Now, Log: log}, Served: &served.Log{Root: catalog, Now: time.Now, Log: log}, Metric: metric.New(), Version: "test",
		Ready: func(context.Context) error { return nil }, Now: time.Now, Log: log,
	}
	return f, web.Handler(web.Config{Auth: everybody{}, PublicRead: true, Metric: f.Metric, Log: log}, f.Routes())
}

type everybody struct{}

func (everybody) Authenticate(*http.Request) (web.Caller, error) {
	return web.Caller{Access: web.Admin}, nil
}

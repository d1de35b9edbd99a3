// Command registry serves distribution's registry, with what is pushed kept in
// memory, at the address that is its argument. Tests push to it and pull from it.
package main

import (
	"context"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/inmemory"
	"github.com/sirupsen/logrus"
)

func main() {
	if len(os.Args) != 2 {
		log.Fatal("usage: registry HOST:PORT")
	}
	logrus.SetOutput(io.Discard)
	config := &configuration.Configuration{Storage: configuration.Storage{"inmemory": nil}}
	config.HTTP.Secret = "no secret"
	config.HTTP.RelativeURLs = true
	config.Catalog.MaxEntries = 100
	server := &http.Server{Addr: os.Args[1], Handler: handlers.NewApp(context.Background(), config), ReadHeaderTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

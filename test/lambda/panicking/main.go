// Command panicking is a function whose handlers panic, for the tests of the
// adapter.
package main

import (
	"context"
	"log/slog"
	"net/http"
	"os"

	"imageroot/shared/lambda"
)

func main() {
	lambda.Start(func(context.Context) (*lambda.Function, error) {
		return &lambda.Function{
			HTTP: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/fine" {
					w.WriteHeader(http.StatusCreated)
					panic("a secret")
				}
			}),
			Handle: func(context.Context, []byte) error { panic("a secret") },
			Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
		}, nil
	})
}

// Command failing is a function that fails in the ways a function can, by the path of
// the request.
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
				switch r.URL.Path {
				case "/panic":
					w.WriteHeader(http.StatusCreated)
					panic("a secret")
				case "/exit":
					os.Exit(3)
				case "/hang":
					select {}
				}
			}),
			Handle: func(context.Context, []byte) error { panic("a secret") },
			Log:    slog.New(slog.NewTextHandler(os.Stderr, nil)),
		}, nil
	})
}

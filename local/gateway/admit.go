package gateway

import (
	"bytes"
	"errors"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/gofiber/fiber/v3"
	"github.com/valyala/fasthttp"
	"github.com/versity/versitygw/auth"
	s3utils "github.com/versity/versitygw/s3api/utils"
	"github.com/versity/versitygw/s3err"

	"imageroot/shared/quota"
)

const (
	// maxForm is the maximum size of a POST form without its file, as on AWS.
	maxForm = 20 << 10
	// maxDocument is the maximum size of a body that versitygw holds in memory: XML
	// or JSON. The largest completes an upload of 10,000 parts with checksums.
	maxDocument = 4 << 20
	// smallDocument is the maximum size of documents that are not counted.
	// documents limits the others from the network that are held at once: versitygw
	// takes some thirty times their size to parse them.
	smallDocument, documents = 64 << 10, 2
	// maxParameters is the maximum number of query parameters of a request. S3 has
	// some thirty; versitygw sorts and escapes all of them to check a signature.
	maxParameters = 100
	// maxRefusal is the maximum size of the answer to a request with a wrong
	// signature. versitygw repeats what is signed, which takes four times the size
	// of the request.
	maxRefusal = 4 << 10
)

var errUnauthenticated = errors.New("the client sent too much before it authenticated")

// admit returns the middleware that limits the memory of a request before the
// handlers see it.
//
// versitygw reads no body before it has checked the signature, except the form
// of a POST upload, whose signature is one of its fields. That reader has no
// limit, so the connection stops reading after maxForm bytes.
//
// A chunked body is refused, as on AWS, except in aws-chunked, whose length is in
// another header: clients send that over TLS.
//
// A request with a long document waits for its turn. It is refused if it has waited
// for the duration wait.
func admit(wait time.Duration) fiber.Handler {
	turns := make(chan struct{}, documents)
	return func(ctx fiber.Ctx) error {
		// Counted before they are parsed: each takes some 60 bytes, which the
		// connection keeps.
		if bytes.Count(ctx.Request().URI().QueryString(), []byte("&")) >= maxParameters {
			return reject(ctx, s3err.GetAPIError(s3err.ErrInvalidURI))
		}
		c, ok := ctx.RequestCtx().Conn().(*conn)
		if !ok {
			return errors.New("the connection is not one of the gateway's listeners")
		}
		if _, outside := c.socket.(*quota.Conn); !outside || isStreamed(ctx) || ctx.Request().Header.ContentLength() <= smallDocument {
			return admitted(ctx, c)
		}
		late := time.NewTimer(wait)
		defer late.Stop()
		select {
		case turns <- struct{}{}:
			defer func() { <-turns }()
			return admitted(ctx, c)
		case <-late.C:
			return reject(ctx, s3err.GetAPIError(s3err.ErrSlowDown))
		}
	}
}

func admitted(ctx fiber.Ctx, c *conn) error {
	if _, err := url.PathUnescape(string(ctx.Request().URI().PathOriginal())); err != nil {
		return reject(ctx, s3err.GetAPIError(s3err.ErrInvalidURI)) // versitygw would answer with an internal error
	}
	if source := ctx.Request().Header.PeekAll("X-Amz-Copy-Source"); len(source) > 0 && len(source[0]) == 0 {
		// versitygw would ignore it, and store the body as the object.
		return reject(ctx, apiError(fiber.StatusBadRequest, "InvalidArgument", "x-amz-copy-source is empty: give BUCKET/KEY."))
	}
	switch length := ctx.Request().Header.ContentLength(); {
	case length == -1 && !s3utils.IsStreamingPayload(ctx.Get("X-Amz-Content-Sha256")):
		return reject(ctx, s3err.GetAPIError(s3err.ErrMissingContentLength))
	case (length > maxDocument || length == -1) && !isStreamed(ctx):
		return reject(ctx, s3err.GetMaxMessageLengthExceeded(maxDocument))
	}
	c.restrict(maxForm, func() bool {
		account, _ := s3utils.ContextKeyAccount.Get(ctx).(auth.Account)
		return account.Access != ""
	})
	defer func() {
		refused := ctx.Response().StatusCode() == fiber.StatusForbidden
		if c.unrestrict(!refused); refused {
			dismiss(ctx)
		}
	}()
	return ctx.Next()
}

// dismiss ends the connection of a refused request. The answer fits the kernel's
// buffer, so a client that does not read it occupies no connection.
func dismiss(ctx fiber.Ctx) {
	ctx.RequestCtx().SetConnectionClose()
	if answer := ctx.Response(); len(answer.Body()) > maxRefusal && bytes.Contains(answer.Body(), []byte("<Code>SignatureDoesNotMatch</Code>")) {
		id := func(name string) string { return string(answer.Header.Peek(name)) }
		answer.SetBody(s3err.GetAPIError(s3err.ErrSignatureDoesNotMatch).XMLBody(id("X-Amz-Request-Id"), id("X-Amz-Id-2")))
	}
}

// isStreamed reports whether the body of a request is the content of an object
// or part, or a form with one.
func isStreamed(ctx fiber.Ctx) bool {
	key, query := keyOf(ctx), ctx.Request().URI().QueryArgs()
	switch ctx.Method() {
	case fiber.MethodPost:
		return key == "" && !query.Has("delete")
	case fiber.MethodPut:
		return key != "" && ctx.Get("X-Amz-Copy-Source") == "" &&
			!query.Has("acl") && !query.Has("legal-hold") && !query.Has("retention") && !query.Has("tagging")
	}
	return false
}

// keyOf returns the key in the path of a request, or "" if the path is that of
// a bucket. versitygw unescapes the whole path before it searches for the slash.
func keyOf(ctx fiber.Ctx) string {
	path, err := url.PathUnescape(ctx.Path())
	if err != nil {
		return "" // versitygw refuses it
	}
	_, key, _ := strings.Cut(strings.TrimPrefix(path, "/"), "/")
	return key
}

// reject answers a request in place of the handlers.
func reject(ctx fiber.Ctx, answer s3err.S3Error) error {
	ctx.Response().Header.SetContentType(fiber.MIMEApplicationXML)
	requestID, hostID := s3utils.EnsureRequestIDs(ctx)
	return ctx.Status(answer.StatusCode()).Send(answer.XMLBody(requestID, hostID))
}

// isRead reports whether the body of a request was read to its end. The rest
// would be read as the next request.
func isRead(req *fasthttp.Request) bool {
	body := req.BodyStream()
	if body == nil {
		return true
	}
	if req.Header.ContentLength() < 0 {
		return false // reading the end of the chunks could block
	}
	_, err := body.Read(nil)
	return errors.Is(err, io.EOF)
}

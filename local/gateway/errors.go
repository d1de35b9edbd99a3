package gateway

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/versity/versitygw/s3err"
	"golang.org/x/sys/unix"
)

// Errors of a key whose path on the disk is occupied by something else.
var (
	errIsDirectory = s3err.GetAPIError(s3err.ErrExistingObjectIsDirectory)
	errBelowFile   = s3err.GetAPIError(s3err.ErrObjectParentIsFile)
	errIsSpecial   = apiError(http.StatusConflict, "ExistingObjectIsSpecial",
		"On the server's disk there is something at this key that is neither a file nor a directory. Remove it there.")
)

func apiError(status int, code, description string) s3err.APIError {
	return s3err.APIError{Code: code, Description: description, HTTPStatusCode: status}
}

// diskFailed returns a 503 that describes a fault of the server's disk. Its code is
// not one of S3's, which distinguishes it from a busy server.
func diskFailed(why string) error {
	return apiError(http.StatusServiceUnavailable, "ServerDiskFailed", why)
}

// diskAnswers maps an error of the file system to the answer. Those that need an
// administrator are logged.
var diskAnswers = []struct {
	errs   []error
	answer error
	logged bool
}{
	// The second is what versitygw returns for a read-only file system.
	{[]error{syscall.EROFS, s3err.GetAPIError(s3err.ErrMethodNotAllowed)}, diskFailed("The server's disk is read-only."), true},
	{[]error{fs.ErrPermission}, diskFailed("The server lacks the right to do this on its disk."), true},
	{[]error{syscall.EIO}, diskFailed("The server's disk failed to read or write."), true},
	{[]error{syscall.ESTALE, syscall.ENOTCONN, syscall.ENODEV}, diskFailed("The server's disk cannot be reached."), true},
	{[]error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM}, errBusy, true},
	{[]error{syscall.ENOSPC, syscall.EDQUOT}, errFull, false},
	{[]error{syscall.EFBIG}, s3err.GetAPIError(s3err.ErrEntityTooLarge), false},
	{[]error{syscall.EISDIR}, errIsDirectory, false},
	{[]error{syscall.ENOTDIR}, errBelowFile, false},
	{[]error{io.ErrUnexpectedEOF, net.ErrClosed}, errCut, false},
}

// answer returns the S3 error for err: an S3 error unchanged, an error of the
// file system by the table diskAnswers, and any other as an internal error whose
// cause is logged.
func (b *backend) answer(doing string, p place, err error) error {
	if err == nil {
		return nil
	}
	log := func(what string) {
		b.log.Error(what, slog.String("doing", doing), slog.String("bucket", p.bucket), slog.String("key", p.key), slog.Any("error", err))
	}
	for _, t := range diskAnswers {
		if slices.ContainsFunc(t.errs, func(known error) bool { return errors.Is(err, known) }) {
			if t.logged {
				log("the S3 gateway's disk failed")
			}
			return t.answer
		}
	}
	if known, ok := errors.AsType[s3err.S3Error](err); ok {
		return known
	}
	if errors.Is(err, syscall.ENAMETOOLONG) {
		return s3err.GetKeyTooLongErr(int64(len(p.key)), 1024)
	}
	log("the S3 gateway failed")
	return s3err.GetAPIError(s3err.ErrInternalError)
}

// cause returns the reason that a write to p failed with err. versitygw returns
// "is a directory" for every failure to rename a file to its place.
func (p place) cause(err error) error {
	_, known := errors.AsType[s3err.S3Error](err)
	masked := errors.Is(err, errIsDirectory)
	if err == nil || known && !masked {
		return err
	}
	if occupied := p.writable(); occupied != nil {
		return occupied
	}
	if !masked {
		return err
	}
	parent := filepath.Dir(p.path())
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return err
	}
	if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
		return &fs.PathError{Op: "write to", Path: parent, Err: err}
	}
	return fmt.Errorf("versitygw could not put a file at %s", p.path())
}

// unsupported returns S3's error for a request for functionality that a server lacks.
func unsupported(what string) s3err.APIError {
	return apiError(http.StatusNotImplemented, "NotImplemented", "The request asks for functionality that is not implemented: "+what)
}

// errOldSignature names the settings of clients that sign with Signature Version 2.
var errOldSignature = apiError(http.StatusBadRequest, "InvalidRequest",
	"The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256 (Signature Version 4): "+
		"`aws configure set default.s3.signature_version s3v4`, signature_v2 = False in s3cmd, v2_auth = false in rclone, "+
		"Config(signature_version='s3v4') in boto3.")

// invalid returns the error for an argument that versitygw would store, send back
// or ignore unchecked.
func invalid(name, why string) s3err.S3Error {
	return s3err.InvalidArgumentError{ArgumentName: name, Description: why}
}

var (
	errNoSuchKey = s3err.GetAPIError(s3err.ErrNoSuchKey)
	errFull      = s3err.GetAPIError(s3err.ErrNoSpaceLeftOnDevice)
	errBusy      = s3err.GetAPIError(s3err.ErrSlowDown)
	errCut       = s3err.GetAPIError(s3err.ErrIncompleteBody)
)

// refuse returns a 400 with the reason.
func refuse(why string) error { return apiError(http.StatusBadRequest, "InvalidRequest", why) }

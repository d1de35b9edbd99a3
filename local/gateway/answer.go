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
	"syscall"

	"github.com/versity/versitygw/s3err"
	"golang.org/x/sys/unix"
)

// Errors of a key whose place on the disk something else occupies.
var (
	errIsDirectory = s3err.GetAPIError(s3err.ErrExistingObjectIsDirectory)
	errBelowFile   = s3err.GetAPIError(s3err.ErrObjectParentIsFile)
	errIsSpecial   = s3err.APIError{
		Code: "ExistingObjectIsSpecial", HTTPStatusCode: http.StatusConflict,
		Description: "On the server's disk there is something at this key that is neither a file nor a directory. Remove it there.",
	}
)

// diskFailed is a 503 that says what is wrong with the server's disk. Its code
// is not one of S3's, so that clients of ours can tell it from a busy server.
func diskFailed(why string) error {
	return s3err.APIError{Code: "ServerDiskFailed", Description: why, HTTPStatusCode: http.StatusServiceUnavailable}
}

// troubles is the table from an error of the file system to the answer.
// Those that are logged need an administrator.
var troubles = []struct {
	err    error
	answer error
	logged bool
}{
	{syscall.EROFS, diskFailed("The server's disk is read-only."), true},
	// What versitygw returns for a read-only file system.
	{s3err.GetAPIError(s3err.ErrMethodNotAllowed), diskFailed("The server's disk is read-only."), true},
	{fs.ErrPermission, diskFailed("The server lacks the right to do this on its disk."), true},
	{syscall.EIO, diskFailed("The server's disk failed to read or write."), true},
	{syscall.ESTALE, diskFailed("The server's disk cannot be reached."), true},
	{syscall.ENOTCONN, diskFailed("The server's disk cannot be reached."), true},
	{syscall.ENODEV, diskFailed("The server's disk cannot be reached."), true},
	{syscall.EMFILE, errBusy, true},
	{syscall.ENFILE, errBusy, true},
	{syscall.ENOMEM, errBusy, true},
	{syscall.ENOSPC, errFull, false},
	{syscall.EDQUOT, errFull, false},
	{syscall.EFBIG, s3err.GetAPIError(s3err.ErrEntityTooLarge), false},
	{syscall.EISDIR, errIsDirectory, false},
	{syscall.ENOTDIR, errBelowFile, false},
	{io.ErrUnexpectedEOF, errCut, false},
	{net.ErrClosed, errCut, false},
}

// answer returns the S3 error that a client gets for err: an S3 error as it
// is, an error of the file system as the table says, and any other as an
// internal error whose cause is only logged.
func (b *backend) answer(doing string, p place, err error) error {
	if err == nil {
		return nil
	}
	log := func(what string) {
		b.log.Error(what, slog.String("doing", doing), slog.String("bucket", p.bucket), slog.String("key", p.key), slog.Any("error", err))
	}
	for _, t := range troubles {
		if errors.Is(err, t.err) {
			if t.logged {
				log("the S3 gateway's disk failed")
			}
			return t.answer
		}
	}
	var known s3err.S3Error
	if errors.As(err, &known) {
		return known
	}
	if errors.Is(err, syscall.ENAMETOOLONG) {
		return s3err.GetKeyTooLongErr(int64(len(p.key)), 1024)
	}
	log("the S3 gateway failed")
	return s3err.GetAPIError(s3err.ErrInternalError)
}

// cause returns what made a write to p fail with err. versitygw answers "is a
// directory" whatever kept it from putting a file in its place.
func (p place) cause(err error) error {
	var known s3err.S3Error
	masked := errors.Is(err, errIsDirectory)
	if err == nil || errors.As(err, &known) && !masked {
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

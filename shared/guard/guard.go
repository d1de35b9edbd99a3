// Package guard keeps a panic of a decoder from ending the process.
package guard

import "fmt"

// Call calls f and returns its error. If f panics, it returns an error with the panic's
// value, so that a file on which a decoder panics is a damaged file. A goroutine that f
// starts needs a Call of its own.
func Call(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the decoder failed: %v", v)
		}
	}()
	return f()
}

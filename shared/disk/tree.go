package disk

import (
	"errors"
	"strings"
)

// A tree is the files of a file system. Its methods return errMissing, a fault, or an error
// of the source.
type tree interface {
	root() (node, error)
	// lookup returns the entry of a directory.
	lookup(dir node, name string) (node, error)
	// read returns the first n bytes of a file, or fewer if it is shorter, or the target of
	// a symbolic link.
	read(file node, n int) ([]byte, error)
}

// A node is a file, a directory or a symbolic link.
type node struct {
	kind nodeKind
	size int64
	at   uint64 // for the tree: where the node is
	from uint64 // for the tree: where in that
}

type nodeKind int

const (
	file nodeKind = iota
	dir
	link
	special
)

const (
	maxLinks  = 8       // followed in one path
	maxLink   = 4 << 10 // bytes of a target
	maxFolder = 1 << 20 // bytes of a directory that are read
)

// walk returns the node with a path, which has no leading slash. It follows symbolic links
// within the tree.
func walk(t tree, path string) (node, error) {
	root, err := t.root()
	if err != nil {
		return node{}, err
	}
	above := []node{root} // of what is left of the path, outermost first
	left := strings.Split(path, "/")
	for links := 0; len(left) > 0; {
		name := left[0]
		left = left[1:]
		here := above[len(above)-1]
		switch {
		case name == "" || name == ".":
			continue
		case name == "..":
			above = above[:max(1, len(above)-1)]
			continue
		case here.kind != dir:
			return node{}, errMissing
		}
		n, err := t.lookup(here, name)
		if err != nil {
			return node{}, err
		}
		if n.kind != link {
			above = append(above, n)
			continue
		}
		if links++; links > maxLinks || n.size > maxLink {
			return node{}, errDamaged
		}
		target, err := t.read(n, maxLink)
		if err != nil {
			return node{}, err
		}
		if strings.HasPrefix(string(target), "/") {
			above = above[:1]
		}
		left = append(strings.Split(string(target), "/"), left...)
	}
	return above[len(above)-1], nil
}

// readFile returns the first n bytes of the file with a path.
func readFile(t tree, path string, n int) ([]byte, error) {
	f, err := walk(t, path)
	if err == nil && f.kind != file {
		err = errMissing
	}
	if err != nil {
		return nil, err
	}
	return t.read(f, n)
}

// has reports whether there is a file or directory with one of the paths.
func has(t tree, paths ...string) (bool, error) {
	var failed error
	for _, path := range paths {
		switch _, err := walk(t, path); {
		case err == nil:
			return true, nil
		case !errors.Is(err, errMissing):
			failed = err
		}
	}
	return false, failed
}

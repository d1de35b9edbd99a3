package catalog

import (
	"fmt"
	"net/http"
	"net/url"

	"imageroot/shared/content"
	"imageroot/shared/image"
	"imageroot/shared/problem"
	"imageroot/shared/store"
	"imageroot/shared/store/reader"
	"imageroot/shared/web"
)

// links returns the presigner of URLs of c, or nil if this server sends the bytes.
func (f *Function) links(c *object) store.Presigner {
	if c.Local {
		return f.ImageLinks
	}
	return f.CatalogLinks
}

// redirect sends the client to the store, which handles ranges and conditions.
// The answer has no validators, since the store has others.
func (f *Function) redirect(w http.ResponseWriter, r *http.Request, c *object, links store.Presigner) error {
	var url string
	var err error
	if r.Method == http.MethodHead {
		url, err = links.PresignHead(r.Context(), c.Info.Key)
	} else {
		answer := store.Attachment(string(c.name))
		answer.Type = w.Header().Get("Content-Type") // of describe
		url, err = links.PresignGet(r.Context(), c.Info.Key, answer)
	}
	if err != nil {
		return err
	}
	sendAway(w, url)
	f.delivered(r, c, true)
	return nil
}

// sendAway answers with a redirect to url, and without the fields of the object there.
func sendAway(w http.ResponseWriter, url string) {
	h := w.Header()
	for _, name := range []string{"ETag", "Content-Disposition", "Content-Type"} {
		h.Del(name)
	}
	h.Set("Cache-Control", "no-store")
	h.Set("Location", url)
	w.WriteHeader(http.StatusTemporaryRedirect)
}

// linkRaw redirects the client to an object with the bytes of the disk in c: to c if that
// is a plain image, else to its expanded disk. If there is none, it has the disk made.
func (f *Function) linkRaw(w http.ResponseWriter, r *http.Request, c *object) error {
	kind, err := kindOf(r, c)
	if err != nil {
		return err
	}
	name, sum := image.DiskName(nameFor(r, c.name)), c.sha256
	if kind.Compressed() || kind.Virtual() {
		disk, err := f.linkedDisk(r, c)
		if err != nil {
			return err
		}
		if disk == nil {
			return f.noDiskYet(r, c, kind)
		}
		c, sum = disk, c.rawSHA256
	}
	c.name = name
	describe(w.Header(), c, "-raw", sum)
	return f.redirect(w, r, c, f.links(c))
}

// kindOf returns the kind of the bytes of c. It returns a problem if they hold no disk.
func kindOf(r *http.Request, c *object) (content.Kind, error) {
	if c.known != nil {
		return c.known.Kind, nil
	}
	file, err := reader.Open(r.Context(), c.Root, c.Info.Key, c.Info.Version)
	if err != nil {
		return "", err
	}
	defer file.Close()
	what, err := content.Detect(file, c.Info.Size)
	if err != nil {
		return "", err
	}
	if no := what.NoDisk(); no != "" {
		return "", problem.New(problem.Malformed, no)
	}
	return what.Kind, nil
}

// noDiskYet has the disk in c made, and returns the problem that says when to try again,
// or how to unpack the image without a disk.
func (f *Function) noDiskYet(r *http.Request, c *object, kind content.Kind) error {
	if f.MakeDisk != nil && c.known == nil {
		return problem.Newf(problem.Unavailable, "%s is not inspected yet, and its disk is made after that: try again soon", c.name)
	}
	if err := f.expand(r.Context(), c.sha256, c.name); err != nil {
		return err
	}
	why := "disks are made for an operator only (POST /catalog/disks), and this image has none"
	switch {
	case f.MakeDisk != nil:
		why = "its disk could not be made; the pages and GET /catalog/disks say why"
	case f.DisksMax == 0:
		why = "this server makes no disks"
	}
	return problem.Newf(problem.Conflict, "%s is not a plain image, and %s. The machine can unpack it: %s", c.name, why, unpackCommand(r, c, kind))
}

// unpackCommand returns the command with which a machine writes the disk in c to a drive.
func unpackCommand(r *http.Request, c *object, kind content.Kind) string {
	key := string(c.sha256)
	if key == "" {
		key = url.PathEscape(string(c.Info.Key))
	}
	const curl = `curl -fL -w '%{stderr}%header{problem-detail}\n'` // prints the reason of a failure
	from := web.BaseURL(r) + "/images/" + key + "/" + url.PathEscape(string(c.name))
	tool := string(kind) + " -d" // a kind has the name of its tool
	if kind == content.Zip {
		tool = "bsdtar -xOf -"
	}
	unpack := "" // a compressed one first
	if c.known != nil && c.known.Inner != "" {
		unpack = fmt.Sprintf(" | %s >disk.%s", tool, c.known.Inner)
		kind = c.known.Inner
	}
	if kind.Virtual() {
		format := kind
		if format == content.VHD {
			format = "vpc" // QEMU's name
		}
		if unpack == "" {
			from += "' -o 'disk." + string(kind)
		}
		return fmt.Sprintf("%s '%s'%s && qemu-img convert -f %s -O raw disk.%s /dev/sdX", curl, from, unpack, format, kind)
	}
	return fmt.Sprintf("%s '%s' | %s | dd of=/dev/sdX bs=4M", curl, from, tool)
}

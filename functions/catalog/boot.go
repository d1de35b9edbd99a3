package catalog

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"imageroot/shared/inventory"
	"imageroot/shared/problem"
)

const (
	// menuItems is the number of images in a menu. A page of them fits the memory of any
	// iPXE, and is as much as a person scrolls through.
	menuItems = 100
	// menuQuery limits the length of a search, which is compared with all images for
	// anybody who asks.
	menuQuery = 100
	scriptEnd = ".ipxe"
)

// bootMenu answers GET /boot.ipxe: an iPXE script (https://ipxe.org/scripting) with a menu
// of the images that can boot. Its URLs are relative to its own.
func (f *Function) bootMenu(w http.ResponseWriter, r *http.Request) error {
	query, page := r.URL.Query().Get("q"), 1
	if len(query) > menuQuery {
		return problem.Newf(problem.Invalid, "the search must have at most %d bytes", menuQuery)
	}
	if p := r.URL.Query().Get("page"); p != "" {
		var err error
		if page, err = strconv.Atoi(p); err != nil || page < 1 || page > 1<<20 {
			return problem.New(problem.Invalid, "the page must be a number from 1 on")
		}
	}
	s, err := f.Inventory.Snapshot(r.Context())
	if err != nil {
		return err
	}
	words, first, total := strings.Fields(strings.ToLower(query)), (page-1)*menuItems, 0
	var items []*inventory.Head
	for h := range s.Heads() {
		if !f.boots(h) || !named(h, words) {
			continue
		}
		if total++; total > first && len(items) < menuItems {
			items = append(items, h)
		}
	}
	b := new(script)
	b.line("menu imageroot: images that can boot: %d", total)
	switch last := first + len(items); {
	case len(words) > 0:
		b.line("item --gap -- %d to %d of those with %s in their name", min(first+1, last), last, shown(query))
	case last < total || first > 0:
		b.line("item --gap -- %d to %d, by name", min(first+1, last), last)
	}
	for _, h := range items {
		on := ""
		switch {
		case !h.Boot.UEFI:
			on = "iseq ${platform} pcbios && "
		case !h.Boot.BIOS:
			on = "iseq ${platform} efi && "
		}
		b.line("%sitem -- %s %s ||", on, h.SHA256, f.title(s.Row(h)))
	}
	more := first+len(items) < total && len(items) > 0
	b.line("item --gap -- -")
	if more {
		b.line("item -- more More images")
	}
	b.line("item -- search Find an image by its name")
	b.line("item -- shell Open the shell of iPXE")
	b.line("item -- leave Boot from the next device of this machine")
	b.line("choose key || goto leave")
	b.line("iseq ${key} leave && goto leave ||")
	b.line("iseq ${key} shell && goto shell ||")
	b.line("iseq ${key} search && goto search ||")
	if more {
		next := url.Values{"page": {strconv.Itoa(page + 1)}}
		if query != "" {
			next.Set("q", query)
		}
		b.line("iseq ${key} more && chain --replace --autofree boot.ipxe?%s ||", next.Encode())
	}
	b.line("chain --replace --autofree boot/${key}%s || goto failed", scriptEnd)
	b.line(":search")
	b.line("clear q")
	b.line("echo -n Part of the name: ")
	b.line("read q && chain --replace --autofree boot.ipxe?q=${q:uristring} || goto failed")
	b.line(":shell")
	b.line("shell")
	b.line("chain --replace --autofree boot.ipxe || goto failed")
	b.line(":failed")
	b.line("prompt The server did not answer with a script. Press a key for the menu.")
	b.line("chain --replace --autofree boot.ipxe || goto failed")
	b.line(":leave")
	b.line("exit 1")
	return b.send(w, r)
}

// boots reports whether machines can boot the image of a row from here.
func (f *Function) boots(h *inventory.Head) bool {
	return h.Boot.Any() && hasDisk(h) && (!f.expandedFirst(h) || f.MakeDisk != nil)
}

// named reports whether the primary name has all words, which are in lower case. Other
// texts of a row are not for everybody.
func named(h *inventory.Head, words []string) bool {
	name := ""
	for _, w := range words {
		if name = cmp.Or(name, strings.ToLower(string(h.Name))); !strings.Contains(name, w) {
			return false
		}
	}
	return true
}

// title returns the text of a row in the menu, for a screen of 80 columns.
func (f *Function) title(r *inventory.Row) string {
	const most = 48
	t := shown(string(r.Names[0]))
	if len(t) > most {
		t = t[:most] + "..."
	}
	if size := r.VirtualSizeBytes; size != nil {
		t += fmt.Sprintf(" (%d MiB)", (*size+1<<20-1)>>20)
	}
	if f.expandedFirst(r.Head) {
		t += " - expanded first"
	}
	return t
}

// bootImage answers GET /boot/{key}.ipxe: an iPXE script that boots the image, or says on
// the screen of the machine why that has to wait, and tries again.
func (f *Function) bootImage(w http.ResponseWriter, r *http.Request) error {
	key, ok := strings.CutSuffix(r.PathValue("key"), scriptEnd)
	if !ok {
		return problem.New(problem.NotFound, "there are scripts of iPXE here: /boot/KEY.ipxe, with the name or the SHA-256 of an image")
	}
	return f.withObject(r.Context(), key, f.findRandom, func(c *object) error {
		if err := c.Unchanged(r.Context()); err != nil {
			return err
		}
		b, again := new(script), "chain --replace --autofree "+url.PathEscape(key)+scriptEnd
		wait, fail, err := f.bootState(r.Context(), c, r.Method == http.MethodGet)
		switch {
		case err != nil:
			return err
		case fail != "":
			b.line("echo Image %s", shown(string(c.name)+": "+fail))
		case wait != "":
			b.line("echo Image %s", shown(string(c.name)+": "+wait))
			b.line("sleep 5")
			b.line("%s || goto failed", again)
		default:
			b.line("echo Booting %s", shown(string(c.name)))
			b.line("sanboot ../raw/%s || goto failed", c.sha256)
		}
		b.line(":failed")
		b.line("prompt --timeout 60000 Press a key for the menu, or wait a minute to try this image again. && goto menu ||")
		b.line("%s || goto failed", again)
		b.line(":menu")
		b.line("chain --replace --autofree ../boot.ipxe || goto failed")
		return b.send(w, r)
	})
}

// bootState returns why a machine has to wait for the disk in c, or why it cannot boot it,
// as a part of a sentence; both are empty if the disk can be read. With begin, it has the
// disk made.
func (f *Function) bootState(ctx context.Context, c *object, begin bool) (wait, fail string, err error) {
	if c.sha256 == "" || c.known == nil {
		return "it is not hashed and inspected yet", "", nil
	}
	if no := c.known.NoDisk(); no != "" {
		return "", no, nil
	}
	if !c.known.Kind.Compressed() && (!c.known.Kind.Virtual() || f.links(c) == nil) {
		return "", "", nil
	}
	disk, err := f.disk(ctx, c)
	if err != nil || disk != nil {
		return "", "", err
	}
	if !begin {
		return "its disk is made first", "", nil
	}
	var active bool
	var written int64
	if f.MakeDisk != nil {
		if active, written, err = f.MakeDisk(ctx, c.sha256, c.name); err != nil {
			return "", "", err
		}
	}
	if !active {
		return "", "its disk has to be made first, and this server does not make it, or failed to: an operator sees the reason in the list of disks", nil
	}
	wait = fmt.Sprintf("its disk is being made, %d MiB are written", written>>20)
	if size := c.known.Virtual(); size != nil {
		wait += fmt.Sprintf(" of %d", (*size+1<<20-1)>>20)
	}
	return wait, "", nil
}

// A script is one of iPXE.
type script struct{ text strings.Builder }

// line adds a line. Arguments from outside must be shown or escaped as in a URL.
func (b *script) line(format string, args ...any) {
	if b.text.Len() == 0 {
		b.text.WriteString("#!ipxe\n")
	}
	fmt.Fprintf(&b.text, format+"\n", args...)
}

func (b *script) send(w http.ResponseWriter, r *http.Request) error {
	return sendText(w, r, b.text.String())
}

// shown returns text as words that iPXE only displays: it expands ${NAME}, ends a command
// at a newline, && or ||, and begins a comment at #. Its screens have ASCII alone.
func shown(text string) string {
	const most = 200
	text = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune(" .,:;_+-=@()/'%", r):
			return r
		}
		return '?'
	}, text)
	return text[:min(len(text), most)]
}

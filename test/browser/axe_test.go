package browser

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

// axe runs axe-core on the current state of the page, in light and dark, wide and narrow. A
// violation of its rules, those of WCAG 2 and others, fails the test.
func (p *Page) axe(name string) {
	p.t.Helper()
	if !eval[bool](p, "'axe' in window") {
		source, err := os.ReadFile(*axeCore)
		if err != nil {
			p.t.Fatalf("axe-core is needed by this test (make axe): %v", err)
		}
		eval[bool](p, string(source)+"; true")
	}
	const run = `(window.violations = undefined, axe.run(document, { resultTypes: ['violations'] }).then((r) => {
		window.violations = r.violations.flatMap((v) => v.nodes.map((n) => v.id + ': ' + v.help + ': ' + n.html.slice(0, 200) + ' ' + n.any.map((c) => c.message).join('; ').slice(0, 300)));
	}, (err) => { window.violations = [String(err)]; }), true)`
	for _, scheme := range []string{"light", "dark"} {
		p.scheme(scheme)
		p.until("the theme is "+scheme, "document.documentElement.dataset.bsTheme === "+js(scheme))
		for _, size := range [][2]int64{{1280, 900}, {375, 812}} {
			p.size(size[0], size[1])
			eval[bool](p, run)
			p.until("axe has run", "window.violations")
			for _, v := range eval[[]string](p, "window.violations") {
				p.t.Errorf("%s, %s, %d pixels: %s", name, scheme, size[0], v)
			}
		}
	}
	p.size(1280, 900)
}

// TestAxe checks every page in its states by axe-core.
func TestAxe(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	p := open(t, s)
	p.allow(`network: .* (401|404|409) `)
	p.navigate("/ui/login")
	p.typeInto("#password", "wrong password")
	p.press(kb.Enter)
	p.until("the refusal", "document.getElementById('login-error')")
	p.axe("login")
	p.login()
	p.axe("images, empty")

	// A system, a warning, an entry, a failure, and a fetch that waits for the rest.
	s.call(t, "PUT", "/images/node.img", bytes.NewReader(systemDisk(t)))
	s.call(t, "PUT", "/images/page.img", strings.NewReader("<!DOCTYPE html><title>404 Not Found</title>"))
	s.drop(t, "notes.tar.gz", 10)
	for _, name := range []string{"image-0.img", "image-1.img"} {
		s.call(t, "POST", "/catalog/entries", strings.NewReader(`{"image_url": "`+pub.URL+"/"+name+`", "sha_url": "`+pub.URL+`/SHA256SUMS"}`))
	}
	s.call(t, "PUT", "/catalog.toml", strings.NewReader("version = 1\n[[images]]\nname = \"gone.img\"\nsrc = \""+pub.URL+"/missing.img\"\n"))
	for _, name := range []string{"image-1.img", "gone.img"} {
		s.call(t, "POST", "/catalog/downloads", strings.NewReader(`{"name": "`+name+`"}`))
	}
	p.until("the system", row("node.img")+"?.textContent.includes('Debian 12')")
	p.until("the failure", "document.querySelector('#failures section .job')")
	p.until("the strip", "document.querySelector('#running .job progress')")
	p.until("what is not an image", "document.querySelector('#others summary')")
	eval[bool](p, "(document.querySelectorAll('details').forEach(d => { d.open = true; }), true)")
	p.clickOn("a box", row("image-0.img")+"?.querySelector('.pick input')")
	p.until("what can be done", has("#batch", "1 selected"))
	p.axe("images")
	p.click("#batch-delete")
	p.until("the question", "document.getElementById('dialog').open")
	p.axe("the question before a deletion")
	p.press(kb.Escape)
	p.openAdd()
	p.typeInto("#image-url", pub.URL+"/image-0.img")
	p.until("what it is", has("#found", "in the catalog already"))
	p.click("#add-more summary")
	p.click("#fetch-now")
	p.click("#add-url button:not([type=button])")
	p.until("the conflict", has("#add-result", "already"))
	p.axe("the dialog that adds images")

	for name, path := range map[string]string{
		"image": "/ui/images/node.img", "image, available": "/ui/images/gone.img", "events": "/ui/events", "add": "/ui/add",
		"confirm": "/ui/images/confirm?what=image&key=node.img", "problem": "/ui/images/none.img",
	} {
		p.navigate(path)
		p.until("the page", "document.querySelector('main h1')")
		eval[bool](p, "(document.querySelectorAll('details').forEach(d => { d.open = true; }), true)")
		p.axe(name)
	}
}

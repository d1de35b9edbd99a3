package browser

import (
	"bytes"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

// mark sets a variable on the page that a navigation removes.
func (p *Page) mark() {
	p.t.Helper()
	eval[bool](p, "(window.marked = true)")
}

func (p *Page) marked(what string) {
	p.t.Helper()
	if !eval[bool](p, "window.marked === true") {
		p.t.Errorf("%s: the page was loaded again", what)
	}
}

func TestAddByURL(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	p := open(t, s)
	p.allow(`network: .* (400|409|422) .*/catalog/(entries|sources)`)
	p.login()
	p.mark()

	// An error of resolving is shown beside the form, and the input stays.
	p.openAdd()
	missing := pub.URL + "/missing.img"
	p.typeInto("#image-url", missing)
	p.click("#add-url button:not([type=button])")
	p.until("the error", has("#add-result", "404"))
	if got := eval[string](p, "document.getElementById('image-url').value"); got != missing {
		t.Errorf("after the error the field has %q", got)
	}
	if !eval[bool](p, "document.getElementById('add-result').getAttribute('aria-live') === 'polite' && !!document.querySelector('#add-result .alert-danger')") {
		t.Error("the error is not in a live region")
	}
	p.shots("images-add-error")

	p.typeInto("#image-url", "ftp://example.org/a.img")
	p.press(kb.Enter)
	p.until("the scheme is refused", has("#add-result", "oras"))

	// The server finds the checksum list, and says what it knows.
	p.typeInto("#image-url", pub.URL+"/image-0.img")
	p.until("what it is", has("#found", "image-0.img · 24.0 MiB · will be verified against "+pub.URL+"/SHA256SUMS"))
	p.shots("images-add")
	p.press(kb.Enter)
	p.until("the good news", has("#status", "Added image-0.img"))
	p.until("the row is marked", row("image-0.img")+"?.classList.contains('marked')")
	p.until("its digest", hashed("image-0.img", digestOf("image-0.img")))
	p.until("it is fetched", row("image-0.img")+"?.textContent.includes('fetching')")
	if left := eval[string](p, "document.getElementById('image-url').value + document.getElementById('sha-url').value"); left != "" {
		t.Errorf("after success the fields have %q", left)
	}
	p.until("the number", has("#total", "1 image"))
	p.until("the activity", has("#recent", "added "+pub.URL))

	p.openAdd()
	p.typeInto("#image-url", pub.URL+"/image-0.img")
	p.until("that it is known", has("#found", "in the catalog already"))
	p.click("#fetch-now")
	p.click("#add-url button:not([type=button])")
	p.until("a second time, the source can be asked again", has("#add-result", "already")+" && document.querySelector('#add-result [data-ask-again]')")
	p.shots("images-add-known")
	p.click("#found [data-ask-again]")
	p.until("it was asked again", has("#status", "The source of image-0.img was asked again."))

	// To fetch it needs no other button.
	pub.release("image-0.img")
	p.until("it is cached", row("image-0.img")+"?.textContent.includes('cached')")
	p.openAdd()
	p.typeInto("#image-url", pub.URL+"/image-0.img")
	p.press(kb.Enter)
	p.until("nothing is left to fetch", has("#status", "image-0.img is cached already."))
	p.marked("adding")
}

func TestHashJobs(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	p.mark()
	p.hear()
	p.typeInto("#q", "img")

	// One at a time: while the first is hashed, the second waits.
	const long = 128 << 30 // takes minutes
	s.drop(t, "first.img", long)
	p.until("the first runs", jobOf("hashes", "first.img")+"?.dataset.status === 'running'")
	s.drop(t, "second.img", 1<<20)
	p.until("the second waits", jobOf("hashes", "second.img")+"?.dataset.status === 'queued'")
	p.until("the row says so", row("second.img")+"?.textContent.includes('hash queued')")
	p.until("progress", jobOf("hashes", "first.img")+"?.querySelector('progress')?.value > 0")
	was := eval[float64](p, jobOf("hashes", "first.img")+"?.querySelector('progress')?.value ?? 0")
	p.until("more progress", fmt.Sprintf("%s?.querySelector('progress')?.value > %f", jobOf("hashes", "first.img"), was))
	p.shots("images-hashing")

	// A slow click on a button that is about to be refreshed still counts.
	p.slowClickOn("Cancel", jobOf("hashes", "first.img")+"?.querySelector('button')")
	p.until("the first is cancelled", jobOf("hashes", "first.img")+"?.dataset.status === 'cancelled'")
	p.until("the second is done", jobOf("hashes", "second.img")+"?.dataset.status === 'completed'")
	// SHA-256 of 1 MiB of zeros.
	p.until("its row has the digest", hashed("second.img", "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"))
	p.until("the end is announced", heard("second.img: completed"))
	p.until("the row of the first is unhashed", row("first.img")+"?.textContent.includes('unhashed')")

	p.marked("hashing")
	if got := eval[string](p, "document.getElementById('q').value"); got != "img" {
		t.Errorf("what was being typed is now %q", got)
	}

	// A hash by its button.
	p.clickOn("Hash", row("first.img")+"?.querySelector('[aria-label=\"Hash first.img\"]')")
	p.until("the first again", "["+"'queued','running'].includes("+jobOf("hashes", "first.img")+"?.dataset.status)")
	p.until("the button has done its work", "!"+row("first.img")+"?.querySelector('[aria-label=\"Hash first.img\"]')")
	p.clickOn("Cancel", jobOf("hashes", "first.img")+"?.querySelector('button')")
	p.until("cancelled", jobOf("hashes", "first.img")+"?.dataset.status === 'cancelled'")
}

func TestFetchJobs(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	for i := range 3 {
		s.call(t, "POST", "/catalog/entries", strings.NewReader(fmt.Sprintf(`{"image_url": %q, "sha_url": %q}`, fmt.Sprintf("%s/image-%d.img", pub.URL, i), pub.URL+"/SHA256SUMS")))
	}
	p := open(t, s)
	p.login()
	p.mark()
	p.hear()
	p.typeInto("#q", "img")
	status := func(i int, status string) string {
		return jobOf("downloads", fmt.Sprintf("image-%d.img", i)) + "?.dataset.status === " + js(status)
	}
	button := func(i int) string {
		name := fmt.Sprintf("image-%d.img", i)
		return row(name) + "?.querySelector('[aria-label=\"Fetch " + name + "\"]')"
	}
	for i := range 3 {
		p.clickOn("Fetch", button(i))
		p.until("the job", jobOf("downloads", fmt.Sprintf("image-%d.img", i)))
	}
	// Two at a time: they have half of the bytes and wait for the rest.
	p.until("two run", status(0, "running")+" && "+status(1, "running")+" && "+status(2, "queued"))
	p.until("bytes of a total", jobOf("downloads", "image-0.img")+"?.textContent.includes('of 24.0 MiB')")
	p.until("the rows say so", row("image-0.img")+"?.textContent.includes('fetching') && "+row("image-2.img")+"?.textContent.includes('fetch queued')")
	p.shots("images-fetching")

	// A refresh keeps the focus in place.
	cancel := jobOf("downloads", "image-1.img") + "?.querySelector('button')"
	eval[bool](p, "("+cancel+".focus(), true)")
	pub.release("image-0.img")
	p.until("the first is done", status(0, "completed"))
	p.until("the third runs", status(2, "running"))
	if !eval[bool](p, "document.activeElement === "+cancel) {
		t.Error("the focus is not where it was")
	}
	p.until("the row follows", row("image-0.img")+"?.textContent.includes('cached')")
	p.until("the bytes can be downloaded", row("image-0.img")+"?.querySelector('a[download]')")
	href := eval[string](p, row("image-0.img")+"?.querySelector('a[download]').getAttribute('href')")
	if href != "/images/"+digestOf("image-0.img")+"/image-0.img" {
		t.Errorf("the link is %q", href)
	}
	if got := s.call(t, "GET", href, nil); !bytes.Equal(got, imageOf("image-0.img")) {
		t.Errorf("the link leads to %d other bytes", len(got))
	}

	p.press(kb.Enter) // on the focused Cancel
	p.until("the second is cancelled", status(1, "cancelled"))
	p.until("it can be fetched again", button(1))
	pub.release("image-2.img")
	p.until("the third is done", status(2, "completed"))
	p.until("the end is announced", heard("image-2.img: completed"))
	p.until("the activity", has("#recent", "image-2.img"))

	p.marked("fetching")
	if got := eval[string](p, "document.getElementById('q').value"); got != "img" {
		t.Errorf("what was typed is now %q", got)
	}

	// If the rows have not changed, the answer has no body.
	p.until("the page is told of nothing new", "performance.getEntriesByType('resource').filter(e => e.name.includes('/ui/images/live')).at(-1)?.responseStatus === 204")

	// Removing fetched bytes asks first and keeps the entry.
	p.imagePage("image-0.img")
	p.mark()
	p.shots("image-fetched")
	p.clickOn("Drop", "document.querySelector('#about [id$=-uncache]')")
	p.until("the question", "document.getElementById('dialog').open && "+has("#confirm", "Drop the fetched bytes of image-0.img?"))
	p.clickOn("Drop", "document.querySelector('#confirm .btn-danger')")
	p.until("available again", has("#about", "available"))
	p.marked("dropping")
}

func TestDeleteAsksFirst(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	hostile := `"'<b>&ä #1%41+` + "\u202egmi.exe.img"
	shown := strings.ReplaceAll(hostile, "\u202e", "[U+202E]")
	s.call(t, "PUT", "/images/"+url.PathEscape(hostile), strings.NewReader("hostile"))
	s.call(t, "PUT", "/images/keep.img", strings.NewReader("keep"))
	s.call(t, "POST", "/catalog/entries", strings.NewReader(fmt.Sprintf(`{"image_url": %q}`, pub.URL+"/image-0.img")))
	p := open(t, s)
	p.login()
	p.mark()
	if n := eval[int](p, "document.querySelectorAll('#catalog tbody tr').length"); n != 3 {
		t.Errorf("%d rows, want 3", n)
	}
	p.imagePage(shown)
	p.mark()
	remove := "document.querySelector('#about .link-danger')"
	isOpen := "document.getElementById('dialog').open"
	for _, way := range []string{"Keep", "Escape"} {
		p.clickOn("Delete", remove)
		p.until("the question", isOpen+" && "+has("#confirm-title", "Delete "+shown+"?"))
		if way == "Keep" {
			p.shots("image-delete")
			// A refresh meanwhile does not close the dialog.
			s.call(t, "PUT", "/images/another.img", strings.NewReader("hostile")) // the same content
			p.until("the new name", has("#about", "another.img"))
			if !eval[bool](p, isOpen) {
				t.Error("the question is gone after the page was refreshed")
			}
			p.clickOn("Keep", "document.querySelector('#confirm [data-close]')")
		} else {
			p.press(kb.Escape)
		}
		p.until("the dialog is closed by "+way, "!"+isOpen)
		p.until("the focus is back", "document.activeElement.closest('#about')")
	}
	if s.call(t, "GET", "/images/"+url.PathEscape(hostile), nil); p.asked("POST /images/") != 0 {
		t.Error("something was deleted without an answer")
	}
	for _, name := range []string{shown, "another.img"} {
		p.clickOn("Delete", "[...document.querySelectorAll('#about .link-danger')].find(b => b.ariaLabel === "+js("Delete "+name)+")")
		p.until("the question", isOpen+" && document.getElementById('confirm')")
		p.clickOn("Delete", "document.querySelector('#confirm .btn-danger')")
		p.until("the good news", has("#status", name+" was deleted."))
	}
	p.until("the page says so", has("#about", "not in the catalog any more"))
	p.marked("deleting")

	// Several at once, from the rows.
	p.navigate("/ui/images")
	p.mark()
	pick := func(name string) string { return row(name) + "?.querySelector('.pick input')" }
	p.clickOn("its box", pick("image-0.img"))
	p.until("what can be done", has("#batch", "1 selected"))
	p.clickOn("the other box", pick("keep.img"))
	s.call(t, "PUT", "/images/later.img", strings.NewReader("later"))
	p.until("the new row", row("later.img"))
	if !eval[bool](p, "["+pick("image-0.img")+", "+pick("keep.img")+"].every(b => b.checked) && !"+pick("later.img")+".checked") {
		t.Error("a refresh has changed what is selected")
	}
	p.shots("images-selected")
	p.click("#batch-delete")
	p.until("the question names them", isOpen+" && "+has("#dialog", "Delete 2 images?")+" && "+has("#dialog", "keep.img"))
	p.shots("images-delete-selected")
	p.click("#delete-selected")
	p.until("both are gone", "!"+row("image-0.img")+" && !"+row("keep.img")+" && "+row("later.img"))
	p.until("the good news", has("#status", "2 deleted."))
	p.until("nothing is selected", "document.getElementById('batch').hidden")
	p.marked("deleting several")
}

// manifestOf is a catalog of n images that are known by URL.
func manifestOf(n int) string {
	var b strings.Builder
	b.WriteString("version = 1\n")
	for i := range n {
		fmt.Fprintf(&b, "[[images]]\nname = \"host-%04d.img\"\nsrc = \"https://example.org/host-%04d.img\"\nsize_bytes = %d\n", i, i, (i*7919%n+1)<<20)
		if i < 100 { // a manifest has at most 1 MiB
			fmt.Fprintf(&b, "sha256 = \"%064x\"\nformat = \"img\"\n", i+1)
		}
	}
	return b.String()
}

// TestActionsKeepThePlace checks that the view does not move, whatever is
// pressed and refreshed.
func TestActionsKeepThePlace(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	manifest := manifestOf(80)
	for _, width := range []int{1280, 992, 375} {
		manifest += fmt.Sprintf("[[images]]\nname = \"host-0040-w%d.img\"\nsrc = \"%s/missing-%d.img\"\nsha256 = \"%064x\"\nformat = \"img\"\nsize_bytes = 1024\n", width, pub.URL, width, width)
	}
	s.call(t, "PUT", "/catalog.toml", strings.NewReader(manifest))
	for _, name := range []string{"host-0040-a.img", "host-0040-d.img"} {
		s.call(t, "POST", "/catalog/entries", strings.NewReader(fmt.Sprintf(`{"image_url": %q}`, pub.URL+"/"+name)))
	}
	for _, name := range []string{"host-0040-b.img", "host-0040-c.img"} {
		s.call(t, "PUT", "/images/"+name, strings.NewReader(name))
	}
	p := open(t, s)
	p.login()
	p.until("every image is hashed and known", "document.querySelectorAll('#running .job').length === 0")
	button := func(name, label string) string {
		return row(name) + fmt.Sprintf("?.querySelector('[aria-label^=%s]')", js(label))
	}
	// keeps calls act on the row in the middle of the view. Every visible row
	// stays in place, down to one that is removed.
	keeps := func(what, middle string, act func(), after string) {
		t.Helper()
		p.place(what, middle)
		rows := "[...document.querySelectorAll('#catalog tbody tr')].map(r => [r.querySelector('[data-name]').title, r.getBoundingClientRect().top])"
		eval[bool](p, "(window.places = "+rows+".filter(([, top]) => top >= 0 && top < innerHeight), true)")
		act()
		p.until(what+" shows", after)
		moved := `(() => {
			const now = new Map(` + rows + `);
			const gone = places.findIndex(([name]) => !now.has(name));
			return places.slice(0, gone < 0 ? places.length : gone).map(([name, top]) => [name, now.get(name) - top])
				.filter(([, by]) => Math.abs(by) > 2).map(String);
		})()`
		if got := eval[[]string](p, moved); len(got) > 0 {
			t.Errorf("%s moves rows, by pixels: %q", what, got)
		}
		if id := eval[string](p, "document.activeElement.closest('tr')?.id ?? document.activeElement.outerHTML.slice(0, 80)"); !strings.HasPrefix(id, "r") {
			t.Errorf("after %s the focus is not in the rows: %s", what, id)
		}
	}
	keeps("Fetch", button("host-0040-a.img", "Fetch"), func() { p.clickOn("Fetch", button("host-0040-a.img", "Fetch")) }, row("host-0040-a.img")+"?.textContent.includes('fetching')")
	p.size(375, 900)
	keeps("Fetch on a phone", button("host-0040-d.img", "Fetch"), func() { p.clickOn("Fetch", button("host-0040-d.img", "Fetch")) }, row("host-0040-d.img")+"?.textContent.includes('fetching')")
	p.size(1280, 900)
	keeps("the end of the fetch", row("host-0040-a.img"), func() { pub.release("host-0040-a.img") }, button("host-0040-a.img", "Download"))
	for _, width := range []int64{1280, 992, 375} {
		p.size(width, 900)
		name := fmt.Sprintf("host-0040-w%d.img", width)
		keeps(fmt.Sprintf("a warning at %d pixels", width), row(name), func() {
			s.call(t, "POST", "/catalog/downloads", strings.NewReader(fmt.Sprintf(`{"name": %q}`, name)))
		}, row(name)+"?.querySelector('.warning')")
	}
	p.size(1280, 900)
	keeps("another's upload", row("host-0040-a.img"), func() { s.call(t, "PUT", "/images/about.img", strings.NewReader("about")) }, row("about.img"))
	keeps("another's delete", row("host-0040-b.img"), func() { s.call(t, "DELETE", "/images/host-0040-b.img", nil) }, "!"+row("host-0040-b.img"))
	pick := func(name string) string { return row(name) + "?.querySelector('.pick input')" }
	keeps("a selection", pick("host-0040-c.img"), func() { p.clickOn("its box", pick("host-0040-c.img")) }, has("#batch", "1 selected"))

	// Without scripts, an action returns to its row and to the search.
	p.scripts(false)
	p.navigate("/ui/images?sort=-name")
	p.clickOn("Fetch", button("host-0040-w992.img", "Retry"))
	inView := "document.readyState === 'complete' && (r => r.top >= -1 && r.bottom <= innerHeight)(" + row("host-0040-w992.img") + ".getBoundingClientRect())"
	p.until("the row is in view", "location.search === '?sort=-name' && "+inView)
}

func TestManyRows(t *testing.T) {
	t.Parallel()
	s := start(t)
	const all = 10_000
	s.call(t, "PUT", "/catalog.toml", strings.NewReader(manifestOf(all)))
	p := open(t, s)
	p.login()
	p.mark()
	rows := "document.querySelectorAll('#catalog tbody tr').length"
	first := "document.querySelector('#catalog tbody tr [data-name]').title"
	p.until("the number of all", has("#total", "10,000 images"))
	if n := eval[int](p, rows); n != 100 {
		t.Errorf("the page sends %d rows, want 100", n)
	}
	p.shot("images-many-rows")
	// The catalog is what is seen first.
	inSight := "[...document.querySelectorAll('#catalog tbody tr')].filter(r => r.getBoundingClientRect().bottom <= innerHeight).length"
	for _, size := range []struct {
		width, height int64
		least         int
	}{{1280, 900, 12}, {375, 812, 5}} {
		p.size(size.width, size.height)
		if n := eval[int](p, inSight); n < size.least {
			t.Errorf("%d rows are in sight at %d x %d, want %d", n, size.width, size.height, size.least)
		}
	}
	p.size(1280, 900)

	// Search follows typing, which is not interrupted.
	p.typeInto("#q", "host-0042")
	p.until("one row", rows+" === 1 && "+first+" === 'host-0042.img'")
	if !eval[bool](p, "document.activeElement.id === 'q' && location.search.includes('q=host-0042')") {
		t.Error("the search has lost the focus, or the address does not say what is shown")
	}
	n := p.asked("GET /ui/images/live")
	s.call(t, "PUT", "/images/host-0042.iso", strings.NewReader("x"))
	p.until("refreshing keeps to the search", rows+" === 2 && "+has("#state-all", "10,001"))
	if p.asked("GET /ui/images/live") == n {
		t.Error("the page was not refreshed")
	}
	p.typeInto("#q", "no such image")
	p.until("nothing is found", has("#catalog", "Nothing matches"))
	p.typeInto("#q", "HOST-01 example.org")
	p.until("some rows", has("#total", "100 images"))

	// Sorting, by the heads and by the list.
	p.click("#sort-size")
	p.until("sorted by size", "document.querySelector('th:has(#sort-size)').ariaSort === 'ascending' && document.getElementById('sort').value === 'size'")
	smallest := eval[string](p, first)
	p.click("#sort-size")
	p.until("the other way", "document.querySelector('th:has(#sort-size)').ariaSort === 'descending' && "+first+" !== "+js(smallest))
	sizes := eval[[]string](p, "[...document.querySelectorAll('#catalog td[data-label=Size] data')].map(d => d.value)")
	last := int64(1 << 62)
	for _, v := range sizes {
		var size int64
		if _, err := fmt.Sscanf(strings.ReplaceAll(v, ",", ""), "%d bytes", &size); err != nil || size > last {
			t.Fatalf("not sorted by size: %q (%v)", sizes, err)
		}
		last = size
	}
	eval[bool](p, "(document.getElementById('sort').focus(), true)")
	p.press("n") // the first option with that letter: Name, A to Z
	p.until("sorted by name", "document.querySelector('th:has(#sort-name)').ariaSort === 'ascending'")

	// Pages.
	p.marked("searching and sorting")
	p.navigate("/ui/images")
	p.mark()
	seen := map[string]bool{}
	for page := 1; ; page++ {
		for _, name := range eval[[]string](p, "[...document.querySelectorAll('#catalog tbody [data-name]')].map(e => e.title)") {
			if seen[name] {
				t.Errorf("%s is on two pages", name)
			}
			seen[name] = true
		}
		if !eval[bool](p, "!!document.getElementById('page-next')") {
			break
		}
		was := eval[string](p, first)
		p.click("#page-next")
		p.until(fmt.Sprintf("page %d", page+1), first+" !== "+js(was))
	}
	if len(seen) != all+1 {
		t.Errorf("the pages have %d names, want %d", len(seen), all+1)
	}
	p.click("#page-first")
	p.until("the first page", first+" === 'host-0000.img'")
	p.marked("paging")

	// The address is that of the current view: going back and reloading work.
	p.navigate("/ui/images?q=host-9999&sort=-name")
	p.until("the address alone", rows+" === 1 && "+first+" === 'host-9999.img' && document.getElementById('q').value === 'host-9999'")
}

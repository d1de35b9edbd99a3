package browser

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/chromedp/chromedp/kb"
)

func TestLogIn(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`network: .* 401 .*/ui/(login|images/live)`)
	p.allow(`htmx:responseError`)
	p.navigate("/ui/events?failed=true")
	p.until("the log-in page", "location.pathname === '/ui/login'")
	if !eval[bool](p, "document.activeElement.id === 'password'") {
		t.Error("the password does not have the focus")
	}
	p.shots("login")

	p.typeInto("#password", "wrong password")
	p.press(kb.Enter)
	p.until("the refusal", has("#login-error", "not the operator's password"))
	p.shot("login-refused")

	p.typeInto("#password", password)
	p.click("form button")
	p.until("the page that was wanted", "location.pathname + location.search === '/ui/events?failed=true'")
	p.until("the refusal among the events", has("tbody", "log-in failed"))

	p.clickOn("Log out", "[...document.querySelectorAll('header button')].find(b => b.textContent === 'Log out')")
	p.until("the log-in page", "location.pathname === '/ui/login'")
	p.navigate("/ui/images")
	p.until("no way in after logging out", "location.pathname === '/ui/login'")

	// A foreign link must not redirect to another host after the log-in.
	p.navigate("/ui/login?next=" + "https%3A%2F%2Fexample.org%2F")
	p.typeInto("#password", password)
	p.press(kb.Enter)
	p.until("the page of images", "location.pathname === '/ui/images' && document.getElementById('live')")

	// A page whose session ends elsewhere must show that, and logging in leads back to it.
	p.navigate("/ui/images?sort=-name&state=cached")
	eval[bool](p, "(fetch('/ui/logout', { method: 'POST' }), true)")
	p.until("the log-in page", "location.pathname === '/ui/login'")
	p.typeInto("#password", password)
	p.press(kb.Enter)
	p.until("where it was", "location.pathname + location.search === '/ui/images?sort=-name&state=cached'")
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	for _, want := range []string{"Nothing here yet", ".img.zst", "s3://images/", "aws --endpoint-url " + s.S3 + " s3 cp"} {
		if text := eval[string](p, "document.getElementById('catalog').textContent"); !strings.Contains(text, want) {
			t.Errorf("the empty catalog does not say %q:\n%s", want, text)
		}
	}
	if headings := eval[[]string](p, "[...document.querySelectorAll('h1, h2')].map(h => h.textContent)"); strings.Join(headings, "|") !=
		"Images|Nothing here yet|Recent activity|Add image" {
		t.Errorf("the page's parts are %q", headings)
	}
	p.shots("images-empty")

	copied := "document.querySelector('#catalog [data-copy]').textContent === 'Copied'"
	p.click("#catalog [data-copy]")
	p.until("the command is copied", copied)
	p.until("the button is as it was", "document.querySelector('#catalog [data-copy]').textContent === 'Copy'")
	// Over plain HTTP from another machine, the clipboard is not available.
	eval[bool](p, `(Object.defineProperty(navigator, 'clipboard', { value: undefined }),
		document.addEventListener('copy', () => { window.copied = document.activeElement.value; }), true)`)
	p.click("#catalog [data-copy]")
	p.until("the command is copied in the old way", copied+" && window.copied.startsWith('aws --endpoint-url "+s.S3+" s3 cp')")
}

// TestHiddenPage checks that a hidden page sends no requests.
func TestHiddenPage(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	const live = "GET /ui/images/live"
	look := func(state string) bool { // whether the page sends a request at once
		return eval[bool](p, "(window.asking = false, Object.defineProperty(document, 'visibilityState', { value: '"+state+"', configurable: true }), document.dispatchEvent(new Event('visibilitychange')), asking)")
	}
	eval[bool](p, "(document.addEventListener('htmx:beforeRequest', () => { window.asking = true; }), true)")
	p.until("the page refreshes", "performance.getEntriesByType('resource').filter(e => e.name.includes('/ui/images/live')).length >= 2")
	look("hidden")
	before := p.asked(live)
	began := eval[float64](p, "performance.now()")
	p.until("three refreshes are due", "performance.now() > "+strconv.FormatFloat(began+6500, 'f', 0, 64))
	if n := p.asked(live); n > before+1 { // one may have been in flight
		t.Errorf("%d requests by a hidden page", n-before)
	}
	s.call(t, "PUT", "/images/meanwhile.img", strings.NewReader("x"))
	if !look("visible") {
		t.Error("a page that is seen again does not refresh at once")
	}
	p.until("the page is up to date", row("meanwhile.img"))
}

// TestKeyboard does everything without a mouse.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	s.call(t, "PUT", "/images/keep.img", strings.NewReader("keep"))
	p := open(t, s)
	p.navigate("/ui/login")
	p.tabTo("the password", "document.getElementById('password')")
	p.press(password + kb.Enter)
	p.until("the page of images", "location.pathname === '/ui/images' && document.getElementById('live')")
	p.mark()

	p.press(kb.Tab)
	if !eval[bool](p, "document.activeElement.classList.contains('skip') && document.activeElement.getBoundingClientRect().width > 50") {
		t.Error("the first Tab does not show the way to the content")
	}
	p.press(kb.Enter)
	p.until("the content has the focus", "document.activeElement.id === 'main'")

	p.tabTo("Add image", "document.getElementById('add-open')")
	p.press(kb.Enter)
	p.until("the dialog", "document.activeElement.id === 'image-url'")
	p.press(pub.URL + "/image-3.img")
	p.until("what it is", has("#found", "image-3.img"))
	p.tabTo("fetching at once", "document.getElementById('fetch-now')")
	p.press(" ")
	p.press(kb.Enter)
	p.until("the row", row("image-3.img"))
	p.until("the focus is back", "document.activeElement.id === 'add-open'")
	p.tabTo("its box", row("image-3.img")+"?.querySelector('.pick input')")
	p.press(" ")
	p.until("what can be done", has("#batch", "1 selected"))
	p.tabTo("Fetch", "document.getElementById('batch-fetch')")
	p.press(kb.Enter)
	p.until("it is fetched", jobOf("downloads", "image-3.img")+"?.dataset.status === 'running'")
	pub.release("image-3.img")
	p.until("it is cached", row("image-3.img")+"?.textContent.includes('cached')")
	p.tabTo("the search", "document.getElementById('q')")
	p.press("image-3")
	p.until("one row", "document.querySelectorAll('#catalog tbody tr').length === 1")
	p.tabTo("the sort by size", "document.getElementById('sort-size')")
	p.press(kb.Enter)
	p.until("sorted", "document.querySelector('th:has(#sort-size)').ariaSort === 'ascending'")
	if !eval[bool](p, "document.activeElement.id === 'sort-size'") {
		t.Error("sorting took the focus away")
	}
	for _, outline := range []string{"outlineStyle", "outlineWidth"} {
		if v := eval[string](p, "getComputedStyle(document.activeElement)."+outline); v == "none" || v == "0px" {
			t.Errorf("what has the focus cannot be seen: %s is %s", outline, v)
		}
	}

	p.tabTo("its page", row("image-3.img")+"?.querySelector('[data-name]')")
	p.press(kb.Enter)
	p.until("its page", "document.readyState === 'complete' && document.getElementById('about')")
	p.mark()
	p.tabTo("what is known", "document.querySelector('#edit-fold summary')")
	p.press(kb.Enter)
	p.tabTo("the title", "document.getElementById('edit-title')")
	p.press("By keys" + kb.Enter)
	p.until("the title", has("#about h1", "By keys"))
	p.tabTo("Delete", "document.querySelector('#about .link-danger')")
	p.press(kb.Enter)
	p.until("the question", "document.getElementById('dialog').open")
	if !eval[bool](p, "document.activeElement.hasAttribute('data-close')") {
		t.Error("Enter would delete at once")
	}
	p.press(kb.Tab)
	if !eval[bool](p, "document.activeElement.textContent === 'Delete'") {
		t.Error("the next Tab does not lead to Delete")
	}
	p.press(" ")
	p.until("it is gone", has("#about", "not in the catalog any more"))
	p.marked("the keyboard")
}

// TestNames checks names, labels and column heads for screen readers.
func TestNames(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	s.call(t, "PUT", "/images/here.img", strings.NewReader("here"))
	s.call(t, "POST", "/catalog/entries", strings.NewReader(`{"image_url": "`+pub.URL+`/image-0.img"}`))
	p := open(t, s)
	p.login()
	for _, path := range []string{"/ui/images", "/ui/events", "/ui/images/confirm?what=image&key=here.img", "/ui/images/here.img", "/ui/images/image-0.img", "/ui/add"} {
		p.navigate(path)
		p.until("the page", "document.querySelector('main h1')")
		for what, script := range map[string]string{
			"fields without a label":  "[...document.querySelectorAll('input:not([type=hidden]), select, textarea')].filter(e => !e.labels?.length && !e.ariaLabel).map(e => e.outerHTML)",
			"buttons without a name":  "[...document.querySelectorAll('button, a[href]')].filter(e => !(e.ariaLabel || e.textContent.trim())).map(e => e.outerHTML)",
			"buttons of equal names":  "[...document.querySelectorAll('tbody button')].map(e => e.ariaLabel || e.textContent).filter((n, i, all) => all.indexOf(n) !== i)",
			"heads without a scope":   "[...document.querySelectorAll('th:not([scope])')].map(e => e.outerHTML)",
			"elements of equal ids":   "[...document.querySelectorAll('[id]')].map(e => e.id).filter((n, i, all) => all.indexOf(n) !== i)",
			"progress without a name": "[...document.querySelectorAll('progress:not([aria-label])')].map(e => e.outerHTML)",
			"styles in attributes":    "[...document.querySelectorAll('[style]')].map(e => e.outerHTML)",
			"pictures without alt":    "[...document.querySelectorAll('img:not([alt])')].map(e => e.outerHTML)",
			"a page without language": "[...document.querySelectorAll('html:not([lang])')].map(e => e.outerHTML)",
		} {
			if found := eval[[]string](p, script); len(found) > 0 {
				t.Errorf("%s has %s: %q", path, what, found)
			}
		}
		if title := eval[string](p, "document.title"); !strings.HasSuffix(title, " · imageroot") {
			t.Errorf("the title of %s is %q", path, title)
		}
	}
}

// TestNarrow fits names of the greatest length, and other wide parts, on a
// phone.
func TestNarrow(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	long := strings.Repeat("x", 251) + ".img"
	s.call(t, "PUT", "/images/"+long, strings.NewReader("long"))
	s.call(t, "POST", "/catalog/entries", strings.NewReader(`{"image_url": "`+pub.URL+`/`+strings.Repeat("y", 200)+`.img?token=`+strings.Repeat("z", 300)+`"}`))
	s.call(t, "POST", "/catalog/downloads", strings.NewReader(`{"name": "`+strings.Repeat("y", 200)+`.img"}`))
	s.drop(t, "catalog.toml", 10) // zeros are not TOML
	s.drop(t, strings.Repeat("w", 240)+".tar.gz", 10)
	p := open(t, s)
	p.login()
	p.until("the manifest is complained about", has("#catalog", "The manifest has an error"))
	p.until("a job", jobOf("downloads", strings.Repeat("y", 200)+".img"))
	p.until("what is not an image", has("#others summary", "1 file or folder here is not an image"))
	p.click("#others summary")
	p.until("why", has("#others", "extract it"))
	p.shots("images-long-names")
	p.imagePage(long)
	p.shots("image-long-name")
	p.size(375, 800)
	p.clickOn("Delete", "document.querySelector('#about .link-danger')")
	p.until("the question", "document.getElementById('dialog').open && document.getElementById('confirm')")
	if w := eval[int](p, "document.documentElement.scrollWidth"); w > 375 {
		t.Errorf("the question is %d pixels wide", w)
	}
	p.shot("images-delete-narrow")
	p.press(kb.Escape)
	p.navigate("/ui/events")
	p.until("the events", "document.querySelector('tbody tr')")
	eval[bool](p, "(document.querySelectorAll('details').forEach(d => { d.open = true; }), true)")
	p.shots("events-long-names")
}

func TestEvents(t *testing.T) {
	t.Parallel()
	s := start(t)
	for i := range 60 {
		s.call(t, "PUT", "/images/event.img", strings.NewReader(strings.Repeat("x", i+1)))
	}
	s.call(t, "DELETE", "/images/event.img", nil)
	p := open(t, s)
	p.login()
	p.clickOn("All activity", "document.querySelector('a[href=\"/ui/events?subject_kind=image\"]')")
	p.until("the timeline", "location.pathname === '/ui/events' && document.querySelector('tbody tr')")
	p.shots("events")
	p.size(375, 812)
	p.until("the filters are folded", "!document.getElementById('filters').open")
	if n := eval[int](p, "[...document.querySelectorAll('tbody tr')].filter(r => r.getBoundingClientRect().bottom <= innerHeight).length"); n < 4 {
		t.Errorf("%d events are in sight on a phone, want 4", n)
	}
	p.click("#filters summary")
	p.until("they open", "document.getElementById('kind').checkVisibility()")
	p.size(1280, 900)
	p.until("they are open where there is room", "document.getElementById('filters').open && !document.querySelector('#filters summary').checkVisibility()")
	rows := "document.querySelectorAll('tbody tr').length"
	first := eval[int](p, rows)
	p.click("#older")
	p.until("the older ones", fmt.Sprintf("location.search.includes('before=') && %s === %d", rows, 61-first))
	p.navigate("/ui/events")
	p.until("the log-in too", has("tbody", "logged in"))
	eval[bool](p, "(document.getElementById('kind').focus(), true)")
	p.press("deleted")
	p.press(kb.Enter)
	p.clickOn("Filter", "document.querySelector('form[action=\"/ui/events\"] button')")
	p.until("only deletes", rows+" === 1 && "+has("tbody", "deleted event.img"))
	p.typeInto("#source_ip", "203.0.113.9")
	p.press(kb.Enter)
	p.until("nothing passes", has("main", "No event matches"))
	p.shot("events-nothing")
	p.clickOn("Show everything", "[...document.querySelectorAll('main a')].find(a => a.textContent === 'Show everything')")
	p.until("everything", fmt.Sprintf("location.search === '' && %s === %d", rows, first))
}

// TestWithoutScripts uses the page's links and forms without scripts.
func TestWithoutScripts(t *testing.T) {
	t.Parallel()
	s, pub := start(t), publish(t)
	s.call(t, "PUT", "/images/old.img", strings.NewReader("old"))
	p := open(t, s)
	p.allow(`network: .* (400|404) `)
	p.scripts(false)
	p.login()
	if !eval[bool](p, "!document.documentElement.classList.contains('js')") {
		t.Fatal("scripts run")
	}
	p.shot("images-without-scripts")
	p.click("#add-open")
	p.until("uploading is explained", "location.pathname === '/ui/add' && "+has("main", "needs JavaScript")+" && "+has("main", "aws --endpoint-url"))
	p.shot("add-without-scripts")

	p.typeInto("#image-url", pub.URL+"/missing.img")
	p.press(kb.Enter)
	p.until("the error", has("#add-result", "404"))
	if got := eval[string](p, "document.getElementById('image-url').value"); got != pub.URL+"/missing.img" {
		t.Errorf("after the error the field has %q", got)
	}
	p.typeInto("#image-url", pub.URL+"/image-0.img")
	eval[bool](p, "(document.getElementById('add-more').open = true)")
	p.typeInto("#sha-url", pub.URL+"/SHA256SUMS")
	p.click("#add-url button:not([type=button])")
	p.until("the page", "location.pathname.startsWith('/ui/') && "+has("#status", "added"))
	p.navigate("/ui/images")
	p.until("the row", "location.pathname === '/ui/images' && "+row("image-0.img"))

	p.clickOn("Fetch", row("image-0.img")+"?.querySelector('[aria-label^=Fetch]')")
	p.until("the job", jobOf("downloads", "image-0.img"))
	p.clickOn("Cancel", jobOf("downloads", "image-0.img")+"?.querySelector('button')")
	p.until("cancelled", jobOf("downloads", "image-0.img")+"?.dataset.status === 'cancelled'")

	p.typeInto("#q", "old")
	p.press(kb.Enter)
	p.until("one row", "document.querySelectorAll('#catalog tbody tr').length === 1")
	p.click("#sort-size")
	p.until("sorted, and still searched", "document.querySelector('th:has(#sort-size)').ariaSort === 'ascending' && document.querySelectorAll('#catalog tbody tr').length === 1")

	p.imagePage("old.img")
	p.shot("image-without-scripts")
	p.clickOn("Delete", "document.querySelector('#about .link-danger')")
	p.until("a page that asks", "location.pathname === '/ui/images/confirm' && "+has("#confirm-title", "Delete old.img?"))
	p.shot("confirm-without-scripts")
	p.clickOn("Delete", "document.querySelector('#confirm .btn-danger')")
	p.until("the catalog without it", "location.pathname === '/ui/images' && !"+row("old.img"))
	p.until("the good news", has("#status", "old.img was deleted"))
	p.until("everything", "location.search === '' && "+row("image-0.img"))

	p.imagePage("image-0.img")
	p.clickOn("Delete", "document.querySelector('#about .link-danger')")
	p.until("a page that asks", "location.pathname === '/ui/images/confirm'")
	p.clickOn("Delete", "document.querySelector('#confirm .btn-danger')")
	p.until("the empty catalog", has("#catalog", "Nothing here yet"))

	p.navigate("/images/none.img")
	p.until("a page that explains", has("main", "no image of this name"))
	p.shot("problem")
	p.clickOn("Log out", "document.querySelector('header button')")
	p.until("the log-in page", "location.pathname === '/ui/login'")
}

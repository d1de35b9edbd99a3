// Package browser uses the pages of the real binary in Chromium, as people do:
// with a mouse, a keyboard, a phone's width, in dark mode, and without scripts.
//
// Every page that a test opens is observed: an error in the console, a
// violation of the Content-Security-Policy, or a request to another host fails
// the test. Screenshots go to the directory of -screenshots.
package browser

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"imageroot/test/runner"
)

const (
	password = "correct horse battery staple"
	token    = "browser-token-0123456789abcdef"
	// patience is the longest wait for a condition of a page. It is far more
	// than an idle machine needs, so that a busy one passes.
	patience = 2 * time.Minute
)

var (
	screenshots = flag.String("screenshots", "../../out/screenshots", "directory for screenshots")
	chromium    = flag.String("chromium", "/usr/bin/chromium", "path of Chromium")
	axeCore     = flag.String("axe", "../../tools/bin/axe.min.js", "axe-core, which make axe downloads")

	binary  string
	browser context.Context // of chromedp; each page has a child of it
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "browser:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if _, err := exec.LookPath(*chromium); err != nil {
		return 0, fmt.Errorf("Chromium is needed by these tests and is not at %s: apt-get install chromium, or say where it is with -chromium", *chromium)
	}
	if err := os.MkdirAll(*screenshots, 0o755); err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "imageroot-browser-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	build, cancelBuild := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancelBuild()
	if binary, err = runner.Build(build, dir); err != nil {
		return 0, err
	}
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath(*chromium), chromedp.UserDataDir(filepath.Join(dir, "profile")), chromedp.WindowSize(1280, 900),
		chromedp.Flag("headless", "new"),
	}
	for _, flag := range []string{
		"no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "no-default-browser-check", "disable-background-networking",
		"disable-component-update", "disable-sync", "disable-extensions", "disable-dev-shm-usage", "disable-default-apps", "hide-scrollbars",
		// A page in the background counts as visible, too.
		"disable-background-timer-throttling", "disable-backgrounding-occluded-windows", "disable-renderer-backgrounding",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	defer cancelAllocator()
	ctx, cancel := chromedp.NewContext(allocator)
	defer cancel()
	browser = ctx
	if err := chromedp.Do(ctx); err != nil {
		return 0, fmt.Errorf("Chromium does not start: %w", err)
	}
	return m.Run(), nil
}

// A Server is the real binary, running over a fresh directory. It is killed
// when the test ends.
type Server struct {
	*runner.Process
	Data string

	launch runner.Options
}

// start starts the binary. It may reach publishers on loopback.
func start(t *testing.T, env ...string) *Server {
	t.Helper()
	s := &Server{Data: filepath.Join(t.TempDir(), "data")}
	s.launch = runner.Options{
		Binary: binary,
		Args:   []string{"--listen", "127.0.0.1:0", "--s3-listen", "127.0.0.1:0", "--data", s.Data},
		Env: append([]string{
			"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "TMPDIR=" + os.TempDir(), "IMAGEROOT_ALLOW_NET=loopback",
			"IMAGEROOT_PASSWORD=" + password, "IMAGEROOT_TOKEN=" + token,
		}, env...),
	}
	s.run(t)
	// A page continues after a restart only if the address is the same.
	s.launch.Args[1] = strings.TrimPrefix(s.Pages, "http://")
	t.Cleanup(func() {
		if err := s.Kill(); err != nil {
			t.Errorf("kill: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the server:\n%s", tail(s.Log()))
		}
		for _, bad := range []string{"panic:", "goroutine 1 [", password, token} {
			if strings.Contains(s.Log(), bad) {
				t.Errorf("the log has %q:\n%s", bad, tail(s.Log()))
			}
		}
	})
	return s
}

func (s *Server) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := runner.Start(ctx, s.launch)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	s.Process = p
}

// call sends a request with the token.
func (s *Server) call(t *testing.T, method, path string, body io.Reader) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.Pages+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode >= 400 {
		t.Fatalf("%s %s: %s, %v: %s", method, path, res.Status, err, data)
	}
	return data
}

// drop puts a file of zeros into the gateway's directory, as cp does.
func (s *Server) drop(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(s.Data, "images", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func tail(s string) string {
	const most = 6 << 10
	if len(s) <= most {
		return s
	}
	return "[...]" + s[len(s)-most:]
}

// A Page is a tab in a browser profile of its own.
type Page struct {
	t   *testing.T
	s   *Server
	ctx context.Context

	mu       sync.Mutex
	problems []string
	allowed  []*regexp.Regexp
	requests []string
	dialogs  []string // native ones: "leave the page?"
}

// open opens a tab in a new profile, without cookies or cache.
func open(t *testing.T, s *Server) *Page {
	t.Helper()
	return openIn(t, s, browser, chromedp.WithNewBrowserContext())
}

// tab opens another tab of the same profile.
func (p *Page) tab() *Page {
	p.t.Helper()
	return openIn(p.t, p.s, p.ctx)
}

func openIn(t *testing.T, s *Server, parent context.Context, options ...chromedp.ContextOption) *Page {
	t.Helper()
	p := &Page{t: t, s: s}
	p.allow("422 .*/catalog/sources$") // about half of a URL, where typing it pauses on a busy machine
	ctx, cancel := chromedp.NewContext(parent, append(options, chromedp.WithListener(p.listen))...)
	p.ctx = ctx
	t.Cleanup(func() {
		if t.Failed() {
			p.shot("failed-" + strings.ReplaceAll(t.Name(), "/", "-"))
		}
		cancel()
		p.check()
	})
	// The tab lives as long as the context of the first action, so that context
	// must not be a shorter one.
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("open a tab: %v", err)
	}
	command(p, network.Enable, network.EnableParams{})
	command(p, log.Enable, cdp.Empty{})
	// Tests run side by side, and each page is the one that has the focus.
	command(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	p.size(1280, 900)
	return p
}

// listen records events that fail the test on any page.
func (p *Page) listen(ev any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		p.problems = append(p.problems, fmt.Sprintf("exception: %s", ev.ExceptionDetails.Text))
		if ev.ExceptionDetails.Exception != nil {
			p.problems = append(p.problems, ev.ExceptionDetails.Exception.Description)
		}
	case *runtime.EventConsoleAPICalled:
		if ev.Type == "error" || ev.Type == "warning" || ev.Type == "assert" {
			text := ""
			for _, a := range ev.Args {
				text += " " + a.Description + string(a.Value)
			}
			p.problems = append(p.problems, fmt.Sprintf("console.%s:%s", ev.Type, text))
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level == "error" || ev.Entry.Level == "warning" {
			p.problems = append(p.problems, fmt.Sprintf("%s: %s %s", ev.Entry.Source, ev.Entry.Text, ev.Entry.URL))
		}
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, ev.Request.Method+" "+ev.Request.URL)
		if u, err := url.Parse(ev.Request.URL); err != nil || "http://"+u.Host != p.s.Pages && u.Scheme != "data" {
			p.problems = append(p.problems, "request to another host: "+ev.Request.URL)
		}
	case *page.EventJavascriptDialogOpening:
		p.dialogs = append(p.dialogs, string(ev.Type))
		go func() { // a listener must not wait
			_, _ = chromedp.Call(p.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
		}()
	}
}

// allow accepts problems that a test causes.
func (p *Page) allow(pattern string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.allowed = append(p.allowed, regexp.MustCompile(pattern))
}

func (p *Page) check() {
	p.mu.Lock()
	defer p.mu.Unlock()
problems:
	for _, problem := range p.problems {
		for _, a := range p.allowed {
			if a.MatchString(problem) {
				continue problems
			}
		}
		p.t.Errorf("on the page: %s", problem)
	}
}

// asked returns the number of requests that began with prefix ("GET
// /ui/images?").
func (p *Page) asked(prefix string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	method, path, _ := strings.Cut(prefix, " ")
	n := 0
	for _, r := range p.requests {
		if strings.HasPrefix(r, method+" "+p.s.Pages+path) {
			n++
		}
	}
	return n
}

// do runs actions within patience.
func (p *Page) do(what string, steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, steps...); err != nil {
		p.t.Fatalf("%s: %v", what, err)
	}
}

// eval returns the value of a script.
func eval[T any](p *Page, script string) T {
	p.t.Helper()
	v, err := try[T](p, script)
	if err != nil {
		p.t.Fatalf("%s: %v", script, err)
	}
	return v
}

func try[T any](p *Page, script string) (T, error) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](script))
}

// until waits until a script is true, across navigations.
func (p *Page) until(what, script string) {
	p.t.Helper()
	tick := time.NewTicker(30 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		ok, err := try[bool](p, "!!("+script+")")
		if ok && err == nil {
			return
		}
		if time.Now().After(deadline) {
			text, _ := try[string](p, "document.body.innerText")
			p.t.Fatalf("%s: not within %v (%s; %v). The page says:\n%s", what, patience, script, err, tail(text))
		}
		<-tick.C
	}
}

// js quotes a Go string for JavaScript.
func js(s string) string {
	data, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always encodes
	}
	return string(data)
}

// has returns a script that is true if an element's text has s.
func has(selector, s string) string {
	return fmt.Sprintf("document.querySelector(%s)?.textContent.includes(%s)", js(selector), js(s))
}

// hear remembers what is announced on this page from now on. A later announcement replaces an earlier one.
func (p *Page) hear() {
	p.t.Helper()
	eval[bool](p, `window.heard = [];
		new MutationObserver(() => heard.push(document.getElementById('announce').textContent))
			.observe(document.getElementById('announce'), { childList: true, characterData: true, subtree: true });
		true`)
}

// heard returns a script that is true if s was announced since [Page.hear].
func heard(s string) string { return fmt.Sprintf("heard.some(t => t.includes(%s))", js(s)) }

// row returns a script for the row of an image.
func row(name string) string {
	return fmt.Sprintf("[...document.querySelectorAll('#catalog tbody tr')].find(r => r.querySelector('[data-name]')?.title === %s)", js(name))
}

// hashed returns a script that is true if the row of an image leads to the page of a digest.
func hashed(name, sha256 string) string {
	return row(name) + "?.querySelector('[data-name]').pathname === '/ui/images/" + sha256 + "'"
}

// jobOf returns a script for the newest job of a name, which is one of the "downloads" or
// of the "hashes".
func jobOf(list, name string) string {
	return fmt.Sprintf("[...document.querySelectorAll('.job')].find(j => j.dataset.name === %s && (j.dataset.src !== '') === %v)", js(name), list == "downloads")
}

// openAdd opens the dialog that adds images.
func (p *Page) openAdd() {
	p.t.Helper()
	p.click("#add-open")
	p.until("the dialog to add", "document.getElementById('add').open")
}

// imagePage opens the page of an image, by the link in its row.
func (p *Page) imagePage(name string) {
	p.t.Helper()
	p.clickOn("the link to "+name, row(name)+"?.querySelector('[data-name]')")
	p.until("the page of "+name, "document.readyState === 'complete' && document.getElementById('about')")
}

func (p *Page) navigate(path string) {
	p.t.Helper()
	p.do("open "+path, chromedp.Navigate(p.s.Pages+path))
	p.loaded()
}

// loaded waits until the page is loaded completely: before that, a visible
// element may not work yet, and may still move.
func (p *Page) loaded() {
	p.t.Helper()
	p.until("the page is loaded", "document.readyState === 'complete'")
}

// login logs in and opens the page of images.
func (p *Page) login() {
	p.t.Helper()
	p.navigate("/ui/login")
	p.typeInto("#password", password)
	p.press(kb.Enter)
	p.until("the page of images", "document.readyState === 'complete' && location.pathname === '/ui/images' && document.getElementById('catalog')")
}

// clickOn clicks a visible element with the mouse. A script selects the
// element.
func (p *Page) clickOn(what, element string) {
	p.t.Helper()
	x, y := p.place(what, element)
	p.do("click "+what, chromedp.MouseClickXY(x, y))
}

// slowClickOn holds the mouse button for longer than the page takes to refresh.
func (p *Page) slowClickOn(what, element string) {
	p.t.Helper()
	x, y := p.place(what, element)
	p.do("press on "+what, chromedp.MouseEvent(input.DispatchMouseEventTypeMousePressed, x, y, chromedp.ButtonType(input.MouseButtonLeft), chromedp.ClickCount(1)))
	began := eval[float64](p, "performance.now()")
	p.until("two refreshes are due", fmt.Sprintf("performance.now() > %f", began+4500))
	p.do("let go of "+what, chromedp.MouseEvent(input.DispatchMouseEventTypeMouseReleased, x, y, chromedp.ButtonType(input.MouseButtonLeft), chromedp.ClickCount(1)))
}

// place scrolls to an element and returns the point at which the mouse would
// hit it.
func (p *Page) place(what, element string) (x, y float64) {
	p.t.Helper()
	find := fmt.Sprintf(`(() => {
		if (document.readyState !== 'complete') return null;
		const e = %s;
		if (!e) return null;
		e.scrollIntoView({ block: 'center', behavior: 'instant' });
		const r = e.getBoundingClientRect();
		const x = r.x + r.width / 2, y = r.y + r.height / 2;
		const top = document.elementFromPoint(x, y);
		return top && (e === top || e.contains(top)) ? [x, y] : null;
	})()`, element)
	// The page may still move, or a navigation may replace it.
	const tries = 5
	for range tries {
		p.until(what+" can be clicked", find+" !== null")
		if at := eval[[]float64](p, find); at != nil {
			return at[0], at[1]
		}
	}
	p.t.Fatalf("%s does not stay where it can be clicked", what)
	return 0, 0
}

func (p *Page) click(selector string) {
	p.t.Helper()
	p.clickOn(selector, "document.querySelector("+js(selector)+")")
}

// typeInto replaces the text in a field, key by key.
func (p *Page) typeInto(selector, text string) {
	p.t.Helper()
	p.until(selector, "document.readyState === 'complete' && document.querySelector("+js(selector)+")")
	eval[bool](p, "(() => { const e = document.querySelector("+js(selector)+"); e.focus(); e.select(); return true; })()")
	p.press(kb.Backspace)
	p.press(text)
}

// press sends keys to the focused element.
func (p *Page) press(keys string) {
	p.t.Helper()
	p.do("press keys", chromedp.KeyEvent(keys))
}

// tabTo presses Tab until the element that a script selects has the focus.
func (p *Page) tabTo(what, element string) {
	p.t.Helper()
	const most = 200
	for range most {
		if eval[bool](p, "document.activeElement === "+element) {
			return
		}
		p.press(kb.Tab)
	}
	p.t.Fatalf("%s cannot be reached with Tab", what)
}

func (p *Page) size(width, height int64) {
	p.t.Helper()
	p.do("resize", chromedp.EmulateViewport(width, height))
}

// command sends a command of the protocol.
func command[P, R any](p *Page, c cdp.Command[P, R], params P) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if _, err := chromedp.Call(ctx, c, params); err != nil {
		p.t.Fatal(err)
	}
}

// scheme sets prefers-color-scheme to "dark" or "light".
func (p *Page) scheme(name string) {
	p.t.Helper()
	command(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: name},
			{Name: "prefers-reduced-motion", Value: "reduce"}, // without it, a picture may show colors in transition
		},
	})
}

// scripts turns JavaScript on or off, from the next page on.
func (p *Page) scripts(on bool) {
	p.t.Helper()
	command(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: !on})
}

// network limits the rate of uploads (bytes a second; -1: no limit) or cuts the
// connection.
func (p *Page) network(uploadBytes float64, offline bool) {
	p.t.Helper()
	command(p, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
		MatchedNetworkConditions: []*network.Conditions{{UploadThroughput: uploadBytes, DownloadThroughput: -1, Offline: offline}},
	})
}

// shot saves a picture of the whole page.
func (p *Page) shot(name string) {
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	const png = 100
	data, err := chromedp.Run(ctx, chromedp.FullScreenshot(png))
	if err == nil {
		err = os.WriteFile(filepath.Join(*screenshots, name+".png"), data, 0o644)
	}
	if err != nil {
		p.t.Errorf("screenshot %s: %v", name, err)
	}
}

// contrast is a script that lists texts whose contrast with their background is
// below 4.5, the minimum of WCAG 2.
const contrast = `(() => {
	const parse = (s) => { const n = s.match(/[\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
	const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
	const behind = (e) => {
		if (!e) return [255, 255, 255, 1];
		const c = parse(getComputedStyle(e).backgroundColor);
		return c[3] === 1 ? c : over(c, behind(e.parentElement));
	};
	const light = (c) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
		const v = c[i] / 255;
		return sum + weight * (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
	}, 0);
	return [...document.querySelectorAll('body *')].filter((e) => {
		const own = [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.textContent.trim());
		if (!own || !e.checkVisibility({ opacityProperty: true }) || e.disabled) return false;
		const back = behind(e);
		const [a, b] = [light(over(parse(getComputedStyle(e).color), back)), light(back)];
		return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
	}).map((e) => e.tagName + '.' + e.className + ': ' + e.textContent.trim().slice(0, 40));
})()`

// spills is a script that lists texts that overflow their table cell visibly.
const spills = `(() => {
	const found = [];
	for (const cell of document.querySelectorAll('tbody td')) {
		const room = cell.getBoundingClientRect();
		const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
		while (texts.nextNode()) {
			const e = texts.currentNode.parentElement;
			if (!e.checkVisibility() || e.closest('summary, .line, .visually-hidden')) continue;
			const range = document.createRange();
			range.selectNodeContents(texts.currentNode);
			const box = range.getBoundingClientRect();
			if (box.width && (box.left < room.left - 1 || box.right > room.right + 1)) found.push(cell.dataset.label + ': ' + texts.currentNode.textContent.trim().slice(0, 40));
		}
	}
	return found;
})()`

// shots saves the page in light and in dark mode, wide, at the least width of a
// table, and narrow.
func (p *Page) shots(name string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		p.scheme(scheme)
		p.until("the theme is "+scheme, "document.documentElement.dataset.bsTheme === "+js(scheme))
		for _, width := range []int64{1280, 992, 375} {
			p.size(width, 900)
			p.until("the page fits", "innerWidth === "+fmt.Sprint(width))
			if w := eval[int](p, "document.documentElement.scrollWidth"); w > int(width) {
				p.t.Errorf("%s scrolls sideways: %d pixels in %d", name, w, width)
			}
			if out := eval[[]string](p, spills); len(out) > 0 {
				p.t.Errorf("%s has texts outside their cell at %d pixels: %q", name, width, out)
			}
			p.shot(fmt.Sprintf("%s-%s-%d", name, scheme, width))
		}
		if faint := eval[[]string](p, contrast); len(faint) > 0 {
			p.t.Errorf("%s in the %s has texts that are hard to read: %q", name, scheme, faint)
		}
	}
	p.scheme("light")
	p.size(1280, 900)
}

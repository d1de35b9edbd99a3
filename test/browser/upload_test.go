package browser

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

const (
	mib = 1 << 20
	// partBytes is the size of the server's upload parts.
	partBytes = 16 * mib
	// slow is a rate of uploads, in bytes a second, at which an upload
	// continues for many seconds after a test has seen its progress.
	slow = 2 * mib
)

// imageFile makes a file whose parts all differ.
func imageFile(t *testing.T, name string, size int) (path, sha string) {
	t.Helper()
	data := make([]byte, size)
	for i := 0; i < size; i += 512 {
		copy(data[i:], fmt.Sprintf("%s %d", name, i))
	}
	path = filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return path, hex.EncodeToString(sum[:])
}

// choose selects files as the browser's file picker would.
func (p *Page) choose(paths ...string) {
	p.t.Helper()
	p.do("choose files", chromedp.SetUploadFiles(chromedp.CSS("#file"), paths))
}

func upload(name string) string {
	return fmt.Sprintf("[...document.querySelectorAll('#uploads .upload')].find(u => u.querySelector('.fw-semibold').textContent === %s)", js(name))
}

func (p *Page) untilUpload(name, state string) {
	p.t.Helper()
	p.until("the upload of "+name+" is "+state, upload(name)+"?.dataset.state === "+js(state))
}

// sent returns a script for the progress of an upload, from 0 to 1.
func sent(name string) string { return upload(name) + "?.querySelector('progress')?.value" }

// noUploads fails the test if an upload is neither complete nor aborted.
func (s *Server) noUploads(t *testing.T) {
	t.Helper()
	var list struct{ Uploads []struct{ Name string } }
	if err := json.Unmarshal(s.call(t, "GET", "/uploads", nil), &list); err != nil || len(list.Uploads) > 0 {
		t.Errorf("uploads that are left: %+v, %v", list, err)
	}
}

func TestUpload(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	p.mark()
	name := `"'<b>&ä #1%41+.img`
	big, bigSum := imageFile(t, name, 3*partBytes+5*mib)
	small, smallSum := imageFile(t, "small.iso", mib)
	p.network(slow, false)
	p.choose(big, small)
	p.untilUpload(name, "uploading")
	p.untilUpload("small.iso", "waiting")
	p.until("rate and time left", upload(name)+`?.textContent.match(/ of 53\.0 MiB, [0-9.]+ [KM]iB\/s, [0-9]+ s left/)`)
	p.until("a part of it is sent", sent(name)+" > 0.1")
	p.shots("images-uploading")
	p.network(-1, false)
	p.untilUpload(name, "done")
	p.untilUpload("small.iso", "done")
	// The digest was computed during the upload.
	p.until("the row", hashed(name, bigSum))
	p.until("the other row", hashed("small.iso", smallSum))
	p.marked("uploading")
	want, err := os.ReadFile(big)
	if err != nil {
		t.Fatal(err)
	}
	if got := s.call(t, "GET", "/images/"+url.PathEscape(name), nil); !bytes.Equal(got, want) {
		t.Errorf("what was stored are %d other bytes, want %d", len(got), len(want))
	}
}

func TestUploadDropped(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	eval[bool](p, `(() => {
		const files = new DataTransfer();
		files.items.add(new File(['one'], 'one.img'));
		files.items.add(new File(['two'], 'two.raw'));
		const at = (element, type) => element.dispatchEvent(new DragEvent(type, { dataTransfer: files, bubbles: true, cancelable: true }));
		at(document.querySelector('h1'), 'dragover');
		window.over = !document.getElementById('drop-hint').hidden;
		window.taken = !at(document.querySelector('footer'), 'drop'); // the browser must not open it
		return true;
	})()`)
	p.untilUpload("one.img", "done")
	p.untilUpload("two.raw", "done")
	p.until("the rows", row("one.img")+" && "+row("two.raw"))
	if !eval[bool](p, "window.over && window.taken && document.getElementById('drop-hint').hidden && document.querySelectorAll('#uploads .upload').length === 2") {
		t.Error("the page does not say that it takes the files, or the browser opened them")
	}
}

func TestUploadRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`network: .* 422 .*/uploads`)
	p.login()
	// Characters that reverse a name are shown.
	tarball, _ := imageFile(t, "root\u202egmi.tar.gz", mib)
	const shown = "root[U+202E]gmi.tar.gz"
	p.choose(tarball)
	p.untilUpload(shown, "failed")
	p.until("the reason", upload(shown)+"?.textContent.includes('tarball')")
	eval[bool](p, "window.before = "+upload(shown)+"; true")
	p.choose(tarball)
	p.until("another try takes the place of the one that failed", "!before.isConnected && "+upload(shown)+"?.dataset.state === 'failed'")
	p.shot("images-upload-refused")

	// An image of that name exists: the page asks before it replaces the image.
	first, _ := imageFile(t, "same.img", mib)
	second, sum := imageFile(t, "same.img", 2*mib)
	p.choose(first)
	p.untilUpload("same.img", "done")
	p.choose(second)
	p.until("the question", "document.getElementById('dialog').open && "+has("#confirm-title", "Replace same.img?"))
	p.clickOn("Keep", "document.querySelector('#confirm [data-close]')")
	p.until("the dialog is closed", "!document.getElementById('dialog').open")
	if s.call(t, "GET", "/images/same.img", nil); eval[bool](p, hashed("same.img", sum)) {
		t.Error("the image was replaced without an answer")
	}
	p.choose(second)
	p.until("the question again", "document.getElementById('dialog').open && document.getElementById('confirm')")
	p.clickOn("Replace", "document.querySelector('#confirm .btn-danger')")
	p.until("the new digest", hashed("same.img", sum))
}

// TestUploadSurvivesCuts breaks the connection, by the network or by ending the
// server, which costs at most a part.
func TestUploadSurvivesCuts(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`ERR_INTERNET_DISCONNECTED|ERR_CONNECTION_(REFUSED|RESET|CLOSED)|ERR_EMPTY_RESPONSE|ERR_SOCKET_NOT_CONNECTED|ERR_ABORTED|htmx:(sendError|afterRequest)`)
	p.login()
	p.mark()
	file, sum := imageFile(t, "cut.img", 4*partBytes)
	p.network(slow, false)
	p.choose(file)
	p.until("more than a part is sent", sent("cut.img")+" > 0.3")

	p.network(-1, true)
	p.untilUpload("cut.img", "retrying")
	p.until("it says so", upload("cut.img")+"?.textContent.includes('connection lost')")
	p.until("the page says so", "!document.getElementById('offline').hidden")
	p.shot("images-upload-cut")
	p.network(slow, false)
	p.untilUpload("cut.img", "uploading")
	p.until("it goes on", sent("cut.img")+" > 0.55")
	p.until("the page is glad", "document.getElementById('offline').hidden")

	if err := s.Kill(); err != nil {
		t.Fatal(err)
	}
	p.untilUpload("cut.img", "retrying")
	s.run(t)
	p.network(-1, false)
	p.untilUpload("cut.img", "done")
	p.until("the row", hashed("cut.img", sum))
	p.marked("two cuts")
	s.noUploads(t)
}

func TestUploadGoesOnAfterReload(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`ERR_ABORTED`)
	p.login()
	file, sum := imageFile(t, "reload.img", 4*partBytes)
	p.network(slow, false)
	p.choose(file)
	p.until("more than two parts are sent", sent("reload.img")+" > 0.6")
	p.do("load the page again", chromedp.Reload())
	if len(p.dialogs) == 0 || p.dialogs[0] != "beforeunload" {
		t.Errorf("leaving the page while it uploads was not asked about: %q", p.dialogs)
	}
	p.untilUpload("reload.img", "unfinished")
	p.shot("images-upload-unfinished")

	var list struct {
		Uploads []struct{ ID string }
	}
	if err := json.Unmarshal(s.call(t, "GET", "/uploads", nil), &list); err != nil || len(list.Uploads) != 1 {
		t.Fatalf("%+v, %v", list, err)
	}
	parts := "/uploads/" + list.Uploads[0].ID + "/parts/"
	before := p.asked("PUT " + parts + "1")
	p.network(-1, false)
	p.choose(file)
	p.untilUpload("reload.img", "done")
	p.until("the row", hashed("reload.img", sum))
	if n := p.asked("PUT " + parts + "1"); n != before || before != 1 {
		t.Errorf("the first part was sent %d times", n)
	}
	if n := p.asked("PUT " + parts + "4"); n != 1 {
		t.Errorf("the last part was sent %d times", n)
	}
}

// twins makes two files that differ in their last part, and in no attribute
// that a browser reports.
func twins(t *testing.T, name string, size int) (paths, sums [2]string) {
	t.Helper()
	paths[0], sums[0] = imageFile(t, name, size)
	data, err := os.ReadFile(paths[0])
	if err != nil {
		t.Fatal(err)
	}
	data[size-1]++
	data[0]++
	sum := sha256.Sum256(data)
	paths[1], sums[1] = filepath.Join(t.TempDir(), name), hex.EncodeToString(sum[:])
	if err := os.WriteFile(paths[1], data, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		if err := os.Chtimes(path, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			t.Fatal(err)
		}
	}
	return paths, sums
}

// TestUploadOfAnotherFile compares the uploaded parts with the file before it
// adds to them.
func TestUploadOfAnotherFile(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`ERR_ABORTED`)
	p.login()
	files, sums := twins(t, "disk.img", 2*partBytes)
	p.network(slow, false)
	p.choose(files[0])
	p.until("more than a part is sent", sent("disk.img")+" > 0.6")
	p.do("load the page again", chromedp.Reload())
	p.untilUpload("disk.img", "unfinished")
	p.network(-1, false)
	p.choose(files[1])
	p.until("the other file is uploaded", "document.querySelector('#uploads .upload[data-state=done]')")
	p.until("the row", hashed("disk.img", sums[1]))
	// The first upload is unchanged, and resumes.
	p.untilUpload("disk.img", "unfinished")
	p.shot("images-upload-two-files")
	p.choose(files[0])
	p.until("the question", "document.getElementById('dialog').open && "+has("#confirm-title", "Replace disk.img?"))
	p.clickOn("Replace", "document.querySelector('#confirm .btn-danger')")
	p.until("the first file", hashed("disk.img", sums[0]))
}

// TestUploadOfOneNameTwice asks about a second file of a name that is being
// uploaded, in this tab and in others, and both stay unchanged. The first one does not
// replace it without a question, and is not sent again then.
func TestUploadOfOneNameTwice(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`network: .* 412 .*/complete`)
	p.login()
	other := p.tab()
	other.navigate("/ui/images")
	files, sums := twins(t, "disk.img", 2*partBytes)
	p.network(slow/2, false)
	p.choose(files[0])
	p.until("a part is sent", sent("disk.img")+" > 0.5")
	for _, page := range []*Page{p, other} {
		page.choose(files[1])
		page.until("the question", "document.getElementById('dialog').open && "+has("#confirm-title", "Upload another disk.img?"))
		page.shot("images-upload-beside")
		if page == p {
			page.clickOn("Keep", "document.querySelector('#confirm [data-close]')")
			page.until("the dialog is closed", "!document.getElementById('dialog').open")
		}
	}
	other.clickOn("Upload this one too", "document.querySelector('#confirm .btn-danger')")
	other.untilUpload("disk.img", "done")
	p.network(-1, false)
	p.untilUpload("disk.img", "failed")
	p.until("the row", hashed("disk.img", sums[1]))
	p.shot("images-upload-taken")
	before := p.asked("PUT ")
	p.choose(files[0])
	p.until("the question", "document.getElementById('dialog').open && "+has("#confirm-title", "Replace disk.img?"))
	p.clickOn("Replace", "document.querySelector('#confirm .btn-danger')")
	p.until("the first file", hashed("disk.img", sums[0]))
	if n := p.asked("PUT ") - before; n != 0 {
		t.Errorf("%d parts were sent again", n)
	}
	s.noUploads(t)
}

// TestUploadUnreadable reports a file that cannot be uploaded, and continues
// with the others.
func TestUploadUnreadable(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.login()
	changing, _ := imageFile(t, "changing.img", 3*partBytes)
	empty, _ := imageFile(t, "empty.img", 0)
	good, _ := imageFile(t, "good.img", mib)
	p.network(slow, false)
	p.choose(changing, empty, good)
	p.until("some is sent", sent("changing.img")+" > 0.05")
	if err := os.Truncate(changing, mib); err != nil {
		t.Fatal(err)
	}
	p.untilUpload("changing.img", "failed")
	p.until("the reason", upload("changing.img")+"?.textContent.includes('changed')")
	p.untilUpload("empty.img", "failed")
	p.until("the reason", upload("empty.img")+"?.textContent.includes('empty')")
	p.untilUpload("good.img", "done")

	folder := filepath.Join(t.TempDir(), "disk.img")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	last, _ := imageFile(t, "last.img", mib)
	x, y := p.place("the page", "document.querySelector('h1')")
	for _, step := range []input.DispatchDragEventType{"dragEnter", "dragOver", "drop"} {
		command(p, input.DispatchDragEvent, input.DispatchDragEventParams{
			Type: step, X: x, Y: y, Data: &input.DragData{Items: []*input.DragDataItem{}, Files: []string{folder, last}, DragOperationsMask: 1},
		})
	}
	p.untilUpload("disk.img", "failed")
	p.until("the reason", upload("disk.img")+"?.textContent.includes('folder')")
	p.untilUpload("last.img", "done")
	p.shot("images-upload-unreadable")
	if list := s.call(t, "GET", "/uploads", nil); string(bytes.TrimSpace(list)) != `{"uploads":[]}` {
		t.Errorf("the server still has uploads: %s", list)
	}
}

// TestUploadLoggedOut reports the end of the session during an upload.
func TestUploadLoggedOut(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`401|ERR_|status of`)
	p.login()
	file, _ := imageFile(t, "long.img", 2*partBytes)
	p.network(slow, false)
	p.choose(file)
	p.until("some is sent", sent("long.img")+" > 0.05")
	eval[bool](p, "fetch('/ui/logout', { method: 'POST' }).then(() => true); true")
	p.untilUpload("long.img", "failed")
	p.until("the reason", upload("long.img")+"?.textContent.includes('no longer logged in')")
}

func TestUploadCancelled(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`ERR_ABORTED`)
	p.login()
	file, _ := imageFile(t, "stop.img", 4*partBytes)
	p.network(slow, false)
	p.choose(file)
	p.until("some is sent", sent("stop.img")+" > 0.05")
	p.clickOn("Cancel", upload("stop.img")+"?.querySelector('button')")
	p.until("it is gone", "!"+upload("stop.img"))
	p.network(-1, false)
	deadline := time.Now().Add(patience)
	for {
		if string(bytes.TrimSpace(s.call(t, "GET", "/uploads", nil))) == `{"uploads":[]}` {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server still has the upload: %s", s.call(t, "GET", "/uploads", nil))
		}
		p.until("the page lives", "document.getElementById('live')")
	}
	p.do("load the page again", chromedp.Reload())
	p.until("the page", "document.getElementById('catalog')")
	if eval[bool](p, "!!"+upload("stop.img")+" || localStorage.length > 0") {
		t.Error("the page still knows of it")
	}
}

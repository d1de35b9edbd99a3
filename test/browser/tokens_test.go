package browser

import (
	"net/http"
	"strings"
	"testing"
)

// TestTokens makes a token, sends it, and revokes it.
func TestTokens(t *testing.T) {
	t.Parallel()
	s := start(t)
	p := open(t, s)
	p.allow(`network: .* (409|422) `)
	p.login()
	p.clickOn("Tokens", "document.querySelector('a[href=\"/ui/tokens\"]')")
	p.until("no token", has("main", "No machine has a token"))
	p.typeInto("#token-name", "ci-7")
	eval[bool](p, "(document.getElementById('scope').value = 'upload', true)")
	p.clickOn("Make token", "document.querySelector('#make-token button')")
	p.until("the token", "document.getElementById('token')?.textContent.startsWith('imageroot_')")
	p.axe("a new token")
	p.shots("tokens")
	token := eval[string](p, "document.getElementById('token').textContent")
	upload := func() int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.Pages+"/images/by-token.img", strings.NewReader("bytes"))
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("anyone", token)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	if got := upload(); got != http.StatusCreated {
		t.Errorf("the token: %d", got)
	}
	p.typeInto("#token-name", "CI-7")
	p.clickOn("Make token", "document.querySelector('#make-token button')")
	p.until("the refusal", has("#token-error", "there is a token named ci-7"))
	p.axe("tokens, refused")
	p.clickOn("its activity", "document.querySelector('tbody a')")
	p.until("what it did", has("tbody", "uploaded by-token.img")+" && "+has("tbody", "token:ci-7"))
	p.navigate("/ui/tokens")
	p.clickOn("Revoke", "document.querySelector('tbody summary')")
	p.clickOn("for good", "document.querySelector('tbody form button')")
	p.until("it is gone", has("main", "No machine has a token")+" && "+has("#status", "was revoked"))
	if got := upload(); got != http.StatusUnauthorized {
		t.Errorf("the token that was revoked: %d", got)
	}
}

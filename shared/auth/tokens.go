package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

// A Scope is what a token allows.
type Scope string

// The scopes. Each includes those before it.
const (
	ScopeRead    Scope = "read"    // the bytes of images, and documents about them
	ScopeUpload  Scope = "upload"  // adding images
	ScopeOperate Scope = "operate" // everything but to make and revoke tokens
)

var scopes = map[Scope]web.Access{ScopeRead: web.Read, ScopeUpload: web.Upload, ScopeOperate: web.Operator}

// Scopes lists every scope.
func Scopes() []Scope { return []Scope{ScopeRead, ScopeUpload, ScopeOperate} }

const (
	// MaxTokens is the most tokens that there are at once.
	MaxTokens = 1000
	// tokenPrefix is what every token begins with, so that programs that search for secrets
	// recognise one.
	tokenPrefix = "imageroot_"
	// tokensCheck is the longest time after which a token that another process has revoked is
	// refused here. A token that is not known is looked for again after newCheck.
	tokensCheck, newCheck = 5 * time.Second, time.Second
	// A use within useAgain of the last one that was recorded is not recorded.
	useAgain = time.Hour
	// useForget is the time after which the last use of a token that was revoked is forgotten.
	useForget = 24 * time.Hour
	// usesPatience bounds the time of one write of uses.
	usesPatience = 10 * time.Second
)

var tokenNames = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// A Token describes a token. The token itself is not stored.
type Token struct {
	// Name has up to 64 letters and digits of ASCII, dots, hyphens and underscores, and begins
	// with a letter or digit. No two tokens have the same name, compared without case.
	Name      string        `json:"name"`
	Scope     Scope         `json:"scope"`
	SHA256    layout.SHA256 `json:"sha256"` // of the token
	CreatedAt time.Time     `json:"created_at"`
}

// tokensRecord lists the tokens that are in force.
type tokensRecord struct {
	record.Meta
	Tokens []Token `json:"tokens"`
}

// Validate implements record.Validator.
func (t *tokensRecord) Validate() error {
	if t.Tokens == nil {
		return errors.New("it lists no tokens")
	}
	for _, k := range t.Tokens {
		if _, ok := scopes[k.Scope]; !ok || !tokenNames.MatchString(k.Name) || !k.SHA256.Valid() {
			return errors.New("a token has a name, a scope and a SHA-256")
		}
	}
	return nil
}

// usedRecord maps the SHA-256 of a token to the time of its last use.
type usedRecord struct {
	record.Meta
	Used map[layout.SHA256]time.Time `json:"used"`
}

// Validate implements record.Validator.
func (u *usedRecord) Validate() error {
	if u.Used == nil {
		return errors.New("it has no uses")
	}
	return nil
}

// tokens are the tokens as this process knows them.
type tokens struct {
	mu      sync.Mutex
	known   map[layout.SHA256]Token
	read    time.Time
	damaged bool                        // the record is, which was logged
	pending map[layout.SHA256]time.Time // uses that are not recorded
	noted   map[layout.SHA256]time.Time // the last use of each token that was pending
}

// isToken reports whether s has the form of a token.
func isToken(s string) bool {
	return strings.HasPrefix(s, tokenPrefix) && len(s) == len(tokenPrefix)+base64.RawURLEncoding.EncodedLen(sha256.Size)
}

func sumOf(token string) layout.SHA256 {
	sum := sha256.Sum256([]byte(token))
	return layout.SHA256(hex.EncodeToString(sum[:]))
}

// findToken returns the token that was sent, and notes its use. It looks its hash up, so that
// the time that this takes says nothing of other tokens.
func (o *Operator) findToken(ctx context.Context, token string) (Token, bool, error) {
	sum, now, k := sumOf(token), o.cfg.Now(), &o.tokens
	k.mu.Lock()
	defer k.mu.Unlock()
	t, ok := k.known[sum]
	if age := now.Sub(k.read); k.read.IsZero() || age > tokensCheck || !ok && age > newCheck {
		if err := o.readTokens(ctx, now); err != nil {
			return Token{}, false, err
		}
		t, ok = k.known[sum]
	}
	if ok && now.Sub(k.noted[sum]) >= useAgain {
		if k.pending == nil {
			k.pending, k.noted = map[layout.SHA256]time.Time{}, map[layout.SHA256]time.Time{}
		}
		k.pending[sum], k.noted[sum] = now, now
	}
	return t, ok, nil
}

// readTokens reads the tokens in force. A damaged record lets no token in.
func (o *Operator) readTokens(ctx context.Context, now time.Time) error {
	rec, _, err := record.Read[tokensRecord](ctx, o.cfg.Records, layout.TokensKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("tokens: %w", err)
	}
	damaged := errors.Is(err, record.ErrDamaged)
	if damaged && !o.tokens.damaged {
		o.cfg.Log.Warn("no token is valid", "key", layout.TokensKey, "error", err, "remedy", layout.Remedy(layout.TokensKey))
	}
	o.tokens.damaged = damaged
	o.setTokens(rec.Tokens, now)
	return nil
}

func (o *Operator) setTokens(all []Token, now time.Time) {
	o.tokens.known, o.tokens.read = make(map[layout.SHA256]Token, len(all)), now
	for _, t := range all {
		o.tokens.known[t.SHA256] = t
	}
}

// repairTokens replaces damaged records by empty ones.
func (o *Operator) repairTokens(ctx context.Context) error {
	_, err := ensure(ctx, o, layout.TokensKey, layout.Remedy(layout.TokensKey), func(t *tokensRecord, found error) error {
		t.Tokens = []Token{}
		return keepUnless(found)
	})
	if err == nil {
		_, err = ensure(ctx, o, layout.UsedKey, layout.Remedy(layout.UsedKey), func(u *usedRecord, found error) error {
			u.Used = map[layout.SHA256]time.Time{}
			return keepUnless(found)
		})
	}
	if err != nil {
		return fmt.Errorf("tokens: %w", err)
	}
	return nil
}

// keepUnless returns [record.ErrKeep] unless a record was found damaged.
func keepUnless(found error) error {
	if errors.Is(found, record.ErrDamaged) {
		return nil
	}
	return record.ErrKeep
}

// Tokens returns the tokens in force, sorted by name, and the last use of each that is known,
// to within an hour, by SHA-256.
func (o *Operator) Tokens(ctx context.Context) ([]Token, map[layout.SHA256]time.Time, error) {
	rec, _, err := record.Read[tokensRecord](ctx, o.cfg.Records, layout.TokensKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, nil, fmt.Errorf("tokens: %w", err)
	}
	used, _, err := record.Read[usedRecord](ctx, o.cfg.Records, layout.UsedKey)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, nil, fmt.Errorf("uses of tokens: %w", err)
	}
	slices.SortFunc(rec.Tokens, func(a, b Token) int { return cmp.Compare(a.Name, b.Name) })
	return rec.Tokens, used.Used, nil
}

// AddToken makes a token of 256 random bits, and returns it with its description. It is in
// force everywhere within a second. The error is a [problem.Error] if the name or the scope
// is not one, or another token has the name.
func (o *Operator) AddToken(ctx context.Context, name string, scope Scope) (token string, t Token, err error) {
	if !tokenNames.MatchString(name) {
		return "", t, problem.New(problem.Malformed, "the name of a token is up to 64 letters, digits, dots, hyphens and underscores, and begins with a letter or digit")
	}
	if _, ok := scopes[scope]; !ok {
		return "", t, problem.New(problem.Malformed, "the scope of a token is read, upload or operate")
	}
	secret := make([]byte, sha256.Size)
	_, _ = rand.Read(secret) // never fails
	token = tokenPrefix + base64.RawURLEncoding.EncodeToString(secret)
	t = Token{Name: name, Scope: scope, SHA256: sumOf(token), CreatedAt: o.cfg.Now().UTC().Truncate(time.Second)}
	return token, t, o.changeTokens(ctx, func(all []Token) ([]Token, error) {
		switch i := indexOf(all, name); {
		case i >= 0 && all[i].SHA256 == t.SHA256:
			return nil, record.ErrKeep // an earlier try has succeeded
		case i >= 0:
			return nil, problem.Newf(problem.Conflict, "there is a token named %s: revoke it first, or choose another name", all[i].Name)
		case len(all) >= MaxTokens:
			return nil, problem.Newf(problem.Conflict, "there are %d tokens, which is the most: revoke one first", MaxTokens)
		}
		return append(all, t), nil
	})
}

// RemoveToken revokes a token: at once in this process, and within 5 seconds in others. The
// error is a [problem.Error] if there is none of that name, compared without case.
func (o *Operator) RemoveToken(ctx context.Context, name string) (t Token, err error) {
	err = o.changeTokens(ctx, func(all []Token) ([]Token, error) {
		i := indexOf(all, name)
		switch {
		case i < 0 && t.Name != "":
			return nil, record.ErrKeep // an earlier try has succeeded
		case i < 0:
			return nil, problem.New(problem.NotFound, "there is no token of this name")
		}
		t = all[i]
		return slices.Delete(all, i, i+1), nil
	})
	return t, err
}

func indexOf(all []Token, name string) int {
	return slices.IndexFunc(all, func(t Token) bool { return strings.EqualFold(t.Name, name) })
}

// changeTokens changes the tokens in force, here and in the store.
func (o *Operator) changeTokens(ctx context.Context, change func([]Token) ([]Token, error)) error {
	o.tokens.mu.Lock()
	defer o.tokens.mu.Unlock()
	rec, err := ensure(ctx, o, layout.TokensKey, layout.Remedy(layout.TokensKey), func(r *tokensRecord, _ error) error {
		all, err := change(slices.Clone(r.Tokens))
		if err == nil {
			r.Tokens = all
		}
		return err
	})
	if err != nil {
		o.tokens.read = time.Time{} // the change may be in force
		return err
	}
	o.setTokens(rec.Tokens, o.cfg.Now())
	return nil
}

// Flush records the uses of tokens, at most one an hour of each, or logs why it could not.
// Uses that were not recorded are lost.
func (o *Operator) Flush(ctx context.Context) {
	o.tokens.mu.Lock()
	pending, known := o.tokens.pending, o.tokens.known
	o.tokens.pending = nil
	o.tokens.mu.Unlock()
	if len(pending) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), usesPatience)
	defer cancel()
	_, err := ensure(ctx, o, layout.UsedKey, layout.Remedy(layout.UsedKey), func(u *usedRecord, _ error) error {
		changed := false
		if u.Used == nil {
			u.Used = map[layout.SHA256]time.Time{}
		}
		for sum, at := range u.Used {
			// One that is not known may be new.
			if _, ok := known[sum]; !ok && o.cfg.Now().Sub(at) > useForget {
				delete(u.Used, sum)
			}
		}
		for sum, at := range pending {
			if at.Sub(u.Used[sum]) >= useAgain {
				u.Used[sum], changed = at.UTC().Truncate(time.Second), true
			}
		}
		if !changed {
			return record.ErrKeep
		}
		return nil
	})
	if err != nil {
		o.cfg.Log.Warn("uses of tokens were not recorded", "key", layout.UsedKey, "error", err, "remedy", record.Remedy(layout.UsedKey, err))
	}
}

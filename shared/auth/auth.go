// Package auth authenticates the operator by the API token, or by a session that a password
// opens, and machines by tokens that the operator has made. There is one operator.
//
// Tokens are bearer tokens (RFC 6750 section 2.1), or passwords of HTTP Basic with any user
// name (RFC 7617). A session is a signed cookie
// that lasts 30 days. The catalog root keeps the argon2id hash of the password, the key
// that signs sessions (unless it is configured), the sessions that have ended, and the
// SHA-256 of each token; processes over one catalog root share them. A new password ends all
// sessions. Wrong passwords and wrong tokens are limited for each client address, in each
// process.
package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"imageroot/shared/layout"
	"imageroot/shared/problem"
	"imageroot/shared/record"
	"imageroot/shared/store"
	"imageroot/shared/web"
)

const (
	// SessionCookie is the name of the session cookie.
	SessionCookie = "imageroot_session"
	// sessionTime is the lifetime of a session.
	sessionTime = 30 * 24 * time.Hour
	// endedCheck is the longest time after which a log-out in another process takes
	// effect in this one.
	endedCheck = 5 * time.Second
	// followCheck is the same for a password that another process stores.
	followCheck = 30 * time.Second
)

// Config is the configuration of [Open]. Records, Now and Log are required.
type Config struct {
	Records store.Records // of the catalog root
	// Password replaces the stored password; empty keeps that.
	Password string
	// Token is the API token; empty means there is none.
	Token string
	// SessionKey is used to sign session cookies; if it is empty, the stored key is used,
	// and Open generates and stores one if there is none. Processes that share sessions
	// need equal keys.
	SessionKey string
	// Follow ignores Password and reads the password that another process stores, now or
	// later. A change takes effect within 30 seconds. Without a stored password, no
	// session is valid. [Operator.Login] needs Follow to be false.
	Follow bool
	Now    func() time.Time
	// Log receives a warning for each damaged record that is replaced.
	Log *slog.Logger
}

// An Operator authenticates the operator. It is safe for concurrent use.
type Operator struct {
	cfg      Config
	base     []byte // the session key that is configured or stored
	token    [sha256.Size]byte
	attempts attempts // passwords
	guesses  attempts // tokens
	tokens   tokens
	hashing  chan struct{} // admits one argon2id computation at a time, for its memory
	quick    []byte        // a random key of this process

	mu        sync.Mutex
	hash      string // of the password, in argon2id's encoded form
	right     []byte // MAC, by quick, of the password with that hash; nil if unknown
	key       []byte // signs session cookies; nil if no session can be valid
	hashRead  time.Time
	ended     endedRecord
	endedRead time.Time
}

type passwordRecord struct {
	record.Meta
	Hash string `json:"hash"`
}

// Validate implements record.Validator.
func (p *passwordRecord) Validate() error {
	_, err := parseHash(p.Hash)
	return err
}

type keyRecord struct {
	record.Meta
	Key []byte `json:"key"`
}

// Validate implements record.Validator.
func (k *keyRecord) Validate() error {
	if len(k.Key) != sha256.Size {
		return fmt.Errorf("a session key has %d bytes", sha256.Size)
	}
	return nil
}

// endedRecord lists the sessions that a log-out ended before they expired.
type endedRecord struct {
	record.Meta
	// Sessions maps the ID of a session to the Unix second in which it would have expired.
	Sessions map[string]int64 `json:"sessions"`
	// Before is a Unix second: all sessions that began earlier have ended. It is set if
	// the list was damaged.
	Before int64 `json:"before,omitempty"`
}

// ErrNoPassword is returned by [Open] if no password is configured, and none is stored
// or the stored hash is damaged.
var ErrNoPassword = errors.New("no operator password is set")

// Open reads the stored records of the operator, stores the hash of a new password and
// generates the session key if needed. The error is [ErrNoPassword], or one of
// record.Repair. What it writes is stored when it returns.
func Open(ctx context.Context, cfg Config) (*Operator, error) {
	o := &Operator{cfg: cfg, token: sha256.Sum256([]byte(cfg.Token)), attempts: newAttempts(), guesses: newAttempts(), hashing: make(chan struct{}, 1), quick: make([]byte, sha256.Size)}
	_, _ = rand.Read(o.quick) // never fails
	if !cfg.Follow {
		// A newer one of these must leave the password unchanged, too.
		err := record.CheckVersion[endedRecord](ctx, cfg.Records, layout.EndedKey)
		if err == nil && cfg.SessionKey == "" {
			err = record.CheckVersion[keyRecord](ctx, cfg.Records, layout.SessionKeyKey)
		}
		if err != nil {
			return nil, err
		}
		if err := o.repairTokens(ctx); err != nil {
			return nil, err
		}
		stored, err := ensure(ctx, o, layout.PasswordKey, "set IMAGEROOT_PASSWORD to choose the new password", func(p *passwordRecord, found error) error {
			switch {
			case cfg.Password == "" && found != nil:
				return ErrNoPassword
			case cfg.Password == "" || found == nil && verify(p.Hash, cfg.Password):
				return record.ErrKeep
			}
			p.Hash = hashPassword(cfg.Password)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("operator password: %w", err)
		}
		o.hash = stored.Hash
		if cfg.Password != "" {
			o.right = sign(o.quick, []byte(cfg.Password))
		}
		if _, err := o.readEnded(ctx); err != nil {
			return nil, err
		}
	}
	o.base = []byte(cfg.SessionKey)
	if cfg.SessionKey == "" {
		key, err := ensure(ctx, o, layout.SessionKeyKey, "log in again: a new key ends all sessions", func(k *keyRecord, found error) error {
			if found == nil {
				return record.ErrKeep
			}
			k.Key = make([]byte, sha256.Size)
			_, _ = rand.Read(k.Key) // never fails
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("session key: %w", err)
		}
		o.base = key.Key
	}
	o.setKey()
	return o, nil
}

// setKey derives the signing key from the session key and the password's hash, so that a
// new password ends all sessions.
func (o *Operator) setKey() {
	o.key = nil
	if o.hash != "" {
		o.key = sign(o.base, []byte(o.hash))
	}
}

// signing returns the current signing key of session cookies.
func (o *Operator) signing(ctx context.Context) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now := o.cfg.Now(); o.cfg.Follow && (o.hashRead.IsZero() || now.Sub(o.hashRead) > followCheck) {
		stored, _, err := record.Read[passwordRecord](ctx, o.cfg.Records, layout.PasswordKey)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("operator password: %w", err)
		}
		if o.hash != stored.Hash {
			o.right = nil
		}
		o.hash, o.hashRead = stored.Hash, now
		o.setKey()
	}
	return o.key, nil
}

// Authenticate implements web.Authenticator. The error may have the code TooMany after wrong
// tokens from the same address.
func (o *Operator) Authenticate(r *http.Request) (web.Caller, error) {
	token, basic, sent := web.Password(r)
	var caller web.Caller
	var err error
	if sent {
		caller, err = o.byToken(r, token)
	}
	_, none := r.Cookie(SessionCookie)
	if !sent || err != nil && basic && none == nil {
		// A proxy may demand a password of its own, which browsers then send with the session.
		caller, err = o.bySession(r)
	}
	if e, ok := errors.AsType[*problem.Error](err); ok && sent && e.Code == problem.Unauthorized {
		o.guesses.failed(web.ClientIP(r), o.cfg.Now())
	}
	return caller, err
}

// byToken returns the caller with a token.
//
// No limit delays a named token, which nobody can guess. The API token is chosen by people:
// an address that has sent too many wrong ones is admitted at a common rate, before the
// comparison. See [Operator.Login].
func (o *Operator) byToken(r *http.Request, token string) (web.Caller, error) {
	if token == "" {
		return web.Caller{}, problem.New(problem.Unauthorized, "the token that was sent is empty: set the variable that it comes from")
	}
	if isToken(token) {
		if t, ok, err := o.findToken(r.Context(), token); ok || err != nil {
			return web.Caller{Token: t.Name, Access: scopes[t.Scope]}, err
		}
	}
	from := web.ClientIP(r)
	if err := tooMany("tokens", o.guesses.wait(from, o.cfg.Now())); err != nil && !o.guesses.turn(r.Context()) {
		return web.Caller{}, err
	}
	sum := sha256.Sum256([]byte(token))
	if o.cfg.Token == "" || subtle.ConstantTimeCompare(sum[:], o.token[:]) != 1 {
		return web.Caller{}, problem.New(problem.Unauthorized, "the token that was sent is none of this server's: it was revoked, or is not what IMAGEROOT_TOKEN was at the start")
	}
	return web.Caller{Access: web.Admin}, nil
}

// bySession returns the operator if the request has a session.
func (o *Operator) bySession(r *http.Request) (web.Caller, error) {
	c, err := r.Cookie(SessionCookie)
	if err != nil {
		return web.Caller{}, problem.New(problem.Unauthorized, "this needs credentials: log in, or send a token as Authorization: Bearer or as a password")
	}
	key, err := o.signing(r.Context())
	if err != nil {
		return web.Caller{}, err
	}
	if id, expires, ok := o.parse(key, c.Value); ok {
		if ended, err := o.hasEnded(r.Context(), id, expires); err != nil || !ended {
			return web.Caller{Access: web.Admin}, err
		}
	}
	return web.Caller{}, problem.New(problem.Unauthorized, "the session has ended: log in again")
}

// Login checks a password and begins a session. The error is a [problem.Error] with the
// code Unauthorized, or TooMany with RetryAfter after wrong passwords from the same
// address, or the error of the request's context if that ends before the check.
//
// Clients may share an address, behind a router or a proxy that is not trusted.
// Therefore Login accepts a password that this process knows to be right, since it is
// configured or was verified before, however many wrong ones its address has sent. It
// admits the attempts of all addresses with too many wrong passwords at a common rate,
// which bounds guessing.
func (o *Operator) Login(w http.ResponseWriter, r *http.Request, password string) error {
	from := web.ClientIP(r)
	err := tooMany("passwords", o.attempts.wait(from, o.cfg.Now()))
	if err != nil && (!o.attempts.turn(r.Context()) || !o.knows(password)) {
		return err
	}
	if err == nil && !o.knows(password) {
		if err := o.learn(r.Context(), from, password); err != nil {
			return err
		}
	}
	expires := o.cfg.Now().Add(sessionTime)
	o.setCookie(w, r, o.issue(expires), int(sessionTime.Seconds()))
	return nil
}

// knows reports whether this process knows the password to be right.
func (o *Operator) knows(password string) bool {
	mac := sign(o.quick, []byte(password))
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.right != nil && hmac.Equal(o.right, mac)
}

// learn compares a password with the stored hash, and remembers it if it is right. It
// returns a TooMany problem if the address has to wait.
func (o *Operator) learn(ctx context.Context, from, password string) error {
	select {
	case o.hashing <- struct{}{}:
		defer func() { <-o.hashing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	// Other attempts from this address may have failed while this one waited.
	if err := tooMany("passwords", o.attempts.wait(from, o.cfg.Now())); err != nil {
		return err
	}
	o.mu.Lock()
	hash := o.hash
	o.mu.Unlock()
	if len(password) > maxPassword || !verify(hash, password) {
		o.attempts.failed(from, o.cfg.Now())
		return problem.New(problem.Unauthorized, "this is not the operator's password")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.hash == hash {
		o.right = sign(o.quick, []byte(password))
	}
	return nil
}

// tooMany returns a TooMany problem if an address has to wait, and nil otherwise.
func tooMany(what string, wait time.Duration) error {
	if wait <= 0 {
		return nil
	}
	e := problem.Newf(problem.TooMany, "too many wrong %s from this address: try again in %d s", what, int(wait.Seconds())+1)
	e.RetryAfter = wait
	return e
}

// Logout ends the request's session, for copies of its cookie too, and clears the
// cookie. Other processes refuse the session within 5 seconds. It returns nil if the
// request has no valid session. If it returns an error of the store, the session may
// not have ended.
func (o *Operator) Logout(w http.ResponseWriter, r *http.Request) error {
	o.setCookie(w, r, "", -1)
	c, err := r.Cookie(SessionCookie)
	if err != nil {
		return nil
	}
	key, err := o.signing(r.Context())
	if err != nil {
		return err
	}
	id, expires, ok := o.parse(key, c.Value)
	if !ok {
		return nil
	}
	now := o.cfg.Now()
	ended, err := o.changeEnded(r.Context(), func(e *endedRecord) error {
		if e.Sessions == nil {
			e.Sessions = map[string]int64{}
		}
		for other, until := range e.Sessions {
			if until < now.Unix() {
				delete(e.Sessions, other)
			}
		}
		e.Sessions[id] = expires.Unix()
		return nil
	})
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended, o.endedRead = ended, now
	return nil
}

func (o *Operator) setCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: SessionCookie, Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, Secure: web.IsTLS(r), SameSite: http.SameSiteStrictMode,
	})
}

const (
	idBytes      = 16
	payloadBytes = idBytes + 8
)

// issue returns the value of a session cookie: a random ID, the Unix second in which it
// expires, and the HMAC-SHA256 of both.
func (o *Operator) issue(expires time.Time) string {
	b := make([]byte, payloadBytes, payloadBytes+sha256.Size)
	_, _ = rand.Read(b[:idBytes]) // never fails
	binary.BigEndian.PutUint64(b[idBytes:], uint64(expires.Unix()))
	return base64.RawURLEncoding.EncodeToString(append(b, sign(o.key, b)...))
}

func (o *Operator) parse(key []byte, value string) (id string, expires time.Time, ok bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(value)
	if err != nil || len(b) != payloadBytes+sha256.Size || key == nil || !hmac.Equal(b[payloadBytes:], sign(key, b[:payloadBytes])) {
		return "", time.Time{}, false
	}
	expires = time.Unix(int64(binary.BigEndian.Uint64(b[idBytes:])), 0)
	return hex.EncodeToString(b[:idBytes]), expires, o.cfg.Now().Before(expires)
}

func sign(key, data []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(data)
	return m.Sum(nil)
}

// hasEnded reports whether a log-out has ended the session.
func (o *Operator) hasEnded(ctx context.Context, id string, expires time.Time) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := o.cfg.Now()
	if o.endedRead.IsZero() || now.Sub(o.endedRead) > endedCheck {
		rec, err := o.readEnded(ctx)
		if err != nil {
			return false, err
		}
		o.ended, o.endedRead = rec, now
	}
	_, ended := o.ended.Sessions[id]
	return ended || expires.Add(-sessionTime).Unix() < o.ended.Before, nil
}

// Validate implements record.Validator.
func (e *endedRecord) Validate() error {
	if e.Sessions == nil && e.Before == 0 {
		return errors.New("it lists no sessions")
	}
	return nil
}

// changeEnded changes the list of ended sessions. A damaged list may have named any
// session, so that it ends all of them.
func (o *Operator) changeEnded(ctx context.Context, change func(*endedRecord) error) (endedRecord, error) {
	rec, err := ensure(ctx, o, layout.EndedKey, "log in again: all sessions have ended", func(e *endedRecord, found error) error {
		err := change(e)
		if errors.Is(found, record.ErrDamaged) {
			e.Before = o.cfg.Now().Unix()
			return nil
		}
		return err
	})
	if err != nil {
		return rec, fmt.Errorf("ended sessions: %w", err)
	}
	return rec, nil
}

// readEnded returns the list of ended sessions.
func (o *Operator) readEnded(ctx context.Context) (endedRecord, error) {
	return o.changeEnded(ctx, func(*endedRecord) error { return record.ErrKeep })
}

// ensure is record.Repair for a record that the program needs. If the record is damaged,
// it logs that and remedy, which the operator can do.
func ensure[T any, P record.Pointer[T]](ctx context.Context, o *Operator, key store.Key, remedy string, change func(v P, found error) error) (T, error) {
	logged := false
	v, _, err := record.Repair(ctx, o.cfg.Records, key, func(v P, found error) error {
		if errors.Is(found, record.ErrDamaged) && !logged {
			logged = true
			o.cfg.Log.Warn("record made again", "key", key, "error", found, "remedy", remedy)
		}
		return change(v, found)
	})
	return v, err
}

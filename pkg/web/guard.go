// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"crypto/rand"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// guard lets through who has the token, or the cookie that it was exchanged for, and no
// request that another page made. In this order it refuses
//
//  1. another method than GET and HEAD                                        405
//  2. another Host than loopback with the port: a name of another page's that
//     was made to point here (DNS rebinding)                                  421
//  3. a request of another origin, also of another port of this machine       403
//  4. a request without the cookie, or with a wrong one                       403
type guard struct {
	next http.Handler
	// hosts are the values of Host that are accepted.
	hosts []string
	// token is in the URL, session in the cookie. They differ: the browser sends the cookie
	// to other ports of this machine as well.
	token, session string
	cookie         string // its name, which has the port in it for the same reason
}

func newGuard(addr netip.AddrPort, next http.Handler) *guard {
	port := strings.TrimPrefix(netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port()).String(), "0.0.0.0:")
	return &guard{
		next:  next,
		hosts: []string{addr.String(), net.JoinHostPort("localhost", port), net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)},
		token: rand.Text(), session: rand.Text(), cookie: "kubectl-ipam-" + port,
	}
}

// policy lets the page load its own files and nothing else, and keeps a script from making
// elements of text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	switch {
	case r.Method != http.MethodGet && r.Method != http.MethodHead: // 1
		h.Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "only GET and HEAD: this page changes nothing")
	case !slices.Contains(g.hosts, strings.ToLower(r.Host)): // 2
		refuse(w, http.StatusMisdirectedRequest, "the page has another name: open the URL that kubectl ipam web printed")
	case !g.own(r): // 3
		refuse(w, http.StatusForbidden, "another page asks: copy the URL that kubectl ipam web printed into the address bar")
	case r.URL.Path == "/" && r.URL.Query().Has("token"):
		g.exchange(w, r)
	case !g.knows(r): // 4
		refuse(w, http.StatusForbidden, "open the URL that kubectl ipam web printed: it has the token")
	default:
		g.next.ServeHTTP(w, r)
	}
}

// own reports whether the user made a request, or this page.
func (g *guard) own(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin": // "" is a browser that does not say it, or no browser
	default:
		return false
	}
	origin, found := r.Header["Origin"]
	return !found || len(origin) == 1 && strings.EqualFold(origin[0], "http://"+r.Host)
}

// exchange gives the cookie for the token, and leads to the page without the token in its
// address.
func (g *guard) exchange(w http.ResponseWriter, r *http.Request) {
	if !same(r.URL.Query().Get("token"), g.token) {
		refuse(w, http.StatusForbidden, "wrong token: open the URL that kubectl ipam web printed last")
		return
	}
	http.SetCookie(w, &http.Cookie{Name: g.cookie, Value: g.session, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (g *guard) knows(r *http.Request) bool {
	c, err := r.Cookie(g.cookie)
	return err == nil && same(c.Value, g.session)
}

// same compares in a time that does not depend on where they differ.
func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

func refuse(w http.ResponseWriter, code int, message string) { http.Error(w, message, code) }

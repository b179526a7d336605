// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package web

import (
	"bufio"
	"context"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

func newServer(t *testing.T) *Server {
	t.Helper()
	s, err := New(new(inspect.Copy), &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 4711}, "a cluster")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// ask sends a request to a path, with the cookie. Headers are in pairs; Host is one of them.
func ask(s *Server, method, path string, headers ...string) *answer {
	r := httptest.NewRequest(method, path, nil)
	r.Host = "127.0.0.1:4711"
	r.AddCookie(&http.Cookie{Name: s.guard.cookie, Value: s.guard.session})
	for i := 0; i < len(headers); i += 2 {
		switch headers[i] {
		case "Host":
			r.Host = headers[i+1]
		case "Cookie":
			r.Header.Set("Cookie", headers[i+1])
		default:
			r.Header.Add(headers[i], headers[i+1])
		}
	}
	w := httptest.NewRecorder()
	s.guard.ServeHTTP(w, r)
	result := w.Result()
	defer func() { _ = result.Body.Close() }()
	return &answer{result.Status, result.StatusCode, result.Header, result.Cookies(), w.Body.String()}
}

type answer struct {
	Status     string
	StatusCode int
	Header     http.Header
	Cookies    []*http.Cookie
	Body       string
}

func TestGuard(t *testing.T) {
	s := newServer(t)
	good := s.guard.cookie + "=" + s.guard.session
	for _, tc := range []struct {
		name    string
		method  string
		path    string
		headers []string
		want    int
	}{
		{name: "the page", path: "/", want: 200},
		{name: "an answer", path: "/api/pools", want: 200},
		{name: "HEAD", method: "HEAD", path: "/api/pools", want: 200},
		{name: "by another name of loopback", path: "/", headers: []string{"Host", "LocalHost:4711"}, want: 200},
		{name: "IPv6", path: "/", headers: []string{"Host", "[::1]:4711"}, want: 200},
		{name: "typed into the address bar", path: "/", headers: []string{"Sec-Fetch-Site", "none"}, want: 200},
		{name: "of the page itself", path: "/api/pools", headers: []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://127.0.0.1:4711"}, want: 200},

		{name: "POST", method: "POST", path: "/api/pools", want: 405},
		{name: "PUT", method: "PUT", path: "/api/pools", want: 405},
		{name: "DELETE", method: "DELETE", path: "/", want: 405},
		{name: "OPTIONS", method: "OPTIONS", path: "/api/pools", want: 405},
		{name: "PATCH with the token", method: "PATCH", path: "/?token=" + s.guard.token, want: 405},

		{name: "another name", path: "/", headers: []string{"Host", "evil.example:4711"}, want: 421},
		{name: "another name, with the token", path: "/?token=" + s.guard.token, headers: []string{"Host", "evil.example:4711"}, want: 421},
		{name: "a name that begins as ours", path: "/", headers: []string{"Host", "127.0.0.1.evil.example:4711"}, want: 421},
		{name: "another port", path: "/", headers: []string{"Host", "127.0.0.1:80"}, want: 421},
		{name: "no port", path: "/", headers: []string{"Host", "127.0.0.1"}, want: 421},
		{name: "no host", path: "/", headers: []string{"Host", ""}, want: 421},

		{name: "another site", path: "/", headers: []string{"Sec-Fetch-Site", "cross-site"}, want: 403},
		{name: "another port of this machine", path: "/api/pools", headers: []string{"Sec-Fetch-Site", "same-site"}, want: 403},
		{name: "another site, with the token", path: "/?token=" + s.guard.token, headers: []string{"Sec-Fetch-Site", "cross-site"}, want: 403},
		{name: "another origin", path: "/api/pools", headers: []string{"Origin", "http://evil.example"}, want: 403},
		{name: "an origin with another port", path: "/api/pools", headers: []string{"Origin", "http://127.0.0.1:80"}, want: 403},
		{name: "an opaque origin", path: "/api/pools", headers: []string{"Origin", "null"}, want: 403},
		{name: "two origins", path: "/api/pools", headers: []string{"Origin", "http://127.0.0.1:4711", "Origin", "http://evil.example"}, want: 403},

		{name: "no cookie", path: "/", headers: []string{"Cookie", ""}, want: 403},
		{name: "no cookie for an answer", path: "/api/events", headers: []string{"Cookie", ""}, want: 403},
		{name: "no cookie for a script", path: "/app.js", headers: []string{"Cookie", ""}, want: 403},
		{name: "a wrong cookie", path: "/", headers: []string{"Cookie", good + "x"}, want: 403},
		{name: "the token as the cookie", path: "/", headers: []string{"Cookie", s.guard.cookie + "=" + s.guard.token}, want: 403},
		{name: "the cookie of another port", path: "/", headers: []string{"Cookie", "kubectl-ipam-80=" + s.guard.session}, want: 403},
		{name: "a wrong token", path: "/?token=x", want: 403},
		{name: "an empty token", path: "/?token=", want: 403},
		{name: "the session as the token", path: "/?token=" + s.guard.session, want: 403},
		{name: "the token for an answer", path: "/api/pools?token=" + s.guard.token, headers: []string{"Cookie", ""}, want: 403},
		{name: "no such file", path: "/etc/passwd", want: 404},
		{name: "a path upwards", path: "/../server.go", want: 307}, // to /server.go, which is not there either
		{name: "a file of this package", path: "/server.go", want: 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.method == "" {
				tc.method = "GET"
			}
			got := ask(s, tc.method, tc.path, tc.headers...)
			if got.StatusCode != tc.want {
				t.Errorf("%d, want %d", got.StatusCode, tc.want)
			}
			for name, want := range map[string]string{
				"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
				"Cross-Origin-Resource-Policy": "same-origin", "Cross-Origin-Opener-Policy": "same-origin", "Access-Control-Allow-Origin": "",
			} {
				if value := got.Header.Get(name); value != want {
					t.Errorf("%s is %q, want %q", name, value, want)
				}
			}
			if cached := got.Header.Get("Cache-Control"); tc.want < 404 && cached != "no-store" {
				t.Errorf("Cache-Control is %q", cached)
			}
			if allow := got.Header.Get("Allow"); (tc.want == 405) != (allow == "GET, HEAD") {
				t.Errorf("Allow is %q", allow)
			}
		})
	}
}

// The token in the URL is exchanged for a cookie that no script and no other site can use.
func TestToken(t *testing.T) {
	s := newServer(t)
	path, found := strings.CutPrefix(s.URL(), "http://127.0.0.1:4711")
	if !found {
		t.Fatal(s.URL())
	}
	got := ask(s, "GET", path, "Cookie", "")
	cookies := got.Cookies
	if got.StatusCode != 303 || got.Header.Get("Location") != "/" || len(cookies) != 1 {
		t.Fatalf("%s, to %q, %d cookies", got.Status, got.Header.Get("Location"), len(cookies))
	}
	c := cookies[0]
	if !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || c.MaxAge != 0 || !c.Expires.IsZero() {
		t.Errorf("%+v", c)
	}
	if len(s.guard.token) < 26 || len(c.Value) < 26 || c.Value == s.guard.token { // 128 bits
		t.Errorf("token %q, cookie %q", s.guard.token, c.Value)
	}
	if again := ask(s, "GET", "/", "Cookie", c.Name+"="+c.Value); again.StatusCode != 200 {
		t.Error(again.Status)
	}
	if other := newServer(t); other.guard.token == s.guard.token || other.guard.session == s.guard.session {
		t.Error("two servers have one token")
	}
}

func TestListen(t *testing.T) {
	for address, want := range map[string]string{
		"127.0.0.1": "", "127.0.0.2": "", "0.0.0.0": "is not on loopback", "10.0.0.1": "is not on loopback", "::": "is not on loopback", "localhost": "is not an IP address", "": "is not an IP address",
	} {
		l, err := Listen(address, 0)
		if err == nil {
			_ = l.Close()
		}
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
	}
}

// A name from the cluster is not HTML, wherever it comes back.
func TestHostileNames(t *testing.T) {
	s := newServer(t)
	const name = `<img src=x onerror=alert(1)>`
	for _, path := range []string{
		"/api/map?namespace=a&kind=IPPool&name=" + strings.ReplaceAll(name, " ", "%20"),
		"/api/map?namespace=a&kind=IPPool&name=a&from=" + strings.ReplaceAll(name, " ", "%20"),
		"/api/map?namespace=a&kind=IPPool&name=a&at=" + strings.ReplaceAll(name, " ", "%20"),
		"/api/holders?namespace=" + strings.ReplaceAll(name, " ", "%20") + "&from=10.0.0.1&to=10.0.0.2",
		"/" + strings.ReplaceAll(name, " ", "%20"),
	} {
		got := ask(s, "GET", path)
		kind := got.Header.Get("Content-Type")
		if strings.Contains(got.Body, "<img") || kind != "application/json" && !strings.HasPrefix(kind, "text/plain") {
			t.Errorf("%s: %s: %s", path, kind, got.Body)
		}
	}
}

func TestWrongQuestions(t *testing.T) {
	s := newServer(t)
	for path, want := range map[string]int{
		"/api/map?namespace=a&kind=IPPool&name=b": 404, "/api/map?from=10.0.0.1": 400, "/api/map?from=10.0.0.9&to=10.0.0.1": 400, "/api/map?from=10.0.0.1&to=fd00::": 400,
		"/api/map?at=x": 400, "/api/holders": 400, "/api/holders?from=10.0.0.1&to=10.0.0.2": 404, "/api/search": 200, "/api/leaks": 200, "/api/other": 404,
	} {
		if got := ask(s, "GET", path); got.StatusCode != want {
			t.Errorf("%s: %s, want %d", path, got.Status, want)
		}
	}
}

// The stream begins with the state, and ends with the server.
func TestEvents(t *testing.T) {
	l, err := Listen("127.0.0.1", 0)
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(new(inspect.Copy), l.Addr(), `a "cluster"`)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+"/api/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(&http.Cookie{Name: s.guard.cookie, Value: s.guard.session})
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }()
	lines := bufio.NewReader(response.Body)
	line, err := lines.ReadString('\n')
	if err != nil || !strings.HasPrefix(line, `data: {"cluster":"a \"cluster\"",`) || response.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("%v, %q", err, line)
	}
	stop()
	if _, err := io.ReadAll(lines); err == nil {
		t.Log("the stream ended in good order")
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// The page loads nothing from elsewhere, has no script or style in its HTML, and never
// makes elements of text.
func TestPage(t *testing.T) {
	page, err := fs.Sub(files, "page")
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(`(?i)innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|createContextualFragment|\son[a-z]+=|<style|style=|javascript:|@import|https?://(?:[a-z0-9-]+\.)+[a-z]{2,}`)
	seen := 0
	err = fs.WalkDir(page, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := fs.ReadFile(page, path)
		seen++
		text := strings.ReplaceAll(string(data), "http://www.w3.org/2000/svg", "") // a name, no address
		for _, m := range forbidden.FindAllString(text, -1) {
			t.Errorf("%s has %q", path, m)
		}
		return err
	})
	if err != nil || seen < 7 {
		t.Errorf("%v, %d files", err, seen)
	}
	html, err := fs.ReadFile(page, "index.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`<script[^>]*>`).FindAllString(string(html), -1) {
		if !strings.Contains(m, `src="`) {
			t.Errorf("%s is a script in the page", m)
		}
	}
}

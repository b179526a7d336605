// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"bytes"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Proxy stands in front of an API server, speaks to it as somebody, whoever its own
// clients say that they are, and fails as it is told.
type Proxy struct {
	*httptest.Server

	// Forward passes a request on.
	Forward http.Handler

	fault atomic.Pointer[http.HandlerFunc]
	mu    sync.Mutex
	seen  []time.Time
}

// NewProxy starts a proxy, which offers HTTP/2, as an API server does.
func NewProxy(t testing.TB, as *rest.Config) *Proxy {
	t.Helper()
	forward := httputil.NewSingleHostReverseProxy(must(url.Parse(as.Host))(t))
	forward.Transport = withoutAuthorization{must(rest.TransportFor(as))(t)}
	p := &Proxy{Forward: forward}
	p.Server = httptest.NewUnstartedServer(p)
	p.EnableHTTP2 = true
	p.Config.ErrorLog = log.New(io.Discard, "", 0)
	p.StartTLS()
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

// withoutAuthorization leaves out the client's own token.
type withoutAuthorization struct{ next http.RoundTripper }

func (w withoutAuthorization) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Del("Authorization")
	return w.next.RoundTrip(req)
}

func (p *Proxy) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	p.mu.Lock()
	p.seen = append(p.seen, time.Now())
	p.mu.Unlock()
	if f := p.fault.Load(); f != nil {
		(*f)(w, req)
		return
	}
	p.Forward.ServeHTTP(w, req)
}

// Fail lets f answer every request; nil ends that.
func (p *Proxy) Fail(f http.HandlerFunc) {
	if f == nil {
		p.fault.Store(nil)
		return
	}
	p.fault.Store(&f)
}

// Seen returns when requests came since the last call.
func (p *Proxy) Seen() []time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := p.seen
	p.seen = nil
	return seen
}

// CA is the authority of its certificate, as PEM.
func (p *Proxy) CA() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw})
}

// Kubeconfig writes a file for a user of the proxy and returns its path.
func (p *Proxy) Kubeconfig(t testing.TB, path string) string {
	t.Helper()
	WriteKubeconfig(t, path, p.URL, p.CA(), &clientcmdapi.AuthInfo{Token: "t"})
	return path
}

// FreePort is an address on loopback that nobody listens on.
func FreePort(t testing.TB) string {
	t.Helper()
	l := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer l.Close()
	return l.Addr().String()
}

// Log is what processes or goroutines have written so far.
type Log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

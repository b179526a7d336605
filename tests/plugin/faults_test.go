// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// ends is by when a call has to end by itself: well before the four minutes after
// which a kubelet gives up, and well after the 26 seconds that an ADD may take.
const ends = 90 * time.Second

// newProxy starts a proxy that speaks to the API server as an administrator.
func newProxy(t *testing.T) *rig.Proxy {
	t.Helper()
	return rig.NewProxy(t, env.Config)
}

// behindProxy puts a proxy between the node and the API server.
func (h *host) behindProxy(t *testing.T, c *cluster) *rig.Proxy {
	t.Helper()
	p := newProxy(t)
	h.use(t, c, p.Kubeconfig(t, filepath.Join(h.dir, "proxy.kubeconfig")))
	return p
}

// use makes the node use a kubeconfig file, or the administrator's where it is
// empty.
func (h *host) use(t *testing.T, c *cluster, kubeconfig string) {
	t.Helper()
	if kubeconfig == "" {
		kubeconfig = env.Kubeconfig
	}
	h.configure(t, map[string]any{
		"kubeconfig": kubeconfig, "poolsNamespace": c.NS, "nodeName": h.name,
		"dataDir": filepath.Join(h.dir, "data"), "logFile": filepath.Join(h.dir, "log"), "logLevel": "debug",
	})
}

var token = &clientcmdapi.AuthInfo{Token: "t"}

// status answers with an API server's status object.
func status(code int, reason string, retryAfter int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if retryAfter > 0 {
			w.Header().Set("Retry-After", fmt.Sprint(retryAfter))
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"the test says %s","reason":%q,"details":{"retryAfterSeconds":%d},"code":%d}`, reason, reason, retryAfter, code)
	}
}

// text answers with what is no status object.
func text(code int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(code)
		_, _ = io.WriteString(w, body)
	}
}

// silent answers after its client has given up.
func silent(_ http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
	select {
	case <-req.Context().Done():
	case <-time.After(30 * time.Second):
	}
}

// broken breaks the connection in the middle of an answer.
func broken(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "1000")
	_, _ = io.WriteString(w, `{"kind":`)
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// fault is a way in which the API server cannot be asked.
type fault struct {
	name string
	// server returns the kubeconfig to ask it with.
	server func(t *testing.T, path string)
	// words that the error has besides the kubeconfig's path.
	words []string
}

// behind is a fault of a server that can be reached.
func behind(f http.HandlerFunc) func(*testing.T, string) {
	return func(t *testing.T, path string) {
		p := newProxy(t)
		p.Fail(f)
		p.Kubeconfig(t, path)
	}
}

func faults() []fault {
	return []fault{
		{"slow", behind(silent), []string{"API server unavailable", "https://127.0.0.1:", "does not answer in time"}},
		{"black hole", func(t *testing.T, path string) { rig.WriteKubeconfig(t, path, "https://"+blackHole(t), nil, token) },
			[]string{"API server unavailable", "https://127.0.0.1:", "firewall"}},
		{"refusing", func(t *testing.T, path string) { deadKubeconfig(t, path) }, []string{"API server unavailable", "https://127.0.0.1:1", "is the API server running?"}},
		{"throttling", behind(status(429, "TooManyRequests", 60)), []string{"API server unavailable", "https://127.0.0.1:", "priority-and-fairness"}},
		{"throttling, as its priority and fairness does", behind(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Retry-After", "1")
			text(429, "text/plain", "Too many requests, please try again later.")(w, req)
		}), []string{"API server unavailable", "priority-and-fairness"}},
		{"500", behind(status(500, "InternalError", 0)), []string{"API server unavailable", "the test says InternalError", "its own log"}},
		{"503 while it starts", behind(status(503, "ServiceUnavailable", 1)), []string{"API server unavailable", "ServiceUnavailable"}},
		{"504", behind(status(504, "Timeout", 0)), []string{"API server unavailable", "Timeout"}},
		{"answer cut off", behind(broken), []string{"API server unavailable", "https://127.0.0.1:"}},
		{"closes each connection", func(t *testing.T, path string) {
			p := newProxy(t)
			rig.WriteKubeconfig(t, path, "https://"+hangUp(t, p.TLS.Certificates), p.CA(), token)
		},
			[]string{"API server unavailable", "https://127.0.0.1:"}},
		{"proxy's 502", behind(text(502, "text/html", "<html>bad gateway</html>")), []string{"API server unavailable", "bad gateway", "in front of the API server"}},
		{"proxy's 404", behind(text(404, "text/html", "<html>where am I</html>")), []string{"API server unavailable", "CRDs of nv-ipam.nvidia.com"}},
		{"no CRDs", behind(text(404, "text/plain; charset=utf-8", "404 page not found")), []string{"API server unavailable", "CRDs of nv-ipam.nvidia.com"}},
		{"proxy's 200", behind(text(200, "text/html", "<html>log in here</html>")), []string{"https://127.0.0.1:", "did not come from a Kubernetes API server"}},
		{"name gone", func(t *testing.T, path string) {
			rig.WriteKubeconfig(t, path, "https://api.gone.invalid:6443", nil, token)
		},
			[]string{"API server unavailable", "https://api.gone.invalid:6443", "/etc/resolv.conf"}},
		{"certificate of the client expired", func(t *testing.T, path string) {
			p := newProxy(t)
			user, ca := expiredUser(t)
			p.TLS.ClientCAs, p.TLS.ClientAuth = ca, tls.RequireAndVerifyClientCert
			rig.WriteKubeconfig(t, path, p.URL, p.CA(), user)
		}, []string{"asked as system:node:a", "expired at 2020-01-02T00:00:00Z and have not been renewed"}},
		{"certificate of the server not trusted", func(t *testing.T, path string) {
			_, other := newCA(t, time.Now().Add(time.Hour))
			rig.WriteKubeconfig(t, path, newProxy(t).URL, other, token)
		}, []string{"certificate authority", "is not that of https://127.0.0.1:"}},
		{"token rejected", func(t *testing.T, path string) {
			rig.WriteKubeconfig(t, path, env.Config.Host, env.Config.CAData, token)
		},
			[]string{"Unauthorized", "they may be revoked"}},
		{"forbidden", func(t *testing.T, path string) {
			nobody, err := env.UserConfig("nobody")
			if err != nil {
				t.Fatal(err)
			}
			rig.WriteKubeconfig(t, path, env.Config.Host, env.Config.CAData, &clientcmdapi.AuthInfo{ClientCertificateData: nobody.CertData, ClientKeyData: nobody.KeyData})
		}, []string{"asked as nobody", "ClusterRole crd-ipam-node"}},
	}
}

// Whatever is wrong with the API server, STATUS says so, ADD fails in time with
// words that help, and DEL lets the pod go: the release is owed and carried out by
// the next call, of any verb.
func TestFaultsOfTheServer(t *testing.T) {
	t.Parallel()
	for i, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			h.mustAdd(t, call{container: "c1"})
			path := filepath.Join(h.dir, "faulty.kubeconfig")
			f.server(t, path)
			h.use(t, c, path)

			words := append([]string{path}, f.words...)
			inTime(t, "STATUS", func() { h.wantError(t, call{verb: "STATUS"}, 50, words...) })
			inTime(t, "ADD", func() { h.wantError(t, call{verb: "ADD", container: "c2"}, 11, words...) })
			inTime(t, "CHECK", func() { h.wantError(t, call{verb: "CHECK", container: "c1"}, 11, words...) })
			inTime(t, "DEL", func() { h.mustRun(t, call{verb: "DEL", container: "c2"}) })
			inTime(t, "DEL", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) })
			if got := c.held(t); got != "[10.0.0.2]" {
				t.Errorf("held %s", got)
			}
			h.use(t, c, "")
			next := []call{{verb: "STATUS"}, {verb: "DEL", container: "c9"}, {verb: "ADD", container: "c9"}, gc()}[i%4]
			h.mustRun(t, next)
			h.mustRun(t, call{verb: "DEL", container: "c9"})
			if got := c.held(t); got != "[]" {
				t.Errorf("%s did not carry out what was owed: held %s", next.verb, got)
			}
		})
	}
}

func inTime(t *testing.T, what string, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > ends {
		t.Errorf("%s took %s", what, took)
	}
}

// The API server says when it wants to be asked again.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	p := h.behindProxy(t, c)
	h.mustAdd(t, call{container: "c1"})
	p.Seen()

	var refusals atomic.Int64
	p.Fail(func(w http.ResponseWriter, req *http.Request) {
		if refusals.Add(1) <= 2 {
			status(429, "TooManyRequests", 2)(w, req)
			return
		}
		p.Forward.ServeHTTP(w, req)
	})
	h.mustAdd(t, call{container: "c2"})
	seen := p.Seen()
	if len(seen) != 4 { // the read three times, the create once
		t.Fatalf("%d requests, want 4", len(seen))
	}
	for i := range 2 {
		if pause := seen[i+1].Sub(seen[i]); pause < 2*time.Second {
			t.Errorf("asked again after %s, told to wait for 2 s", pause)
		}
	}
}

// A create that is carried out although its client has gone: what was claimed is
// given back, at the latest by the next call.
func TestSlowServerCarriesItOutLate(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c1"})
	p := h.behindProxy(t, c)

	var late sync.WaitGroup
	p.Fail(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodPost {
			p.Forward.ServeHTTP(w, req)
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		target := env.Config.Host + req.URL.RequestURI()
		late.Add(1)
		go func() {
			defer late.Done()
			<-req.Context().Done()
			client, err := rest.HTTPClientFor(env.Config)
			if err != nil {
				t.Error(err)
				return
			}
			resp, err := client.Post(target, "application/json", strings.NewReader(string(body)))
			if err != nil {
				t.Error(err)
				return
			}
			_ = resp.Body.Close()
		}()
		<-req.Context().Done()
	})
	h.wantError(t, call{verb: "ADD", container: "c2"}, 11, "API server unavailable", "proxy.kubeconfig")
	late.Wait()
	h.use(t, c, "")
	h.mustRun(t, call{verb: "DEL", container: "c2"})
	h.mustRun(t, call{verb: "STATUS"})
	if got := c.held(t); got != "[10.0.0.2]" {
		t.Errorf("held %s", got)
	}
}

// A program that is to print credentials and never ends does not keep the runtime
// waiting either.
func TestCredentialProgramHangs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c1"})
	fifo := filepath.Join(h.dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "exec.kubeconfig")
	rig.WriteKubeconfig(t, path, env.Config.Host, env.Config.CAData, &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{
		APIVersion: "client.authentication.k8s.io/v1", Command: cat, Args: []string{fifo}, InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
	}})
	h.use(t, c, path)
	inTime(t, "STATUS", func() { h.wantError(t, call{verb: "STATUS"}, 50, "an exec credential plugin") })
}

// The kubelet's credentials are gone: pods can go nevertheless, where the node
// knows what they hold.
func TestDelWithoutCredentials(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	for name, spoil := range map[string]func(t *testing.T, path string){
		"none": func(*testing.T, string) {},
		"torn": func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Config\nusers: ["), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"certificate gone": func(t *testing.T, path string) {
			rig.WriteKubeconfig(t, path, env.Config.Host, env.Config.CAData, &clientcmdapi.AuthInfo{ClientCertificate: path + ".pem", ClientKey: path + ".pem"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := c.host(t, "a")
			h.mustAdd(t, call{container: "c1"})
			held := c.held(t)
			path := filepath.Join(h.dir, "kubelet.conf")
			spoil(t, path)
			h.use(t, c, path)
			h.wantError(t, call{verb: "ADD", container: "c2"}, 7, path)
			h.mustRun(t, call{verb: "DEL", container: "c2"})
			h.mustRun(t, call{verb: "DEL", container: "c1"})
			if got := c.held(t); got != held {
				t.Errorf("held %s, want %s", got, held)
			}
			h.use(t, c, "")
			h.mustRun(t, call{verb: "STATUS"})
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// hangUp returns the address of a server that closes each connection instead of answering.
func hangUp(t *testing.T, certs []tls.Certificate) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: certs})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.(*tls.Conn).Handshake()
			_ = conn.Close()
		}
	}()
	return listener.Addr().String()
}

// blackHole returns an address that drops packets: a listener that nobody accepts
// from and whose queue is full.
func blackHole(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprint("127.0.0.1:", name.(*unix.SockaddrInet4).Port)
	for range 10 {
		conn, err := net.DialTimeout("tcp", addr, 500*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	t.Fatal("connections to a listener without a queue are answered")
	return ""
}

// newCA returns a certificate authority, parsed and as a file has it.
func newCA(t *testing.T, until time.Time) (*authority, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "another"}, NotBefore: time.Unix(0, 0), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// expiredUser returns a kubelet's credentials whose time is over, and who issued
// them.
func expiredUser(t *testing.T) (*clientcmdapi.AuthInfo, *x509.CertPool) {
	t.Helper()
	ca, _ := newCA(t, time.Now().Add(time.Hour))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "system:node:a"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &clientcmdapi.AuthInfo{
		ClientCertificateData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		ClientKeyData:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}, pool
}

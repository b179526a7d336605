// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// forwardProxy is an HTTP proxy that counts the connections that it is asked for.
type forwardProxy struct {
	*httptest.Server

	connects atomic.Int64
	refuse   bool
}

func newForwardProxy(t *testing.T, refuse bool) *forwardProxy {
	t.Helper()
	p := &forwardProxy{refuse: refuse}
	p.Server = httptest.NewServer(http.HandlerFunc(p.connect))
	t.Cleanup(func() {
		p.CloseClientConnections()
		p.Close()
	})
	return p
}

func (p *forwardProxy) connect(w http.ResponseWriter, req *http.Request) {
	p.connects.Add(1)
	if p.refuse || req.Method != http.MethodConnect {
		http.Error(w, "Forbidden", http.StatusForbidden)
		return
	}
	server, err := net.Dial("tcp", req.Host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer server.Close()
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer client.Close()
	_, _ = io.WriteString(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { _, _ = io.Copy(server, client) }()
	_, _ = io.Copy(client, server)
}

// admin is a kubeconfig of the administrator, changed. Its server has an address
// that is this machine's and for which a library does not skip a proxy, as it does
// for 127.0.0.1.
func admin(t *testing.T, path string, change func(*clientcmdapi.Cluster, *clientcmdapi.AuthInfo)) {
	t.Helper()
	server, err := url.Parse(env.Config.Host)
	if err != nil {
		t.Fatal(err)
	}
	cluster := &clientcmdapi.Cluster{Server: "https://0.0.0.0:" + server.Port(), TLSServerName: server.Hostname(), CertificateAuthorityData: env.Config.CAData}
	user := &clientcmdapi.AuthInfo{}
	from, err := clientcmd.LoadFromFile(env.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range from.AuthInfos {
		user = u
	}
	if change != nil {
		change(cluster, user)
	}
	config := clientcmdapi.Config{
		Clusters: map[string]*clientcmdapi.Cluster{"c": cluster}, AuthInfos: map[string]*clientcmdapi.AuthInfo{"c": user},
		Contexts: map[string]*clientcmdapi.Context{"c": {Cluster: "c", AuthInfo: "c"}}, CurrentContext: "c",
	}
	if err := clientcmd.WriteToFile(config, path); err != nil {
		t.Fatal(err)
	}
}

// allVerbs runs each verb with an environment that a runtime may have.
func (h *host) allVerbs(t *testing.T) {
	t.Helper()
	h.mustRun(t, call{verb: "STATUS"})
	h.mustAdd(t, call{container: "c1"})
	h.mustRun(t, call{verb: "CHECK", container: "c1"})
	h.mustRun(t, call{verb: "GC", conf: map[string]any{"cni.dev/valid-attachments": []any{map[string]any{"containerID": "c1", "ifname": "net1"}}}})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
}

// The runtime's environment has no effect on how the API server is asked.
func TestEnvironmentDecidesNothing(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	proxy := newForwardProxy(t, true)
	elsewhere := filepath.Join(t.TempDir(), "elsewhere.kubeconfig")
	deadKubeconfig(t, elsewhere)
	for _, environment := range [][]string{
		{"HTTPS_PROXY=" + proxy.URL}, {"https_proxy=" + proxy.URL}, {"HTTP_PROXY=" + proxy.URL}, {"http_proxy=" + proxy.URL},
		{"ALL_PROXY=" + proxy.URL, "all_proxy=" + proxy.URL}, {"HTTPS_PROXY=:bad:"}, {"HTTPS_PROXY=" + proxy.URL, "NO_PROXY=example.com"},
		{"HTTPS_PROXY=socks5://127.0.0.1:1"},
		{"KUBECONFIG=" + elsewhere}, {"KUBERNETES_MASTER=https://127.0.0.1:1"}, {"KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=1"},
		{"KUBE_FEATURE_ClientsAllowCBOR=true", "KUBE_FEATURE_ClientsPreferCBOR=true"}, {"KUBE_CLIENT_BACKOFF_BASE=30", "KUBE_CLIENT_BACKOFF_DURATION=60"},
		{"SSL_CERT_FILE=/dev/null", "SSL_CERT_DIR=/dev"}, {"DISABLE_HTTP2=1", "HTTP2_READ_IDLE_TIMEOUT_SECONDS=x"},
		{"GODEBUG=http2client=0,x509sha1=1,netdns=cgo"}, {"HOME=/nowhere", "TMPDIR=/nowhere"},
	} {
		t.Run(environment[0], func(t *testing.T) {
			h := c.host(t, "a")
			path := filepath.Join(h.dir, "admin.kubeconfig")
			admin(t, path, nil)
			h.use(t, c, path)
			h.environment = environment
			h.allVerbs(t)
			if n := proxy.connects.Swap(0); n > 0 {
				t.Errorf("%d connections went to the proxy", n)
			}
		})
	}
}

// A proxy in the kubeconfig is used, whatever the environment says.
func TestProxyOfTheKubeconfig(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	wanted, other := newForwardProxy(t, false), newForwardProxy(t, true)
	h := c.host(t, "a")
	path := filepath.Join(h.dir, "admin.kubeconfig")
	admin(t, path, func(cluster *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { cluster.ProxyURL = wanted.URL })
	h.use(t, c, path)
	h.environment = []string{"HTTPS_PROXY=" + other.URL, "NO_PROXY=*"}
	h.allVerbs(t)
	if wanted.connects.Load() == 0 || other.connects.Load() > 0 {
		t.Errorf("%d connections went to the kubeconfig's proxy, %d to the environment's", wanted.connects.Load(), other.connects.Load())
	}
}

// An authority that only the environment trusts is not trusted.
func TestAuthorityOfTheEnvironmentIsNotTrusted(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	ca := filepath.Join(h.dir, "ca.pem")
	if err := os.WriteFile(ca, env.Config.CAData, 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.dir, "admin.kubeconfig")
	admin(t, path, func(cluster *clientcmdapi.Cluster, _ *clientcmdapi.AuthInfo) { cluster.CertificateAuthorityData = nil })
	h.use(t, c, path)
	h.environment = []string{"SSL_CERT_FILE=" + ca}
	h.wantError(t, call{verb: "STATUS"}, 50, "certificate", path)
}

// A credential program gets the runtime's environment, and its own entries win.
func TestCredentialProgramHasTheEnvironment(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	proxy := newForwardProxy(t, true)
	h := c.host(t, "a")
	path, seen := filepath.Join(h.dir, "admin.kubeconfig"), filepath.Join(h.dir, "seen")
	admin(t, path, func(_ *clientcmdapi.Cluster, user *clientcmdapi.AuthInfo) {
		credential, err := json.Marshal(map[string]any{
			"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
			"status": map[string]string{"clientCertificateData": string(user.ClientCertificateData), "clientKeyData": string(user.ClientKeyData)},
		})
		program := filepath.Join(h.dir, "credential")
		script := "#!/bin/sh\nPATH=$PATH:/usr/bin:/bin\nenv >" + seen + "\ncat <<'.'\n" + string(credential) + "\n.\n"
		if err == nil {
			err = os.WriteFile(program, []byte(script), 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
		*user = clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{
			APIVersion: "client.authentication.k8s.io/v1", Command: program, InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
			Env: []clientcmdapi.ExecEnvVar{{Name: "REGION", Value: "kubeconfig"}}, ProvideClusterInfo: true,
		}}
	})
	h.use(t, c, path)
	h.environment = []string{"HTTPS_PROXY=" + proxy.URL, "REGION=environment", "HOME=/root", "PATH=" + os.Getenv("PATH")}
	h.allVerbs(t)
	got, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"HTTPS_PROXY=" + proxy.URL, "REGION=kubeconfig", "HOME=/root", "CNI_IFNAME=net1"} {
		if !bytes.Contains(got, []byte(line+"\n")) {
			t.Errorf("the program does not see %s in\n%s", line, got)
		}
	}
	if strings.Contains(string(got), "REGION=environment") || proxy.connects.Load() > 0 {
		t.Errorf("%d connections went to the proxy; the program sees\n%s", proxy.connects.Load(), got)
	}
}

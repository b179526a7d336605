// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// pair is a certificate and its key.
type pair struct{ cert, key []byte }

func newPair(t *testing.T, commonName string, until time.Time) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: commonName, Organization: []string{"system:nodes"}},
		NotBefore: until.Add(-time.Hour), NotAfter: until,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		cert: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		key:  pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}
}

func (p pair) inline() string {
	return fmt.Sprintf("client-certificate-data: %s, client-key-data: %s",
		base64.StdEncoding.EncodeToString(p.cert), base64.StdEncoding.EncodeToString(p.key))
}

// jwt is a token that nobody has signed.
func jwt(t *testing.T, claims map[string]any) string {
	t.Helper()
	data, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	return "e30." + base64.RawURLEncoding.EncodeToString(data) + ".c2lnbmVk"
}

func nodeToken(t *testing.T, node string) string {
	t.Helper()
	return jwt(t, map[string]any{
		"sub": "system:serviceaccount:kube-system:crd-ipam-plugin", "exp": time.Now().Add(time.Hour).Unix(),
		"kubernetes.io": map[string]any{"namespace": "kube-system", "node": map[string]any{"name": node, "uid": "u"}},
	})
}

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// writeKubeconfig writes a kubeconfig whose user is given as YAML.
func writeKubeconfig(t *testing.T, path, user string) string {
	t.Helper()
	return writeFile(t, path, []byte(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {`+user+`}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`))
}

// The first file of the list that exists is used.
func TestFindCredentials(t *testing.T) {
	places := []string{
		"CONFDIR/nv-ipam.kubeconfig",
		"/etc/kubernetes/kubelet.conf",
		"/var/lib/kubelet/kubeconfig",
		"/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
		"/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
		"/var/snap/microk8s/current/credentials/kubelet.config",
		"/etc/kubernetes/kubeconfig-kubelet",
		"/var/lib/k0s/kubelet.conf",
		"/etc/kubernetes/kubelet/kubeconfig",
		"/var/lib/kubelet/kubeconfig-real",
	}
	if len(kubeletKubeconfigs) != len(places)-1 {
		t.Errorf("%d places are not tested", len(kubeletKubeconfigs)+1-len(places))
	}
	setUp := func(t *testing.T, from int) (s Settings, root string, paths []string) {
		root = t.TempDir()
		s = Settings{ConfDir: filepath.Join(root, "confdir")}
		for i, place := range places {
			path := filepath.Join(root, strings.ReplaceAll(place, "CONFDIR", "confdir"))
			paths = append(paths, path)
			if i >= from {
				writeKubeconfig(t, path, "token: t")
			}
		}
		return s, root, paths
	}
	for i := range places {
		t.Run(places[i], func(t *testing.T) {
			s, root, paths := setUp(t, i)
			c, err := findCredentials(s, root)
			if err != nil || c.file != paths[i] {
				t.Errorf("got %+v, %v", c, err)
			}
		})
	}
	t.Run("none", func(t *testing.T) {
		s, root, paths := setUp(t, len(places))
		_, err := findCredentials(s, root)
		for _, words := range append(paths, "none of", "set ipam.kubeconfig", filepath.Join(s.ConfDir, "nv-ipam.conf")) {
			checkErr(t, err, words)
		}
		if e := (credentialsError{}); !errors.As(err, &e) {
			t.Errorf("%T", err)
		}
	})
	t.Run("explicit", func(t *testing.T) {
		s, root, _ := setUp(t, 0)
		s.Kubeconfig = writeKubeconfig(t, filepath.Join(root, "mine"), "token: t")
		c, err := findCredentials(s, root)
		if err != nil || c.file != s.Kubeconfig {
			t.Errorf("got %+v, %v", c, err)
		}
	})
	t.Run("explicit and missing", func(t *testing.T) {
		s, root, _ := setUp(t, 0)
		s.Kubeconfig = filepath.Join(root, "mine")
		_, err := findCredentials(s, root)
		checkErr(t, err, "ipam.kubeconfig: open "+s.Kubeconfig+": no such file or directory")
	})
	for name, broken := range map[string]string{
		"torn":        "apiVersion: v1\nkind: Config\nclusters: [",
		"empty":       "",
		"no context":  "apiVersion: v1\nkind: Config\n",
		"another":     `{"apiVersion":"v1","kind":"Pod"}`,
		"no clusters": "apiVersion: v1\nkind: Config\ncontexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n",
	} {
		t.Run(name+" comes before good ones", func(t *testing.T) {
			t.Setenv("KUBERNETES_MASTER", "https://127.0.0.1:2")
			s, root, paths := setUp(t, 0)
			writeFile(t, paths[1], []byte(broken))
			if err := os.Remove(paths[0]); err != nil {
				t.Fatal(err)
			}
			_, err := findCredentials(s, root)
			checkErr(t, err, paths[1])
		})
	}
	t.Run("unreadable comes before good ones", func(t *testing.T) {
		s, root, paths := setUp(t, 1)
		if err := os.MkdirAll(paths[0], 0o700); err != nil { // root may read any file
			t.Fatal(err)
		}
		_, err := findCredentials(s, root)
		checkErr(t, err, paths[0]+": is a directory")
	})
}

// What each distribution writes for its kubelet names the server, the authority and the
// node; with an exec credential, the node is that of the configuration.
func TestDistributions(t *testing.T) {
	const node = "worker-1.example.com"
	p := newPair(t, "system:node:"+node, time.Now().Add(time.Hour))
	both, ca := string(p.cert)+string(p.key), base64.StdEncoding.EncodeToString(p.cert)
	pem := func(path string) string { return "client-certificate: ROOT" + path + ", client-key: ROOT" + path }
	exec := func(command, args string) string {
		return "exec: {apiVersion: client.authentication.k8s.io/v1beta1, command: " + command + ", args: [" + args + "], env: null, provideClusterInfo: false}"
	}
	const current = "/var/lib/kubelet/pki/kubelet-client-current.pem"
	for _, tc := range []struct {
		name, file, server, authority, user string
		files                               map[string]string
		byConfiguration                     bool
	}{
		{name: "kubeadm", file: "/etc/kubernetes/kubelet.conf", server: "https://10.0.0.1:6443", authority: "certificate-authority-data: " + ca,
			user: pem(current), files: map[string]string{current: both}},
		{name: "kubeadm, before the first rotation", file: "/etc/kubernetes/kubelet.conf", server: "https://10.0.0.1:6443", authority: "certificate-authority-data: " + ca, user: p.inline()},
		{name: "K3s", file: "/var/lib/rancher/k3s/agent/kubelet.kubeconfig", server: "https://127.0.0.1:6444", authority: "certificate-authority: ROOT/var/lib/rancher/k3s/agent/server-ca.crt",
			user:  "client-certificate: ROOT/var/lib/rancher/k3s/agent/client-kubelet.crt, client-key: ROOT/var/lib/rancher/k3s/agent/client-kubelet.key",
			files: map[string]string{"/var/lib/rancher/k3s/agent/server-ca.crt": string(p.cert), "/var/lib/rancher/k3s/agent/client-kubelet.crt": string(p.cert), "/var/lib/rancher/k3s/agent/client-kubelet.key": string(p.key)}},
		{name: "RKE2", file: "/var/lib/rancher/rke2/agent/kubelet.kubeconfig", server: "https://127.0.0.1:6443", authority: "certificate-authority: ROOT/var/lib/rancher/rke2/agent/server-ca.crt",
			user:  "client-certificate: ROOT/var/lib/rancher/rke2/agent/client-kubelet.crt, client-key: ROOT/var/lib/rancher/rke2/agent/client-kubelet.key",
			files: map[string]string{"/var/lib/rancher/rke2/agent/server-ca.crt": string(p.cert), "/var/lib/rancher/rke2/agent/client-kubelet.crt": string(p.cert), "/var/lib/rancher/rke2/agent/client-kubelet.key": string(p.key)}},
		{name: "OpenShift", file: "/var/lib/kubelet/kubeconfig", server: "https://api-int.example.com:6443", authority: "certificate-authority-data: " + ca,
			user: pem(current), files: map[string]string{current: both, "/etc/kubernetes/kubelet.conf": "kind: KubeletConfiguration\napiVersion: kubelet.config.k8s.io/v1beta1\n"}},
		{name: "Talos", file: "/etc/kubernetes/kubeconfig-kubelet", server: "https://127.0.0.1:7445", authority: "certificate-authority-data: " + ca,
			user: pem(current), files: map[string]string{current: both}},
		{name: "k0s", file: "/var/lib/k0s/kubelet.conf", server: "https://10.0.0.1:6443", authority: "certificate-authority-data: " + ca,
			user: pem("/var/lib/k0s/kubelet/pki/kubelet-client-current.pem"), files: map[string]string{"/var/lib/k0s/kubelet/pki/kubelet-client-current.pem": both}},
		{name: "MicroK8s", file: "/var/snap/microk8s/current/credentials/kubelet.config", server: "https://127.0.0.1:16443", authority: "certificate-authority-data: " + ca, user: p.inline()},
		{name: "MicroK8s, with a token", file: "/var/snap/microk8s/current/credentials/kubelet.config", server: "https://127.0.0.1:16443", authority: "certificate-authority-data: " + ca,
			user: "token: abcdef0123456789", byConfiguration: true},
		{name: "EKS", file: "/var/lib/kubelet/kubeconfig", server: "https://0123456789.gr7.eu-west-1.eks.amazonaws.com", authority: "certificate-authority: ROOT/etc/kubernetes/pki/ca.crt",
			user: exec("aws", "eks, get-token, --cluster-name, c, --region, eu-west-1"), files: map[string]string{"/etc/kubernetes/pki/ca.crt": string(p.cert)}, byConfiguration: true},
		{name: "Bottlerocket", file: "/etc/kubernetes/kubelet/kubeconfig", server: "https://0123456789.gr7.eu-west-1.eks.amazonaws.com", authority: "certificate-authority: ROOT/etc/kubernetes/pki/ca.crt",
			user: exec("/usr/bin/aws-iam-authenticator", "token, -i, c"), files: map[string]string{"/etc/kubernetes/pki/ca.crt": string(p.cert)}, byConfiguration: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			for path, data := range tc.files {
				writeFile(t, filepath.Join(root, path), []byte(data))
			}
			path := writeFile(t, filepath.Join(root, tc.file), []byte(strings.ReplaceAll(fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q, %s}}]
users: [{name: u, user: {%s}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
preferences: {}
`, tc.server, tc.authority, tc.user), "ROOT", root)))
			c, err := findCredentials(Settings{ConfDir: filepath.Join(root, "etc/cni/net.d/nv-ipam.d")}, root)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := rest.TLSConfigFor(c.config); err != nil && !tc.byConfiguration { // an exec credential is not run here
				t.Error(err)
			}
			if c.file != path || c.config.Host != tc.server || c.config.CAFile == "" && len(c.config.CAData) == 0 {
				t.Errorf("file %s, server %s", c.file, c.config.Host)
			}
			if named := c.node == node; named == tc.byConfiguration {
				t.Errorf("node %q", c.node)
			}
			got, err := c.nodeName(node, slog.New(slog.DiscardHandler))
			if err != nil || got != node {
				t.Errorf("node %q, %v", got, err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	later := time.Now().Add(time.Hour)
	node, admin := newPair(t, "system:node:worker-1.example.com", later), newPair(t, "kubernetes-admin", later)
	for _, tc := range []struct {
		name, user string
		files      map[string]string
		wantUser   string
		wantNode   string
		err        string
	}{
		{name: "inline certificate", user: node.inline(), wantUser: "system:node:worker-1.example.com", wantNode: "worker-1.example.com"},
		{name: "certificate and key in two files", user: "client-certificate: n.crt, client-key: n.key",
			files: map[string]string{"n.crt": string(node.cert), "n.key": string(node.key)}, wantUser: "system:node:worker-1.example.com", wantNode: "worker-1.example.com"},
		{name: "in one file", user: "client-certificate: pki/current.pem, client-key: pki/current.pem",
			files: map[string]string{"pki/current.pem": string(node.cert) + string(node.key)}, wantUser: "system:node:worker-1.example.com", wantNode: "worker-1.example.com"},
		{name: "in one file, key first", user: "client-certificate: pki/current.pem, client-key: pki/current.pem",
			files: map[string]string{"pki/current.pem": string(node.key) + string(node.cert)}, wantUser: "system:node:worker-1.example.com", wantNode: "worker-1.example.com"},
		{name: "certificate of somebody else", user: admin.inline(), wantUser: "kubernetes-admin"},
		{name: "certificate wins over token", user: admin.inline() + ", token: " + nodeToken(t, "a"), wantUser: "kubernetes-admin"},
		{name: "no certificate in the file", user: "client-certificate: n.crt, client-key: n.key",
			files: map[string]string{"n.crt": "x", "n.key": "x"}, err: "n.crt: the file contains no certificate"},
		{name: "certificate file is missing", user: "client-certificate: gone.pem, client-key: gone.pem", err: "gone.pem: no such file"},
		{name: "node's token in a file", user: "tokenFile: token", files: map[string]string{"token": nodeToken(t, "a") + "\n"},
			wantUser: "system:serviceaccount:kube-system:crd-ipam-plugin", wantNode: "a"},
		{name: "token file wins over an inline token", user: "tokenFile: token, token: " + nodeToken(t, "b"), files: map[string]string{"token": nodeToken(t, "a")},
			wantUser: "system:serviceaccount:kube-system:crd-ipam-plugin", wantNode: "a"},
		{name: "node's token", user: "token: " + nodeToken(t, "a"), wantUser: "system:serviceaccount:kube-system:crd-ipam-plugin", wantNode: "a"},
		{name: "token of no node", user: "token: " + jwt(t, map[string]any{"sub": "system:serviceaccount:x:y"}), wantUser: "system:serviceaccount:x:y"},
		{name: "token file is missing", user: "tokenFile: gone", err: "gone: no such file"},
		{name: "opaque token", user: "token: abcdef.0123456789abcdef"},
		{name: "token with dots", user: "token: a.b.c"},
		{name: "token of another shape", user: "token: a.W10.c"},
		{name: "exec credential is not run", user: "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./touch, args: [x], interactiveMode: Never}"},
		{name: "nobody", user: ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, data := range tc.files {
				writeFile(t, filepath.Join(dir, name), []byte(data))
			}
			path := writeKubeconfig(t, filepath.Join(dir, "nv-ipam.kubeconfig"), tc.user)
			c, err := findCredentials(Settings{ConfDir: dir}, dir)
			checkErr(t, err, tc.err)
			if tc.err != "" {
				checkErr(t, err, "kubeconfig "+path+": ")
				return
			}
			if c.user != tc.wantUser || c.node != tc.wantNode {
				t.Errorf("user %q, node %q, want %q, %q", c.user, c.node, tc.wantUser, tc.wantNode)
			}
			if c.config.Host != "https://127.0.0.1:1" {
				t.Errorf("server %s", c.config.Host)
			}
		})
	}
}

// The kubelet renews its certificate: it may be another one as soon as it has
// been read, and what was read must fit together.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	current := filepath.Join(dir, "kubelet-client-current.pem")
	rotate := func() {
		p := newPair(t, "system:node:a", time.Now().Add(time.Hour))
		next := writeFile(t, filepath.Join(dir, "next.pem"), append(p.cert, p.key...))
		if err := os.Rename(next, current); err != nil {
			t.Fatal(err)
		}
	}
	rotate()
	writeKubeconfig(t, filepath.Join(dir, "nv-ipam.kubeconfig"), "client-certificate: "+current+", client-key: "+current)
	c, err := findCredentials(Settings{ConfDir: dir}, dir)
	if err != nil {
		t.Fatal(err)
	}
	rotate()
	config, err := rest.TLSConfigFor(c.config)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := config.GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		t.Fatal(err)
	}
	first, _ := firstCertificate(c.config.CertData)
	if !bytes.Equal(cert.Certificate[0], first.Raw) {
		t.Error("shows another certificate than was read")
	}
}

func TestNodeName(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, identity, configured, want, warns string }{
		{name: "identity", identity: "a", want: "a"},
		{name: "identity wins", identity: "a", configured: "b", want: "a", warns: "configured=b node=a kubeconfig=/k"},
		{name: "both agree", identity: "a", configured: "a", want: "a"},
		{name: "configuration", configured: "b", want: "b"},
		{name: "hostname", want: strings.ToLower(host)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			c := &credentials{file: "/k", node: tc.identity}
			got, err := c.nodeName(tc.configured, slog.New(slog.NewTextHandler(&out, nil)))
			if err != nil || got != tc.want {
				t.Errorf("got %q, %v, want %q", got, err, tc.want)
			}
			if tc.warns == "" && out.Len() > 0 || !strings.Contains(out.String(), tc.warns) || tc.warns != "" && !strings.Contains(out.String(), "level=WARN") {
				t.Errorf("log %q, want a warning of %q", out.String(), tc.warns)
			}
		})
	}
}

func TestExplain(t *testing.T) {
	resource := v1alpha1.Resource("ipallocations")
	unauthorized := apierrors.NewUnauthorized("Unauthorized")
	fresh, expired := time.Now().Add(time.Hour), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tc := range []struct {
		name  string
		err   error
		user  string
		until time.Time
		words []string // none: left alone
	}{
		{"forbidden", apierrors.NewForbidden(resource, "p.10.0.0.1", errors.New(`User "system:node:a" cannot create resource "ipallocations"`)), "system:node:a", fresh,
			[]string{"cannot create", "asked as system:node:a", "/etc/kubernetes/kubelet.conf", "ClusterRole", nodeRole}},
		{"forbidden, and nobody knows why", apierrors.NewForbidden(resource, "p.10.0.0.1", errors.New("no")), "system:node:a", fresh, []string{"asked as system:node:a", "an admission plugin"}},
		{"wrapped", fmt.Errorf("claiming: %w", errors.Join(apierrors.NewForbidden(resource, "x", errors.New("no")))), "system:node:a", fresh, []string{"claiming: ", "asked as system:node:a"}},
		{"unauthorized", unauthorized, "system:node:a", fresh, []string{"asked as system:node:a", "/etc/kubernetes/kubelet.conf", "revoked"}},
		{"unauthorized, and it is not known until when", unauthorized, "", time.Time{}, []string{"a user that only the API server knows", "revoked"}},
		{"expired", unauthorized, "system:node:a", expired, []string{"expired at 2026-01-02T03:04:05Z", "/etc/kubernetes/kubelet.conf"}},
		{"expired, says a proxy", &net.OpError{Op: "remote error", Err: errors.New("tls: expired certificate")}, "system:node:a", expired, []string{"expired at 2026-01-02T03:04:05Z"}},
		{"a server without HTTP/1.1", &url.Error{Op: "Get", URL: "https://x", Err: &net.OpError{Op: "remote error", Err: errors.New("tls: no application protocol")}}, "system:node:a", expired, []string{"no application protocol (server https://127.0.0.1:1, from /etc/kubernetes/kubelet.conf)"}},
		{"expired, and the alert came too late", &url.Error{Op: "Get", URL: "https://x", Err: errors.New("http: server closed idle connection")}, "system:node:a", expired, []string{"expired at 2026-01-02T03:04:05Z"}},
		{"closed at once for another reason", &url.Error{Op: "Get", URL: "https://x", Err: errors.New("http: server closed idle connection")}, "system:node:a", fresh, []string{"(server https://127.0.0.1:1, from /etc/kubernetes/kubelet.conf)"}},
		{"another cluster's server", &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}, "system:node:a", fresh, []string{"authority", "https://127.0.0.1:1", "/etc/kubernetes/kubelet.conf"}},
		{"another server's name", &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}}, "system:node:a", fresh, []string{"tls-server-name", "https://127.0.0.1:1"}},
		{"a server whose certificate has expired", &tls.CertificateVerificationError{Err: x509.CertificateInvalidError{Reason: x509.Expired}}, "system:node:a", fresh, []string{"has expired, or the clock of this host is wrong"}},
		{"a credential program that fails", &url.Error{Op: "Get", URL: "https://x", Err: errors.New("getting credentials: exec: executable aws failed with exit code 254")}, "", time.Time{}, []string{"executable aws failed", "run it on this host"}},
		{"no API server", apierrors.NewGenericServerResponse(400, "get", resource, "p", "Client sent an HTTP request to an HTTPS server.", 0, true), "system:node:a", fresh, []string{"https://127.0.0.1:1", "/etc/kubernetes/kubelet.conf", "has to begin with https://"}},
		{"nothing", nil, "system:node:a", expired, nil},
		{"in use", &ledger.InUseError{Holder: &v1alpha1.IPAllocation{}}, "system:node:a", expired, nil},
		{"refused connection", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "system:node:a", expired, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &credentials{file: "/etc/kubernetes/kubelet.conf", user: tc.user, expires: tc.until, config: &rest.Config{Host: "https://127.0.0.1:1", TLSClientConfig: rest.TLSClientConfig{CAData: []byte("x")}}}
			got := c.explain(tc.err)
			if tc.words == nil && got != tc.err { //nolint:errorlint // the very same
				t.Errorf("got %v", got)
			}
			for _, words := range tc.words {
				checkErr(t, got, words)
			}
			if !errors.Is(got, tc.err) {
				t.Error("the cause is lost")
			}
		})
	}
}

// Whoever is refused because of a name that nobody has chosen is told where it comes from.
func TestExplainNodeName(t *testing.T) {
	c := &credentials{file: "/k", config: &rest.Config{}}
	host, err := c.nodeName("", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	checkErr(t, c.explain(fmt.Errorf("IPPool kube-system/p has no block for node %s, see", host)), "the node's name is that of this host, since the credentials of /k name no node and ipam.nodeName is not set")
	if err := errors.New("no block for node other"); c.explain(err) != err { //nolint:errorlint // the very same
		t.Error("another node's name")
	}
	noCA := &tls.CertificateVerificationError{Err: x509.UnknownAuthorityError{}}
	checkErr(t, c.explain(noCA), "that file has no certificate authority")
}

// Only what is no kubeconfig by its kind is passed over.
func TestOtherKindsAreNotPassedOver(t *testing.T) {
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "/etc/kubernetes/kubelet.conf"), []byte("kind: Pod\napiVersion: v1\n"))
	_, err := findCredentials(Settings{ConfDir: root}, root)
	checkErr(t, err, "kubelet.conf is not a kubeconfig")
	file := writeFile(t, filepath.Join(root, "own"), []byte(`{"kind":"KubeletConfiguration","apiVersion":"kubelet.config.k8s.io/v1beta1"}`))
	_, err = findCredentials(Settings{Kubeconfig: file}, root)
	checkErr(t, err, "is not a kubeconfig")
}

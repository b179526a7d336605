// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manifests applies what manifests/ has, with a real kubectl, to API
// servers that have nothing of it yet, and runs the commands with the rights that
// it gives them.
package manifests

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// overlay is one of manifests/overlays.
type overlay struct {
	name      string
	crds      string // the overlay with its CRDs
	namespace string
	from, to  int // minor versions of the servers that it is for
}

var overlays = []overlay{
	{"default", "crds", "kube-system", 31, 99},
	{"k8s-1.30", "crds-k8s-1.30", "kube-system", 30, 99}, // what 1.30 lacks is left out; a newer server misses nothing
	{"serviceaccount", "crds", "kube-system", 31, 99},
	{"network-operator", "crds-network-operator", "nvidia-network-operator", 31, 99},
}

// record is the overlay with the CRDs.
func (o overlay) record() overlay {
	o.name = o.crds
	return o
}

func (o overlay) dir(t testing.TB) string {
	return filepath.Join(root(t), "manifests", "overlays", o.name)
}

func root(t testing.TB) string {
	t.Helper()
	dir, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// start starts a server without CRDs. Its tokens are for the audience that a cluster
// has by default.
func start(t *testing.T) *testenv.Env {
	t.Helper()
	env, err := testenv.Start(testenv.Options{
		NoCRDs: true, APIServerArgs: map[string]string{"api-audiences": "https://kubernetes.default.svc.cluster.local"},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	return env
}

// kubectl runs kubectl, which has to succeed.
func kubectl(t *testing.T, env *testenv.Env, args ...string) string {
	t.Helper()
	out, err := env.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// apply applies a manifest that is not in a file.
func apply(t *testing.T, env *testenv.Env, manifest string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, env, "apply", "-f", path)
}

// render returns what a kustomization makes. It needs no server.
func render(t *testing.T, dir string) []*unstructured.Unstructured {
	t.Helper()
	out := kubectl(t, &testenv.Env{}, "kustomize", dir)
	decoder := utilyaml.NewYAMLOrJSONDecoder(strings.NewReader(out), 4096)
	var objects []*unstructured.Unstructured
	for {
		u := &unstructured.Unstructured{}
		err := decoder.Decode(&u.Object)
		if errors.Is(err, io.EOF) {
			return objects
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(u.Object) > 0 {
			objects = append(objects, u)
		}
	}
}

// as returns a client configuration with a token of a service account, bound as
// the request says.
func as(t *testing.T, env *testenv.Env, namespace, account string, bound *authenticationv1.BoundObjectReference) *rest.Config {
	t.Helper()
	client, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	req := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	req, err = client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), account, req, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return withToken(env, req.Status.Token)
}

func withToken(env *testenv.Env, token string) *rest.Config {
	config := rest.AnonymousClientConfig(env.Config)
	config.BearerToken = token
	config.QPS = -1
	return config
}

// writeKubeconfig writes a kubeconfig file for a token's configuration.
func writeKubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	err := clientcmd.WriteToFile(clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{"c": {Server: config.Host, CertificateAuthorityData: config.CAData}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{"u": {Token: config.BearerToken}},
		Contexts:       map[string]*clientcmdapi.Context{"x": {Cluster: "c", AuthInfo: "u"}},
		CurrentContext: "x",
	}, path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// log is what a process has written so far.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// runCommand runs one of this project's commands until the end of the test, which
// fails if it ends earlier or not in peace.
func runCommand(t *testing.T, name string, args ...string) *log {
	t.Helper()
	path, err := testenv.Binary(name)
	if err != nil {
		t.Fatal(err)
	}
	out := &log{}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt) // Wait says what became of it
		if err := cmd.Wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if t.Failed() {
			t.Logf("%s:\n%s", name, out)
		}
	})
	return out
}

// until waits until check says "".
func until(t *testing.T, check func() string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		missing := check()
		if missing == "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatal(missing)
		case <-time.After(50 * time.Millisecond): // between two polls
		}
	}
}

// freePort is an address that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// makefileValue is what the Makefile sets a variable to.
func makefileValue(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` \?= (.*)$`).FindSubmatch(data)
	if m == nil {
		t.Fatalf("the Makefile does not set %s", name)
	}
	return string(m[1])
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package manifests applies what manifests/ has, with a real kubectl, to API
// servers that have nothing of it yet, and runs the commands with the rights that
// it gives them.
package manifests

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
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
	{"openshift", "crds-openshift", "crd-ipam", 31, 99},
	{"network-operator", "crds-network-operator", "nvidia-network-operator", 31, 99},
}

// record is the overlay with the CRDs.
func (o overlay) record() overlay {
	o.name = o.crds
	return o
}

func (o overlay) dir(t testing.TB) string {
	return filepath.Join(rig.Root(t), "manifests", "overlays", o.name)
}

// servers have no CRDs. Their tokens are for the audience that a cluster has by default.
var servers = testenv.Pool{Options: testenv.Options{
	NoCRDs: true, APIServerArgs: map[string]string{"api-audiences": "https://kubernetes.default.svc.cluster.local"},
}}

func TestMain(m *testing.M) {
	code := m.Run()
	if err := servers.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		code = 1
	}
	os.Exit(code)
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
	c := rig.Cluster{Kube: rig.Kube(t, env.Config), NS: namespace}
	token, err := c.Token(t, account, bound)
	if err != nil {
		t.Fatal(err)
	}
	return rig.WithToken(env, token)
}

// writeKubeconfig writes a kubeconfig file for a token's configuration.
func writeKubeconfig(t *testing.T, config *rest.Config) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	rig.WriteKubeconfig(t, path, config.Host, config.CAData, &clientcmdapi.AuthInfo{Token: config.BearerToken})
	return path
}

// runCommand runs one of this project's commands until the end of the test, which
// fails if it ends earlier or not in peace.
func runCommand(t *testing.T, name string, args ...string) *rig.Log {
	t.Helper()
	out := &rig.Log{}
	cmd := exec.Command(rig.Binary(t, name), args...)
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

// makefileValue is what the Makefile sets a variable to.
func makefileValue(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(rig.Root(t), "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + name + ` \?= (.*)$`).FindSubmatch(data)
	if m == nil {
		t.Fatalf("the Makefile does not set %s", name)
	}
	return string(m[1])
}

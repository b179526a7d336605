// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apitypes "k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// host is a node's disk; what is in dir is found by being there.
type host struct {
	plugin, dir string
}

// host makes a node's disk with a configuration that names neither credentials
// nor the node, unless settings do.
func (c *cluster) host(t *testing.T, settings map[string]string) *host {
	t.Helper()
	h := &host{plugin: rig.Binary(t, "nv-ipam"), dir: t.TempDir()}
	all := map[string]string{"poolsNamespace": c.NS, "dataDir": filepath.Join(h.dir, "data"), "logFile": h.log(), "logLevel": "debug"}
	for k, v := range settings {
		all[k] = v
	}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, "nv-ipam.conf", data)
	return h
}

func (h *host) log() string { return filepath.Join(h.dir, "log") }

func (h *host) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(h.dir, name)
	if err := os.WriteFile(path, data, 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// kubeconfig puts the user's credentials where the plugin looks first.
func (h *host) kubeconfig(t *testing.T, user *clientcmdapi.AuthInfo) {
	t.Helper()
	h.kubeconfigFor(t, user, env.Config.CAData)
}

func (h *host) kubeconfigFor(t *testing.T, user *clientcmdapi.AuthInfo, ca []byte) {
	t.Helper()
	rig.WriteKubeconfig(t, filepath.Join(h.dir, "nv-ipam.kubeconfig"), env.Config.Host, ca, user)
}

// run runs the plugin for a container's net1.
func (h *host) run(t *testing.T, verb, container string) *types.Error {
	t.Helper()
	stdin := rig.NetConf(t, "1.1.0", map[string]any{"confDir": h.dir, "poolName": "p"}, map[string]any{"cni.dev/valid-attachments": []any{}})
	_, cniErr := rig.Call{Verb: verb, Container: container, Stdin: stdin}.Run(t, exec.CommandContext(t.Context(), h.plugin), h.plugin)
	return cniErr
}

func (h *host) mustRun(t *testing.T, verb, container string) {
	t.Helper()
	if err := h.run(t, verb, container); err != nil {
		t.Fatalf("%s %s: %v", verb, container, err)
	}
}

func (h *host) wantError(t *testing.T, verb string, code uint, words ...string) {
	t.Helper()
	err := h.run(t, verb, "c1")
	if err == nil || err.Code != code {
		t.Errorf("%s: error %+v, want code %d", verb, err, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Msg, w) {
			t.Errorf("%s: error %q does not say %q", verb, err.Msg, w)
		}
	}
}

// everyVerb runs the plugin's verbs with what the host has, as a runtime does, and
// checks that the allocation is node a's.
func (h *host) everyVerb(t *testing.T, c *cluster) {
	t.Helper()
	h.mustRun(t, "STATUS", "c1")
	h.mustRun(t, "ADD", "c1")
	list, err := c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Spec.NodeName != "a" || list.Items[0].Labels[v1alpha1.LabelNode] != "a" {
		t.Fatalf("held: %+v, %v", list.Items, err)
	}
	h.mustRun(t, "CHECK", "c1")
	h.mustRun(t, "DEL", "c1")
	h.mustRun(t, "ADD", "c2")
	list, err = c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("held: %+v, %v", list.Items, err)
	}
	env.Rewrite(t, c.NS, list.Items[0].Name, func(spec map[string]any) { // a GC spares what may be under way
		spec[testenv.Started] = metav1.NewMicroTime(time.Now().Add(-time.Hour))
	})
	h.mustRun(t, "GC", "")
	if got := c.held(t); got != "[]" {
		t.Errorf("held %s", got)
	}
}

func poolCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 100}, "a", "b")
	return c
}

func nodeConfig(t *testing.T, node string) *rest.Config {
	t.Helper()
	config, err := env.UserConfig("system:node:"+node, testenv.NodesGroup)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func execCredential(t *testing.T, status map[string]string) []byte {
	t.Helper()
	data, err := json.Marshal(map[string]any{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status})
	if err != nil {
		t.Fatal(err)
	}
	return append(append([]byte("#!/bin/sh\ncat <<'.'\n"), data...), "\n.\n"...)
}

func runs(command string) *clientcmdapi.AuthInfo {
	return &clientcmdapi.AuthInfo{Exec: &clientcmdapi.ExecConfig{
		APIVersion: "client.authentication.k8s.io/v1", Command: command, InteractiveMode: clientcmdapi.NeverExecInteractiveMode,
	}}
}

// With nothing but a kubeconfig in confDir and the rights of the manifests, every
// verb works with every kind of credentials, and the node is who they say.
func TestCredentials(t *testing.T) {
	a := nodeConfig(t, "a")
	for _, tc := range []struct {
		name     string
		settings map[string]string
		put      func(*testing.T, *cluster, *host)
	}{
		{"inline certificate", nil, func(t *testing.T, _ *cluster, h *host) {
			h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: a.CertData, ClientKeyData: a.KeyData})
		}},
		{"certificate and key in one file", nil, func(t *testing.T, _ *cluster, h *host) {
			path := h.write(t, "kubelet-client-current.pem", append(bytes.Clone(a.CertData), a.KeyData...))
			h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificate: path, ClientKey: path})
		}},
		{"certificate and key in files beside it", nil, func(t *testing.T, _ *cluster, h *host) {
			h.write(t, "a.crt", a.CertData)
			h.write(t, "a.key", a.KeyData)
			h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificate: "a.crt", ClientKey: "a.key"})
		}},
		{"token file, of a pod on the node", nil, func(t *testing.T, c *cluster, h *host) {
			h.kubeconfig(t, &clientcmdapi.AuthInfo{TokenFile: h.write(t, "token", []byte(c.podToken(t, pluginAccount, "a")))})
		}},
		{"token file, of the node", nil, func(t *testing.T, c *cluster, h *host) {
			h.kubeconfig(t, &clientcmdapi.AuthInfo{TokenFile: h.write(t, "token", []byte(c.nodeToken(t, pluginAccount, "a")))})
		}},
		{"exec credential with a certificate", map[string]string{"nodeName": "a"}, func(t *testing.T, _ *cluster, h *host) {
			h.kubeconfig(t, runs(h.write(t, "credential", execCredential(t, map[string]string{
				"clientCertificateData": string(a.CertData), "clientKeyData": string(a.KeyData),
			}))))
		}},
		{"exec credential with a token", map[string]string{"nodeName": "a"}, func(t *testing.T, c *cluster, h *host) {
			h.write(t, "credential", execCredential(t, map[string]string{"token": c.podToken(t, pluginAccount, "a")}))
			h.kubeconfig(t, runs("./credential"))
		}},
		{"configuration is of another mind", map[string]string{"nodeName": "b"}, func(t *testing.T, _ *cluster, h *host) {
			h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: a.CertData, ClientKeyData: a.KeyData})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := poolCluster(t)
			c.account(t, pluginAccount, role)
			h := c.host(t, tc.settings)
			tc.put(t, c, h)
			h.everyVerb(t, c)
			log, err := os.ReadFile(h.log())
			if warned := strings.Contains(string(log), "level=WARN"); err != nil || warned != (tc.settings["nodeName"] == "b") {
				t.Errorf("warned: %t, %v\n%s", warned, err, log)
			}
		})
	}
}

// A node reads the labels of its own Node object as a kubelet may. Another user needs a
// right more than the role gives, and is told so.
func TestLabelsOfTheOwnNode(t *testing.T) {
	c := poolCluster(t)
	c.account(t, pluginAccount, role)
	if _, err := c.Kube.CoreV1().Nodes().Patch(t.Context(), "a", apitypes.MergePatchType, []byte(`{"metadata":{"labels":{"pool":"p"}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	add := func(h *host) *types.Error {
		stdin := rig.NetConf(t, "1.1.0", map[string]any{"confDir": h.dir, "poolName": "{pool}"}, nil)
		_, cniErr := rig.Call{Verb: "ADD", Container: "c1", Stdin: stdin}.Run(t, exec.CommandContext(t.Context(), h.plugin), h.plugin)
		return cniErr
	}
	a := nodeConfig(t, "a")
	kubelet, account := c.host(t, nil), c.host(t, nil)
	kubelet.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: a.CertData, ClientKeyData: a.KeyData})
	account.kubeconfig(t, &clientcmdapi.AuthInfo{TokenFile: account.write(t, "token", []byte(c.podToken(t, pluginAccount, "a")))})
	if err := add(kubelet); err != nil {
		t.Error(err)
	}
	if err := add(account); err == nil || !strings.Contains(err.Msg, "reading the labels of node a") || !strings.Contains(err.Msg, "needs get on nodes") {
		t.Error(err)
	}
	_, err := rig.Kube(t, a).CoreV1().Nodes().Get(t.Context(), "b", metav1.GetOptions{})
	if env.Minor >= nodesApartMinor && !apierrors.IsForbidden(err) {
		t.Errorf("another node's labels: %v", err)
	}
}

// In a sticky pool a node reads its own pod as a kubelet may, and the pod has its address on
// another node again. Another user needs a right more than the role gives, and is told so.
func TestStickyOnTwoNodes(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{
		Subnet: "10.0.0.0/24", PerNodeBlockSize: 16, PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}},
	}, "a", "b")
	c.account(t, pluginAccount, role)
	yes, now := true, int64(0)
	start := func(node string) *corev1.Pod {
		_ = c.Kube.CoreV1().Pods(c.NS).Delete(t.Context(), "web-0", metav1.DeleteOptions{GracePeriodSeconds: &now})
		pod, err := c.Kube.CoreV1().Pods(c.NS).Create(t.Context(), &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "web-0", OwnerReferences: []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "web", UID: "s", Controller: &yes}}},
			Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "none"}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return pod
	}
	run := func(h *host, verb string, pod *corev1.Pod) *types.Error {
		stdin := rig.NetConf(t, "1.1.0", map[string]any{"confDir": h.dir, "poolName": "p"}, nil)
		call := rig.Call{Verb: verb, Container: string(pod.UID), Pod: pod.Name, Stdin: stdin, Args: fmt.Sprintf(";K8S_POD_NAMESPACE=%s;K8S_POD_UID=%s", c.NS, pod.UID)}
		_, cniErr := call.Run(t, exec.CommandContext(t.Context(), h.plugin), h.plugin)
		return cniErr
	}
	account := c.host(t, nil)
	account.kubeconfig(t, &clientcmdapi.AuthInfo{TokenFile: account.write(t, "token", []byte(c.podToken(t, pluginAccount, "a")))})
	if err := run(account, "ADD", start("a")); err == nil || !strings.Contains(err.Msg, "spec.sticky") || !strings.Contains(err.Msg, "needs get on pods") {
		t.Error(err)
	}
	c.persistentAddresses(t, "serviceaccount", "persistent-addresses-serviceaccount")
	hosts := map[string]*host{"a": c.nodeHost(t, "a", nil), "b": c.nodeHost(t, "b", nil), "account": account}
	for _, on := range []string{"a", "b", "account", "a"} {
		pod := start(strings.Replace(on, "account", "a", 1))
		for _, verb := range []string{"ADD", "CHECK", "DEL"} {
			if err := run(hosts[on], verb, pod); err != nil {
				t.Fatalf("%s on %s: %v", verb, on, err)
			}
		}
	}
	all := c.Allocations(t)
	if len(all) != 1 || !all[0].Spec.Released() || all[0].Spec.Owner == nil || all[0].Labels[v1alpha1.LabelOwner] != v1alpha1.OwnerLabel("s") {
		t.Errorf("allocations %+v", all)
	}
}

// The pod of a machine keeps its address by an IPAMClaim, on whichever node. A kubelet needs a
// right more than the role gives, and is told so.
func TestIPAMClaimRights(t *testing.T) {
	c := newCluster(t)
	rest := c.Kube.CoreV1().RESTClient()
	rig.InstallIPAMClaims(t, rest, rig.OwnerPodIsAnObject)
	rig.IPAMClaim(t, rest, c.NS, "vm.net", "net")
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 16}, "a", "b")
	run := func(h *host, verb string, pod v1alpha1.PodReference) *types.Error {
		stdin := rig.NetConf(t, "1.1.0", map[string]any{"confDir": h.dir, "poolName": "p"}, map[string]any{"name": "net", "allowPersistentIPs": true})
		call := rig.Call{Verb: verb, Container: string(pod.UID), Pod: pod.Name, Stdin: stdin, Args: fmt.Sprintf(";K8S_POD_NAMESPACE=%s;K8S_POD_UID=%s", c.NS, pod.UID)}
		_, cniErr := call.Run(t, exec.CommandContext(t.Context(), h.plugin), h.plugin)
		return cniErr
	}
	start := func(name, node string) v1alpha1.PodReference {
		return rig.Pod(t, c.Kube, c.NS, name, node, func(p *corev1.Pod) {
			p.Annotations = map[string]string{"k8s.v1.cni.cncf.io/networks": `[{"name": "net", "ipam-claim-reference": "vm.net"}]`}
		})
	}
	hosts := map[string]*host{"a": c.nodeHost(t, "a", nil), "b": c.nodeHost(t, "b", nil)}
	if err := run(hosts["a"], "ADD", start("early", "a")); err == nil || !strings.Contains(err.Msg, "reading IPAMClaim") || !strings.Contains(err.Msg, "apply components/persistent-addresses") {
		t.Error(err)
	}
	c.persistentAddresses(t, "default", "persistent-addresses")
	for i, on := range []string{"a", "b", "a"} {
		pod := start(fmt.Sprint("launcher-", i), on)
		for _, verb := range []string{"ADD", "CHECK", "DEL"} {
			if err := run(hosts[on], verb, pod); err != nil {
				t.Fatalf("%s on %s: %v", verb, on, err)
			}
		}
	}
	if all := c.Allocations(t); len(all) != 1 || !all[0].Spec.Released() || !all[0].Spec.Owner.IsIPAMClaim() {
		t.Errorf("allocations %+v", all)
	}
	for name, p := range map[string]v1alpha1.PodReference{"": {Namespace: "ml", Name: "launcher"}, "of another namespace": {Namespace: "x", Name: "launcher"}, "without a pod": {Namespace: "ml"}} {
		a := proposed("a")
		ofClaim(a.Spec.Owner)
		a.Spec.PodRef = p
		if _, err := c.node(t, "a").IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); (err == nil) != (name == "") {
			t.Errorf("a proposal for an IPAMClaim %s: %v", name, err)
		}
	}
}

// persistentAddresses applies what a component adds to an overlay.
func (c *cluster) persistentAddresses(t *testing.T, overlay, component string) {
	t.Helper()
	dir := rig.Kustomization(t, map[string]any{
		"namespace": c.NS, "resources": []string{"overlays/" + overlay}, "components": []string{"components/" + component},
	})
	all, err := env.Kubectl(t.Context(), "kustomize", dir)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, part := range strings.Split(all, "\n---\n") {
		if strings.Contains(part, "  name: crd-ipam-persistent-addresses\n") {
			parts = append(parts, part)
		}
	}
	path := filepath.Join(dir, "parts.yaml")
	if err := os.WriteFile(path, []byte(strings.Join(parts, "\n---\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := env.Kubectl(t.Context(), "apply", "-f", path); err != nil || len(parts) != 2 {
		t.Fatalf("%d parts: %v", len(parts), err)
	}
	t.Cleanup(func() {
		if _, err := env.Kubectl(context.Background(), "delete", "-f", path); err != nil {
			t.Error(err)
		}
	})
}

// The explicit kubeconfig wins over one that is found.
func TestExplicitKubeconfig(t *testing.T) {
	c := poolCluster(t)
	mine, err := env.NodeKubeconfig("a")
	if err != nil {
		t.Fatal(err)
	}
	h := c.host(t, map[string]string{"kubeconfig": mine})
	b := nodeConfig(t, "b")
	h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: b.CertData, ClientKeyData: b.KeyData})
	h.everyVerb(t, c)
}

// What a person reads where the API server does not let the plugin do its work.
func TestRefusals(t *testing.T) {
	t.Run("as another node", func(t *testing.T) {
		c := poolCluster(t)
		a, h := nodeConfig(t, "a"), c.host(t, map[string]string{"nodeName": "b"})
		h.kubeconfig(t, runs(h.write(t, "credential", execCredential(t, map[string]string{
			"clientCertificateData": string(a.CertData), "clientKeyData": string(a.KeyData),
		}))))
		h.wantError(t, "ADD", 11, mayCreate+`b"`, "asked as a user that only the API server knows", filepath.Join(h.dir, "nv-ipam.kubeconfig"))
		if got := c.held(t); got != "[]" {
			t.Errorf("held %s", got)
		}
	})
	t.Run("without the role", func(t *testing.T) {
		c := poolCluster(t)
		if err := c.Kube.RbacV1().RoleBindings(c.NS).Delete(t.Context(), role, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		a, h := nodeConfig(t, "a"), c.host(t, nil)
		h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: a.CertData, ClientKeyData: a.KeyData})
		// The authorizer may know of the binding for a moment longer.
		for deadline := time.Now().Add(10 * time.Second); h.run(t, "STATUS", "") == nil && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
		words := []string{`User "system:node:a" cannot`, "asked as system:node:a", filepath.Join(h.dir, "nv-ipam.kubeconfig"), "ClusterRole", role}
		h.wantError(t, "STATUS", 50, words...)
		h.wantError(t, "ADD", 11, words...)
	})
	t.Run("pod's token", func(t *testing.T) {
		c := poolCluster(t)
		c.account(t, "pod", "")
		h := c.host(t, nil)
		h.kubeconfig(t, &clientcmdapi.AuthInfo{Token: c.podToken(t, "pod", "a")})
		h.wantError(t, "ADD", 11, "asked as system:serviceaccount:"+c.NS+":pod")
	})
	t.Run("expired certificate", func(t *testing.T) {
		c := poolCluster(t)
		h := c.host(t, nil)
		user, until := expired(t)
		h.kubeconfig(t, user)
		words := []string{"asked as system:node:a", "expired at " + until, filepath.Join(h.dir, "nv-ipam.kubeconfig")}
		h.wantError(t, "STATUS", 50, words...)
		h.wantError(t, "ADD", 11, words...)
	})
	t.Run("another cluster", func(t *testing.T) {
		c := poolCluster(t)
		h := c.host(t, nil)
		user, _ := expired(t)
		h.kubeconfigFor(t, user, user.ClientCertificateData)
		h.wantError(t, "STATUS", 50, "asked as system:node:a", "certificate authority", filepath.Join(h.dir, "nv-ipam.kubeconfig"))
	})
	t.Run("torn kubeconfig", func(t *testing.T) {
		c := poolCluster(t)
		h := c.host(t, nil)
		path := h.write(t, "nv-ipam.kubeconfig", []byte("apiVersion: v1\nkind: Config\nusers: ["))
		h.wantError(t, "STATUS", 50, path+" is not a kubeconfig")
		h.wantError(t, "ADD", 7, path+" is not a kubeconfig")
		h.mustRun(t, "DEL", "c1") // a pod that ends always ends
	})
}

// expired returns a kubelet's credentials whose time is over, and when that was.
func expired(t *testing.T) (user *clientcmdapi.AuthInfo, until string) {
	t.Helper()
	end := time.Now().Add(-time.Hour).UTC()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "system:node:a", Organization: []string{testenv.NodesGroup}},
		NotBefore: end.Add(-time.Hour), NotAfter: end,
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &clientcmdapi.AuthInfo{
		ClientCertificateData: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		ClientKeyData:         pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
	}, end.Format(time.RFC3339)
}

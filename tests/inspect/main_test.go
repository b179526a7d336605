// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package inspect tests kubectl-ipam against a real API server: a fault is planted, and one
// command says what it is.
package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

const (
	networks      = "k8s.v1.cni.cncf.io/networks"
	networkStatus = "k8s.v1.cni.cncf.io/network-status"
)

// house is a namespace with two nodes, worker-1 and worker-2, and the pool rail1, in which
// they have blocks of 16 addresses.
type house struct{ *rig.Cluster }

// installed is where foreignCRDs has done its work.
var installed = map[*testenv.Env]bool{}

// foreignCRDs installs other projects' CRDs, once.
func foreignCRDs(t *testing.T, env *testenv.Env) {
	t.Helper()
	if installed[env] {
		return
	}
	for _, args := range [][]string{{"apply", "-f", "testdata/foreign-crds.yaml"}, {"wait", "--for=condition=Established", "crd", "--all"}} {
		if out, err := env.Kubectl(t.Context(), args...); err != nil {
			t.Fatal(err, out)
		}
	}
	installed[env] = true
}

func newHouse(t *testing.T) *house {
	t.Helper()
	h := newHouseOn(t, env)
	h.RemoveNodes(t)
	t.Cleanup(func() { h.clear(t) })
	return h
}

// newHouseOn is newHouse on a server that nobody else uses.
func newHouseOn(t *testing.T, env *testenv.Env) *house {
	t.Helper()
	foreignCRDs(t, env)
	h := &house{rig.NewCluster(t, env)}
	h.Node(t, "worker-1", map[string]string{"rack": "r1"})
	h.Node(t, "worker-2", nil)
	rig.IPPool(t, h.IPAM, h.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16, Gateway: "10.1.0.1"}, "worker-1", "worker-2")
	return h
}

// clear removes what other tests would see.
func (h *house) clear(t *testing.T) {
	none := int64(0)
	ctx := context.Background()
	err := errors.Join(
		h.Kube.CoreV1().Pods(h.NS).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &none}, metav1.ListOptions{}),
		h.IPAM.IPAllocations(h.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		h.IPAM.IPPools(h.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
		h.IPAM.CIDRPools(h.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}),
	)
	if err != nil {
		t.Error(err)
	}
	for _, path := range []string{"k8s.cni.cncf.io/v1/namespaces/%s/network-attachment-definitions", "whereabouts.cni.cncf.io/v1alpha1/namespaces/%s/ippools", "whereabouts.cni.cncf.io/v1alpha1/namespaces/%s/overlappingrangeipreservations"} {
		if err := h.IPAM.RESTClient().Delete().AbsPath("/apis", fmt.Sprintf(path, h.NS)).Do(ctx).Error(); err != nil {
			t.Error(err)
		}
	}
}

// foreign stores an object of another project's.
func (h *house) foreign(t *testing.T, apiVersion, kind, plural, name string, spec map[string]any) {
	t.Helper()
	body, err := json.Marshal(map[string]any{"apiVersion": apiVersion, "kind": kind, "metadata": map[string]any{"name": name}, "spec": spec})
	if err != nil {
		t.Fatal(err)
	}
	rig.Until(t, func() string { // a CRD that was established just now may not be served yet
		if err := h.IPAM.RESTClient().Post().AbsPath("/apis", apiVersion, "namespaces", h.NS, plural).Body(body).SetHeader("Content-Type", "application/json").Do(t.Context()).Error(); err != nil {
			return err.Error()
		}
		return ""
	})
}

// network stores a NetworkAttachmentDefinition; more are further keys of its ipam section.
func (h *house) network(t *testing.T, name string, ipam map[string]any) {
	t.Helper()
	all := map[string]any{"poolsNamespace": h.NS}
	rig.Merge(all, ipam)
	h.nad(t, name, string(rig.NetConf(t, "0.3.1", all, nil)))
}

func (h *house) nad(t *testing.T, name, config string) {
	t.Helper()
	h.foreign(t, "k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition", "network-attachment-definitions", name, map[string]any{"config": config})
}

// pod makes a pod with annotations, given in pairs.
func (h *house) pod(t *testing.T, name, node string, annotations ...string) v1alpha1.PodReference {
	t.Helper()
	return rig.Pod(t, h.Kube, h.NS, name, node, func(p *corev1.Pod) {
		p.Spec.TerminationGracePeriodSeconds = new(int64)
		p.Annotations = map[string]string{}
		for i := 0; i < len(annotations); i += 2 {
			p.Annotations[annotations[i]] = annotations[i+1]
		}
	})
}

// has is the annotation of a pod that has addresses on net1.
func (h *house) has(network string, ips ...string) string {
	text, _ := json.Marshal([]map[string]any{
		{"name": "cluster", "interface": "eth0", "ips": []string{"10.244.0.9"}, "default": true},
		{"name": h.NS + "/" + network, "interface": "net1", "ips": ips},
	})
	return string(text)
}

// claim stores an allocation.
func (h *house) claim(t *testing.T, address, node string, pod v1alpha1.PodReference) *v1alpha1.IPAllocation {
	t.Helper()
	return h.Claim(t, h.IPAM, rig.Allocation("rail1", address, node, pod, "sandbox-"+pod.Name))
}

// gone is a pod that the API server does not have.
func (h *house) gone(name string) v1alpha1.PodReference {
	return v1alpha1.PodReference{Namespace: h.NS, Name: name, UID: rig.GoneUID}
}

// event is what a runtime says about a pod that it cannot start.
func (h *house) event(t *testing.T, pod v1alpha1.PodReference, message string) {
	t.Helper()
	_, err := h.Kube.CoreV1().Events(h.NS).Create(t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: pod.Name + "-"},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: h.NS, Name: pod.Name, UID: pod.UID},
		Type:           corev1.EventTypeWarning, Reason: "FailedCreatePodSandBox", Message: message, Count: 3, LastTimestamp: metav1.Now(),
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// answer is what a command printed, and its exit code.
type answer struct {
	out, err string
	code     int
}

// ipam runs kubectl-ipam as an administrator.
func (h *house) ipam(t *testing.T, args ...string) answer {
	t.Helper()
	return ipamAs(t, h.Env.Kubeconfig, "", args...)
}

func ipamAs(t *testing.T, kubeconfig, stdin string, args ...string) answer {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), rig.Binary(t, "kubectl-ipam"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+env.Dir)
	cmd.Stdin = strings.NewReader(stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return answer{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want compares an answer with an exit code and with parts of what it says.
func (a answer) want(t *testing.T, code int, parts ...string) {
	t.Helper()
	all := a.out + a.err
	for _, part := range parts {
		if !strings.Contains(all, part) {
			t.Errorf("%q is not in", part)
		}
	}
	if a.code != code {
		t.Errorf("exit code %d, want %d, of", a.code, code)
	}
	if t.Failed() {
		t.Fatalf("%s\n%s", a.out, a.err)
	}
}

// items reads the answer in JSON.
func (a answer) items(t *testing.T) (out []map[string]any) {
	t.Helper()
	var document struct {
		APIVersion, Kind string
		Items            []map[string]any
	}
	if err := json.Unmarshal([]byte(a.out), &document); err != nil || document.APIVersion != "ipam.cli/v1" || document.Items == nil {
		t.Fatalf("%v: %s%s", err, a.out, a.err)
	}
	return document.Items
}

// field reads one, as "verdict.reason".
func field(item map[string]any, path string) string {
	var v any = item
	for key := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[key]
	}
	return fmt.Sprint(v)
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/inspect"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

var update = flag.Bool("update", false, "write the answers into docs/kubectl-ipam.md")

// scene is what the examples of the document are about.
func scene(t *testing.T) {
	t.Helper()
	foreignCRDs(t, env)
	ml, h := newHouseNamed(t, "ml"), newHouseNamed(t, "nvidia-network-operator")
	h.RemoveNodes(t)
	h.Node(t, "worker-1", nil)
	h.Node(t, "worker-2", nil)
	rig.IPPool(t, h.IPAM, h.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 4, Gateway: "10.1.0.1"}, "worker-1", "worker-2")
	rig.IPPool(t, h.IPAM, h.NS, "storage", v1alpha1.IPPoolSpec{Subnet: "10.4.0.0/16"})
	ml.network(t, "rail1", map[string]any{"poolName": "rail1", "poolsNamespace": h.NS})
	claim := func(address, node string, pod v1alpha1.PodReference) { h.claim(t, address, node, pod) }
	claim("10.1.0.2", "worker-1", ml.pod(t, "train-0", "worker-1", networks, "rail1", networkStatus, ml.has("rail1", "10.1.0.2")))
	claim("10.1.0.3", "worker-1", ml.gone("train-7"))
	claim("10.1.0.4", "worker-1", ml.pod(t, "train-1", "worker-1", networks, "rail1", networkStatus, ml.has("rail1", "10.1.0.4")))
	h.taint(t, "worker-2", corev1.TaintNodeUnreachable)
	claim("10.1.0.5", "worker-2", ml.gone("train-8"))
	ml.event(t, ml.pod(t, "train-2", "worker-1", networks, "rail1"),
		`Failed to create pod sandbox: plugin type="macvlan" failed (add): no free addresses in the pool "rail1", poolType "ippool": block 10.1.0.1-10.1.0.4 of node worker-1 is full, 3 of 3 addresses are held`)
}

// newHouseNamed is a namespace of that name, without nodes and pools.
func newHouseNamed(t *testing.T, name string) *house {
	t.Helper()
	h := &house{&rig.Cluster{Env: env, NS: name, Kube: rig.Kube(t, env.Config), IPAM: rig.Client(t, env.Config)}}
	if _, err := h.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.clear(t) })
	return h
}

const edited = `apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPPool
metadata: {name: rail1, namespace: nvidia-network-operator}
spec: {subnet: 10.1.0.0/24, perNodeBlockSize: 8, gateway: 10.1.0.2}
`

// The examples of the document are what the program says, but for times and UIDs.
func TestDocument(t *testing.T) {
	scene(t)
	path := filepath.Join(rig.Root(t), "docs", "kubectl-ipam.md")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	file := filepath.Join(t.TempDir(), "rail1.yaml")
	if err := os.WriteFile(file, []byte(edited), 0o600); err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```console\n\\$ kubectl ipam ([^\n]*)\n(.*?)```\n").FindAllStringSubmatch(doc, -1)
	if len(examples) < 10 {
		t.Errorf("only %d examples were read", len(examples))
	}
	keys := map[string]bool{}
	for _, e := range examples {
		args := strings.Fields(strings.Replace(e[1], "rail1.yaml", file, 1))
		if !strings.HasPrefix(e[1], "release") {
			keysOf(t, ipamAs(t, env.Kubeconfig, "", append(slices.Clone(args), "-o", "json")...), keys)
		}
		a := ipamAs(t, env.Kubeconfig, "", args...)
		if a.code > 1 || a.err != "" {
			t.Errorf("kubectl ipam %s: exit code %d: %s", e[1], a.code, a.err)
		}
		doc = strings.Replace(doc, e[0], "```console\n$ kubectl ipam "+e[1]+"\n"+a.out+"```\n", 1)
		if got, want := normal(a.out), normal(e[2]); got != want && !*update {
			t.Errorf("kubectl ipam %s says\n%s\nand the document\n%s", e[1], got, want)
		}
	}
	for key := range keys {
		if !strings.Contains(doc, "`"+key+"`") {
			t.Errorf("the document has no field %s", key)
		}
	}
	for _, class := range inspect.Classes {
		if !strings.Contains(doc, "\n| `"+class+"` |") {
			t.Errorf("the document has no class %s", class)
		}
	}
	if *update {
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// normal leaves out what differs from run to run.
func normal(text string) string {
	for _, differs := range []struct{ expression, with string }{
		{`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "UID"}, // before AGE: a part of it may be 999d
		{`[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z`, "TIME"},
		{`\b[0-9]+[smhd]([0-9]+s)?\b`, "AGE"},
		{` +`, " "},
		{`[0-9]+ pods\n`, "N pods\n"},
	} {
		text = regexp.MustCompile(differs.expression).ReplaceAllString(text, differs.with)
	}
	return text
}

// keysOf enters the names of all fields of an answer.
func keysOf(t *testing.T, a answer, keys map[string]bool) {
	t.Helper()
	var v any
	if err := json.Unmarshal([]byte(a.out), &v); err != nil {
		t.Fatal(err, a)
	}
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for key, value := range v {
				keys[key] = true
				walk(value)
			}
		case []any:
			for _, value := range v {
				walk(value)
			}
		}
	}
	walk(v)
}

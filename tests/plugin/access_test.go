// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// node makes a Node object and a host of that name.
func (c *cluster) node(t *testing.T, name string, labels map[string]string) *host {
	t.Helper()
	c.Node(t, name, labels)
	t.Cleanup(func() {
		if err := c.Kube.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
	return c.host(t, name)
}

// label sets a label of a node to a JSON value, and waits until reads see it.
func (c *cluster) label(t *testing.T, node, key, value string) {
	t.Helper()
	if _, err := c.Kube.CoreV1().Nodes().Patch(t.Context(), node, types.MergePatchType, []byte(`{"metadata":{"labels":{"`+key+`":`+value+`}}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.seen(t, node, key, strings.Trim(value, `"`))
}

// seen waits until the API server's watch cache has the label.
func (c *cluster) seen(t *testing.T, node, key, value string) {
	t.Helper()
	for {
		n, err := c.Kube.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{ResourceVersion: "0"})
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := n.Labels[key]; ok && got == value || !ok && value == "null" {
			return
		}
	}
}

// outdate makes the node's copy of its labels older than an ADD trusts.
func (h *host) outdate(t *testing.T) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(h.dir, "data", "*", "pools", "@labels.json"))
	if len(files) != 1 {
		t.Fatalf("copies of the labels: %q", files)
	}
	old := time.Now().Add(-time.Minute)
	if err := os.Chtimes(files[0], old, old); err != nil {
		t.Fatal(err)
	}
}

// requests returns the plugins' requests while f runs, one "verb resource" each.
func (c *cluster) requests(t *testing.T, f func()) (all testenv.Requests) {
	t.Helper()
	mark, err := env.Mark()
	if err != nil {
		t.Fatal(err)
	}
	f()
	if all, err = env.Requests(mark); err != nil {
		t.Fatal(err)
	}
	return all.By("nv-ipam/")
}

func nodeReads(all testenv.Requests) int { return len(all.Of("get", "nodes")) }

func sharedSpec(subnet string) v1alpha1.IPPoolSpec { return v1alpha1.IPPoolSpec{Subnet: subnet} }

func ofPool(name string) map[string]any { return map[string]any{"poolName": name} }

// What a pool's specification says about who may use it counts from the next ADD on, for
// requested addresses, too, and never for what is held.
func TestWhoMayUseAPool(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	requested := call{verb: "ADD", container: "r", args: "IP=10.0.0.77"}
	edit := func(spec string) {
		t.Helper()
		if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "p", types.MergePatchType, []byte(`{"spec":`+spec+`}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	h.mustAdd(t, call{container: "held"})

	edit(`{"allowedNamespaces":["team-*","other"]}`)
	const notAllowed = `pool "p", poolType "ippool" gives no addresses to pods of namespace "default" because its spec.allowedNamespaces has only "team-*", "other"`
	h.wantError(t, call{verb: "ADD", container: "c1"}, 7, notAllowed)
	h.wantError(t, requested, 7, notAllowed)
	h.wantError(t, call{verb: "ADD", container: "held"}, 7, notAllowed)
	h.mustRun(t, call{verb: "CHECK", container: "held"})
	edit(`{"allowedNamespaces":["team-*","default"]}`)
	h.mustAdd(t, call{container: "c1"})

	edit(`{"allowedNamespaces":null,"assignment":"Manual"}`)
	h.wantError(t, call{verb: "ADD", container: "c2"}, 7, "its spec.assignment is Manual: request an address of 10.0.0.0/16")
	if got := h.mustAdd(t, call{container: "r", args: requested.args}); got[0] != "10.0.0.77/16" {
		t.Error(got)
	}

	edit(`{"assignment":null,"disabled":true}`)
	h.wantError(t, call{verb: "ADD", container: "c2"}, 7, `pool "p", poolType "ippool" gives no addresses because its spec.disabled is true`)
	h.wantError(t, call{verb: "ADD", container: "c2", args: "IP=10.0.0.78"}, 7, "its spec.disabled is true")
	h.mustRun(t, call{verb: "STATUS"})
	h.mustRun(t, call{verb: "CHECK", container: "held"})
	h.mustRun(t, call{verb: "DEL", container: "held"})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	c.age(t)
	h.mustRun(t, gc())
	if got := c.held(t); got != "[]" {
		t.Errorf("held %s", got)
	}
}

// One configuration for two racks, and what becomes of it when a node is moved.
func TestPoolNameWithALabel(t *testing.T) {
	c := newCluster(t)
	const key = "topology.kubernetes.io/rack"
	c.Pool(t, "rail1-r1", sharedSpec("10.1.0.0/24"))
	c.Pool(t, "rail1-r2", sharedSpec("10.2.0.0/24"))
	c.Pool(t, "six-r1", sharedSpec("fd00:1::/64"))
	one, two := c.node(t, "labels-one", map[string]string{key: "r1"}), c.node(t, "labels-two", map[string]string{key: "r2"})
	rail := ofPool("rail1-{" + key + "}")
	for h, prefix := range map[*host]string{one: "10.1.0.", two: "10.2.0."} {
		if got := h.mustAdd(t, call{container: "c1", ipam: rail}); !strings.HasPrefix(got[0], prefix) {
			t.Errorf("%s: %v", h.name, got)
		}
	}
	if got := one.mustAdd(t, call{container: "two", ipam: ofPool("rail1-{" + key + "}, six-{" + key + "}")}); len(got) != 2 || !strings.HasPrefix(got[1], "fd00:1::") {
		t.Error(got)
	}
	byArgs := call{container: "args", conf: map[string]any{"args": map[string]any{"cni": map[string]any{"poolNames": []string{"rail1-{" + key + "}"}}}}}
	if got := one.mustAdd(t, byArgs); !strings.HasPrefix(got[0], "10.1.0.") {
		t.Error(got)
	}

	// The node moves. The copy of its labels counts for a while; DEL and CHECK need none.
	c.label(t, "labels-one", key, `"r2"`)
	one.outdate(t)
	all := c.requests(t, func() { one.mustRun(t, call{verb: "CHECK", container: "c1", ipam: rail}) })
	if nodeReads(all) > 0 {
		t.Errorf("CHECK: %s", all)
	}
	if got := one.mustAdd(t, call{container: "moved", ipam: rail}); !strings.HasPrefix(got[0], "10.2.0.") {
		t.Error(got)
	}
	one.mustRun(t, call{verb: "CHECK", container: "c1", ipam: rail})
	one.mustRun(t, call{verb: "CHECK", container: "moved", ipam: rail})
	one.mustRun(t, call{verb: "CHECK", container: "two", ipam: ofPool("rail1-{" + key + "},six-{" + key + "}")})
	one.wantError(t, call{verb: "CHECK", container: "nobody", ipam: rail}, 100, "reservation for pool")

	// A rack without a pool, a value that is no name, no label: in words, and seen at once.
	for value, words := range map[string][]string{
		`"r3"`: {`configuration for pool "rail1-r3", poolType "ippool" not found`, `poolName "rail1-{topology.kubernetes.io/rack}" on node labels-one`},
		`"R1"`: {`not found: with node labels-one's label topology.kubernetes.io/rack="R1" it would be "rail1-R1", which no pool can be called`},
		"null": {"not found: node labels-one has no label topology.kubernetes.io/rack"},
	} {
		c.label(t, "labels-one", key, value)
		one.outdate(t)
		one.wantError(t, call{verb: "ADD", container: "x", ipam: rail}, 11, words...)
		one.mustRun(t, call{verb: "STATUS", ipam: rail})
	}
	c.label(t, "labels-one", key, "null")
	one.outdate(t)
	one.wantError(t, call{verb: "ADD", container: "x", ipam: rail}, 11, "has no label")
	c.label(t, "labels-one", key, `"r1"`) // the copy says that there is none
	if got := one.mustAdd(t, call{container: "back", ipam: rail}); !strings.HasPrefix(got[0], "10.1.0.") {
		t.Error(got)
	}

	c.label(t, "labels-one", key, "null")
	one.outdate(t)
	all = c.requests(t, func() {
		for _, container := range []string{"c1", "two", "args", "moved", "back"} {
			one.mustRun(t, call{verb: "DEL", container: container, ipam: rail})
		}
	})
	if nodeReads(all) > 0 {
		t.Errorf("DEL: %s", all)
	}
	if got := c.Held(t); len(got) != 1 {
		t.Errorf("held %v, want that of labels-two", got)
	}
	one.wantError(t, call{verb: "ADD", container: "x", ipam: ofPool("rail1-{{rack}}")}, 7, "brace too many")
	one.wantError(t, call{verb: "ADD", container: "x", ipam: ofPool("rail1-{" + key + "},rail1-{" + key + "}")}, 7, "named twice")
	two.wantError(t, call{verb: "ADD", container: "x", ipam: ofPool("rail1-{" + key + "},rail1-r2")}, 11, "named already")
}

// The Node is read where something depends on it, and at most every half minute.
func TestRequestsForLabels(t *testing.T) {
	c := newCluster(t)
	h := c.node(t, "labels-requests", map[string]string{"rack": "r1"})
	c.blocks(t, h.name)
	selected := sharedSpec("10.3.0.0/24")
	selected.NodeSelector = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: "In", Values: []string{"r1"}}}}}}
	c.Pool(t, "selected", selected)
	c.Pool(t, "shared", sharedSpec("10.4.0.0/24"))
	add := func(container, pool string) func() {
		return func() { h.mustAdd(t, call{container: container, ipam: ofPool(pool)}) }
	}
	for _, pool := range []string{"p", "shared", "selected"} { // a new node asks what it holds, and has no views
		all := c.requests(t, add("warm-up-"+pool, pool))
		if got, want := nodeReads(all), map[string]int{"selected": 1}[pool]; got != want {
			t.Errorf("first ADD in %s: %s", pool, all)
		}
	}
	h.mustRun(t, call{verb: "DEL", container: "warm-up-p"})
	for _, tc := range []struct {
		name     string
		outdated bool
		run      func()
		requests int
		nodes    int
	}{
		{"blocks", true, add("c1", "p"), 2, 0},
		{"shared", true, add("c2", "shared"), 2, 0},
		{"selected", true, add("c3", "selected"), 3, 1},
		{"selected again", false, add("c4", "selected"), 2, 0},
		{"STATUS", true, func() { h.mustRun(t, call{verb: "STATUS"}) }, 1, 0},
		{"DEL", true, func() { h.mustRun(t, call{verb: "DEL", container: "c4", ipam: ofPool("selected")}) }, 1, 0},
	} {
		if tc.outdated {
			h.outdate(t)
		}
		all := c.requests(t, tc.run)
		if len(all) != tc.requests || nodeReads(all) != tc.nodes {
			t.Errorf("%s: %d requests, %d for the node, want %d and %d: %s", tc.name, len(all), nodeReads(all), tc.requests, tc.nodes, all)
		}
	}
}

// A pool without blocks is for the nodes that it selects, by their labels of now.
func TestSelectorOfAPoolWithoutBlocks(t *testing.T) {
	c := newCluster(t)
	h := c.node(t, "labels-selected", map[string]string{"rack": "r1"})
	spec := sharedSpec("10.3.0.0/24")
	spec.NodeSelector = &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "rack", Operator: "In", Values: []string{"r1", "r2"}}}}}}
	c.Pool(t, "p", spec)
	if got := h.mustAdd(t, call{container: "c1"}); !slices.Contains(c.Held(t), strings.TrimSuffix(got[0], "/24")) {
		t.Error(got)
	}
	c.label(t, h.name, "rack", `"r3"`)
	h.outdate(t)
	words := `IPPool ` + c.NS + `/p does not select node labels-selected: its nodeSelector is rack In ("r1", "r2")`
	h.wantError(t, call{verb: "ADD", container: "c2"}, 11, `configuration for pool "p", poolType "ippool" not found`, words)
	h.mustRun(t, call{verb: "CHECK", container: "c1"})
	c.label(t, h.name, "rack", `"r2"`) // seen at once, although the copy is new
	h.mustAdd(t, call{container: "c2"})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	h.mustRun(t, call{verb: "DEL", container: "c2"})
}

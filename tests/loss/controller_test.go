// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package loss

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// control runs the controller of the cluster's namespace until stop.
func (c *cluster) control(t *testing.T, grace time.Duration) (stop func()) {
	t.Helper()
	return c.RunController(t.Context(), t, rig.ControllerClients(t, env.Config, nil), controller.Options{ReclaimGrace: time.Hour, LossGrace: grace})
}

// hasEvent reports whether there is an event with a reason.
func (c *cluster) hasEvent(t *testing.T, reason string) bool {
	t.Helper()
	list, err := c.Kube.CoreV1().Events(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(list.Items, func(e corev1.Event) bool { return e.Reason == reason })
}

// awaitBlock waits until a node has a block.
func (c *cluster) awaitBlock(t *testing.T, name string) string {
	t.Helper()
	rig.Eventually(t, name+" has a block", func() bool { return c.blockOf(t, name) != "" })
	return c.blockOf(t, name)
}

// joined returns a cluster with a controller, and the blocks of its nodes: these have joined in
// another order than that of their names, and hold an address each.
func joined(t *testing.T, lossGrace time.Duration) (c *cluster, blocks map[string]string, stop func()) {
	t.Helper()
	c, blocks = &cluster{Cluster: rig.NewCluster(t, env), nodes: map[string]*node{}}, map[string]string{}
	c.RemoveNodes(t)
	stop = c.control(t, lossGrace)
	c.Pool(t, "p", spec)
	for _, name := range []string{"loss-z", "loss-m", "loss-a"} {
		c.Node(t, name, nil)
		c.names = append(c.names, name)
		c.nodes[name] = newNode(t, c, name)
		blocks[name] = c.awaitBlock(t, name)
		c.nodes[name].mustAdd(t, "container-of-"+name, "")
	}
	return c, blocks, stop
}

// Nodes have their blocks in the order in which they joined. The pool is made again, and
// one of them is quiet: the others are not given what its containers hold, neither by a
// controller that remembers the blocks, nor by one that was started again.
func TestControllerKeepsQuietNodesBlocks(t *testing.T) {
	grace := 15 * time.Second
	c, blocks, stop := joined(t, grace)
	same := func(what string) {
		t.Helper()
		for _, name := range c.names {
			if got := c.awaitBlock(t, name); got != blocks[name] {
				t.Errorf("%s: %s has block %s, and had %s", what, name, got, blocks[name])
			}
		}
	}

	c.empty(t)
	rig.Gone(t, c.IPAM, c.NS, "p")
	c.Pool(t, "p", spec)
	same("the controller remembers")
	for _, n := range c.nodes {
		n.look(t)
	}
	c.want(t, c.nodes["loss-z"], c.nodes["loss-m"], c.nodes["loss-a"])

	stop()
	c.empty(t)
	c.nodes["loss-m"].look(t) // at once; the others are later
	c.control(t, grace)
	c.Pool(t, "p", spec)
	c.nodes["loss-z"].look(t)
	c.nodes["loss-a"].look(t)
	same("the controller was started again")
	rig.Eventually(t, "an event says why the pool had no blocks", func() bool { return c.hasEvent(t, "RecordLost") })
	c.want(t, c.nodes["loss-z"], c.nodes["loss-m"], c.nodes["loss-a"])
}

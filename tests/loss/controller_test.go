// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package loss

import (
	"context"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/fixture"
)

// control runs the controller of the cluster's namespace until stop.
func (c *cluster) control(t *testing.T, grace time.Duration) (stop func()) {
	t.Helper()
	config := rest.CopyConfig(env.Config)
	ipam, err1 := versioned.NewForConfig(config)
	kube, err2 := kubernetes.NewForConfig(config)
	meta, err3 := metadata.NewForConfig(config)
	if err1 != nil || err2 != nil || err3 != nil {
		t.Fatal(err1, err2, err3)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- controller.New(controller.Clients{IPAM: ipam, Kube: kube, Metadata: meta},
			controller.Options{Namespace: c.ns, ReclaimGrace: time.Hour, LossGrace: grace}).Run(ctx)
	}()
	return func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// awaitBlock waits until a node has a block.
func (c *cluster) awaitBlock(t *testing.T, name string) string {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) { // between two polls
		if b := c.blockOf(t, name); b != "" {
			return b
		}
	}
	t.Fatalf("%s has no block", name)
	return ""
}

// Nodes have their blocks in the order in which they joined. The pool is made again, and
// one of them is quiet: the others are not given what its containers hold, neither by a
// controller that remembers the blocks, nor by one that was started anew.
func TestControllerKeepsQuietNodesBlocks(t *testing.T) {
	c := &cluster{ns: env.Namespace(t), client: fixture.Client(t, env.Config), nodes: map[string]*node{}}
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = kube.CoreV1().Nodes().DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{})
	})
	makePool := func() {
		t.Helper()
		if _, err := c.client.IPPools(c.ns).Create(t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"},
			Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 16}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	grace := 15 * time.Second
	stop := c.control(t, grace)
	makePool()
	blocks := map[string]string{}
	for _, name := range []string{"loss-z", "loss-m", "loss-a"} { // not in the order of their names
		if _, err := kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		c.names = append(c.names, name)
		c.nodes[name] = newNode(t, c, name)
		blocks[name] = c.awaitBlock(t, name)
		c.nodes[name].mustAdd(t, "container-of-"+name, "")
	}
	same := func(what string) {
		t.Helper()
		for _, name := range c.names {
			if got := c.awaitBlock(t, name); got != blocks[name] {
				t.Errorf("%s: %s has block %s, and had %s", what, name, got, blocks[name])
			}
		}
	}

	c.empty(t)
	fixture.Gone(t, c.client, c.ns, "p")
	makePool()
	same("the controller remembers")
	for _, n := range c.nodes {
		n.look(t)
	}
	c.want(t, c.nodes["loss-z"], c.nodes["loss-m"], c.nodes["loss-a"])

	stop()
	c.empty(t)
	c.nodes["loss-m"].look(t) // at once; the others are later
	stop = c.control(t, grace)
	defer func() { stop() }()
	makePool()
	c.nodes["loss-z"].look(t)
	c.nodes["loss-a"].look(t)
	same("the controller was started anew")
	c.want(t, c.nodes["loss-z"], c.nodes["loss-m"], c.nodes["loss-a"])
}

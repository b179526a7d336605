// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// request is hold for an address that the pod asked for.
func (c *cluster) request(t *testing.T, poolName, address, node string, pod v1alpha1.PodReference) {
	t.Helper()
	a := c.allocation(time.Now(), "sandbox-"+pod.Name, poolName, address, node, pod)
	a.Spec.Requested = true
	c.create(t, a)
}

func (c *cluster) release(t *testing.T, name string) {
	t.Helper()
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// A pool that is replaced, or restored without its status, under live pods: each node
// is given the block in which it holds addresses, whatever their names.
func TestBlocksAreFoundByWhatIsHeld(t *testing.T) {
	t.Run("IPPool", func(t *testing.T) {
		c := seedCluster(t)
		pod := c.startPod(t, "p", nil)
		// As the blocks may have become: not in the order of names.
		c.hold(t, "pool1", "192.168.0.105", "kind-worker2", pod)
		c.hold(t, "pool1", "192.168.0.207", "kind-control-plane", pod)
		blocks := []string{"kind-worker 192.168.0.1 192.168.0.100", "kind-worker2 192.168.0.101 192.168.0.200", "kind-control-plane 192.168.0.201 192.168.1.44"}
		c.run(t, controller.Options{})
		c.wantPool(t, "pool1", "BlocksAssigned", blocks...)

		if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "pool1", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.Pool(t, "pool1", seedPool())
		c.wantPool(t, "pool1", "BlocksAssigned", blocks...)
		if got := c.GetPool(t, "pool1").Status.Conditions; len(got) != 1 {
			t.Errorf("conditions %+v", got)
		}
	})
	t.Run("CIDRPool", func(t *testing.T) {
		c := newCluster(t)
		for _, n := range []string{"a", "b", "c"} {
			c.Node(t, n, nil)
		}
		pod := c.startPod(t, "p", nil)
		for address, node := range map[string]string{"10.60.1.4": "a", "10.60.0.5": "b"} {
			_, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), &v1alpha1.IPAllocation{
				ObjectMeta: metav1.ObjectMeta{Name: "rail1." + address},
				Spec: v1alpha1.IPAllocationSpec{PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindCIDRPool, Name: "rail1"}, Address: address, NodeName: node,
					PodRef: pod, ContainerID: "c" + node, InterfaceName: "net1", Requested: node == "b"},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
		}
		c.run(t, controller.Options{})
		pools := c.IPAM.CIDRPools(c.NS)
		for range 2 {
			_, err := pools.Create(t.Context(), &v1alpha1.CIDRPool{
				ObjectMeta: metav1.ObjectMeta{Name: "rail1"}, Spec: v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			want := []v1alpha1.CIDRPoolAllocation{{NodeName: "b", Prefix: "10.60.0.0/24"}, {NodeName: "a", Prefix: "10.60.1.0/24"}, {NodeName: "c", Prefix: "10.60.2.0/24"}}
			rig.Until(t, func() string {
				p, err := pools.Get(t.Context(), "rail1", metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(p.Status.Allocations, want) {
					return fmt.Sprintf("status %+v, want %+v", p.Status, want)
				}
				return ""
			})
			if err := pools.Delete(t.Context(), "rail1", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// A block is kept for what is held in it, and not for an address elsewhere.
func TestBlockIsKeptForWhatIsHeldInIt(t *testing.T) {
	for _, departs := range []struct{ how, patch string }{
		{"left", ""},
		{"unusable", `{"spec":{"exclusions":[{"startIP":"192.168.0.101","endIP":"192.168.0.200"}]}}`},
	} {
		t.Run(departs.how, func(t *testing.T) {
			c := seedCluster(t)
			c.run(t, controller.Options{})
			c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
			pod := c.startPod(t, "p", nil)
			c.request(t, "pool1", "192.168.9.9", "kind-worker", pod)
			c.request(t, "pool1", "192.168.0.203", "kind-worker", pod) // of another's block
			c.seen(t)
			want := []string{seedBlocks[0], seedBlocks[2]}
			if departs.patch == "" {
				c.patchNode(t, "kind-worker", `{"metadata":{"labels":{"`+workerLabel+`":null}}}`)
			} else {
				if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, []byte(departs.patch), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				want = append(want, "kind-worker 192.168.9.1 192.168.9.100") // the one with its address
				c.seenBlocks(t, want...)
				return
			}
			c.wantPool(t, "pool1", "BlocksAssigned", want...)
		})
	}
}

// seenBlocks waits for blocks of pool1, wherever the last one lies.
func (c *cluster) seenBlocks(t *testing.T, want ...string) {
	t.Helper()
	rig.Until(t, func() string {
		p := c.GetPool(t, "pool1")
		if len(p.Status.Allocations) != len(want) {
			return fmt.Sprintf("blocks %+v", p.Status.Allocations)
		}
		for i, a := range p.Status.Allocations[:len(want)-1] {
			if got := a.NodeName + " " + a.StartIP + " " + a.EndIP; got != want[i] {
				return fmt.Sprintf("block %q, want %q", got, want[i])
			}
		}
		return ""
	})
}

// A pool that is deleted under live pods is told in an event, whoever leads then.
func TestPoolDeletedUnderPods(t *testing.T) {
	c := seedCluster(t)
	pod := c.startPod(t, "p", nil)
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", pod)
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", pod)
	c.hold(t, "earlier", "10.9.9.9", "kind-worker", pod) // deleted while nobody led
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.WantEvent(t, "Warning IPPool/earlier PoolGone: IPPool earlier does not exist, and 1 of its addresses are held")
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "pool1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.WantEvent(t, "Warning IPPool/pool1 PoolGone: IPPool pool1 does not exist, and 2 of its addresses are held")
	c.wantHeld(t, "10.9.9.9", "192.168.0.101", "192.168.0.102")
	c.Pool(t, "pool1", seedPool())
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
}

// Whatever one node writes under a pool's name, the pool stays Ready and the others'
// blocks stay; who wrote it is told.
func TestForeignAddresses(t *testing.T) {
	c := seedCluster(t)
	c.run(t, controller.Options{Usage: time.Millisecond})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	pod := c.startPod(t, "p", nil)
	c.hold(t, "pool1", "1.2.3.4", "kind-worker", pod)
	c.hold(t, "pool1", "10.7.0.1", "kind-worker", pod)
	c.wantNotice(t, "pool1", "ForeignAddresses", "2 addresses of nodes kind-worker (2, as 1.2.3.4)")
	c.WantEvent(t, "Warning IPPool/pool1 ForeignAddresses: node kind-worker holds")
	c.wantNotice(t, "pool1", "EarlierSpecInUse", "")

	// In another's block, in nobody's, excluded, the gateway: an event says so.
	for _, a := range []string{"192.168.0.205", "192.168.7.7", "192.168.0.9", "192.168.0.1"} {
		c.hold(t, "pool1", a, "kind-worker", pod)
	}
	c.WantEvent(t, "Warning IPPool/pool1 AddressesOutsideBlock: node kind-worker holds")
	c.seen(t)
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)

	for _, a := range []string{"1.2.3.4", "10.7.0.1"} {
		c.release(t, "pool1."+a)
	}
	c.wantNotice(t, "pool1", "ForeignAddresses", "")
}

// A full block is told on the pool and in one event, although the pool is not full.
func TestBlockFull(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Node(t, "b", nil)
	c.Pool(t, "small", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 4, Gateway: "10.0.0.1"})
	c.run(t, controller.Options{Usage: time.Millisecond, ReclaimGrace: time.Hour}) // the pod is on another node than its addresses
	c.wantPool(t, "small", "BlocksAssigned", "a 10.0.0.1 10.0.0.4", "b 10.0.0.5 10.0.0.8")
	pod := c.startPod(t, "p", nil)
	for range 3 { // it comes and goes
		for i := 2; i <= 4; i++ {
			c.hold(t, "small", fmt.Sprintf("10.0.0.%d", i), "a", pod)
		}
		c.wantNotice(t, "small", "BlockFull", "a (3 of 3 held)")
		c.release(t, "small.10.0.0.2")
		c.wantNotice(t, "small", "BlockFull", "")
		c.release(t, "small.10.0.0.3")
		c.release(t, "small.10.0.0.4")
	}
	// What others hold in it counts as well: the block has nothing to give.
	for i := 5; i <= 8; i++ {
		c.request(t, "small", fmt.Sprintf("10.0.0.%d", i), "a", pod)
	}
	c.wantNotice(t, "small", "BlockFull", "b (4 of 4 held)")
	c.WantEvent(t, "BlockFull: no free address in the block 10.0.0.5-10.0.0.8 of node b: 4 of 4 are held")
	n := 0
	for _, e := range c.Events(t) {
		if strings.Contains(e, "BlockFull: no free address in the block 10.0.0.1-10.0.0.4 of node a: 3 of 3 are held") {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d events about node a in %q", n, c.Events(t))
	}
}

func TestNoMatchingNodes(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.Pool(t, "none", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 4, NodeSelector: workers()})
	c.run(t, controller.Options{})
	c.wantPool(t, "none", "NoMatchingNodes")
	c.wantNotice(t, "none", "Ready", "no node matches spec.nodeSelector ("+workerLabel+" exists); nodes with a block: 0")
	c.WantEvent(t, "Warning IPPool/none NoMatchingNodes: no node matches")
	c.patchNode(t, "a", `{"metadata":{"labels":{"`+workerLabel+`":""}}}`)
	c.wantPool(t, "none", "BlocksAssigned", "a 10.0.0.1 10.0.0.4")
}

func TestPodNetworkOverlap(t *testing.T) {
	c := newCluster(t)
	for i, n := range []string{"b", "a"} {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n}, Spec: corev1.NodeSpec{PodCIDR: fmt.Sprintf("10.244.%d.0/24", i), PodCIDRs: []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd44:0:0:%d::/64", i)}}}
		if _, err := c.Kube.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.Pool(t, "pods", v1alpha1.IPPoolSpec{Subnet: "10.244.0.0/16", PerNodeBlockSize: 4})
	c.Pool(t, "six", v1alpha1.IPPoolSpec{Subnet: "fd44:0:0:0::/64", PerNodeBlockSize: 4})
	c.Pool(t, "apart", v1alpha1.IPPoolSpec{Subnet: "10.245.0.0/16", PerNodeBlockSize: 4})
	c.run(t, controller.Options{})
	c.wantNotice(t, "pods", "PodNetworkOverlap", "10.244.0.0/16 overlaps with the cluster's pod network: node a has 10.244.1.0/24")
	c.WantEvent(t, "Warning IPPool/pods PodNetworkOverlap: 10.244.0.0/16 overlaps with the cluster's pod network")
	c.wantNotice(t, "six", "PodNetworkOverlap", "node b has fd44:0:0:0::/64")
	c.wantPool(t, "apart", "BlocksAssigned", "a 10.245.0.1 10.245.0.4", "b 10.245.0.5 10.245.0.8")
	c.wantNotice(t, "apart", "PodNetworkOverlap", "")
}

// However much is wrong, the condition and the event say so, and count the rest.
func TestMessagesAreBounded(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 4}
	for i := range 1500 {
		spec.Exclusions = append(spec.Exclusions, v1alpha1.ExcludeRange{StartIP: fmt.Sprintf("10.1.%d.%d", i/250, i%250), EndIP: "10.0.0.9"})
	}
	c.Pool(t, "wrong", spec)
	c.run(t, controller.Options{})
	c.wantPool(t, "wrong", "InvalidSpec")
	message := c.GetPool(t, "wrong").Status.Conditions[0].Message
	if !strings.Contains(message, "more") || len(message) > 8192 {
		t.Errorf("%d bytes: %s", len(message), message)
	}
	c.WantEvent(t, "Warning IPPool/wrong InvalidSpec: [spec.exclusions[0].startIP: Invalid value: \"10.1.0.0\"")
	for _, e := range c.Events(t) {
		if len(e) > 1200 {
			t.Errorf("an event of %d bytes", len(e))
		}
	}
}

// A name that is too long for an allocation's is an error of the specification.
func TestNameTooLong(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "a", nil)
	c.run(t, controller.Options{})
	for _, n := range []int{213, 214, 253} {
		name := strings.Repeat("n", n)
		_, err := c.IPAM.IPPools(c.NS).Create(t.Context(), &v1alpha1.IPPool{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 4},
		}, metav1.CreateOptions{})
		if n == 213 {
			if err != nil {
				t.Fatal(err)
			}
			c.wantPool(t, name, "BlocksAssigned", "a 10.0.0.1 10.0.0.4")
			c.hold(t, name, "10.0.0.1", "a", c.startPod(t, "p", nil))
		} else if err == nil || !strings.Contains(err.Error(), "at most 213 characters") {
			t.Errorf("a name of %d characters: %v", n, err)
		}
	}
}

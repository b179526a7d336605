// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// sizeLimit is how much dearer an ADD may be at any size than at the smallest.
const sizeLimit = 1.2

// fullBlock is the size of the blocks that are filled.
const fullBlock = 1000

// sized is a pool of some size.
type sized struct {
	group, name string
	what        string // its size, as the report has it
	spec        v1alpha1.IPPoolSpec
	nodes       int
	filled      int  // addresses of the block that are held already
	joins       bool // another node joins before each ADD
}

// sizes are compared within each group, with its first.
func sizes(nodes int) []sized {
	var out []sized
	for i, n := range []int{3, 500, nodes} {
		out = append(out, sized{group: "nodes in the pool", name: fmt.Sprintf("nodes-%d", n), what: fmt.Sprint(n), nodes: n, spec: blocksOf(fmt.Sprintf("10.%d.0.0/12", 64+16*i), 100)})
	}
	out = append(out, sized{group: "nodes in the pool", name: fmt.Sprintf("nodes-%d-and-one-joins-each-time", nodes), what: fmt.Sprintf("%d, and one joins each time", nodes), nodes: nodes, joins: true, spec: blocksOf("10.112.0.0/12", 100)})
	for i, percent := range []int{0, 50, 90, 99} {
		out = append(out, sized{group: "block of 1,000, filled to", name: fmt.Sprintf("fill-%d", percent), what: fmt.Sprintf("%d %%", percent), nodes: 1, filled: fullBlock * percent / 100, spec: v1alpha1.IPPoolSpec{Subnet: fmt.Sprintf("10.%d.0.0/16", 240+i), PerNodeBlockSize: fullBlock}})
	}
	for _, v6 := range []sized{
		{name: "ipv4-24", what: "IPv4 /24", spec: blocksOf("10.250.0.0/24", 16)},
		{name: "ipv6-48", what: "IPv6 /48", spec: v1alpha1.IPPoolSpec{Subnet: "fd52:2eb5:44::/48", PerNodeBlockSize: 1_000_000_000, Gateway: "fd52:2eb5:44::1"}},
	} {
		v6.group, v6.nodes = "subnet", 3
		out = append(out, v6)
	}
	return out
}

// pools measures ADDs in pools of different sizes.
func (b *bench) pools() error {
	if err := b.clear(); err != nil {
		return err
	}
	all := sizes(b.nodes)
	floor := b.floorVariant()
	variants := []*variant{floor}
	for _, s := range all {
		if err := b.pool(s.name, s.spec, hostNames(s.nodes)); err != nil {
			return fmt.Errorf("pool %s: %w", s.name, err)
		}
		v, err := b.addAndDel(s)
		if err != nil {
			return fmt.Errorf("pool %s: %w", s.name, err)
		}
		variants = append(variants, v)
	}
	b.say("%d pools are ready", len(all))
	n := max(b.options.calls/2, 10)
	if err := inTurns(n, variants); err != nil {
		return err
	}
	t := b.table("Cost against size of the pool", fmt.Sprintf("One ADD, %d of each, all pools in turns. × smallest: its p50 to that of its group's first line.", n),
		"p50 ms", "p99 ms", "× floor", "× smallest")
	t.add("floor", floor.walls.p50(), floor.walls.p99(), 1, none)
	first := map[string]float64{}
	for i, s := range all {
		v := variants[i+1]
		p50 := v.walls.p50()
		smallest := first[s.group] == 0
		if smallest {
			first[s.group] = p50
		}
		name := s.group + ": " + s.what
		t.add(name, p50, v.walls.p99(), p50/floor.walls.p50(), p50/first[s.group])
		b.say("%s: %.1f ms, %.2f × smallest", name, p50, p50/first[s.group])
		if !smallest {
			b.target("ADD, "+name+", to the smallest", p50/first[s.group], sizeLimit, " ×")
		}
	}
	return nil
}

// addAndDel fills a block and returns what is measured in it.
func (b *bench) addAndDel(s sized) (*variant, error) {
	h, err := b.host(0, s.name, s.name)
	if err != nil {
		return nil, err
	}
	if s.filled > 0 {
		if err := h.fill(s.filled); err != nil {
			return nil, err
		}
	}
	if err := h.warmUp(); err != nil {
		return nil, err
	}
	v := h.undone(s.name)
	if quiet := v.call; s.joins {
		v.call = func(i int) (sample, error) {
			if err := b.joinPool(s.name, fmt.Sprintf("joins-%05d", i)); err != nil {
				return sample{}, err
			}
			return quiet(i)
		}
	}
	return v, nil
}

// undone is an ADD that is measured, and undone by a DEL that is not.
func (h *host) undone(name string) *variant {
	containers := h.b.attached(h.b.options.calls)
	return &variant{name: name, call: func(i int) (sample, error) {
		s, err := h.call("ADD", containers[i], "")
		if err == nil {
			_, err = h.call("DEL", containers[i], "")
		}
		return s, err
	}}
}

// fill claims all addresses of the block and gives some of them back, here and
// there, until n are held. It does so by the plugin's own code but without a
// process for each.
func (h *host) fill(n int) error {
	config, err := clientcmd.BuildConfigFromFlags("", h.kubeconfig)
	if err != nil {
		return err
	}
	config.QPS = -1
	client, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return err
	}
	cluster, err := ledger.SiteOf(config, h.node)
	if err != nil {
		return err
	}
	log := slog.New(slog.DiscardHandler)
	c := &claim.Claimer{
		Ledger: ledger.Ledger{Client: client, Namespace: namespace, Node: h.node},
		Hint:   hint.Open(h.dataDir(), cluster, namespace, log), Log: log,
	}
	attachments := make([]hint.Attachment, fullBlock)
	for i := range attachments {
		attachments[i] = hint.Attachment{ContainerID: h.b.container(), Interface: "net1"}
	}
	_, _, err = atOnce(8, len(attachments), func(i int) (sample, error) {
		_, err := c.Allocate(h.b.ctx, claim.Request{
			Attachment: attachments[i],
			Pools:      []v1alpha1.PoolReference{{Kind: v1alpha1.PoolKindIPPool, Name: h.pool}},
			Network:    "net",
			Pod:        v1alpha1.PodReference{Namespace: "default", Name: "pod-" + attachments[i].ContainerID[:10]},
		})
		return sample{}, err
	})
	if err != nil {
		return err
	}
	shuffle := rand.New(rand.NewPCG(1, 2)) // the same in every run
	shuffle.Shuffle(len(attachments), func(i, j int) { attachments[i], attachments[j] = attachments[j], attachments[i] })
	_, _, err = atOnce(8, len(attachments)-n, func(i int) (sample, error) {
		return sample{}, c.Release(h.b.ctx, attachments[i])
	})
	return err
}

// allocations measures ADDs on servers with more and more allocations.
func (b *bench) allocations() error {
	if err := b.clear(); err != nil {
		return err
	}
	if err := b.pool("few", blocksOf("10.60.0.0/16", 100), hostNames(hostCount)); err != nil {
		return err
	}
	h, err := b.host(0, "few", "few")
	if err != nil {
		return err
	}
	if err := h.warmUp(); err != nil {
		return err
	}
	t := b.table("Cost against allocations in the API server", "One ADD with so many allocations of other pools in the namespace. The floor was measured in turns at each size, for it makes a create like any other.",
		"p50 ms", "p99 ms", "floor p50 ms", "× floor", "× smallest", "× floor, × smallest", "first ADD of a node, p50 ms", "API server MiB", "etcd MiB")
	var first, firstOfFloor float64
	for _, n := range []int{0, b.total / 10, b.total} {
		if err := b.haveAllocations(n); err != nil {
			return err
		}
		if err := b.calm(); err != nil {
			return err
		}
		floor, add := b.floorVariant(), h.undone("ADD")
		if err := inTurns(max(b.options.calls/2, 10), []*variant{floor, add}); err != nil {
			return err
		}
		p50, ofFloor := add.walls.p50(), add.walls.p50()/floor.walls.p50()
		if n == 0 {
			first, firstOfFloor = p50, ofFloor
		}
		newcomer, err := h.newcomer()
		if err != nil {
			return err
		}
		server, database, err := b.stores()
		if err != nil {
			return err
		}
		t.add(thousands(n), p50, add.walls.p99(), floor.walls.p50(), ofFloor, p50/first, ofFloor/firstOfFloor, newcomer.p50(), server, database)
		b.say("%d allocations: %.1f ms, %.2f × floor", n, p50, ofFloor)
		if n > 0 {
			b.target("ADD, with "+thousands(n)+" allocations, to none", p50/first, sizeLimit, " ×")
		}
	}
	return nil
}

// newcomer measures ADDs of a node that has lost all it knew.
func (h *host) newcomer() (times, error) {
	var walls times
	for _, container := range h.b.attached(few) {
		if err := os.RemoveAll(h.dataDir()); err != nil {
			return nil, err
		}
		s, err := h.call("ADD", container, "")
		if err != nil {
			return nil, err
		}
		walls = append(walls, s.wall)
		if _, err := h.call("DEL", container, ""); err != nil {
			return nil, err
		}
	}
	return walls, nil
}

func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}

func allocationKey(namespace, name string) string {
	return "/registry/" + v1alpha1.GroupVersion.Group + "/ipallocations/" + namespace + "/" + name
}

// podsPerNode is how many pods a node of the large cluster has, each with one
// address of one of the poolCount pools.
const (
	podsPerNode = 20
	poolCount   = 100
)

// place is where the i-th pod of the large cluster is.
func place(i int) (node, pool string, addr netip.Addr) {
	n, p := i/podsPerNode, i%poolCount
	// Pool p is 10.(2p).0.0/15, and its n-th block begins after n blocks of
	// podsPerNode addresses.
	offset := n*podsPerNode + 1
	return hostName(n), poolName(p), netip.AddrFrom4([4]byte{10, byte(2*p + offset>>16), byte(offset >> 8), byte(offset)})
}

func poolName(p int) string { return fmt.Sprintf("pool-%03d", p) }

func podName(i int) string { return fmt.Sprintf("pod-%06d", i) }

func podUID(i int) string { return fmt.Sprintf("9d9a3f0e-2a5c-4f0e-8a53-%012d", i) }

// haveAllocations makes sure that the large cluster has n allocations. The first
// is made by a create, and the others are copies of it, put into etcd: what the
// API server has to carry is the same.
func (b *bench) haveAllocations(n int) error {
	if n <= b.copied {
		return nil
	}
	const original = "original.10.255.255.254"
	client := b.ipam.IPAllocations(namespace)
	obj := canary(hostName(0))
	obj.Name, obj.Spec.Address, obj.Spec.PoolRef.Name = original, "10.255.255.254", "original"
	obj.Spec.ContainerID, obj.Spec.NetworkName = b.container(), "net"
	obj.Spec.PodRef.UID = "9d9a3f0e-2a5c-4f0e-8a53-0d3f0c6f6a11"
	obj.Labels = map[string]string{v1alpha1.LabelPool: "", v1alpha1.LabelNode: "", v1alpha1.LabelContainer: ""}
	if _, err := client.Create(b.ctx, obj, metav1.CreateOptions{}); err != nil {
		return err
	}
	data, err := b.stored(allocationKey(namespace, original))
	if err != nil {
		return err
	}
	if err := client.Delete(b.ctx, original, metav1.DeleteOptions{}); err != nil {
		return err
	}
	from := b.copied
	if err := b.store(n-from, func(i int) (kv, error) { return copyAllocation(data, from+i) }); err != nil {
		return err
	}
	b.copied = n
	return b.until("the API server has seen the allocations", func() (bool, error) {
		held, err := b.count()
		return held >= n, err // more: the floor's
	})
}

// copyAllocation returns the allocation of the i-th pod.
func copyAllocation(original []byte, i int) (kv, error) {
	var obj map[string]any
	if err := json.Unmarshal(original, &obj); err != nil {
		return kv{}, err
	}
	node, pool, addr := place(i)
	name := v1alpha1.AllocationName(pool, addr)
	meta, spec := obj["metadata"].(map[string]any), obj["spec"].(map[string]any)
	meta["name"], meta["uid"] = name, fmt.Sprintf("11111111-2a5c-4f0e-8a53-%012d", i)
	container := fmt.Sprintf("%064x", i)
	meta["labels"] = map[string]string{v1alpha1.LabelPool: pool, v1alpha1.LabelNode: node, v1alpha1.LabelContainer: v1alpha1.ContainerLabel(container), v1alpha1.LabelWindow: v1alpha1.WindowLabel(addr)}
	spec["poolRef"] = v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool}
	spec["address"], spec["nodeName"], spec["containerID"] = addr.String(), node, container
	spec["podRef"] = map[string]string{"namespace": namespace, "name": podName(i), "uid": podUID(i)}
	value, err := json.Marshal(obj)
	return kv{Key: []byte(allocationKey(namespace, name)), Value: value}, err
}

// count returns how many allocations there are.
func (b *bench) count() (int, error) {
	list, err := b.metadata.Resource(allocationsResource).Namespace(namespace).List(b.ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	held := len(list.Items)
	if more := list.RemainingItemCount; more != nil {
		held += int(*more)
	}
	return held, nil
}

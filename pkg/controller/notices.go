// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Reasons of notices, and of their events.
const (
	reasonOverlap      = "SubnetsOverlap"
	reasonGateway      = "GatewayNotKept"
	reasonNodeAddress  = "NodeAddressNotKept"
	reasonPodNetwork   = "PodNetworkOverlap"
	reasonSpecInUse    = "EarlierSpecInUse"
	reasonForeign      = "ForeignAddresses"
	reasonBlockFull    = "BlockFull"
	reasonOutsideBlock = "AddressesOutsideBlock"
	reasonFull         = "Full"
	reasonDropped      = "FieldsDropped"
)

// notice is a condition that is True on a pool where there is something to tell, and
// absent otherwise. It does not change Ready.
type notice struct {
	condition metav1.Condition
	// event is recorded where it differs from the last one; "" is none. It may be
	// less than the message, which is kept up to date.
	event string
}

// noticeTypes are the conditions that are absent where there is no notice.
var noticeTypes = []string{
	v1alpha1.ConditionOverlapping, v1alpha1.ConditionPodNetworkOverlap, v1alpha1.ConditionEarlierSpecInUse,
	v1alpha1.ConditionForeignAddresses, v1alpha1.ConditionBlockFull, v1alpha1.ConditionFull, v1alpha1.ConditionFieldsDropped,
}

func newNotice(conditionType, reason, message string) notice {
	return notice{condition: metav1.Condition{Type: conditionType, Status: metav1.ConditionTrue, Reason: reason, Message: message}}
}

// nodeNews is something that a pool's event says of one node.
type nodeNews struct{ reason, node, message string }

// earlierSpec says what is in use of an earlier specification. Nobody's address
// changes for that: it stays until it is released. There is one event for each
// specification.
func earlierSpec(obj *pool.Object, use *pool.Use) []notice {
	var blocks []string
	for _, b := range use.Blocks {
		if b.Earlier {
			blocks = append(blocks, fmt.Sprintf("%s (%s)", b.Node, b.Range))
		}
	}
	var parts []string
	add := func(text string, names []string) {
		if len(names) > 0 {
			parts = append(parts, text+pool.Enumerate(names))
		}
	}
	add("blocks of nodes ", blocks)
	add("addresses ", addresses(use.Unfit, func(h pool.Held) string { return h.Addr.String() }))
	add("addresses that are a gateway now ", addresses(use.Gateways, func(h pool.Held) string { return h.Addr.String() + " (held on node " + h.Node + ")" }))
	if len(parts) == 0 {
		return nil
	}
	n := newNotice(v1alpha1.ConditionEarlierSpecInUse, reasonSpecInUse, "kept from an earlier specification until they are released: "+strings.Join(parts, "; "))
	n.event = strconv.FormatInt(obj.Meta.Generation, 10)
	return []notice{n}
}

// addresses returns a text for each address, in their order.
func addresses(held []pool.Held, text func(pool.Held) string) []string {
	held = slices.SortedFunc(slices.Values(held), func(a, b pool.Held) int { return a.Addr.Compare(b.Addr) })
	out := make([]string, len(held))
	for i, h := range held {
		out[i] = text(h)
	}
	return out
}

// foreign says which nodes hold addresses in the pool's name that are none of its
// subnet: whoever may write allocations can write such.
func foreign(p *pool.Pool, use *pool.Use) []notice {
	if len(use.Foreign) == 0 {
		return nil
	}
	var names []string
	for _, n := range countByNode(use.Foreign) {
		names = append(names, fmt.Sprintf("%s (%d, as %s)", n.node, n.count, n.first))
	}
	return []notice{newNotice(v1alpha1.ConditionForeignAddresses, reasonForeign, fmt.Sprintf(
		"held in this pool's name and not in its subnet %s, requested under an earlier specification or written by mistake: %d addresses of nodes %s",
		p.Subnet, len(use.Foreign), pool.Enumerate(names)))}
}

// full says which nodes have no free address in their block.
func full(use *pool.Use) []notice {
	var names []string
	for _, b := range use.FullBlocks() {
		names = append(names, fmt.Sprintf("%s (%s held)", b.Node, heldOf(b)))
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return []notice{newNotice(v1alpha1.ConditionBlockFull, reasonBlockFull,
		fmt.Sprintf("no free address in the blocks of %d nodes, pods that need one do not start there: %s", len(names), pool.Enumerate(names)))}
}

func newlyFull(use *pool.Use) (news []nodeNews) {
	for _, b := range use.FullBlocks() {
		news = append(news, nodeNews{reasonBlockFull, b.Node, fmt.Sprintf("no free address in the block %s of node %s: %s are held", b.Range, b.Node, heldOf(b))})
	}
	return news
}

func newlyOutside(use *pool.Use) (news []nodeNews) {
	for _, n := range countByNode(use.Outside) {
		news = append(news, nodeNews{reasonOutsideBlock, n.node,
			fmt.Sprintf("node %s holds %d addresses outside of its block which nobody requested, as %s", n.node, n.count, n.first)})
	}
	return firstFew(news)
}

func newlyForeign(p *pool.Pool, use *pool.Use) (news []nodeNews) {
	for _, n := range countByNode(use.Foreign) {
		news = append(news, nodeNews{reasonForeign, n.node,
			fmt.Sprintf("node %s holds %d addresses in this pool's name which are not in %s, as %s", n.node, n.count, p.Subnet, n.first)})
	}
	return firstFew(news)
}

// maxNews is how many events the writers of allocations can cause at a time.
const maxNews = 10

func firstFew(news []nodeNews) []nodeNews { return news[:min(len(news), maxNews)] }

// nodeCount is how many addresses a node holds, and the first of them.
type nodeCount struct {
	node  string
	count int
	first netip.Addr
}

// countByNode counts addresses by node, sorted by name.
func countByNode(held []pool.Held) []nodeCount {
	all := map[string]*nodeCount{}
	for _, h := range held {
		n := all[h.Node]
		if n == nil {
			n = &nodeCount{node: h.Node, first: h.Addr}
			all[h.Node] = n
		}
		n.count++
		if h.Addr.Less(n.first) {
			n.first = h.Addr
		}
	}
	out := make([]nodeCount, 0, len(all))
	for _, node := range slices.Sorted(maps.Keys(all)) {
		out = append(out, *all[node])
	}
	return out
}

// podNetwork says that a pool's subnet overlaps with what the cluster gives to its
// pods' first interfaces. Of many nodes it names the first, so that the message does
// not change with each node that joins.
func podNetwork(obj *pool.Object, nodes []*corev1.Node) []notice {
	subnet, err := netip.ParsePrefix(obj.Subnet)
	if err != nil {
		return nil
	}
	first, podCIDR := "", ""
	for _, node := range nodes {
		for _, text := range node.Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(text); err == nil && p.Overlaps(subnet) && (first == "" || node.Name < first) {
				first, podCIDR = node.Name, text
			}
		}
	}
	if first == "" {
		return nil
	}
	n := newNotice(v1alpha1.ConditionPodNetworkOverlap, reasonPodNetwork, fmt.Sprintf("%s overlaps with the cluster's pod network: node %s has %s", obj.Subnet, first, podCIDR))
	n.event = n.condition.Message
	return []notice{n}
}

// countBlocks counts blocks that nodes hand out addresses from.
func countBlocks(use *pool.Use) *blockCount {
	return &blockCount{nodes: len(use.Active), full: len(use.FullBlocks()), capacity: use.Capacity()}
}

// heldOf says how many addresses of a block are held.
func heldOf(b *pool.BlockUse) string {
	text := fmt.Sprintf("%d of %d", b.Held, b.Size)
	if b.Rests > 0 {
		text += fmt.Sprintf(", while %d rest after their release,", b.Rests)
	}
	return text
}

// fullWhole says that a pool of which any node may use the whole subnet has no free
// address, and who holds most.
func fullWhole(use *pool.Use, held []pool.Held) []notice {
	if use.Whole == nil || !use.Whole.Full() {
		return nil
	}
	var most []string
	for _, n := range topNodes(held) {
		most = append(most, fmt.Sprintf("%s (%d)", n.NodeName, n.Used))
	}
	n := newNotice(v1alpha1.ConditionFull, reasonFull, fmt.Sprintf("no free address, pods that need one do not start: %s are held, most by nodes %s",
		heldOf(use.Whole), strings.Join(most, ", ")))
	n.event = n.condition.Message
	return []notice{n}
}

// maxTopNodes is how many nodes status.topNodes names.
const maxTopNodes = 5

// topNodes are the nodes that hold most addresses, in descending order.
func topNodes(held []pool.Held) (out []v1alpha1.NodeUse) {
	for _, n := range countByNode(held) {
		if n.node != "" { // reserved
			out = append(out, v1alpha1.NodeUse{NodeName: n.node, Used: int64(n.count)})
		}
	}
	slices.SortFunc(out, func(a, b v1alpha1.NodeUse) int {
		return cmp.Or(cmp.Compare(b.Used, a.Used), strings.Compare(a.NodeName, b.NodeName))
	})
	return out[:min(len(out), maxTopNodes)]
}

// dropped says which fields of the specification kubectl has applied and the API server
// has dropped, since the installed CRD is nv-ipam's or an earlier one of this project's.
// Only kubectl apply leaves a trace of them.
func dropped(obj *pool.Object) []notice {
	var names []string
	for field := range droppedFields(obj) {
		names = append(names, "spec."+field)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	n := newNotice(v1alpha1.ConditionFieldsDropped, reasonDropped, fmt.Sprintf(
		"the installed %s CRD does not have %s: what was applied there has no effect. Apply this project's CRDs, then the pool again",
		obj.Ref.Kind, strings.Join(names, ", ")))
	n.event = n.condition.Message
	return []notice{n}
}

// droppedFields are those fields.
func droppedFields(obj *pool.Object) map[string]any {
	var applied struct {
		Spec map[string]any `json:"spec"`
	}
	if json.Unmarshal([]byte(obj.Meta.Annotations[corev1.LastAppliedConfigAnnotation]), &applied) != nil {
		return nil
	}
	var stored map[string]any
	data, err := json.Marshal(obj.Spec)
	if err != nil || json.Unmarshal(data, &stored) != nil {
		return nil
	}
	maps.DeleteFunc(applied.Spec, func(field string, value any) bool {
		_, kept := stored[field]
		list, _ := value.([]any)
		nothing := value == nil || value == false || value == "" || len(list) == 0 && list != nil // as if it were not set
		return kept || nothing || !slices.Contains(optionalFields, field)
	})
	return applied.Spec
}

// optionalFields are the fields of a specification that nv-ipam's CRDs do not have.
var optionalFields = []string{"allowedNamespaces", "assignment", "disabled", "domain", "overflow", "ranges", "releaseCooldown", "sticky", "stickyWhenScaled"}

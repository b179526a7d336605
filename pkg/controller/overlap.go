// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// overlapsWith names those of all pools that have addresses in common with this one.
func overlapsWith(this *pool.Object, all iter.Seq[*pool.Object]) (others []string) {
	for other := range all {
		// In one domain an address is given once, whatever pool it is taken from.
		if other.Domain != this.Domain && this.Overlaps(other) {
			others = append(others, fmt.Sprintf("%s %s (%s)", other.Ref.Kind, other.Ref.Name, other.Subnet))
		}
	}
	slices.Sort(others)
	return others
}

// outlived says which domains that no pool has any more have addresses of this pool: the
// containers that answer on them do not keep this pool from giving them again. It does not
// count them, which would be a write for each that is released.
func (c *caches) outlived(this *pool.Object) (out []string) {
	subnet, err := netip.ParsePrefix(this.Subnet)
	if err != nil {
		return nil
	}
	known := c.domains()
	for _, domain := range slices.Sorted(slices.Values(c.allocations.ListIndexFuncValues(byDomain))) {
		if known[domain] {
			continue
		}
		found, of := false, (*pool.Object)(nil)
		for _, a := range c.allocations.by(byDomain, domain) {
			if addr, err := pool.ParseAddr(a.Spec.Address); err != nil || !subnet.Contains(addr) {
				continue
			}
			found = true
			if now := c.pool(a.Spec.PoolRef); now != nil && (of == nil || now.Ref.Name < of.Ref.Name) {
				of = now
			}
		}
		if !found {
			continue
		}
		from := ""
		if of != nil {
			from = fmt.Sprintf("; they name pool %s, whose domain is %s: they are from before it had that, or of plugins that do not know spec.domain", of.Ref.Name, of.Domain)
		}
		out = append(out, fmt.Sprintf("addresses that are held in the domain %s, which has no pool any more (kubectl get ipa shows them as %s.ADDRESS%s)", domain, domain, from))
	}
	return out
}

// gatewaysIn names those other pools of the domain whose gateway this one may give to a pod.
// They are one network, but a pool keeps only its own gateway free.
func gatewaysIn(this *pool.Object, all iter.Seq[*pool.Object]) (out []string) {
	var parsed *pool.Pool
	for other := range all {
		gateway, err := pool.ParseAddr(other.Gateway)
		if err != nil || other.Domain != this.Domain || other.Gateway == this.Gateway || !this.Overlaps(other) {
			continue
		}
		if parsed == nil { // seldom
			var errs field.ErrorList
			if parsed, errs = this.Parse(); len(errs) > 0 {
				return nil
			}
		}
		if parsed.Gives(gateway) {
			out = append(out, fmt.Sprintf("%s of %s %s", gateway, other.Ref.Kind, other.Ref.Name))
		}
	}
	slices.Sort(out)
	return out
}

// nodeAddressIn names an address that a node itself has and the pool may give to a pod, "" if there
// is none. Of many nodes it names the first, so that the message does not change with each node
// that joins.
func nodeAddressIn(this *pool.Object, nodes []*corev1.Node) string {
	subnet, err := netip.ParsePrefix(this.Subnet)
	if err != nil {
		return ""
	}
	var parsed *pool.Pool
	first, address := "", ""
	for _, node := range nodes {
		for _, own := range node.Status.Addresses {
			addr, err := pool.ParseAddr(own.Address)
			if err != nil || !subnet.Contains(addr) || first != "" && first <= node.Name {
				continue
			}
			if parsed == nil { // seldom
				var errs field.ErrorList
				if parsed, errs = this.Parse(); len(errs) > 0 {
					return ""
				}
			}
			if parsed.Gives(addr) {
				first, address = node.Name, addr.String()
			}
		}
	}
	if first == "" {
		return ""
	}
	return fmt.Sprintf("%s of node %s", address, first)
}

// overlapping says that there are such pools or addresses. It is no error: two domains may
// be two networks that never meet. But an address is given once in each domain, so where
// they are one network, it is given twice.
//
// That another pool's gateway may be given is an error wherever it is so, and that a node's own
// address may be, if the pool is of the nodes' network.
func overlapping(obj *pool.Object, others, gateways []string, nodeAddress string) []notice {
	var parts []string
	reason := reasonNodeAddress
	if len(gateways) > 0 {
		reason = reasonGateway
	}
	if len(others) > 0 {
		reason = reasonOverlap
		parts = append(parts, fmt.Sprintf("%s overlaps with %s", obj.Subnet, pool.Enumerate(others)))
	}
	if len(gateways) > 0 {
		parts = append(parts, fmt.Sprintf("pods may be given the gateway %s: set spec.gateway here, too, or exclude it", pool.Enumerate(gateways)))
	}
	if nodeAddress != "" {
		parts = append(parts, fmt.Sprintf("pods may be given the address %s: exclude the addresses of nodes, unless this is another network", nodeAddress))
	}
	if len(parts) == 0 {
		return nil
	}
	n := newNotice(v1alpha1.ConditionOverlapping, reason, strings.Join(parts, "; "))
	n.event = n.condition.Message
	return []notice{n}
}

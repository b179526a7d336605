// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// setOwner finds out what keeps an address for the pod, if the network or a pool allows that.
func (c *Claimer) setOwner(ctx context.Context, req *Request, views []view) error {
	sticky := slices.ContainsFunc(views, func(v view) bool { return v.Sticky })
	// A kubelet gives a static pod another UID than a UUID. It is of no workload, and the API
	// server has it under yet another UID.
	const uuid = 36
	if !sticky && !req.Persistent || req.Pod.Name == "" || req.Pod.Namespace == "" || req.Pod.UID != "" && len(req.Pod.UID) != uuid {
		return nil
	}
	pod, err := c.Ledger.Pod(ctx, req.Pod)
	if err != nil {
		return fmt.Errorf("which address the pod keeps (spec.sticky, or an IPAMClaim) depends on the pod: %w", err)
	}
	if req.Persistent {
		if err := c.setClaim(ctx, req, pod, views); err != nil || req.owner != nil {
			return err
		}
	}
	for _, o := range pod.OwnerReferences {
		group, _, _ := strings.Cut(o.APIVersion, "/")
		owner := &v1alpha1.AllocationOwner{APIGroup: group, Kind: o.Kind, Namespace: req.Pod.Namespace, Name: o.Name, UID: o.UID}
		if o.Controller != nil && *o.Controller && owner.IsStatefulSet() {
			req.owner = owner
		}
	}
	if req.owner != nil {
		return mayKeep(views)
	}
	return nil
}

// mayKeep returns an error if a StatefulSet is to keep two addresses for a pod of which nothing
// tells which is which.
func mayKeep(views []view) error {
	for i, v := range views {
		for _, o := range views[:i] {
			if (v.Sticky || o.Sticky) && v.Domain == o.Domain && v.Subnet.Addr().Is4() == o.Subnet.Addr().Is4() {
				return refuse("pools %q and %q are of one address family and one domain, %q, in which a pod of a StatefulSet keeps one address of each family (spec.sticky): name one of the two", o.Pool.Name, v.Pool.Name, v.Domain)
			}
		}
	}
	return nil
}

// setClaim finds out which IPAMClaim a pod names for the request's interface, if any.
func (c *Claimer) setClaim(ctx context.Context, req *Request, pod *metav1.ObjectMeta, views []view) error {
	selections, err := ledger.ParseNetworks(pod.Annotations[ledger.AnnotationNetworks], pod.Namespace)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(selections, func(s ledger.Selection) bool { return s.Interface == req.Interface })
	if i < 0 {
		assumed := slices.IndexFunc(selections, func(s ledger.Selection) bool { return s.IPAMClaim != "" && s.Assumed })
		if assumed < 0 {
			return nil
		}
		return refuse("the pod names IPAMClaim %s/%s for a network without an interface, and no network of its annotation is that of interface %s: the runtime numbers them otherwise. Name the interface there (multus has defaultNetworks)",
			pod.Namespace, selections[assumed].IPAMClaim, req.Interface)
	}
	name := selections[i].IPAMClaim
	if name == "" {
		return nil
	}
	families := map[bool]string{}
	for _, v := range views {
		four := v.Subnet.Addr().Is4()
		if other := families[four]; other != "" {
			return refuse("pools %q and %q are of one address family, and IPAMClaim %s/%s, which the pod names, has room for one address of each: name one of the two", other, v.Pool.Name, pod.Namespace, name)
		}
		families[four] = v.Pool.Name
		if v.Lasting() == nil {
			return refuse("pool %q, poolType %q keeps no address for IPAMClaim %s/%s: an address of it belongs to a node, or to a place in a node's block (spec.perNodeExclusions). Name another pool",
				v.Pool.Name, pool.Type(v.Pool.Kind), pod.Namespace, name)
		}
	}
	if len(selections[i].IPs) > 0 || !req.Want.IsZero() {
		return refuse("the pod names IPAMClaim %s/%s and requests addresses as well, which the multi-network specification forbids: remove one of the two", pod.Namespace, name)
	}
	if problems := validation.IsDNS1123Subdomain(name); len(problems) > 0 {
		return refuse("ipam-claim-reference %q is not the name of an IPAMClaim in the pod's namespace: %s", name, problems[0])
	}
	ipamClaim, err := c.Ledger.IPAMClaim(ctx, pod.Namespace, name)
	if err != nil {
		return err
	}
	addrs, err := ipamClaim.AddressesIn(req.Network)
	if err != nil {
		return err
	}
	req.owner, req.migrates, req.statusIPs = ipamClaim.Owner(), pod.Labels[ledger.LabelMigration] != "", addrs
	return nil
}

// hasOwnAddressIn reports whether something keeps an address for the request in a block's pool.
func (r *Request) hasOwnAddressIn(b *pool.Block) bool {
	return r.owner.IsIPAMClaim() || r.owner != nil && b.Sticky
}

// owns reports whether a sticky allocation is of the request's identity. Its pool is not
// looked at.
func (r *Request) owns(s *v1alpha1.IPAllocationSpec) bool {
	return s.SameIdentity(&v1alpha1.IPAllocationSpec{
		PoolRef: s.PoolRef, Domain: s.Domain, Address: s.Address, Owner: r.owner, PodRef: r.Pod, NetworkName: r.Network, InterfaceName: r.Interface,
	})
}

// homeIn returns the address at which the search for the identity's own begins. only is true
// if no other will do.
func (r *Request) homeIn(space *pool.Block) (home netip.Addr, only bool, err error) {
	for _, addr := range r.statusIPs {
		if addr.Is4() == space.Subnet.Addr().Is4() {
			return addr, true, doesNotFit(r.owner, addr, space)
		}
	}
	identity := []string{string(r.owner.UID)}
	if !r.owner.IsIPAMClaim() {
		identity = append(identity, r.Pod.Name, r.Network, r.Interface)
	}
	return space.Home(strings.Join(identity, "\n")), false, nil
}

// doesNotFit returns an error if a pool does not give the address that an IPAMClaim has: once
// given, it is never replaced.
func doesNotFit(ipamClaim *v1alpha1.AllocationOwner, addr netip.Addr, space *pool.Block) error {
	if space.Contains(addr) {
		return nil
	}
	return refuse("IPAMClaim %s/%s has the address %s, which pool %q, poolType %q does not give: change the pool, or delete the claim, and the next one gets another address",
		ipamClaim.Namespace, ipamClaim.Name, addr, space.Pool.Name, pool.Type(space.Pool.Kind))
}

func refuse(format string, args ...any) error {
	return &pool.RequestError{Message: fmt.Sprintf(format, args...)}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// The condition of an IPAMClaim, and its reasons, in the words of those who know them already.
const (
	conditionIPsAllocated      = "IPsAllocated"
	reasonSuccessfulAllocation = "SuccessfulAllocation"
	reasonIPAddressConflict    = "IPAddressConflict"
)

// claimReconciler writes into the status of an IPAMClaim which addresses it keeps, and which
// pod has them. Nothing rests on that but this: if the record is lost, the plugin asks for the
// addresses that are written there. It follows the allocations, and watches no claims: a
// claim without an address has nothing to be said of it.
type claimReconciler struct {
	caches *caches
	claims ledger.IPAMClaims
}

// reconcile brings the status of a claim in line.
func (r *claimReconciler) reconcile(ctx context.Context, key types.NamespacedName) error {
	claim, err := ledger.Existing(r.claims.Get(ctx, key.Namespace, key.Name))
	if errors.Is(err, ledger.ErrNoIPAMClaims) || err == nil && claim == nil {
		return nil
	}
	if err != nil {
		return err
	}
	status := claim.Status
	status.Conditions = slices.Clone(status.Conditions)
	ips, pod, condition := r.kept(claim)
	if len(ips) == 0 { // nothing is kept, nor was
		return nil
	}
	if !meta.SetStatusCondition(&status.Conditions, condition) && slices.Equal(ips, status.IPs) && status.OwnerPod.Name == pod {
		return nil
	}
	status.IPs, status.OwnerPod.Name = ips, pod
	_, err = r.claims.PatchStatus(ctx, claim, status, metav1.PatchOptions{FieldManager: name})
	if apierrors.IsInvalid(err) && !status.OwnerPod.Text { // of another version of the CRD
		status.OwnerPod.Text = true
		_, err = r.claims.PatchStatus(ctx, claim, status, metav1.PatchOptions{FieldManager: name})
	}
	if err != nil {
		return fmt.Errorf("write the status of IPAMClaim %s: %w", key, err)
	}
	klog.FromContext(ctx).V(2).Info("IPAMClaim", "name", key, "ips", ips, "pod", pod)
	return nil
}

// kept returns the addresses of a claim, with those that its status already has, the pod
// that has them, and the condition that says so.
func (r *claimReconciler) kept(claim *ledger.IPAMClaim) (ips []string, pod string, condition metav1.Condition) {
	condition = metav1.Condition{
		Type: conditionIPsAllocated, Status: metav1.ConditionTrue, Reason: reasonSuccessfulAllocation, ObservedGeneration: claim.Metadata.Generation,
	}
	ips = slices.Clone(claim.Status.IPs)
	written, err := claim.Status.Addresses()
	if err != nil {
		condition.Status, condition.Reason, condition.Message = metav1.ConditionFalse, reasonIPAddressConflict, err.Error()
		return ips, "", condition
	}
	all := r.caches.allocations.by(byOwner, string(claim.Metadata.UID))
	slices.SortFunc(all, func(a, b *v1alpha1.IPAllocation) int { return strings.Compare(a.Name, b.Name) })
	for _, a := range all {
		prefix, ok := r.prefix(a)
		if !ok || a.Spec.IsReserved() {
			continue
		}
		addr := prefix.Addr()
		if a.Spec.Held() {
			pod = cmp.Or(pod, a.Spec.PodRef.Name)
		}
		i := slices.IndexFunc(written, func(w netip.Addr) bool { return w.Is4() == addr.Is4() })
		switch {
		case i < 0:
			ips, written = append(ips, prefix.String()), append(written, addr)
		case written[i] != addr:
			condition.Status, condition.Reason = metav1.ConditionFalse, reasonIPAddressConflict
			condition.Message = fmt.Sprintf("the status has %s, and a container was given %s, see IPAllocation %s/%s", ips[i], addr, a.Namespace, a.Name)
		}
	}
	if condition.Message == "" {
		condition.Message = strings.Join(ips, ", ")
	}
	return ips, pod, condition
}

// prefix returns the address of an allocation with the prefix length of its pool. ok is false
// if the pool does not have such an address, so that no node can write what it likes.
func (r *claimReconciler) prefix(a *v1alpha1.IPAllocation) (prefix netip.Prefix, ok bool) {
	addr, err := netip.ParseAddr(a.Spec.Address)
	p := r.caches.pool(a.Spec.PoolRef)
	if err != nil || p == nil {
		return prefix, false
	}
	subnet, err := netip.ParsePrefix(p.Subnet)
	return netip.PrefixFrom(addr, subnet.Bits()), err == nil && subnet.Contains(addr)
}

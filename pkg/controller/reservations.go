// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"go4.org/netipx"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// reservationReconciler keeps the addresses that IPReservations name: for each it makes an
// allocation without a container, of which the reservation is the owner. What a reservation
// does not name any more is the leakReconciler's to end (reclaim.Decide, 9).
type reservationReconciler struct {
	caches       *caches
	allocations  clientv1alpha1.IPAllocationInterface
	reservations clientv1alpha1.IPReservationInterface
	lossGrace    time.Duration
	// later reconciles a reservation again after a while.
	later func(name string, after time.Duration)
}

// reconcile brings the allocations of a reservation in line, and says in its status what
// became of each address.
func (r *reservationReconciler) reconcile(ctx context.Context, name string) error {
	res, found := r.caches.reservations.get(r.caches.namespace + "/" + name)
	if !found {
		return nil
	}
	status := v1alpha1.IPReservationStatus{ObservedGeneration: res.Generation}
	ready, err := r.keep(ctx, res, &status)
	if err != nil {
		return err
	}
	ready.Type, ready.ObservedGeneration = v1alpha1.ConditionReady, res.Generation
	status.Conditions = slices.Clone(res.Status.Conditions)
	if meta.SetStatusCondition(&status.Conditions, ready) || status.ObservedGeneration != res.Status.ObservedGeneration ||
		status.Wanted != res.Status.Wanted || status.Kept != res.Status.Kept {
		return r.writeStatus(ctx, res, &status)
	}
	return nil
}

// keep keeps what can be kept, and returns the condition that says so.
func (r *reservationReconciler) keep(ctx context.Context, res *v1alpha1.IPReservation, status *v1alpha1.IPReservationStatus) (metav1.Condition, error) {
	obj := r.caches.pool(res.Spec.PoolRef)
	if obj == nil {
		return notReady(v1alpha1.ReasonPoolNotFound, fmt.Sprintf("%s %s does not exist in namespace %s: apply it, or name another pool", res.Spec.PoolRef.Kind, res.Spec.PoolRef.Name, res.Namespace)), nil
	}
	wanted, errs := obj.Reserved(&res.Spec)
	if len(errs) > 0 {
		return notReady(v1alpha1.ReasonInvalidSpec, pool.Explain(errs)), nil
	}
	status.Wanted = int32(len(wanted))
	if wait := tooEarly(obj.Meta, nil, r.caches.allocations.all, time.Now(), r.lossGrace); wait > 0 {
		r.later(res.Name, wait)
		return notReady(v1alpha1.ReasonRecordLost, "allocations were lost, and the nodes are writing them again: nothing new is kept until then"), nil
	}
	var others []string
	for _, addr := range wanted {
		holder, err := r.keepOne(ctx, res, obj, addr)
		switch {
		case err != nil:
			return metav1.Condition{}, fmt.Errorf("keep %s: %w", addr, err)
		case holder == nil:
			status.Kept++
		default:
			others = append(others, fmt.Sprintf("%s is %s", addr, ledger.Describe(holder)))
		}
	}
	if len(others) > 0 {
		return notReady(v1alpha1.ReasonHeldByOthers, fmt.Sprintf("%d of %d addresses are kept. The others are kept when they are released: %s", status.Kept, status.Wanted, pool.Enumerate(others))), nil
	}
	return ready(v1alpha1.ReasonReserved, fmt.Sprintf("all %d addresses are kept", status.Wanted)), nil
}

// keepOne keeps an address for a reservation. If it is another's, it returns the
// allocation.
func (r *reservationReconciler) keepOne(ctx context.Context, res *v1alpha1.IPReservation, obj *pool.Object, addr netip.Addr) (other *v1alpha1.IPAllocation, err error) {
	wanted := reserved(res, obj, addr)
	a, found := r.caches.allocations.get(res.Namespace + "/" + wanted.Name)
	if !found {
		_, err := r.allocations.Create(ctx, wanted, metav1.CreateOptions{FieldManager: name})
		if !apierrors.IsAlreadyExists(err) {
			return nil, err
		}
		if a, err = ledger.Existing(r.allocations.Get(ctx, wanted.Name, metav1.GetOptions{})); a == nil || err != nil { // the cache is behind
			return nil, apierrors.NewConflict(v1alpha1.Resource("ipallocations"), wanted.Name, err)
		}
	}
	mine := isOwner(res, a.Spec.Owner)
	switch s := &a.Spec; {
	case mine && (s.Held() || s.Owner.UID == res.UID && s.PodRef.Namespace == wanted.Spec.PodRef.Namespace && s.PodRef.Name == wanted.Spec.PodRef.Name):
		return nil, nil
	case s.Held(), !mine && !s.Rests():
		return a, nil
	}
	return nil, r.take(ctx, a, wanted)
}

// take makes a reserved allocation of one that no container holds.
func (r *reservationReconciler) take(ctx context.Context, a, wanted *v1alpha1.IPAllocation) error {
	patch, err := ledger.TakeoverPatch(a, wanted)
	if err != nil {
		return err
	}
	_, err = r.allocations.Patch(ctx, a.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: name})
	return err
}

// reserved is the allocation that keeps an address.
func reserved(res *v1alpha1.IPReservation, obj *pool.Object, addr netip.Addr) *v1alpha1.IPAllocation {
	spec := v1alpha1.IPAllocationSpec{PoolRef: obj.Ref, Address: addr.String(), Owner: ownerOf(res)}
	if obj.Domain != obj.Ref.Name {
		spec.Domain = obj.Domain
	}
	if pod := res.Spec.Pod; pod != nil {
		spec.PodRef = v1alpha1.PodReference{Namespace: pod.Namespace, Name: pod.Name}
	}
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: res.Namespace, Name: v1alpha1.AllocationName(obj.Domain, addr), Labels: v1alpha1.AllocationLabels(&spec)},
		Spec:       spec,
	}
}

// isOwner reports whether a reservation is an allocation's owner, by its name: imported with
// the allocation, it has another UID than the owner has. No container's allocation changes its
// owner; all else is taken for the UID of now.
func isOwner(res *v1alpha1.IPReservation, owner *v1alpha1.AllocationOwner) bool {
	return isReservation(owner) && owner.Namespace == res.Namespace && owner.Name == res.Name
}

func isReservation(owner *v1alpha1.AllocationOwner) bool {
	return owner != nil && owner.APIGroup == v1alpha1.GroupName && owner.Kind == v1alpha1.KindIPReservation
}

func ownerOf(res *v1alpha1.IPReservation) *v1alpha1.AllocationOwner {
	return &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: res.Namespace, Name: res.Name, UID: res.UID}
}

func (r *reservationReconciler) writeStatus(ctx context.Context, res *v1alpha1.IPReservation, status *v1alpha1.IPReservationStatus) error {
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]string{"resourceVersion": res.ResourceVersion},
		"status":   status,
	})
	if err != nil {
		return err
	}
	if _, err := r.reservations.Patch(ctx, res.Name, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: name}, "status"); err != nil {
		return fmt.Errorf("write the status of reservation %s: %w", res.Name, err)
	}
	klog.FromContext(ctx).Info("Reservation", "name", res.Name, "wanted", status.Wanted, "kept", status.Kept)
	return nil
}

// reservedSet is what a reservation names, parsed: the events of allocations ask for it much more
// often than it changes.
type reservedSet struct {
	uid        types.UID
	generation int64
	addresses  *netipx.IPSet
}

// reservedIn returns what a reservation names.
func (c *caches) reservedIn(res *v1alpha1.IPReservation) *netipx.IPSet {
	if known, found := c.reserved.get(res.Name); found && known.uid == res.UID && known.generation == res.Generation {
		return known.addresses
	}
	now := reservedSet{res.UID, res.Generation, pool.ReservedIn(&res.Spec)}
	c.reserved.set(res.Name, now)
	return now.addresses
}

// keeps reports whether a reservation names an address of a domain.
func (c *caches) keeps(res *v1alpha1.IPReservation, a *v1alpha1.IPAllocation) bool {
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil || !c.reservedIn(res).Contains(addr) {
		return false
	}
	obj := c.pool(res.Spec.PoolRef)
	return obj == nil || obj.Domain == a.DomainOf() // a pool that is gone may come again
}

// concernedReservations returns the names of the reservations that name an allocation's
// address.
func (c *caches) concernedReservations(a *v1alpha1.IPAllocation) (names []string) {
	if c.reservations.Indexer == nil {
		return nil
	}
	for _, res := range c.reservations.all() {
		if c.keeps(res, a) {
			names = append(names, res.Name)
		}
	}
	return names
}

// importAge is how long an import may take from an allocation to its owner and its pool.
const importAge = 10 * time.Minute

// orphan notes that a reservation is gone, and what it has kept: that is not imported, even if
// the pool goes as well.
func (c *caches) orphan(res *v1alpha1.IPReservation) {
	for _, a := range c.allocations.by(byOwner, string(res.UID)) {
		c.orphans.set(a.UID, struct{}{})
	}
	c.reserved.forget(res.Name)
}

// withoutOwner reports whether the owner of an allocation is gone, or does not name it any
// more. In an import the allocation comes before its owner, and the pool after both: until
// then nobody can be given the address, and it waits.
func (c *caches) withoutOwner(a *v1alpha1.IPAllocation) bool {
	owner := a.Spec.Owner
	if !isReservation(owner) || !c.reservationsSynced() {
		return false // whether others are there is not known
	}
	res, found := c.reservations.get(owner.Namespace + "/" + owner.Name)
	if !found {
		_, orphan := c.orphans.get(a.UID)
		return orphan || len(c.inDomain(a.DomainOf())) > 0 || time.Since(a.CreationTimestamp.Time) > importAge
	}
	return !c.keeps(res, a)
}

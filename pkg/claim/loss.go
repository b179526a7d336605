// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// The API server's record can be lost under live containers: somebody deletes the CRDs or
// the namespace, or sets etcd back to a backup. Each node still knows what it gave. It
// writes that again, by the same create as ever, before it claims anything new: nothing
// is taken away from anybody who has an address by then.
//
// That an allocation is missing proves no loss: the controller may have reclaimed it, or
// an operator may have deleted it. It is taken for lost if one of these is true as well:
//
//  1. Resource versions went back. Those of allocations only grow, whichever API server
//     answers, so that a list which is older than an allocation in it was is proof that
//     etcd was set back.
//  2. Its pool is gone, or is another one of that name.
//  3. The operator says so, by v1alpha1.AnnotationRecordLost on the pool.
//
// An ADD finds 2 and 3 in the metadata that it reads anyway, and 1 in the answer to its
// create; the first one in a pool looks at the other pools in which the node holds something.
// Look finds them on a node that starts nothing.

// DefaultLossGrace is how long a node that has found a loss claims nothing new. Meanwhile
// the others find it, too: their installers look more often than that.
const DefaultLossGrace = 3 * time.Minute

// ErrRecordLost means that allocations were lost, and that the other nodes may not have
// written theirs again yet.
var ErrRecordLost = errors.New("allocations were lost")

// refuseAfterLoss returns an error while it is too early for a new claim after a loss.
func (c *Claimer) refuseAfterLoss() error {
	seen, grace := c.Hint.LossSeen(), cmp.Or(c.LossGrace, DefaultLossGrace)
	if seen.IsZero() || time.Since(seen).Abs() >= grace {
		return nil
	}
	return fmt.Errorf("%w: this node found that at %s and has written its own again; what is free is known when the other nodes have done so, at %s",
		ErrRecordLost, seen.UTC().Format(time.RFC3339), seen.Add(grace).UTC().Format(time.RFC3339))
}

// lostHere refuses a requested address on which another container of this node answers,
// although the record says otherwise.
func (c *Claimer) lostHere(domain string, addr netip.Addr, att hint.Attachment) error {
	e := c.Hint.LostAt(domain, addr)
	if e == nil || e.Attachment == att {
		return nil
	}
	return fmt.Errorf("%w: container %s of this node answers on it, and its allocation could not be written again: %s",
		ErrRecordLost, e.ContainerID, e.Record.Problem)
}

// Look finds out whether what this node holds is still in the record, and writes again
// what was lost. If nothing was lost, that is one read of each pool's metadata and one of
// the latest allocation: if etcd was set back, the latest is not there. It removes
// nothing from the hint without evidence of a loss, so that an operator who says later
// that there was one is not too late.
//
// It carries out the pending releases as well: on a node without other calls nothing else
// would.
func (c *Claimer) Look(ctx context.Context) error {
	if err := c.recordAll(ctx); err != nil {
		return err
	}
	held := c.recorded()
	if err := c.settleAll(ctx, held); err != nil {
		return err
	}
	c.retryPending(ctx, maxRetries)
	if lost, err := c.isLost(ctx, held); err != nil || !lost {
		return err
	}
	_, err := c.rebuild(ctx, time.Now())
	return err
}

// recordAll adds the records to the claims that an earlier version of the plugin has
// entered. A claim with the UID of an allocation is of this cluster, whichever site its
// hint is of.
func (c *Claimer) recordAll(ctx context.Context) error {
	if c.Hint.AllRecorded() {
		return nil
	}
	all, _, _, err := c.Ledger.OfNode(ctx)
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].Spec.Held() {
			c.Hint.SetRecord(entryOf(&all[i]))
		}
	}
	return nil
}

// recorded is what this node holds, as far as its hint has the record of it.
func (c *Claimer) recorded() []hint.Entry {
	return slices.DeleteFunc(c.Hint.Recorded(), func(e hint.Entry) bool { return e.Record.Spec.NodeName != c.Ledger.Node })
}

// settleAll settles the pools of what is held.
func (c *Claimer) settleAll(ctx context.Context, held []hint.Entry) error {
	seen := map[v1alpha1.PoolReference]bool{}
	for _, e := range held {
		ref := e.Record.Spec.PoolRef
		if seen[ref] {
			continue
		}
		seen[ref] = true
		before := c.Hint.Epoch(ref)
		if meta, err := c.Ledger.PoolMetadata(ctx, ref); err == nil && epochOf(meta) == before {
			continue
		}
		now, err := c.epoch(ctx, ref) // the watch cache may be late
		if err == nil {
			err = c.settle(ctx, ref, before, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// isLost reports whether something of what is held was noted as lost by an earlier call,
// or etcd was set back.
func (c *Claimer) isLost(ctx context.Context, held []hint.Entry) (bool, error) {
	if len(held) == 0 {
		return false, nil
	}
	if slices.ContainsFunc(held, func(e hint.Entry) bool { return e.Record.Lost }) {
		return true, nil
	}
	latest := slices.MaxFunc(held, func(a, b hint.Entry) int { return cmp.Compare(a.Record.ResourceVersion, b.Record.ResourceVersion) })
	alloc, err := c.Ledger.Get(ctx, latest.Name())
	if err != nil || alloc != nil && alloc.UID == latest.UID && c.of(alloc, latest.Attachment) != nil {
		return false, err
	}
	version, err := c.Ledger.Version(ctx)
	return version > 0 && version < latest.Record.ResourceVersion, err
}

// restore writes again what this node holds and a list lacks, if it is lost, and returns
// that. Missing are entries that the hint had before the list was made.
func (c *Claimer) restore(ctx context.Context, missing []hint.Entry, listed uint64) (restored []hint.Entry, err error) {
	epochs := map[v1alpha1.PoolReference]string{}
	lost, err := c.lost(ctx, missing, listed, epochs)
	if err != nil {
		return nil, err
	}
	lost = c.noteLost(lost)
	slices.SortFunc(lost, inOrder)
	for _, e := range lost {
		again, err := c.restoreOne(ctx, e)
		if err != nil {
			return nil, fmt.Errorf("writing the lost allocation of %s again: %w", e.Address, err)
		}
		if again != nil {
			restored = append(restored, *again)
		}
	}
	for ref, epoch := range epochs {
		c.Hint.SetEpoch(ref, epoch)
	}
	return restored, nil
}

// lost returns the missing entries that were lost. It reads their pools, and sets in
// epochs how those are now.
func (c *Claimer) lost(ctx context.Context, missing []hint.Entry, listed uint64, epochs map[v1alpha1.PoolReference]string) (lost []hint.Entry, err error) {
	setBack := slices.ContainsFunc(missing, func(e hint.Entry) bool { return listed > 0 && e.Record.ResourceVersion > listed })
	for _, e := range missing {
		ref := e.Record.Spec.PoolRef
		if _, known := epochs[ref]; !known {
			if epochs[ref], err = c.epoch(ctx, ref); err != nil {
				return nil, err
			}
		}
		before := c.Hint.Epoch(ref)
		if setBack || e.Record.Lost || before != "" && before != epochs[ref] {
			lost = append(lost, e)
		}
	}
	return lost, nil
}

// noteLost notes all losses before the first is mended, so that a call which is killed on
// the way leaves them to the next. What was released meanwhile is left out.
func (c *Claimer) noteLost(lost []hint.Entry) (noted []hint.Entry) {
	found := 0
	for _, e := range lost {
		if !e.Record.Lost {
			if !c.Hint.Lost(e, "") {
				continue
			}
			found++
		}
		noted = append(noted, e.WithoutUID())
	}
	if found > 0 {
		c.Hint.SetLossSeen()
		c.Log.Warn("the API server has lost allocations of this node, writing them again", "lost", found)
	}
	return noted
}

// inOrder sorts lost allocations as their ADDs began: that is the order of the sandboxes
// of one pod.
func inOrder(a, b hint.Entry) int {
	x, y := a.Record.Spec.AddStartedAt, b.Record.Spec.AddStartedAt
	if x == nil || y == nil {
		return 0
	}
	return x.Compare(y.Time)
}

// restoreOne writes one lost allocation again. If another attachment has the address by
// now, it says so and leaves the entry: nobody else on this node is given the address.
func (c *Claimer) restoreOne(ctx context.Context, e hint.Entry) (*hint.Entry, error) {
	spec := e.Record.Spec
	spec.Restored = true
	if !spec.IsSticky() {
		spec.Owner = nil // a node gives an address no owner; who was to keep it, does so after the release
	}
	made, err := c.rewrite(ctx, c.newAllocation(e.Name(), spec))
	var inUse *ledger.InUseError
	switch {
	case errors.As(err, &inUse) && inUse.Holder != nil:
		c.reportLost(e, "the address is held twice: this container answers on it, and it is "+ledger.Describe(inUse.Holder))
		return nil, nil
	case apierrors.IsInvalid(err):
		c.reportLost(e, "the API server refuses it: "+err.Error())
		return nil, nil
	case err != nil:
		return nil, err
	}
	boot, att := e.Record.Boot, e.Attachment
	e = entryOf(made)
	e.Attachment, e.Record.Boot = att, boot
	if !c.Hint.Restored(e) { // its DEL came meanwhile, and found nothing
		_, err = c.endHeld(ctx, e, time.Now())
		return nil, err
	}
	c.Log.Info("wrote a lost allocation again", "address", e.Address, "domain", e.Domain, "container", e.ContainerID, "interface", e.Interface)
	return &e, nil
}

// rewrite writes a lost allocation again. If there is one of the address by now that no
// container holds, and that is for the same pod or owner, or rests, it takes that over. Of a
// machine that moves it joins the other pod.
func (c *Claimer) rewrite(ctx context.Context, again *v1alpha1.IPAllocation) (made *v1alpha1.IPAllocation, err error) {
	made, err = c.write(ctx, again)
	var inUse *ledger.InUseError
	if !errors.As(err, &inUse) || inUse.Holder == nil { // unless another attachment holds it, nobody has it
		return made, err
	}
	spec := &again.Spec
	if mine := ledger.OfAttachment(inUse.Holder, spec); mine != nil { // this call, or one before, has written it
		return mine, nil
	}
	switch s := &inUse.Holder.Spec; {
	case s.Held() && spec.Owner.IsIPAMClaim() && s.SameIdentity(spec) && s.NodeName != c.Ledger.Node && s.Next == nil: // both of a machine that moves
		return c.Ledger.Join(ctx, inUse.Holder, again)
	case s.Held():
	case s.IsSticky() && s.IsReserved() && !s.SameIdentity(spec): // nor has had it
		if _, err = c.Ledger.DeleteUnchanged(ctx, inUse.Holder); err == nil {
			made, err = c.write(ctx, again)
		}
	case s.Rests(), s.SameIdentity(spec), !s.IsSticky() && sameName(s.PodRef, spec.PodRef):
		return c.Ledger.TakeOver(ctx, inUse.Holder, again)
	}
	return made, err
}

// write writes a lost allocation again. Of one that a StatefulSet or an IPAMClaim keeps, a node
// may create only the reservation.
func (c *Claimer) write(ctx context.Context, again *v1alpha1.IPAllocation) (made *v1alpha1.IPAllocation, err error) {
	if !again.Spec.IsSticky() {
		made, _, err = c.Ledger.Create(ctx, again)
		return made, err
	}
	made, _, err = c.Ledger.Create(ctx, c.proposal(again.Name, again.Spec))
	if err == nil {
		made, err = c.Ledger.TakeOver(ctx, made, again)
	}
	return made, err
}

// reportLost says why a lost allocation cannot be written again. It does so each time, so
// that the log of the installer, which looks again and again, has it as long as it is so.
func (c *Claimer) reportLost(e hint.Entry, problem string) {
	c.Log.Error("a lost allocation cannot be written again", "address", e.Address, "domain", e.Domain, "container", e.ContainerID,
		"interface", e.Interface, "pod", e.Record.Spec.PodRef.Namespace+"/"+e.Record.Spec.PodRef.Name, "problem", problem)
	c.Hint.Lost(e, problem)
}

// epoch reads which object a pool is now, from etcd and not the watch cache.
func (c *Claimer) epoch(ctx context.Context, ref v1alpha1.PoolReference) (string, error) {
	meta, err := c.Ledger.PoolMetadataNow(ctx, ref)
	switch {
	case ledger.NotFound(err):
		return "gone", nil
	case err != nil:
		return "", fmt.Errorf("reading pool %s/%s: %w", c.Ledger.Namespace, ref.Name, err)
	}
	return epochOf(meta), nil
}

func epochOf(meta *metav1.ObjectMeta) string {
	return hint.EpochText(meta.UID, meta.Annotations[v1alpha1.AnnotationRecordLost])
}

// settle makes sure that nothing of this node's is lost in a pool, whose epoch the hint
// had before and which has this one now.
func (c *Claimer) settle(ctx context.Context, ref v1alpha1.PoolReference, before, now string) error {
	if before != "" && before != now {
		if _, err := c.rebuild(ctx, time.Now()); err != nil {
			return fmt.Errorf("looking for lost allocations of pool %s/%s, which is not the one that this node has seen: %w", c.Ledger.Namespace, ref.Name, err)
		}
	}
	c.Hint.SetEpoch(ref, now)
	return nil
}

// undoAfterSetBack undoes a create whose answer proves that etcd was set back: the address
// may be held by somebody whose allocation was lost.
func (c *Claimer) undoAfterSetBack(ctx context.Context, e hint.Entry) error {
	undone := c.rollBack(ctx, []hint.Entry{e})
	c.Hint.NotClaimed(e.WithoutUID())
	return errors.Join(c.afterSetBack(ctx, e), undone)
}

// afterSetBack writes again what was lost, and returns why nothing is claimed.
func (c *Claimer) afterSetBack(ctx context.Context, e hint.Entry) error {
	c.Log.Warn("resource versions went back: etcd was set back to an earlier state", "address", e.Address, "domain", e.Domain)
	_, err := c.rebuild(ctx, time.Now())
	if err == nil {
		err = c.refuseAfterLoss()
	}
	return errors.Join(fmt.Errorf("claiming %s: %w: etcd was set back to an earlier state", e.Address, ErrRecordLost), err)
}

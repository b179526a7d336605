// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// create claims one address. A claim of this very attachment that is there already
// is its own, from a call whose answer was lost. A holder that yields gives way.
func (c *Claimer) create(ctx context.Context, req Request, b *pool.Block, addr netip.Addr, requested bool) (hint.Entry, error) {
	e := hint.Entry{Attachment: req.Attachment, Pool: b.Pool.Name, Address: addr}
	alloc := c.allocation(req, b.Pool, addr, requested)
	var err error
	e.UID, _, err = c.Create(ctx, alloc)
	var inUse *ledger.InUseError
	if errors.As(err, &inUse) && c.yields(inUse.Holder, req) {
		if why := c.takeOver(ctx, inUse.Holder); why != nil {
			err = fmt.Errorf("%w; %w", err, why)
		} else {
			e.UID, _, err = c.Create(ctx, alloc)
		}
	}
	switch {
	case err == nil:
		c.Hint.Claimed(e)
		return e, nil
	case errors.Is(err, ledger.ErrUnanswered):
		return hint.Entry{}, errors.Join(fmt.Errorf("claiming %s: %w", addr, err), c.giveBack(ctx, []hint.Entry{e}))
	default:
		c.Hint.NotClaimed(e)
		return hint.Entry{}, err
	}
}

// sandboxAge is how old an allocation is at least before another sandbox of its pod
// takes it over: twice what an ADD may take. It is a margin for clocks; the order of
// two sandboxes is that of their ADDs.
const sandboxAge = 40 * time.Second

// yields reports whether the holder of an address gives way to a request:
//
//  1. its release is noted on this node, and has not been carried out
//  2. it is an earlier sandbox of the same pod on this node, whose ADD began before
//     this one. A kubelet makes a new sandbox only when it has stopped the one
//     before, so that nobody answers there any more. If either does not say when its
//     ADD began, it stays.
//
// Else the address is in use.
func (c *Claimer) yields(holder *v1alpha1.IPAllocation, req Request) bool {
	s := &holder.Spec
	if s.NodeName != c.Node || s.ContainerID == "" {
		return false
	}
	if e := entryOf(holder); c.Hint.IsPending(e) || c.Hint.IsPending(unanswered(e)) { // 1
		return true
	}
	return s.ContainerID != req.ContainerID && samePod(s.PodRef, req.Pod) && // 2
		s.AddStartedAt != nil && !req.started.IsZero() && s.AddStartedAt.Time.Before(req.started) &&
		time.Since(holder.CreationTimestamp.Time) > sandboxAge
}

// samePod compares by UID, or by name if the runtime does not tell the UID.
func samePod(a, b v1alpha1.PodReference) bool { return a == b && a.Name != "" }

func unanswered(e hint.Entry) hint.Entry {
	e.UID = ""
	return e
}

// takeOver frees what a holder that yields has held.
func (c *Claimer) takeOver(ctx context.Context, holder *v1alpha1.IPAllocation) error {
	e := entryOf(holder)
	if err := c.Delete(ctx, holder.Name, holder.UID); err != nil {
		return fmt.Errorf("releasing %s, which the earlier container %s has held: %w", e.Address, e.ContainerID, err)
	}
	c.Hint.Released(e)
	c.Hint.Released(unanswered(e))
	c.Hint.NotClaimed(e)
	c.Log.Info("took an address over from an earlier container", "address", e.Address, "pool", e.Pool, "earlier", e.ContainerID)
	return nil
}

func (c *Claimer) allocation(req Request, ref v1alpha1.PoolReference, addr netip.Addr, requested bool) *v1alpha1.IPAllocation {
	var started *metav1.MicroTime
	if !req.started.IsZero() {
		started = &metav1.MicroTime{Time: req.started.UTC()}
	}
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{
			Name:      v1alpha1.AllocationName(ref.Name, addr),
			Namespace: c.Namespace,
			Labels: map[string]string{
				v1alpha1.LabelPool:      v1alpha1.LabelValue(ref.Name),
				v1alpha1.LabelNode:      v1alpha1.LabelValue(c.Node),
				v1alpha1.LabelContainer: v1alpha1.ContainerLabel(req.ContainerID),
			},
		},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef:       ref,
			Address:       addr.String(),
			NodeName:      c.Node,
			PodRef:        req.Pod,
			ContainerID:   req.ContainerID,
			InterfaceName: req.Interface,
			NetworkName:   req.Network,
			DeviceID:      req.DeviceID,
			Requested:     requested,
			AddStartedAt:  started,
		},
	}
}

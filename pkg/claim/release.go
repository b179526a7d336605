// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Release gives back all that the attachment holds. Nothing held is success, and
// so is an API server that is away: then the release is owed, and the next call
// on this node carries it out. It returns ErrUnavailable where it could neither
// release nor note that.
func (c *Claimer) Release(ctx context.Context, att Attachment) error {
	c.settleDebts(ctx, debtsPerCall)
	held, err := c.held(ctx, att)
	if err != nil {
		return err
	}
	return c.releaseAll(ctx, held)
}

// releasePatience is how long a release waits for an API server that is away
// before it is owed.
const releasePatience = 2 * time.Second

// releaseAll notes each release, carries it out, and strikes the note. It tries
// them all whatever happens to one.
func (c *Claimer) releaseAll(ctx context.Context, all []Held) error {
	var errs []error
	for _, held := range all {
		if err := c.release(ctx, held); err != nil {
			errs = append(errs, fmt.Errorf("releasing %s of pool %s: %w", held.Address, held.Pool, err))
		}
	}
	return errors.Join(errs...)
}

func (c *Claimer) release(ctx context.Context, held Held) error {
	noted := c.Hint.Releasing(held)
	c.hintFailed("noting a release", noted)
	if noted == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, releasePatience)
		defer cancel()
	}
	err := c.delete(ctx, held)
	if err == nil {
		c.hintFailed("striking a release", c.Hint.Paid(held))
		c.Log.Info("released", "address", held.Address, "pool", held.Pool, "container", held.ContainerID, "interface", held.Interface)
		return nil
	}
	if noted == nil {
		noted = c.Hint.Owe(held)
	}
	if noted == nil && errors.Is(err, ErrUnavailable) {
		c.Log.Warn("release is owed until the API server is back", "address", held.Address, "pool", held.Pool, "error", err)
		return nil
	}
	return err
}

// delete deletes the allocation if it is still the attachment's own: the UID is
// a precondition, so that a late release never frees what somebody else has
// claimed since.
func (c *Claimer) delete(ctx context.Context, held Held) error {
	client := c.Client.IPAllocations(c.Namespace)
	return retry(ctx, func() error {
		if held.UID == "" { // its create was never answered
			alloc, err := client.Get(ctx, held.key(), metav1.GetOptions{})
			if apierrors.IsNotFound(err) || err == nil && attachmentOf(alloc) != held.Attachment {
				return nil
			}
			if err != nil {
				return err
			}
			held.UID = alloc.UID
		}
		err := client.Delete(ctx, held.key(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &held.UID}})
		if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
			return nil
		}
		return err
	})
}

// A call settles a few of the releases that earlier calls owe, and does not wait
// long for that: a node may owe 250 of them, and a pod is waiting.
const (
	debtsPerCall = 16
	debtsTimeout = 2 * time.Second
)

// settleDebts carries out up to most releases that earlier calls could not.
func (c *Claimer) settleDebts(ctx context.Context, most int) {
	debts, err := c.Hint.Debts()
	c.hintFailed("reading what is owed", err)
	if len(debts) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, debtsTimeout)
	defer cancel()
	for _, held := range debts[:min(len(debts), most)] {
		if err := c.delete(ctx, held); err != nil {
			c.Log.Warn("release is still owed", "address", held.Address, "pool", held.Pool, "error", err)
			return
		}
		c.hintFailed("striking a release", c.Hint.Paid(held))
		c.Log.Info("released what was owed", "address", held.Address, "pool", held.Pool)
	}
}

// Check reports whether the attachment holds an address of each pool: nil,
// ErrNotHeld or ErrUnavailable.
func (c *Claimer) Check(ctx context.Context, att Attachment, pools []v1alpha1.PoolReference) error {
	held, err := c.held(ctx, att)
	if err != nil {
		return err
	}
	for _, ref := range pools {
		if err := c.checkIn(ctx, ref, held); err != nil {
			return err
		}
	}
	return nil
}

func (c *Claimer) checkIn(ctx context.Context, ref v1alpha1.PoolReference, helds []Held) error {
	for _, held := range helds {
		if held.Pool != ref.Name {
			continue
		}
		var alloc *v1alpha1.IPAllocation
		err := retry(ctx, func() (err error) {
			alloc, err = c.Client.IPAllocations(c.Namespace).Get(ctx, held.key(), metav1.GetOptions{})
			return err
		})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("reading allocation %s: %w", held.key(), err)
		}
		if err == nil && attachmentOf(alloc) == held.Attachment && alloc.Spec.PoolRef == ref {
			return nil
		}
	}
	return notHeld(ref)
}

// Collect releases what this node holds in a network for attachments that are
// not among the valid ones.
func (c *Claimer) Collect(ctx context.Context, network string, valid []Attachment) error {
	c.settleDebts(ctx, debtsPerCall)
	all, err := c.rebuild(ctx)
	if err != nil {
		return err
	}
	keep := make(map[Attachment]bool, len(valid))
	for _, att := range valid {
		keep[att] = true
	}
	var stale []Held
	for i := range all {
		a := &all[i]
		if a.Spec.NetworkName == network && a.Spec.ContainerID != "" && !keep[attachmentOf(a)] {
			stale = append(stale, heldOf(a))
		}
	}
	return c.releaseAll(ctx, stale)
}

// Ready reports whether the API server answers and lets this node read the
// pools; nil where it does, even if a pool does not exist.
func (c *Claimer) Ready(ctx context.Context, pools []v1alpha1.PoolReference) error {
	for _, ref := range pools {
		if _, err := c.poolMetadata(ctx, ref); err != nil && !apierrors.IsNotFound(err) {
			return err
		}
	}
	return nil
}

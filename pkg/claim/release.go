// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Release gives back all that the attachment holds. Nothing held is success, and
// so is a release that could only be noted, because the API server is away or
// refuses it: then it is owed, and later calls on this node try again. It returns
// an error where it could neither release nor note that.
func (c *Claimer) Release(ctx context.Context, att Attachment) error {
	c.settleDebts(ctx, debtsPerCall)
	held, err := c.held(ctx, att)
	if err != nil {
		return err
	}
	return c.releaseAll(ctx, held)
}

// ReleaseLater is Release for a call that has nothing to ask the API server with:
// what the hint has of the attachment is owed. It returns why where the hint may
// not have all.
func (c *Claimer) ReleaseLater(att Attachment, why error) error {
	if !c.Hint.Complete() {
		return why
	}
	found, err := c.Hint.Find(att)
	if err != nil {
		return errors.Join(why, err)
	}
	for _, held := range found {
		if err := errors.Join(c.Hint.Releasing(held), c.owe(held, why)); err != nil {
			return errors.Join(why, err)
		}
	}
	return nil
}

// releasePatience is how long a release waits for an API server that is away
// before it is owed.
const releasePatience = 2 * time.Second

// releaseAll notes each release, carries it out, and strikes the note. It tries
// them all whatever happens to one, but waits for the API server only once.
func (c *Claimer) releaseAll(ctx context.Context, all []Held) error {
	var errs []error
	patience := releasePatience
	for _, held := range all {
		away, err := c.release(ctx, held, patience)
		if err != nil {
			errs = append(errs, fmt.Errorf("releasing %s of pool %s: %w", held.Address, held.Pool, err))
		}
		if away {
			patience = 0
		}
	}
	return errors.Join(errs...)
}

// release releases one address, or owes it where that takes longer than patience.
// Where it cannot be noted, it takes all the time there is. It reports whether
// the API server was away.
func (c *Claimer) release(ctx context.Context, held Held, patience time.Duration) (away bool, err error) {
	noted := c.Hint.Releasing(held)
	c.hintFailed("noting a release", noted)
	if noted == nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	err = c.retract(ctx, held)
	switch {
	case err == nil:
		c.hintFailed("striking a release", c.Hint.Paid(held))
		c.Log.Info("released", "address", held.Address, "pool", held.Pool, "container", held.ContainerID, "interface", held.Interface)
		return false, nil
	case noted == nil:
		return errors.Is(err, ErrUnavailable), c.owe(held, err)
	case errors.Is(err, errMayCome): // and if it comes, the controller reclaims it
		return false, nil
	default:
		return errors.Is(err, ErrUnavailable), err
	}
}

// owe leaves a noted release to later calls.
func (c *Claimer) owe(held Held, why error) error {
	if err := c.Hint.Owe(held); err != nil {
		c.hintFailed("owing a release", err)
		return errors.Join(why, err)
	}
	level := slog.LevelWarn
	if errors.Is(why, errMayCome) {
		level = slog.LevelInfo
	}
	c.Log.Log(context.Background(), level, "release is owed", "address", held.Address, "pool", held.Pool, "container", held.ContainerID, "interface", held.Interface, "error", why)
	return nil
}

// retract deletes what the attachment holds of an address.
func (c *Claimer) retract(ctx context.Context, held Held) error {
	uid, err := c.uidOf(ctx, held)
	if err != nil {
		return err
	}
	return c.delete(ctx, held, uid)
}

// uidOf returns the UID of the allocation that the attachment holds, empty where
// it holds none. It asks the API server only where the create was never answered,
// and then there may be none yet: errMayCome.
func (c *Claimer) uidOf(ctx context.Context, held Held) (types.UID, error) {
	if held.UID != "" {
		return held.UID, nil
	}
	var uid types.UID
	err := retry(ctx, func() error {
		alloc, err := c.Client.IPAllocations(c.Namespace).Get(ctx, held.key(), metav1.GetOptions{})
		if err == nil && attachmentOf(alloc) == held.Attachment {
			uid = alloc.UID
		}
		return err
	})
	if notFound(err) {
		return "", errMayCome
	}
	return uid, err
}

// delete deletes the allocation if it is still the one with that UID, so that a
// late release never frees what somebody else has claimed since.
func (c *Claimer) delete(ctx context.Context, held Held, uid types.UID) error {
	if uid == "" {
		return nil
	}
	return retry(ctx, func() error {
		err := c.Client.IPAllocations(c.Namespace).Delete(ctx, held.key(), metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		if notFound(err) || apierrors.IsConflict(err) && !apierrors.IsUnexpectedServerError(err) {
			return nil
		}
		return err
	})
}

// settleOwn carries out what earlier calls for this attachment owe, before it
// claims anew: nobody must find that note afterwards and release what the
// attachment holds by then.
func (c *Claimer) settleOwn(ctx context.Context, att Attachment) error {
	notes, err := c.Hint.releases()
	c.hintFailed("reading what is owed", err)
	for _, held := range notes {
		if held.Attachment != att {
			continue
		}
		err := c.retract(ctx, held)
		if err != nil && !errors.Is(err, errMayCome) {
			return fmt.Errorf("releasing %s of pool %s, which this container has held before: %w", held.Address, held.Pool, err)
		}
		err = c.Hint.Paid(held)
		c.hintFailed("striking a release", err)
		if err != nil && held.UID == "" { // the note would go for a new claim as well
			return fmt.Errorf("striking the release of %s: %w", held.Address, err)
		}
	}
	return nil
}

// A call settles a few of the releases that earlier calls owe, and does not wait
// long for that: a node may owe 250 of them, and a pod is waiting.
const (
	debtsPerCall = 16
	debtsTimeout = 2 * time.Second
	// debtLife is how long a release is tried again that the API server refuses,
	// as it does for a node whose name has changed. After that it is left to the
	// controller.
	debtLife = 24 * time.Hour
)

// settleDebts carries out up to most releases that earlier calls could not, any of
// them: one that is refused again and again does not keep the others waiting.
func (c *Claimer) settleDebts(ctx context.Context, most int) {
	debts, err := c.Hint.Debts()
	c.hintFailed("reading what is owed", err)
	if len(debts) == 0 {
		return
	}
	rand.Shuffle(len(debts), func(i, j int) { debts[i], debts[j] = debts[j], debts[i] })
	ctx, cancel := context.WithTimeout(ctx, debtsTimeout)
	defer cancel()
	var refusal error
	for _, held := range debts[:min(len(debts), most)] {
		err := c.settle(ctx, held)
		if err != nil {
			refusal = err
		}
		if err != nil && (!refused(err) || apierrors.IsUnauthorized(err)) { // the same for all
			break
		}
	}
	if refusal != nil {
		c.Log.Warn("releases are still owed", "owed", len(debts), "error", refusal)
	}
}

// settle carries out one release that an earlier call could not.
func (c *Claimer) settle(ctx context.Context, held Held) error {
	uid, err := c.uidOf(ctx, held)
	if errors.Is(err, errMayCome) {
		if !c.Hint.releaseYounger(held, settleTime) {
			c.hintFailed("striking a release", c.Hint.Paid(held))
		}
		return nil
	}
	if err == nil && held.UID == "" && !c.Hint.noted(held) {
		return nil // struck by the attachment itself, which may hold it anew
	}
	if err == nil {
		err = c.delete(ctx, held, uid)
	}
	switch {
	case err == nil:
		c.hintFailed("striking a release", c.Hint.Paid(held))
		c.Log.Info("released what was owed", "address", held.Address, "pool", held.Pool)
	case refused(err) && !c.Hint.releaseYounger(held, debtLife):
		c.hintFailed("striking a release", c.Hint.Paid(held))
		c.Log.Warn("release is given up and left to the controller", "address", held.Address, "pool", held.Pool, "error", err)
		return nil
	}
	return err
}

// Check reports whether the attachment holds an address of each pool: nil,
// ErrNotHeld or ErrUnavailable.
func (c *Claimer) Check(ctx context.Context, att Attachment, pools []v1alpha1.PoolReference) error {
	c.settleDebts(ctx, debtsPerCall)
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
		if err != nil && !notFound(err) {
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
// pools; nil where it does, even if a pool does not exist. A node on which nothing
// else happens settles by it what it owes.
func (c *Claimer) Ready(ctx context.Context, pools []v1alpha1.PoolReference) error {
	for _, ref := range pools {
		if _, err := c.poolMetadata(ctx, ref); err != nil && !notFound(err) {
			return err
		}
	}
	c.settleDebts(ctx, debtsPerCall)
	return nil
}

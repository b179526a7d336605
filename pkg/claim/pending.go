// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// A call carries out a few of the releases that earlier calls left undone, and does
// not wait long for that: a node may have 250 of them, and a pod is waiting.
const (
	releasesPerCall = 16
	pendingTimeout  = 2 * time.Second
	// pendingLife is how long a release is tried again that the API server refuses,
	// as it does for a node whose name has changed. After that it is left to the
	// controller.
	pendingLife = 24 * time.Hour
)

// releaseEarlier carries out what earlier calls for this attachment left undone,
// before it claims again: nobody must find that note afterwards and release what the
// attachment holds by then. Then it does so for a few others.
func (c *Claimer) releaseEarlier(ctx context.Context, att hint.Attachment) error {
	if c.Hint.IsPendingAll(att) {
		if _, err := c.rebuild(ctx, time.Time{}); err != nil {
			return fmt.Errorf("finding what this container has held before: %w", err)
		}
		c.Hint.ReleaseWhole()
	}
	releases, whole := c.Hint.Pending()
	for _, r := range releases {
		if r.Attachment != att {
			continue
		}
		err := c.retract(ctx, r.Entry)
		if err != nil && !errors.Is(err, errMayCome) {
			return fmt.Errorf("releasing %s of pool %s, which this container has held before: %w", r.Address, r.Pool, err)
		}
		if gone := c.Hint.Released(r.Entry); !gone && r.UID == "" { // the note would go for a new claim as well
			return fmt.Errorf("removing the note that %s of pool %s is to be released", r.Address, r.Pool)
		}
	}
	if len(whole) > 0 {
		c.Hint.ReleaseWhole() // without asking: a pod is waiting
	}
	c.carryOutOf(ctx, releases, releasesPerCall)
	return nil
}

// carryOut carries out up to most releases that earlier calls left undone. If it is
// not known what they are about, it lists what this node holds.
func (c *Claimer) carryOut(ctx context.Context, most int) {
	releases, whole := c.Hint.Pending()
	if len(whole) > 0 {
		c.findOut(ctx)
		releases, _ = c.Hint.Pending()
	}
	c.carryOutOf(ctx, releases, most)
}

// findOut turns releases by attachment into releases of addresses.
func (c *Claimer) findOut(ctx context.Context) {
	if !c.Hint.Complete() {
		ctx, cancel := context.WithTimeout(ctx, rebuildPatience)
		defer cancel()
		if _, err := c.rebuild(ctx, time.Time{}); err != nil {
			c.Log.Warn("what is to be released is still not known", "error", err)
			return
		}
	}
	c.Hint.ReleaseWhole()
}

// carryOutOf tries the releases that are due in random order: one that is refused
// again and again does not keep the others waiting.
func (c *Claimer) carryOutOf(ctx context.Context, releases []hint.Release, most int) {
	due := slices.DeleteFunc(releases, func(r hint.Release) bool { return !r.Due })
	if len(due) == 0 {
		return
	}
	rand.Shuffle(len(due), func(i, j int) { due[i], due[j] = due[j], due[i] })
	ctx, cancel := context.WithTimeout(ctx, pendingTimeout)
	defer cancel()
	var refusal error
	for _, r := range due[:min(len(due), most)] {
		err := c.carryOutOne(ctx, r)
		if err != nil {
			refusal = err
		}
		if err != nil && (!ledger.Refused(err) || apierrors.IsUnauthorized(err)) { // the same for all
			break
		}
	}
	if refusal != nil {
		c.Log.Warn("releases are still pending", "pending", len(due), "error", refusal)
	}
}

// carryOutOne carries out one release that an earlier call could not.
func (c *Claimer) carryOutOne(ctx context.Context, r hint.Release) error {
	uid, err := c.uidOf(ctx, r.Entry)
	switch {
	case errors.Is(err, errMayCome):
		if r.Settled() {
			c.Hint.Released(r.Entry)
		}
		return nil
	case err == nil && r.UID == "" && !c.Hint.IsPending(r.Entry):
		return nil // removed by the attachment itself, which may hold the address again
	case err == nil && uid != "":
		err = c.Delete(ctx, r.Name(), uid)
	}
	switch {
	case err == nil:
		c.Hint.Released(r.Entry)
		c.Log.Info("carried out a pending release", "address", r.Address, "pool", r.Pool)
	case ledger.Refused(err) && time.Since(r.Since).Abs() >= pendingLife:
		c.Hint.Released(r.Entry)
		c.Log.Warn("release is given up and left to the controller", "address", r.Address, "pool", r.Pool, "error", err)
		return nil
	}
	return err
}

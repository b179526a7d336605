// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// ErrTakingOver says that what another IPAM has given on this node is being
// adopted: until that is done nobody knows which addresses are free here.
var ErrTakingOver = errors.New("addresses of another IPAM are being taken over on this node")

// Adopt claims the address that an attachment already answers on, because
// another IPAM gave it to it. It reports whether that made the allocation: false
// without an error where it was this attachment's before.
//
// Unlike Allocate it never gives back: where the API server does not answer, the
// address is in use all the same, and the entry stays in the hint until the next
// try.
func (c *Claimer) Adopt(ctx context.Context, req Request, ref v1alpha1.PoolReference, addr netip.Addr) (created bool, err error) {
	held := Held{Attachment: req.Attachment, Pool: ref.Name, Address: addr}
	c.hintFailed("holding an address", c.Hint.HoldRequested(held))
	held.UID, created, err = c.post(ctx, c.allocation(req, &pool.Block{Pool: ref}, addr), req.Attachment)
	switch {
	case err == nil:
		c.hintFailed("entering a claim", c.Hint.Set(held))
	case isInUse(err):
		c.hintFailed("marking an address", c.Hint.SetElsewhere(held))
	}
	return created, err
}

// Close keeps ADDs of this node waiting while addresses are adopted. It has to be
// repeated: after settleTime the node is open again, since whoever adopts may
// have died, and pods must not depend on that.
func (h *Hint) Close() error {
	return h.rename(func(tmp string) error { return os.WriteFile(tmp, nil, 0o600) }, "closed")
}

// Open is the end of Close.
func (h *Hint) Open() error {
	err := os.Remove(h.path("closed"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// awaitOpen waits until nothing is being adopted on this node.
func (c *Claimer) awaitOpen(ctx context.Context) error {
	const interval = 50 * time.Millisecond
	for c.Hint.young("closed") {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrTakingOver, ctx.Err())
		case <-time.After(interval):
		}
	}
	return nil
}

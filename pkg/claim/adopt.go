// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// errAdopting: the addresses that another IPAM has given on this node are being adopted.
// Until that is done nobody knows which addresses are free.
var errAdopting = errors.New("addresses of another IPAM are being adopted on this node")

// Adopt claims an address that another IPAM has given to an attachment. created is
// false, without an error, if the attachment already held the claim.
//
// Unlike Allocate it never rolls back: if the API server does not answer, the container
// still uses the address, and the entry stays in the hint until the next try.
func (c *Claimer) Adopt(ctx context.Context, req Request, ref v1alpha1.PoolReference, domain string, addr netip.Addr) (created bool, err error) {
	e := hint.Entry{Attachment: req.Attachment, Domain: domain, Address: addr}
	c.Hint.ClaimingRequested(e)
	requested := len(req.Want.Addresses) > 0
	held, created, err := c.Ledger.Create(ctx, c.allocation(req, &pool.Block{Pool: ref, Domain: domain}, addr, requested))
	switch {
	case err == nil:
		c.Hint.Claimed(entryOf(held))
	case ledger.IsInUse(err), ledger.InvalidFields(err) != nil: // the container has it, whoever holds it
		c.Hint.Elsewhere(e)
	}
	return created, err
}

// awaitAdoption waits until nothing is being adopted on this node (hint.ADDsPaused).
func (c *Claimer) awaitAdoption(ctx context.Context) error {
	const interval = 50 * time.Millisecond
	for c.Hint.ADDsPaused() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", errAdopting, ctx.Err())
		case <-time.After(interval):
		}
	}
	return nil
}

// isForeign reports whether nv-ipam has given an address of a block's pool on this node, and
// nobody has adopted it.
func (r *Request) isForeign(b *pool.Block, addr netip.Addr) bool {
	return r.foreign[v1alpha1.AllocationName(b.Pool.Name, addr)]
}

// foreignInUse is the error for a requested address that nv-ipam has given.
func foreignInUse(ref v1alpha1.PoolReference, addr netip.Addr) error {
	return fmt.Errorf("requested IP is already reserved in the pool %q, poolType %q: %s is held in nv-ipam's store on this node, whose migration is unfinished; see the log of ipam-node: %w",
		ref.Name, pool.Type(ref.Kind), addr, errAdopting)
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Request is what one attachment asks for.
type Request struct {
	hint.Attachment
	// Pools to claim one address of each, in this order. A name may have labels of the
	// node: see pool.HasLabels.
	Pools []v1alpha1.PoolReference
	// Want says which addresses are requested. If it is empty, any address will do.
	Want pool.Want
	// OnePerFamily says that the result may have only one address of each family.
	OnePerFamily bool
	// Network, Pod and DeviceID are written into the allocation.
	Network  string
	Pod      v1alpha1.PodReference
	DeviceID string
	// Persistent says that the network lets pods keep addresses by an IPAMClaim.
	Persistent bool

	// What Allocate itself finds out, all of it before the first create.

	owner     *v1alpha1.AllocationOwner // what keeps the address for the pod; nil if nothing does
	statusIPs []netip.Addr              // what the status of an IPAMClaim has: those, and no others
	migrates  bool                      // a migration has made the pod, for a virtual machine that runs in another one
	started   time.Time                 // when Allocate began; zero in Adopt
	known     *known                    // what the hint has
	foreign   map[string]bool           // POOL.ADDRESS of what nv-ipam has given here and nobody has adopted: hint.Foreign
}

// Claim is an address that was claimed, and this node's block of its pool, for subnet, gateway and
// routes: the address may lie in space that the pool overflows to.
type Claim struct {
	Address netip.Addr
	Block   *pool.Block
}

// Allocate claims one address of each pool, or none. The error may be ErrPoolNotFound,
// ErrExhausted, ErrRecordLost, ErrKept, errAdopting, ledger.ErrUnavailable, a ledger.InUseError, a
// pool.RequestError, or one of the API server.
//
// It usually takes two requests for each pool: one reads the pool's metadata, one
// creates the allocation. If labels of the node decide, one more reads them every
// labelsAge. For a pod that keeps its address one reads the pod, one its IPAMClaim if it
// names one, and one its allocation.
//
// A repeated ADD passes all checks again, although its attachment already holds an address:
// it fails if the pool is not for it any more, and the address stays until the DEL.
func (c *Claimer) Allocate(ctx context.Context, req Request) ([]Claim, error) {
	req.started = time.Now()
	if err := c.awaitAdoption(ctx); err != nil {
		return nil, err
	}
	req.foreign = c.Hint.Foreign()
	if err := c.finishReleases(ctx, req.Attachment); err != nil {
		return nil, err
	}
	views, err := c.viewsOf(ctx, &req)
	if err != nil {
		return nil, err
	}
	blocks := make([]*pool.Block, len(views))
	for i, v := range views {
		if err := v.Admit(req.Pod.Namespace); err != nil {
			return nil, err
		}
		blocks[i] = v.Block
	}
	if err := c.refuseAfterLoss(); err != nil {
		return nil, err
	}
	if req.OnePerFamily {
		if err := pool.OnePerFamily(blocks); err != nil {
			return nil, err
		}
	}
	wanted, err := pool.Match(blocks, req.Want)
	if err != nil {
		return nil, err
	}

	if err := c.setOwner(ctx, &req, views); err != nil {
		return nil, err
	}
	// Read before our create is sent (provesSetBack): what another call on this node creates
	// meanwhile has a higher version, and would look as if etcd had been set back.
	req.known.finish(blocks)
	claims := make([]Claim, 0, len(blocks))
	var done []hint.Entry
	for i, v := range views {
		e, err := c.claimOne(ctx, req, v, wanted[i])
		if err != nil {
			return nil, errors.Join(err, c.rollBack(ctx, done))
		}
		done = append(done, e)
		req.known.gave(e)
		claims = append(claims, Claim{Address: e.Address, Block: v.Block})
	}
	return claims, nil
}

// known is what the hint has of the requested pools.
type known struct {
	hint  *hint.Hint
	att   hint.Attachment
	pools []v1alpha1.PoolReference
	read  chan struct{}           // closed when the other fields are set
	held  map[string][]hint.Entry // what this attachment already holds, by domain
	pod   v1alpha1.PodReference
	rests map[string][]netip.Addr // what the pod has released and rests, by domain
	// entered are the addresses with an entry, by domain, as the disk was then.
	entered map[string]map[netip.Addr]bool
	latest  uint64       // the highest resource version of the node's allocations
	given   []hint.Entry // what this call has claimed so far, for others of the requested pools
}

func (k *known) look(domain string) {
	found := k.hint.Known(domain, k.att, k.pod)
	k.held[domain], k.rests[domain], k.entered[domain] = found.Holding, found.Resting, found.Entered
	k.latest = max(k.latest, found.Latest)
}

// finish waits until all is read. It reads itself the domains of pools that this node has
// seen for the first time.
func (k *known) finish(blocks []*pool.Block) {
	<-k.read
	for _, b := range blocks {
		if _, looked := k.held[b.Domain]; !looked {
			k.look(b.Domain)
		}
	}
}

// lookUpKnown reads what the hint has of the requested pools. That takes a while if a
// block is full, so it is done while the connection to the API server is made.
func (c *Claimer) lookUpKnown(req Request, saved []*hint.View) *known {
	k := &known{hint: c.Hint, att: req.Attachment, pools: req.Pools, read: make(chan struct{}), pod: req.Pod,
		held: map[string][]hint.Entry{}, rests: map[string][]netip.Addr{}, entered: map[string]map[netip.Addr]bool{}}
	go func() {
		defer close(k.read)
		for i, ref := range req.Pools {
			k.look(saved[i].Domain(ref))
		}
	}()
	return k
}

// gave takes note of what was claimed for one of the requested pools. No other one gets that: pools
// of a domain may overlap.
func (k *known) gave(e hint.Entry) { k.given = append(k.given, e) }

// givenIn returns the addresses of a domain that this call has claimed for one of the pools.
func (k *known) givenIn(domain string) map[netip.Addr]bool {
	out := map[netip.Addr]bool{}
	for _, e := range k.given {
		if e.Domain == domain {
			out[e.Address] = true
		}
	}
	return out
}

// heldIn returns the address in a block that this attachment already holds, or zero.
func (k *known) heldIn(b *pool.Block) netip.Addr {
	given := k.givenIn(b.Domain)
	for _, e := range k.held[b.Domain] {
		if b.Range.Contains(e.Address) && !given[e.Address] && !k.isOfOther(e, b.Pool) {
			return e.Address
		}
	}
	return netip.Addr{}
}

// restIn returns the addresses in a space that the pod has released and that rest.
func (k *known) restIn(space *pool.Block) (all []netip.Addr) {
	given := k.givenIn(space.Domain)
	for _, addr := range k.rests[space.Domain] {
		if space.Contains(addr) && !given[addr] {
			all = append(all, addr)
		}
	}
	return all
}

// mayHold reports whether this attachment may hold an address already.
func (k *known) mayHold(domain string, addr netip.Addr) bool {
	return slices.ContainsFunc(k.held[domain], func(e hint.Entry) bool { return e.Address == addr })
}

// isOfOther reports whether an address was taken from another of the requested pools: two
// pools of one domain may overlap. It is left to that one. If this one took it over, a repeated ADD
// and a CHECK would not know which pool it is for.
func (k *known) isOfOther(e hint.Entry, ref v1alpha1.PoolReference) bool {
	return e.Record != nil && e.Record.Spec.PoolRef != ref && slices.Contains(k.pools, e.Record.Spec.PoolRef)
}

// provesSetBack reports whether an allocation is older than one that this node had before
// the create was sent: then etcd was set back.
func (k *known) provesSetBack(made *v1alpha1.IPAllocation) bool {
	version := v1alpha1.VersionNumber(made.ResourceVersion)
	return version > 0 && version < k.latest
}

// rollBack releases what a failed call has claimed, also if the time of the call is
// over.
func (c *Claimer) rollBack(ctx context.Context, claimed []hint.Entry) error {
	if len(claimed) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollBackTime)
	defer cancel()
	return c.releaseAll(ctx, claimed)
}

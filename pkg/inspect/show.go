// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"go4.org/netipx"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// PoolRef names a pool in the cluster.
type PoolRef struct {
	Namespace string            `json:"namespace"`
	Kind      v1alpha1.PoolKind `json:"kind"`
	Name      string            `json:"name"`
}

func refOf(p *pool.Object) PoolRef { return PoolRef{p.Meta.Namespace, p.Ref.Kind, p.Ref.Name} }

// Pool is how full a pool is.
type Pool struct {
	PoolRef

	Domain string `json:"domain"`
	Subnet string `json:"subnet"`
	// Capacity is how many addresses can be given automatically; absent if the
	// specification is invalid.
	Capacity *int64 `json:"capacity,omitempty"`
	// Used is how many addresses are held, requested ones included. Cooling is how many
	// others were released and rest.
	Used    int64 `json:"used"`
	Cooling int64 `json:"cooling,omitempty"`
	// BlockCount is how many nodes have a block, FullBlocks how many of these have no
	// free address and cannot go on elsewhere.
	BlockCount int `json:"blockCount"`
	FullBlocks int `json:"fullBlocks"`
	// Ready is "True" or "False", Reason and Message say why. If the controller has not
	// said it on the pool, they are what follows from the record.
	Ready   string `json:"ready"`
	Reason  string `json:"reason"`
	Message string `json:"message,omitempty"`
	// Notices are the other conditions that are true.
	Notices []notice `json:"notices,omitempty"`
	// Blocks are only there if they were asked for.
	Blocks []blockUse `json:"blocks,omitempty"`
}

// notice is a condition of a pool.
type notice struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

// blockUse is how full a block is.
type blockUse struct {
	Node  string `json:"node"`
	Range string `json:"range"`
	Size  int64  `json:"size"`
	Used  int64  `json:"used"`
	// Cooling is how many addresses were released and rest.
	Cooling int64 `json:"cooling,omitempty"`
	// Earlier is true if the block is of an earlier specification: no new address is
	// taken from it if the node has another one.
	Earlier bool `json:"earlier,omitempty"`
}

// Show returns how full the pools are; name is one of them, or "" for all.
func (c *Cluster) Show(ctx context.Context, name string, blocks bool) ([]Pool, error) {
	r, err := c.read(ctx, parts{allocations: true, nodes: true})
	if err != nil {
		return nil, err
	}
	if name != "" {
		if _, err := r.find(name); err != nil {
			return nil, err
		}
	}
	var out []Pool
	for _, s := range r.sites {
		for _, p := range s.pools {
			if name == "" || p.Ref.Name == name {
				out = append(out, r.pool(s, p, blocks))
			}
		}
	}
	return out, nil
}

func (r *record) pool(s *site, o *pool.Object, blocks bool) Pool {
	heldOrResting := s.heldIn(o)
	held := pool.NotResting(heldOrResting)
	out := Pool{PoolRef: refOf(o), Domain: o.Domain, Subnet: o.Subnet, Used: int64(len(held)), Cooling: int64(len(heldOrResting) - len(held))}
	parsed, errs := o.Parse()
	if len(errs) > 0 {
		out.Ready, out.Reason, out.Message = "False", v1alpha1.ReasonInvalidSpec, pool.Explain(errs)
		out.Notices = noticesOf(o)
		return out
	}
	use := parsed.Use(sorted(o.Blocks()), heldOrResting)
	capacity := use.Capacity()
	out.Capacity, out.BlockCount, out.FullBlocks = &capacity, len(use.Active), len(use.FullBlocks())
	if blocks {
		out.Blocks = blocksOf(use)
	}
	out.Ready, out.Reason, out.Message = r.readiness(o, parsed)
	out.Notices = noticesOf(o)
	return out
}

// sorted returns blocks by address, as Use wants them: somebody may have edited them.
func sorted(blocks []pool.Assignment) []pool.Assignment {
	blocks = slices.Clone(blocks)
	slices.SortFunc(blocks, func(a, b pool.Assignment) int { return a.Range.From().Compare(b.Range.From()) })
	return blocks
}

func blocksOf(use *pool.Use) []blockUse {
	var out []blockUse
	for _, b := range use.Blocks {
		out = append(out, blockUse{Node: b.Node, Range: b.Range.String(), Size: b.Size, Used: b.Held, Cooling: b.Rests, Earlier: b.Earlier})
	}
	if use.Whole != nil {
		out = append(out, blockUse{Node: "*", Range: use.Whole.Range.String(), Size: use.Whole.Size, Used: use.Whole.Held, Cooling: use.Whole.Rests})
	}
	return out
}

// readiness returns what the controller says on the pool, or else what follows from the
// record: CRDs that are not this project's drop conditions.
func (r *record) readiness(o *pool.Object, p *pool.Pool) (ready, reason, message string) {
	if c := meta.FindStatusCondition(o.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return string(c.Status), c.Reason, c.Message
	}
	if len(o.Blocks()) == 0 && o.Allocations == nil && !p.Shared {
		return "False", "NoController", "no controller has given blocks of it: is this the namespace in which the controller runs?"
	}
	without := 0
	for _, node := range r.selected(p) {
		if _, ok := p.BlockOf(o.Blocks(), node); !ok {
			without++
		}
	}
	switch {
	case without > 0:
		return "False", v1alpha1.ReasonNoFreeRanges, fmt.Sprintf("%d nodes have no block", without)
	case o.Disabled:
		return "True", v1alpha1.ReasonDisabled, "spec.disabled is true: the pool gives no addresses"
	case p.Shared:
		return "True", v1alpha1.ReasonNoBlocks, "any node may use the whole subnet"
	}
	return "True", v1alpha1.ReasonBlocksAssigned, ""
}

func noticesOf(o *pool.Object) (out []notice) {
	for _, c := range o.Status.Conditions {
		if c.Type != v1alpha1.ConditionReady && c.Status == "True" {
			out = append(out, notice{c.Type, c.Message})
		}
	}
	return out
}

// Free is what is free in one place of a pool: a node's block, or the whole subnet.
type Free struct {
	PoolRef

	// Node is "*" for any.
	Node  string `json:"node"`
	Range string `json:"range"`
	Size  int64  `json:"size"`
	Free  int64  `json:"free"`
	// Ranges are the first free ranges, at most maxRanges; More counts the others.
	Ranges []string `json:"ranges,omitempty"`
	More   int      `json:"more,omitempty"`
	// Disabled is true if the pool gives no addresses.
	Disabled bool `json:"disabled,omitempty"`
}

// maxRanges is how many free ranges of a block are named.
const maxRanges = 16

// Free returns which addresses of the pools of a name are free.
func (c *Cluster) Free(ctx context.Context, name string) ([]Free, error) {
	r, err := c.read(ctx, parts{allocations: true})
	if err != nil {
		return nil, err
	}
	found, err := r.find(name)
	if err != nil {
		return nil, err
	}
	var out []Free
	for _, o := range found {
		parsed, errs := o.Parse()
		if err := pool.Invalid(o.Ref, errs); err != nil {
			return nil, err
		}
		held := map[netip.Addr]bool{}
		for _, h := range r.site(o.Meta.Namespace).heldIn(o) {
			held[h.Addr] = true
		}
		for _, b := range freeBlocks(parsed, sorted(o.Blocks())) {
			free := freeIn(refOf(o), b.node, b.block, held)
			free.Disabled = o.Disabled
			out = append(out, free)
		}
	}
	return out, nil
}

type nodeBlock struct {
	node  string
	block *pool.Block
}

// freeBlocks returns the places from which nodes take addresses.
func freeBlocks(p *pool.Pool, blocks []pool.Assignment) (out []nodeBlock) {
	seen := map[string]bool{}
	for _, a := range blocks {
		if b, ok := p.BlockOf(blocks, a.Node); ok && !seen[a.Node] && !p.Shared {
			seen[a.Node] = true
			out = append(out, nodeBlock{a.Node, b})
		}
	}
	if whole := p.Whole(); whole != nil {
		out = append(out, nodeBlock{"*", whole})
	}
	return out
}

func freeIn(ref PoolRef, node string, b *pool.Block, held map[netip.Addr]bool) Free {
	var set netipx.IPSetBuilder
	for _, r := range b.Usable {
		set.AddRange(r)
	}
	used := int64(0)
	for a := range held {
		if b.Contains(a) {
			set.Remove(a)
			used++
		}
	}
	free, _ := set.IPSet() // fails on invalid ranges only, and there are none
	out := Free{PoolRef: ref, Node: node, Range: b.Range.String(), Size: b.Size(), Free: b.Size() - used}
	ranges := free.Ranges()
	for _, r := range ranges[:min(len(ranges), maxRanges)] {
		text := r.String()
		if r.From() == r.To() {
			text = r.From().String()
		}
		out.Ranges = append(out.Ranges, text)
	}
	out.More = len(ranges) - len(out.Ranges)
	return out
}

// PoolNames returns the names of all pools.
func (c *Cluster) PoolNames(ctx context.Context) (names []string, err error) {
	pools, err := c.pools(ctx)
	for _, p := range pools {
		names = append(names, p.Ref.Name)
	}
	return slices.Compact(names), err
}

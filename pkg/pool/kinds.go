// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// kinds has one row for each kind of pool. No other package names a kind
// (hack/check-imports.sh), so a new kind is a row here and a file beside ippool.go.
var kinds = []kind{
	{v1alpha1.PoolKindIPPool, "ippools", func() runtime.Object { return &v1alpha1.IPPool{} }, func() runtime.Object { return &v1alpha1.IPPoolList{} }, ipObject},
	{v1alpha1.PoolKindCIDRPool, "cidrpools", func() runtime.Object { return &v1alpha1.CIDRPool{} }, func() runtime.Object { return &v1alpha1.CIDRPoolList{} }, cidrObject},
}

// DefaultKind is the kind that is meant if a configuration, or nv-ipam's store, names
// none.
const DefaultKind = v1alpha1.PoolKindIPPool

// kind is all that differs between kinds of pool.
type kind struct {
	name     v1alpha1.PoolKind
	resource string // as it stands in the API's paths
	empty    func() runtime.Object
	list     func() runtime.Object
	// object reads an object; nil if it is of another kind.
	object func(obj any) *Object
}

// Object is a pool of any kind, as one version of its object in the API has it.
type Object struct {
	// Ref is the pool's kind and name.
	Ref v1alpha1.PoolReference
	// Meta and Status are those of the object: a change of them changes it.
	Meta   *metav1.ObjectMeta
	Status *v1alpha1.PoolStatus
	// Domain that the addresses are unique in: see v1alpha1.PoolAccess.
	Domain string
	// Disabled is spec.disabled.
	Disabled bool
	// Sticky is true if the pods of workloads keep their addresses. StickyWhenScaled is
	// spec.stickyWhenScaled.
	Sticky           bool
	StickyWhenScaled v1alpha1.StickyRetention
	// Subnet is all that the pool may hand out, as the specification has it, unchecked.
	Subnet string
	// Gateway of the subnet, unchecked as well; "" if there is none, or each block has its own.
	Gateway string
	// Spec is the specification, to be written as JSON.
	Spec any
	// Allocations is status.allocations, to be written as JSON; nil if the pool has no
	// status yet.
	Allocations any

	parse       func() (*Pool, field.ErrorList)
	blocks      func() []Assignment
	allocations func([]Assignment) any
	allocation  func(Assignment) any
	gateways    bool // status.allocations has those of the blocks
}

// Parse checks and parses the specification. Each error names the field and the value.
func (o *Object) Parse() (*Pool, field.ErrorList) { return o.parse() }

// Blocks reads status.allocations. It leaves out an entry that names no block. The caller
// must not change what it returns.
func (o *Object) Blocks() []Assignment { return o.blocks() }

// With returns the pool with other metadata and blocks. The blocks are as Written returns them.
func (o *Object) With(meta *metav1.ObjectMeta, blocks []Assignment) *Object {
	out := *o
	out.Meta, out.Allocations = meta, o.AllocationsFor(blocks)
	out.blocks = func() []Assignment { return blocks }
	return &out
}

// Written returns blocks as Blocks reads them when they have been written.
func (o *Object) Written(blocks []Assignment) []Assignment {
	if o.gateways {
		return blocks
	}
	blocks = slices.Clone(blocks)
	for i := range blocks {
		blocks[i].Gateway = netip.Addr{}
	}
	return blocks
}

// Overlaps reports whether two pools have an address in common; one whose subnet cannot be
// read has none.
func (o *Object) Overlaps(other *Object) bool {
	a, errA := netip.ParsePrefix(o.Subnet)
	b, errB := netip.ParsePrefix(other.Subnet)
	return errA == nil && errB == nil && a.Overlaps(b)
}

// Has reports whether an address is in the pool's subnet.
func (o *Object) Has(addr netip.Addr) bool {
	subnet, err := netip.ParsePrefix(o.Subnet)
	return err == nil && subnet.Contains(addr)
}

// Held is HeldBeside every pool that an allocation names.
func (o *Object) Held(inDomain []*v1alpha1.IPAllocation) iter.Seq[Held] {
	return o.held(inDomain, func(v1alpha1.PoolReference) bool { return true })
}

// HeldBeside yields which of the allocations of the pool's domain count in the pool: those
// that were taken from it, and those in its subnet that were taken from other pools. Of these,
// pools are the ones that the domain has.
func (o *Object) HeldBeside(inDomain []*v1alpha1.IPAllocation, pools []v1alpha1.PoolReference) iter.Seq[Held] {
	exists := make(map[v1alpha1.PoolReference]bool, len(pools))
	for _, ref := range pools {
		exists[ref] = true
	}
	return o.held(inDomain, func(ref v1alpha1.PoolReference) bool { return exists[ref] })
}

func (o *Object) held(inDomain []*v1alpha1.IPAllocation, exists func(v1alpha1.PoolReference) bool) iter.Seq[Held] {
	subnet, _ := netip.ParsePrefix(o.Subnet) // an invalid one contains nothing
	return func(yield func(Held) bool) {
		for _, a := range inDomain {
			addr, err := ParseAddr(a.Spec.Address)
			if err != nil || a.Spec.PoolRef != o.Ref && !subnet.Contains(addr) {
				continue
			}
			h := Held{
				Addr: addr, Requested: a.Spec.Requested, Sticky: a.Spec.IsSticky(),
				Elsewhere: a.Spec.PoolRef != o.Ref && exists(a.Spec.PoolRef), Rests: a.Spec.Rests(),
			}
			if a.Spec.Held() {
				h.Node = a.Spec.NodeName
			}
			if !yield(h) {
				return
			}
		}
	}
}

// AllocationsFor returns blocks as status.allocations has them in this kind of pool;
// never nil, since the API requires the field.
func (o *Object) AllocationsFor(blocks []Assignment) any { return o.allocations(blocks) }

// AllocationFor returns one block in the same way.
func (o *Object) AllocationFor(block Assignment) any { return o.allocation(block) }

// ObjectOf reads an object of the API, or of a cache; nil if it is no pool.
func ObjectOf(obj any) *Object {
	for _, k := range kinds {
		if o := k.object(obj); o != nil {
			return o
		}
	}
	return nil
}

// Kinds returns all kinds of pool.
func Kinds() []v1alpha1.PoolKind {
	out := make([]v1alpha1.PoolKind, len(kinds))
	for i, k := range kinds {
		out[i] = k.name
	}
	return out
}

// ParseType reads a kind as a CNI configuration spells it, in upper or lower case. The
// words of the error are nv-ipam's.
func ParseType(text string) (v1alpha1.PoolKind, error) {
	var known []string
	for _, k := range kinds {
		if strings.EqualFold(text, string(k.name)) {
			return k.name, nil
		}
		known = append(known, Type(k.name))
	}
	return "", fmt.Errorf("unsupported poolType %s, supported values: %s", text, strings.Join(known, ", "))
}

// Type returns the pool's kind as the CNI configuration and messages spell it.
func Type(kind v1alpha1.PoolKind) string { return strings.ToLower(string(kind)) }

// Resource returns the API's resource of a kind. An unknown kind has the resource "",
// which no API server knows.
func Resource(kind v1alpha1.PoolKind) schema.GroupVersionResource {
	return v1alpha1.Resource(rowOf(kind).resource).WithVersion(v1alpha1.GroupVersion.Version)
}

// New returns an empty object of a known kind, to read an answer of the API into.
func New(kind v1alpha1.PoolKind) runtime.Object { return rowOf(kind).empty() }

// NewList returns an empty list of a known kind, likewise.
func NewList(kind v1alpha1.PoolKind) runtime.Object { return rowOf(kind).list() }

func rowOf(name v1alpha1.PoolKind) kind {
	for _, k := range kinds {
		if k.name == name {
			return k
		}
	}
	return kind{}
}

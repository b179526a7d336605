// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned/scheme"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// Plan is what would happen if a pool were applied.
type Plan struct {
	PoolRef

	// Refused says why the API server or the controller would refuse it; "" if it would not.
	Refused string `json:"refused,omitempty"`
	// New is true if there is no such pool yet.
	New bool `json:"new,omitempty"`
	// CapacityBefore and CapacityAfter are how many addresses can be given automatically;
	// BlocksBefore and BlocksAfter how many nodes have a block.
	CapacityBefore int64 `json:"capacityBefore"`
	CapacityAfter  int64 `json:"capacityAfter"`
	BlocksBefore   int   `json:"blocksBefore"`
	BlocksAfter    int   `json:"blocksAfter"`
	// Lose are nodes that have a block and would have none, some of them only when they have
	// given back its addresses.
	Lose []string `json:"lose,omitempty"`
	// Move are nodes whose block would be another one.
	Move []string `json:"move,omitempty"`
	// Keep are nodes that keep a block of the present specification until its addresses are
	// given back.
	Keep []string `json:"keep,omitempty"`
	// Without are nodes that the pool selects and has no room for.
	Without []string `json:"without,omitempty"`
	// Barred are namespaces whose pods have addresses of the pool, and would get no more.
	Barred []string `json:"barred,omitempty"`
	// Stranded are addresses that are held, kept or reserved, and that the pool would not give
	// any more. Pods keep them until they end.
	Stranded []stranded `json:"stranded,omitempty"`
	// Overlaps are pools of other domains or namespaces that it would have addresses in common with.
	Overlaps []string `json:"overlaps,omitempty"`
}

// stranded is an address that does not fit.
type stranded struct {
	Address string `json:"address"`
	Node    string `json:"node"`
	Why     string `json:"why"`
}

// Harms reports whether somebody is worse off than before.
func (p *Plan) Harms() bool {
	return p.Refused != "" || len(p.Lose)+len(p.Without)+len(p.Barred)+len(p.Stranded)+len(p.Overlaps) > 0
}

// strict reads objects as kubectl apply has them checked: a field that is not known is an error.
var strict = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict)

// ParsePools reads the pools in a stream of YAML documents or JSON. What is no pool is an
// error: it would not be looked at. So is a field whose name is not known, or whose value is
// taken for none: with it the plan would be for another pool.
func ParsePools(in io.Reader) (out []*pool.Object, err error) {
	documents := yaml.NewYAMLReader(bufio.NewReader(in))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		data, err := yaml.ToJSON(document)
		if err != nil {
			return nil, err
		}
		if string(data) == "null" {
			continue
		}
		o, err := parsePool(data)
		if err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no pool in it")
	}
	return out, nil
}

func parsePool(data []byte) (*pool.Object, error) {
	obj, err := runtime.Decode(strict.UniversalDeserializer(), data)
	switch {
	case runtime.IsStrictDecodingError(err):
		return nil, fmt.Errorf("the API server would refuse it: %w", err)
	case err != nil:
		return nil, fmt.Errorf("not a pool: %w", err)
	}
	o := pool.ObjectOf(obj)
	if o == nil {
		return nil, fmt.Errorf("%s is not a pool", obj.GetObjectKind().GroupVersionKind().Kind)
	}
	if problem := lostInTypes(data, o); problem != "" {
		return nil, fmt.Errorf("the API server would refuse it: spec.%s", problem)
	}
	return o, nil
}

// writtenCooldown is how the API server takes a duration.
var writtenCooldown = regexp.MustCompile(`^"([0-9]{1,2}h)?([0-9]{1,4}m)?([0-9]{1,5}s)?"$`)

// mayBeEmpty are the fields that the API server takes empty, as if they were not there.
var mayBeEmpty = []string{"gateway", "ranges", "exclusions", "perNodeExclusions", "routes", "staticAllocations"}

// lostInTypes returns what the API server refuses in the specification of a document, and the
// API's types do not show: what is 0 or empty and may not be, and other ways to write a
// duration; "" if there is none.
func lostInTypes(document []byte, o *pool.Object) string {
	var said, kept struct{ Spec map[string]json.RawMessage }
	data, err := json.Marshal(map[string]any{"spec": o.Spec})
	if err != nil || json.Unmarshal(document, &said) != nil || json.Unmarshal(data, &kept) != nil {
		return ""
	}
	for _, name := range slices.Sorted(maps.Keys(said.Spec)) {
		value := said.Spec[name]
		empty := slices.Contains([]string{"0", `""`, "[]"}, string(value))
		switch _, is := kept.Spec[name]; {
		case !is && empty && !slices.Contains(mayBeEmpty, name):
			return name + " is " + string(value) + ": leave it out"
		case name == "releaseCooldown" && !empty && !writtenCooldown.Match(value):
			return name + " is " + string(value) + ": write hours, minutes and seconds, in this order and whole, as 1h30m"
		}
	}
	return ""
}

// Plan says what would happen if pools were applied, each by itself, but for what they have in
// common. A pool without a
// namespace is one of Cluster.Namespace, or of where a pool of the name is. It writes
// nothing.
func (c *Cluster) Plan(ctx context.Context, pools []*pool.Object) ([]Plan, error) {
	r, err := c.read(ctx, parts{allocations: true, nodes: true})
	if err != nil {
		return nil, err
	}
	var out []Plan
	for _, o := range pools {
		if o.Meta.Namespace == "" {
			if o.Meta.Namespace, err = c.namespaceOf(r, o); err != nil {
				return nil, err
			}
		}
		if of := o.Meta.Namespace; r.only != "" && of != r.only {
			return nil, fmt.Errorf("the file's pool is of namespace %s, and only %s was looked at: --pools-namespace %s", of, r.only, of)
		}
	}
	for _, o := range pools {
		p := r.plan(o)
		p.Overlaps = r.overlaps(o, pools)
		out = append(out, p)
	}
	return out, nil
}

func (c *Cluster) namespaceOf(r *record, o *pool.Object) (string, error) {
	if c.Namespace != "" {
		return c.Namespace, nil
	}
	found, _ := r.find(o.Ref.Name)
	found = slices.DeleteFunc(found, func(p *pool.Object) bool { return p.Ref != o.Ref })
	if len(found) == 1 {
		return found[0].Meta.Namespace, nil
	}
	if len(found) == 0 && len(r.sites) == 1 {
		return r.sites[0].namespace, nil
	}
	return "", fmt.Errorf("%s %s has no metadata.namespace: say it with -n", o.Ref.Kind, o.Ref.Name)
}

func (r *record) plan(o *pool.Object) Plan {
	s := r.site(o.Meta.Namespace)
	out := Plan{PoolRef: refOf(o)}
	var before *pool.Object
	for _, p := range s.pools {
		if p.Ref == o.Ref {
			before = p
		}
	}
	parsed, errs := o.Parse()
	out.Refused = refusal(before, o, errs)
	out.New = before == nil
	have := map[string]string{} // what nodes take addresses from now
	var now *pool.Pool
	var blocks []pool.Assignment
	if before != nil {
		blocks = sorted(before.Blocks())
		if p, errs := before.Parse(); len(errs) == 0 {
			use := p.Use(blocks, nil)
			out.CapacityBefore, out.BlocksBefore = use.Capacity(), len(use.Active)
			have, now = rangesOf(use), p
		}
	}
	if out.Refused != "" {
		out.CapacityAfter, out.BlocksAfter = out.CapacityBefore, out.BlocksBefore // an invalid edit changes nothing
		return out
	}
	all := s.adopted(before, o)
	held := pool.NotResting(heldInEither(all, before, o))
	selected := r.selected(parsed)
	assigned, without := parsed.Carve(blocks, selected, held)
	use := parsed.Use(assigned, held)
	out.CapacityAfter, out.BlocksAfter, out.Without = use.Capacity(), len(use.Active), without
	for _, b := range use.Blocks {
		if _, selected := slices.BinarySearch(selected, b.Node); b.Earlier || !selected {
			out.Keep = append(out.Keep, fmt.Sprintf("%s (%s)", b.Node, b.Range))
		}
	}
	will := rangesOf(use)
	for _, node := range slices.Sorted(maps.Keys(have)) {
		switch now, kept := will[node]; {
		case !kept && !parsed.Shared, !slices.Contains(selected, node):
			out.Lose = append(out.Lose, node)
		case kept && now != have[node]:
			out.Move = append(out.Move, fmt.Sprintf("%s (%s, then %s)", node, have[node], now))
		}
	}
	out.strand("would be a gateway", use.Gateways)
	out.strand("the pool would not give it", use.Unfit)
	out.strand("would be in no block of its node", use.Outside)
	out.strand(outside, use.Foreign)
	for _, a := range all {
		if a.Spec.PoolRef == o.Ref {
			out.lasting(a, parsed, assigned)
			out.letGo(a, before, o)
			out.bar(a, now, blocks, parsed, assigned)
		}
	}
	return out
}

// overlaps returns the pools with which check would find that one overlaps, when all of a file are
// applied: of another domain, or of another namespace.
func (r *record) overlaps(o *pool.Object, file []*pool.Object) (out []string) {
	all := slices.Clone(file)
	applied := map[PoolRef]bool{}
	for _, p := range file {
		applied[refOf(p)] = true
	}
	for _, s := range r.sites {
		for _, p := range s.pools {
			if !applied[refOf(p)] {
				all = append(all, p)
			}
		}
	}
	for _, p := range all {
		switch {
		case refOf(p) == refOf(o) || !p.Overlaps(o):
		case p.Meta.Namespace != o.Meta.Namespace:
			if !p.Disabled && !o.Disabled {
				out = append(out, fmt.Sprintf("%s %s/%s (%s)", p.Ref.Kind, p.Meta.Namespace, p.Ref.Name, p.Subnet))
			}
		case p.Domain != o.Domain:
			out = append(out, fmt.Sprintf("%s %s (%s, domain %s)", p.Ref.Kind, p.Ref.Name, p.Subnet, p.Domain))
		}
	}
	return out
}

// refusal says why an edit would be refused; "" if it would not. errs are those of the
// specification.
func refusal(before, after *pool.Object, errs field.ErrorList) string {
	problems := validation.IsDNS1123Subdomain(after.Ref.Name)
	switch {
	case len(problems) > 0:
		return fmt.Sprintf("metadata.name: Invalid value: %q: %s", after.Ref.Name, problems[0])
	case len(errs) > 0:
		return pool.Explain(errs)
	case before != nil && before.Domain != after.Domain:
		return fmt.Sprintf("spec.domain is immutable: it is %s, not %s", before.Domain, after.Domain)
	}
	return ""
}

// outside is why an address is stranded that the subnet does not have.
const outside = "would not be in the subnet"

// lasting enters an address that is reserved, or that a workload keeps, if the pool would not
// give it any more. It is of no node's block, and so pool.Use says nothing about it.
func (p *Plan) lasting(a *v1alpha1.IPAllocation, parsed *pool.Pool, blocks []pool.Assignment) {
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil || !a.Spec.IsSticky() && !a.Spec.IsReserved() {
		return
	}
	why := ""
	if !parsed.Subnet.Contains(addr) {
		why = outside
	} else if b, ok := parsed.BlockOf(blocks, a.Spec.NodeName); ok && a.Spec.IsSticky() {
		if space := b.Lasting(); space == nil || !space.Contains(addr) {
			why = "the pool would not give it"
		}
	}
	if why == "" {
		return
	}
	if !a.Spec.Held() {
		why = ledger.Describe(a) + ": " + why
	}
	p.strand(why, []pool.Held{{Addr: addr, Node: a.Spec.NodeName}})
}

// letGo enters an address that a StatefulSet keeps, and would not.
func (p *Plan) letGo(a *v1alpha1.IPAllocation, before, after *pool.Object) {
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil || a.Spec.Held() || !a.Spec.Owner.IsStatefulSet() || before == nil || !before.Sticky {
		return
	}
	why := ledger.Describe(a) + ": would not be kept "
	switch {
	case !after.Sticky:
		p.strand(why+"any more", []pool.Held{{Addr: addr, Node: a.Spec.NodeName}})
	case after.StickyWhenScaled == v1alpha1.StickyDelete && before.StickyWhenScaled != v1alpha1.StickyDelete:
		p.strand(why+"after a scale-down", []pool.Held{{Addr: addr, Node: a.Spec.NodeName}})
	}
}

// bar enters the namespace of an allocation's pod if the pool gives to it now, and would not.
func (p *Plan) bar(a *v1alpha1.IPAllocation, now *pool.Pool, blocks []pool.Assignment, parsed *pool.Pool, assigned []pool.Assignment) {
	namespace := a.Spec.PodRef.Namespace
	admits := func(p *pool.Pool, blocks []pool.Assignment) bool {
		b, ok := p.BlockOf(blocks, a.Spec.NodeName)
		return ok && b.Admit(namespace) == nil
	}
	if _, has := parsed.BlockOf(assigned, a.Spec.NodeName); !has || namespace == "" || now == nil || !admits(now, blocks) || admits(parsed, assigned) {
		return
	}
	if i, found := slices.BinarySearch(p.Barred, namespace); !found {
		p.Barred = slices.Insert(p.Barred, i, namespace)
	}
}

// adopted returns the allocations of the domain of a pool. Of those that were taken from another one
// it says that they were taken from this one if it has them now, before an edit, and the other is
// gone, or no other has them.
func (s *site) adopted(before, after *pool.Object) []*v1alpha1.IPAllocation {
	all := slices.Clone(s.byDomain[after.Domain])
	if before == nil {
		return all
	}
	var others []*pool.Object
	refs := map[v1alpha1.PoolReference]bool{}
	for _, o := range s.inDomain(after.Domain) {
		if refs[o.Ref] = true; o.Ref != after.Ref {
			others = append(others, o)
		}
	}
	for i, a := range all {
		addr, err := pool.ParseAddr(a.Spec.Address)
		if err != nil || a.Spec.PoolRef == after.Ref || !before.Has(addr) {
			continue
		}
		if !refs[a.Spec.PoolRef] || !slices.ContainsFunc(others, func(o *pool.Object) bool { return o.Has(addr) }) {
			all[i] = &v1alpha1.IPAllocation{ObjectMeta: a.ObjectMeta, Spec: a.Spec}
			all[i].Spec.PoolRef = after.Ref
		}
	}
	return all
}

// heldInEither returns what is held in a pool before an edit, which may be nil, or after it.
func heldInEither(all []*v1alpha1.IPAllocation, before, after *pool.Object) []pool.Held {
	held := slices.Collect(after.Held(all))
	if before == nil {
		return held
	}
	for h := range before.Held(all) {
		if !slices.Contains(held, h) {
			held = append(held, h)
		}
	}
	return held
}

func rangesOf(use *pool.Use) map[string]string {
	out := map[string]string{}
	for _, b := range use.Active {
		out[b.Node] = b.Range.String()
	}
	return out
}

func (p *Plan) strand(why string, held []pool.Held) {
	held = slices.SortedFunc(slices.Values(held), func(a, b pool.Held) int { return a.Addr.Compare(b.Addr) })
	for _, h := range held {
		if !slices.ContainsFunc(p.Stranded, func(s stranded) bool { return s.Address == h.Addr.String() }) {
			p.Stranded = append(p.Stranded, stranded{h.Addr.String(), h.Node, why})
		}
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// InFlight is for how long an ADD of whereabouts may be under way: its own time limit.
const InFlight = 2 * time.Minute

// annotationFrom marks what this package has made, pools and allocations. Its value on a
// pool is whereabouts' network_name, a space, and the range.
const annotationFrom = "nv-ipam.nvidia.com/from-whereabouts"

// commonDomain is the domain of all ranges without a network_name of which an address is
// given once across ranges.
const commonDomain = "whereabouts"

// scope is what whereabouts keeps one list of addresses for.
type scope struct{ network, subnet string }

func (s scope) String() string { return s.network + " " + s.subnet }

// name is that of whereabouts' pool.
func (s scope) name() string { return strings.TrimPrefix(s.network+"-"+normalize(s.subnet), "-") }

// plan is what becomes of whereabouts' state.
type plan struct {
	state   *state
	configs []*config
	pools   []*target
	claims  []*claim
	byName  map[string]*v1alpha1.IPAllocation   // who holds what
	byPod   map[string][]*v1alpha1.IPAllocation // by namespace/name
	patches []patch
	// cannot is what has no place here. Nothing of it is changed.
	cannot []string
	// created counts the allocations that apply has made.
	created int
}

// target is a pool.
type target struct {
	scope  scope
	pool   *v1alpha1.IPPool
	exists *v1alpha1.IPPool // as it is in the API; nil if it is not
	// held are the reasons why the pool is to be disabled.
	held []string
	// refused says why the API server or the controller would refuse the pool; "" if it would
	// not. It is not printed then, and nothing is claimed in it.
	refused string
}

func (t *target) domain() string { return cmp.Or(t.pool.Spec.Domain, t.pool.Name) }

func (t *target) subnet() netip.Prefix { return netip.MustParsePrefix(t.pool.Spec.Subnet) }

// overlaps reports whether an address may be in both.
func (t *target) overlaps(o *target) bool {
	return t.domain() == o.domain() && t.subnet().Overlaps(o.subnet())
}

// patch switches a network.
type patch struct {
	network *network
	config  string
}

// newPlan decides what becomes of it all. It changes nothing.
func newPlan(s *state) *plan {
	p := &plan{state: s, byName: map[string]*v1alpha1.IPAllocation{}, byPod: map[string][]*v1alpha1.IPAllocation{}}
	for i := range s.held {
		a := &s.held[i]
		p.byName[a.Name] = a
		p.byPod[podOf(a)] = append(p.byPod[podOf(a)], a)
	}
	for i := range s.networks {
		if c := parseConfig(&s.networks[i]); c != nil {
			p.configs = append(p.configs, c)
		}
	}
	for i := range s.pools {
		from, ours := s.pools[i].Annotations[annotationFrom]
		if _, err := netip.ParsePrefix(s.pools[i].Spec.Subnet); ours && err == nil {
			network, subnet, _ := strings.Cut(from, " ")
			p.pools = append(p.pools, &target{scope: scope{network, subnet}, pool: s.pools[i].DeepCopy(), exists: &s.pools[i]})
		}
	}
	used := map[*config][]*target{}
	for _, c := range p.configs {
		used[c] = p.networkPools(c)
	}
	for i := range s.ranges {
		p.claimRange(&s.ranges[i])
	}
	p.claimTwice()
	p.leftOver()
	p.disable(used)
	return p
}

// networkPools returns the pools that a network uses, or is to use instead of
// whereabouts' ranges; then it is patched.
func (p *plan) networkPools(c *config) (out []*target) {
	if !c.from {
		for _, t := range p.pools {
			if slices.Contains(strings.Split(c.own.PoolName, ","), t.pool.Name) {
				out = append(out, t)
			}
		}
		return out
	}
	var names []string
	for _, r := range c.ranges() {
		parsed, err := r.parse()
		if err != nil {
			continue // check has said so
		}
		t := p.target(scope{c.own.NetworkName, parsed.subnet.String()}, c.spec(parsed))
		if _, errs := pool.ObjectOf(t.pool).Parse(); len(errs) > 0 {
			t.refused = "its pool would be refused: " + pool.Explain(errs)
			c.cannot = append(c.cannot, t.refused)
		}
		out = append(out, t)
		names = append(names, t.pool.Name)
	}
	for _, problem := range c.cannot {
		p.cannot = append(p.cannot, fmt.Sprintf("network %s: %s. It is left as it is", c.network, problem))
	}
	if len(c.cannot) > 0 {
		return out
	}
	clear(c.ipam)
	c.ipam["type"], c.ipam["poolName"] = "nv-ipam", strings.Join(names, ",")
	data, _ := json.Marshal(c.all) // it was JSON before
	p.patches = append(p.patches, patch{c.network, string(data)})
	return out
}

// spec is that of a pool for one range of the network.
func (c *config) spec(r parsedRange) v1alpha1.IPPoolSpec {
	spec := v1alpha1.IPPoolSpec{Subnet: r.subnet.String()}
	if spec.Domain = cmp.Or(c.own.NetworkName, commonDomain); !c.overlapping() {
		spec.Domain = scope{c.own.NetworkName, spec.Subnet}.name()
	}
	if !r.whole {
		spec.Ranges = []string{r.first.String() + "-" + r.last.String()}
	}
	if c.own.SliceSize == "" { // with slices whereabouts ignores them
		for _, e := range r.exclude {
			spec.Exclusions = append(spec.Exclusions, exclusion(e, r.subnet))
		}
	}
	if bits := c.sliceBits(); bits > 0 {
		spec.Ranges = nil // those as well
		spec.PerNodeBlockSize = blockSize(r.subnet, bits)
	}
	if gw, err := netip.ParseAddr(c.own.Gateway); err == nil && gw.Is4() == r.subnet.Addr().Is4() {
		spec.Gateway = gw.String()
	}
	for _, route := range c.own.Routes {
		dst, err := netip.ParsePrefix(route.Dst)
		if err == nil && dst.Addr().Is4() == r.subnet.Addr().Is4() {
			spec.Routes = append(spec.Routes, v1alpha1.Route{Dst: dst.Masked().String()})
		}
	}
	return spec
}

// exclusion is the part of a prefix that lies in the subnet.
func exclusion(e, subnet netip.Prefix) v1alpha1.ExcludeRange {
	if e.Bits() < subnet.Bits() {
		e = subnet
	}
	return v1alpha1.ExcludeRange{StartIP: e.Addr().String(), EndIP: lastOf(e).String()}
}

// blockSize is the number of addresses of a slice; a slice of all of the subnet has those
// that a block may have.
func blockSize(subnet netip.Prefix, bits int) int {
	size := 1 << min(62, max(0, subnet.Addr().BitLen()-bits))
	if bits <= subnet.Bits() {
		size -= 2
	}
	return size
}

// target finds the pool of a scope with that specification, or adds one. Networks of one
// scope may differ in what they give of it: then each has a pool, in one domain.
func (p *plan) target(in scope, spec v1alpha1.IPPoolSpec) *target {
	base := in.name()
	taken := map[string]bool{}
	for _, t := range p.pools {
		taken[t.pool.Name] = true
		if t.scope == in && sameSpec(&t.pool.Spec, &spec) {
			return t
		}
	}
	for i := range p.state.pools {
		taken[p.state.pools[i].Name] = true
	}
	name := base
	for n := 2; taken[name]; n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	t := &target{scope: in, pool: &v1alpha1.IPPool{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: p.state.namespace, Annotations: map[string]string{annotationFrom: in.String()}},
		Spec:       spec,
	}}
	p.pools = append(p.pools, t)
	return t
}

// sameSpec compares what whereabouts' configuration says: an operator may have added
// more to the pool.
func sameSpec(a, b *v1alpha1.IPPoolSpec) bool {
	return a.Subnet == b.Subnet && a.Domain == b.Domain && a.PerNodeBlockSize == b.PerNodeBlockSize && a.Gateway == b.Gateway &&
		slices.Equal(a.Ranges, b.Ranges) && slices.Equal(a.Exclusions, b.Exclusions) && slices.Equal(a.Routes, b.Routes)
}

// disable decides which pools may give addresses: see the package's comment.
func (p *plan) disable(used map[*config][]*target) {
	for _, t := range p.pools {
		for _, c := range p.configs {
			if !slices.ContainsFunc(used[c], t.overlaps) {
				continue
			}
			if age := p.state.now.Sub(c.network.changed()); c.from {
				t.held = append(t.held, "network "+c.network.String()+" still uses whereabouts")
			} else if age < p.state.settle {
				t.held = append(t.held, fmt.Sprintf("network %s was changed %v ago: wait for %v", c.network, age.Round(time.Second), (p.state.settle-age).Round(time.Second)))
			}
		}
		var pending []string
		for _, c := range p.claims {
			if c.pending() && c.target.domain() == t.domain() && t.subnet().Contains(c.address) {
				pending = append(pending, c.address.String())
			}
		}
		if len(pending) > 0 {
			t.held = append(t.held, fmt.Sprintf("%d addresses that whereabouts has given are not claimed, %s for one", len(pending), pending[0]))
		}
		t.pool.Spec.Disabled = len(t.held) > 0
	}
}

// leftOver lists reservations that no range has an entry for.
func (p *plan) leftOver() {
	known := map[string]bool{}
	for _, c := range p.claims {
		known[strings.TrimPrefix(c.target.scope.network+"-"+normalize(c.address.String()), "-")] = true
	}
	for _, r := range p.state.reservations {
		if !known[r.Name] {
			p.cannot = append(p.cannot, fmt.Sprintf("OverlappingRangeIPReservation %s: no range has an entry for it that can be claimed (pod %s)", r.Name, r.Spec.PodRef))
		}
	}
}

// targets are the pools of a scope.
func (p *plan) targets(in scope) (out []*target) {
	for _, t := range p.pools {
		if t.scope == in {
			out = append(out, t)
		}
	}
	return out
}

func podOf(a *v1alpha1.IPAllocation) string {
	return a.Spec.PodRef.Namespace + "/" + a.Spec.PodRef.Name
}

// sortedOffsets are the keys of a range's entries, as numbers where they are.
func sortedOffsets(m map[string]entry) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
}

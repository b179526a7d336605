// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func heldText(in []Held) string {
	var out []string
	for _, h := range in {
		out = append(out, h.Node+"="+h.Addr.String())
	}
	return strings.Join(out, " ")
}

func TestUse(t *testing.T) {
	blocks := "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 a=10.9.0.1-10.9.0.9"
	for _, tc := range []struct {
		name                                       string
		spec                                       v1alpha1.IPPoolSpec
		held                                       string
		blocks                                     string // held of size, "earlier"
		gateways, unfit, outside, foreign, current string
	}{
		{name: "nothing", spec: tens(), blocks: "0/10 0/10 0/0 earlier"},
		{name: "in their blocks", spec: tens(), held: "a=10.0.0.1 a=10.0.0.2? b=10.0.0.20 a=10.9.0.3", blocks: "2/10 1/10 0/0 earlier", unfit: "a=10.9.0.3"},
		{name: "in another's block", spec: tens(), held: "a=10.0.0.11 a=10.0.0.12?", blocks: "0/10 2/10 0/0 earlier", outside: "a=10.0.0.11"},
		{name: "in no block", spec: tens(), held: "a=10.0.0.211 a=10.0.0.212? c=10.0.0.213", blocks: "0/10 0/10 0/0 earlier", outside: "a=10.0.0.211 c=10.0.0.213"},
		{name: "foreign", spec: tens(), held: "a=1.2.3.4 a=1.2.3.5? b=fd00::1 b=10.9.0.4", blocks: "0/10 0/10 0/0 earlier", foreign: "a=1.2.3.4 a=1.2.3.5 b=fd00::1 b=10.9.0.4"},
		{name: "excluded", spec: tens(excluding("10.0.0.2-10.0.0.3")), held: "a=10.0.0.1 a=10.0.0.2 a=10.0.0.3?", blocks: "1/8 0/10 0/0 earlier", unfit: "a=10.0.0.2"},
		{name: "excluded in each block", spec: tens(eachExcluding("1-2")), held: "a=10.0.0.1 a=10.0.0.2 a=10.0.0.3?", blocks: "1/8 0/8 0/0 earlier", unfit: "a=10.0.0.2"},
		{name: "the gateway", spec: tens(via("10.0.0.2")), held: "a=10.0.0.1 a=10.0.0.2", blocks: "1/9 0/10 0/0 earlier", gateways: "a=10.0.0.2"},
		{name: "the gateway, requested", spec: tens(via("10.0.0.2")), held: "a=10.0.0.2?", blocks: "0/9 0/10 0/0 earlier"},
		{name: "the gateway, outside", spec: tens(via("10.0.0.99")), held: "a=10.0.0.99", blocks: "0/10 0/10 0/0 earlier", gateways: "a=10.0.0.99", outside: "a=10.0.0.99"},
		{name: "sticky", spec: tens(), held: "a=10.0.0.1! a=10.0.0.11! a=10.0.0.211! c=10.0.0.212!", blocks: "1/10 1/10 0/0 earlier"},
		{name: "sticky, the gateway", spec: tens(via("10.0.0.2")), held: "b=10.0.0.2!", blocks: "0/9 0/10 0/0 earlier", gateways: "b=10.0.0.2"},
		{name: "sticky, the gateway, requested", spec: tens(via("10.0.0.2")), held: "b=10.0.0.2!?", blocks: "0/9 0/10 0/0 earlier"},
		{name: "sticky, excluded", spec: tens(excluding("10.0.0.2-10.0.0.3")), held: "b=10.0.0.2! b=10.0.0.3!? c=10.0.0.212!", blocks: "0/8 0/10 0/0 earlier", unfit: "b=10.0.0.2"},
		{name: "sticky, foreign", spec: tens(), held: "a=1.2.3.4! b=10.9.0.4!", blocks: "0/10 0/10 0/0 earlier", foreign: "a=1.2.3.4 b=10.9.0.4"},
		{name: "the subnet's ends", spec: tens(), held: "a=10.0.0.0? b=10.0.0.255?", blocks: "0/10 0/10 0/0 earlier", unfit: "a=10.0.0.0 b=10.0.0.255"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := ipPool(t, tc.spec)
			assigned := ipBlocks(ipStatus(blocks))
			u := p.Use(assigned, holding(nil, tc.held))
			var got []string
			for _, b := range u.Blocks {
				text := fmt.Sprintf("%d/%d", b.Held, b.Size)
				if b.Earlier {
					text += " earlier"
				}
				got = append(got, text)
			}
			if strings.Join(got, " ") != tc.blocks {
				t.Errorf("blocks %q, want %q", got, tc.blocks)
			}
			for what, pair := range map[string][2]string{
				"gateways": {heldText(u.Gateways), tc.gateways}, "unfit": {heldText(u.Unfit), tc.unfit},
				"outside": {heldText(u.Outside), tc.outside}, "foreign": {heldText(u.Foreign), tc.foreign},
			} {
				if pair[0] != pair[1] {
					t.Errorf("%s: %q, want %q", what, pair[0], pair[1])
				}
			}
		})
	}
}

// What is held of an allocation.
func TestHeld(t *testing.T) {
	domain := v1alpha1.PoolAccess{Domain: "net"}
	o := ObjectOf(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PoolAccess: domain}})
	set := &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", UID: "s"}
	sibling := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "sibling"}
	reservation := &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, UID: "r"}
	const address = "10.0.0.5"
	for _, tc := range []struct {
		name string
		edit func(*v1alpha1.IPAllocationSpec)
		want Held
	}{
		{"held", func(*v1alpha1.IPAllocationSpec) {}, Held{Node: "n"}},
		{"requested", func(s *v1alpha1.IPAllocationSpec) { s.Requested = true }, Held{Node: "n", Requested: true}},
		{"reserved", func(s *v1alpha1.IPAllocationSpec) { s.Owner, s.ContainerID, s.NodeName = reservation, "", "" }, Held{}},
		{"reserved, and held", func(s *v1alpha1.IPAllocationSpec) { s.Owner = reservation }, Held{Node: "n"}},
		{"reserved, and released", func(s *v1alpha1.IPAllocationSpec) { s.Owner, s.ReleasedAt = reservation, &metav1.Time{} }, Held{}},
		{"sticky", func(s *v1alpha1.IPAllocationSpec) { s.Owner = set }, Held{Node: "n", Sticky: true}},
		{"sticky, and released", func(s *v1alpha1.IPAllocationSpec) { s.Owner, s.ReleasedAt = set, &metav1.Time{} }, Held{Sticky: true}},
		{"of another pool", func(s *v1alpha1.IPAllocationSpec) { s.PoolRef = sibling }, Held{Node: "n", Elsewhere: true}},
		{"of another pool that is gone", func(s *v1alpha1.IPAllocationSpec) { s.PoolRef.Name = "gone" }, Held{Node: "n"}},
		{"rests", func(s *v1alpha1.IPAllocationSpec) { s.ReleasedAt = &metav1.Time{} }, Held{Rests: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := &v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "net." + address}, Spec: v1alpha1.IPAllocationSpec{
				PoolRef: o.Ref, Domain: "net", Address: address, NodeName: "n", ContainerID: "c",
			}}
			tc.edit(&a.Spec)
			tc.want.Addr = addr(address)
			if got := slices.Collect(o.HeldBeside([]*v1alpha1.IPAllocation{a}, []v1alpha1.PoolReference{o.Ref, sibling})); !slices.Equal(got, []Held{tc.want}) {
				t.Errorf("%+v, want %+v", got, tc.want)
			}
		})
	}
}

// In a CIDRPool a node has addresses of its own prefix alone, and a gateway of its
// own.
func TestUseOfCIDRPool(t *testing.T) {
	p := cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(2), StaticAllocations: statics("b=10.0.1.0/24@10.0.1.9")})
	held := holding(nil, "a=10.0.0.1 a=10.0.0.2 a=10.0.0.3? a=10.0.1.4? b=10.0.1.9 b=10.0.1.2 b=10.0.1.255? c=10.0.7.7?")
	blocks, _ := p.Carve(nil, []string{"a", "b"}, held[:1])
	u := p.Use(blocks, held)
	if got := heldText(u.Gateways); got != "a=10.0.0.2 b=10.0.1.9" {
		t.Errorf("gateways %q", got)
	}
	if got := heldText(u.Outside); got != "a=10.0.1.4 c=10.0.7.7" {
		t.Errorf("outside %q", got)
	}
	if got := heldText(u.Unfit); got != "b=10.0.1.255" {
		t.Errorf("unfit %q", got)
	}
	if u.Blocks[0].Held != 2 || u.Blocks[0].Size != 253 {
		t.Errorf("%d held of %d", u.Blocks[0].Held, u.Blocks[0].Size)
	}
}

func TestBlockOf(t *testing.T) {
	for _, tc := range []struct {
		name, current, want string
		earlier             bool
	}{
		{name: "none", current: "b=10.0.0.1-10.0.0.10"},
		{name: "one", current: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20", want: "10.0.0.11-10.0.0.20"},
		{name: "an earlier one alone", current: "b=10.0.0.1-10.0.0.10 a=10.0.0.12-10.0.0.19", want: "10.0.0.12-10.0.0.19", earlier: true},
		{name: "an earlier one first", current: "a=9.0.0.1-9.0.0.10 b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20", want: "10.0.0.11-10.0.0.20"},
		{name: "an earlier one last", current: "a=10.0.0.11-10.0.0.20 a=10.9.0.1-10.9.0.10", want: "10.0.0.11-10.0.0.20"},
		{name: "two earlier ones", current: "a=10.8.0.1-10.8.0.10 a=10.9.0.1-10.9.0.10", want: "10.8.0.1-10.8.0.10", earlier: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, ok := ipPool(t, tens()).BlockOf(ipBlocks(ipStatus(tc.current)), "a")
			if !ok {
				if tc.want != "" || b != nil {
					t.Errorf("none, want %s", tc.want)
				}
				return
			}
			if b.Range.String() != tc.want || b.Earlier != tc.earlier {
				t.Errorf("%s, earlier %v, want %s, %v", b.Range, b.Earlier, tc.want, tc.earlier)
			}
		})
	}
}

// However much is wrong, and however long what is wrong is, the text stays short
// and counts what it leaves out.
func TestExplain(t *testing.T) {
	spec := tens()
	for range 1500 {
		spec.Exclusions = append(spec.Exclusions, v1alpha1.ExcludeRange{StartIP: "x", EndIP: "10.0.0.5"})
	}
	for range 3000 {
		spec.Routes = append(spec.Routes, v1alpha1.Route{Dst: "10.0.0.0/8"})
	}
	_, errs := fromIPPool(&v1alpha1.IPPool{Spec: spec})
	many := Explain(errs)
	if len(many) > (maxErrors+1)*(maxError+100) || !strings.Contains(many, `spec.exclusions[0].startIP: Invalid value: "x": is not a valid IP address`) ||
		!strings.HasSuffix(many, fmt.Sprintf("and %d more]", len(errs)-maxErrors)) {
		t.Errorf("%d bytes: %s", len(many), many)
	}
	spec.Exclusions = nil
	_, errs = fromIPPool(&v1alpha1.IPPool{Spec: spec})
	for _, e := range errs {
		if e.Field != "spec.routes" {
			continue
		}
		long := Explain(field.ErrorList{e})
		if len(long) > maxError+100 || !strings.HasPrefix(long, "spec.routes: Invalid value: ") || !strings.Contains(long, "bytes more)") || !strings.HasSuffix(long, "cannot be set if spec.gateway is not set") {
			t.Errorf("%d bytes: %s", len(long), long)
		}
	}
	if got := Cut("äöü", 3); got != "ä... (3 bytes more)" {
		t.Errorf("cut to %q", got)
	}
}

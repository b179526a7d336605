// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// file is what plan reads: an IPPool of namespace sys.
func file(t *testing.T, name, spec string) []*pool.Object {
	t.Helper()
	pools, err := ParsePools(strings.NewReader(fmt.Sprintf("apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: %s, namespace: sys}\nspec: %s\n", name, spec)))
	if err != nil {
		t.Fatal(err)
	}
	return pools
}

// like adds the pool of a file.
func (s *scene) like(t *testing.T, name, spec string) {
	t.Helper()
	at := s.at("sys")
	at.pools = append(at.pools, file(t, name, spec)...)
}

// keptFor is of a pod of a StatefulSet that has ended.
func keptFor(s *v1alpha1.IPAllocationSpec) {
	released(s)
	s.ReleaseCooldown = nil
	s.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ns", Name: "web", UID: "x"}
}

// What was taken from another pool of the domain is the pool's if nobody else gives it.
func TestPlanTakeover(t *testing.T) {
	const access = ", domain: rail, sticky: [StatefulSet]"
	for _, tc := range []struct {
		name, spec string
		earlier    string // spec of the pool that they were taken from; "" if it is gone
		stranded   string
		barred     string
	}{
		{name: "nothing changes", spec: "{subnet: 10.1.0.0/24" + access + "}"},
		{name: "another subnet", spec: "{subnet: 10.5.0.0/25" + access + "}", stranded: "10.1.0.2 10.1.0.200"},
		{name: "half the subnet", spec: "{subnet: 10.1.0.0/25" + access + "}", stranded: "10.1.0.200"},
		{name: "another namespace", spec: "{subnet: 10.1.0.0/24, allowedNamespaces: [other]" + access + "}", barred: "ns"},
		{name: "disabled", spec: "{subnet: 10.1.0.0/24, disabled: true" + access + "}", barred: "ns"},
		{name: "another subnet, and the earlier pool is there", earlier: "{subnet: 10.1.0.0/24}", spec: "{subnet: 10.5.0.0/25" + access + "}"},
		{name: "another subnet, and the earlier pool has another one", earlier: "{subnet: 10.7.0.0/24}", spec: "{subnet: 10.5.0.0/25" + access + "}", stranded: "10.1.0.2 10.1.0.200"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newAPI()
			s.like(t, "rail1b", "{subnet: 10.1.0.0/24"+access+"}")
			if tc.earlier != "" {
				s.like(t, "rail", tc.earlier)
			}
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.claim("sys", "rail", "10.1.0.200", "w1", "web-0", keptFor)
			plans, err := s.connect(t).Plan(t.Context(), file(t, "rail1b", tc.spec))
			if err != nil {
				t.Fatal(err)
			}
			wantPlan(t, plans[0], tc.stranded, tc.barred)
		})
	}
}

func wantPlan(t *testing.T, p Plan, addresses, barred string) {
	t.Helper()
	var got []string
	for _, s := range p.Stranded {
		got = append(got, s.Address)
	}
	slices.Sort(got)
	if strings.Join(got, " ") != addresses || strings.Join(p.Barred, " ") != barred || p.Harms() != (addresses+barred != "") {
		t.Errorf("%+v", p)
	}
}

// What a StatefulSet keeps is lost if the pool is not sticky any more.
func TestPlanNotSticky(t *testing.T) {
	const pool = "subnet: 10.9.0.0/24"
	for _, tc := range []struct {
		name, now, then string
		stranded, says  string
	}{
		{"sticky is removed", "sticky: [StatefulSet]", "", "10.9.0.1", "would not be kept any more"},
		{"sticky stays", "sticky: [StatefulSet]", "sticky: [StatefulSet]", "", ""},
		{"the pool was not sticky", "", "", "", ""},
		{"those of a scale-down are not kept", "sticky: [StatefulSet]", "sticky: [StatefulSet], stickyWhenScaled: Delete", "10.9.0.1", "would not be kept after a scale-down"},
		{"those of a scale-down were not kept", "sticky: [StatefulSet], stickyWhenScaled: Delete", "sticky: [StatefulSet], stickyWhenScaled: Delete", "", ""},
		{"those of a scale-down are kept", "sticky: [StatefulSet], stickyWhenScaled: Delete", "sticky: [StatefulSet]", "", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newAPI()
			s.like(t, "st", "{"+strings.TrimSuffix(pool+", "+tc.now, ", ")+"}")
			s.claim("sys", "st", "10.9.0.1", "w1", "web-0", keptFor)
			s.claim("sys", "st", "10.9.0.2", "w1", "web-1", keptFor, func(s *v1alpha1.IPAllocationSpec) { s.ReleasedAt = nil })
			s.claim("sys", "st", "10.9.0.3", "w1", "a")
			s.claim("sys", "st", "10.9.0.4", "w1", "b", reservedBy, released)
			plans, err := s.connect(t).Plan(t.Context(), file(t, "st", "{"+strings.TrimSuffix(pool+", "+tc.then, ", ")+"}"))
			if err != nil {
				t.Fatal(err)
			}
			wantPlan(t, plans[0], tc.stranded, "")
			if len(plans[0].Stranded) > 0 && !strings.Contains(plans[0].Stranded[0].Why, tc.says) {
				t.Errorf("%+v", plans[0])
			}
		})
	}
}

// An overlap that check would report is one of the plan: of another namespace, and of the file.
func TestPlanOverlaps(t *testing.T) {
	const head = "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: %s, namespace: %s}\nspec: {subnet: %s%s}\n"
	for _, tc := range []struct {
		name, file string
		want       []string // of each pool
	}{
		{"another namespace", fmt.Sprintf(head, "x", "b", "10.1.0.0/24", ""), []string{"sys/rail"}},
		{"another namespace, and it gives nothing", fmt.Sprintf(head, "x", "b", "10.1.0.0/24", ", disabled: true"), []string{""}},
		{"another subnet", fmt.Sprintf(head, "x", "b", "10.2.0.0/24", ""), []string{""}},
		{"two of the file", fmt.Sprintf(head, "x", "sys", "10.6.0.0/24", "") + "---\n" + fmt.Sprintf(head, "z", "sys", "10.6.0.0/16", ""), []string{"z (", "x ("}},
		{"the same domain", fmt.Sprintf(head, "x", "sys", "10.6.0.0/24", ", domain: d") + "---\n" + fmt.Sprintf(head, "z", "sys", "10.6.0.0/16", ", domain: d"), []string{"", ""}},
		{"the file moves the other one away", fmt.Sprintf(head, "rail", "sys", "10.7.0.0/24", "") + "---\n" + fmt.Sprintf(head, "x", "sys", "10.1.0.0/24", ""), []string{"", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pools, err := ParsePools(strings.NewReader(tc.file))
			if err != nil {
				t.Fatal(err)
			}
			s := newAPI()
			s.like(t, "rail", "{subnet: 10.1.0.0/24}")
			plans, err := s.connect(t).Plan(t.Context(), pools)
			if err != nil {
				t.Fatal(err)
			}
			for i, p := range plans {
				if all := strings.Join(p.Overlaps, ", "); (all == "") != (tc.want[i] == "") || !strings.Contains(all, tc.want[i]) {
					t.Errorf("%s overlaps with %q", p.Name, all)
				}
			}
		})
	}
}

// A pool of another kind says nothing about the namespace of a file's pool.
func TestPlanNamespaceOfKind(t *testing.T) {
	const file = "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: CIDRPool\nmetadata: {name: rail}\nspec: {cidr: 10.1.0.0/16, perNodeNetworkPrefix: 24}\n"
	pools, err := ParsePools(strings.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	s := newAPI()
	s.like(t, "rail", "{subnet: 10.1.0.0/24}")
	s.pool("b", "other", "10.9.0.0/24")
	if plans, err := s.connect(t).Plan(t.Context(), pools); err == nil || !strings.Contains(err.Error(), "has no metadata.namespace: say it with -n") {
		t.Errorf("%+v, %v", plans, err)
	}
}

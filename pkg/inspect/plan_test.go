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

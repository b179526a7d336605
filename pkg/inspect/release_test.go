// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// What release says about an allocation, and what others say about how it becomes free.
func TestReleasable(t *testing.T) {
	statefulSet := func(s *v1alpha1.IPAllocationSpec) {
		s.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ns", Name: "web", UID: "x"}
	}
	proposed := func(s *v1alpha1.IPAllocationSpec) { s.ContainerID = "" }
	const edit, force = "kubectl edit ipr -n sys res", "kubectl ipam release -n sys rail.10.1.0.2 --force"
	for _, tc := range []struct {
		name    string
		change  []func(*v1alpha1.IPAllocationSpec)
		refusal string
		doubt   string
		freeing string
	}{
		{name: "reserved by an IPReservation", change: []func(*v1alpha1.IPAllocationSpec){proposed, reservedBy}, refusal: edit, freeing: edit},
		{name: "reserved by an IPReservation, and used since", change: []func(*v1alpha1.IPAllocationSpec){released, reservedBy}, refusal: edit, freeing: edit},
		{name: "kept for a StatefulSet", change: []func(*v1alpha1.IPAllocationSpec){released, statefulSet}, doubt: "another address", freeing: force},
		{name: "proposed for a StatefulSet", change: []func(*v1alpha1.IPAllocationSpec){proposed, statefulSet}, doubt: "another address", freeing: force},
		{name: "reserved by an administrator", change: []func(*v1alpha1.IPAllocationSpec){reserved}, freeing: strings.TrimSuffix(force, " --force")},
		{name: "a machine moves from it", change: []func(*v1alpha1.IPAllocationSpec){movesTo("b", "w2")}, refusal: "a machine moves to pod ns/b with it: wait", freeing: "wait"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newAPI()
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone", tc.change...)
			s.pod.Name, s.pod.UID = "b", uid("b") // where a machine moves to
			r, err := s.connect(t).Releasable(t.Context(), "10.1.0.2")
			if err != nil {
				t.Fatal(err)
			}
			is := func(got, want string) bool { return (want == "") == (got == "") && strings.Contains(got, want) }
			if !is(r.Refusal, tc.refusal) || !is(r.Doubt, tc.doubt) {
				t.Errorf("refusal %q, doubt %q", r.Refusal, r.Doubt)
			}
			a := s.at("sys").allocations[0]
			if got := freeing(a, s.verdict(s.at("sys"), a)); !strings.Contains(got, tc.freeing) || strings.Contains(got, "--force") != strings.Contains(tc.freeing, "--force") {
				t.Errorf("it becomes free so: %s", got)
			}
		})
	}
}

// An allocation whose own pod is gone is not released, and nobody advises to, if another pod has its
// address by its network-status, or if whoever asks may not see that.
func TestReleaseWornAddress(t *testing.T) {
	unreachable := func(s *api) { s.nodes["w1"].Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable}} }
	for _, tc := range []struct {
		name  string
		plant func(*api)
		doubt string
		frees bool // the mend of why is to release it
	}{
		{name: "nobody has it", plant: func(*api) {}, frees: true},
		{name: "another pod has it", plant: func(s *api) { s.scene.pod("b", "w1", "n net1 10.1.0.2") }, doubt: "pod ns/b has the address by its network-status"},
		{name: "another pod has it, of a network that is gone", plant: func(s *api) {
			s.scene.pod("b", "w1", "gone net1 10.1.0.2")
		}, doubt: "pod ns/b has the address by its network-status"},
		{name: "another pod has it, and it may be leaked", plant: func(s *api) {
			s.scene.pod("b", "w2", "n net1 10.1.0.2")
			unreachable(s)
		}, doubt: "pod ns/b has the address by its network-status"},
		{name: "another pod has had it, and has ended", plant: func(s *api) { s.scene.pod("b", "w1", "n net1 10.1.0.2").Ended = true }, frees: true},
		{name: "another pod has the address of another domain", plant: func(s *api) {
			s.scene.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "other", "10.1.0.2", "w1", "b")
		}, frees: true},
		{name: "that may not be looked at", plant: func(s *api) { s.blind = true }, doubt: "which pods have the address", frees: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newAPI()
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", `"poolName": "rail"`)
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
			s.pod.Annotations[ledger.AnnotationNetworks] = `[{"name": "n", "ips": ["10.1.0.2/24"]}]`
			tc.plant(s)
			r, err := s.connect(t).Releasable(t.Context(), "rail.10.1.0.2")
			if err != nil || r.Refusal != "" || (r.Doubt == "") != (tc.doubt == "") || !strings.Contains(r.Doubt, tc.doubt) {
				t.Errorf("%+v, %v", r, err)
			}
			chains, err := s.connect(t).Why(t.Context(), "ns", "a")
			if err != nil {
				t.Fatal(err)
			}
			mend := chains[0].Broken().Mend
			if strings.Contains(mend, "kubectl ipam release") != tc.frees || strings.Contains(mend, "do not release it, but start that pod again: kubectl delete pod -n ns b") == tc.frees {
				t.Errorf("why says %s", mend)
			}
		})
	}
}

// Whoever may look in one namespace only says in which an address is to be released.
func TestReleasableWhereLimited(t *testing.T) {
	s := newAPI()
	s.barred = true
	s.pool("sys", "rail", "10.1.0.0/24", "w1")
	s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
	c := s.connect(t)
	c.Fallback = "sys"
	if _, err := c.Releasable(t.Context(), "10.1.0.2"); err == nil || !strings.Contains(err.Error(), "-n") {
		t.Errorf("an address: %v", err)
	}
	c = s.connect(t)
	c.Namespace = "sys"
	if _, err := c.Releasable(t.Context(), "10.1.0.2"); err != nil {
		t.Errorf("with a namespace: %v", err)
	}
}

// What an answer calls an allocation can be said back.
func TestReleasableNames(t *testing.T) {
	s := newAPI()
	for _, namespace := range []string{"other", "sys"} {
		s.pool(namespace, "rail", "10.1.0.0/24", "w1")
	}
	s.claim("other", "rail", "10.1.0.2", "w1", "gone")
	s.claim("other", "rail", "10.1.0.3", "w1", "gone")
	s.claim("sys", "rail", "10.1.0.3", "w1", "gone")
	c := s.connect(t)
	for _, text := range []string{"rail.10.1.0.2", "ipa/rail.10.1.0.2", "ipallocation/rail.10.1.0.2", "other/rail.10.1.0.3"} {
		if r, err := c.Releasable(t.Context(), text); err != nil || r.Namespace != "other" || !strings.HasSuffix(text, r.Allocation) {
			t.Errorf("%s is %+v, %v", text, r, err)
		}
	}
	if _, err := c.Releasable(t.Context(), "10.1.0.3"); err == nil || !strings.Contains(err.Error(), `name one of ["other/rail.10.1.0.3" "sys/rail.10.1.0.3"]`) {
		t.Errorf("an address of two: %v", err)
	}
}

// A namespace in which there is nothing to look at is none in which all is well.
func TestUnknownNamespace(t *testing.T) {
	s := newAPI()
	s.pool("sys", "rail", "10.1.0.0/24", "w1")
	c := s.connect(t)
	c.Namespace = "typo"
	_, check := c.Check(t.Context())
	_, leaks := c.Leaks(t.Context(), "")
	for what, err := range map[string]error{"check": check, "leaks": leaks} {
		if err == nil || !strings.Contains(err.Error(), `namespace "typo" has no pool and no allocation`) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// An answer says which namespace was looked at, if that was only one.
func TestOnlyNamespace(t *testing.T) {
	s := newAPI()
	s.pool("sys", "rail", "10.1.0.0/24", "w1")
	for namespace, want := range map[string]string{"typo": `there is no pool "rail" in namespace typo`, "": `there is no pool "none": kubectl ipam show lists all`} {
		name := "rail"
		if namespace == "" {
			name = "none"
		}
		c := s.connect(t)
		c.Namespace = namespace
		_, show := c.Show(t.Context(), name, false)
		_, free := c.Free(t.Context(), name)
		_, leaks := c.Leaks(t.Context(), name)
		for what, err := range map[string]error{"show": show, "free": free, "leaks": leaks} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v, want %s", what, err, want)
			}
		}
	}
}

// The leaks of a pool are what counts in it, also if it was taken from an earlier pool of the domain.
func TestLeaksOfTakeover(t *testing.T) {
	s := newAPI()
	s.like(t, "rail1b", "{subnet: 10.1.0.0/24, domain: rail}")
	s.like(t, "rail1c", "{subnet: 10.2.0.0/24, domain: rail}")
	s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
	for name, want := range map[string]int{"rail1b": 1, "rail": 1, "rail1c": 0, "": 1} {
		if leaks, err := s.connect(t).Leaks(t.Context(), name); err != nil || len(leaks) != want {
			t.Errorf("%q: %v, %v", name, leaks, err)
		}
	}
}

// An allocation may be named with its namespace.
func TestWhoInNamespace(t *testing.T) {
	s := newAPI()
	for _, namespace := range []string{"one", "two"} {
		s.claim(namespace, "rail", "10.1.0.2", "w1", "gone")
		all := s.at(namespace).allocations
		all[0].UID = types.UID(namespace)
	}
	for text, want := range map[string]int{"rail.10.1.0.2": 2, "two/rail.10.1.0.2": 1, "three/rail.10.1.0.2": 0} {
		who, err := ParseWho(text, "ns")
		if err != nil {
			t.Fatal(err)
		}
		if found, err := s.connect(t).Who(t.Context(), who); err != nil || len(found) != want {
			t.Errorf("%s: %v, %v", text, found, err)
		}
	}
}

// A pool of a namespace that was not looked at strands nobody knows what.
func TestPlanElsewhere(t *testing.T) {
	const file = "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: rail, namespace: sys}\nspec: {subnet: 10.1.0.0/24, perNodeBlockSize: 16}\n"
	for _, tc := range []struct {
		name   string
		change func(*api, *Cluster)
		err    string
	}{
		{"-n", func(_ *api, c *Cluster) { c.Namespace = "x" }, "the file's pool is of namespace sys, and only x was looked at: --pools-namespace sys"},
		{"limited", func(s *api, c *Cluster) { s.barred, c.Fallback = true, "x" }, "the file's pool is of namespace sys, and only x was looked at: --pools-namespace sys"},
		{"the same", func(_ *api, c *Cluster) { c.Namespace = "sys" }, ""},
		{"all", func(*api, *Cluster) {}, ""},
	} {
		pools, err := ParsePools(strings.NewReader(file))
		if err != nil {
			t.Fatal(err)
		}
		s := newAPI()
		c := s.connect(t)
		tc.change(s, c)
		if _, err = c.Plan(t.Context(), pools); (err == nil) != (tc.err == "") || err != nil && err.Error() != tc.err {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.err)
		}
	}
}

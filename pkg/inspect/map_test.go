// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// copyOf is a copy that has read pools and allocations, the nodes a and b, which are ready,
// and the pod ns/lives.
func copyOf(objects ...any) *Copy {
	c := &Copy{}
	s := &source{Source: Source{Resource: "all", Read: true}, copy: c, objects: map[string]any{}}
	c.sources = []*source{s}
	for _, node := range []string{"a", "b"} {
		s.objects[node] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	}
	s.objects["ns/lives"] = &pod{Pod: reclaim.Pod{UID: "uid", Placed: true, Node: "a"}}
	for i, obj := range objects {
		if o := pool.ObjectOf(obj); o != nil {
			obj = o
		}
		s.objects[fmt.Sprint("object ", i)] = obj
	}
	c.version = 1
	return c
}

func poolOf(spec v1alpha1.IPPoolSpec, blocks ...v1alpha1.Allocation) *v1alpha1.IPPool {
	out := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Namespace: "pools", Name: "p"}, Spec: spec}
	out.Status.Allocations = blocks
	return out
}

func allocated(address, node, podName string) *v1alpha1.IPAllocation {
	addr := netip.MustParseAddr(address)
	a := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Namespace: "pools", Name: v1alpha1.AllocationName("p", addr)},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: pool.DefaultKind, Name: "p"}, Address: address, NodeName: node,
			PodRef: v1alpha1.PodReference{Namespace: "ns", Name: podName, UID: "uid"}, ContainerID: "c-" + podName, InterfaceName: "net1",
		},
	}
	if podName == "" { // a reservation
		a.Spec.ContainerID, a.Spec.InterfaceName, a.Spec.PodRef = "", "", v1alpha1.PodReference{}
	}
	return a
}

func resting(address string) *v1alpha1.IPAllocation {
	a := allocated(address, "a", "gone")
	a.Spec.ReleaseCooldown, a.Spec.ReleasedAt = &metav1.Duration{Duration: time.Hour}, &metav1.Time{Time: time.Now()}
	return a
}

var ref = PoolRef{"pools", pool.DefaultKind, "p"}

func TestMapOfBlocks(t *testing.T) {
	s := copyOf(
		poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/27", PerNodeBlockSize: 8, Gateway: "10.0.0.1", Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.0.0.7", EndIP: "10.0.0.8"}}},
			v1alpha1.Allocation{NodeName: "a", StartIP: "10.0.0.1", EndIP: "10.0.0.8"}, v1alpha1.Allocation{NodeName: "b", StartIP: "10.0.0.17", EndIP: "10.0.0.24"}),
		allocated("10.0.0.2", "a", "lives"), allocated("10.0.0.3", "a", "gone"), allocated("10.0.0.17", "", ""), resting("10.0.0.4"),
		allocated("10.0.0.30", "gone", "gone"),
	).Snapshot()
	m, err := s.Map(ref, netipx.IPRange{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range m.Parts {
		got = append(got, fmt.Sprintf("%s %s-%s %d/%d %d %v %s", p.Node, p.From, p.To, p.Held, p.Size, p.Leaked, p.Unassigned, p.Cells))
	}
	want := []string{
		"a 10.0.0.1-10.0.0.8 3/5 1 false 1g1h1l1c2f2x",
		" 10.0.0.9-10.0.0.16 0/8 0 true 8u",
		"b 10.0.0.17-10.0.0.24 1/8 0 false 1r7f",
		" 10.0.0.25-10.0.0.30 1/6 1 true 5u1l",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") || !m.Whole || m.Cells != "" || m.Sparse {
		t.Errorf("got\n%s\nwant\n%s\n%+v", strings.Join(got, "\n"), strings.Join(want, "\n"), m)
	}

	for _, zoomed := range []struct{ from, to string }{{"10.0.0.1", "10.0.0.8"}, {"10.0.0.2", "10.0.0.4"}} {
		m, err = s.Map(ref, netipx.IPRangeFrom(netip.MustParseAddr(zoomed.from), netip.MustParseAddr(zoomed.to)))
		if err != nil || m.Whole || m.Block == nil || m.Block.Node != "a" || m.From != zoomed.from || len(m.Parts) > 0 || m.Cells == "" {
			t.Errorf("%v: %v, %+v", zoomed, err, m)
		}
	}
	if m.Cells != "1h1l1c" {
		t.Errorf("cells %s", m.Cells)
	}
	at, err := s.MapAt(ref, netip.MustParseAddr("10.0.0.20"))
	if err != nil || at.From != "10.0.0.17" || at.To != "10.0.0.24" || at.Block == nil || at.Block.Node != "b" {
		t.Errorf("%v, %+v", err, at)
	}
	if _, err = s.MapAt(ref, netip.MustParseAddr("10.0.0.200")); err == nil {
		t.Error("an address outside of the pool has a map")
	}
	if _, err = s.Map(PoolRef{"pools", pool.DefaultKind, "q"}, netipx.IPRange{}); !errors.As(err, new(*NoPoolError)) {
		t.Errorf("a pool that does not exist: %v", err)
	}
}

func TestMapOfSharedPool(t *testing.T) {
	s := copyOf(poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16"}), allocated("10.0.3.7", "a", "lives")).Snapshot()
	m, err := s.Map(ref, netipx.IPRange{})
	if err != nil || len(m.Parts) != 256 || m.Sparse || m.Parts[0].Cells != "1x255f" || m.Parts[3].Cells != "7f1h248f" || m.Parts[3].Held != 1 || m.Parts[255].To != "10.0.255.255" {
		t.Errorf("%v, %d parts, %+v", err, len(m.Parts), m.Parts[:min(4, len(m.Parts))])
	}
	small, err := copyOf(poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/29"})).Snapshot().Map(ref, netipx.IPRange{})
	if err != nil || !small.Whole || small.Cells != "1x6f1x" {
		t.Errorf("%v, %+v", err, small)
	}
}

// Of a large IPv6 pool, only what is held is shown, in windows large enough to be few.
func TestMapOfIPv6(t *testing.T) {
	objects := []any{poolOf(v1alpha1.IPPoolSpec{Subnet: "fd00::/64"})}
	addr := netip.MustParseAddr("fd00::1:0")
	for range 3 {
		objects = append(objects, allocated(addr.String(), "a", "lives"), allocated(addr.Next().String(), "a", "lives"))
		raw := addr.As16()
		raw[12]++
		addr = netip.AddrFrom16(raw)
	}
	m, err := copyOf(objects...).Snapshot().Map(ref, netipx.IPRange{})
	if err != nil || !m.Sparse || len(m.Parts) != 3 || m.Parts[0].From != "fd00::1:0" || m.Parts[0].To != "fd00::1:ff" || m.Parts[1].Held != 2 || m.Parts[1].Cells != "2h254f" {
		t.Errorf("%v, %+v", err, m)
	}
	at, err := copyOf(objects...).Snapshot().MapAt(ref, netip.MustParseAddr("fd00::9:8:7"))
	if err != nil || at.From != "fd00::9:8:0" || at.Cells != "256f" {
		t.Errorf("%v, %+v", err, at)
	}

	objects = objects[:1]
	for i := range 1500 {
		objects = append(objects, allocated(netip.AddrFrom16([16]byte{0xfd, 12: byte(i >> 4), 13: byte(i << 4), 15: 1}).String(), "a", "lives"))
	}
	m, err = copyOf(objects...).Snapshot().Map(ref, netipx.IPRange{})
	held := 0
	for _, p := range m.Parts {
		held += p.Held
		if p.Cells != "" {
			t.Errorf("%s-%s has cells", p.From, p.To)
		}
	}
	if err != nil || !m.Sparse || len(m.Parts) == 0 || len(m.Parts) > maxWindows || held != 1500 {
		t.Errorf("%v, %d windows, %d held", err, len(m.Parts), held)
	}
}

func TestSizeOf(t *testing.T) {
	for text, want := range map[string]int64{
		"10.0.0.0-10.0.0.0": 1, "10.0.0.0-10.0.255.255": 1 << 16, "0.0.0.0-255.255.255.255": 1 << 32, "fd00::-fd00::ff": 256,
		"fd00::-fd00::ffff:ffff:ffff:ffff": greatest, "fd00::-fd00::1:0:0:0:0": greatest, "fd00::ffff:ffff:ffff:ffff-fd00:0:0:1::": 2, "::-fd00::": greatest,
	} {
		if got := sizeOf(netipx.MustParseIPRange(text)); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
	}
}

func TestSearch(t *testing.T) {
	s := copyOf(poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16"}), allocated("10.0.3.7", "a", "lives"), allocated("10.0.3.70", "b", "gone")).Snapshot()
	for text, want := range map[string]string{
		"10.0.3.7": "10.0.3.7", " 10.0.3. ": "10.0.3.7 10.0.3.70", "ns/liv": "10.0.3.7", "GONE": "10.0.3.70", "c-lives": "10.0.3.7", "nobody": "", "": "", "10.0.9.9": "", "10.0.3.7/24": "10.0.3.7", "[10.0.3.70]": "10.0.3.70",
	} {
		var got []string
		result := s.Search(text)
		for _, f := range result.Items {
			got = append(got, f.Address)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if in := len(result.Pools); strings.Count(text, ".") == 3 && !strings.HasSuffix(text, " ") && in != 1 {
			t.Errorf("%q is in %d pools", text, in)
		}
	}
	if f := s.Search("gone").Items[0]; f.Command != "kubectl ipam release -n pools p.10.0.3.70" || f.Verdict.State != stateLeaked {
		t.Errorf("%+v", f)
	}
}

// What pods do is not known before they have been read.
func TestNotRead(t *testing.T) {
	c := copyOf(poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16"}), allocated("10.0.3.7", "a", "gone"))
	c.sources[0].Read = false
	s := c.Snapshot()
	if sum := s.Summary(); sum.Leaks != nil || sum.Allocations != 1 || sum.Pools != 1 {
		t.Errorf("%+v", sum)
	}
	if got := s.Search("gone").Items[0].Verdict.State; got != stateUnknown {
		t.Errorf("the state is %s", got)
	}
}

// A snapshot is made at most twice a second, and the next one has what came meanwhile.
func TestNext(t *testing.T) {
	c := copyOf(poolOf(v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16"}))
	first := c.Snapshot()
	if err := c.sources[0].Delete(&v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "x"}}); err != nil {
		t.Fatal(err)
	}
	if again := c.Snapshot(); again != first {
		t.Error("another snapshot at once")
	}
	next, err := c.Next(t.Context(), first.Version)
	if err != nil || next.Version != first.Version+1 {
		t.Errorf("%v, %+v", err, next)
	}
}

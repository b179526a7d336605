// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go4.org/netipx"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// exclude reads "first-last first-last".
func exclude(text string) []v1alpha1.ExcludeRange {
	var out []v1alpha1.ExcludeRange
	for _, f := range strings.Fields(text) {
		from, to, _ := strings.Cut(f, "-")
		out = append(out, v1alpha1.ExcludeRange{StartIP: from, EndIP: to})
	}
	return out
}

// positions reads "0-3 7-7".
func positions(text string) []v1alpha1.ExcludeIndexRange {
	var out []v1alpha1.ExcludeIndexRange
	for _, f := range strings.Fields(text) {
		from, to, _ := strings.Cut(f, "-")
		i, _ := strconv.Atoi(from)
		j, _ := strconv.Atoi(to)
		out = append(out, v1alpha1.ExcludeIndexRange{StartIndex: int32(i), EndIndex: int32(j)})
	}
	return out
}

// statics reads "node=prefix@gateway =prefix"; an empty node keeps the prefix
// for nobody.
func statics(text string) []v1alpha1.CIDRPoolStaticAllocation {
	var out []v1alpha1.CIDRPoolStaticAllocation
	for _, a := range cidrStatus(text) {
		out = append(out, v1alpha1.CIDRPoolStaticAllocation(a))
	}
	return out
}

func index(i int32) *int32 { return &i }

// ipStatus reads "node=first-last", and ipText writes it.
func ipStatus(text string) []v1alpha1.Allocation {
	var out []v1alpha1.Allocation
	for _, f := range strings.Fields(text) {
		node, r, _ := strings.Cut(f, "=")
		from, to, _ := strings.Cut(r, "-")
		out = append(out, v1alpha1.Allocation{NodeName: node, StartIP: from, EndIP: to})
	}
	return out
}

func ipText(in []v1alpha1.Allocation) string {
	var out []string
	for _, a := range in {
		out = append(out, a.NodeName+"="+a.StartIP+"-"+a.EndIP)
	}
	return strings.Join(out, " ")
}

// cidrStatus reads "node=prefix@gateway", and cidrText writes it.
func cidrStatus(text string) []v1alpha1.CIDRPoolAllocation {
	var out []v1alpha1.CIDRPoolAllocation
	for _, f := range strings.Fields(text) {
		node, r, _ := strings.Cut(f, "=")
		prefix, gateway, _ := strings.Cut(r, "@")
		out = append(out, v1alpha1.CIDRPoolAllocation{NodeName: node, Prefix: prefix, Gateway: gateway})
	}
	return out
}

func cidrText(in []v1alpha1.CIDRPoolAllocation) string {
	var out []string
	for _, a := range in {
		text := a.NodeName + "=" + a.Prefix
		if a.Gateway != "" {
			text += "@" + a.Gateway
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func ipPool(t testing.TB, spec v1alpha1.IPPoolSpec) *Pool {
	t.Helper()
	p, errs := fromIPPool(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pool1"}, Spec: spec})
	if len(errs) > 0 {
		t.Fatalf("fromIPPool: %v", errs)
	}
	return p
}

func cidrPool(t testing.TB, spec v1alpha1.CIDRPoolSpec) *Pool {
	t.Helper()
	p, errs := fromCIDRPool(&v1alpha1.CIDRPool{ObjectMeta: metav1.ObjectMeta{Name: "rail1"}, Spec: spec})
	if len(errs) > 0 {
		t.Fatalf("fromCIDRPool: %v", errs)
	}
	return p
}

// holding reads what nodes hold: "a" is the first address of a's first block in
// current, "a=10.0.0.5" an address, and "a=10.0.0.5?" a requested one.
func holding(current []Assignment, text string) []Held {
	var out []Held
	for _, f := range strings.Fields(text) {
		node, a, found := strings.Cut(f, "=")
		if found {
			a, requested := strings.CutSuffix(a, "?")
			a, sticky := strings.CutSuffix(a, "!")
			out = append(out, Held{Node: node, Addr: addr(a), Requested: requested, Sticky: sticky})
			continue
		}
		if i := slices.IndexFunc(current, func(a Assignment) bool { return a.Node == node }); i >= 0 {
			out = append(out, Held{Node: node, Addr: current[i].Range.From()})
		}
	}
	return out
}

func seed() v1alpha1.IPPoolSpec {
	return v1alpha1.IPPoolSpec{Subnet: "192.168.0.0/16", PerNodeBlockSize: 100, Gateway: "192.168.0.1", Exclusions: exclude("192.168.0.0-192.168.0.10")}
}

func tens(edit ...func(*v1alpha1.IPPoolSpec)) v1alpha1.IPPoolSpec {
	spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10}
	for _, e := range edit {
		e(&spec)
	}
	return spec
}

func blockSize(n int) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) { s.PerNodeBlockSize = n }
}

func excluding(text string) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) { s.Exclusions = exclude(text) }
}

func eachExcluding(text string) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) { s.PerNodeExclusions = positions(text) }
}

func via(gateway string) func(*v1alpha1.IPPoolSpec) {
	return func(s *v1alpha1.IPPoolSpec) { s.Gateway = gateway }
}

// anySubnet lets a test's pools reach the ends of the address families, where no
// subnet may be.
func anySubnet(t *testing.T) {
	all := notUnicast
	notUnicast = nil
	t.Cleanup(func() { notUnicast = all })
}

func TestCarveIPPool(t *testing.T) {
	anySubnet(t)
	small := func(subnet string, size int) v1alpha1.IPPoolSpec {
		return v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: size}
	}
	tests := []struct {
		name     string
		spec     v1alpha1.IPPoolSpec
		current  string
		nodes    string
		holds    string
		want     string
		unserved string
	}{
		// Where blocks lie.
		{name: "seed pool", spec: seed(), nodes: "kind-control-plane kind-worker kind-worker2",
			want: "kind-control-plane=192.168.0.1-192.168.0.100 kind-worker=192.168.0.101-192.168.0.200 kind-worker2=192.168.0.201-192.168.1.44"},
		{name: "nodes in any order, by name", spec: tens(), nodes: "c a b",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},
		{name: "a node named twice is one node", spec: tens(), nodes: "b a b",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "no nodes", spec: tens()},
		{name: "last partial block is not given", spec: tens(blockSize(100)), nodes: "a b c",
			want: "a=10.0.0.1-10.0.0.100 b=10.0.0.101-10.0.0.200", unserved: "c"},
		{name: "block that ends on the broadcast address is not given", spec: tens(blockSize(51)), nodes: "a b c d e",
			want:     "a=10.0.0.1-10.0.0.51 b=10.0.0.52-10.0.0.102 c=10.0.0.103-10.0.0.153 d=10.0.0.154-10.0.0.204",
			unserved: "e"},
		{name: "block that ends before the broadcast address is given", spec: tens(blockSize(127)), nodes: "a b",
			want: "a=10.0.0.1-10.0.0.127 b=10.0.0.128-10.0.0.254"},
		{name: "one block of all hosts", spec: tens(blockSize(254)), nodes: "a b",
			want: "a=10.0.0.1-10.0.0.254", unserved: "b"},
		{name: "host bits in the subnet", spec: small("10.0.0.77/24", 10), nodes: "a", want: "a=10.0.0.1-10.0.0.10"},
		{name: "/31 in one block", spec: small("10.0.0.0/31", 2), nodes: "a b", want: "a=10.0.0.0-10.0.0.1", unserved: "b"},
		{name: "/31 in two blocks", spec: small("10.0.0.4/31", 1), nodes: "a b c", want: "a=10.0.0.4-10.0.0.4 b=10.0.0.5-10.0.0.5", unserved: "c"},
		{name: "/32", spec: small("10.0.0.9/32", 1), nodes: "a b", want: "a=10.0.0.9-10.0.0.9", unserved: "b"},
		{name: "/127 in one block", spec: small("fd00::/127", 2), nodes: "a", want: "a=fd00::-fd00::1"},
		{name: "/127 in two blocks", spec: small("fd00::2/127", 1), nodes: "a b c", want: "a=fd00::2-fd00::2 b=fd00::3-fd00::3", unserved: "c"},
		{name: "/128", spec: small("fd00::7/128", 1), nodes: "a", want: "a=fd00::7-fd00::7"},
		{name: "/30", spec: small("10.0.0.0/30", 1), nodes: "a b c", want: "a=10.0.0.1-10.0.0.1 b=10.0.0.2-10.0.0.2", unserved: "c"},
		{name: "IPv6", spec: small("fd52:2eb5:44::/48", 500), nodes: "a b",
			want: "a=fd52:2eb5:44::1-fd52:2eb5:44::1f4 b=fd52:2eb5:44::1f5-fd52:2eb5:44::3e8"},
		{name: "IPv6 has no broadcast address", spec: small("fd00::/126", 3), nodes: "a b", want: "a=fd00::1-fd00::3", unserved: "b"},
		{name: "IPv6 last partial block", spec: small("fd00::/125", 3), nodes: "a b c",
			want: "a=fd00::1-fd00::3 b=fd00::4-fd00::6", unserved: "c"},
		{name: "end of the IPv4 space", spec: small("255.255.255.252/30", 1), nodes: "a b c",
			want: "a=255.255.255.253-255.255.255.253 b=255.255.255.254-255.255.255.254", unserved: "c"},
		{name: "end of the IPv6 space", spec: small("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", 1), nodes: "a b c",
			want:     "a=ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe b=ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
			unserved: "c"},

		// What is excluded.
		{name: "wholly excluded block", spec: tens(excluding("10.0.0.11-10.0.0.20")), nodes: "a b",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.21-10.0.0.30"},
		{name: "several wholly excluded blocks in a row", spec: tens(excluding("10.0.0.1-10.0.0.40")), nodes: "a", want: "a=10.0.0.41-10.0.0.50"},
		{name: "exclusion that ends within a block", spec: tens(excluding("10.0.0.0-10.0.0.39")), nodes: "a", want: "a=10.0.0.31-10.0.0.40"},
		{name: "all but one address of a block", spec: tens(excluding("10.0.0.2-10.0.0.10")), nodes: "a", want: "a=10.0.0.1-10.0.0.10"},
		{name: "two adjacent exclusions cover a block", spec: tens(excluding("10.0.0.1-10.0.0.5 10.0.0.6-10.0.0.10")), nodes: "a", want: "a=10.0.0.11-10.0.0.20"},
		{name: "two overlapping exclusions cover a block", spec: tens(excluding("10.0.0.4-10.0.0.10 10.0.0.1-10.0.0.7")), nodes: "a", want: "a=10.0.0.11-10.0.0.20"},
		{name: "everything excluded", spec: tens(excluding("10.0.0.0-10.0.0.255")), nodes: "b a", unserved: "a b"},
		{name: "most of a /48 excluded, tiny blocks", nodes: "a b c d e",
			spec:     v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 4, Exclusions: exclude("fd00::5-fd00:0:0:ffff:ffff:ffff:ffff:fff0")},
			want:     "a=fd00::1-fd00::4 b=fd00::ffff:ffff:ffff:ffff:fff1-fd00::ffff:ffff:ffff:ffff:fff4 c=fd00::ffff:ffff:ffff:ffff:fff5-fd00::ffff:ffff:ffff:ffff:fff8 d=fd00::ffff:ffff:ffff:ffff:fff9-fd00::ffff:ffff:ffff:ffff:fffc",
			unserved: "e"},
		{name: "per-node exclusions that leave something", spec: tens(eachExcluding("0-8")), nodes: "a", want: "a=10.0.0.1-10.0.0.10"},
		{name: "per-node exclusions and exclusions cover a block", spec: tens(eachExcluding("0-4"), excluding("10.0.0.6-10.0.0.10")), nodes: "a",
			want: "a=10.0.0.11-10.0.0.20"},
		{name: "two gaps of the per-node exclusions, both excluded", spec: tens(eachExcluding("1-4 6-9"), excluding("10.0.0.1-10.0.0.1 10.0.0.6-10.0.0.6")), nodes: "a",
			want: "a=10.0.0.11-10.0.0.20"},
		{name: "two gaps of the per-node exclusions, one excluded", spec: tens(eachExcluding("1-4 6-9"), excluding("10.0.0.1-10.0.0.1")), nodes: "a",
			want: "a=10.0.0.1-10.0.0.10"},
		{name: "per-node exclusions leave nothing of a /48", nodes: "a",
			spec:     v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 4, PerNodeExclusions: positions("0-1 2-3")},
			unserved: "a"},
		{name: "most of a /48 excluded, per-node exclusions as well", nodes: "a",
			spec: v1alpha1.IPPoolSpec{Subnet: "fd00::/48", PerNodeBlockSize: 4, PerNodeExclusions: positions("2-3"), Exclusions: exclude("fd00::-fd00:0:0:ffff:ffff:ffff:ffff:fff2")},
			want: "a=fd00::ffff:ffff:ffff:ffff:fff5-fd00::ffff:ffff:ffff:ffff:fff8"},
		{name: "block size 1 skips the gateway", spec: tens(blockSize(1), via("10.0.0.3")), nodes: "a b c d",
			want: "a=10.0.0.1-10.0.0.1 b=10.0.0.2-10.0.0.2 c=10.0.0.4-10.0.0.4 d=10.0.0.5-10.0.0.5"},
		{name: "block size 1, exclusion beside the gateway", spec: tens(blockSize(1), via("10.0.0.3"), excluding("10.0.0.2-10.0.0.2")), nodes: "a b",
			want: "a=10.0.0.1-10.0.0.1 b=10.0.0.4-10.0.0.4"},
		{name: "block size 2 does not skip the gateway", spec: tens(blockSize(2), via("10.0.0.1"), excluding("10.0.0.2-10.0.0.2")), nodes: "a",
			want: "a=10.0.0.1-10.0.0.2"},

		// What is there already.
		{name: "blocks stay, whatever the order of names", spec: tens(), current: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20", nodes: "a b",
			want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "holes first", spec: tens(), current: "a=10.0.0.1-10.0.0.10 c=10.0.0.21-10.0.0.30", nodes: "a b c d",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30 d=10.0.0.31-10.0.0.40"},
		{name: "node gone", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "b c",
			want: "c=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "node gone but holding", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "b c", holds: "a",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},
		{name: "selector matches other nodes", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "x y",
			want: "x=10.0.0.1-10.0.0.10 y=10.0.0.11-10.0.0.20"},
		{name: "block size 10 to 8, all hold", spec: tens(blockSize(8)), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "a b c", holds: "a b",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 a=10.0.0.25-10.0.0.32 b=10.0.0.33-10.0.0.40 c=10.0.0.41-10.0.0.48"},
		{name: "block size 10 to 8, one holds", spec: tens(blockSize(8)), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "a b c", holds: "b",
			want: "a=10.0.0.1-10.0.0.8 b=10.0.0.11-10.0.0.20 b=10.0.0.25-10.0.0.32 c=10.0.0.33-10.0.0.40"},
		{name: "block size 10 to 8, none holds", spec: tens(blockSize(8)), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "a b",
			want: "a=10.0.0.1-10.0.0.8 b=10.0.0.9-10.0.0.16"},
		{name: "block size 4 to 10, one holds", spec: tens(), current: "a=10.0.0.1-10.0.0.4 b=10.0.0.5-10.0.0.8", nodes: "a b", holds: "a",
			want: "a=10.0.0.1-10.0.0.4 a=10.0.0.11-10.0.0.20 b=10.0.0.21-10.0.0.30"},
		{name: "other subnet, one holds", spec: tens(), current: "a=10.9.0.1-10.9.0.10 b=10.9.0.11-10.9.0.20", nodes: "a b", holds: "a",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 a=10.9.0.1-10.9.0.10"},
		{name: "other family, one holds", spec: tens(), current: "a=fd00::1-fd00::a b=fd00::b-fd00::14", nodes: "a b", holds: "a",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 a=fd00::1-fd00::a"},
		{name: "other family of the same number, none holds", spec: tens(), current: "b=::a00:1-::a00:a", nodes: "a b", want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "off the grid by one, not held", spec: tens(), current: "a=10.0.0.2-10.0.0.11", nodes: "a", want: "a=10.0.0.1-10.0.0.10"},
		{name: "block excluded afterwards, not held", spec: tens(excluding("10.0.0.1-10.0.0.10")), current: "a=10.0.0.1-10.0.0.10", nodes: "a",
			want: "a=10.0.0.11-10.0.0.20"},
		{name: "block excluded afterwards, held", spec: tens(excluding("10.0.0.1-10.0.0.10")), current: "a=10.0.0.1-10.0.0.10", nodes: "a", holds: "a",
			want: "a=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "block size 1 that became the gateway, not held", spec: tens(blockSize(1), via("10.0.0.1")), current: "a=10.0.0.1-10.0.0.1", nodes: "a",
			want: "a=10.0.0.2-10.0.0.2"},
		{name: "block size 10 to 8, no room for a new one", spec: small("10.0.0.0/28", 8), current: "a=10.0.0.1-10.0.0.10", nodes: "a", holds: "a",
			want: "a=10.0.0.1-10.0.0.10", unserved: "a"},
		{name: "edited twice, held in each", spec: tens(blockSize(8)), current: "a=10.0.0.1-10.0.0.3 a=10.0.0.9-10.0.0.16 b=10.0.0.17-10.0.0.24 a=10.9.0.1-10.9.0.9", nodes: "a b",
			holds: "a=10.0.0.2 a=10.0.0.10 a=10.9.0.1", want: "a=10.0.0.1-10.0.0.3 a=10.0.0.9-10.0.0.16 b=10.0.0.17-10.0.0.24 a=10.9.0.1-10.9.0.9"},
		{name: "block of now and an earlier one, which is given back", spec: tens(), current: "a=10.0.0.1-10.0.0.10 a=10.9.0.1-10.9.0.9", nodes: "a",
			holds: "a=10.0.0.2", want: "a=10.0.0.1-10.0.0.10"},
		{name: "block of now not held, earlier one held", spec: tens(), current: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20 a=10.9.0.1-10.9.0.9", nodes: "a b",
			holds: "a=10.9.0.2", want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20 a=10.9.0.1-10.9.0.9"},

		// What is held elsewhere keeps no block.
		{name: "node gone, holding elsewhere", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "b c", holds: "a=10.0.0.200?",
			want: "c=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "node gone, holding in another's block", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "b c", holds: "a=10.0.0.12? a=10.0.0.13",
			want: "c=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "node gone, requested address in its block", spec: tens(), current: "a=10.0.0.1-10.0.0.10", nodes: "c", holds: "a=10.0.0.9?",
			want: "a=10.0.0.1-10.0.0.10 c=10.0.0.11-10.0.0.20"},
		{name: "block excluded afterwards, holding elsewhere", spec: tens(excluding("10.0.0.1-10.0.0.10")), current: "a=10.0.0.1-10.0.0.10", nodes: "a", holds: "a=10.0.0.200?",
			want: "a=10.0.0.191-10.0.0.200"},
		{name: "block size 10 to 8, holding elsewhere", spec: tens(blockSize(8)), current: "a=10.0.0.1-10.0.0.10", nodes: "a", holds: "a=10.0.0.200?",
			want: "a=10.0.0.193-10.0.0.200"},
		{name: "a node takes no block of another by what it writes", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "a b",
			holds: "b=10.0.0.1 b=10.0.0.2 b=10.0.0.3", want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "nor a second block", spec: tens(), current: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20", nodes: "a b c", holds: "b=10.0.0.25 b=10.0.0.35 gone=10.0.0.21",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},

		// A status that was lost.
		{name: "lost", spec: tens(), nodes: "a b c", holds: "b=10.0.0.5 a=10.0.0.15", want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},
		{name: "lost for one node", spec: tens(), current: "c=10.0.0.21-10.0.0.30", nodes: "a b c", holds: "b=10.0.0.5",
			want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},
		{name: "lost, replaced by nonsense", spec: tens(), current: "x=10.0.9.0-10.0.9.7", nodes: "a b", holds: "b=10.0.0.5 gone=10.0.0.15", want: "b=10.0.0.1-10.0.0.10 gone=10.0.0.11-10.0.0.20 a=10.0.0.21-10.0.0.30"},
		{name: "lost, node gone", spec: tens(), nodes: "a", holds: "gone=10.0.0.5", want: "gone=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "lost, node gone with a requested address", spec: tens(), nodes: "a", holds: "gone=10.0.0.5?", want: "a=10.0.0.1-10.0.0.10"},
		{name: "lost, requested addresses of two nodes in each other's block", spec: tens(), nodes: "a b", holds: "a=10.0.0.5? a=10.0.0.6? a=10.0.0.15 b=10.0.0.7 b=10.0.0.16? b=10.0.0.17?",
			want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "lost, requested addresses alone", spec: tens(), nodes: "a b", holds: "b=10.0.0.5?", want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "lost, two nodes in one block", spec: tens(), nodes: "a b", holds: "a=10.0.0.5 b=10.0.0.6 b=10.0.0.7", want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "lost, two nodes in one block, equally", spec: tens(), nodes: "a b", holds: "b=10.0.0.6 a=10.0.0.5", want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "lost, a node in two blocks", spec: tens(), nodes: "a b", holds: "a=10.0.0.5 a=10.0.0.15 a=10.0.0.16", want: "a=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20 b=10.0.0.21-10.0.0.30"},
		{name: "lost, a node in all blocks", spec: small("10.0.0.0/29", 2), nodes: "a b", holds: "a=10.0.0.2 a=10.0.0.3 a=10.0.0.4 a=10.0.0.5 gone=10.0.0.1",
			want: "gone=10.0.0.1-10.0.0.2 a=10.0.0.3-10.0.0.4 b=10.0.0.5-10.0.0.6"},
		{name: "lost, no block has the address", spec: tens(blockSize(100)), nodes: "a", holds: "a=10.0.0.254 a=10.1.0.1 a=fd00::1", want: "a=10.0.0.1-10.0.0.100"},
		{name: "lost, reserved for nobody's node", spec: tens(), nodes: "a", holds: "=10.0.0.5", want: "a=10.0.0.1-10.0.0.10"},
		{name: "lost, excluded meanwhile", spec: tens(excluding("10.0.0.11-10.0.0.20")), nodes: "a", holds: "a=10.0.0.15", want: "a=10.0.0.1-10.0.0.10"},
		{name: "two nodes that hold overlapping blocks, one more", spec: tens(), current: "b=10.0.0.1-10.0.0.10 a=10.0.0.6-10.0.0.15", nodes: "b", holds: "b a a=10.0.0.7",
			want: "a=10.0.0.6-10.0.0.15 b=10.0.0.21-10.0.0.30"},
		{name: "no room left by one that holds", spec: small("10.0.0.0/29", 6), current: "z=10.0.0.1-10.0.0.6", nodes: "a", holds: "z",
			want: "z=10.0.0.1-10.0.0.6", unserved: "a"},
		{name: "unserved nodes by name", spec: small("10.0.0.0/29", 6), nodes: "d b c a", want: "a=10.0.0.1-10.0.0.6", unserved: "b c d"},

		{name: "unserved node named twice", spec: small("10.0.0.0/29", 6), nodes: "b a b", want: "a=10.0.0.1-10.0.0.6", unserved: "b"},

		// A status that somebody wrote by hand.
		{name: "two blocks for a node", spec: tens(), current: "a=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20", nodes: "a b",
			want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20"},
		{name: "two nodes for a block", spec: tens(), current: "b=10.0.0.1-10.0.0.10 a=10.0.0.1-10.0.0.10", nodes: "a b",
			want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "two nodes that hold overlapping blocks", spec: tens(), current: "b=10.0.0.1-10.0.0.10 a=10.0.0.6-10.0.0.15", nodes: "a b", holds: "a b",
			want: "b=10.0.0.1-10.0.0.10 a=10.0.0.11-10.0.0.20"},
		{name: "garbage", spec: tens(), current: "a=x-y b=10.0.0.20-10.0.0.11 c=10.0.0.1-fd00::1 =10.0.0.1-10.0.0.10 d=- e=10.0.0.1-10.0.0.11", nodes: "a b c",
			holds: "a b c", want: "a=10.0.0.1-10.0.0.10 b=10.0.0.11-10.0.0.20 c=10.0.0.21-10.0.0.30"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			current := ipBlocks(ipStatus(tt.current))
			blocks, unserved := ipPool(t, tt.spec).Carve(current, strings.Fields(tt.nodes), holding(current, tt.holds))
			if got := ipText(ipAllocations(blocks)); got != tt.want {
				t.Errorf("blocks:\n got %s\nwant %s", got, tt.want)
			}
			if got := strings.Join(unserved, " "); got != tt.unserved {
				t.Errorf("unserved: got %q, want %q", got, tt.unserved)
			}
		})
	}
}

func TestCarveCIDRPool(t *testing.T) {
	anySubnet(t)
	type spec = v1alpha1.CIDRPoolSpec
	rail := func(edit ...func(*spec)) spec {
		s := spec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(1)}
		for _, e := range edit {
			e(&s)
		}
		return s
	}
	fix := func(text string) func(*spec) { return func(s *spec) { s.StaticAllocations = statics(text) } }
	gatewayAt := func(i *int32) func(*spec) { return func(s *spec) { s.GatewayIndex = i } }
	bits := func(n int32) func(*spec) { return func(s *spec) { s.PerNodeNetworkPrefix = n } }
	excluding := func(text string) func(*spec) { return func(s *spec) { s.Exclusions = exclude(text) } }
	eachExcluding := func(text string) func(*spec) { return func(s *spec) { s.PerNodeExclusions = positions(text) } }
	of := func(cidr string, bits int32, gateway *int32) spec {
		return spec{CIDR: cidr, PerNodeNetworkPrefix: bits, GatewayIndex: gateway}
	}
	tests := []struct {
		name     string
		spec     spec
		current  string
		nodes    string
		holds    string
		want     string
		unserved string
	}{
		// Where prefixes lie.
		{name: "prefixes in order", spec: rail(), nodes: "b a c", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 c=10.0.2.0/24@10.0.2.1"},
		{name: "without a gateway", spec: rail(gatewayAt(nil)), nodes: "a b", want: "a=10.0.0.0/24 b=10.0.1.0/24"},
		{name: "gateway further up", spec: rail(gatewayAt(index(254))), nodes: "a", want: "a=10.0.0.0/24@10.0.0.254"},
		{name: "/31, index 0", spec: of("10.0.0.0/30", 31, index(0)), nodes: "a b c", want: "a=10.0.0.0/31@10.0.0.0 b=10.0.0.2/31@10.0.0.2", unserved: "c"},
		{name: "/31, index 1", spec: of("10.0.0.0/30", 31, index(1)), nodes: "a b", want: "a=10.0.0.0/31@10.0.0.1 b=10.0.0.2/31@10.0.0.3"},
		{name: "/32, index 0", spec: of("10.0.0.0/30", 32, index(0)), nodes: "a b", want: "a=10.0.0.0/32@10.0.0.0 b=10.0.0.1/32@10.0.0.1"},
		{name: "/127, index 0", spec: of("fd00::/64", 127, index(0)), nodes: "a b", want: "a=fd00::/127@fd00:: b=fd00::2/127@fd00::2"},
		{name: "/127, index 1", spec: of("fd00::/64", 127, index(1)), nodes: "a b", want: "a=fd00::/127@fd00::1 b=fd00::2/127@fd00::3"},
		{name: "/128, index 0", spec: of("fd00::/64", 128, index(0)), nodes: "a b", want: "a=fd00::/128@fd00:: b=fd00::1/128@fd00::1"},
		{name: "single addresses, all of them", spec: of("10.0.0.0/30", 32, nil), nodes: "a b c d e",
			want: "a=10.0.0.0/32 b=10.0.0.1/32 c=10.0.0.2/32 d=10.0.0.3/32", unserved: "e"},
		{name: "/48 in /64", spec: of("fd00:1::/48", 64, index(1)), nodes: "a b", want: "a=fd00:1::/64@fd00:1::1 b=fd00:1:0:1::/64@fd00:1:0:1::1"},
		{name: "/48 in /120, gateway on the last address", spec: of("fd00:1::/48", 120, index(255)), nodes: "a b",
			want: "a=fd00:1::/120@fd00:1::ff b=fd00:1::100/120@fd00:1::1ff"},
		{name: "cidr is one prefix", spec: rail(bits(16)), nodes: "b a", want: "a=10.0.0.0/16@10.0.0.1", unserved: "b"},
		{name: "cidr is one address", spec: of("10.0.0.7/32", 32, nil), nodes: "a b", want: "a=10.0.0.7/32", unserved: "b"},
		{name: "end of the IPv4 space", spec: of("255.255.255.0/24", 25, index(1)), nodes: "a b c",
			want: "a=255.255.255.0/25@255.255.255.1 b=255.255.255.128/25@255.255.255.129", unserved: "c"},
		{name: "unserved nodes by name", spec: rail(bits(17)), nodes: "d c b a", want: "a=10.0.0.0/17@10.0.0.1 b=10.0.128.0/17@10.0.128.1", unserved: "c d"},

		// Static allocations.
		{name: "static with node", spec: rail(fix("b=10.0.0.0/24")), nodes: "a b", want: "b=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1"},
		{name: "static with node, far away", spec: rail(fix("a=10.0.33.0/24")), nodes: "a b", want: "b=10.0.0.0/24@10.0.0.1 a=10.0.33.0/24@10.0.33.1"},
		{name: "static without node", spec: rail(fix("=10.0.0.0/24")), nodes: "a", want: "a=10.0.1.0/24@10.0.1.1"},
		{name: "static with gateway", spec: rail(fix("a=10.0.0.0/24@10.0.0.10")), nodes: "a b", want: "a=10.0.0.0/24@10.0.0.10 b=10.0.1.0/24@10.0.1.1"},
		{name: "static with gateway, the pool has none", spec: rail(gatewayAt(nil), fix("a=10.0.0.0/24@10.0.0.10")), nodes: "a b", want: "a=10.0.0.0/24@10.0.0.10 b=10.0.1.0/24"},
		{name: "static without node, with gateway", spec: rail(fix("=10.0.1.0/24@10.0.1.9")), nodes: "a b", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.2.0/24@10.0.2.1"},
		{name: "static for a node that is not selected", spec: rail(fix("z=10.0.0.0/24")), nodes: "a", want: "a=10.0.1.0/24@10.0.1.1"},
		{name: "statics that fill the pool", spec: rail(bits(17), fix("=10.0.0.0/17 z=10.0.128.0/17")), nodes: "a", unserved: "a"},
		{name: "static that is wholly excluded", spec: rail(fix("a=10.0.0.0/24"), excluding("10.0.0.0-10.0.0.255")), nodes: "a", want: "a=10.0.0.0/24@10.0.0.1"},
		{name: "static prefix held by another live node", spec: rail(fix("a=10.0.0.0/24@10.0.0.9")), current: "b=10.0.0.0/24@10.0.0.1", nodes: "a b", holds: "b",
			want: "b=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1", unserved: "a"},
		{name: "static prefix held by a node that is gone", spec: rail(fix("a=10.0.0.0/24")), current: "b=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "b",
			want: "b=10.0.0.0/24@10.0.0.1", unserved: "a"},
		{name: "waiting for a static prefix does not keep another", spec: rail(fix("a=10.0.0.0/24")), current: "b=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1", nodes: "a b c", holds: "b",
			want: "b=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 c=10.0.2.0/24@10.0.2.1", unserved: "a"},
		{name: "static prefix of a node that holds nothing", spec: rail(fix("a=10.0.0.0/24")), current: "b=10.0.0.0/24@10.0.0.1", nodes: "a b",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1"},
		{name: "static for a node that holds another prefix", spec: rail(fix("a=10.0.9.0/24")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a b", holds: "a",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 a=10.0.9.0/24@10.0.9.1"},
		{name: "static for a node that has another prefix", spec: rail(fix("a=10.0.9.0/24")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a b",
			want: "b=10.0.0.0/24@10.0.0.1 a=10.0.9.0/24@10.0.9.1"},

		// Edits of the gateway.
		{name: "gatewayIndex edited", spec: rail(gatewayAt(index(2))), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", want: "a=10.0.0.0/24@10.0.0.2"},
		{name: "gatewayIndex edited, node holds", spec: rail(gatewayAt(index(2))), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "a", want: "a=10.0.0.0/24@10.0.0.2"},
		{name: "gatewayIndex removed", spec: rail(gatewayAt(nil)), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "a", want: "a=10.0.0.0/24"},
		{name: "static gateway edited, node holds", spec: rail(fix("a=10.0.0.0/24@10.0.0.10")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "a", want: "a=10.0.0.0/24@10.0.0.10"},

		// What is excluded.
		{name: "wholly excluded prefix", spec: rail(excluding("10.0.0.0-10.0.0.255 10.0.1.0-10.0.1.100")), nodes: "a b", want: "a=10.0.1.0/24@10.0.1.1 b=10.0.2.0/24@10.0.2.1"},
		{name: "the broadcast address need not be excluded", spec: rail(excluding("10.0.0.0-10.0.0.254")), nodes: "a", want: "a=10.0.1.0/24@10.0.1.1"},
		{name: "the network address must be excluded", spec: rail(excluding("10.0.0.1-10.0.0.254")), nodes: "a", want: "a=10.0.0.0/24@10.0.0.1"},
		{name: "exclusion over many prefixes", spec: rail(excluding("10.0.0.0-10.0.77.3")), nodes: "a", want: "a=10.0.77.0/24@10.0.77.1"},
		{name: "per-node exclusions and exclusions cover a prefix", nodes: "a b",
			spec: rail(excluding("10.0.0.0-10.0.0.255 10.0.1.0-10.0.1.127"), eachExcluding("128-255")), want: "a=10.0.2.0/24@10.0.2.1 b=10.0.3.0/24@10.0.3.1"},
		{name: "per-node exclusions leave every other address", spec: rail(eachExcluding("0-127")), nodes: "a b", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1"},
		{name: "per-node exclusions leave nothing of a /64 in /128", spec: spec{CIDR: "2001:db8::/64", PerNodeNetworkPrefix: 128, PerNodeExclusions: positions("0-0")}, nodes: "a", unserved: "a"},
		{name: "a /64 in /128, all but the first excluded", nodes: "a b",
			spec: spec{CIDR: "2001:db8::/64", PerNodeNetworkPrefix: 128, Exclusions: exclude("2001:db8::1-2001:db8::ffff:ffff:ffff:ffff")},
			want: "a=2001:db8::/128", unserved: "b"},
		{name: "exclusion that ends within a large prefix", nodes: "a",
			spec: spec{CIDR: "2001:db8::/64", PerNodeNetworkPrefix: 80, Exclusions: exclude("2001:db8::-2001:db8:0:0:abcd::7fff")}, want: "a=2001:db8:0:0:abcd::/80"},
		{name: "prefix excluded afterwards, not held", spec: rail(excluding("10.0.0.0-10.0.0.255")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", want: "a=10.0.1.0/24@10.0.1.1"},
		{name: "prefix excluded afterwards, held", spec: rail(excluding("10.0.0.0-10.0.0.255")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "a", want: "a=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1"},
		{name: "lost", spec: rail(), nodes: "a b", holds: "a=10.0.1.7 b=10.0.0.9", want: "b=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1"},
		{name: "lost, requested addresses are in the own prefix too", spec: rail(), nodes: "a b", holds: "a=10.0.1.7? b=10.0.0.9?", want: "b=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1"},
		{name: "lost, with longer prefixes", spec: rail(bits(26)), nodes: "a b", holds: "b=10.0.0.9 b=10.0.0.70", want: "b=10.0.0.0/26@10.0.0.1 b=10.0.0.64/26@10.0.0.65 a=10.0.0.128/26@10.0.0.129"},
		{name: "lost, with a static prefix elsewhere", spec: rail(fix("a=10.0.9.0/24")), nodes: "a b", holds: "a=10.0.0.9", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 a=10.0.9.0/24@10.0.9.1"},
		{name: "lost, in the static prefix of another", spec: rail(fix("a=10.0.0.0/24")), nodes: "a b", holds: "b=10.0.0.9", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1"},
		{name: "not lost, all static", spec: rail(fix("a=10.0.0.0/24")), current: "a=10.0.0.0/24@10.0.0.1", nodes: "a", holds: "gone=10.0.1.9", want: "a=10.0.0.0/24@10.0.0.1"},
		{name: "node gone, holding in another's prefix", spec: rail(), current: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1", nodes: "b", holds: "a=10.0.1.9", want: "b=10.0.1.0/24@10.0.1.1"},
		{name: "/32 that is its own gateway", spec: of("10.0.0.0/31", 32, index(0)), nodes: "a b", want: "a=10.0.0.0/32@10.0.0.0 b=10.0.0.1/32@10.0.0.1"},

		// What is there already.
		{name: "holes first", spec: rail(), current: "a=10.0.0.0/24@10.0.0.1 c=10.0.2.0/24@10.0.2.1", nodes: "d c b a",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 c=10.0.2.0/24@10.0.2.1 d=10.0.3.0/24@10.0.3.1"},
		{name: "node gone", spec: rail(), current: "a=10.0.0.0/24@10.0.0.1", nodes: "b", want: "b=10.0.0.0/24@10.0.0.1"},
		{name: "node gone but holding", spec: rail(), current: "a=10.0.0.0/24@10.0.0.1", nodes: "b", holds: "a", want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1"},
		{name: "/24 to /26, one holds", spec: rail(bits(26), gatewayAt(index(3))), current: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1", nodes: "a b", holds: "a",
			want: "a=10.0.0.0/24@10.0.0.1 a=10.0.1.0/26@10.0.1.3 b=10.0.1.64/26@10.0.1.67"},
		{name: "/26 to /24, one holds", spec: rail(gatewayAt(index(200))), current: "a=10.0.0.64/26@10.0.0.65 b=10.0.0.128/26@10.0.0.129", nodes: "a b", holds: "a",
			want: "a=10.0.0.64/26@10.0.0.65 a=10.0.1.0/24@10.0.1.200 b=10.0.2.0/24@10.0.2.200"},
		{name: "a gateway that an old prefix has no room for", spec: rail(gatewayAt(index(200))), current: "a=10.0.0.64/26", nodes: "a", holds: "a", want: "a=10.0.0.64/26 a=10.0.1.0/24@10.0.1.200"},
		{name: "static prefix is kept beside one that holds a part of it", spec: rail(fix("z=10.0.0.0/24")), current: "a=10.0.0.64/26@10.0.0.65", nodes: "a b", holds: "a",
			want: "a=10.0.0.64/26@10.0.0.65 a=10.0.1.0/24@10.0.1.1 b=10.0.2.0/24@10.0.2.1"},
		{name: "other cidr, one holds", spec: rail(), current: "a=10.9.0.0/24@10.9.0.1 b=10.9.1.0/24@10.9.1.1", nodes: "a b", holds: "a",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 a=10.9.0.0/24@10.9.0.1"},
		{name: "two prefixes for a node, two nodes for a prefix", spec: rail(), current: "a=10.0.0.0/24@10.0.0.1 a=10.0.1.0/24@10.0.1.1 b=10.0.0.0/24@10.0.0.1", nodes: "a b",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1"},
		{name: "garbage", spec: rail(), current: "a=x@y b=10.0.0.0/99 c=::ffff:10.0.0.0/120 =10.0.0.0/24 d=", nodes: "a b c", holds: "a b c",
			want: "a=10.0.0.0/24@10.0.0.1 b=10.0.1.0/24@10.0.1.1 c=10.0.2.0/24@10.0.2.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			current := cidrBlocks(cidrStatus(tt.current))
			blocks, unserved := cidrPool(t, tt.spec).Carve(current, strings.Fields(tt.nodes), holding(current, tt.holds))
			if got := cidrText(cidrAllocations(blocks)); got != tt.want {
				t.Errorf("blocks:\n got %s\nwant %s", got, tt.want)
			}
			if got := strings.Join(unserved, " "); got != tt.unserved {
				t.Errorf("unserved: got %q, want %q", got, tt.unserved)
			}
		})
	}
}

func nodeNames(n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("node-%05d", i)
	}
	return out
}

// nobody holds anything.
var nobody []Held

// large are pools with room for 5,000 nodes.
func large(t testing.TB) map[string]*Pool {
	return map[string]*Pool{
		"IPPool": ipPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/8", PerNodeBlockSize: 100, Gateway: "10.0.0.1",
			Exclusions: exclude("10.0.0.0-10.0.0.10 10.1.0.0-10.1.255.255"), PerNodeExclusions: positions("0-1")}),
		"CIDRPool": cidrPool(t, v1alpha1.CIDRPoolSpec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 64, GatewayIndex: index(1),
			Exclusions: exclude("fd00::-fd00:0:0:fff::")}),
	}
}

func TestCarveManyNodes(t *testing.T) {
	nodes := nodeNames(5000)
	for name, p := range large(t) {
		t.Run(name, func(t *testing.T) {
			first, unserved := p.Carve(nil, nodes, nobody)
			if len(first) != len(nodes) || len(unserved) != 0 {
				t.Fatalf("%d blocks and %d unserved for %d nodes", len(first), len(unserved), len(nodes))
			}
			for i := range first {
				if first[i].Node != nodes[i] {
					t.Fatalf("block %d is of %s, want %s", i, first[i].Node, nodes[i])
				}
				if i > 0 && !first[i-1].Range.To().Less(first[i].Range.From()) {
					t.Fatalf("%s and %s overlap or are not in order", first[i-1].Range, first[i].Range)
				}
			}
			if again, _ := p.Carve(first, nodes, nobody); !slices.Equal(again, first) {
				t.Error("carving again moves blocks")
			}
			// Every other node goes; as many new ones take up the holes, in order.
			var kept, late []string
			for i := range nodes {
				if i%2 == 0 {
					kept = append(kept, nodes[i])
					late = append(late, nodes[i]+"-new")
				}
			}
			next, _ := p.Carve(first, append(late, kept...), nobody)
			for i := range next {
				want := nodes[i]
				if i%2 == 1 {
					want = nodes[i-1] + "-new"
				}
				if next[i].Node != want || next[i].Range != first[i].Range {
					t.Fatalf("block %d: got %s %s, want %s %s", i, next[i].Node, next[i].Range, want, first[i].Range)
				}
			}
		})
	}
}

func BenchmarkCarve(b *testing.B) {
	nodes := nodeNames(5000)
	for name, p := range large(b) {
		full, _ := p.Carve(nil, nodes, nobody)
		b.Run(name+"/5000 new nodes", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, _ := p.Carve(nil, nodes, nobody); len(got) != len(nodes) {
					b.Fatal(len(got))
				}
			}
		})
		var held []Held
		for _, a := range full {
			for at := a.Range.From(); len(held)%30 < 29; at = at.Next() {
				held = append(held, Held{Node: a.Node, Addr: at})
			}
			held = append(held, Held{Node: a.Node, Addr: a.Range.To(), Requested: true})
		}
		b.Run(name+"/5000 nodes with 30 addresses each", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, _ := p.Carve(full, nodes, held); len(got) != len(nodes) {
					b.Fatal(len(got))
				}
			}
		})
		b.Run(name+"/the same, their blocks lost", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, _ := p.Carve(nil, nodes, held); !slices.Equal(got, full) {
					b.Fatal(len(got))
				}
			}
		})
		b.Run(name+"/the same, measured", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if u := p.Use(full, held); len(u.Blocks) != len(nodes) || len(u.Outside) != 0 {
					b.Fatal(len(u.Outside))
				}
			}
		})
		b.Run(name+"/1 new node of 5000", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if got, _ := p.Carve(full[1:], nodes, nobody); len(got) != len(nodes) {
					b.Fatal(len(got))
				}
			}
		})
	}
}

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// TestOccupied compares occupied with one list of ranges.
func TestOccupied(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var parts occupied
	var plain ranges
	random := func() netipx.IPRange {
		from := netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))})
		to := from
		for range rng.IntN(3) {
			to = to.Next()
		}
		return netipx.IPRangeFrom(from, to)
	}
	most := 0
	for i := range 200_000 {
		r := random()
		if over, ok := plain.overlapping(r); ok && (i/50_000)%2 == 1 { // the second and the fourth quarter empty it
			parts.remove(over)
			plain = slices.DeleteFunc(plain, func(t netipx.IPRange) bool { return t == over })
			continue
		}
		wantOver, want := plain.overlapping(r)
		if over, ok := parts.overlapping(r); ok != want || over != wantOver {
			t.Fatalf("step %d: overlapping(%v) = %v, %t, want %v, %t", i, r, over, ok, wantOver, want)
		}
		if (i/50_000)%2 == 0 && parts.add(r) != plain.add(r) {
			t.Fatalf("step %d: add(%v)", i, r)
		}
		most = max(most, len(parts.parts))
	}
	if most < 10 {
		t.Errorf("at most %d parts: the test does not test them", most)
	}
	for _, r := range slices.Clone(plain) {
		parts.remove(r)
	}
	if len(parts.parts) != 0 {
		t.Errorf("all was removed, and there are %d parts", len(parts.parts))
	}
}

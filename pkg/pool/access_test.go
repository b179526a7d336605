// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// saved returns a block as a node reads it back from its disk.
func saved(t *testing.T, spec v1alpha1.IPPoolSpec) *Block {
	t.Helper()
	obj := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: spec}
	p, errs := ObjectOf(obj).Parse()
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	b, ok := p.BlockOf([]Assignment{{Node: "a", Range: p.whole()}}, "a")
	if !ok {
		t.Fatal("no block")
	}
	data, err := json.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	out := &Block{}
	if err := json.Unmarshal(data, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestAllowedNamespaces(t *testing.T) {
	long := strings.Repeat("n", 63)
	for _, tc := range []struct {
		allowed    []string
		namespaces []string
		want       bool
	}{
		{nil, []string{"a", "kube-system", ""}, true},
		{[]string{"*"}, []string{"a", "kube-system", long}, true},
		{[]string{"*"}, []string{""}, false},
		{[]string{"a"}, []string{"a"}, true},
		{[]string{"a"}, []string{"", "b", "aa", "A", "a*", "*"}, false},
		{[]string{"team-*"}, []string{"team-", "team-a", "team-team-"}, true},
		{[]string{"team-*"}, []string{"team", "a-team-", "tea*"}, false},
		{[]string{"b", "a*", "b"}, []string{"a", "ab", "b"}, true},
		{[]string{"b", "a*", "b"}, []string{"bb", "ca"}, false},
		{[]string{long, "x"}, []string{long, "x"}, true},
	} {
		b := saved(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PoolAccess: v1alpha1.PoolAccess{AllowedNamespaces: tc.allowed}})
		for _, namespace := range tc.namespaces {
			if err := b.Admit(namespace); (err == nil) != tc.want {
				t.Errorf("%q, pod of %q: %v, want allowed %t", tc.allowed, namespace, err, tc.want)
			}
		}
	}
}

// Each refusal is final, and says which field of which pool has which value, and what to
// do about it.
func TestRefusalsOfAPool(t *testing.T) {
	many := make([]string, 1000)
	for i := range many {
		many[i] = fmt.Sprintf("n%d", i)
	}
	with := func(edit func(*v1alpha1.IPPoolSpec)) *Block {
		spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", Gateway: "10.0.0.1"}
		edit(&spec)
		return saved(t, spec)
	}
	ask := func(b *Block, namespace string, want Want) error {
		if err := b.Admit(namespace); err != nil {
			return err
		}
		_, err := Match([]*Block{b}, want)
		return err
	}
	index := 5
	requested := Want{Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}
	allowed := with(func(s *v1alpha1.IPPoolSpec) { s.AllowedNamespaces = []string{"a", "b-*"} })
	manual := with(func(s *v1alpha1.IPPoolSpec) { s.Assignment = v1alpha1.AssignmentManual })
	disabled := with(func(s *v1alpha1.IPPoolSpec) { s.Disabled = true })
	for _, tc := range []struct {
		name string
		err  error
		want string // empty: not refused
	}{
		{"allowed", ask(allowed, "a", Want{}), ""},
		{"not allowed", ask(allowed, "c", Want{}), `pool "p", poolType "ippool" gives no addresses to pods of namespace "c" because its spec.allowedNamespaces has only "a", "b-*": add the namespace there, or name another pool`},
		{"not allowed, requested", ask(allowed, "c", requested), `namespace "c"`},
		{"not allowed, many", ask(with(func(s *v1alpha1.IPPoolSpec) { s.AllowedNamespaces = many }), "c", Want{}), `has only "n0", "n1", "n2", "n3", "n4" and 995 more: add`},
		{"manual", ask(manual, "a", Want{}), `pool "p", poolType "ippool" gives only addresses that are asked for because its spec.assignment is Manual: request an address of 10.0.0.0/24, or name another pool`},
		{"manual, requested", ask(manual, "a", requested), ""},
		{"manual, index", ask(manual, "a", Want{Index: &index}), ""},
		{"manual, gateway", ask(manual, "a", Want{DefaultGateway: true}), ""},
		{"auto", ask(with(func(s *v1alpha1.IPPoolSpec) { s.Assignment = v1alpha1.AssignmentAuto }), "a", Want{}), ""},
		{"disabled", ask(disabled, "a", Want{}), `pool "p", poolType "ippool" gives no addresses because its spec.disabled is true: set it to false, or name another pool`},
		{"disabled, requested", ask(disabled, "a", requested), "spec.disabled is true"},
		{"disabled, gateway", ask(disabled, "a", Want{DefaultGateway: true}), "spec.disabled is true"},
	} {
		var refusal *RequestError
		switch {
		case tc.want == "" && tc.err != nil:
			t.Errorf("%s: %v", tc.name, tc.err)
		case tc.want != "" && (!errors.As(tc.err, &refusal) || !strings.Contains(tc.err.Error(), tc.want)):
			t.Errorf("%s: %v\nwant %s", tc.name, tc.err, tc.want)
		}
	}
	// One address requested of two pools: the other one is Manual, and was asked for none.
	other := saved(t, v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24"})
	if _, err := Match([]*Block{manual, other}, Want{Addresses: []netip.Addr{netip.MustParseAddr("10.1.0.9")}}); err == nil {
		t.Error("a Manual pool gives an address because another pool was asked for one")
	}
}

// A pool without blocks selects nodes as the controller selects them for a block.
func TestSelectingWithoutBlocks(t *testing.T) {
	spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", NodeSelector: selecting("rack", "In", "r1", "r2")}
	spec.NodeSelector.NodeSelectorTerms = append(spec.NodeSelector.NodeSelectorTerms, selecting("spare", "Exists").NodeSelectorTerms...)
	b := saved(t, spec)
	for labels, want := range map[string]bool{"rack=r1": true, "rack=r2": true, "rack=r3": false, "spare=": true, "x=y": false} {
		key, value, _ := strings.Cut(labels, "=")
		if got := b.Selects("a", map[string]string{key: value}); got != want {
			t.Errorf("%s: %t", labels, got)
		}
	}
	if got := b.Selector(); got != `rack In ("r1", "r2"), or spare Exists` {
		t.Error(got)
	}
	long := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", NodeSelector: selecting("rack", "Exists")}
	for range maxSelector {
		long.NodeSelector.NodeSelectorTerms = append(long.NodeSelector.NodeSelectorTerms, selecting("spare", "Exists").NodeSelectorTerms...)
	}
	if got := saved(t, long).Selector(); len(got) > 2*maxSelector || !strings.HasSuffix(got, " bytes more)") {
		t.Errorf("of a long selector: %d bytes", len(got))
	}
	spec.PerNodeBlockSize = 254
	if saved(t, spec).SelectsByLabels() {
		t.Error("who has a block is asked for its labels")
	}
	if spec := (v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24"}); saved(t, spec).SelectsByLabels() {
		t.Error("a pool without selector needs labels")
	}
}

// Ranges and exclusions may leave nothing: then an address can still be requested.
func TestRangesThatLeaveNothing(t *testing.T) {
	for _, spec := range []v1alpha1.IPPoolSpec{
		{Subnet: "10.0.0.0/24", Ranges: []string{"10.0.0.5-10.0.0.9"}, Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.0.0.0", EndIP: "10.0.0.255"}}},
		{Subnet: "10.0.0.0/24", Ranges: []string{"10.0.0.1"}, Gateway: "10.0.0.1"},
		{Subnet: "10.0.0.0/24", Ranges: []string{"10.0.0.0", "10.0.0.255"}},
	} {
		b := saved(t, spec)
		addr := netip.MustParseAddr("10.0.0.7")
		got, err := Match([]*Block{b}, Want{Addresses: []netip.Addr{addr}})
		if b.Size() != 0 || err != nil || got[0] != addr {
			t.Errorf("%v: size %d, requested %v, %v", spec.Ranges, b.Size(), got, err)
		}
	}
}

// Longer lists are refused by the CRD, and so here.
func TestTooManyEntries(t *testing.T) {
	for n, want := range map[int][]string{
		1000: nil,
		1001: {"spec.allowedNamespaces: must have at most 1000 items", "spec.ranges: must have at most 1000 items"},
	} {
		spec := v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16"}
		for i := range n {
			spec.AllowedNamespaces = append(spec.AllowedNamespaces, fmt.Sprintf("n%d*", i))
			spec.Ranges = append(spec.Ranges, fmt.Sprintf("10.0.%d.%d", i/256, i%256))
		}
		_, errs := ObjectOf(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: spec}).Parse()
		checkErrors(t, errs, want)
	}
}

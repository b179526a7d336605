// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"net/netip"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestName(t *testing.T) {
	long := strings.Repeat("p", 213)
	for _, tc := range []struct{ pool, addr, want string }{
		{"pool1", "192.168.0.5", "pool1.192.168.0.5"},
		{"pool1", "::ffff:192.168.0.5", "pool1.192.168.0.5"},
		{"pool6", "fd52:2eb5:44::1", "pool6.fd52-2eb5-0044-0000-0000-0000-0000-0001"},
		{"pool6", "::", "pool6.0000-0000-0000-0000-0000-0000-0000-0000"},
		{"rack.1", "10.0.0.1", "rack.1.10.0.0.1"},
		{"a.10.0", "0.1.2.3", "a.10.0.0.1.2.3"},
		{long, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", long + ".ffff-ffff-ffff-ffff-ffff-ffff-ffff-ffff"},
	} {
		addr := netip.MustParseAddr(tc.addr)
		got := AllocationName(tc.pool, addr)
		if got != tc.want {
			t.Errorf("AllocationName(%q, %s) = %q, want %q", tc.pool, addr, got, tc.want)
		}
		if errs := validation.IsDNS1123Subdomain(got); len(errs) > 0 {
			t.Errorf("%q is not an object name: %v", got, errs)
		}
		pool, back, err := ParseAllocationName(got)
		if err != nil || pool != tc.pool || back != addr.Unmap() {
			t.Errorf("ParseAllocationName(%q) = %q, %s, %v", got, pool, back, err)
		}
	}
}

func TestParseNameRefusesWhatNameDoesNotWrite(t *testing.T) {
	for _, name := range []string{
		"", "pool1", "pool1.", "192.168.0.5", ".192.168.0.5", "pool1.192.168.0", "pool1.192.168.0.256",
		"pool1.192.168.0.05", "pool6.fd52-2eb5-44-0-0-0-0-1", "pool6.FD52-2eb5-0044-0000-0000-0000-0000-0001",
		"pool6.0000-0000-0000-0000-0000-ffff-c0a8-0005", "pool6.fd52:2eb5::1", "pool-6",
	} {
		if pool, addr, err := ParseAllocationName(name); err == nil {
			t.Errorf("ParseAllocationName(%q) = %q, %s, want an error", name, pool, addr)
		}
	}
}

// Two different pairs must never have one name: that name would be one
// reservation for two addresses.
func FuzzNameIsInjective(f *testing.F) {
	f.Add("a", []byte{10, 0, 0, 1}, "a.10", []byte{0, 0, 1, 1})
	f.Add("a", []byte{10, 0, 0, 1}, "a.10.0.0", []byte{1, 2, 3, 4})
	f.Add("a", make([]byte, 16), "a.0000-0000", make([]byte, 16))
	f.Fuzz(func(t *testing.T, p1 string, b1 []byte, p2 string, b2 []byte) {
		a1, ok1 := netip.AddrFromSlice(b1)
		a2, ok2 := netip.AddrFromSlice(b2)
		if !ok1 || !ok2 || p1 == "" || p2 == "" {
			t.Skip("not an address or not a pool")
		}
		same := p1 == p2 && a1.Unmap() == a2.Unmap()
		if n1, n2 := AllocationName(p1, a1), AllocationName(p2, a2); (n1 == n2) != same {
			t.Errorf("(%q, %s) is %q and (%q, %s) is %q", p1, a1, n1, p2, a2, n2)
		}
		if p, a, err := ParseAllocationName(AllocationName(p1, a1)); err != nil || p != p1 || a != a1.Unmap() {
			t.Errorf("(%q, %s) comes back as (%q, %s), %v", p1, a1, p, a, err)
		}
	})
}

func TestLabelValue(t *testing.T) {
	for _, s := range []string{"pool1", strings.Repeat("n", 63), strings.Repeat("n", 64), strings.Repeat("n.", 126) + "x"} {
		got := LabelValue(s)
		if errs := validation.IsValidLabelValue(got); len(errs) > 0 {
			t.Errorf("LabelValue(%q) = %q: %v", s, got, errs)
		}
		if len(s) <= 63 && got != s {
			t.Errorf("LabelValue(%q) = %q, should stay readable", s, got)
		}
	}
	id := strings.Repeat("0123456789abcdef", 4)
	if errs := validation.IsValidLabelValue(ContainerLabel(id)); len(errs) > 0 {
		t.Errorf("ContainerLabel: %v", errs)
	}
}

func TestWindowLabel(t *testing.T) {
	for addr, want := range map[string]string{
		"10.0.3.77":        "10.0.3.0-24",
		"10.0.3.0":         "10.0.3.0-24",
		"255.255.255.255":  "255.255.255.0-24",
		"::ffff:10.0.3.77": "10.0.3.0-24",
		"fd00::1:aabb":     "fd00-0000-0000-0000-0000-0000-0001-aa00-120",
	} {
		got := WindowLabel(netip.MustParseAddr(addr))
		if got != want || len(validation.IsValidLabelValue(got)) > 0 {
			t.Errorf("%s: got %q, want %q", addr, got, want)
		}
	}
	if got := WindowLabel(netip.Addr{}); got != "" {
		t.Errorf("of no address: %q", got)
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// What a reservation names is counted when it is merged: an address that is named often neither
// counts often nor hides others, and what is too much is an error.
func TestReserved(t *testing.T) {
	const thousand, rest = "10.0.0.1-10.0.3.232", "10.0.9.0-10.0.9.19"
	for name, tc := range map[string]struct {
		subnet, addresses string
		want              int    // addresses
		last              string // of them
		err               string
	}{
		"each once":                    {"10.0.0.0/16", "10.0.0.7 10.0.0.5-10.0.0.7 10.0.0.6", 3, "10.0.0.7", ""},
		"many, and named three times":  {"10.0.0.0/16", strings.Join([]string{thousand, thousand, thousand, rest}, " "), 1020, "10.0.9.19", ""},
		"as many as there may be":      {"10.0.0.0/16", thousand + " 10.0.8.0-10.0.8.23", 1024, "10.0.8.23", ""},
		"one more":                     {"10.0.0.0/16", thousand + " 10.0.8.0-10.0.8.24", 1025, "10.0.8.24", "are more than 1024 addresses"},
		"one beside too many":          {"10.0.0.0/16", "10.0.128.0-10.0.255.255 10.0.0.1", 1025, "10.0.131.255", "are more than 1024 addresses"},
		"a /64":                        {"fd00::/64", "fd00::-fd00::ffff:ffff:ffff:ffff", 1025, "fd00::400", "are more than 1024 addresses"},
		"the end of the address space": {"ffff::/16", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 2, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", ""},
		"one outside of the subnet":    {"10.0.0.0/16", "10.0.0.7 10.1.0.0", 1, "10.0.0.7", "is not part of the subnet 10.0.0.0/16"},
	} {
		t.Run(name, func(t *testing.T) {
			o := ObjectOf(&v1alpha1.IPPool{Spec: v1alpha1.IPPoolSpec{Subnet: tc.subnet}})
			got, errs := o.Reserved(&v1alpha1.IPReservationSpec{Addresses: strings.Fields(tc.addresses)})
			if len(got) != tc.want || got[len(got)-1].String() != tc.last {
				t.Errorf("%d addresses up to %v, want %d up to %s", len(got), got[len(got)-1], tc.want, tc.last)
			}
			if text := Explain(errs); len(errs) > 1 || (len(errs) == 1) != (tc.err != "") || !strings.Contains(text, tc.err) {
				t.Errorf("errors %s, want %q", text, tc.err)
			}
		})
	}
}

// What a reservation names does not depend on its pool, nor on how much it is.
func TestReservedIn(t *testing.T) {
	set := ReservedIn(&v1alpha1.IPReservationSpec{Addresses: []string{"10.0.0.5", "10.1.0.0-10.255.0.0", "fd00::-fd00:1::", "10.0.0.9-10.0.0.8", "no address", "10.0.0.5"}})
	for text, want := range map[string]bool{
		"10.0.0.5": true, "10.0.0.6": false, "10.7.7.7": true, "fd00::7": true, "fd00:1::1": false, "10.0.0.8": false,
	} {
		if got := set.Contains(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

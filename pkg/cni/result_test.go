// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"

	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

func claimed(addr, subnet, gateway string, routes ...string) claim.Claim {
	b := &pool.Block{Subnet: netip.MustParsePrefix(subnet)}
	if gateway != "" {
		b.Gateway = netip.MustParseAddr(gateway)
	}
	for _, r := range routes {
		b.Routes = append(b.Routes, netip.MustParsePrefix(r))
	}
	return claim.Claim{Address: netip.MustParseAddr(addr), Block: b}
}

func TestResult(t *testing.T) {
	for _, tc := range []struct {
		name   string
		claims []claim.Claim
		want   string
	}{
		{"address and gateway", []claim.Claim{claimed("192.168.0.11", "192.168.0.0/16", "192.168.0.1")},
			`{"cniVersion":"1.1.0","ips":[{"address":"192.168.0.11/16","gateway":"192.168.0.1"}]}`},
		{"no gateway", []claim.Claim{claimed("10.0.0.2", "10.0.0.0/24", "")},
			`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24"}]}`},
		{"the gateway itself has no routes", []claim.Claim{claimed("10.0.0.1", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0")},
			`{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.1/24"}]}`},
		{"dual stack, routes sorted", []claim.Claim{
			claimed("fd00::2", "fd00::/64", "fd00::1", "::/0"),
			claimed("10.0.0.2", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0", "172.16.0.0/12"),
		}, `{"cniVersion":"1.1.0","ips":[{"address":"fd00::2/64","gateway":"fd00::1"},{"address":"10.0.0.2/24","gateway":"10.0.0.1"}],
			"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"},{"dst":"172.16.0.0/12","gw":"10.0.0.1"},{"dst":"::/0","gw":"fd00::1"}]}`},
		{"two pools of one subnet give a route once", []claim.Claim{
			claimed("10.0.0.2", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0"),
			claimed("10.0.0.9", "10.0.0.0/24", "10.0.0.1", "0.0.0.0/0"),
		}, `{"cniVersion":"1.1.0","ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1"},{"address":"10.0.0.9/24","gateway":"10.0.0.1"}],
			"routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1"}]}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := json.Marshal(result(tc.claims))
			if err != nil {
				t.Fatal(err)
			}
			var g, w any
			if err := json.Unmarshal([]byte(tc.want), &w); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(got, &g); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(g, w) {
				t.Errorf("result %s\nwant   %s", got, tc.want)
			}
		})
	}
}

func TestResultInEveryVersion(t *testing.T) {
	one := result([]claim.Claim{claimed("192.168.0.11", "192.168.0.0/16", "192.168.0.1", "0.0.0.0/0")})
	for _, v := range cniversion.All.SupportedVersions() {
		if _, err := one.GetAsVersion(v); err != nil {
			t.Errorf("version %s: %v", v, err)
		}
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestReadNetwork(t *testing.T) {
	for _, tc := range []struct {
		name, config string
		req          Request
		want         string
	}{
		{name: "a plugin", config: `{"name": "n", "type": "macvlan", "ipam": {"type": "nv-ipam", "poolName": "p, q"}}`, want: "[{IPPool p} {IPPool q}]  []"},
		{name: "a list", config: `{"name": "n", "plugins": [{"type": "tuning"}, {"type": "macvlan", "ipam": {"type": "nv-ipam", "poolName": "p", "poolType": "CIDRPool", "poolsNamespace": "x"}}]}`, want: "[{CIDRPool p}] x []"},
		{name: "the network's name", config: `{"plugins": [{"type": "macvlan", "ipam": {"type": "nv-ipam"}}]}`, req: Request{Name: "nad"}, want: "[{IPPool nad}]  []"},
		{name: "labels", config: `{"ipam": {"type": "nv-ipam", "poolName": "p-{rack}"}}`, want: "[{IPPool p-{rack}}]  []"},
		{name: "requested", config: `{"ipam": {"type": "nv-ipam", "poolName": "p"}}`, req: Request{IPs: []string{"10.0.0.1/24"}}, want: "[{IPPool p}]  [10.0.0.1]"},
		{name: "args", config: `{"ipam": {"type": "nv-ipam", "poolName": "p"}}`, req: Request{Args: json.RawMessage(`{"poolNames": ["q"], "ips": ["10.0.0.1"]}`)}, want: "[{IPPool q}]  [10.0.0.1]"},
		{name: "another plugin", config: `{"ipam": {"type": "whereabouts"}}`, want: "none"},
		{name: "no ipam", config: `{"type": "macvlan"}`, want: "none"},
		{name: "torn", config: `{`, want: "network configuration is not valid"},
		{name: "a number", config: `{"ipam": {"type": 1}}`, want: "network configuration is not valid"},
		{name: "bad args", config: `{"ipam": {"type": "nv-ipam", "poolName": "p"}}`, req: Request{Args: json.RawMessage(`{"ips": 1}`)}, want: "cni-args are not valid"},
		{name: "bad address", config: `{"ipam": {"type": "nv-ipam", "poolName": "p"}}`, req: Request{IPs: []string{"x"}}, want: "static IP request contains invalid IP address"},
		{name: "unknown kind", config: `{"ipam": {"type": "nv-ipam", "poolName": "p", "poolType": "x"}}`, want: "unsupported poolType x"},
	} {
		n, err := ReadNetwork([]byte(tc.config), tc.req)
		got := "none"
		switch {
		case err != nil:
			got = err.Error()
		case n != nil:
			got = fmt.Sprint(n.Pools, " ", n.PoolsNamespace, " ", n.Want.Addresses)
		}
		if got != tc.want && (err == nil || !strings.Contains(got, tc.want)) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
}

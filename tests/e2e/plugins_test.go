// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// Addresses for the interfaces of other plugins than macvlan, alone and with others after
// them in the network's list, through multus.
func TestMainPlugins(t *testing.T) {
	needsOwnCluster(t, "it makes links on a node")
	s := newScene(t)
	s.pool("mixed", "10.62.0.0/16", "10.62.0.1")
	const node = "kind-worker2"
	macvlan := `{"type": "macvlan", "master": "eth0", "mode": "bridge", %s}`
	bridge := `{"type": "bridge", "bridge": "br-mixed", %s}`
	for i, network := range []struct {
		name string
		// needs is a command that succeeds on a node whose kernel and programs are enough.
		needs   string
		plugins []string // the first one has nv-ipam
		// shows is a command in the pod, and what it says.
		shows, says string
	}{
		{name: "bridge", plugins: []string{bridge}},
		{name: "ptp", plugins: []string{`{"type": "ptp", %s}`}},
		{name: "host-device", needs: "ip link add mixed0 type veth peer name mixed1", plugins: []string{`{"type": "host-device", "device": "mixed0", %s}`}},
		{name: "vlan", needs: "ip link add link eth0 name probe type vlan id 7 && ip link del probe", plugins: []string{`{"type": "vlan", "master": "eth0", "vlanId": 9, %s}`}},
		{name: "ipvlan", needs: "ip link add link eth0 name probe type ipvlan && ip link del probe", plugins: []string{`{"type": "ipvlan", "master": "eth0", %s}`}},
		{name: "tuning", plugins: []string{macvlan, `{"type": "tuning", "mac": "02:00:0a:3e:00:01"}`}, shows: "ip link show net1", says: "02:00:0a:3e:00:01"},
		{name: "sbr", needs: "ip rule list", plugins: []string{macvlan, `{"type": "sbr"}`}, shows: "ip rule", says: "from 10.62."},
		{name: "bandwidth", plugins: []string{bridge, `{"type": "bandwidth", "ingressRate": 8000000, "ingressBurst": 8000000}`}},
		{name: "firewall", needs: "iptables --version", plugins: []string{bridge, `{"type": "firewall"}`}},
	} {
		t.Run(network.name, func(t *testing.T) {
			sub := &scene{t: t, name: s.name}
			if _, err := c.Node(node).Exec(t.Context(), "sh", "-c", network.needs); err != nil {
				t.Skip("not on this machine: ", err)
			}
			plugins := fmt.Sprintf(strings.Join(network.plugins, ", "), `"ipam": {"type": "nv-ipam", "poolName": "mixed"}`)
			sub.networkConfig(network.name, fmt.Sprintf(`{"cniVersion": "1.0.0", "name": %q, "plugins": [%s]}`, network.name, plugins))
			want := fmt.Sprintf("10.62.0.%d", 140+i) // of the third block
			sub.pod(network.name, node, fmt.Sprintf(`[{"name": %q, "ips": [%q]}]`, network.name, want))
			sub.running(network.name)
			if got := sub.addresses(network.name, "net1"); len(got) != 1 || got[0] != want {
				t.Errorf("it has %v, asked for %s", got, want)
			}
			if network.shows != "" {
				if out := kubectl(t, append([]string{"exec", "-n", s.name, network.name, "--"}, strings.Fields(network.shows)...)...); !strings.Contains(out, network.says) {
					t.Errorf("%s says\n%s", network.shows, out)
				}
			}
			kubectl(t, "delete", "pod", "-n", s.name, network.name, "--timeout=3m")
			sub.nothingAllocated()
		})
	}
}

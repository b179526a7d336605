// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// row is nv-ipam's behaviour: what a runtime sends, and what comes back.
type row struct {
	name string
	node string // b where empty
	ipam map[string]any
	args map[string]any // args.cni
	rc   map[string]any // runtimeConfig
	env  string         // further CNI_ARGS
	// want is the addresses of the result; else err and code are expected.
	want string
	err  string
	code uint
}

// railCluster has nodes a and b and these pools:
//
//	four   IPPool    10.0.0.0/16, blocks of 100, gateway .0.1, .0.150–.0.159 excluded
//	six    IPPool    fd00::/64, blocks of 100, gateway fd00::1
//	bare   IPPool    10.9.0.0/24, blocks of 10, no gateway
//	rail   CIDRPool  10.60.0.0/16 in /24, gateway index 1
//	rail6  CIDRPool  fd60::/48 in /64, gateway index 1
//
// Node b has .101–.200 of four, ::65–::c8 of six, 10.60.1.0/24 and fd60:0:0:1::/64.
func railCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCluster(t)
	ip := func(name string, spec v1alpha1.IPPoolSpec) { rig.IPPool(t, c.IPAM, c.NS, name, spec, "a", "b") }
	ip("four", v1alpha1.IPPoolSpec{
		Subnet: "10.0.0.0/16", PerNodeBlockSize: 100, Gateway: "10.0.0.1",
		Exclusions: []v1alpha1.ExcludeRange{{StartIP: "10.0.0.150", EndIP: "10.0.0.159"}},
	})
	ip("six", v1alpha1.IPPoolSpec{Subnet: "fd00::/64", PerNodeBlockSize: 100, Gateway: "fd00::1"})
	ip("bare", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 10})
	index := int32(1)
	cidr := func(name string, spec v1alpha1.CIDRPoolSpec) {
		rig.CIDRPool(t, c.IPAM, c.NS, name, spec, "a", "b")
	}
	cidr("rail", v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: &index})
	cidr("rail6", v1alpha1.CIDRPoolSpec{CIDR: "fd60::/48", PerNodeNetworkPrefix: 64, GatewayIndex: &index})
	return c
}

func ipam(kv ...string) map[string]any { return keys(kv) }

// keys makes a map of keys and values.
func keys(kv []string) map[string]any {
	m := map[string]any{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func list(key string, values ...string) map[string]any { return map[string]any{key: values} }

func runRows(t *testing.T, rows []row) {
	c := railCluster(t)
	hosts := map[string]*host{"a": c.host(t, "a"), "b": c.host(t, "b"), "stranger": c.host(t, "stranger")}
	for i, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			h := hosts["b"]
			if r.node != "" {
				h = hosts[r.node]
			}
			one := call{verb: "ADD", container: fmt.Sprint("c", i), ipam: r.ipam, args: r.env, conf: map[string]any{"name": "four"}}
			if _, named := r.ipam["poolName"]; !named {
				one.ipam = map[string]any{"poolName": nil}
				for k, v := range r.ipam {
					one.ipam[k] = v
				}
			}
			if r.args != nil {
				one.conf["args"] = map[string]any{"cni": r.args}
			}
			if r.rc != nil {
				one.conf["runtimeConfig"] = r.rc
			}
			if r.err != "" {
				if r.code == 0 {
					r.code = 7
				}
				h.wantError(t, one, r.code, r.err)
				if held := c.held(t); held != "[]" {
					t.Errorf("a refused request left %s", held)
				}
				return
			}
			if got := strings.Join(h.mustAdd(t, one), " "); got != r.want {
				t.Errorf("got %s, want %s", got, r.want)
			}
			one.verb = "DEL"
			h.mustRun(t, one)
		})
	}
	if held := c.held(t); held != "[]" {
		t.Errorf("left over: %s", held)
	}
}

// Ways to ask for an address.
func TestStaticAddress(t *testing.T) {
	dual := ipam("poolName", "four,six")
	rail := ipam("poolName", "rail", "poolType", "cidrpool")
	runRows(t, []row{
		{name: "runtimeConfig.ips", rc: list("ips", "10.0.0.111"), want: "10.0.0.111/16"},
		{name: "runtimeConfig.ips with a prefix length", rc: list("ips", "10.0.0.111/24"), want: "10.0.0.111/16"},
		{name: "args.cni.ips", args: list("ips", "10.0.0.111"), want: "10.0.0.111/16"},
		{name: "args.cni.ips with a prefix length", args: list("ips", "10.0.0.111/24"), want: "10.0.0.111/16"},
		{name: "CNI_ARGS IP", env: "IP=10.0.0.111", want: "10.0.0.111/16"},
		{name: "CNI_ARGS IP with a prefix length", env: "IP=10.0.0.111/24", want: "10.0.0.111/16"},
		{name: "CNI_ARGS IP twice, as multus sends for two families", ipam: dual, env: "IP=10.0.0.111,fd00::77", want: "10.0.0.111/16 fd00::77/64"},
		{name: "two families in the other order", ipam: dual, rc: list("ips", "fd00::77", "10.0.0.111"), want: "10.0.0.111/16 fd00::77/64"},
		{name: "one of two pools, the other is dynamic", ipam: dual, rc: list("ips", "fd00::77"), want: "10.0.0.101/16 fd00::77/64"},
		{name: "runtimeConfig wins over args.cni", rc: list("ips", "10.0.0.111"), args: list("ips", "10.0.0.112"), want: "10.0.0.111/16"},
		{name: "args.cni wins over CNI_ARGS", args: list("ips", "10.0.0.112"), env: "IP=10.0.0.113", want: "10.0.0.112/16"},
		{name: "runtimeConfig wins over CNI_ARGS", rc: list("ips", "10.0.0.111"), env: "IP=10.0.0.113", want: "10.0.0.111/16"},
		{name: "of another node's block", rc: list("ips", "10.0.0.7"), want: "10.0.0.7/16"},
		{name: "of nobody's block", rc: list("ips", "10.0.77.7"), want: "10.0.77.7/16"},
		{name: "excluded", rc: list("ips", "10.0.0.155"), want: "10.0.0.155/16"},
		{name: "the gateway", rc: list("ips", "10.0.0.1"), want: "10.0.0.1/16"},
		{name: "IPv6 as a person writes it", ipam: ipam("poolName", "six"), rc: list("ips", "FD00:0::0077"), want: "fd00::77/64"},
		{name: "IPv4 in IPv6 notation", rc: list("ips", "::ffff:10.0.0.111"), want: "10.0.0.111/16"},
		{name: "of this node's prefix of a CIDRPool", ipam: rail, rc: list("ips", "10.60.1.77"), want: "10.60.1.77/24"},
		{name: "of another node's prefix of a CIDRPool", ipam: rail, rc: list("ips", "10.60.0.77"),
			err: "not all requested static IPs can be allocated from the ranges available on the node, ip 10.60.0.77 has no matching Pool"},
		{name: "two of one pool", rc: list("ips", "10.0.0.111", "10.0.0.112"), err: "ip 10.0.0.112 has no matching Pool"},
		{name: "default gateway", args: map[string]any{"allocateDefaultGateway": true}, want: "10.0.0.1/16"},
		{name: "default gateway of this node's prefix", ipam: rail, args: map[string]any{"allocateDefaultGateway": true}, want: "10.60.1.1/24"},
		{name: "index", args: map[string]any{"allocateIPWithIndex": 5}, want: "10.0.0.106/16"},
		{name: "index in two pools", ipam: dual, args: map[string]any{"allocateIPWithIndex": 5}, want: "10.0.0.106/16 fd00::6a/64"},
		{name: "index counts from the first host of a prefix", ipam: rail, args: map[string]any{"allocateIPWithIndex": 5}, want: "10.60.1.6/24"},
	})
}

// Ways to name a pool.
func TestPoolNameAndType(t *testing.T) {
	runRows(t, []row{
		{name: "network's name", want: "10.0.0.101/16"},
		{name: "poolName", ipam: ipam("poolName", "bare"), want: "10.9.0.11/24"},
		{name: "two pools", ipam: ipam("poolName", "four,six"), want: "10.0.0.102/16 fd00::65/64"},
		{name: "two pools, the other way round", ipam: ipam("poolName", "six,four"), want: "fd00::66/64 10.0.0.103/16"},
		{name: "poolType cidrpool", ipam: ipam("poolName", "rail", "poolType", "cidrpool"), want: "10.60.1.2/24"},
		{name: "poolType in any case", ipam: ipam("poolName", "rail", "poolType", "CIDRPool"), want: "10.60.1.3/24"},
		{name: "two CIDRPools", ipam: ipam("poolName", "rail,rail6", "poolType", "cidrpool"), want: "10.60.1.4/24 fd60:0:0:1::2/64"},
		{name: "args.cni.poolNames wins", ipam: ipam("poolName", "four"), args: list("poolNames", "bare"), want: "10.9.0.12/24"},
		{name: "args.cni.poolType wins", ipam: ipam("poolType", "ippool"), args: map[string]any{"poolNames": []string{"rail"}, "poolType": "cidrpool"}, want: "10.60.1.5/24"},
		{name: "args.cni.poolNames of two families", args: list("poolNames", "bare", "six"), want: "10.9.0.13/24 fd00::67/64"},
		{name: "forcePoolName with a name", ipam: map[string]any{"forcePoolName": true, "poolName": "bare"}, want: "10.9.0.14/24"},
		{name: "forcePoolName without a name", ipam: map[string]any{"forcePoolName": true}, err: "forcePoolName"},
	})
}

// The words that people search their logs for.
func TestMessages(t *testing.T) {
	rail := ipam("poolName", "rail", "poolType", "cidrpool")
	yes := map[string]any{"allocateDefaultGateway": true}
	runRows(t, []row{
		{name: "no matching pool", env: "IP=10.10.10.10", err: "not all requested static IPs can be allocated from the ranges available on the node, ip 10.10.10.10 has no matching Pool"},
		{name: "no such pool", ipam: ipam("poolName", "nowhere"), err: `configuration for pool "nowhere", poolType "ippool" not found`, code: 11},
		{name: "no such pool of the kind", ipam: ipam("poolName", "four", "poolType", "cidrpool"), err: `configuration for pool "four", poolType "cidrpool" not found`, code: 11},
		{name: "no block for this node", node: "stranger", err: `configuration for pool "four", poolType "ippool" not found`, code: 11},
		{name: "index outside", args: map[string]any{"allocateIPWithIndex": 100}, err: `requested IP index "100" is outside of the given chunk`},
		{name: "index outside of a prefix", ipam: rail, args: map[string]any{"allocateIPWithIndex": 254}, err: `requested IP index "254" is outside of the given chunk`},
		{name: "index of the gateway", node: "a", args: map[string]any{"allocateIPWithIndex": 0}, err: `requested IP index "0" is the actual gateway, use allocate_default_gateway feature instead`},
		{name: "negative index", args: map[string]any{"allocateIPWithIndex": -1}, err: "allocateIPWithIndex can't be negative"},
		{name: "pool without gateway", ipam: ipam("poolName", "bare"), args: yes, err: `pool without gateway can't be used with allocate_default_gateway feature,pool "bare", poolType "ippool"`},
		{name: "no pod name", env: "K8S_POD_NAME=", err: "CNI_ARGS: K8S_POD_NAME is not provided by container runtime"},
		{name: "no pod namespace", env: "K8S_POD_NAMESPACE=", err: "CNI_ARGS: K8S_POD_NAMESPACE is not provided by container runtime"},
		{name: "rubbish in CNI_ARGS", env: "IP=300.0.0.1", err: "CNI_ARGS: IP argument contains invalid IP address"},
		{name: "rubbish in runtimeConfig", rc: list("ips", "10.0.0"), err: "static IP request contains invalid IP address"},
		{name: "rubbish in args.cni", args: list("ips", "host"), err: "static IP request contains invalid IP address"},
		{name: "three pools", ipam: ipam("poolName", "a,b,c"), err: "pool field can't contain more then two entries"},
		{name: "another poolType", ipam: ipam("poolType", "vlan"), err: "unsupported poolType vlan, supported values: ippool, cidrpool"},
		{name: "gateway and address", env: "IP=10.0.0.111", args: yes, err: "allocateDefaultGateway can't be used together with static IP allocation"},
		{name: "gateway and index", args: map[string]any{"allocateDefaultGateway": true, "allocateIPWithIndex": 1}, err: "allocateDefaultGateway can't be used together with allocateIPWithIndex"},
	})
}

// The messages of rows that need something to be held, or a CHECK.
func TestMessagesOfWhatIsHeld(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 2}, "a", "b")
	a, b := c.host(t, "a"), c.host(t, "b")
	a.mustAdd(t, call{container: "c1"})
	a.mustAdd(t, call{container: "c2"})
	a.wantError(t, call{verb: "ADD", container: "c3"}, 11, `no free addresses in the pool "p", poolType "ippool"`)
	b.wantError(t, call{verb: "ADD", container: "c4", args: "IP=10.0.0.1"}, 11, `requested IP is already reserved in the pool "p", poolType "ippool": 10.0.0.1 is held by pod default/c1 on node a (interface net1) since `)
	b.wantError(t, call{verb: "CHECK", container: "c4"}, 100, `reservation for pool "p", poolType "ippool" not found`)
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// nad is a network that was written an hour ago.
func nad(name, ipam string) network {
	n := network{ObjectMeta: metav1.ObjectMeta{Namespace: "ml", Name: name, CreationTimestamp: metav1.NewTime(now.Add(-time.Hour))}}
	n.Spec.Config = `{"cniVersion":"0.3.1","name":"` + name + `","type":"macvlan","ipam":` + ipam + `}`
	return n
}

func ranged(name, subnet string, entries map[string]entry) rangePool {
	p := rangePool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Range, p.Spec.Allocations = subnet, entries
	return p
}

func in(container, name string) entry {
	return entry{ContainerID: container, PodRef: "ml/" + name, Interface: "net1"}
}

// planOf plans for networks and ranges of a cluster whose pods are all on node-a.
func planOf(s state) *plan {
	s.now, s.settle, s.namespace = now, InFlight, "kube-system"
	if s.pods == nil {
		s.pods = map[string]pod{}
		for _, r := range s.ranges {
			for _, e := range r.Spec.Allocations {
				s.pods[e.PodRef] = pod{node: "node-a", created: metav1.NewTime(now.Add(-time.Hour))}
			}
		}
	}
	return newPlan(&s)
}

// What becomes of configurations.
func TestNetworks(t *testing.T) {
	for name, tc := range map[string]struct {
		ipam   string
		pools  []string // name domain subnet block ranges exclusions gateway routes
		poolNs string   // of the patch; none where it is empty
		cannot string
	}{
		"a range": {
			ipam: `{"type":"whereabouts","range":"192.168.2.225/28"}`, pools: []string{"192.168.2.224-28 whereabouts 192.168.2.224/28"}, poolNs: "192.168.2.224-28",
		},
		"start, end, exclusions, gateway and a route": {
			ipam:  `{"type":"whereabouts","range":"10.0.0.0/24","range_start":"10.0.0.10","range_end":"10.0.0.99","exclude":["10.0.0.16/30","10.0.0.20","10.1.0.0/16"],"gateway":"10.0.0.1","routes":[{"dst":"0.0.0.0/0"}]}`,
			pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24 ranges 10.0.0.10-10.0.0.99 without 10.0.0.16-10.0.0.19 10.0.0.20-10.0.0.20 via 10.0.0.1 0.0.0.0/0"}, poolNs: "10.0.0.0-24",
		},
		"the range as first-last/length": {
			ipam: `{"type":"whereabouts","range":"10.0.0.5-10.0.0.9/24"}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24 ranges 10.0.0.5-10.0.0.9"}, poolNs: "10.0.0.0-24",
		},
		"an end outside of the range has no effect": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","range_end":"10.0.1.9"}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24"}, poolNs: "10.0.0.0-24",
		},
		"network_name": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","network_name":"blue"}`, pools: []string{"blue-10.0.0.0-24 blue 10.0.0.0/24"}, poolNs: "blue-10.0.0.0-24",
		},
		"no uniqueness across ranges": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","enable_overlapping_ranges":false}`, pools: []string{"10.0.0.0-24 10.0.0.0-24 10.0.0.0/24"}, poolNs: "10.0.0.0-24",
		},
		"dual stack": {
			ipam:   `{"type":"whereabouts","ipRanges":[{"range":"10.0.0.0/24"},{"range":"fd00:1::/64"}]}`,
			pools:  []string{"10.0.0.0-24 whereabouts 10.0.0.0/24", "fd00-1---64 whereabouts fd00:1::/64"},
			poolNs: "10.0.0.0-24,fd00-1---64",
		},
		"slices": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/16","node_slice_size":"/24","network_name":"s","range_start":"10.0.0.9"}`, pools: []string{"s-10.0.0.0-16 s 10.0.0.0/16 blocks of 256"}, poolNs: "s-10.0.0.0-16",
		},
		"a static address": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","addresses":[{"address":"10.0.0.7/24"}]}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24"}, cannot: "addresses: there is nothing like it",
		},
		"dns": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","dns":{"nameservers":["10.0.0.1"]}}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24"}, cannot: "dns: there is nothing like it",
		},
		"an empty dns is nothing": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","dns":{},"log_level":"debug"}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24"}, poolNs: "10.0.0.0-24",
		},
		"a route with a gateway of its own": {
			ipam: `{"type":"whereabouts","range":"10.0.0.0/24","gateway":"10.0.0.1","routes":[{"dst":"10.9.0.0/16","gw":"10.0.0.2"}]}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24 via 10.0.0.1 10.9.0.0/16"}, cannot: "routes: 10.9.0.0/16 via 10.0.0.2",
		},
		"three ranges": {
			ipam:  `{"type":"whereabouts","ipRanges":[{"range":"10.0.0.0/24"},{"range":"fd00::/64"},{"range":"10.0.2.0/24"}]}`,
			pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24", "fd00---64 whereabouts fd00::/64", "10.0.2.0-24 whereabouts 10.0.2.0/24"}, cannot: "ipRanges has 3 ranges",
		},
		"two ranges of one family": {
			ipam:  `{"type":"whereabouts","ipRanges":[{"range":"10.0.0.0/24"},{"range":"10.0.2.0/24"}]}`,
			pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24", "10.0.2.0-24 whereabouts 10.0.2.0/24"}, cannot: "two ranges of one address family",
		},
		"no range":                        {ipam: `{"type":"whereabouts"}`, cannot: "it has no range"},
		"a range that is none":            {ipam: `{"type":"whereabouts","range":"10.0.0.0"}`, cannot: `range "10.0.0.0"`},
		"an exclusion that is none":       {ipam: `{"type":"whereabouts","range":"10.0.0.0/24","exclude":["x"]}`, cannot: `exclude "x"`},
		"keys of the wrong type":          {ipam: `{"type":"whereabouts","range":7}`, cannot: "cannot be read"},
		"a gateway outside of the subnet": {ipam: `{"type":"whereabouts","range":"10.0.0.0/24","gateway":"10.7.0.1"}`, pools: []string{"10.0.0.0-24 whereabouts 10.0.0.0/24 via 10.7.0.1"}, cannot: "its pool would be refused"},
		"another IPAM":                    {ipam: `{"type":"host-local"}`},
	} {
		t.Run(name, func(t *testing.T) {
			p := planOf(state{networks: []network{nad("n", tc.ipam)}})
			var got []string
			for _, o := range p.pools {
				got = append(got, describe(o))
			}
			if !slices.Equal(got, tc.pools) {
				t.Errorf("pools %q, want %q", got, tc.pools)
			}
			patched := ""
			for _, o := range p.patches {
				c := parseConfig(&network{Spec: struct {
					Config string `json:"config"`
				}{o.config}})
				patched = c.own.PoolName
				if c.own.Type != "nv-ipam" || c.all["type"] != "macvlan" || len(c.ipam) != 2 {
					t.Errorf("patched to %s", o.config)
				}
			}
			if patched != tc.poolNs {
				t.Errorf("the network is patched to %q, want %q", patched, tc.poolNs)
			}
			if all := strings.Join(p.cannot, "; "); tc.cannot == "" && all != "" || !strings.Contains(all, tc.cannot) {
				t.Errorf("cannot be mapped: %s, want %q", all, tc.cannot)
			}
		})
	}
}

// A pool that would be refused is not printed for kubectl apply, and nothing is claimed in it.
func TestRefusedPoolIsLeftOut(t *testing.T) {
	p := planOf(state{
		networks: []network{
			nad("named", `{"type":"whereabouts","range":"10.0.2.0/24","network_name":"Net_A"}`),
			nad("gateway", `{"type":"whereabouts","range":"10.0.0.0/24","gateway":"10.7.0.1"}`),
			nad("good", `{"type":"whereabouts","range":"10.0.1.0/24"}`),
		},
		ranges: []rangePool{ranged("10.0.0.0-24", "10.0.0.0/24", map[string]entry{"5": in("c1", "p")})},
	})
	var out strings.Builder
	if err := p.writePools(&out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); strings.Contains(text, "name: Net_A") || strings.Contains(text, "name: 10.0.0.0-24") || !strings.Contains(text, "# pool Net_A-10.0.2.0-24 is left out: its pool would be refused") || !strings.Contains(text, "name: 10.0.1.0-24") {
		t.Error(text)
	}
	if all := strings.Join(p.cannot, "\n"); len(p.claims) != 0 || !strings.Contains(all, "10.0.0.5 of pod "+in("c1", "p").PodRef+": its pool would be refused") {
		t.Errorf("claims %v, cannot %s", p.claims, all)
	}
}

// Whoever writes a network or runs whereabouts writes a part of what an administrator applies and
// reads.
func TestTextsOfOthers(t *testing.T) {
	const object = "a\n---\nkind: ClusterRoleBinding\nmetadata:\n  name: mine\n#"
	const evil = "x\x1b[2J\u009b2J\nb\tc"
	quoted, _ := json.Marshal(object)
	p := planOf(state{
		networks: []network{
			nad("named", `{"type":"whereabouts","range":"10.0.0.0/24","network_name":`+string(quoted)+`}`),
			nad("good", `{"type":"whereabouts","range":"10.0.1.0/24","log_file":"`+"\u009b2J\u202e"+`"}`),
		},
		ranges: []rangePool{ranged("10.0.1.0-24", "10.0.1.0/24", map[string]entry{"5": in("c1", evil), "x\x1b[2J": in("c2", "p")})},
	})
	var pools, all strings.Builder
	if err := errors.Join(p.writePools(&pools), p.writeAll(&all)); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(pools.String()) {
		if line == "kind: ClusterRoleBinding\n" {
			t.Errorf("to apply: %s", pools.String())
		}
	}
	if strings.ContainsAny(all.String(), "\x1b\u009b\u202e") {
		t.Errorf("the terminal obeys %q", all.String())
	}
	if len(p.claims) == 0 || !strings.Contains(all.String(), `x\x1b[2J\u009b2J; b c`) || len(p.patches) != 1 {
		t.Errorf("%d networks are switched, and nothing is said of pod %q: %s", len(p.patches), evil, all.String())
	}
}

// A pool of ours that cannot be is passed over: only CRDs of others let it exist.
func TestPoolWithoutSubnet(t *testing.T) {
	s := state{networks: []network{nad("n", `{"type":"whereabouts","range":"10.0.0.0/24"}`)}}
	s.pools = []v1alpha1.IPPool{{ObjectMeta: metav1.ObjectMeta{Name: "x", Annotations: map[string]string{annotationFrom: " 10.0.0.0/24"}},
		Spec: v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/33"}}}
	if p := planOf(s); len(p.patches) != 1 || len(p.pools) != 1 || p.pools[0].pool.Name != "10.0.0.0-24" {
		t.Errorf("%+v", p)
	}
}

func describe(t *target) string {
	s := t.pool.Spec
	out := t.pool.Name + " " + t.domain() + " " + s.Subnet
	if s.PerNodeBlockSize > 0 {
		out += fmt.Sprintf(" blocks of %d", s.PerNodeBlockSize)
	}
	if len(s.Ranges) > 0 {
		out += " ranges " + strings.Join(s.Ranges, " ")
	}
	for i, e := range s.Exclusions {
		if i == 0 {
			out += " without"
		}
		out += " " + e.StartIP + "-" + e.EndIP
	}
	if s.Gateway != "" {
		out += " via " + s.Gateway
	}
	for _, r := range s.Routes {
		out += " " + r.Dst
	}
	return out
}

// Plugin lists are read, too.
func TestPluginList(t *testing.T) {
	n := nad("n", `{}`)
	n.Spec.Config = `{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"macvlan","ipam":{"type":"whereabouts","range":"10.0.0.0/24"}},{"type":"tuning"}]}`
	p := planOf(state{networks: []network{n}})
	if len(p.patches) != 1 || !strings.Contains(p.patches[0].config, `{"ipam":{"poolName":"10.0.0.0-24","type":"nv-ipam"},"type":"macvlan"},{"type":"tuning"}`) {
		t.Errorf("patches %+v", p.patches)
	}
}

// Two networks that give different parts of one range have a pool each, in one domain.
func TestPartsOfARange(t *testing.T) {
	s := state{
		networks: []network{nad("a", `{"type":"whereabouts","range":"10.0.0.0/24","range_end":"10.0.0.99"}`), nad("b", `{"type":"whereabouts","range":"10.0.0.0/24","range_start":"10.0.0.100"}`)},
		ranges:   []rangePool{ranged("10.0.0.0-24", "10.0.0.0/24", map[string]entry{"5": in("c1", "p"), "100": in("c2", "q"), "254": in("c3", "r")})},
	}
	p := planOf(s)
	var got []string
	for _, c := range p.claims {
		got = append(got, c.alloc.Name+" "+c.alloc.Spec.PoolRef.Name)
	}
	want := []string{"whereabouts.10.0.0.5 10.0.0.0-24", "whereabouts.10.0.0.100 10.0.0.0-24-2", "whereabouts.10.0.0.254 10.0.0.0-24-2"}
	if !slices.Equal(got, want) || len(p.pools) != 2 {
		t.Errorf("claims %q, want %q, in %d pools", got, want, len(p.pools))
	}
	// One network is switched, and the pools exist: the other one finds its pool again.
	s.networks[0] = nad("a", `{"type":"nv-ipam","poolName":"10.0.0.0-24"}`)
	for _, o := range p.pools {
		s.pools = append(s.pools, *o.pool)
	}
	again := planOf(s)
	if len(again.pools) != 2 || len(again.patches) != 1 || !strings.Contains(again.patches[0].config, `"10.0.0.0-24-2"`) {
		t.Errorf("%d pools, patches %+v", len(again.pools), again.patches)
	}
}

// When a pool may give addresses.
func TestDisabled(t *testing.T) {
	const theirs = `{"type":"whereabouts","range":"10.0.0.0/16"}`
	const ours = `{"type":"nv-ipam","poolName":"10.0.0.0-16"}`
	taken := []rangePool{ranged("10.0.0.0-16", "10.0.0.0/16", map[string]entry{"5": in("c1", "p")})}
	claimed := func(s state) []v1alpha1.IPAllocation {
		a := *planOf(s).claims[0].alloc
		return []v1alpha1.IPAllocation{a}
	}
	base := planOf(state{networks: []network{nad("a", theirs)}, ranges: taken})
	pools := []v1alpha1.IPPool{*base.pools[0].pool}
	changed := nad("a", ours)
	at := metav1.NewTime(now.Add(-time.Minute))
	changed.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl", Time: &at}}
	for name, tc := range map[string]struct {
		s    state
		want string // why it is disabled
	}{
		"before the switch":                    {state{networks: []network{nad("a", theirs)}}, "network ml/a still uses whereabouts"},
		"just after the switch":                {state{networks: []network{changed}}, "changed 1m0s ago: wait for 1m0s"},
		"a part of the range elsewhere":        {state{networks: []network{nad("a", ours), nad("b", `{"type":"whereabouts","range":"10.0.7.0/24"}`)}}, "network ml/b still"},
		"another network_name is another one":  {state{networks: []network{nad("a", ours), nad("b", `{"type":"whereabouts","range":"10.0.7.0/24","network_name":"x"}`)}}, ""},
		"another range is no hindrance":        {state{networks: []network{nad("a", ours), nad("b", `{"type":"whereabouts","range":"10.7.0.0/24"}`)}}, ""},
		"something is not claimed":             {state{networks: []network{nad("a", ours)}, ranges: taken}, "1 addresses that whereabouts has given are not claimed, 10.0.0.5"},
		"all is claimed":                       {state{networks: []network{nad("a", ours)}, ranges: taken, held: claimed(state{networks: []network{nad("a", theirs)}, ranges: taken})}, ""},
		"a network that cannot be switched":    {state{networks: []network{nad("a", ours), nad("b", `{"type":"whereabouts","range":"10.0.0.0/16","dns":{"domain":"x"}}`)}}, "network ml/b still"},
		"a pod without a node, so no claim":    {state{networks: []network{nad("a", ours)}, ranges: taken, pods: map[string]pod{"ml/p": {}}}, "10.0.0.5 of pod ml/p cannot be claimed"},
		"a pod that is gone is no hindrance":   {state{networks: []network{nad("a", ours)}, ranges: taken, pods: map[string]pod{}}, ""},
		"a range that overlaps, by other pool": {state{networks: []network{nad("a", ours)}, ranges: []rangePool{ranged("10.0.0.0-24", "10.0.0.0/24", map[string]entry{"5": in("c1", "p")})}}, "1 addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			tc.s.pools = pools
			got := planOf(tc.s).pools[0]
			why := strings.Join(got.held, "; ")
			if got.pool.Spec.Disabled != (tc.want != "") || !strings.Contains(why, tc.want) || tc.want == "" && why != "" {
				t.Errorf("disabled %v: %s, want %q", got.pool.Spec.Disabled, why, tc.want)
			}
		})
	}
}

// What becomes of entries.
func TestClaims(t *testing.T) {
	networks := []network{nad("a", `{"type":"whereabouts","range":"10.0.0.0/24","exclude":["10.0.0.128/25"]}`)}
	held := func(container, pod, address string, migrated bool) v1alpha1.IPAllocation {
		a := v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "whereabouts." + address}, Spec: v1alpha1.IPAllocationSpec{
			Address: address, NodeName: "node-a", ContainerID: container, InterfaceName: "net1", PodRef: v1alpha1.PodReference{Namespace: "ml", Name: pod},
		}}
		if migrated {
			a.Annotations = map[string]string{annotationFrom: ""}
		}
		return a
	}
	for name, tc := range map[string]struct {
		entries map[string]entry
		pods    map[string]pod
		held    []v1alpha1.IPAllocation
		want    []string
		cannot  string
	}{
		"an address":                             {entries: map[string]entry{"5": in("c", "p")}, want: []string{"10.0.0.5 claim"}},
		"one that is excluded by now":            {entries: map[string]entry{"200": in("c", "p")}, want: []string{"10.0.0.200 claim requested"}},
		"a second run":                           {entries: map[string]entry{"5": in("c", "p")}, held: []v1alpha1.IPAllocation{held("c", "p", "10.0.0.5", true)}, want: []string{"10.0.0.5 none: claimed"}},
		"given to another since the first run":   {entries: map[string]entry{"5": in("d", "q")}, held: []v1alpha1.IPAllocation{held("c", "p", "10.0.0.5", true)}, want: []string{"10.0.0.5 claim, in place of an earlier run's"}},
		"held by a pod of ours":                  {entries: map[string]entry{"5": in("c", "p")}, held: []v1alpha1.IPAllocation{held("d", "q", "10.0.0.5", false)}, want: []string{"10.0.0.5 CONFLICT"}},
		"the pod's next sandbox has it":          {entries: map[string]entry{"5": in("c", "p")}, held: []v1alpha1.IPAllocation{held("d", "p", "10.0.0.5", false)}, want: []string{"10.0.0.5 none: the pod has another sandbox"}},
		"the pod's next sandbox has another one": {entries: map[string]entry{"5": in("c", "p")}, held: []v1alpha1.IPAllocation{held("d", "p", "10.0.0.6", false)}, want: []string{"10.0.0.5 none: the pod has another sandbox"}},
		"and somebody else has this one": {
			entries: map[string]entry{"5": in("c", "p")}, held: []v1alpha1.IPAllocation{held("d", "p", "10.0.0.6", false), held("e", "q", "10.0.0.5", false)},
			want: []string{"10.0.0.5 none: the pod has another sandbox"},
		},
		"an old entry, and the pod's status": {
			entries: map[string]entry{"5": {ContainerID: "c", PodRef: "ml/p"}},
			pods:    map[string]pod{"ml/p": {node: "node-a", status: `[{"name":"cbr0","interface":"eth0","ips":["10.244.0.9"]},{"name":"ml/a","interface":"net1","ips":["10.0.0.5"]}]`}},
			want:    []string{"10.0.0.5 claim"},
		},
		"an old entry, and no status": {entries: map[string]entry{"5": {ContainerID: "c", PodRef: "ml/p"}}, cannot: "10.0.0.5 of pod ml/p: the entry has no container, or no interface"},
		"a pod that is gone":          {entries: map[string]entry{"5": in("c", "p")}, pods: map[string]pod{}, cannot: "the pod does not exist"},
		"no distance":                 {entries: map[string]entry{"x": in("c", "p")}, cannot: `"x" is no distance in 10.0.0.0/24`},
		"a distance beyond the range": {entries: map[string]entry{"256": in("c", "p")}, cannot: `"256" is no distance`},
		"a distance without end":      {entries: map[string]entry{"9223372036854775807": in("c", "p")}, cannot: "is no distance"},
	} {
		t.Run(name, func(t *testing.T) {
			p := planOf(state{networks: networks, ranges: []rangePool{ranged("10.0.0.0-24", "10.0.0.0/24", tc.entries)}, pods: tc.pods, held: tc.held})
			var got []string
			for _, c := range p.claims {
				text := c.alloc.Spec.Address + " " + string(c.action)
				if c.alloc.Spec.Requested {
					text += " requested"
				}
				got = append(got, text)
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("claims %q, want %q", got, tc.want)
			}
			if all := strings.Join(p.cannot, "; "); !strings.Contains(all, tc.cannot) || tc.cannot == "" && all != "" {
				t.Errorf("cannot be mapped: %s, want %q", all, tc.cannot)
			}
		})
	}
}

// An address that whereabouts has given in two ranges of one domain is a conflict: both
// answer on it. A reservation without an entry is listed.
func TestGivenTwice(t *testing.T) {
	var left reservation
	left.Name, left.Spec.PodRef = "10.0.0.77", "ml/old"
	p := planOf(state{
		networks: []network{nad("a", `{"type":"whereabouts","range":"10.0.0.0/24"}`), nad("b", `{"type":"whereabouts","range":"10.0.0.0/16"}`)},
		ranges: []rangePool{
			ranged("10.0.0.0-24", "10.0.0.0/24", map[string]entry{"5": in("c", "p")}),
			ranged("10.0.0.0-16", "10.0.0.0/16", map[string]entry{"5": in("d", "q"), "6": in("d", "r")}),
		},
		reservations: []reservation{left},
	})
	if got := p.String(); got != "3 addresses: 2 to claim, 0 already claimed, 0 obsolete, 1 conflicts; 1 cannot be mapped" {
		t.Error(got)
	}
	if c := p.claims[1]; c.action != conflict || c.remark != "whereabouts has given it to pods ml/p and ml/q" {
		t.Errorf("%s: %s", c.action, c.remark)
	}
	if len(p.cannot) != 1 || !strings.Contains(p.cannot[0], "OverlappingRangeIPReservation 10.0.0.77") {
		t.Errorf("cannot be mapped: %q", p.cannot)
	}
}

func TestPlus(t *testing.T) {
	for _, tc := range []struct {
		from string
		n    uint64
		want string // empty: not valid
	}{
		{"10.0.0.0", 0, "10.0.0.0"}, {"10.0.0.255", 1, "10.0.1.0"}, {"255.255.255.255", 1, ""}, {"10.0.0.0", 1 << 40, ""},
		{"fd00::", 1<<63 - 1, "fd00::7fff:ffff:ffff:ffff"}, {"fd00::ffff:ffff:ffff:ffff", 1, "fd00:0:0:1::"},
	} {
		got := plus(netip.MustParseAddr(tc.from), tc.n)
		if got.IsValid() != (tc.want != "") || got.IsValid() && got.String() != tc.want {
			t.Errorf("%s + %d is %v, want %q", tc.from, tc.n, got, tc.want)
		}
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package pool

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// checkErrors compares errors with "path: value" each: the exact path of the
// field, and a text that the message has to contain.
func checkErrors(t *testing.T, errs field.ErrorList, want []string) {
	t.Helper()
	ok := len(errs) == len(want)
	for i := 0; ok && i < len(want); i++ {
		path, value, _ := strings.Cut(want[i], ": ")
		ok = errs[i].Field == path && strings.Contains(errs[i].Error(), value)
	}
	if !ok {
		t.Errorf("got errors %q\nwant %q", errs, want)
	}
}

func routes(text string) []v1alpha1.Route {
	var out []v1alpha1.Route
	for _, f := range strings.Fields(text) {
		out = append(out, v1alpha1.Route{Dst: f})
	}
	return out
}

func selecting(key string, op corev1.NodeSelectorOperator, values ...string) *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
		{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: op, Values: values}}}}}
}

// badSelectors are wrong in either kind of pool.
var badSelectors = []struct {
	name     string
	selector *corev1.NodeSelector
	errs     []string
}{
	{"selector without terms", &corev1.NodeSelector{}, []string{"spec.nodeSelector.nodeSelectorTerms: Required value"}},
	{"selector with an unknown operator", selecting("rack", "Like", "a"),
		[]string{`spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].operator: "Like"`}},
	{"selector with a bad key", selecting("no spaces", "Exists"),
		[]string{`spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].key: "no spaces"`}},
	{"selector In without values", selecting("rack", "In"),
		[]string{"spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].values: "}},
	{"selector Exists with values", selecting("rack", "Exists", "a"),
		[]string{`spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].values: "a"`}},
	{"selector Gt with a text", selecting("rack", "Gt", "many"),
		[]string{`spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].values[0]: "many"`}},
	{"selector on a field other than the name", &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
		{MatchFields: []corev1.NodeSelectorRequirement{{Key: "spec.podCIDR", Operator: "In", Values: []string{"a"}}}}}},
		[]string{`spec.nodeSelector.nodeSelectorTerms[0].matchFields[0].key: "spec.podCIDR"`}},
	{"selector with two mistakes", &corev1.NodeSelector{NodeSelectorTerms: append(selecting("rack", "In").NodeSelectorTerms, selecting("rack", "Like").NodeSelectorTerms...)},
		[]string{"spec.nodeSelector.nodeSelectorTerms[0].matchExpressions[0].values: ", `spec.nodeSelector.nodeSelectorTerms[1].matchExpressions[0].operator: "Like"`}},
}

// names are pool names and whether they are valid.
var names = map[string]bool{
	"pool1": true, "Pool_1.a-b": true, "0": true, "a.": true,
	"": false, "-a": false, ".a": false, "_a": false, "a b": false, "a/b": false, "a\n": false, "ä": false,
}

func TestParseIPPool(t *testing.T) {
	type spec = v1alpha1.IPPoolSpec
	tests := []struct {
		name string
		edit func(*spec) // of a valid pool 10.0.0.0/24, block size 10, gateway .1
		errs []string    // none: the pool is valid
	}{
		{name: "valid", edit: func(*spec) {}},
		{name: "no gateway", edit: func(s *spec) { s.Gateway = "" }},
		{name: "gateway in IPv6 notation", edit: func(s *spec) { s.Gateway = "::ffff:10.0.0.1" }},

		{name: "no subnet", edit: func(s *spec) { s.Subnet = "" }, errs: []string{`spec.subnet: ""`}},
		{name: "subnet without length", edit: func(s *spec) { s.Subnet = "10.0.0.0" }, errs: []string{`spec.subnet: "10.0.0.0"`}},
		{name: "subnet with a length too large", edit: func(s *spec) { s.Subnet = "10.0.0.0/33" }, errs: []string{`spec.subnet: "10.0.0.0/33"`}},
		{name: "subnet IPv4 in IPv6 notation", edit: func(s *spec) { s.Subnet = "::ffff:10.0.0.0/120" }, errs: []string{`spec.subnet: "::ffff:10.0.0.0/120"`}},
		{name: "subnet with a zone", edit: func(s *spec) { s.Subnet = "fe80::%eth0/64" }, errs: []string{`spec.subnet: "fe80::%eth0/64"`}},

		{name: "no blocks", edit: func(s *spec) { s.PerNodeBlockSize, s.PerNodeExclusions = 0, nil }},
		{name: "block size negative", edit: func(s *spec) { s.PerNodeBlockSize = -5 }, errs: []string{"spec.perNodeBlockSize: -5"}},
		{name: "block size 1", edit: func(s *spec) { s.PerNodeBlockSize = 1 }},
		{name: "block size all hosts", edit: func(s *spec) { s.PerNodeBlockSize = 254 }},
		{name: "block size one more than hosts", edit: func(s *spec) { s.PerNodeBlockSize = 255 }, errs: []string{"spec.perNodeBlockSize: 255"}},
		{name: "block size of a /31", edit: func(s *spec) { *s = spec{Subnet: "10.0.0.0/31", PerNodeBlockSize: 2} }},
		{name: "block size too large for a /31", edit: func(s *spec) { *s = spec{Subnet: "10.0.0.0/31", PerNodeBlockSize: 3} }, errs: []string{"spec.perNodeBlockSize: 3"}},
		{name: "block size of a /32", edit: func(s *spec) { *s = spec{Subnet: "10.0.0.0/32", PerNodeBlockSize: 1} }},
		{name: "block size too large for a /32", edit: func(s *spec) { *s = spec{Subnet: "10.0.0.0/32", PerNodeBlockSize: 2} }, errs: []string{"spec.perNodeBlockSize: 2"}},
		{name: "block size all hosts of an IPv6 /120", edit: func(s *spec) { *s = spec{Subnet: "fd00::/120", PerNodeBlockSize: 255} }},
		{name: "block size one more than hosts of an IPv6 /120", edit: func(s *spec) { *s = spec{Subnet: "fd00::/120", PerNodeBlockSize: 256} }, errs: []string{"spec.perNodeBlockSize: 256"}},
		{name: "block size huge", edit: func(s *spec) { *s = spec{Subnet: "fd00::/48", PerNodeBlockSize: 1<<63 - 1} }},

		{name: "gateway is not an address", edit: func(s *spec) { s.Gateway = "10.0.0" }, errs: []string{`spec.gateway: "10.0.0"`}},
		{name: "gateway with a zone", edit: func(s *spec) { s.Gateway = "fe80::1%eth0" }, errs: []string{`spec.gateway: "fe80::1%eth0"`}},
		{name: "gateway outside", edit: func(s *spec) { s.Gateway = "10.0.1.1" }, errs: []string{`spec.gateway: "10.0.1.1"`}},
		{name: "gateway of the other family", edit: func(s *spec) { s.Gateway = "fd00::1" }, errs: []string{`spec.gateway: "fd00::1"`}},

		{name: "exclusions", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.0-10.0.0.10 10.0.0.5-10.0.0.5 10.0.0.255-10.0.0.255") }},
		{name: "exclusion is not an address", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.0-10.0.0.9 x-y") },
			errs: []string{`spec.exclusions[1].startIP: "x"`, `spec.exclusions[1].endIP: "y"`}},
		{name: "exclusion starts outside", edit: func(s *spec) { s.Exclusions = exclude("9.255.255.255-10.0.0.9") }, errs: []string{`spec.exclusions[0].startIP: "9.255.255.255"`}},
		{name: "exclusion ends outside", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.9-10.0.1.0") }, errs: []string{`spec.exclusions[0].endIP: "10.0.1.0"`}},
		{name: "exclusion ends before it starts", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.9-10.0.0.8") }, errs: []string{`spec.exclusions[0]: "10.0.0.9 - 10.0.0.8"`}},
		{name: "exclusion of the other family", edit: func(s *spec) { s.Exclusions = exclude("fd00::1-fd00::2") },
			errs: []string{`spec.exclusions[0].startIP: "fd00::1"`, `spec.exclusions[0].endIP: "fd00::2"`}},
		{name: "exclusion from one family to the other", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.1-fd00::2") }, errs: []string{`spec.exclusions[0].endIP: "fd00::2"`}},

		{name: "per-node exclusions", edit: func(s *spec) { s.PerNodeExclusions = positions("0-0 3-9") }},
		{name: "per-node exclusion negative", edit: func(s *spec) { s.PerNodeExclusions = []v1alpha1.ExcludeIndexRange{{StartIndex: -1, EndIndex: 2}} }, errs: []string{"spec.perNodeExclusions[0].startIndex: -1"}},
		{name: "per-node exclusion ends before it starts", edit: func(s *spec) { s.PerNodeExclusions = positions("0-1 5-4") }, errs: []string{"spec.perNodeExclusions[1].endIndex: 4"}},
		{name: "per-node exclusion outside", edit: func(s *spec) { s.PerNodeExclusions = positions("0-10") }, errs: []string{"spec.perNodeExclusions[0].endIndex: 10"}},

		{name: "routes", edit: func(s *spec) { s.Routes = routes("0.0.0.0/0 172.16.5.0/12") }},
		{name: "route is not a subnet", edit: func(s *spec) { s.Routes = routes("172.16.0.0/12 x") }, errs: []string{`spec.routes[1].dst: "x"`}},
		{name: "route of the other family", edit: func(s *spec) { s.Routes = routes("fd00::/64") }, errs: []string{`spec.routes[0].dst: "fd00::/64"`}},
		{name: "routes without gateway", edit: func(s *spec) { s.Gateway, s.Routes = "", routes("172.16.0.0/12") }, errs: []string{`spec.routes: 172.16.0.0/12`}},
		{name: "defaultGateway", edit: func(s *spec) { s.DefaultGateway, s.Routes = true, routes("172.16.0.0/12") }},
		{name: "defaultGateway without gateway", edit: func(s *spec) { s.Gateway, s.DefaultGateway = "", true }, errs: []string{"spec.defaultGateway: true: cannot be true if spec.gateway is not set"}},
		{name: "defaultGateway and a default route", edit: func(s *spec) { s.DefaultGateway, s.Routes = true, routes("0.0.0.0/0") }, errs: []string{`spec.routes[0].dst: "0.0.0.0/0"`}},

		{name: "two mistakes are two errors", edit: func(s *spec) { s.Gateway, s.Exclusions = "10.0.1.1", exclude("10.0.0.9-10.0.1.0") },
			errs: []string{`spec.gateway: "10.0.1.1"`, `spec.exclusions[0].endIP: "10.0.1.0"`}},
		{name: "a bad subnet hides no other mistake of its own", edit: func(s *spec) { s.Subnet, s.Gateway, s.Routes, s.Exclusions = "x", "y", routes("z"), exclude("v-w") },
			errs: []string{`spec.subnet: "x"`, `spec.gateway: "y"`, `spec.exclusions[0].startIP: "v"`, `spec.exclusions[0].endIP: "w"`, `spec.routes: "z"`, `spec.routes[0].dst: "z"`}},
	}
	for _, bad := range badSelectors {
		tests = append(tests, struct {
			name string
			edit func(*spec)
			errs []string
		}{bad.name, func(s *spec) { s.NodeSelector = bad.selector }, bad.errs})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := spec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.0.1"}
			tt.edit(&s)
			p, errs := fromIPPool(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: "pool1"}, Spec: s})
			if (p == nil) != (len(errs) > 0) {
				t.Errorf("pool %v with errors %v", p, errs)
			}
			checkErrors(t, errs, tt.errs)
		})
	}
	for name, valid := range names {
		_, errs := fromIPPool(&v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10}})
		if valid {
			checkErrors(t, errs, nil)
		} else {
			checkErrors(t, errs, []string{"metadata.name: must be a valid CNI network name"})
		}
	}
}

func TestParseCIDRPool(t *testing.T) {
	anySubnet(t)
	type spec = v1alpha1.CIDRPoolSpec
	of := func(cidr string, bits, gateway int32) func(*spec) {
		return func(s *spec) { *s = spec{CIDR: cidr, PerNodeNetworkPrefix: bits, GatewayIndex: index(gateway)} }
	}
	fix := func(text string) func(*spec) { return func(s *spec) { s.StaticAllocations = statics(text) } }
	tests := []struct {
		name string
		edit func(*spec) // of a valid pool 10.0.0.0/16, /24 a node, gateway index 1
		errs []string    // none: the pool is valid
	}{
		{name: "valid", edit: func(*spec) {}},
		{name: "no gateway", edit: func(s *spec) { s.GatewayIndex = nil }},

		{name: "no cidr", edit: func(s *spec) { s.CIDR = "" }, errs: []string{`spec.cidr: ""`}},
		{name: "cidr with host bits", edit: func(s *spec) { s.CIDR = "10.0.0.1/16" }, errs: []string{`spec.cidr: "10.0.0.1/16": network prefix has host bits set, should be 10.0.0.0/16`}},
		{name: "cidr IPv4 in IPv6 notation", edit: func(s *spec) { s.CIDR = "::ffff:10.0.0.0/112" }, errs: []string{`spec.cidr: "::ffff:10.0.0.0/112"`}},

		{name: "perNodeNetworkPrefix 0", edit: func(s *spec) { s.PerNodeNetworkPrefix = 0 }, errs: []string{"spec.perNodeNetworkPrefix: 0"}},
		{name: "perNodeNetworkPrefix 0 of all of IPv4", edit: of("0.0.0.0/0", 0, 1), errs: []string{"spec.perNodeNetworkPrefix: 0"}},
		{name: "perNodeNetworkPrefix negative", edit: func(s *spec) { s.PerNodeNetworkPrefix = -1 }, errs: []string{"spec.perNodeNetworkPrefix: -1"}},
		{name: "perNodeNetworkPrefix less than the cidr's", edit: func(s *spec) { s.PerNodeNetworkPrefix = 15 }, errs: []string{"spec.perNodeNetworkPrefix: 15"}},
		{name: "perNodeNetworkPrefix that of the cidr", edit: func(s *spec) { s.PerNodeNetworkPrefix = 16 }},
		{name: "perNodeNetworkPrefix 33 in IPv4", edit: func(s *spec) { s.PerNodeNetworkPrefix = 33 }, errs: []string{"spec.perNodeNetworkPrefix: 33"}},
		{name: "perNodeNetworkPrefix 129 in IPv6", edit: of("fd00::/48", 129, 0), errs: []string{"spec.perNodeNetworkPrefix: 129"}},

		{name: "gateway index 0", edit: func(s *spec) { s.GatewayIndex = index(0) }, errs: []string{"spec.gatewayIndex: 0"}},
		{name: "gateway index negative", edit: func(s *spec) { s.GatewayIndex = index(-1) }, errs: []string{"spec.gatewayIndex: -1"}},
		{name: "gateway index of the last host", edit: func(s *spec) { s.GatewayIndex = index(254) }},
		{name: "gateway index of the broadcast address", edit: func(s *spec) { s.GatewayIndex = index(255) }, errs: []string{"spec.gatewayIndex: 255"}},
		{name: "gateway index outside", edit: func(s *spec) { s.GatewayIndex = index(900) }, errs: []string{"spec.gatewayIndex: 900"}},
		{name: "gateway index 0 of an IPv6 /64", edit: of("fd00::/48", 64, 0), errs: []string{"spec.gatewayIndex: 0"}},
		{name: "gateway index of the last address of an IPv6 /120", edit: of("fd00::/48", 120, 255)},
		{name: "gateway index outside of an IPv6 /120", edit: of("fd00::/48", 120, 256), errs: []string{"spec.gatewayIndex: 256"}},
		{name: "gateway index 0 of a /31", edit: of("10.0.0.0/24", 31, 0)},
		{name: "gateway index 1 of a /31", edit: of("10.0.0.0/24", 31, 1)},
		{name: "gateway index 2 of a /31", edit: of("10.0.0.0/24", 31, 2), errs: []string{"spec.gatewayIndex: 2"}},
		{name: "gateway index 0 of a /32", edit: of("10.0.0.0/24", 32, 0)},
		{name: "gateway index 1 of a /32", edit: of("10.0.0.0/24", 32, 1), errs: []string{"spec.gatewayIndex: 1"}},
		{name: "gateway index 0 of a /30", edit: of("10.0.0.0/24", 30, 0), errs: []string{"spec.gatewayIndex: 0"}},
		{name: "gateway index 0 of a /127", edit: of("fd00::/64", 127, 0)},
		{name: "gateway index 2 of a /127", edit: of("fd00::/64", 127, 2), errs: []string{"spec.gatewayIndex: 2"}},
		{name: "gateway index 0 of a /128", edit: of("fd00::/64", 128, 0)},
		{name: "gateway index 1 of a /128", edit: of("fd00::/64", 128, 1), errs: []string{"spec.gatewayIndex: 1"}},
		{name: "gateway index negative at the start of the space", edit: of("0.0.0.0/16", 24, -1), errs: []string{"spec.gatewayIndex: -1"}},
		{name: "gateway index beyond the space", edit: of("255.255.255.0/24", 24, 300), errs: []string{"spec.gatewayIndex: 300"}},

		{name: "exclusion outside", edit: func(s *spec) { s.Exclusions = exclude("10.0.0.9-10.1.0.0") }, errs: []string{`spec.exclusions[0].endIP: "10.1.0.0"`}},
		{name: "per-node exclusions", edit: func(s *spec) { s.PerNodeExclusions = positions("0-0 255-255") }},
		{name: "per-node exclusion outside", edit: func(s *spec) { s.PerNodeExclusions = positions("0-256") }, errs: []string{"spec.perNodeExclusions[0].endIndex: 256"}},
		{name: "per-node exclusion in a /64", edit: func(s *spec) { of("fd00::/48", 64, 1)(s); s.PerNodeExclusions = positions("0-2147483647") }},
		{name: "per-node exclusion outside of a /31", edit: func(s *spec) { of("10.0.0.0/24", 31, 0)(s); s.PerNodeExclusions = positions("1-2") }, errs: []string{"spec.perNodeExclusions[0].endIndex: 2"}},

		{name: "routes without gateway", edit: func(s *spec) { s.GatewayIndex, s.Routes = nil, routes("172.16.0.0/12") }, errs: []string{"spec.routes: 172.16.0.0/12"}},
		{name: "defaultGateway without gateway", edit: func(s *spec) { s.GatewayIndex, s.DefaultGateway = nil, true }, errs: []string{"spec.defaultGateway: true: cannot be true if spec.gatewayIndex is not set"}},
		{name: "defaultGateway and a default route", edit: func(s *spec) { of("fd00::/48", 64, 1)(s); s.DefaultGateway, s.Routes = true, routes("::/0") }, errs: []string{`spec.routes[0].dst: "::/0"`}},
		{name: "route of the other family", edit: func(s *spec) { of("fd00::/48", 64, 1)(s); s.Routes = routes("10.0.0.0/8") }, errs: []string{`spec.routes[0].dst: "10.0.0.0/8"`}},

		{name: "statics", edit: fix("a=10.0.0.0/24 b=10.0.1.0/24@10.0.1.77 =10.0.2.0/24 =10.0.3.0/24")},
		{name: "static of a node named twice", edit: fix("a=10.0.0.0/24 a=10.0.1.0/24"), errs: []string{`spec.staticAllocations[1].nodeName: "a"`}},
		{name: "static prefix named twice", edit: fix("a=10.0.0.0/24 b=10.0.0.0/24"), errs: []string{`spec.staticAllocations[1].prefix: "10.0.0.0/24"`}},
		{name: "static of a node and for nobody, of one prefix", edit: fix("a=10.0.0.0/24 =10.0.0.0/24"), errs: []string{`spec.staticAllocations[1].prefix: "10.0.0.0/24"`}},
		{name: "static prefix longer", edit: fix("a=10.0.0.0/25"), errs: []string{`spec.staticAllocations[0].prefix: "10.0.0.0/25"`}},
		{name: "static prefix shorter", edit: fix("a=10.0.0.0/23"), errs: []string{`spec.staticAllocations[0].prefix: "10.0.0.0/23"`}},
		{name: "static prefix shorter than the cidr", edit: fix("a=10.0.0.0/8"), errs: []string{`spec.staticAllocations[0].prefix: "10.0.0.0/8"`}},
		{name: "static prefix outside", edit: fix("a=10.1.0.0/24"), errs: []string{`spec.staticAllocations[0].prefix: "10.1.0.0/24"`}},
		{name: "static prefix of the other family", edit: fix("a=fd00::/24"), errs: []string{`spec.staticAllocations[0].prefix: "fd00::/24"`}},
		{name: "static prefix with host bits", edit: fix("a=10.0.0.7/24"), errs: []string{`spec.staticAllocations[0].prefix: "10.0.0.7/24": network prefix has host bits set, should be 10.0.0.0/24`}},
		{name: "static prefix is none", edit: fix("a=10.0.0.0"), errs: []string{`spec.staticAllocations[0].prefix: "10.0.0.0"`}},
		{name: "static gateway outside", edit: fix("a=10.0.0.0/24@10.0.1.1"), errs: []string{`spec.staticAllocations[0].gateway: "10.0.1.1"`}},
		{name: "static gateway is no address", edit: fix("a=10.0.0.0/24@x"), errs: []string{`spec.staticAllocations[0].gateway: "x"`}},
		{name: "static with two mistakes", edit: fix("a=10.0.0.0/24 a=10.0.0.0/24@10.0.1.1"),
			errs: []string{`spec.staticAllocations[1].prefix: "10.0.0.0/24"`, `spec.staticAllocations[1].gateway: "10.0.1.1"`, `spec.staticAllocations[1].nodeName: "a"`}},
	}
	for _, bad := range badSelectors {
		tests = append(tests, struct {
			name string
			edit func(*spec)
			errs []string
		}{bad.name, func(s *spec) { s.NodeSelector = bad.selector }, bad.errs})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := spec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: index(1)}
			tt.edit(&s)
			p, errs := fromCIDRPool(&v1alpha1.CIDRPool{ObjectMeta: metav1.ObjectMeta{Name: "rail1"}, Spec: s})
			if (p == nil) != (len(errs) > 0) {
				t.Errorf("pool %v with errors %v", p, errs)
			}
			checkErrors(t, errs, tt.errs)
		})
	}
	for name, valid := range names {
		_, errs := fromCIDRPool(&v1alpha1.CIDRPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec{CIDR: "10.0.0.0/16", PerNodeNetworkPrefix: 24}})
		if valid {
			checkErrors(t, errs, nil)
		} else {
			checkErrors(t, errs, []string{"metadata.name: must be a valid CNI network name"})
		}
	}
}

// TestParseExamples reads the pools of nv-ipam's own examples.
func TestParseExamples(t *testing.T) {
	const selector = `"nodeSelector":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"node-role.kubernetes.io/worker","operator":"Exists"}]}]}`
	parse := func(text string) *Pool {
		t.Helper()
		var kind metav1.TypeMeta
		if err := json.Unmarshal([]byte(text), &kind); err != nil {
			t.Fatal(err)
		}
		var p *Pool
		var errs field.ErrorList
		decode := json.NewDecoder(strings.NewReader(text))
		decode.DisallowUnknownFields()
		if kind.Kind == "IPPool" {
			var obj v1alpha1.IPPool
			if err := decode.Decode(&obj); err != nil {
				t.Fatal(err)
			}
			p, errs = fromIPPool(&obj)
		} else {
			var obj v1alpha1.CIDRPool
			if err := decode.Decode(&obj); err != nil {
				t.Fatal(err)
			}
			p, errs = fromCIDRPool(&obj)
		}
		if len(errs) > 0 {
			t.Fatalf("%s: %v", text, errs)
		}
		return p
	}
	tests := []struct{ name, text, subnet, first string }{
		{"IPv4 IPPool", `{"kind":"IPPool","metadata":{"name":"pool1"},"spec":{"subnet":"192.168.0.0/16","perNodeBlockSize":128,"exclusions":[{"startIP":"192.168.0.10","endIP":"192.168.0.20"}],"gateway":"192.168.0.1",` + selector + `}}`,
			"192.168.0.0/16", "192.168.0.1-192.168.0.128"},
		{"IPv6 IPPool", `{"kind":"IPPool","metadata":{"name":"pool2"},"spec":{"subnet":"fd52:2eb5:44::/48","perNodeBlockSize":500,"gateway":"fd52:2eb5:44::1",` + selector + `}}`,
			"fd52:2eb5:44::/48", "fd52:2eb5:44::1-fd52:2eb5:44::1f4"},
		{"CIDRPool with static allocations", `{"kind":"CIDRPool","metadata":{"name":"pool1"},"spec":{"cidr":"192.168.0.0/16","gatewayIndex":1,"perNodeNetworkPrefix":24,"exclusions":[{"startIP":"192.168.0.10","endIP":"192.168.0.20"}],"staticAllocations":[{"nodeName":"node-33","prefix":"192.168.33.0/24","gateway":"192.168.33.10"},{"prefix":"192.168.1.0/24"}],` + selector + `}}`,
			"192.168.0.0/16", "192.168.0.0-192.168.0.255"},
		{"CIDRPool of links, gateway first", `{"kind":"CIDRPool","metadata":{"name":"rail-0"},"spec":{"cidr":"10.0.0.0/15","gatewayIndex":0,"perNodeNetworkPrefix":31,"perNodeExclusions":[{"startIndex":1,"endIndex":1}],"routes":[{"dst":"10.0.0.0/15"}]}}`,
			"10.0.0.0/15", "10.0.0.0-10.0.0.1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := parse(tt.text)
			blocks, _ := p.Carve(nil, []string{"a"}, nobody)
			if p.Subnet.String() != tt.subnet || len(blocks) != 1 || blocks[0].Range.String() != tt.first {
				t.Errorf("got %s, %v; want %s, %s", p.Subnet, blocks, tt.subnet, tt.first)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	tests := []struct {
		name, subnet, gateway string
		defaultGateway        bool
		routes, want          string
	}{
		{name: "none", subnet: "10.0.0.0/24", gateway: "10.0.0.1"},
		{name: "sorted, without duplicates and host bits", subnet: "10.0.0.0/24", gateway: "10.0.0.1", routes: "192.168.0.0/16 172.16.5.5/12 10.0.0.0/8 172.16.0.0/12 10.0.0.0/16", want: "10.0.0.0/8 10.0.0.0/16 172.16.0.0/12 192.168.0.0/16"},
		{name: "default route", subnet: "10.0.0.0/24", gateway: "10.0.0.1", defaultGateway: true, want: "0.0.0.0/0"},
		{name: "default route and another", subnet: "10.0.0.0/24", gateway: "10.0.0.1", defaultGateway: true, routes: "10.0.0.0/8", want: "0.0.0.0/0 10.0.0.0/8"},
		{name: "explicit default route", subnet: "10.0.0.0/24", gateway: "10.0.0.1", routes: "10.0.0.0/8 0.0.0.0/0", want: "0.0.0.0/0 10.0.0.0/8"},
		{name: "IPv6 default route", subnet: "fd00::/64", gateway: "fd00::1", defaultGateway: true, routes: "fd01::/64", want: "::/0 fd01::/64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := ipPool(t, v1alpha1.IPPoolSpec{Subnet: tt.subnet, Gateway: tt.gateway, PerNodeBlockSize: 2, DefaultGateway: tt.defaultGateway, Routes: routes(tt.routes)})
			blocks, _ := p.Carve(nil, []string{"a"}, nobody)
			var got []string
			for _, r := range p.block(blocks[0]).Routes {
				got = append(got, r.String())
			}
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

func TestSelects(t *testing.T) {
	nodes := map[string]map[string]string{"a": {"rack": "1", "gpu": ""}, "b": {"rack": "2"}, "c": nil}
	either := selecting("gpu", "Exists")
	either.NodeSelectorTerms = append(either.NodeSelectorTerms, selecting("rack", "In", "2").NodeSelectorTerms...)
	both := selecting("gpu", "Exists")
	both.NodeSelectorTerms[0].MatchExpressions = append(both.NodeSelectorTerms[0].MatchExpressions, corev1.NodeSelectorRequirement{Key: "rack", Operator: "NotIn", Values: []string{"1"}})
	tests := []struct {
		name     string
		selector *corev1.NodeSelector
		want     string
	}{
		{"none selects all", nil, "a b c"},
		{"Exists", selecting("gpu", "Exists"), "a"},
		{"DoesNotExist", selecting("gpu", "DoesNotExist"), "b c"},
		{"In", selecting("rack", "In", "1", "2"), "a b"},
		{"Gt", selecting("rack", "Gt", "1"), "b"},
		{"terms are ORed", either, "a b"},
		{"expressions are ANDed", both, ""},
		{"an empty term selects none", &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{}}}, ""},
		{"by name", &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{
			{MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: "In", Values: []string{"c"}}}}}}, "c"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := ipPool(t, v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 1, NodeSelector: tt.selector})
			var got []string
			for name, labels := range nodes {
				if p.Selects(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}) {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if text := strings.Join(got, " "); text != tt.want {
				t.Errorf("got %q, want %q", text, tt.want)
			}
		})
	}
}

func TestParseAddr(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.1": "10.0.0.1", "::ffff:10.0.0.1": "10.0.0.1", "FD00:0::0001": "fd00::1",
		"": "", "10.0.0": "", "10.0.0.01": "", "10.0.0.1/24": "", " 10.0.0.1": "", "fe80::1%eth0": "", "::ffff:10.0.0.1%eth0": "",
	} {
		got, err := ParseAddr(text)
		if (err == nil) != (want != "") || err == nil && got != addr(want) {
			t.Errorf("%q: got %s, %v, want %q", text, got, err, want)
		}
		if err != nil && got.IsValid() {
			t.Errorf("%q: got %s with the error", text, got)
		}
		if err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%q: the error %v does not name it", text, err)
		}
	}
}

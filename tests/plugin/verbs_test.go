// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cniversion "github.com/containernetworking/cni/pkg/version"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func TestEveryVersion(t *testing.T) {
	for _, v := range cniversion.All.SupportedVersions() {
		t.Run(v, func(t *testing.T) {
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			h.version = v
			out := h.mustRun(t, call{verb: "ADD", container: "c1"})
			if !strings.Contains(string(out), "10.0.0.2/16") || !strings.Contains(string(out), "10.0.0.1") || strings.Contains(string(out), "interface") {
				t.Errorf("result %s", out)
			}
			var said struct {
				CNIVersion string `json:"cniVersion"`
			}
			if err := json.Unmarshal(out, &said); err != nil || said.CNIVersion != v {
				t.Errorf("result has version %q, %v", said.CNIVersion, err)
			}
			if ok, _ := cniversion.GreaterThanOrEqualTo(v, "0.4.0"); ok {
				h.mustRun(t, call{verb: "CHECK", container: "c1"})
				h.wantError(t, call{verb: "CHECK", container: "c2"}, 100, `reservation for pool "p", poolType "ippool" not found`)
			}
			if ok, _ := cniversion.GreaterThanOrEqualTo(v, "1.1.0"); ok {
				h.mustRun(t, call{verb: "STATUS"})
			}
			h.mustRun(t, call{verb: "DEL", container: "c1"})
			h.mustRun(t, call{verb: "DEL", container: "c1"})
			if got := c.held(t); got != "[]" {
				t.Errorf("held after DEL: %s", got)
			}
		})
	}
}

func TestVersion(t *testing.T) {
	c := newCluster(t)
	out := c.host(t, "a").mustRun(t, call{verb: "VERSION"})
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		if !strings.Contains(string(out), `"`+v+`"`) {
			t.Errorf("VERSION does not name %s: %s", v, out)
		}
	}
}

func TestThreeWaysToAskForAnAddress(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a", "b")
	h := c.host(t, "a")
	for name, ask := range map[string]call{
		"runtimeConfig": {conf: map[string]any{"runtimeConfig": map[string]any{"ips": []string{"10.0.7.7/16"}}}},
		"args.cni":      {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.0.7.7"}}}}},
		"CNI_ARGS":      {args: "IP=10.0.7.7"},
	} {
		t.Run(name, func(t *testing.T) {
			ask.container = "c1"
			if got := h.mustAdd(t, ask); !slices.Equal(got, []string{"10.0.7.7/16"}) {
				t.Errorf("got %v", got)
			}
			ask.verb, ask.container = "ADD", "c2"
			c.host(t, "b").wantError(t, ask, 11, `requested IP is already reserved in the pool "p", poolType "ippool"`, "default/c1", "node a")
			h.mustRun(t, call{verb: "DEL", container: "c1"})
		})
	}
	h.wantError(t, call{verb: "ADD", container: "c3", args: "IP=10.10.10.10"}, 7,
		"not all requested static IPs can be allocated from the ranges available on the node, ip 10.10.10.10 has no matching Pool")
	if got := c.held(t); got != "[]" {
		t.Errorf("held: %s", got)
	}
}

func TestGatewayAndIndex(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 100, Gateway: "10.0.0.1", DefaultGateway: true}, "a")
	rig.IPPool(t, c.IPAM, c.NS, "bare", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/16", PerNodeBlockSize: 100}, "a")
	h := c.host(t, "a")
	args := func(key string, v any) map[string]any {
		return map[string]any{"args": map[string]any{"cni": map[string]any{key: v}}}
	}
	out := h.mustRun(t, call{verb: "ADD", container: "gw", conf: args("allocateDefaultGateway", true)})
	if !slices.Equal(parseResult(t, out), []string{"10.0.0.1/16"}) || strings.Contains(string(out), "gateway") || strings.Contains(string(out), "routes") {
		t.Errorf("result %s", out)
	}
	if got := h.mustAdd(t, call{container: "ix", conf: args("allocateIPWithIndex", 9)}); !slices.Equal(got, []string{"10.0.0.10/16"}) {
		t.Errorf("index 9 is %v", got)
	}
	for _, tc := range []struct {
		conf  map[string]any
		ipam  map[string]any
		words string
	}{
		{args("allocateIPWithIndex", 100), nil, `requested IP index "100" is outside of the given chunk`},
		{args("allocateIPWithIndex", 0), nil, `requested IP index "0" is the actual gateway, use allocate_default_gateway feature instead`},
		{args("allocateDefaultGateway", true), map[string]any{"poolName": "bare"}, `pool without gateway can't be used with allocate_default_gateway feature,pool "bare", poolType "ippool"`},
	} {
		h.wantError(t, call{verb: "ADD", container: "x", conf: tc.conf, ipam: tc.ipam}, 7, tc.words)
	}
}

func TestRoutes(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{
		Subnet: "10.0.0.0/16", PerNodeBlockSize: 100, Gateway: "10.0.0.1", DefaultGateway: true,
		Routes: []v1alpha1.Route{{Dst: "172.16.0.0/12"}, {Dst: "10.9.0.0/16"}},
	}, "a")
	out := c.host(t, "a").mustRun(t, call{verb: "ADD", container: "c1"})
	var got struct {
		Routes []struct{ Dst, GW string }
	}
	if err := json.Unmarshal(out, &got); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got.Routes) != "[{0.0.0.0/0 10.0.0.1} {10.9.0.0/16 10.0.0.1} {172.16.0.0/12 10.0.0.1}]" {
		t.Errorf("routes %v", got.Routes)
	}
}

func TestGC(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	for i := range 3 {
		h.mustAdd(t, call{container: fmt.Sprint("c", i)})
	}
	const all = "[10.0.0.2 10.0.0.3 10.0.0.4]"
	h.mustRun(t, gc())
	if got := c.held(t); got != all {
		t.Errorf("GC took what ADDs have just asked for: %s is left, want %s", got, all)
	}
	c.age(t)
	h.mustRun(t, call{verb: "GC"})
	if got := c.held(t); got != all {
		t.Errorf("GC without attachments left %s, want %s", got, all)
	}
	h.mustRun(t, call{verb: "GC", conf: map[string]any{"cni.dev/valid-attachments": nil}})
	for _, torn := range []any{nil, map[string]any{"containerID": "c1"}, map[string]any{"ifname": "net1"}} {
		h.wantError(t, call{verb: "GC", conf: map[string]any{"cni.dev/valid-attachments": []any{torn}}}, 7, "cni.dev/valid-attachments[0] has no containerID or no ifname")
	}
	if got := c.held(t); got != all {
		t.Errorf("GC with null attachments left %s, want %s", got, all)
	}
	h.mustRun(t, gc("c1"))
	if got := c.held(t); got != "[10.0.0.3]" {
		t.Errorf("GC left %s", got)
	}
	h.mustRun(t, gc())
	if got := c.held(t); got != "[]" {
		t.Errorf("GC with no valid attachment left %s", got)
	}
}

func TestStatusAndDelWhileTheServerIsDown(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c1"})
	h.mustRun(t, call{verb: "STATUS"})

	settings := map[string]any{
		"kubeconfig": filepath.Join(t.TempDir(), "kubeconfig"), "poolsNamespace": c.NS, "nodeName": "a",
		"dataDir": filepath.Join(h.dir, "data"), "logFile": filepath.Join(h.dir, "log"),
	}
	deadKubeconfig(t, settings["kubeconfig"].(string))
	h.configure(t, settings)
	h.wantError(t, call{verb: "STATUS"}, 50, "API server unavailable", "refused")
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if got := c.held(t); got != "[10.0.0.2]" {
		t.Errorf("held %s", got)
	}
	settings["kubeconfig"] = env.Kubeconfig
	h.configure(t, settings)
	h.mustRun(t, call{verb: "STATUS"})
	if got := h.mustAdd(t, call{container: "c2"}); got[0] != "10.0.0.3/16" {
		t.Errorf("got %v", got)
	}
	if got := c.held(t); got != "[10.0.0.3]" {
		t.Errorf("the owed release was not carried out: held %s", got)
	}
}

func TestStatusWhereTheServerRefuses(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	nobody, err := env.UserKubeconfig("nobody")
	if err != nil {
		t.Fatal(err)
	}
	h.configure(t, map[string]any{"kubeconfig": nobody, "poolsNamespace": c.NS, "nodeName": "a", "dataDir": filepath.Join(h.dir, "data"), "logFile": filepath.Join(h.dir, "log")})
	h.wantError(t, call{verb: "STATUS"}, 50, "forbidden", "nobody")
	h.wantError(t, call{verb: "ADD", container: "c1"}, 11, "forbidden", "nobody")
}

func TestBadInput(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	for _, tc := range []struct {
		name  string
		call  call
		words string
	}{
		{"poolType", call{ipam: map[string]any{"poolType": "vlan"}}, "unsupported poolType vlan, supported values: ippool, cidrpool"},
		{"three pools", call{ipam: map[string]any{"poolName": "a,b,c"}}, "pool field can't contain more then two entries"},
		{"IP", call{args: "IP=x"}, "CNI_ARGS: IP argument contains invalid IP address"},
		{"kubeconfig", call{ipam: map[string]any{"kubeconfig": "/nowhere"}}, "ipam.kubeconfig: open /nowhere: no such file or directory"},
	} {
		tc.call.verb, tc.call.container = "ADD", "c1"
		t.Run(tc.name, func(t *testing.T) { h.wantError(t, tc.call, 7, tc.words) })
	}
	h.wantError(t, call{verb: "ADD", container: "c1", ipam: map[string]any{"poolName": "nowhere"}}, 11, `configuration for pool "nowhere", poolType "ippool" not found`)
	if got := c.held(t); got != "[]" {
		t.Errorf("held %s", got)
	}
}

func TestPoolsOfBothKinds(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	index := int32(1)
	rig.CIDRPool(t, c.IPAM, c.NS, "rail", v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: &index}, "a", "b")
	h := c.host(t, "b")
	rail := map[string]any{"poolName": "rail", "poolType": "cidrpool"}
	if got := h.mustAdd(t, call{container: "c1", ipam: rail}); !slices.Equal(got, []string{"10.60.1.2/24"}) {
		t.Errorf("got %v", got)
	}
	h.wantError(t, call{verb: "ADD", container: "c2", ipam: rail, args: "IP=10.60.0.9"}, 7, "ip 10.60.0.9 has no matching Pool")
	got, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), "rail.10.60.1.2", metav1.GetOptions{})
	if err != nil || got.Spec.PoolRef.Kind != v1alpha1.PoolKindCIDRPool {
		t.Errorf("allocation %+v, %v", got, err)
	}
	h.mustRun(t, call{verb: "CHECK", container: "c1", ipam: rail})
	h.wantError(t, call{verb: "CHECK", container: "c1", ipam: map[string]any{"poolName": "rail"}}, 100, `reservation for pool "rail", poolType "ippool" not found`)
	h.mustRun(t, call{verb: "DEL", container: "c1", ipam: rail})
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// Old results have room for one address of each family. Two pools of one family are
// refused with nothing held; two of two families are given.
func TestOldResultsHaveRoomForOneOfEachFamily(t *testing.T) {
	c := railCluster(t)
	h := c.host(t, "b")
	cidr := func(names string) call { return call{ipam: ipam("poolName", names, "poolType", "cidrpool")} }
	for _, v := range []any{rig.Absent, "0.1.0", "0.2.0"} {
		t.Run(fmt.Sprint("cniVersion ", v), func(t *testing.T) {
			for name, one := range map[string]call{
				"four,bare":             {ipam: ipam("poolName", "four,bare")},
				"bare,four":             {ipam: ipam("poolName", "bare,four")},
				"with requested":        {ipam: ipam("poolName", "four,bare"), args: "IP=10.0.0.111,10.9.0.13"},
				"named in args.cni":     {conf: map[string]any{"args": map[string]any{"cni": list("poolNames", "four", "bare")}}},
				"two CIDRPools, of one": cidr("rail,rail4"),
			} {
				if one.conf == nil {
					one.conf = map[string]any{}
				}
				one.verb, one.container, one.conf["cniVersion"] = "ADD", "c1", v
				words := "one address family"
				code := uint(7)
				if strings.Contains(name, "of one") { // rail4 does not exist
					words, code = "not found", 11
				}
				h.wantError(t, one, code, words)
				if held := c.held(t); held != "[]" {
					t.Errorf("%s: held %s", name, held)
				}
			}
			for names, one := range map[string]call{"four,six": {ipam: ipam("poolName", "four,six")}, "six,four": {ipam: ipam("poolName", "six,four")}, "rail6,rail": cidr("rail6,rail")} {
				one.verb, one.container, one.conf = "ADD", "c1", map[string]any{"cniVersion": v}
				out := string(h.mustRun(t, one))
				if !strings.Contains(out, `"ip4"`) || !strings.Contains(out, `"ip6"`) {
					t.Errorf("%s: result %s", names, out)
				}
				one.verb = "DEL"
				h.mustRun(t, one)
			}
		})
	}
	one := call{verb: "ADD", container: "c1", ipam: ipam("poolName", "four,bare"), conf: map[string]any{"cniVersion": "0.3.0"}}
	if out := string(h.mustRun(t, one)); strings.Count(out, `"address"`) != 2 {
		t.Errorf("0.3.0 has room for two: %s", out)
	}
}

// An allocation is marked as requested if its own address was asked for.
func TestOnlyWhatWasRequestedIsMarked(t *testing.T) {
	c := railCluster(t)
	h := c.host(t, "b")
	dual := ipam("poolName", "four,six")
	for i, tc := range []struct {
		name string
		call call
		want string
	}{
		{"neither", call{ipam: dual}, "four false, six false"},
		{"IPv4", call{ipam: dual, args: "IP=10.0.0.111"}, "four true, six false"},
		{"IPv6", call{ipam: dual, args: "IP=fd00::77"}, "four false, six true"},
		{"IPv6, by the runtime", call{ipam: dual, conf: map[string]any{"runtimeConfig": list("ips", "fd00::78")}}, "four false, six true"},
		{"both", call{ipam: dual, args: "IP=10.0.0.112,fd00::79"}, "four true, six true"},
		{"the second of two of one family", call{ipam: ipam("poolName", "four,bare"), args: "IP=10.9.0.15"}, "bare true, four false"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.call.container = fmt.Sprint("c", i)
			h.mustAdd(t, tc.call)
			h.mustAdd(t, tc.call) // again, as when its answer was lost
			all, err := c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, a := range all.Items {
				got = append(got, fmt.Sprint(a.Spec.PoolRef.Name, " ", a.Spec.Requested))
			}
			if s := strings.Join(got, ", "); s != tc.want {
				t.Errorf("%s, want %s", s, tc.want)
			}
			tc.call.verb = "DEL"
			h.mustRun(t, tc.call)
		})
	}
}

// What another version of the plugin has saved of a pool is not believed.
func TestViewOfAnotherFormat(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c0"})
	path := h.hint("pools", "ippool.p.json")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var now map[string]any
	if err := json.Unmarshal(data, &now); err != nil {
		t.Fatal(err)
	}
	for i, format := range []any{rig.Absent, nil, 0, 1, 3, 1000, "2", true} {
		// The version is right, and the block is what another format may have meant: none.
		view := map[string]any{"version": now["version"], "block": map[string]any{"Pool": now["block"].(map[string]any)["Pool"]}, "format": format}
		rig.Merge(view, map[string]any{"format": format})
		text, err := json.Marshal(view)
		if err != nil {
			t.Fatal(err)
		}
		remove(t, path)
		write(t, path, string(text))
		if got := h.mustAdd(t, call{container: fmt.Sprint("c", i+1)}); got[0] != fmt.Sprintf("10.0.0.%d/16", i+3) {
			t.Errorf("format %v: got %v", format, got)
		}
	}
}

// Network and broadcast addresses are refused, however they are asked for, where a
// subnet has any.
func TestNetworkAndBroadcastAddresses(t *testing.T) {
	c := railCluster(t)
	ip := func(name, subnet string, size int) {
		rig.IPPool(t, c.IPAM, c.NS, name, v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: size}, "b")
	}
	ip("pair", "10.31.0.0/31", 1)
	ip("single", "10.32.0.7/32", 1)
	ip("small", "10.30.0.4/30", 1)
	ip("six127", "fd31::/127", 1)
	rig.CIDRPool(t, c.IPAM, c.NS, "links", v1alpha1.CIDRPoolSpec{CIDR: "10.61.0.0/24", PerNodeNetworkPrefix: 31}, "b")
	h := c.host(t, "b")
	for _, tc := range []struct {
		pool, kind, addr string
		ok               bool
	}{
		{"four", "ippool", "10.0.0.0", false},
		{"four", "ippool", "10.0.255.255", false},
		{"four", "ippool", "10.0.1.0", true}, // in the middle of the subnet
		{"four", "ippool", "10.0.0.255", true},
		{"four", "ippool", "10.0.255.254", true},
		{"small", "ippool", "10.30.0.4", false},
		{"small", "ippool", "10.30.0.7", false},
		{"small", "ippool", "10.30.0.6", true},
		{"pair", "ippool", "10.31.0.0", true},
		{"pair", "ippool", "10.31.0.1", true},
		{"single", "ippool", "10.32.0.7", true},
		{"rail", "cidrpool", "10.60.1.0", false},
		{"rail", "cidrpool", "10.60.1.255", false},
		{"rail", "cidrpool", "10.60.1.254", true},
		{"links", "cidrpool", "10.61.0.0", true},
		{"links", "cidrpool", "10.61.0.1", true},
		{"six", "ippool", "fd00::", false}, // the subnet's routers have it
		{"six", "ippool", "fd00::ffff:ffff:ffff:ffff", true},
		{"six127", "ippool", "fd31::", true},
		{"rail6", "cidrpool", "fd60:0:0:1::", false},
		{"rail6", "cidrpool", "fd60:0:0:1:ffff:ffff:ffff:ffff", true},
	} {
		for how, one := range map[string]call{
			"CNI_ARGS":           {args: "IP=" + tc.addr},
			"runtimeConfig":      {conf: map[string]any{"runtimeConfig": list("ips", tc.addr)}},
			"args.cni":           {conf: map[string]any{"args": map[string]any{"cni": list("ips", tc.addr)}}},
			"with prefix length": {args: "IP=" + tc.addr + "/32"},
		} {
			t.Run(tc.addr+", "+how, func(t *testing.T) {
				one.verb, one.container, one.ipam = "ADD", "c1", ipam("poolName", tc.pool, "poolType", tc.kind)
				if tc.ok {
					h.mustRun(t, one)
					one.verb = "DEL"
					h.mustRun(t, one)
					return
				}
				h.wantError(t, one, 7, tc.addr, "network or broadcast address", tc.pool)
				if held := c.held(t); held != "[]" {
					t.Errorf("held %s", held)
				}
			})
		}
	}
}

// What is wrong with a request is said in words that lead on.
func TestMessagesLeadOn(t *testing.T) {
	c := railCluster(t)
	h := c.host(t, "b")
	for _, tc := range []struct {
		name  string
		call  call
		code  uint
		words []string
	}{
		{"pool for poolName", call{ipam: map[string]any{"poolName": rig.Absent, "pool": "bare"}}, 11,
			[]string{`configuration for pool "net", poolType "ippool" not found`, "ipam.poolName is not set", `ipam has the unknown key "pool"`, "did you mean poolName?"}},
		{"pool_name for poolName", call{ipam: map[string]any{"poolName": rig.Absent, "pool_name": "bare"}}, 11, []string{`ipam has the unknown key "pool_name"`, "did you mean poolName?"}},
		{"no name at all", call{ipam: map[string]any{"poolName": rig.Absent}}, 11, []string{`pool "net"`, "the network's name is the pool's"}},
		{"the other kind", call{ipam: ipam("poolName", "rail")}, 11,
			[]string{`configuration for pool "rail", poolType "ippool" not found`, "but a CIDRPool of that name: set poolType to cidrpool"}},
		{"the other kind, the other way round", call{ipam: ipam("poolName", "four", "poolType", "cidrpool")}, 11, []string{"but a IPPool of that name: set poolType to ippool"}},
		{"unknown kind", call{ipam: ipam("poolType", "IPPools")}, 7, []string{"unsupported poolType IPPools, supported values: ippool, cidrpool"}},
		{"no matching pool", call{ipam: ipam("poolName", "four"), args: "IP=10.10.10.10"}, 7, []string{"ip 10.10.10.10 has no matching Pool", "ippool four has 10.0.0.0/16"}},
		{"no matching pool of two", call{ipam: ipam("poolName", "four,six"), args: "IP=fd99::1"}, 7,
			[]string{"ip fd99::1 has no matching Pool", "ippool four has 10.0.0.0/16", "ippool six has fd00::/64"}},
		{"no matching prefix", call{ipam: ipam("poolName", "rail", "poolType", "cidrpool"), args: "IP=10.60.0.77"}, 7, []string{"ip 10.60.0.77 has no matching Pool", "cidrpool rail has 10.60.1.0/24"}},
		{"no ipam section", call{conf: map[string]any{"ipam": rig.Absent}}, 7, []string{`no "ipam" section`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.call.verb, tc.call.container = "ADD", "c1"
			if tc.call.conf != nil { // without it this is not told where the node's file is
				h := c.defaultHost(t, "b")
				h.wantError(t, tc.call, tc.code, tc.words...)
				return
			}
			h.wantError(t, tc.call, tc.code, tc.words...)
			if held := c.held(t); held != "[]" {
				t.Errorf("held %s", held)
			}
		})
	}
}

// "No free addresses" says of what: a node's block may be full in a pool that is
// nearly empty.
func TestExhaustedSaysWhichBlock(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 3}, "a", "b")
	h := c.host(t, "a")
	for i := range 3 {
		h.mustAdd(t, call{container: fmt.Sprint("c", i)})
	}
	words := []string{`no free addresses in the pool "p", poolType "ippool"`, "10.0.0.1-10.0.0.3", "node a", "3 of 3"}
	h.wantError(t, call{verb: "ADD", container: "c3"}, 11, words...)
	h.wantError(t, call{verb: "ADD", container: "c3"}, 11, words...) // as it is remembered
}

// backdating makes allocations look an hour old to the node.
func backdating(p *rig.Proxy, w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodGet {
		p.Forward.ServeHTTP(w, req)
		return
	}
	req.Header.Del("Accept-Encoding")
	answer := httptest.NewRecorder()
	p.Forward.ServeHTTP(answer, req)
	ago := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	body := created.ReplaceAll(answer.Body.Bytes(), []byte(`"creationTimestamp":"`+ago+`"`))
	w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
	w.WriteHeader(answer.Code)
	_, _ = bytes.NewReader(body).WriteTo(w)
}

var created = regexp.MustCompile(`"creationTimestamp":"[^"]*"`)

// A pod asks for an address that its own earlier sandbox holds, whose DEL was lost.
// It gets it, with and without a UID, if its ADD began later and the earlier claim is
// old; and nobody else does.
func TestRequestedAddressOfAnEarlierSandbox(t *testing.T) {
	t.Parallel()
	for uidIs, uid := range map[string]string{"no UID": "", "UID": ";K8S_POD_UID=u1"} {
		t.Run(uidIs, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			p := h.behindProxy(t, c)
			of := func(pod, container, more string) call {
				return call{verb: "ADD", container: container, args: "K8S_POD_NAME=" + pod + ";IP=10.0.0.77" + more}
			}
			h.mustRun(t, of("web", "sandbox-1", uid))
			const inUse = "requested IP is already reserved"
			h.wantError(t, of("web", "sandbox-2", uid), 11, inUse) // it may be about to start
			p.Fail(func(w http.ResponseWriter, req *http.Request) { backdating(p, w, req) })
			h.wantError(t, of("other", "c1", uid), 11, inUse)
			h.wantError(t, of("web", "sandbox-2", ";K8S_POD_UID=another"), 11, inUse)
			for _, when := range []*metav1.MicroTime{nil, {Time: time.Now().Add(time.Hour)}} {
				c.startedAt(t, "p.10.0.0.77", when)
				h.wantError(t, of("web", "sandbox-2", uid), 11, inUse)
			}
			c.startedAt(t, "p.10.0.0.77", &metav1.MicroTime{Time: time.Now().Add(-time.Hour)})
			h.mustRun(t, of("web", "sandbox-2", uid))
			h.mustRun(t, call{verb: "DEL", container: "sandbox-1"}) // the lost one, late
			h.mustRun(t, call{verb: "CHECK", container: "sandbox-2"})
			h.mustRun(t, call{verb: "DEL", container: "sandbox-2"})
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// startedAt sets when the ADD of an allocation began; nil takes that out.
func (c *cluster) startedAt(t *testing.T, name string, when *metav1.MicroTime) {
	t.Helper()
	env.Rewrite(t, c.NS, name, func(spec map[string]any) {
		if spec[testenv.Started] = when; when == nil {
			delete(spec, testenv.Started)
		}
	})
}

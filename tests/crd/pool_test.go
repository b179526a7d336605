// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

func TestGoRules(t *testing.T) {
	for _, c := range readCases(t) {
		t.Run(c.name, func(t *testing.T) { wantRefusal(t, c.parse(), c.inGo()) })
	}
}

func TestCRDs(t *testing.T) {
	cl := newCluster(t, env)
	for _, c := range readCases(t) {
		t.Run(c.name, func(t *testing.T) { wantRefusal(t, cl.try(t.Context(), c.Pool), c.CRD) })
	}
}

// TestPolicies follows a cluster with somebody else's CRDs, in which pools were
// stored that are not valid, through the installation of the policies and of
// this project's CRDs.
func TestPolicies(t *testing.T) {
	e, err := testenv.Start(testenv.Options{NoCRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Stop(); err != nil {
			t.Error(err)
		}
	})
	cl := newCluster(t, e)
	cl.applyForeignCRDs(t)
	cases := readCases(t)
	stored := cl.store(t, cases)

	withPolicies := cl.Minor >= policyMinor
	if withPolicies {
		cl.applyPolicies(t)
		t.Run("under foreign CRDs", func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { wantRefusal(t, cl.try(t.Context(), c.Pool), c.inPolicy()) })
			}
		})
		t.Run("large lists", cl.testLargeLists)
		t.Run("stored pools, policies", func(t *testing.T) { cl.testStored(t, stored) })
	} else {
		fmt.Printf("1.%d has no CEL functions for addresses: policies are left out\n", cl.Minor)
		t.Run("policies", func(t *testing.T) { t.Skip("need 1.31") })
	}

	cl.applyCRDs(t)
	t.Run("large lists, CRDs", cl.testLargeLists)
	t.Run("stored pools", func(t *testing.T) { cl.testStored(t, stored) })
	if withPolicies {
		t.Run("with CRDs", func(t *testing.T) {
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					if err := cl.try(t.Context(), c.Pool); (err == nil) != (c.Valid || c.OnlyGo != "") {
						t.Errorf("Go says %v, the server %v", c.parse(), err)
					}
				})
			}
		})
	}
}

// store creates the pools that the Go rules refuse, before anything else would.
func (c *cluster) store(t *testing.T, cases []poolCase) []poolCase {
	t.Helper()
	var stored []poolCase
	for _, pc := range cases {
		if pc.Valid || strings.HasSuffix(pc.name, "/name") {
			continue
		}
		obj := &object{Object: runtime.DeepCopyJSON(pc.Pool)}
		if !strings.HasSuffix(pc.name, "/name-too-long") {
			obj.SetName(strings.NewReplacer("/", "-", " ", "-").Replace(pc.name))
		}
		created, err := c.of(obj.GetKind(), "default").Create(t.Context(), obj, metav1.CreateOptions{})
		if err != nil {
			t.Fatalf("%s: %v", pc.name, err)
		}
		pc.Pool = created.Object
		stored = append(stored, pc)
	}
	return stored
}

// testStored checks that a pool which should not be there can still be labelled,
// given a status and deleted, and not be edited to what is not valid either.
func (c *cluster) testStored(t *testing.T, stored []poolCase) {
	for _, pc := range stored {
		t.Run(pc.name, func(t *testing.T) {
			obj := &object{Object: pc.Pool}
			pools := c.of(obj.GetKind(), "default")
			if _, err := pools.Patch(t.Context(), obj.GetName(), types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{}); err != nil {
				t.Errorf("label: %v", err)
			}
			current, err := pools.Get(t.Context(), obj.GetName(), metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := unstructured.SetNestedMap(current.Object, map[string]any{
				"allocations": []any{},
				"conditions": []any{map[string]any{
					"type": "Ready", "status": "False", "reason": "InvalidSpec", "message": fmt.Sprint(c.Minor),
					"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": int64(1),
				}},
			}, "status"); err != nil {
				t.Fatal(err)
			}
			if _, err := pools.UpdateStatus(t.Context(), current, metav1.UpdateOptions{}); err != nil {
				t.Errorf("status: %v", err)
			}
			apply := map[string]any{
				"apiVersion": obj.GetAPIVersion(), "kind": obj.GetKind(), "metadata": map[string]any{"name": obj.GetName()},
				"status": map[string]any{"allocations": []any{}},
			}
			body, err := json.Marshal(apply)
			if err != nil {
				t.Fatal(err)
			}
			force := true
			if _, err := pools.Patch(t.Context(), obj.GetName(), types.ApplyPatchType, body, metav1.PatchOptions{FieldManager: "ipam-blocks-1", Force: &force}, "status"); err != nil {
				t.Errorf("status by server-side apply: %v", err)
			}
			if err := pools.Delete(t.Context(), obj.GetName(), metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
				t.Errorf("delete: %v", err)
			}
			if c.Minor >= policyMinor && pc.OnlyGo == "" {
				_, err := pools.Patch(t.Context(), obj.GetName(), types.MergePatchType,
					[]byte(`{"spec":{"exclusions":[{"startIP":"203.0.113.1","endIP":"203.0.113.2"}]}}`), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
				if err == nil {
					t.Error("edited to what is not valid either")
				}
			}
		})
	}
}

// The domain of a pool never changes, whether it is written or the pool's name.
func TestDomainOfAPool(t *testing.T) {
	cl := newCluster(t, env)
	for kind, spec := range map[string]map[string]any{
		"IPPool":   {"subnet": "10.0.0.0/24", "perNodeBlockSize": int64(10)},
		"CIDRPool": {"cidr": "10.0.0.0/16", "perNodeNetworkPrefix": int64(24)},
	} {
		for i, tc := range []struct {
			name, from, to string // empty: no domain
			refused        bool
		}{
			{"none", "", "", false},
			{"the name is written", "", "self", false},
			{"the name is left out", "self", "", false},
			{"the same", "fabric", "fabric", false},
			{"added", "", "fabric", true},
			{"removed", "fabric", "", true},
			{"changed", "fabric", "other", true},
			{"changed to the name", "fabric", "self", true},
		} {
			t.Run(kind+", "+tc.name, func(t *testing.T) {
				pools, name := cl.of(kind, "default"), fmt.Sprintf("domain-%d", i)
				domain := func(d string) any {
					switch d {
					case "":
						return nil
					case "self":
						return name
					}
					return d
				}
				m := manifest(kind, runtime.DeepCopyJSON(spec))
				m["metadata"].(map[string]any)["name"] = name
				if tc.from != "" {
					m["spec"].(map[string]any)["domain"] = domain(tc.from)
				}
				if _, err := pools.Create(t.Context(), &object{Object: m}, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				defer func() { _ = pools.Delete(t.Context(), name, metav1.DeleteOptions{}) }()
				body, err := json.Marshal(map[string]any{"spec": map[string]any{"domain": domain(tc.to), "disabled": true}})
				if err != nil {
					t.Fatal(err)
				}
				words := ""
				if tc.refused {
					words = "spec.domain: Invalid value"
				}
				_, err = pools.Patch(t.Context(), name, types.MergePatchType, body, metav1.PatchOptions{})
				if wantRefusal(t, err, words); tc.refused && !strings.Contains(fmt.Sprint(err), "apply another pool with that domain") {
					t.Error(err)
				}
			})
		}
	}
}

// Longer lists of what only this project's pools have are refused.
func TestTooManyEntries(t *testing.T) {
	cl := newCluster(t, env)
	list := func(n int, format string) (out []any) {
		for i := range n {
			out = append(out, fmt.Sprintf(format, i/256, i%256))
		}
		return out
	}
	for field, format := range map[string]string{"ranges": "10.0.%d.%d", "allowedNamespaces": "a-%d-%d-*"} {
		for n, words := range map[int]string{1000: "", 1001: "spec." + field + ": Too many"} {
			pool := ipPool(map[string]any{"subnet": "10.0.0.0/16", field: list(n, format)})
			wantRefusal(t, cl.try(t.Context(), pool), words)
			if err := (poolCase{Pool: pool}).parse(); (err == nil) != (words == "") {
				t.Errorf("%d %s: Go says %v", n, field, err)
			}
		}
	}
}

// testLargeLists checks that neither cost limits nor bounds refuse a valid pool.
func (c *cluster) testLargeLists(t *testing.T) {
	list := func(n int, entry func(i int) map[string]any) []any {
		var out []any
		for i := range n {
			out = append(out, entry(i))
		}
		return out
	}
	sizes := []int{300, 500, 1000, 1001, 3000}
	if testing.Short() {
		sizes = []int{500, 1000, 1001} // the largest of each kind, and one more than that
	}
	for _, n := range sizes {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			common := map[string]any{
				"perNodeExclusions": list(n, func(i int) map[string]any {
					return map[string]any{"startIndex": int64(i), "endIndex": int64(i)}
				}),
				"routes": list(n, func(i int) map[string]any {
					return map[string]any{"dst": fmt.Sprintf("fd01:0:%x::/48", i)}
				}),
				"exclusions": list(n, func(i int) map[string]any {
					return map[string]any{"startIP": fmt.Sprintf("fd00:1111:2222:0:%x:4444:5555:6666", i), "endIP": fmt.Sprintf("fd00:1111:2222:0:%x:4444:5555:7777", i)}
				}),
				// With n of 500 as large as the policies look at.
				"nodeSelector": map[string]any{"nodeSelectorTerms": list(n/10, func(int) map[string]any {
					return map[string]any{"matchExpressions": list(10, func(int) map[string]any {
						return map[string]any{"key": strings.Repeat("a", 253) + "/" + strings.Repeat("b", 63), "operator": "In",
							"values": []any{"1", strings.Repeat("c", 63), strings.Repeat("d", 63), strings.Repeat("e", 63)}}
					})}
				})},
			}
			ip := map[string]any{"subnet": "fd00:1111:2222::/48", "gateway": "fd00:1111:2222::1", "perNodeBlockSize": int64(100000)}
			cidr := map[string]any{"cidr": "fd00:1111:2222::/48", "gatewayIndex": int64(1), "perNodeNetworkPrefix": int64(64),
				"staticAllocations": list(n, func(i int) map[string]any {
					return map[string]any{"nodeName": fmt.Sprintf("node-%d.example.com", i), "prefix": fmt.Sprintf("fd00:1111:2222:%x::/64", i), "gateway": fmt.Sprintf("fd00:1111:2222:%x::ffff", i)}
				})}
			few := min(n, 1000) // as many as the CRD allows
			common["allowedNamespaces"] = []any{}
			ranges := []any{}
			for i := range few {
				common["allowedNamespaces"] = append(common["allowedNamespaces"].([]any), strings.Repeat("n", 58)+fmt.Sprintf("%04d", i)+"*")
				ranges = append(ranges, fmt.Sprintf("fd00:1111:2222:0:%x:4444:5555:6666-fd00:1111:2222:0:%x:4444:5555:7777", i, i))
			}
			ip["ranges"] = ranges
			for k, v := range common {
				for _, spec := range []map[string]any{ip, cidr} {
					spec[k] = v
				}
			}
			for _, m := range []map[string]any{ipPool(ip), cidrPool(cidr)} {
				if err := (poolCase{Pool: m}).parse(); err != nil {
					t.Fatal(err)
				}
				if err := c.try(t.Context(), m); err != nil {
					text := err.Error()
					t.Errorf("%s: %s", m["kind"], text[:min(len(text), 500)])
				}
			}
		})
	}
}

// kubectl get shows how full a pool is, and whether it is ready, without -o wide.
func TestColumns(t *testing.T) {
	for _, kind := range []string{"ippools", "cidrpools"} {
		crd, err := env.Kubectl(t.Context(), "get", "crd", kind+".nv-ipam.nvidia.com",
			"-o", `jsonpath={range .spec.versions[0].additionalPrinterColumns[*]}{.name}={.priority},{end}`)
		if err != nil || !strings.Contains(crd, ",Capacity=,Used=,Ready=,") {
			t.Errorf("%s: the columns are %q, %v", kind, crd, err)
		}
	}
}

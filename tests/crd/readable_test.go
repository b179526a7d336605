// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Whatever of a pool or a reservation is stored can be read: one object that cannot ends the list and
// the watch of all. Older API servers do not look at the formats of numbers.
func TestWhatIsStoredCanBeRead(t *testing.T) {
	c, ns := newCluster(t, env), env.Namespace(t)
	numbers := []string{"2147483647", "2147483648", "-1", "-2147483648", "-2147483649", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "1e3", "1e12", "0.5"}
	times := []string{
		"2026-11-28T00:00:00Z", "2026-11-28t00:00:00Z", "2026-11-28T00:00:00z", "2026-11-28T00:00:00.5Z", "2026-11-28T00:00:00x5Z",
		"2026-11-28T00:00:00+01:00", "2026-11-28T00:00:00+99:99", "2026-11-28T00:00:00-24:00", "2026-02-30T00:00:00Z", "2026-11-28T24:00:00Z", "2026-11-28T00:00:00Z\\n",
	}
	const condition = `{"status":{"conditions":[{"type":"Ready","status":"True","reason":"R","message":"","lastTransitionTime":"%"}]}}`
	for kind, tt := range map[string]struct {
		object  map[string]any
		into    func() any
		spec    []string // merge patches, in which % is a number
		status  []string
		atTimes string
	}{
		"IPPool": {
			object:  ipPool(map[string]any{"subnet": "fd00::/8", "perNodeBlockSize": int64(1) << 40}),
			into:    func() any { return &v1alpha1.IPPool{} },
			spec:    []string{`{"spec":{"perNodeBlockSize":%}}`, `{"spec":{"perNodeExclusions":[{"startIndex":0,"endIndex":%}]}}`, `{"spec":{"perNodeExclusions":[{"startIndex":%,"endIndex":%}]}}`},
			status:  []string{`{"status":{"allocations":[],"used":%}}`, `{"status":{"allocations":[],"capacity":%}}`, `{"status":{"allocations":[],"cooling":%}}`, `{"status":{"allocations":[],"observedGeneration":%}}`, `{"status":{"allocations":[],"topNodes":[{"nodeName":"a","used":%}]}}`},
			atTimes: strings.Replace(condition, `"conditions"`, `"allocations":[],"conditions"`, 1),
		},
		"CIDRPool": {
			object:  cidrPool(map[string]any{"cidr": "fd00::/8", "perNodeNetworkPrefix": int64(64)}),
			into:    func() any { return &v1alpha1.CIDRPool{} },
			spec:    []string{`{"spec":{"gatewayIndex":%}}`, `{"spec":{"perNodeNetworkPrefix":%}}`, `{"spec":{"perNodeExclusions":[{"startIndex":0,"endIndex":%}]}}`},
			atTimes: strings.Replace(condition, `"conditions"`, `"allocations":[],"conditions"`, 1),
		},
		"IPReservation": {
			object:  manifest("IPReservation", map[string]any{"poolRef": map[string]any{"kind": "IPPool", "name": "p"}, "addresses": []any{"10.0.0.1"}}),
			into:    func() any { return &v1alpha1.IPReservation{} },
			status:  []string{`{"status":{"wanted":%}}`, `{"status":{"kept":%}}`},
			atTimes: condition,
		},
	} {
		tt.object["metadata"] = map[string]any{"name": "p"}
		made, err := c.of(kind, ns).Create(t.Context(), &object{Object: tt.object}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(kind, err)
		}
		try := func(patches, values []string, subresources ...string) {
			for _, patch := range patches {
				accepted := 0
				for _, value := range values {
					body := []byte(strings.ReplaceAll(patch, "%", value))
					got, err := c.of(kind, ns).Patch(t.Context(), made.GetName(), types.MergePatchType, body, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, subresources...)
					if err != nil {
						continue
					}
					accepted++
					raw, err := got.MarshalJSON()
					if err == nil {
						err = json.Unmarshal(raw, tt.into())
					}
					if err != nil {
						t.Errorf("%s: %s is accepted, but: %v", kind, body, err)
					}
				}
				if accepted == 0 && !strings.Contains(patch, "perNodeNetworkPrefix") {
					t.Errorf("%s: nothing is accepted of %s", kind, patch)
				}
			}
		}
		try(tt.spec, numbers)
		try(tt.status, numbers, "status")
		try([]string{tt.atTimes}, times, "status")
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crd

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
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
					wantReadable(t, string(body), got, tt.into())
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

// The same of the times of an allocation, which any node may write.
func TestTimesCanBeRead(t *testing.T) {
	allocs := newCluster(t, env).of("IPAllocation", env.Namespace(t))
	for path, of := range map[string]*v1alpha1.IPAllocation{
		"addStartedAt": attached(), "releasedAt": kept(attached()), "next.addStartedAt": moving(attached()),
	} {
		a, err := runtime.DefaultUnstructuredConverter.ToUnstructured(of)
		if err != nil {
			t.Fatal(err)
		}
		a["apiVersion"], a["kind"] = v1alpha1.GroupVersion.String(), "IPAllocation"
		accepted := 0
		for _, at := range spellingsOfTimes() {
			if err := unstructured.SetNestedField(a, at, append([]string{"spec"}, strings.Split(path, ".")...)...); err != nil {
				t.Fatal(err)
			}
			got, err := allocs.Create(t.Context(), &object{Object: a}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err != nil {
				continue
			}
			accepted++
			wantReadable(t, path+": "+at, got, &v1alpha1.IPAllocation{})
		}
		if accepted < 10 {
			t.Errorf("%s: %d times are accepted", path, accepted)
		}
	}
}

// wantReadable checks that what a server has accepted can be read into a type of ours.
func wantReadable(t *testing.T, what string, got *object, into any) {
	t.Helper()
	raw, err := got.MarshalJSON()
	if err == nil {
		err = json.Unmarshal(raw, into)
	}
	if err != nil {
		t.Errorf("%s is accepted, but: %v", what, err)
	}
}

// spellingsOfTimes are forms of times, right and wrong: each of a part's beside the usual others.
func spellingsOfTimes() (out []string) {
	var ends []string // behind the seconds
	for _, fraction := range []string{"", ".000000", ".123456", ",123456", "x123456", ".1", ".123", ".123456789", "x1", "."} {
		for _, zone := range []string{"Z", "z", "+01:00", "-23:59", "+24:00", "+99:99", "", "+0100", "ZT", "Z\n"} {
			ends = append(ends, fraction+zone)
		}
	}
	usualEnds := []string{"Z", "z", ".123456Z", ".123456z"}
	for _, date := range []string{"2026-11-28", "0000-01-01", "9999-12-31", "2024-02-29", "2026-02-29", "2026-13-01"} {
		for _, clock := range []string{"T00:00:00", "t00:00:00", " 00:00:00", "T23:59:59", "t23:59:59", "T23:59:60", "T24:00:00", "T12:00"} {
			these := usualEnds
			if date == "2026-11-28" && clock == "T00:00:00" {
				these = ends
			}
			for _, end := range these {
				out = append(out, date+clock+end)
			}
		}
	}
	return out
}

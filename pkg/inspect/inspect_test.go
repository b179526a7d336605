// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

func TestParseStatus(t *testing.T) {
	for text, want := range map[string]string{
		`[{"name": "x", "default": true, "ips": ["10.0.0.1"]}, {"name": "a/b", "ips": ["10.0.0.2/24", "fd00::1", "nonsense"]}]`: "10.0.0.2 fd00::1",
		`{`: "", ``: "", `{}`: "", `[{"ips": null}]`: "",
	} {
		var got []string
		for _, s := range parseStatus(text) {
			for _, a := range s.addresses() {
				got = append(got, a.String())
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", text, got, want)
		}
	}
}

func TestListMeta(t *testing.T) {
	for _, text := range []string{
		`{"items": [{"metadata": {"resourceVersion": "1"}}], "metadata": {"continue": "x", "resourceVersion": "7"}}`,
		`{"metadata": {"continue": "x", "resourceVersion": "7"}, "items": [{"metadata": {"resourceVersion": "1"}}]}`,
		`{"items": [], "metadata": {"continue": "x", "resourceVersion": "7"}, "kind": "List"}`,
	} {
		if meta, err := listMeta([]byte(text)); err != nil || meta.Continue != "x" || meta.ResourceVersion != "7" {
			t.Errorf("%s: %v, %v", text, meta, err)
		}
	}
	if meta, err := listMeta([]byte(`{"items": [`)); err == nil {
		t.Errorf("half a list: %v", meta)
	}
}

func TestReservedAddresses(t *testing.T) {
	for name, want := range map[string]string{
		"10.0.0.5": "10.0.0.5", "net-10.0.0.5": "10.0.0.5", "fd00--5": "fd00::5", "my-net-fd00--5": "fd00::5",
		"rail-1-fd00--5": "1:fd00::5 fd00::5", "rail---5": "::5", "nonsense": "", "": "", "-": "",
	} {
		var got []string
		for _, a := range reservedAddresses(name) {
			got = append(got, a.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %s", name, got, want)
		}
	}
}

func TestReadWhereabouts(t *testing.T) {
	got := map[netip.Addr][]claim{}
	for _, spec := range []string{
		`{"range": "10.0.0.0/24", "allocations": {"5": {"podref": "a/b"}, "-1": {}, "x": {}, "99999999999": {}}}`,
		`{"range": "fd00::/64", "allocations": {"18446744073709551615": {"podref": "a/c"}}}`,
		`{"range": "nonsense", "allocations": {"1": {}}}`, `[]`,
	} {
		readWhereabouts(object{Spec: json.RawMessage(spec)}, got)
	}
	for text, pod := range map[string]string{"10.0.0.5": "a/b", "fd00::ffff:ffff:ffff:ffff": "a/c"} {
		if all := got[netip.MustParseAddr(text)]; len(got) != 2 || len(all) != 1 || all[0].pod != pod {
			t.Errorf("read %v", got)
		}
	}
}

func TestLabels(t *testing.T) {
	a := &v1alpha1.IPAllocation{Spec: v1alpha1.IPAllocationSpec{
		Address: "10.0.3.7", NodeName: strings.Repeat("n", 100), ContainerID: "c", PoolRef: v1alpha1.PoolReference{Name: "p"},
	}}
	a.Labels = rightLabels(a)
	if wrong := wrongLabels(a); len(wrong) > 0 {
		t.Error(wrong)
	}
	a.Labels[v1alpha1.LabelWindow] = "10.0.4.0-24"
	if wrong := wrongLabels(a); len(wrong) != 1 || !strings.Contains(wrong[0], `want "10.0.3.0-24"`) {
		t.Error(wrong)
	}
	reserved := &v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "p.10.0.0.1"}, Spec: v1alpha1.IPAllocationSpec{Address: "10.0.0.1", PoolRef: v1alpha1.PoolReference{Name: "p"}}}
	if wrong := wrongLabels(reserved); len(wrong) > 0 {
		t.Errorf("a reservation needs labels: %v", wrong)
	}
}

func TestParseWho(t *testing.T) {
	for text, want := range map[string]Who{
		"10.0.0.1": {Address: netip.MustParseAddr("10.0.0.1")}, "FD00::1": {Address: netip.MustParseAddr("fd00::1")},
		"a": {Pod: "ns/a", Node: "a"}, "pod/a": {Pod: "ns/a"}, "other/a": {Pod: "other/a"}, "node/a": {Node: "a"}, "nodes/a": {Node: "a"},
	} {
		if got := ParseWho(text, "ns"); got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
}

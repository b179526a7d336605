// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

func TestParseStatus(t *testing.T) {
	for text, want := range map[string]string{
		`[{"name": "x", "default": true, "ips": ["10.0.0.1"]}, {"name": "a/b", "ips": ["10.0.0.2/24", "fd00::1", "nonsense"]}]`: "10.0.0.2 fd00::1",
		`[{"name": "x/y", "default": true, "ips": ["10.0.0.1"]}]`:                                                               "10.0.0.1",
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

// Where the annotation names no interface, the pod's status decides.
func TestInterfaces(t *testing.T) {
	for _, tc := range []struct{ annotation, status, want string }{
		{"a,b", "", "net1 net2"},
		{"a,b@eth5", "a@net1 b@eth5", "net1 eth5"},
		{"a,b", "d@net1 a@net2 b@net3", "net2 net3"},
		{"a,a", "d@net1 a@net2 a@net3", "net2 net3"},
		{"a@net2,a", "a@net2 a@net3", "net2 net3"},
		{"a", "a@net1 a@net2", "net1"}, // the first one may be that of defaultNetworks, which cannot be told
		{"a", "b@net2", "net1"},
	} {
		selections, err := ledger.ParseNetworks(tc.annotation, "ns")
		if err != nil {
			t.Fatal(err)
		}
		var worn []status
		for _, text := range strings.Fields(tc.status) {
			name, iface, _ := strings.Cut(text, "@")
			worn = append(worn, status{Name: "ns/" + name, Interface: iface})
		}
		if got := strings.Join(interfaces(selections, worn), " "); got != tc.want {
			t.Errorf("%s with %q: %s, want %s", tc.annotation, tc.status, got, tc.want)
		}
	}
}

// Of the messages about a missing plugin only that about this project's is for its installer.
func TestExplainMissingPlugin(t *testing.T) {
	for message, want := range map[string]string{
		`plugin type="macvlan" failed (add): failed to find plugin "nv-ipam" in path [/opt/cni/bin]`: "component=nv-ipam-node",
		`failed to find plugin "macvlan" in path [/opt/cni/bin]`:                                     "install the plugin that the message names",
	} {
		if _, mend := explain(message); !strings.Contains(mend, want) {
			t.Errorf("%s: %s, want %s", message, mend, want)
		}
	}
}

func TestParseWho(t *testing.T) {
	four, six := Who{Address: netip.MustParseAddr("10.0.0.1")}, Who{Address: netip.MustParseAddr("fd00::1")}
	for text, want := range map[string]Who{
		"10.0.0.1": four, "FD00::1": six, " 10.0.0.1\n": four, "10.0.0.1/24": four, "fd00::1/64": six, "[fd00::1]": six, "::ffff:10.0.0.1": four,
		"a": {Pod: "ns/a", Node: "a"}, "pod/a": {Pod: "ns/a"}, "po/a": {Pod: "ns/a"}, "other/a": {Pod: "other/a"}, "pod/other/a": {Pod: "other/a"},
		"node/a": {Node: "a"}, "nodes/a": {Node: "a"}, "no/a": {Node: "a"}, "node/10.0.0.1": {Node: "10.0.0.1"}, "pod/10.0.0.1": {Pod: "ns/10.0.0.1"},
		"rail1.10.0.0.1": {Allocation: "rail1.10.0.0.1"}, "six.fd00-0000-0000-0000-0000-0000-0000-0001": {Allocation: "six.fd00-0000-0000-0000-0000-0000-0000-0001"},
		"sys/rail1.10.0.0.1": {Allocation: "rail1.10.0.0.1", Namespace: "sys"}, "ipa/rail1.10.0.0.1": {Allocation: "rail1.10.0.0.1"}, "ipallocation/rail1.10.0.0.1": {Allocation: "rail1.10.0.0.1"}, "pod/rail1.10.0.0.1": {Pod: "ns/rail1.10.0.0.1"}, "1": {Pod: "ns/1", Node: "1"},
		"10.1.0": {}, "10.1.0.": {}, "1.2.3.4.5": {}, "10.1.0/24": {},
		"": {}, "/": {}, "node/": {}, "pod/": {}, "a/": {}, "a/b/c": {}, "pod/a/b/c": {}, "a,b=c": {}, "A": {},
		"10.0.0.300": {}, "10.0.0.1/33": {}, "fd00::1%eth0": {}, "fd00::g": {}, "[10.0.0.1": {},
	} {
		got, err := ParseWho(text, "ns")
		if got != want || (err != nil) != (want == Who{}) {
			t.Errorf("%q: %+v, %v, want %+v", text, got, err, want)
		}
	}
}

// A browser's copy of the cluster is not filled by what the authors of pods write.
func TestThinPodIsBounded(t *testing.T) {
	large := strings.Repeat("x", 250<<10)
	got := thinPod(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{
		"other": large, reclaim.AnnotationConfigMirror: large, reclaim.AnnotationConfigHash: large,
	}}})
	if text := fmt.Sprint(got.(*corev1.Pod).Annotations); len(text) > 1024 {
		t.Errorf("%d bytes are kept", len(text))
	}
}

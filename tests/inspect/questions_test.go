// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func TestShow(t *testing.T) {
	h := newHouse(t)
	rig.CIDRPool(t, h.IPAM, h.NS, "loop", v1alpha1.CIDRPoolSpec{CIDR: "10.3.0.0/24", PerNodeNetworkPrefix: 31}, "worker-1")
	rig.IPPool(t, h.IPAM, h.NS, "flat", v1alpha1.IPPoolSpec{Subnet: "10.4.0.0/29"})
	h.Pool(t, "bad", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16, Gateway: "10.8.0.1"})
	for i, a := range []string{"10.1.0.2", "10.1.0.3", "10.1.0.200"} {
		h.claim(t, a, "worker-1", h.pod(t, string(rune('a'+i)), "worker-1"))
	}
	got := map[string]map[string]any{}
	for _, item := range h.ipam(t, "show", "-n", h.NS, "--blocks", "-o", "json").items(t) {
		got[item["name"].(string)] = item
	}
	for _, tc := range []struct{ pool, path, want string }{
		{"rail1", "capacity", "31"}, {"rail1", "used", "3"}, {"rail1", "blockCount", "2"}, {"rail1", "fullBlocks", "0"}, {"rail1", "ready", "True"}, {"rail1", "reason", "BlocksAssigned"},
		{"loop", "capacity", "2"}, {"loop", "ready", "False"}, {"loop", "reason", "NoFreeRanges"}, // worker-2 has no block, and no controller says so
		{"flat", "capacity", "6"}, {"flat", "reason", "NoBlocks"},
		{"bad", "capacity", "<nil>"}, {"bad", "ready", "False"}, {"bad", "reason", "InvalidSpec"},
	} {
		if have := field(got[tc.pool], tc.path); have != tc.want {
			t.Errorf("%s of %s is %s, want %s", tc.path, tc.pool, have, tc.want)
		}
	}
	blocks := got["rail1"]["blocks"].([]any)
	if first := blocks[0].(map[string]any); len(blocks) != 2 || field(first, "node") != "worker-1" || field(first, "used") != "2" || field(first, "size") != "15" {
		t.Errorf("blocks are %v", blocks)
	}
	h.ipam(t, "show", "-n", h.NS, "rail1").want(t, 0, "CAPACITY", "rail1", "31", "9%")
	h.ipam(t, "show", "-n", h.NS, "rial1").want(t, 2, `error: there is no pool "rial1"`)
	h.ipam(t, "show", "-n", h.NS, "-o", "yaml").want(t, 0, "apiVersion: ipam.cli/v1\n", "kind: PoolList\n", "  name: rail1\n")
	h.ipam(t, "show", "-n", "does-not-exist").want(t, 0, "There are no pools in namespace does-not-exist.")
	h.ipam(t, "check", "-n", "does-not-exist").want(t, 2, `namespace "does-not-exist" has no pool and no allocation`)
	h.ipam(t, "show", "-n", h.NS, "-o", "xml").want(t, 2, "-o xml is not known: json or yaml")
	h.ipam(t, "show").want(t, 0, h.NS) // all namespaces
	h.ipam(t, "__complete", "show", "-n", h.NS, "ra").want(t, 0, "rail1\n")
	if out := h.ipam(t, "show", "-n", h.NS).out; strings.Contains(out, "\033") {
		t.Errorf("colours, and no terminal: %q", out)
	}
	only := h.user(t, "pools", `{}`)
	ipamAs(t, only, "", "show", "-A").want(t, 2, "error: listing pools", "is forbidden")
}

func TestWho(t *testing.T) {
	h := newHouse(t)
	h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
	h.claim(t, "10.1.0.3", "worker-1", h.gone("b"))
	h.claim(t, "10.1.0.33", "worker-2", h.pod(t, "c", "worker-2"))
	for _, tc := range []struct {
		who  string
		want []string // addresses
		code int
		says []string
	}{
		{who: "10.1.0.2", want: []string{"10.1.0.2"}, says: []string{"worker-1", "InUse", "pod exists", "/a"}},
		{who: "10.1.0.3", want: []string{"10.1.0.3"}, says: []string{"LooksLeaked", "pod is gone"}},
		{who: "::ffff:10.1.0.2", want: []string{"10.1.0.2"}},
		{who: "10.1.0.4", code: 1, says: []string{"nobody holds 10.1.0.4; it is in ", "/rail1"}},
		{who: "10.77.0.4", code: 1, says: []string{"no pool has it"}},
		{who: "a", want: []string{"10.1.0.2"}},
		{who: "pod/a", want: []string{"10.1.0.2"}},
		{who: h.NS + "/a", want: []string{"10.1.0.2"}},
		{who: "worker-1", want: []string{"10.1.0.2", "10.1.0.3"}},
		{who: "node/worker-2", want: []string{"10.1.0.33"}},
		{who: "no/worker-2", want: []string{"10.1.0.33"}},
		{who: "node/worker-3", code: 1, says: []string{"holds no address"}},
		{who: "10.1.0.2/24", want: []string{"10.1.0.2"}},
		{who: "rail1.10.1.0.3", want: []string{"10.1.0.3"}},
		{who: h.NS + "/rail1.10.1.0.3", want: []string{"10.1.0.3"}},
		{who: "default/rail1.10.1.0.3", code: 1, says: []string{"there is no allocation default/rail1.10.1.0.3"}},
		{who: "10.1.0", code: 2, says: []string{`"10.1.0" is not an address`}},
		{who: "rail1.10.1.0.4", code: 1, says: []string{"there is no allocation rail1.10.1.0.4: the address is free"}},
		{who: "pod/" + h.NS + "/a", want: []string{"10.1.0.2"}},
		{who: "10.1.0.300", code: 2, says: []string{`"10.1.0.300" is not an address`}},
	} {
		h.ipam(t, "who", "-n", h.NS, tc.who).want(t, tc.code, tc.says...)
		if tc.code != 0 {
			continue
		}
		var got []string
		for _, item := range h.ipam(t, "who", "-n", h.NS, tc.who, "-o", "json").items(t) {
			got = append(got, item["address"].(string))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("who %s: %v, want %v", tc.who, got, tc.want)
		}
	}
	h.ipam(t, "why", "10.1.0.2").want(t, 2, `"10.1.0.2" is no pod`)
	h.ipam(t, "why", "po/a", "-n", h.NS).want(t, 1, "pod "+h.NS+"/a")
	h.reserved(t, "10.1.0.40", "printers")
	h.kept(t, "rail1", "10.1.0.41", h.gone("web-0"))
	h.ipam(t, "who", "10.1.0.40").want(t, 0, "IPReservation "+h.NS+"/printers", "Reserved")
	h.ipam(t, "who", "10.1.0.41").want(t, 0, h.NS+"/web-0 (StatefulSet web)", "Kept")
	blind := h.user(t, "blind", `{"rules": [{"apiGroups": ["nv-ipam.nvidia.com"], "resources": ["*"], "verbs": ["get", "list"]}]}`)
	ipamAs(t, blind, "", "who", "10.1.0.2").want(t, 0, "10.1.0.2", "Unknown", "reading pod", "is forbidden")
}

// While a machine moves, its address is found by either pod and by either node, and that two
// pods have the address is no finding. A third one is.
func TestWhileAMachineMoves(t *testing.T) {
	h := newHouse(t)
	h.network(t, "rail1", map[string]any{"poolName": "rail1"})
	worn := h.has("rail1", "10.1.0.2")
	source, target := h.pod(t, "source", "worker-1", networkStatus, worn), h.pod(t, "target", "worker-2", networkStatus, worn)
	moves := func(address string, source, target v1alpha1.PodReference) {
		a := rig.Allocation("rail1", address, "worker-1", source, "sandbox-"+source.Name)
		a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.IPAMClaimGroup, Kind: v1alpha1.KindIPAMClaim, Namespace: h.NS, Name: "vm", UID: "u"}
		a.Spec.Next = v1alpha1.NextOf(&rig.Allocation("rail1", address, "worker-2", target, "sandbox-"+target.Name).Spec)
		a.Labels = v1alpha1.AllocationLabels(&a.Spec)
		h.Claim(t, h.IPAM, a)
	}
	moves("10.1.0.2", source, target)
	for _, who := range []string{"source", "target", "worker-1", "worker-2", "10.1.0.2"} {
		h.ipam(t, "who", "-n", h.NS, who).want(t, 0, "10.1.0.2", h.NS+"/source", "a machine moves to pod "+h.NS+"/target on node worker-2")
	}
	if got := h.ipam(t, "who", "-n", h.NS, "target", "-o", "json").items(t); field(got[0], "next.podRef.name") != "target" {
		t.Errorf("who: %v", got)
	}
	h.ipam(t, "check", "-n", h.NS).want(t, 0)
	h.pod(t, "third", "worker-2", networkStatus, worn)
	h.ipam(t, "check", "-n", h.NS).want(t, 1, "AddressOnTwoPods", "and moves to pod "+h.NS+"/target", "kubectl delete pod -n "+h.NS+" third")

	moves("10.1.0.3", h.gone("over"), target)
	h.ipam(t, "leaks", "-n", h.NS).want(t, 1, "10.1.0.3", "the controller gives its place to that pod")
	h.ipam(t, "release", "-n", h.NS, "10.1.0.3", "--yes").want(t, 1, "a machine moves to pod "+h.NS+"/target with it: wait until it has moved")
}

func TestFree(t *testing.T) {
	h := newHouse(t)
	for _, a := range []string{"10.1.0.2", "10.1.0.5"} {
		h.claim(t, a, "worker-1", h.gone("p"+a[len(a)-1:]))
	}
	h.ipam(t, "free", "-n", h.NS, "rail1").want(t, 0, "10.1.0.3-10.1.0.4, 10.1.0.6-10.1.0.16", "10.1.0.17-10.1.0.32")
	item := h.ipam(t, "free", "-n", h.NS, "rail1", "-o", "json").items(t)[0]
	if field(item, "free") != "13" || field(item, "size") != "15" || field(item, "node") != "worker-1" {
		t.Errorf("free is %v", item)
	}
	rig.IPPool(t, h.IPAM, h.NS, "six", v1alpha1.IPPoolSpec{Subnet: "fd00::/64"})
	h.ipam(t, "free", "-n", h.NS, "six").want(t, 0, "fd00::1-fd00::ffff:ffff:ffff:ffff", "9007199254740991")
	h.ipam(t, "free", "-n", h.NS, "none").want(t, 2, `there is no pool "none" in namespace `+h.NS)
}

func TestLeaks(t *testing.T) {
	h := newHouse(t)
	h.ipam(t, "leaks", "-n", h.NS).want(t, 0, "Nothing looks leaked in namespace "+h.NS)
	h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
	h.claim(t, "10.1.0.3", "worker-1", h.gone("b"))
	h.taint(t, "worker-2", "node.kubernetes.io/unreachable")
	h.claim(t, "10.1.0.33", "worker-2", h.gone("c"))
	a := h.ipam(t, "leaks", "-n", h.NS)
	a.want(t, 1, "LooksLeaked", "pod_gone", "ends when the controller reclaims it", "Held", "node_unreachable", "its Node object is deleted")
	items := h.ipam(t, "leaks", "-n", h.NS, "-o", "json").items(t)
	if len(items) != 2 || field(items[1], "verdict.until") == "" || field(items[1], "verdict.since") == "" {
		t.Errorf("leaks are %v", items)
	}
	h.ipam(t, "leaks", "-n", h.NS, "rail2").want(t, 2, `there is no pool "rail2"`)
	if err := h.IPAM.IPPools(h.NS).Delete(t.Context(), "rail1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	h.ipam(t, "leaks", "-n", h.NS, "rail1").want(t, 1, "10.1.0.3") // its allocations name it
}

// An address that rests is neither held nor free, and leaks nothing.
func TestCooling(t *testing.T) {
	h := newHouse(t)
	a := rig.Allocation("rail1", "10.1.0.2", "worker-1", h.gone("a"), "sandbox-a")
	a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Hour}
	h.Claim(t, h.IPAM, a)
	h.ipam(t, "leaks", "-n", h.NS).want(t, 1, "LooksLeaked")
	released := fmt.Sprintf(`{"spec": {"releasedAt": %q}, "metadata": {"labels": {%q: "true"}}}`, time.Now().UTC().Format(time.RFC3339), v1alpha1.LabelReleased)
	if _, err := h.IPAM.IPAllocations(h.NS).Patch(t.Context(), a.Name, types.MergePatchType, []byte(released), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	h.ipam(t, "leaks", "-n", h.NS).want(t, 0, "Nothing looks leaked in namespace "+h.NS)
	h.ipam(t, "check", "-n", h.NS).want(t, 0, "0 findings")
	h.ipam(t, "who", "-n", h.NS, "10.1.0.2").want(t, 0, "Cooling", "rests after its release")
	item := h.ipam(t, "show", "-n", h.NS, "-o", "json", "--blocks").items(t)[0]
	block := item["blocks"].([]any)[0].(map[string]any)
	if field(item, "used") != "0" || field(item, "cooling") != "1" || field(block, "used") != "0" || field(block, "cooling") != "1" {
		t.Errorf("show says %v", item)
	}
	h.ipam(t, "free", "-n", h.NS, "rail1").want(t, 0, "10.1.0.3-10.1.0.16")
	h.network(t, "n", map[string]any{"poolName": "rail1"})
	h.pod(t, "b", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.2"]}]`)
	h.ipam(t, "why", "-n", h.NS, "b").want(t, 1, "10.1.0.2, which the pod asks for, is released by pod", "and rests until", "kubectl ipam release")
	ipamAs(t, env.Kubeconfig, "", "release", "-n", h.NS, "10.1.0.2", "-y").want(t, 0, "rail1.10.1.0.2 is released")
}

func TestReserve(t *testing.T) {
	h := newHouse(t)
	for _, tc := range []struct {
		args []string
		code int
		says []string
	}{
		{args: []string{"10.1.0.9"}, code: 2, says: []string{`required flag(s) "pool" not set`}},
		{args: []string{"10.1.0.9", "--pool", "rail2"}, code: 2, says: []string{`there is no pool "rail2"`}},
		{args: []string{"10.2.0.9", "--pool", "rail1"}, code: 2, says: []string{"spec.addresses[0]", "10.2.0.9", "is not part of the subnet 10.1.0.0/24"}},
		{args: []string{"10.1.0.9", "--pool", "rail1", "--pod", "train-0"}, code: 2, says: []string{`--pod "train-0": want NAMESPACE/NAME`}},
		{args: []string{"10.1.0.9", "--pool", "rail1", "--dry-run"}, says: []string{"kind: IPReservation", "  name: rail1.10.1.0.9", "  - 10.1.0.9"}},
		{args: []string{"10.1.0.9", "10.1.0.20-10.1.0.22", "--pool", "rail1", "--pod", "ml/train-0", "--reason", "a test"}, says: []string{"ipreservation rail1.10.1.0.9 is made"}},
		{args: []string{"10.1.0.9", "--pool", "rail1"}, code: 2, says: []string{"already exists"}},
		{args: []string{"10.1.0.9", "--pool", "rail1", "--name", "a b"}, code: 2, says: []string{"a b", "metadata.name"}},
	} {
		h.ipam(t, append([]string{"reserve", "-n", h.NS}, tc.args...)...).want(t, tc.code, tc.says...)
	}
	all, err := h.IPAM.IPReservations(h.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(all.Items) != 1 {
		t.Fatalf("reservations are %v, %v", all, err)
	}
	if got := all.Items[0].Spec; len(got.Addresses) != 2 || got.Pod == nil || got.Pod.Name != "train-0" || got.Reason != "a test" || got.PoolRef.Name != "rail1" {
		t.Errorf("the reservation is %+v", got)
	}
}

func TestRelease(t *testing.T) {
	h := newHouse(t)
	h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
	h.claim(t, "10.1.0.3", "worker-1", h.gone("b"))
	h.claim(t, "10.1.0.4", "worker-1", h.gone("c"))
	h.taint(t, "worker-2", "node.kubernetes.io/unreachable")
	h.claim(t, "10.1.0.33", "worker-2", h.gone("d"))
	h.network(t, "rail1", map[string]any{"poolName": "rail1"})
	h.claim(t, "10.1.0.7", "worker-1", h.gone("e"))
	h.pod(t, "e", "worker-1", networkStatus, h.has("rail1", "10.1.0.7"))
	h.reserved(t, "10.1.0.40", "printers")
	h.kept(t, "rail1", "10.1.0.41", h.gone("web-0"))
	held := func(address string) bool {
		t.Helper()
		_, err := h.IPAM.IPAllocations(h.NS).Get(t.Context(), "rail1."+address, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		return err == nil
	}
	for _, tc := range []struct {
		name  string
		args  []string
		stdin string
		code  int
		says  []string
		still string // an address that is held after it
		gone  string // one that is not
	}{
		{name: "a live pod's", args: []string{"10.1.0.2", "--yes", "--force"}, code: 1, says: []string{"is not released: pod", "/a uses it (pod exists)", "kubectl delete pod -n"}, still: "10.1.0.2"},
		{name: "nobody says yes", args: []string{"10.1.0.3"}, code: 2, says: []string{"Release it? [y/N]", "say y, or set --yes"}, still: "10.1.0.3"},
		{name: "no", args: []string{"10.1.0.3"}, stdin: "n\n", code: 2, still: "10.1.0.3"},
		{name: "yes", args: []string{"10.1.0.3"}, stdin: "y\n", says: []string{"LooksLeaked pod is gone", "rail1.10.1.0.3 is released"}, gone: "10.1.0.3"},
		{name: "by its name", args: []string{"rail1.10.1.0.4", "-y"}, says: []string{"rail1.10.1.0.4 is released"}, gone: "10.1.0.4"},
		{name: "held", args: []string{"10.1.0.33", "-y"}, code: 1, says: []string{"node_unreachable", "a container may still use it", "--force"}, still: "10.1.0.33"},
		{name: "a later pod of the name has it", args: []string{"10.1.0.7", "-y"}, code: 1, says: []string{"pod_replaced", "/e has the address by its network-status", "--force"}, still: "10.1.0.7"},
		{name: "reserved", args: []string{"10.1.0.40", "-y", "--force"}, code: 1, says: []string{"reserved by IPReservation printers, and the controller would reserve it again", "kubectl edit ipr -n " + h.NS + " printers"}, still: "10.1.0.40"},
		{name: "kept", args: []string{"10.1.0.41", "-y"}, code: 1, says: []string{"kept for StatefulSet web, and its next container would get another address. If that may be: --force"}, still: "10.1.0.41"},
		{name: "kept, by force", args: []string{"10.1.0.41", "--force"}, stdin: "y\n", says: []string{"10.1.0.41 of " + h.NS + "/web-0 (StatefulSet web) on node worker-1", "its next container would get another address. If that may be, release it"}, gone: "10.1.0.41"},
		{name: "held, by force", args: []string{"10.1.0.33", "-y", "--force"}, gone: "10.1.0.33"},
		{name: "free", args: []string{"10.1.0.9", "-y"}, code: 2, says: []string{`no allocation has the name or the address "10.1.0.9"`}},
		{name: "neither", args: []string{"nonsense", "-y"}, code: 2, says: []string{`"nonsense" is not the name of an IPAllocation`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			ipamAs(t, env.Kubeconfig, tc.stdin, append([]string{"release", "-n", h.NS}, tc.args...)...).want(t, tc.code, tc.says...)
			if tc.still != "" && !held(tc.still) || tc.gone != "" && held(tc.gone) {
				t.Errorf("held are %v", h.Held(t))
			}
		})
	}
}

// Of two addresses of one attachment, the one that the pod does not have is released by force.
func TestReleaseOneOfTwo(t *testing.T) {
	h := newHouse(t)
	h.network(t, "rail1", map[string]any{"poolName": "rail1"})
	p := h.pod(t, "a", "worker-1", networks, "rail1", networkStatus, h.has("rail1", "10.1.0.3"))
	h.claim(t, "10.1.0.2", "worker-1", p)
	h.claim(t, "10.1.0.3", "worker-1", p)
	h.ipam(t, "release", "-n", h.NS, "10.1.0.3", "-y", "--force").want(t, 1, "/a uses it (pod exists)")
	h.ipam(t, "release", "-n", h.NS, "10.1.0.2", "-y").want(t, 1, "has 10.1.0.3 in its place by its network-status", "--force")
	mend := h.ipam(t, "check", "-n", h.NS, "-o", "json").items(t)[0]["mend"].(string)
	_, args, found := strings.Cut(mend, "kubectl ipam ")
	if !found {
		t.Fatal(mend)
	}
	h.ipam(t, append(strings.Fields(args), "-y")...).want(t, 0, "rail1.10.1.0.2 is released")
	h.ipam(t, "check", "-n", h.NS).want(t, 0)
}

func TestPlan(t *testing.T) {
	h := newHouse(t)
	h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
	h.claim(t, "10.1.0.20", "worker-2", h.pod(t, "b", "worker-2"))
	rig.IPPool(t, h.IPAM, h.NS, "rail9", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16}, "worker-1")
	for _, tc := range []struct {
		name, spec string
		code       int
		says       []string
		fields     map[string]string
	}{
		{name: "nothing changes", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.1", says: []string{"capacity 31, now 31", "blocks   2, now 2"}},
		{name: "larger subnet", spec: "subnet: 10.1.0.0/16, perNodeBlockSize: 16, gateway: 10.1.0.1", says: []string{"capacity 31, now 31"}},
		{name: "a node is not selected any more", spec: `subnet: 10.1.0.0/24, perNodeBlockSize: 16, nodeSelector: {nodeSelectorTerms: [{matchExpressions: [{key: rack, operator: Exists}]}]}`, code: 1, says: []string{"nodes that lose their block: 1: worker-2", "keep their present block until its addresses are given back: 1: worker-2 (10.1.0.17-10.1.0.32)"}},
		{name: "gateway onto a held address", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.2", code: 1, says: []string{"addresses that are held, kept or reserved, and that the pool would not give any more: 1: 10.1.0.2 on node worker-1 (would be a gateway)"}, fields: map[string]string{"capacityAfter": "31"}},
		{name: "exclusion over a held address", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, exclusions: [{startIP: 10.1.0.17, endIP: 10.1.0.24}]", code: 1, says: []string{"10.1.0.20 on node worker-2 (the pool would not give it)", "capacity 24, now 31"}},
		{name: "another subnet", spec: "subnet: 10.2.0.0/24, perNodeBlockSize: 16", code: 1, says: []string{"nodes that keep their present block until its addresses are given back: 2: worker-1 (10.1.0.1-10.1.0.16)", "nodes with another block: 2: worker-1 (10.1.0.1-10.1.0.16, then 10.2.0.1-10.2.0.16)", "10.1.0.2 on node worker-1"}},
		{name: "no room for a node", spec: "subnet: 10.1.0.0/27, perNodeBlockSize: 30", code: 1, says: []string{"nodes without a block, for lack of room"}},
		{name: "no blocks", spec: "subnet: 10.1.0.0/24", says: []string{"capacity 254, now 31", "blocks   0, now 2"}},
		{name: "overlaps with another domain", spec: "subnet: 10.0.0.0/8, perNodeBlockSize: 16", code: 1, says: []string{"overlaps with: 1: IPPool rail9 (10.9.0.0/24, domain rail9)"}},
		{name: "invalid", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.7.0.1", code: 1, says: []string{"REFUSED  spec.gateway: Invalid value", "capacity 31, now 31"}},
		{name: "disabled", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.1, disabled: true", code: 1, says: []string{"namespaces whose pods would get no more addresses: 1: " + h.NS}},
		{name: "namespace not allowed", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.1, allowedNamespaces: [other]", code: 1, says: []string{"namespaces whose pods would get no more addresses: 1: " + h.NS}},
		{name: "namespace allowed", spec: `subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.1, allowedNamespaces: ["test-*"]`},
		{name: "another domain", spec: "subnet: 10.1.0.0/24, perNodeBlockSize: 16, domain: other", code: 1, says: []string{"spec.domain is immutable: it is rail1, not other"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := h.GetPool(t, "rail1").ResourceVersion
			file := filepath.Join(t.TempDir(), "pool.yaml")
			if err := os.WriteFile(file, []byte("apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: rail1}\nspec: {"+tc.spec+"}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.ipam(t, "plan", "-n", h.NS, "-f", file).want(t, tc.code, tc.says...)
			item := h.ipam(t, "plan", "-n", h.NS, "-f", file, "-o", "json").items(t)[0]
			for path, want := range tc.fields {
				if field(item, path) != want {
					t.Errorf("%s is %s, want %s", path, field(item, path), want)
				}
			}
			if after := h.GetPool(t, "rail1").ResourceVersion; after != before {
				t.Error("the pool was written")
			}
		})
	}
	t.Run("what is reserved, and what is kept", func(t *testing.T) {
		h.reserved(t, "10.1.0.40", "printers")
		h.kept(t, "rail1", "10.1.0.41", h.gone("web-0"))
		h.Claim(t, h.IPAM, ofWeb(rig.Allocation("rail1", "10.1.0.42", "worker-1", h.pod(t, "web-1", "worker-1"), "sandbox-web-1"), h.NS))
		pool := "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: rail1, namespace: " + h.NS + "}\nspec: "
		ipamAs(t, env.Kubeconfig, pool+"{subnet: 10.1.0.0/24, perNodeBlockSize: 16, gateway: 10.1.0.1}", "plan", "-f", "-").want(t, 0)
		ipamAs(t, env.Kubeconfig, pool+"{subnet: 10.2.0.0/24, perNodeBlockSize: 16}", "plan", "-f", "-").want(t, 1,
			"10.1.0.40 (reserved for IPReservation "+h.NS+"/printers: would not be in the subnet)", "10.1.0.41 on node worker-1 (released at", "and kept for pod "+h.NS+"/web-0: would not be in the subnet)",
			"10.1.0.42 on node worker-1 (would not be in the subnet)")
		a := ipamAs(t, env.Kubeconfig, pool+"{subnet: 10.1.0.0/24, perNodeBlockSize: 16, exclusions: [{startIP: 10.1.0.40, endIP: 10.1.0.41}]}", "plan", "-f", "-")
		a.want(t, 1, "any more: 1: 10.1.0.41 on node worker-1", "and kept for pod "+h.NS+"/web-0: the pool would not give it)")
	})
	for spec, says := range map[string]string{
		"sticky: []": "spec.sticky is []: leave it out", "sticky: [StatefulSet, StatefulSet]": "is named twice", `domain: ""`: `spec.domain is "": leave it out`,
		`overflow: ""`: `spec.overflow is "": leave it out`, "releaseCooldown: 1.5h": "as 1h30m", "releaseCooldown: 1s1m": "as 1h30m",
		"allowedNamespaces: []": "leave it out", `gateway: ""`: "", "ranges: []": "", "exclusions: []": "", "releaseCooldown: 1h30m": "",
	} {
		pool := "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: x, namespace: " + h.NS + "}\nspec: {subnet: 10.7.0.0/24, perNodeBlockSize: 16, " + spec + "}\n"
		a := ipamAs(t, env.Kubeconfig, pool, "plan", "-f", "-")
		file := filepath.Join(t.TempDir(), "pool.yaml")
		if err := os.WriteFile(file, []byte(pool), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := env.Kubectl(t.Context(), "apply", "--dry-run=server", "-f", file)
		if takes := err == nil; takes != (says == "") || takes != (a.code == 0) || !strings.Contains(a.out+a.err, says) {
			t.Errorf("%s: the API server: %v; plan ends with %d: %s%s", spec, err, a.code, a.out, a.err)
		}
	}
	for stdin, says := range map[string]string{
		"apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: x, namespace: why}\nspec: {subnet: 10.1.0.0/24, perNodeBlocksize: 16}\n": `the API server would refuse it: strict decoding error: unknown field "spec.perNodeBlocksize"`,
		"apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: x, namespace: why}\nspec: {subnet: 10.1.0.0/24, perNodeBlockSize: 0}\n":  "the API server would refuse it: spec.perNodeBlockSize is 0: leave it out",
		"": "there is no pool in it", "apiVersion: v1\nkind: ConfigMap\n": "not a pool", "kind: [": "error",
		"apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPAllocation\nmetadata: {name: x}\n": "IPAllocation is not a pool",
	} {
		ipamAs(t, env.Kubeconfig, stdin, "plan", "-f", "-").want(t, 2, says)
	}
	live, err := h.Env.Kubectl(t.Context(), "get", "ippool", "-n", h.NS, "rail1", "-o", "yaml", "--show-managed-fields")
	if err != nil {
		t.Fatal(err)
	}
	ipamAs(t, env.Kubeconfig, live, "plan", "-f", "-").want(t, 0, "capacity 31, now 31")
	named := "apiVersion: nv-ipam.nvidia.com/v1alpha1\nkind: IPPool\nmetadata: {name: New_Pool, namespace: why}\nspec: {subnet: 10.6.0.0/24}\n"
	ipamAs(t, env.Kubeconfig, named, "plan", "-f", "-").want(t, 1, `REFUSED  metadata.name: Invalid value: "New_Pool"`)
	ipamAs(t, env.Kubeconfig, "", "plan", "-f", "/nonexistent").want(t, 2, "no such file")
}

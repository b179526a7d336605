// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/inspect"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func TestCheck(t *testing.T) {
	tested := map[string]bool{}
	for _, tc := range []struct {
		name  string
		plant func(*testing.T, *house)
		class string // "" is no finding
		also  []string
		says  []string
	}{
		{name: "nothing is wrong", plant: func(t *testing.T, h *house) {
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			p := h.pod(t, "a", "worker-1", networkStatus, h.has("rail1", "10.1.0.2"))
			h.claim(t, "10.1.0.2", "worker-1", p)
		}, says: []string{"0 findings in 1 pools, 1 allocations"}},
		{name: "pool deleted under a live pod", class: "AllocationWithoutPool", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			if err := h.IPAM.IPPools(h.NS).Delete(t.Context(), "rail1", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, says: []string{"1 addresses are held in a domain that no pool has", "ipallocation rail1.10.1.0.2 names IPPool rail1, which does not exist", "apply IPPool rail1"}},
		{name: "pod is gone", class: "AllocationWithoutPod", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.gone("a"))
		}, says: []string{"pod_gone: pod is gone", "or at once: kubectl ipam release -n", "rail1.10.1.0.2"}},
		{name: "pod is gone, node does not answer", class: "AllocationWithoutPod", plant: func(t *testing.T, h *house) {
			h.taint(t, "worker-1", "node.kubernetes.io/unreachable")
			h.claim(t, "10.1.0.2", "worker-1", h.gone("a"))
		}, says: []string{"node_unreachable: pod is gone, but its node does not answer", "wait until the node is ready", "node.kubernetes.io/out-of-service"}},
		{name: "pod has a later sandbox", class: "AllocationWithoutPod", plant: func(t *testing.T, h *house) {
			p := h.pod(t, "a", "worker-1")
			h.claim(t, "10.1.0.2", "worker-1", p)
			h.nextSecond(t)
			h.Claim(t, h.IPAM, rig.Allocation("rail1", "10.1.0.3", "worker-1", p, "sandbox-later"))
		}, says: []string{"sandbox_replaced: pod has a later sandbox, sandbox-later"}},
		{name: "pod has an address that no allocation has", class: "AddressNotRecorded", plant: func(t *testing.T, h *house) {
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			h.pod(t, "a", "worker-1", networkStatus, h.has("rail1", "10.1.0.2/24"))
		}, says: []string{"10.1.0.2", "and no allocation: it may be given to another pod", "interface net1 of network", "there is no ipallocation rail1.10.1.0.2", "kubectl delete pod"}},
		{name: "pod has an address of another pod's allocation", class: "AddressNotRecorded", plant: func(t *testing.T, h *house) {
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			h.pod(t, "a", "worker-1", networkStatus, h.has("rail1", "10.1.0.2"))
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "b", "worker-1"))
		}, says: []string{"/b's", "has 10.1.0.2"}},
		{name: "the pool is named by a label of the node", class: "AddressNotRecorded", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "rack-r1", v1alpha1.IPPoolSpec{Subnet: "10.2.0.0/24", PerNodeBlockSize: 16}, "worker-1")
			h.network(t, "racks", map[string]any{"poolName": "rack-{rack}"})
			h.pod(t, "a", "worker-1", networkStatus, h.has("racks", "10.2.0.2"))
		}, says: []string{"there is no ipallocation rack-r1.10.2.0.2"}},
		{name: "two pods with one address", class: "AddressOnTwoPods", plant: func(t *testing.T, h *house) {
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networkStatus, h.has("rail1", "10.1.0.2")))
			h.pod(t, "b", "worker-2", networkStatus, h.has("rail1", "10.1.0.2"))
		}, says: []string{"2 pods answer on it", "by allocation rail1.10.1.0.2 it is pod", "/a's", "kubectl delete pod -n ", " b"}},
		{name: "pod has an address of an earlier pod of its name", class: "AddressNotRecorded", also: []string{"AllocationWithoutPod"}, plant: func(t *testing.T, h *house) {
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			h.claim(t, "10.1.0.5", "worker-1", h.gone("a"))
			h.pod(t, "a", "worker-1", networkStatus, h.has("rail1", "10.1.0.5"))
		}, says: []string{"the allocation is an earlier pod's of the name", "pod_replaced", "do not release it, but start that pod again"}},
		{name: "the pod's own words name the pool", class: "AddressNotRecorded", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "", "forcePoolName": true})
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "cni-args": {"poolNames": ["rail1"]}}]`, networkStatus, h.has("n", "10.1.0.2"))
		}},
		{name: "two allocations of one attachment", class: "AttachmentHoldsTwo", plant: func(t *testing.T, h *house) {
			p := h.pod(t, "a", "worker-1")
			h.claim(t, "10.1.0.2", "worker-1", p)
			h.claim(t, "10.1.0.3", "worker-1", p)
		}, says: []string{"interface net1 of pod", "has rail1.10.1.0.2 of the same pool as well", "does not say which one it uses", "kubectl delete pod -n"}},
		{name: "name and address disagree", class: "NameDisagrees", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			env.Rewrite(t, h.NS, "rail1.10.1.0.2", func(spec map[string]any) { spec["address"] = "10.1.0.9" })
		}, says: []string{"make the name rail1.10.1.0.9: the name protects another address than the pod has"}},
		{name: "wrong labels", class: "WrongLabels", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			_, err := h.IPAM.IPAllocations(h.NS).Patch(t.Context(), "rail1.10.1.0.2", types.MergePatchType, []byte(`{"metadata":{"labels":{"nv-ipam.nvidia.com/pool":"evil"}}}`), metav1.PatchOptions{})
			if err != nil {
				t.Fatal(err)
			}
		}, says: []string{`label nv-ipam.nvidia.com/pool is "evil", want "rail1"`, "kubectl label --overwrite ipa -n"}},
		{name: "blocks overlap", class: "BlocksOverlap", plant: func(t *testing.T, h *house) {
			rig.ApplyBlocks(t, h.IPAM, h.NS, "rail1", []v1alpha1.Allocation{
				{NodeName: "worker-1", StartIP: "10.1.0.1", EndIP: "10.1.0.16"}, {NodeName: "worker-2", StartIP: "10.1.0.9", EndIP: "10.1.0.24"},
			})
		}, says: []string{"the blocks of nodes worker-1 and worker-2 overlap", "worker-1 has 10.1.0.1-10.1.0.16, worker-2 has 10.1.0.9-10.1.0.24", "--show-managed-fields"}},
		{name: "pools of two domains overlap", class: "DomainsOverlap", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "rail2", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/25", PerNodeBlockSize: 16}, "worker-1")
		}, says: []string{"rail1 (10.1.0.0/24) and rail2 (10.1.0.0/25) have addresses in common and are of different domains", "spec.domain"}},
		{name: "whereabouts' pool holds the address", class: "HeldByOtherManager", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			h.pod(t, "other", "worker-1")
			h.foreign(t, "whereabouts.cni.cncf.io/v1alpha1", "IPPool", "ippools", "10.1.0.0-24", map[string]any{
				"range": "10.1.0.0/24", "allocations": map[string]any{"2": map[string]any{"id": "x", "podref": h.NS + "/other", "ifname": "net1"}},
			})
		}, says: []string{"whereabouts has given the address as well", "allocation 2 of pod "}},
		{name: "whereabouts has the pod's address from before the migration", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			h.foreign(t, "whereabouts.cni.cncf.io/v1alpha1", "IPPool", "ippools", "10.1.0.0-24", map[string]any{
				"range": "10.1.0.0/24", "allocations": map[string]any{"2": map[string]any{"id": "x", "podref": h.NS + "/a", "ifname": "net1"}},
			})
			h.foreign(t, "whereabouts.cni.cncf.io/v1alpha1", "OverlappingRangeIPReservation", "overlappingrangeipreservations", "10.1.0.2", map[string]any{"podref": h.NS + "/a"})
		}},
		{name: "whereabouts' pool holds a reserved address", class: "HeldByOtherManager", plant: func(t *testing.T, h *house) {
			a := rig.Allocation("rail1", "10.1.0.5", "", v1alpha1.PodReference{}, "")
			a.Labels, a.Spec = nil, v1alpha1.IPAllocationSpec{PoolRef: a.Spec.PoolRef, Address: "10.1.0.5"}
			a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: h.NS, Name: "printers"}
			h.Claim(t, h.IPAM, a)
			h.foreign(t, "whereabouts.cni.cncf.io/v1alpha1", "IPPool", "ippools", "10.1.0.0-24", map[string]any{
				"range": "10.1.0.0/24", "allocations": map[string]any{"5": map[string]any{"id": "x", "podref": "default/other", "ifname": "net1"}},
			})
		}, says: []string{"and here it is reserved for IPReservation ", "/printers: if both are one network", "or end the reservation: kubectl delete ipr -n ", " printers"}},
		{name: "whereabouts' reservation holds the address", class: "HeldByOtherManager", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1"))
			h.foreign(t, "whereabouts.cni.cncf.io/v1alpha1", "OverlappingRangeIPReservation", "overlappingrangeipreservations", "net-10.1.0.2", map[string]any{"podref": "default/other"})
		}, says: []string{"pod default/other, which does not exist", "overlappingrangeipreservation", "kubectl delete overlappingrangeipreservations.whereabouts.cni.cncf.io -n "}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHouse(t)
			tc.plant(t, h)
			code := 0
			if tc.class != "" {
				code = 1
			}
			h.ipam(t, "check", "-n", h.NS).want(t, code, tc.says...)
			found := []string{}
			for _, item := range h.ipam(t, "check", "-n", h.NS, "-o", "json").items(t) {
				found = append(found, item["class"].(string))
				for _, key := range []string{"message", "proof", "mend"} {
					if item[key] == "" {
						t.Errorf("no %s in %v", key, item)
					}
				}
			}
			want := slices.DeleteFunc([]string{tc.class}, func(s string) bool { return s == "" })
			if !slices.Equal(found, append(want, tc.also...)) {
				t.Errorf("found %q, want %q", found, want)
			}
			tested[tc.class] = true
		})
	}
	t.Run("nv-ipam in another namespace", func(t *testing.T) {
		h, other := newHouse(t), newHouseBeside(t)
		h.ipam(t, "check").want(t, 1, "PoolsOfTwoNamespaces", "have addresses in common, and nodes take addresses from both", "docs/migration.md", other.NS)
		tested["PoolsOfTwoNamespaces"] = true
	})
	t.Run("another namespace has a pool of the name", func(t *testing.T) {
		h := newHouse(t)
		before := "a-" + h.NS // comes first
		if _, err := h.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: before}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		other := &house{&rig.Cluster{Env: h.Env, NS: before, Kube: h.Kube, IPAM: h.IPAM}}
		t.Cleanup(func() { other.clear(t) })
		other.Pool(t, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16})
		h.nad(t, "n", string(rig.NetConf(t, "0.3.1", map[string]any{"poolName": "rail1"}, nil)))
		h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2")))
		h.ipam(t, "check").want(t, 0, "0 findings")
		h.ipam(t, "why", "-n", h.NS, "a").want(t, 0, "the pod has 10.1.0.2")
	})
	t.Run("a user who may see pools and pods, and no networks", func(t *testing.T) {
		h := newHouse(t)
		kubeconfig := h.user(t, "half", `{"rules": [{"apiGroups": ["nv-ipam.nvidia.com"], "resources": ["*"], "verbs": ["list"]}, {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["list"]}]}`)
		ipamAs(t, kubeconfig, "", "check", "-n", h.NS).want(t, 3, "not looked at: addresses in the pods' network-status", "whereabouts", "is forbidden")
	})
	t.Run("a user who may see nothing", func(t *testing.T) {
		h := newHouse(t)
		ipamAs(t, h.user(t, "nobody", `{}`), "", "check", "-n", h.NS).want(t, 2, "error: listing pools", "is forbidden")
	})
	for _, class := range inspect.Classes {
		if !tested[class] && !strings.Contains(strings.Join(flagsOfTest(), " "), "-test.run") {
			t.Errorf("no test finds %s", class)
		}
	}
}

// Pods start and end while the lists are read. That is no finding.
func TestPodsComeAndGo(t *testing.T) {
	for _, command := range []string{"check", "leaks"} {
		t.Run(command, func(t *testing.T) {
			h := newHouse(t)
			h.network(t, "rail1", map[string]any{"poolName": "rail1"})
			h.claim(t, "10.1.0.7", "worker-1", h.pod(t, "old", "worker-1"))
			p := rig.NewProxy(t, h.Env.Config)
			kubeconfig := p.Kubeconfig(t, filepath.Join(t.TempDir(), "kubeconfig"))
			var once sync.Once
			p.Fail(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/api/v1/pods" { // the allocations have been read
					once.Do(func() {
						ref := h.pod(t, "new", "worker-1", networks, "rail1", networkStatus, h.has("rail1", "10.1.0.2"))
						h.claim(t, "10.1.0.2", "worker-1", ref)
						if err := h.IPAM.IPAllocations(h.NS).Delete(t.Context(), "rail1.10.1.0.7", metav1.DeleteOptions{}); err != nil {
							t.Error(err)
						}
						if err := h.Kube.CoreV1().Pods(h.NS).Delete(t.Context(), "old", metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
							t.Error(err)
						}
					})
				}
				p.Forward.ServeHTTP(w, r)
			})
			ipamAs(t, kubeconfig, "", command, "-n", h.NS).want(t, 0)
		})
	}
}

// An API server that has dropped what a list goes on with says how to go on without it.
func TestCompaction(t *testing.T) {
	h := newHouse(t)
	for i := 2; i <= 16; i++ {
		h.claim(t, fmt.Sprintf("10.1.0.%d", i), "worker-1", h.gone(fmt.Sprint("b", i)))
	}
	p := rig.NewProxy(t, h.Env.Config)
	kubeconfig := p.Kubeconfig(t, filepath.Join(t.TempDir(), "kubeconfig"))
	var expired, on atomic.Bool
	p.Fail(func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		if !strings.HasSuffix(r.URL.Path, "/ipallocations") {
			p.Forward.ServeHTTP(w, r)
			return
		}
		q.Set("limit", "5")
		next := q.Get("continue")
		if next != "" && expired.CompareAndSwap(false, true) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusGone)
			_ = json.NewEncoder(w).Encode(metav1.Status{
				TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, ListMeta: metav1.ListMeta{Continue: inconsistent(t, next)},
				Status: metav1.StatusFailure, Reason: metav1.StatusReasonExpired, Code: http.StatusGone, Message: "The provided continue parameter is too old",
			})
			return
		}
		on.Store(on.Load() || next != "")
		r.URL.RawQuery = q.Encode()
		p.Forward.ServeHTTP(w, r)
	})
	a := ipamAs(t, kubeconfig, "", "show", "-n", h.NS, "-o", "json")
	if item := a.items(t)[0]; field(item, "used") != "15" || !expired.Load() || !on.Load() {
		t.Errorf("show says %v", item)
	}
}

// inconsistent returns what an API server continues a list with whose revision is compacted.
func inconsistent(t *testing.T, next string) string {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(next)
	if err != nil {
		t.Fatal(err)
	}
	var token map[string]any
	if err := json.Unmarshal(data, &token); err != nil {
		t.Fatal(err)
	}
	token["rv"] = -1
	data, err = json.Marshal(token)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// Whoever may look in one namespace only is told so, and is told nothing about the others.
func TestOneNamespaceOnly(t *testing.T) {
	h := newHouse(t)
	h.network(t, "n", map[string]any{"poolName": "rail1"})
	h.nad(t, "own", string(rig.NetConf(t, "0.3.1", map[string]any{"poolName": "rail1"}, nil)))
	ref := h.pod(t, "a", "worker-1", networks, "own,n")
	h.claim(t, "10.1.0.2", "worker-1", ref)
	h.claim(t, "10.1.0.3", "worker-1", h.gone("b"))
	kubeconfig := h.user(t, "limited", `{"rules": [{"apiGroups": [""], "resources": ["pods", "nodes", "events"], "verbs": ["get", "list"]}, {"apiGroups": ["k8s.cni.cncf.io", "whereabouts.cni.cncf.io"], "resources": ["*"], "verbs": ["get", "list"]}]}`)
	may := func(namespace string) {
		t.Helper()
		name := h.NS + "-limited"
		if _, err := h.Kube.RbacV1().Roles(namespace).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"*"}, Verbs: []string{"get", "list"}}}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: name}}}
		if _, err := h.Kube.RbacV1().RoleBindings(namespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if a := ipamAs(t, kubeconfig, "", "show"); strings.Contains(a.err, "was looked at") || !strings.Contains(a.err, "is forbidden") || a.code != 2 {
		t.Errorf("show says %v, and may look nowhere", a)
	}
	may(metav1.NamespaceDefault) // the context's
	may(h.NS)
	for _, namespace := range []string{metav1.NamespaceDefault, h.NS} {
		rig.Until(t, func() string { // the API server has seen the role
			return ipamAs(t, kubeconfig, "", "show", "-n", namespace).err
		})
	}
	const only = "only namespace default was looked at: you may not list the pools of all namespaces"
	for _, tc := range []struct {
		args string
		code int
		says []string
	}{
		{args: "show", says: []string{only, "There are no pools in namespace default."}},
		{args: "leaks", says: []string{only}},
		{args: "check", code: 3, says: []string{"not looked at: other namespaces than default", "0 findings in 0 pools, 0 allocations in namespace default"}},
		{args: "who 10.1.0.2", code: 2, says: []string{only, "error: namespace default has no allocation for 10.1.0.2, and another one may have"}},
		{args: "who -n NS a", code: 2, says: []string{only}},
		{args: "why -n NS a", code: 2, says: []string{only, "error: the network names no namespace of its pools", "only default was looked at"}},
		{args: "free rail1", code: 2, says: []string{only, "there is no pool"}},
		{args: "release 10.1.0.3 -y", code: 2, says: []string{only}},
		{args: "show -n NS", says: []string{"rail1"}},
		{args: "who -n NS --pools-namespace NS a", says: []string{"10.1.0.2"}},
		{args: "why -n NS --pools-namespace NS a", code: 1, says: []string{"10.1.0.2 is held"}},
	} {
		ipamAs(t, kubeconfig, "", strings.Fields(strings.ReplaceAll(tc.args, "NS", h.NS))...).want(t, tc.code, tc.says...)
	}
}

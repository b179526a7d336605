// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// Each link of the chain is broken in each way, and one command says which and why.
func TestWhy(t *testing.T) {
	rail1 := map[string]any{"poolName": "rail1"}
	for _, tc := range []struct {
		name  string
		plant func(*testing.T, *house) // makes pod a
		link  string                   // that is broken; "" is none
		says  []string
	}{
		{name: "all is well", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2")))
		}, says: []string{"10.1.0.2 is held since", "the pod has 10.1.0.2"}},
		{name: "no such pod", link: "Pod", plant: func(*testing.T, *house) {}, says: []string{"there is no such pod"}},
		{name: "not scheduled", link: "Pod", plant: func(t *testing.T, h *house) { h.pod(t, "a", "", networks, "n") }, says: []string{"no node was chosen"}},
		{name: "host network", link: "Pod", plant: func(t *testing.T, h *house) {
			rig.Pod(t, h.Kube, h.NS, "a", "worker-1", func(p *corev1.Pod) { p.Spec.HostNetwork = true })
		}, says: []string{"spec.hostNetwork"}},
		{name: "ended", link: "Pod", plant: func(t *testing.T, h *house) {
			h.pod(t, "a", "worker-1", networks, "n")
			h.patchPod(t, "a", `{"status": {"phase": "Succeeded"}}`, "status")
		}, says: []string{"the pod has ended (Succeeded)"}},
		{name: "no annotation", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1") }, says: []string{"it asks for no other network"}},
		{name: "annotation that is no JSON", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, `[{"name": "n"`) }, says: []string{"is not valid: unexpected end of JSON input"}},
		{name: "network missing", link: "Network", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, "n") }, says: []string{"there is no NetworkAttachmentDefinition", "apply it"}},
		{name: "network in another namespace", link: "Network", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.pod(t, "a", "worker-1", networks, "elsewhere/n")
		}, says: []string{"there is no NetworkAttachmentDefinition elsewhere/n, but one in namespace test-", "/n in the annotation"}},
		{name: "network's configuration is torn", link: "Network", plant: func(t *testing.T, h *house) {
			h.nad(t, "n", `{"cniVersion"`)
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"network configuration is not valid", "kubectl edit net-attach-def"}},
		{name: "network's configuration is refused", link: "Network", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "a,b,c"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"pool field can't contain more then two entries"}},
		{name: "network of another plugin", plant: func(t *testing.T, h *house) {
			h.nad(t, "n", `{"cniVersion": "0.3.1", "name": "n", "type": "macvlan", "ipam": {"type": "whereabouts"}}`)
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"gets its addresses from another plugin"}},
		{name: "pool missing", link: "Pool", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "rial1"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"there is no IPPool test-", "/rial1", "correct poolName"}},
		{name: "pool of the other kind", link: "Pool", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "rail1", "poolType": "cidrpool"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"but a IPPool of that name", "set poolType to ippool"}},
		{name: "pool in another namespace", link: "Pool", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "rail1", "poolsNamespace": "kube-system"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"there is no IPPool kube-system/rail1, but one in namespace test-", "where nobody looks", "apply it in namespace kube-system"}},
		{name: "label missing", link: "Pool", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "rail1-{rack}"})
			h.pod(t, "a", "worker-2", networks, "n")
		}, says: []string{"node worker-2 has no label rack"}},
		{name: "pool named by a label missing", link: "Pool", plant: func(t *testing.T, h *house) {
			h.network(t, "n", map[string]any{"poolName": "rail1-{rack}"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"/rail1-r1"}},
		{name: "pool is invalid", link: "Pool", plant: func(t *testing.T, h *house) {
			h.Pool(t, "bad", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16, Gateway: "10.8.0.1"})
			h.network(t, "n", map[string]any{"poolName": "bad"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"spec.gateway", "10.8.0.1", "kubectl edit ippools"}},
		{name: "no controller has seen the pool", link: "Block", plant: func(t *testing.T, h *house) {
			h.Pool(t, "new", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16})
			h.network(t, "n", map[string]any{"poolName": "new"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"no controller has given any blocks of it", "nv-ipam-controller"}},
		{name: "no room for the node", link: "Block", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "small", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/28", PerNodeBlockSize: 14}, "worker-1")
			h.condition(t, "small", "NoFreeRanges", "no free ranges for 1 nodes: worker-2")
			h.network(t, "n", map[string]any{"poolName": "small"})
			h.pod(t, "a", "worker-2", networks, "n")
		}, says: []string{"has no block for node worker-2: NoFreeRanges: no free ranges for 1 nodes: worker-2"}},
		{name: "node is not selected", link: "Block", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "sel", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16, NodeSelector: labelled("rack")}, "worker-1")
			h.network(t, "n", map[string]any{"poolName": "sel"})
			h.pod(t, "a", "worker-2", networks, "n")
		}, says: []string{"its nodeSelector is rack exists", "kubectl label node worker-2"}},
		{name: "node is not selected, pool without blocks", link: "Block", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "sel", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", NodeSelector: labelled("rack")})
			h.network(t, "n", map[string]any{"poolName": "sel"})
			h.pod(t, "a", "worker-2", networks, "n")
		}, says: []string{"sel does not select node worker-2"}},
		{name: "disabled", link: "Access", plant: func(t *testing.T, h *house) {
			h.access(t, v1alpha1.PoolAccess{Disabled: true})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"spec.disabled is true"}},
		{name: "namespace not allowed", link: "Access", plant: func(t *testing.T, h *house) {
			h.access(t, v1alpha1.PoolAccess{AllowedNamespaces: []string{"team-a"}})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{`gives no addresses to pods of namespace`, `has only "team-a"`}},
		{name: "requested address of no pool", link: "Access", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.7.0.5"]}]`)
		}, says: []string{"ip 10.7.0.5 has no matching Pool: ippool rail1 has 10.1.0.0/24"}},
		{name: "requested address of a live pod", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.claim(t, "10.1.0.5", "worker-2", h.pod(t, "b", "worker-2"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.5"]}]`)
		}, says: []string{"10.1.0.5, which the pod asks for, is held by pod test-", "/b on node worker-2 (interface net1) since", "InUse: pod exists", "kubectl delete pod -n", " b"}},
		{name: "requested address of a pod that is gone", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.claim(t, "10.1.0.5", "worker-2", h.gone("b"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "cni-args": {"ips": ["10.1.0.5"]}}]`)
		}, says: []string{"LooksLeaked: pod is gone", "kubectl ipam release -n", "rail1.10.1.0.5"}},
		{name: "block exhausted", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			for i := 2; i <= 16; i++ {
				h.claim(t, fmt.Sprintf("10.1.0.%d", i), "worker-1", h.gone(fmt.Sprint("b", i)))
			}
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"IPPool rail1 is exhausted: no free address in node worker-1's block 10.1.0.1-10.1.0.16, 15 of 15 are held", "kubectl ipam leaks rail1"}},
		{name: "shared subnet exhausted", link: "Allocation", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "tiny", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/30"})
			for _, a := range []string{"10.9.0.1", "10.9.0.2"} {
				h.Claim(t, h.IPAM, rig.Allocation("tiny", a, "worker-2", h.gone("b"), "s"+a))
			}
			h.network(t, "n", map[string]any{"poolName": "tiny"})
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"IPPool tiny is exhausted: no free address in the subnet 10.9.0.1-10.9.0.2, 2 of 2 are held"}},
		{name: "refused by policy", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.event(t, h.pod(t, "a", "worker-1", networks, "n"), `Failed to create pod sandbox: plugin type="macvlan" failed (add): ipallocations.nv-ipam.nvidia.com "rail1.10.1.0.2" is forbidden: ValidatingAdmissionPolicy 'crd-ipam-node' with binding 'crd-ipam-node' denied request: spec.nodeName must be the node`)
		}, says: []string{"refused by an admission policy: ", "ValidatingAdmissionPolicy 'crd-ipam-node'", "(3 times, last"}},
		{name: "the API server's own words", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.event(t, h.pod(t, "a", "worker-1", networks, "n"), `plugin type="macvlan" failed (add): ipallocations.nv-ipam.nvidia.com is forbidden: User "system:node:worker-1" cannot create resource "ipallocations"`)
		}, says: []string{"the node's credentials may not", `User "system:node:worker-1" cannot create`}},
		{name: "the runtime's words", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.event(t, h.pod(t, "a", "worker-1", networks, "n"), `plugin type="macvlan" failed (add): failed to create macvlan: device or resource busy`)
		}, says: []string{"the runtime says: ", "device or resource busy"}},
		{name: "the node has not asked", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"the node has not asked yet", "/var/log/nv-ipam-cni.log on node worker-1"}},
		{name: "held, and not in the pod", link: "NetworkStatus", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n"))
		}, says: []string{"the sandbox is not ready yet"}},
		{name: "the pod has another address", link: "NetworkStatus", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.3")))
		}, says: []string{"has 10.1.0.3, which the pod does not hold", "kubectl ipam who 10.1.0.3"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHouse(t)
			tc.plant(t, h)
			code := 0
			if tc.link != "" {
				code = 1
				tc.says = append(tc.says, "BROKEN "+tc.link)
			}
			h.ipam(t, "why", "-n", h.NS, "a").want(t, code, tc.says...)
			if tc.link != "" {
				links := h.ipam(t, "why", "-n", h.NS, "a", "-o", "json").items(t)[0]["links"].([]any)
				last := links[len(links)-1].(map[string]any)
				if last["link"] != tc.link || last["ok"] != false {
					t.Errorf("the last link is %v", last)
				}
			}
		})
	}
}

func labelled(key string) *corev1.NodeSelector {
	return &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: key, Operator: corev1.NodeSelectorOpExists}}}}}
}

// access makes pool acc, which not everybody may use, and network n of it.
func (h *house) access(t *testing.T, who v1alpha1.PoolAccess) {
	t.Helper()
	rig.IPPool(t, h.IPAM, h.NS, "acc", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 16, PoolAccess: who}, "worker-1")
	h.network(t, "n", map[string]any{"poolName": "acc"})
}

// condition says on a pool that it is not ready.
func (h *house) condition(t *testing.T, name, reason, message string) {
	t.Helper()
	p := h.GetPool(t, name)
	p.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionFalse, Reason: reason, Message: message, LastTransitionTime: metav1.Now()}}
	if _, err := h.IPAM.IPPools(h.NS).UpdateStatus(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

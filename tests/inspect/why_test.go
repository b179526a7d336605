// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

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
		}, says: []string{"the pod has ended (Succeeded): it has given back its addresses"}},
		{name: "ended, and its node has not given back the address", link: "Pod", plant: func(t *testing.T, h *house) {
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n"))
			h.patchPod(t, "a", `{"status": {"phase": "Succeeded"}}`, "status")
		}, says: []string{"the pod has ended (Succeeded), and still holds 10.1.0.2: node worker-1 gives that back", "kubectl delete pod -n"}},
		{name: "no annotation", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1") }, says: []string{"it asks for no other network"}},
		{name: "annotation that is no JSON", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, `[{"name": "n"`) }, says: []string{"is not valid: unexpected end of JSON input"}},
		{name: "annotation that is no list", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, `{"name": "n"}`) }, says: []string{"is not valid: json: cannot unmarshal object"}},
		{name: "annotation with an empty entry", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, `[null]`) }, says: []string{"is not valid: entry 1 has no name"}},
		{name: "annotation with a name that no network has", link: "Annotation", plant: func(t *testing.T, h *house) { h.pod(t, "a", "worker-1", networks, `[{"name": "../../x"}]`) }, says: []string{"and no network can be called that"}},
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
		{name: "a pool of the same name has blocks elsewhere", link: "Allocation", plant: func(t *testing.T, h *house) {
			first := newHouseNamed(t, "aaa-"+h.NS)
			rig.IPPool(t, first.IPAM, first.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16})
			h.nad(t, "n", string(rig.NetConf(t, "0.3.1", rail1, nil)))
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"10.1.0.1-10.1.0.16", "the node has not asked yet"}},
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
		{name: "requested address of a pod whose node does not answer", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.taint(t, "worker-2", corev1.TaintNodeUnreachable)
			h.claim(t, "10.1.0.5", "worker-2", h.gone("b"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.5"]}]`)
		}, says: []string{"Held: pod is gone, but its node does not answer", "wait until the node is ready", "rail1.10.1.0.5 --force"}},
		{name: "requested address of an earlier pod of the name", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.taint(t, "worker-2", corev1.TaintNodeUnreachable)
			h.claim(t, "10.1.0.5", "worker-2", h.gone("a"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.5"]}]`)
		}, says: []string{"10.1.0.5, which the pod asks for, is held by pod test-", "/a on node worker-2", "pod of the name has another UID, but its node does not answer", "--force"}},
		{name: "requested address that is reserved", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.reserved(t, "10.1.0.5", "printers")
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.5"]}]`)
		}, says: []string{"is reserved for IPReservation", "Reserved: reserved by IPReservation printers", "kubectl edit ipr -n", " printers"}},
		{name: "requested address that is kept for another", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.kept(t, "rail1", "10.1.0.5", h.gone("web-0"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ips": ["10.1.0.5"]}]`)
		}, says: []string{"and kept for pod test-", "Kept: kept for StatefulSet web", "if what it is kept for may get another one: kubectl ipam release", "--force"}},
		{name: "block exhausted", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			for i := 2; i <= 16; i++ {
				h.claim(t, fmt.Sprintf("10.1.0.%d", i), "worker-1", h.gone(fmt.Sprint("b", i)))
			}
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"IPPool rail1 is exhausted: no free address in node worker-1's block 10.1.0.1-10.1.0.16, 15 of 15 are held", "kubectl ipam leaks rail1"}},
		{name: "block exhausted, and an earlier pod of the name holds an address of it", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.fill(t, 2, h.gone("a"))
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"IPPool rail1 is exhausted", "15 of 15 are held"}},
		{name: "block exhausted by addresses that rest", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.fill(t, 3, h.gone("b"))
			a := rig.Allocation("rail1", "10.1.0.2", "worker-1", h.gone("x"), "sandbox-x")
			a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Hour}
			h.Claim(t, h.IPAM, a)
			h.released(t, a.Name)
			h.pod(t, "a", "worker-1", networks, "n")
		}, says: []string{"15 of 15 are held, or rest after their release (releaseCooldown)"}},
		{name: "block exhausted, and the pod's own address is kept for it", link: "Allocation", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "st", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/30", PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}}})
			h.network(t, "n", map[string]any{"poolName": "st"})
			h.kept(t, "st", "10.9.0.1", h.gone("a"))
			h.Claim(t, h.IPAM, rig.Allocation("st", "10.9.0.2", "worker-2", h.pod(t, "b", "worker-2"), "b"))
			h.ofSet(t, "a", networks, "n")
		}, says: []string{"10.9.0.1 is released at", "and kept for pod", "the node has not asked yet"}},
		{name: "the pod's own address is in use", link: "Allocation", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "st", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/30", PoolAccess: v1alpha1.PoolAccess{Sticky: []v1alpha1.StickyKind{v1alpha1.StickyStatefulSet}}})
			h.network(t, "n", map[string]any{"poolName": "st"})
			h.taint(t, "worker-2", corev1.TaintNodeUnreachable)
			h.Claim(t, h.IPAM, ofWeb(rig.Allocation("st", "10.9.0.1", "worker-2", h.gone("a"), "earlier"), h.NS))
			h.ofSet(t, "a", networks, "n")
		}, says: []string{"the address that the pod keeps is in use: 10.9.0.1 is held by pod", "on node worker-2", "wait until the node is ready"}},
		{name: "block exhausted, for a pod with an IPAMClaim that the network takes no notice of", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			h.fill(t, 2, h.gone("b"))
			h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ipam-claim-reference": "vm"}]`)
		}, says: []string{"IPPool rail1 is exhausted"}},
		{name: "IPAMClaim missing", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.vm(t)
		}, says: []string{"the IPAMClaim that the pod names could not be read: reading IPAMClaim test-", `/vm: ipamclaims.k8s.cni.cncf.io "vm" not found`, "apply the claim"}},
		{name: "IPAMClaim for another network", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.vm(t)
			rig.IPAMClaim(t, h.IPAM.RESTClient(), h.NS, "vm", "other")
		}, says: []string{"the IPAMClaim that the pod names does not suit: IPAMClaim", `is for network "other", and the pod names it for network "net"`}},
		{name: "IPAMClaim whose address another pod has", link: "Allocation", plant: func(t *testing.T, h *house) {
			h.vm(t)
			rig.IPAMClaim(t, h.IPAM.RESTClient(), h.NS, "vm", "net", "10.1.0.7/24")
			h.claim(t, "10.1.0.7", "worker-2", h.pod(t, "b", "worker-2"))
		}, says: []string{"10.1.0.7, which the pod's IPAMClaim has, is held by pod", "/b on node worker-2"}},
		{name: "IPAMClaim in an exhausted subnet", link: "Allocation", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "tiny", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/30"})
			for _, a := range []string{"10.9.0.1", "10.9.0.2"} {
				h.Claim(t, h.IPAM, rig.Allocation("tiny", a, "worker-2", h.gone("b"), "s"+a))
			}
			h.vm(t, "tiny")
			rig.IPAMClaim(t, h.IPAM.RESTClient(), h.NS, "vm", "net")
		}, says: []string{"IPPool tiny is exhausted"}},
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
		{name: "the pod has one of its two addresses", link: "NetworkStatus", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "six", v1alpha1.IPPoolSpec{Subnet: "fd00::/64"})
			h.network(t, "n", map[string]any{"poolName": "rail1,six"})
			p := h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2"))
			h.claim(t, "10.1.0.2", "worker-1", p)
			six := rig.Allocation("six", "fd00::5", "worker-1", p, "sandbox-a")
			six.Name = v1alpha1.AllocationName("six", netip.MustParseAddr("fd00::5"))
			h.Claim(t, h.IPAM, six)
		}, says: []string{"the pod holds fd00::5, and annotation k8s.v1.cni.cncf.io/network-status has only 10.1.0.2"}},
		{name: "an earlier sandbox of the pod has left an address", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			p := h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.3"))
			h.Claim(t, h.IPAM, rig.Allocation("rail1", "10.1.0.2", "worker-1", p, "earlier"))
			h.claim(t, "10.1.0.3", "worker-1", p)
		}, says: []string{"10.1.0.3 is held since", "the pod has 10.1.0.3"}},
		{name: "the address was taken from another pool of the domain", plant: func(t *testing.T, h *house) {
			rig.IPPool(t, h.IPAM, h.NS, "rail1b", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PoolAccess: v1alpha1.PoolAccess{Domain: "rail1"}})
			h.network(t, "n", map[string]any{"poolName": "rail1b"})
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2")))
		}, says: []string{"10.1.0.2 is held since", "the pod has 10.1.0.2"}},
		{name: "multus has networks of its own before the pod's", plant: func(t *testing.T, h *house) {
			h.network(t, "n", rail1)
			p := h.pod(t, "a", "worker-1", networks, "n", networkStatus, strings.ReplaceAll(h.has("n", "10.1.0.2"), "net1", "net2"))
			a := rig.Allocation("rail1", "10.1.0.2", "worker-1", p, "sandbox-a")
			a.Spec.InterfaceName = "net2"
			h.Claim(t, h.IPAM, a)
		}, says: []string{"that is net2: the runtime has networks of its own (multus: defaultNetworks)", "10.1.0.2 is held since", "the pod has 10.1.0.2"}},
		{name: "disabled after the pod got its address", plant: func(t *testing.T, h *house) {
			h.runs(t, rail1)
			h.patchPool(t, "rail1", `{"spec": {"disabled": true}}`)
		}, says: []string{"spec.disabled is true", "the pod keeps what it holds, and its next sandbox would get nothing", "the pod has 10.1.0.2"}},
		{name: "pool invalid after the pod got its address", plant: func(t *testing.T, h *house) {
			h.runs(t, rail1)
			h.patchPool(t, "rail1", `{"spec": {"gateway": "10.9.9.9"}}`)
		}, says: []string{"spec.gateway", "the pod keeps what it holds", "the pod has 10.1.0.2"}},
		{name: "pool deleted after the pod got its address", plant: func(t *testing.T, h *house) {
			h.runs(t, rail1)
			if err := h.IPAM.IPPools(h.NS).Delete(t.Context(), "rail1", metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, says: []string{"there is no IPPool", "the pod keeps what it holds", "the pod has 10.1.0.2"}},
		{name: "another label of the node after the pod got its address", plant: func(t *testing.T, h *house) {
			for pool, subnet := range map[string]string{"rail1-r1": "10.9.1.0/24", "rail1-r2": "10.9.2.0/24"} {
				rig.IPPool(t, h.IPAM, h.NS, pool, v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: 16}, "worker-1")
			}
			h.network(t, "n", map[string]any{"poolName": "rail1-{rack}"})
			p := h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.9.1.2"))
			h.Claim(t, h.IPAM, rig.Allocation("rail1-r1", "10.9.1.2", "worker-1", p, "sandbox-a"))
			if _, err := h.Kube.CoreV1().Nodes().Patch(t.Context(), "worker-1", types.MergePatchType, []byte(`{"metadata": {"labels": {"rack": "r2"}}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}, says: []string{"10.9.1.2 is held since", "the pod has 10.9.1.2"}},
		{name: "a pool of the same name in another namespace", plant: func(t *testing.T, h *house) {
			first := newHouseNamed(t, "aaa-"+h.NS)
			rig.IPPool(t, first.IPAM, first.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16})
			h.nad(t, "n", string(rig.NetConf(t, "0.3.1", rail1, nil)))
			h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2")))
		}, says: []string{"the pod has 10.1.0.2"}},
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

// reserved stores what a controller makes of an IPReservation.
func (h *house) reserved(t *testing.T, address, reservation string) {
	t.Helper()
	ref := v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "rail1"}
	h.Claim(t, h.IPAM, &v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: "rail1." + address}, Spec: v1alpha1.IPAllocationSpec{
		PoolRef: ref, Address: address,
		Owner: &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupVersion.Group, Kind: v1alpha1.KindIPReservation, Namespace: h.NS, Name: reservation, UID: "u"},
	}})
}

// ofWeb makes StatefulSet web the owner of an allocation.
func ofWeb(a *v1alpha1.IPAllocation, namespace string) *v1alpha1.IPAllocation {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.AppsGroup, Kind: "StatefulSet", Namespace: namespace, Name: "web", UID: "web"}
	a.Spec.NetworkName = "net"
	a.Labels = v1alpha1.AllocationLabels(&a.Spec)
	return a
}

// kept stores an address that StatefulSet web keeps for one of its pods.
func (h *house) kept(t *testing.T, pool, address string, pod v1alpha1.PodReference) {
	t.Helper()
	h.released(t, h.Claim(t, h.IPAM, ofWeb(rig.Allocation(pool, address, "worker-1", pod, "sandbox-"+pod.Name), h.NS)).Name)
}

// ofSet makes a pod of StatefulSet web on worker-1.
func (h *house) ofSet(t *testing.T, name, annotation, value string) {
	t.Helper()
	controller := true
	rig.Pod(t, h.Kube, h.NS, name, "worker-1", func(p *corev1.Pod) {
		p.Annotations = map[string]string{annotation: value}
		p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "StatefulSet", Name: "web", UID: "web", Controller: &controller}}
	})
}

// released ends a container's claim on an allocation that outlives it.
func (h *house) released(t *testing.T, name string) {
	t.Helper()
	patch := fmt.Sprintf(`{"spec": {"releasedAt": %q}, "metadata": {"labels": {%q: "true"}}}`, time.Now().UTC().Format(time.RFC3339), v1alpha1.LabelReleased)
	if _, err := h.IPAM.IPAllocations(h.NS).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// fill claims the addresses of worker-1's block, the first of them for a pod.
func (h *house) fill(t *testing.T, from int, first v1alpha1.PodReference) {
	t.Helper()
	for i := from; i <= 16; i++ {
		pod := first
		if i > from {
			pod = h.gone(fmt.Sprint("other", i))
		}
		h.claim(t, fmt.Sprint("10.1.0.", i), "worker-1", pod)
	}
}

// runs makes pod a, which runs with 10.1.0.2 of pool rail1 on network n.
func (h *house) runs(t *testing.T, ipam map[string]any) {
	t.Helper()
	h.network(t, "n", ipam)
	h.claim(t, "10.1.0.2", "worker-1", h.pod(t, "a", "worker-1", networks, "n", networkStatus, h.has("n", "10.1.0.2")))
}

// vm makes pod a, which names IPAMClaim vm for network n, of pool rail1 or of another one.
func (h *house) vm(t *testing.T, pools ...string) {
	t.Helper()
	rig.InstallIPAMClaims(t, h.IPAM.RESTClient(), rig.OwnerPodIsAnObject)
	h.network(t, "n", map[string]any{"poolName": strings.Join(append(pools, "rail1")[:1], ""), "allowPersistentIPs": true})
	h.pod(t, "a", "worker-1", networks, `[{"name": "n", "ipam-claim-reference": "vm"}]`)
}

func (h *house) patchPool(t *testing.T, name, patch string) {
	t.Helper()
	if _, err := h.IPAM.IPPools(h.NS).Patch(t.Context(), name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
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

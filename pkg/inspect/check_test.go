// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go4.org/netipx"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// scene is a record in which node w1 answers and has label rack=r1.
type scene struct{ *checking }

func newScene() *scene {
	k := &checking{record: newRecord(), report: &Report{}, networks: networks{map[string]*object{}, map[request]*cni.Network{}}}
	for _, name := range []string{"w1", "w2"} {
		k.nodes[name] = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"rack": "r1"}}}
		k.nodes[name].Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	}
	return &scene{k}
}

// pool adds one, with blocks of 16 addresses for nodes.
func (s *scene) pool(namespace, name, subnet string, nodes ...string) {
	p := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: 16}}
	first := netip.MustParsePrefix(subnet).Addr().Next()
	for _, node := range nodes {
		last := first
		for range 15 {
			last = last.Next()
		}
		p.Status.Allocations = append(p.Status.Allocations, v1alpha1.Allocation{NodeName: node, StartIP: first.String(), EndIP: last.String()})
		first = last.Next()
	}
	at := s.at(namespace)
	at.pools = append(at.pools, pool.ObjectOf(p))
}

func (s *scene) pools(namespace string, change func(*pool.Object)) {
	for _, o := range s.at(namespace).pools {
		change(o)
	}
}

func (s *scene) network(name, ipam string) {
	config, _ := json.Marshal(map[string]string{"config": `{"cniVersion": "0.3.1", "name": "x", "type": "macvlan", "ipam": {"type": "nv-ipam", ` + ipam + `}}`})
	s.networks.nads["ns/"+name] = &object{Metadata: metav1.ObjectMeta{Namespace: "ns", Name: name}, Spec: config}
}

// pod adds one of the namespace ns that has addresses, each as "NETWORK INTERFACE ADDRESS".
func (s *scene) pod(name, node string, has ...string) *pod {
	var all []status
	for _, text := range has {
		f := strings.Fields(text)
		all = append(all, status{Name: "ns/" + f[0], Interface: f[1], IPs: f[2:]})
	}
	text, _ := json.Marshal(all)
	p := &pod{Pod: reclaim.Pod{UID: uid(name), Placed: true, Node: node}, status: string(text)}
	s.record.pods["ns/"+name] = p
	return p
}

func uid(name string) types.UID {
	return types.UID(fmt.Sprintf("00000000-0000-4000-8000-%012x", name))
}

// claim adds an allocation that a pod's net1 holds; change may change it.
func (s *scene) claim(namespace, pool, address, node, pod string, change ...func(*v1alpha1.IPAllocationSpec)) {
	a := &v1alpha1.IPAllocation{Spec: v1alpha1.IPAllocationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool}, Address: address, NodeName: node, ContainerID: "c-" + pod, InterfaceName: "net1",
		PodRef: v1alpha1.PodReference{Namespace: "ns", Name: pod, UID: uid(pod)},
	}}
	a.Namespace, a.Name = namespace, v1alpha1.AllocationName(pool, netip.MustParseAddr(address))
	a.UID = types.UID("of-" + a.Name)
	for _, f := range change {
		f(&a.Spec)
	}
	s.at(namespace).add(a)
}

func earlierPod(s *v1alpha1.IPAllocationSpec) { s.PodRef.UID = uid("old") }

// movesTo is of a machine that moves to a pod.
func movesTo(pod, node string) func(*v1alpha1.IPAllocationSpec) {
	return func(s *v1alpha1.IPAllocationSpec) {
		s.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.IPAMClaimGroup, Kind: "IPAMClaim", Namespace: "ns", Name: "c", UID: "x"}
		s.Next = &v1alpha1.NextAttachment{NodeName: node, ContainerID: "c-" + pod, InterfaceName: "net1", PodRef: v1alpha1.PodReference{Namespace: "ns", Name: pod, UID: uid(pod)}}
	}
}

func released(s *v1alpha1.IPAllocationSpec) {
	now := metav1.Now()
	s.ReleasedAt, s.ReleaseCooldown = &now, &metav1.Duration{Duration: time.Hour}
}

func reserved(s *v1alpha1.IPAllocationSpec) {
	*s = v1alpha1.IPAllocationSpec{PoolRef: s.PoolRef, Address: s.Address}
}

// What pods have by their network-status is compared with the record to which it belongs.
func TestJudge(t *testing.T) {
	const rail = `"poolName": "rail"`
	for _, tc := range []struct {
		name    string
		plant   func(*scene)
		finds   string // classes
		says    []string
		silent  []string
		skipped string
	}{
		{name: "nothing is wrong", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "the allocation is an earlier pod's of the name", finds: "AddressNotRecorded AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", earlierPod)
		}, says: []string{"an earlier pod's of the name", "do not release it, but start that pod again: kubectl delete pod -n ns a"}, silent: []string{"kubectl ipam release"}},
		{name: "the allocation is of the pod, on another node", finds: "AddressNotRecorded AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w2", "a", func(s *v1alpha1.IPAllocationSpec) { s.PodRef.UID = "" })
		}},
		{name: "the mirror of a static pod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2").Mirrors = "0123456789abcdef0123456789abcdef"
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", func(s *v1alpha1.IPAllocationSpec) { s.PodRef.UID = "0123456789abcdef0123456789abcdef" })
		}},
		{name: "the mirror of a static pod, of which nothing is recorded", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2").Mirrors = "0123456789abcdef0123456789abcdef"
		}, says: []string{"move its manifest away on node w1 and back"}, silent: []string{"kubectl delete pod"}},
		{name: "a namespace before has a pool of the name", plant: func(s *scene) {
			s.pool("a-first", "rail", "10.1.0.0/24")
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "no namespace with a pool of the name has it: the one with the block", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.pool("a-first", "rail", "10.1.0.0/24")
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}, says: []string{"(sys)"}},
		{name: "an address on as many interfaces as an annotation can name", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			var has []string
			for i := range 3000 {
				has = append(has, fmt.Sprintf("n net%d 10.1.0.2", i))
			}
			s.pod("a", "w1", append(has, "n "+strings.Repeat("x", 1000)+" 10.1.0.2")...)
		}, says: []string{"pod ns/a has it on 3000 interfaces", "and 2990 more"}, silent: []string{"net2999", "xxxx"}},
		{name: "pods on one address of a pool that is gone", finds: "AddressOnTwoPods AllocationWithoutPool", plant: func(s *scene) {
			s.at("sys")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w2", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}, says: []string{"2 pods answer on it: ns/a, ns/b", "it is pod ns/a's", "kubectl delete pod -n ns b"}},
		{name: "pods on one address, and the pool has another subnet now", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.2.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w2", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "pods on one address, and the node has another label now", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rack-r0", "10.1.0.0/24", "w1")
			s.pool("sys", "rack-r1", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rack-{rack}"`)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w2", "n net1 10.1.0.2")
			s.claim("sys", "rack-r0", "10.1.0.2", "w1", "a")
		}},
		{name: "pods on one address that nothing records", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.at("sys")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w2", "n net1 10.1.0.2")
		}, says: []string{"no allocation says whose it is"}},
		{name: "a pod on an address that no pool has", plant: func(s *scene) {
			s.pool("sys", "rail", "10.2.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}},
		{name: "the pod names the pool", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", `"forcePoolName": true`)
			for _, name := range []string{"a", "b"} {
				s.pod(name, "w1", "n net7 10.1.0.2").networks = `[{"name": "n", "cni-args": {"poolNames": ["rail"]}}]`
			}
		}},
		{name: "the pod names two pools, each for an interface", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "other", "10.2.0.0/24", "w1")
			s.network("n", `"forcePoolName": true`)
			s.pod("a", "w1", "n net1 10.1.0.2", "n net2 10.2.0.2").networks = `[{"name": "n", "cni-args": {"poolNames": ["rail"]}}, {"name": "n", "cni-args": {"poolNames": ["other"]}}]`
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.claim("sys", "other", "10.2.0.2", "w1", "a")
		}},
		{name: "a network that cannot be read", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", `"forcePoolName": true`)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w1", "n net1 10.1.0.3")
		}, skipped: "addresses of network ns/n, as pod ns/a asks for it: ipam.poolName is required"},
		{name: "the allocation is only reserved", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", reserved)
		}, says: []string{"the allocation is no container's, but reserved for"}},
		{name: "the allocation is released", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", released)
		}, says: []string{"the allocation is no container's, but released by pod ns/a"}},
		{name: "a pod ends, and has released its address", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2").Deleting = true
			s.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "b")
		}},
		{name: "a pod does not end, since its node does not answer", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.nodes["w2"].Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable}}
			s.pod("a", "w2", "n net1 10.1.0.2").Deleting = true
			s.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "b")
		}, says: []string{"kubectl delete pod -n ns a"}},
		{name: "one pod, one address on two interfaces", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2", "n net2 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}, says: []string{"pod ns/a has it on 2 interfaces", "kubectl delete pod -n ns a"}, silent: []string{"NAME", "ns/a, ns/a"}},
		{name: "an attachment holds two, and the pod has the second", finds: "AttachmentHoldsTwo", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.3")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.claim("sys", "rail", "10.1.0.3", "w1", "a")
		}, says: []string{"has rail.10.1.0.3 of the same pool as well", "the pod has 10.1.0.3, so release the other: kubectl ipam release -n sys rail.10.1.0.2 --force"}},
		{name: "an attachment holds three, and the pod says nothing", finds: "AttachmentHoldsTwo AttachmentHoldsTwo", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("a", "w1")
			for _, a := range []string{"10.1.0.2", "10.1.0.3", "10.1.0.4"} {
				s.claim("sys", "rail", a, "w1", "a")
			}
		}, says: []string{"start the pod again, which releases both: kubectl delete pod -n ns a"}, silent: []string{"kubectl ipam release"}},
		{name: "an attachment holds two, and its pod is gone: another one of the name is elsewhere", finds: "AllocationWithoutPod AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("a", "w2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", earlierPod)
			s.claim("sys", "rail", "10.1.0.3", "w1", "a", earlierPod)
		}, silent: []string{"kubectl delete pod"}},
		{name: "a machine has moved, and the node of its earlier pod does not answer", finds: "AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.nodes["w1"].Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnreachable}}
			s.pod("b", "w2", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", movesTo("b", "w2"))
		}, says: []string{"wait until the node is ready"}, silent: []string{"kubectl delete pod", "kubectl ipam release"}},
		{name: "a machine has moved, and its earlier pod is gone", finds: "AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("b", "w2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", movesTo("b", "w2"))
		}, says: []string{"wait: the controller gives its place to that pod"}, silent: []string{"kubectl delete pod", "kubectl ipam release"}},
		{name: "one namespace was looked at, whose pool may be another one of the name", plant: func(s *scene) {
			s.report.Namespace = "a-first"
			s.pool("a-first", "rail", "10.1.0.0/24", "w2")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}},
		{name: "a pod has a gone pod's address, and the network names another pool now", finds: "AddressNotRecorded AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "rail2", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rail2"`)
			s.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
		}, says: []string{"network ns/n, which does not name the pool any more", "do not release it, but start that pod again: kubectl delete pod -n ns b"}, silent: []string{"kubectl ipam release"}},
		{name: "a pod has a gone pod's address, and the network is gone", finds: "AddressNotRecorded AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
		}, says: []string{"network ns/n, which does not name the pool any more", "do not release it"}, silent: []string{"kubectl ipam release"}},
		{name: "two pods on one address of the network that is their default one", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			for _, name := range []string{"a", "b"} {
				s.pod(name, "w1").status = `[{"name": "ns/n", "interface": "eth0", "ips": ["10.1.0.2"], "default": true}]`
			}
		}},
		{name: "the cluster's network gives one address on every node", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			for _, name := range []string{"a", "b"} {
				s.pod(name, "w1").status = `[{"name": "cluster", "interface": "eth0", "ips": ["10.1.0.2"], "default": true}]`
			}
		}},
		{name: "a pod has a gone pod's address, and networks may not be read", finds: "AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.networks.nads = nil
			s.pod("b", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
		}, silent: []string{"kubectl ipam release"}},
		{name: "a pod lost its allocation, its network names another pool now, and another pod took the address", finds: "AddressOnTwoPods", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "rail2", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rail2"`)
			s.network("m", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w1", "m net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "b")
		}, says: []string{"kubectl delete pod -n ns a"}},
		{name: "an address is not recorded, and the node has another label now", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.pool("sys", "rack-r0", "10.1.0.0/24", "w1")
			s.pool("sys", "rack-r1", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rack-{rack}"`)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}, says: []string{"there is no ipallocation rack-r0.10.1.0.2"}},
		{name: "a pod holds its address, and the network names another pool with it now", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "rail2", "10.1.0.0/24", "w1")
			s.pools("sys", func(o *pool.Object) { o.Domain = "rail" })
			s.network("n", `"poolName": "rail2"`)
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "a pod holds its address, and the network is gone", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "an address of nobody knows which manager, of a network that is gone", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.pod("b", "w2", "n net1 10.1.0.2")
		}},
		{name: "a pod has a gone pod's address, of a network of another manager", finds: "AllocationWithoutPod", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.networks.nads["ns/n"] = &object{Metadata: metav1.ObjectMeta{Namespace: "ns", Name: "n"}, Spec: []byte(`{"config": "{\"cniVersion\": \"0.3.1\", \"name\": \"x\", \"type\": \"macvlan\", \"ipam\": {\"type\": \"host-local\"}}"}`)}
			s.pod("a", "w1", "n net1 10.1.0.2")
			s.claim("sys", "rail", "10.1.0.2", "w1", "gone")
		}, says: []string{"do not release it"}},
		{name: "one namespace was looked at, in which the node has a block: so may another one", plant: func(s *scene) {
			s.report.Namespace = "sys"
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}},
		{name: "pools of two namespaces, one without blocks", finds: "PoolsOfTwoNamespaces", plant: func(s *scene) {
			s.like(t, "rail", "{subnet: 10.1.0.0/24}")
			s.pool("b", "rail", "10.1.0.0/24", "w1")
		}, says: []string{"of sys/rail every node uses the whole subnet", "b/rail has 1 blocks"}, silent: []string{"both have blocks"}},
		{name: "pools of two namespaces, of which one gives nothing", plant: func(s *scene) {
			s.like(t, "rail", "{subnet: 10.1.0.0/24, disabled: true}")
			s.pool("b", "rail", "10.1.0.0/24", "w1")
		}},
		{name: "pools of two namespaces, of which one gives nothing any more", finds: "PoolsOfTwoNamespaces", plant: func(s *scene) {
			s.like(t, "rail", "{subnet: 10.1.0.0/24, disabled: true}")
			s.pod("a", "w1")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.pool("b", "rail", "10.1.0.0/24", "w1")
		}, says: []string{"sys/rail is disabled, and 1 of its addresses are held"}},
		{name: "one namespace was looked at, which the network names", finds: "AddressNotRecorded", plant: func(s *scene) {
			s.report.Namespace = "sys"
			s.pool("sys", "rail", "10.1.0.0/24")
			s.network("n", rail+`, "poolsNamespace": "sys"`)
			s.pod("a", "w1", "n net1 10.1.0.2")
		}},
		{name: "a network whose configuration is a file", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.networks.nads["ns/n"] = &object{Metadata: metav1.ObjectMeta{Namespace: "ns", Name: "n"}, Spec: []byte(`{}`)}
			s.pod("a", "w1", "n net1 10.1.0.2").networks = `[{"name": "n", "cni-args": {"poolNames": ["rail"]}}]`
			s.pod("b", "w1", "n net1 10.1.0.3")
		}, skipped: "addresses of network ns/n: it has no spec.config: its configuration is a file on the node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene()
			tc.plant(s)
			s.judge()
			slices.SortFunc(s.report.Findings, finding.compare)
			var classes []string
			var text strings.Builder
			for _, f := range s.report.Findings {
				classes = append(classes, f.Class)
				fmt.Fprintf(&text, "%s (%s)\n%s\n%s\n%s\n", f.Subject, f.Namespace, f.Message, f.Proof, f.Mend)
			}
			if got := strings.Join(classes, " "); got != tc.finds {
				t.Errorf("found %q, want %q\n%s", got, tc.finds, text.String())
			}
			if got := strings.Join(s.report.Skipped, "\n"); (got == "") != (tc.skipped == "") || !strings.HasPrefix(got, tc.skipped) || len(s.report.Skipped) > 1 {
				t.Errorf("skipped %q, want %q", got, tc.skipped)
			}
			for _, part := range tc.says {
				if !strings.Contains(text.String(), part) {
					t.Errorf("%q is not in\n%s", part, text.String())
				}
			}
			for _, part := range tc.silent {
				if strings.Contains(text.String(), part) {
					t.Errorf("%q is in\n%s", part, text.String())
				}
			}
		})
	}
}

// The namespace in which a node looks for pools: the rows are those of poolsOn.
func TestPoolsOn(t *testing.T) {
	for _, tc := range []struct {
		name  string
		plant func(*scene)
		ipam  string
		want  string
	}{
		{name: "the network says it", ipam: `"poolsNamespace": "said"`, want: "said", plant: func(s *scene) { s.pool("sys", "rail", "10.1.0.0/24", "w1") }},
		{name: "5 the pod holds an address there", want: "z-last", plant: func(s *scene) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.claim("z-last", "rail", "10.1.0.2", "w1", "a")
		}},
		{name: "4 the node has a block there", want: "sys", plant: func(s *scene) {
			s.pool("a-first", "rail", "10.1.0.0/24", "w2")
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
		}},
		{name: "3 a controller knows the pool there", want: "sys", plant: func(s *scene) {
			s.pool("a-first", "other", "10.1.0.0/24", "w1")
			s.pool("sys", "rail", "10.1.0.0/24", "w2")
		}},
		{name: "2 a controller is there, and the pool is not", want: "sys", plant: func(s *scene) {
			s.pool("a-first", "rail", "10.1.0.0/24")
			s.pool("sys", "other", "10.1.0.0/24", "w1")
		}},
		{name: "1 the pool is there, and no controller is anywhere", want: "sys", plant: func(s *scene) {
			s.pool("a-first", "other", "10.1.0.0/24")
			s.pool("sys", "rail", "10.1.0.0/24")
		}},
		{name: "nothing tells", plant: func(s *scene) { s.pool("a-first", "other", "10.1.0.0/24") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene()
			s.network("n", `"poolName": "rail"`+strings.TrimSuffix(", "+tc.ipam, ", "))
			tc.plant(s)
			n := s.checking.network(wearer{pod: "ns/a", is: &pod{}, network: "ns/n"})
			var holds []*v1alpha1.IPAllocation
			for _, site := range s.sites {
				holds = append(holds, site.byPod["ns/a"]...)
			}
			if got := s.poolsOn(n, "w1", holds); got != tc.want {
				t.Errorf("it is %q, want %q", got, tc.want)
			}
		})
	}
}

func TestOverlaps(t *testing.T) {
	for blocks, want := range map[string]string{
		"a 1-16, b 17-32":                                     "",
		"a 1-16, b 9-24":                                      "a b",
		"a 1-64, a 5-8, b 33-48":                              "a b",
		"a 1-64, b 65-128, c 129-200":                         "",
		"a 1-64, b 5-8, c 10-12, b 60-70":                     "a b, a c, a b",
		"a 1-10, b 2-100, a 50-60, a 90-110, c 105-106":       "a b, b a, b a, a c",
		"a 1-10, b 2-5, a 11-20, b 8-9":                       "a b, a b",
		"a 1-100, b 101-102, a 103-104, a 103-200, b 150-150": "a b",
	} {
		var all []pool.Assignment
		for text := range strings.SplitSeq(blocks, ", ") {
			var node string
			var from, to int
			if _, err := fmt.Sscanf(text, "%s %d-%d", &node, &from, &to); err != nil {
				t.Fatal(err)
			}
			at := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(n)}) }
			all = append(all, pool.Assignment{Node: node, Range: netipx.IPRangeFrom(at(from), at(to))})
		}
		slices.SortStableFunc(all, func(a, b pool.Assignment) int { return a.Range.From().Compare(b.Range.From()) })
		var got []string
		for _, pair := range overlaps(all) {
			got = append(got, pair[0].Node+" "+pair[1].Node)
			if cmp.Compare(pair[0].Node, pair[1].Node) == 0 || !pair[0].Range.Overlaps(pair[1].Range) {
				t.Errorf("%s: %v", blocks, pair)
			}
		}
		if strings.Join(got, ", ") != want {
			t.Errorf("%s: %q, want %q", blocks, got, want)
		}
	}
}

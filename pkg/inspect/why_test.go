// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// api answers with what a scene has, and with one pod and the events about it.
type api struct {
	*scene

	pod    *corev1.Pod
	said   []corev1.Event
	barred bool // from lists of all namespaces
	blind  bool // to pods
}

func (s *api) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := s.answer(req)
	if status, is := answer.(*metav1.Status); is {
		w.WriteHeader(int(status.Code))
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *api) answer(req *http.Request) any {
	const version = "nv-ipam.nvidia.com/v1alpha1"
	namespace, name := "", path.Base(req.URL.Path)
	if _, rest, found := strings.Cut(req.URL.Path, "/namespaces/"); found {
		namespace, _, _ = strings.Cut(rest, "/")
	}
	items := []any{}
	list := func(kind, version string) any {
		return map[string]any{"kind": kind, "apiVersion": version, "metadata": map[string]string{"resourceVersion": "1"}, "items": items}
	}
	if s.barred && namespace == "" && strings.Contains(req.URL.Path, version) {
		return failure(http.StatusForbidden, metav1.StatusReasonForbidden, "")
	}
	switch name {
	case "ippools":
		for _, at := range s.sites {
			for _, o := range at.pools {
				if namespace == "" || namespace == at.namespace {
					items = append(items, map[string]any{"metadata": o.Meta, "spec": o.Spec, "status": map[string]any{"allocations": o.Allocations}})
				}
			}
		}
		return list("IPPoolList", version)
	case "cidrpools":
		return list("CIDRPoolList", version)
	case "ipallocations":
		if req.URL.Query().Get("fieldSelector") != "" {
			return failure(http.StatusBadRequest, metav1.StatusReasonBadRequest, "")
		}
		for _, at := range s.sites {
			for _, a := range at.allocations {
				if namespace == "" || namespace == at.namespace {
					items = append(items, a)
				}
			}
		}
		return list("IPAllocationList", version)
	case "pods":
		if s.blind {
			return failure(http.StatusForbidden, metav1.StatusReasonForbidden, "")
		}
		for key, p := range s.record.pods {
			items = append(items, served(key, p))
		}
		return list("PodList", "v1")
	case "nodes":
		for _, n := range s.nodes {
			items = append(items, n)
		}
		return list("NodeList", "v1")
	case "events":
		return &corev1.EventList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "EventList"}, Items: s.said}
	}
	switch kind := path.Base(path.Dir(req.URL.Path)); {
	case kind == "pods" && s.pod != nil && name == s.pod.Name:
		return s.pod
	case kind == "nodes" && s.nodes[name] != nil:
		n := s.nodes[name].DeepCopy()
		n.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Node"}
		return n
	case kind == "network-attachment-definitions" && s.networks.nads[namespace+"/"+name] != nil:
		return s.networks.nads[namespace+"/"+name]
	case kind == "ipallocations":
		for _, a := range s.site(namespace).allocations {
			if a.Name == name {
				return a
			}
		}
	}
	return failure(http.StatusNotFound, metav1.StatusReasonNotFound, "")
}

func (s *api) connect(t *testing.T) *Cluster {
	t.Helper()
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	c, err := Connect(&rest.Config{Host: h.URL})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// newAPI returns a scene with the pod ns/a on node w1, which asks for network n.
func newAPI() *api {
	return &api{scene: newScene(), pod: &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: uid("a"), Annotations: map[string]string{ledger.AnnotationNetworks: "n"}},
		Spec:       corev1.PodSpec{NodeName: "w1"}, Status: corev1.PodStatus{Phase: corev1.PodPending},
	}}
}

// has says that the pod has an address by its network-status.
func (s *api) has(address string) {
	s.pod.Annotations[annotationStatus] = fmt.Sprintf(`[{"name": "ns/n", "interface": "net1", "ips": [%q]}]`, address)
}

func rested(s *v1alpha1.IPAllocationSpec) {
	at := metav1.NewTime(time.Now().Add(-2 * time.Hour))
	s.ReleasedAt, s.ReleaseCooldown = &at, &metav1.Duration{Duration: time.Hour}
}

func reservedBy(s *v1alpha1.IPAllocationSpec) {
	s.Owner = &v1alpha1.AllocationOwner{APIGroup: v1alpha1.GroupName, Kind: v1alpha1.KindIPReservation, Namespace: "sys", Name: "res", UID: "x"}
}

// fill holds all that is free in the first block of a pool.
func (s *api) fill() {
	for i := range 16 {
		s.claim("sys", "rail", fmt.Sprintf("10.1.0.%d", i+1), "w1", fmt.Sprint("b", i))
	}
}

// The last link of the chain of a pod.
func TestWhy(t *testing.T) {
	const rail = `"poolName": "rail"`
	failed := func(s *api) {
		s.said = []corev1.Event{{Message: "macvlan: device busy", Count: 30, LastTimestamp: metav1.Now()}}
	}
	for _, tc := range []struct {
		name  string
		plant func(*api)
		pools string // --pools-namespace
		link  string
		ok    bool
		says  []string
		err   string
	}{
		{name: "a label in the name of the pool, and another namespace with a controller", link: linkAllocation, plant: func(s *api) {
			s.pool("a-first", "other", "10.9.0.0/24", "w1")
			s.pool("sys", "rack-r1", "10.1.0.0/24", "w1")
			s.network("n", `"poolName": "rack-{rack}"`)
			failed(s)
		}, says: []string{"device busy"}},
		{name: "an earlier pod of the name has used what is reserved for the name", link: linkAllocation, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod.Annotations[ledger.AnnotationNetworks] = `[{"name": "n", "ips": ["10.1.0.2/24"]}]`
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", earlierPod, released, reservedBy)
			failed(s)
		}, says: []string{"device busy"}},
		{name: "the block is full, and an address of another one has rested", link: linkAllocation, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1", "w2")
			s.network("n", rail)
			s.fill()
			s.claim("sys", "rail", "10.1.0.20", "w2", "old", rested)
		}, says: []string{"IPPool rail is exhausted"}},
		{name: "the block is full, and an address of it has rested", link: linkAllocation, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1", "w2")
			s.network("n", rail)
			s.fill()
			rested(&s.at("sys").allocations[3].Spec)
			failed(s)
		}, says: []string{"device busy"}},
		{name: "the new sandbox of a pod that has its address fails", link: linkStatus, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
			failed(s)
		}, says: []string{"device busy"}},
		{name: "the new sandbox of a pod has failed, and is ready", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
			s.pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionTrue}}
			failed(s)
		}},
		{name: "the sandbox has failed before it got its address", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.at("sys").allocations[0].CreationTimestamp = metav1.NewTime(time.Now().Add(time.Hour))
			s.has("10.1.0.2")
			failed(s)
		}},
		{name: "the network says in which namespace its pools are, and that was not looked at", pools: "x", plant: func(s *api) {
			s.pool("y", "rail", "10.1.0.0/24", "w1")
			s.pool("x", "other", "10.2.0.0/24", "w1")
			s.network("n", rail+`, "poolsNamespace": "y"`)
		}, err: "--pools-namespace y"},
		{name: "the network names another pool now, and the pod holds an address of the earlier one", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "rail2", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rail2"`)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
		}, says: []string{"the pod has 10.1.0.2"}},
		{name: "the network is gone, and the pod holds an address", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
		}, says: []string{"the pod has 10.1.0.2"}},
		{name: "the network names another namespace now, and the pod holds an address", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail+`, "poolsNamespace": "x"`)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
		}, says: []string{"the pod has 10.1.0.2"}},
		{name: "the network has a second pool since, and the pod has an address of the first", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("sys", "rail2", "10.2.0.0/24", "w1")
			s.network("n", `"poolName": "rail,rail2"`)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
		}, says: []string{"the pod has 10.1.0.2"}},
		{name: "the pod's default network is one of ours", link: linkStatus, ok: true, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a", func(s *v1alpha1.IPAllocationSpec) { s.InterfaceName = "eth0" })
			s.pod.Annotations = map[string]string{annotationDefault: "ns/n", annotationStatus: `[{"name": "ns/n", "interface": "eth0", "ips": ["10.1.0.2"], "default": true}]`}
		}, says: []string{"the pod has 10.1.0.2"}},
		{name: "the pod has an address that nothing records", link: linkStatus, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.has("10.1.0.2")
		}, says: []string{"has 10.1.0.2, which the pod does not hold", "kubectl ipam check"}},
		{name: "the pod is being deleted, and has given its address back", link: linkPod, plant: func(s *api) {
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.pod.DeletionTimestamp, s.pod.Finalizers = &metav1.Time{Time: time.Now()}, []string{"example.com/wait"}
		}, says: []string{"is being deleted since", "holds no address"}},
		{name: "the pod has ended, and may hold something elsewhere", plant: func(s *api) {
			s.barred = true
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
			s.pod.Status.Phase = corev1.PodSucceeded
		}, err: "only default was looked at"},
		{name: "one namespace may be looked at, which has a block, and the pod may hold something elsewhere", plant: func(s *api) {
			s.barred = true
			s.pool("sys", "rail", "10.1.0.0/24", "w1")
			s.pool("default", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("sys", "rail", "10.1.0.2", "w1", "a")
		}, err: "--pools-namespace"},
		{name: "one namespace may be looked at, which the network names", link: linkAllocation, plant: func(s *api) {
			s.barred = true
			s.pool("default", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail+`, "poolsNamespace": "default"`)
			failed(s)
		}, says: []string{"device busy"}},
		{name: "one namespace may be looked at, in which the pod holds its address", link: linkStatus, ok: true, plant: func(s *api) {
			s.barred = true
			s.pool("default", "rail", "10.1.0.0/24", "w1")
			s.network("n", rail)
			s.claim("default", "rail", "10.1.0.2", "w1", "a")
			s.has("10.1.0.2")
		}},
		{name: "there is no pool anywhere", link: linkPool, plant: func(s *api) { s.network("n", rail) }, says: []string{"there is no IPPool rail in any namespace"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newAPI()
			tc.plant(s)
			c := s.connect(t)
			c.Namespace, c.Fallback = tc.pools, "default"
			chains, err := c.Why(t.Context(), "ns", "a")
			if err != nil || tc.err != "" {
				if tc.err == "" || err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %q", err, tc.err)
				}
				return
			}
			links := chains[0].Links
			last := links[len(links)-1]
			if last.Link != tc.link || last.OK != tc.ok {
				t.Errorf("the chain ends with %+v", last)
			}
			for _, part := range tc.says {
				if !strings.Contains(last.Message+"\n"+last.Mend, part) {
					t.Errorf("%q is not in %+v", part, last)
				}
			}
		})
	}
}

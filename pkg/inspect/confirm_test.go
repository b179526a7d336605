// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// puts the pods and allocations of a scene on a server.
func (s *server) put(k *scene) {
	for key, p := range k.record.pods {
		namespace, name, _ := strings.Cut(key, "/")
		s.has["/api/v1/namespaces/"+namespace+"/pods/"+name] = served(key, p)
	}
	for _, site := range k.sites {
		for _, a := range site.allocations {
			a = a.DeepCopy()
			a.TypeMeta = metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "IPAllocation"}
			s.has["/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/"+a.Namespace+"/ipallocations/"+a.Name] = a
		}
	}
}

// served is a pod of a scene as the API server has it.
func served(key string, p *pod) *corev1.Pod {
	namespace, name, _ := strings.Cut(key, "/")
	out := &corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: p.UID, Annotations: map[string]string{annotationStatus: p.status}}, Spec: corev1.PodSpec{NodeName: p.Node},
	}
	if p.Ended {
		out.Status.Phase = corev1.PodSucceeded
	}
	return out
}

// What has changed since the lists were read is no finding.
func TestConfirm(t *testing.T) {
	const before, without = "AddressOnTwoPods 10.1.0.5, AddressNotRecorded 10.1.0.2, AllocationWithoutPod rail.10.1.0.7", "AllocationWithoutPod rail.10.1.0.7"
	first := func(s *scene) {
		s.pool("sys", "rail", "10.1.0.0/24", "w1")
		s.network("n", `"poolName": "rail"`)
		s.pod("new", "w1", "n net1 10.1.0.2")
		s.claim("sys", "rail", "10.1.0.7", "w1", "gone")
		s.pod("a", "w1", "n net1 10.1.0.5")
		s.pod("b", "w1", "n net1 10.1.0.5")
		s.claim("sys", "rail", "10.1.0.5", "w1", "a")
	}
	for _, tc := range []struct {
		name    string
		now     func(*server, *scene)
		finds   string
		skipped string
	}{
		{name: "nothing has changed", now: func(*server, *scene) {}, finds: before},
		{name: "the new pod's allocation is there", now: func(s *server, k *scene) { k.claim("sys", "rail", "10.1.0.2", "w1", "new"); s.put(k) }, finds: "AddressOnTwoPods 10.1.0.5, " + without},
		{name: "the new pod is gone again", now: func(s *server, _ *scene) { delete(s.has, "/api/v1/namespaces/ns/pods/new") }, finds: "AddressOnTwoPods 10.1.0.5, " + without},
		{name: "one of two pods is gone", now: func(s *server, _ *scene) { delete(s.has, "/api/v1/namespaces/ns/pods/b") }, finds: "AddressNotRecorded 10.1.0.2, " + without},
		{name: "the gone pod's allocation is gone", now: func(s *server, _ *scene) {
			delete(s.has, "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/sys/ipallocations/rail.10.1.0.7")
		}, finds: strings.TrimSuffix(before, ", "+without)},
		{name: "the gone pod's address is another's, of whom nothing is known", now: func(s *server, _ *scene) {
			at := "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/sys/ipallocations/rail.10.1.0.7"
			a := s.has[at].(*v1alpha1.IPAllocation).DeepCopy()
			a.UID, a.ResourceVersion, a.Spec.PodRef.Name = "another", "9", "unknown"
			s.has[at] = a
		}, finds: strings.TrimSuffix(before, ", "+without)},
		{name: "whoever asks may list, and not get", now: func(s *server, _ *scene) {
			s.has["/api/v1/namespaces/ns/pods/gone"] = failure(http.StatusForbidden, metav1.StatusReasonForbidden, "")
		}, finds: before, skipped: "a second look at findings"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := newServer(t)
			k := newScene()
			first(k)
			s.put(k)
			later := newScene()
			first(later)
			tc.now(s, later)
			k.judge()
			k.confirm(t.Context(), c)
			slices.SortFunc(k.report.Findings, finding.compare)
			var got []string
			for _, f := range k.report.Findings {
				got = append(got, f.Class+" "+f.Subject)
			}
			if strings.Join(got, ", ") != tc.finds {
				t.Errorf("found %q, want %q", got, tc.finds)
			}
			if skipped := strings.Join(k.report.Skipped, "\n"); (skipped == "") != (tc.skipped == "") || !strings.HasPrefix(skipped, tc.skipped) {
				t.Errorf("skipped %q", skipped)
			}
		})
	}
}

// What has changed since the lists were read, and is wrong in another way now, is said as it is now.
func TestConfirmFollows(t *testing.T) {
	const path = "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/sys/ipallocations/rail.10.1.0.5"
	for _, tc := range []struct {
		name  string
		first func(*scene)
		now   func(*server, *scene)
		finds string
	}{
		{"three pods have it, and one ends", func(s *scene) {
			for _, name := range []string{"a", "b", "c"} {
				s.pod(name, "w1", "n net1 10.1.0.5")
			}
			s.claim("sys", "rail", "10.1.0.5", "w1", "a")
		}, func(s *server, _ *scene) { delete(s.has, "/api/v1/namespaces/ns/pods/c") }, "AddressOnTwoPods 10.1.0.5: 2 pods answer on it: ns/a, ns/b"},
		{"two pods have it, and the one that holds it ends", func(s *scene) {
			s.pod("a", "w1", "n net1 10.1.0.5")
			s.pod("b", "w1", "n net1 10.1.0.5")
			s.claim("sys", "rail", "10.1.0.5", "w1", "a")
		}, func(s *server, _ *scene) {
			delete(s.has, "/api/v1/namespaces/ns/pods/a")
			delete(s.has, path)
		}, "AddressNotRecorded 10.1.0.5: pod ns/b has it, and no allocation"},
		{"a pod has what is recorded for a gone one, and the controller reclaims that", func(s *scene) {
			s.pod("b", "w1", "n net1 10.1.0.5")
			s.claim("sys", "rail", "10.1.0.5", "w1", "gone")
		}, func(s *server, _ *scene) { delete(s.has, path) }, "AddressNotRecorded 10.1.0.5: pod ns/b has it, and no allocation"},
		{"a pod has it unrecorded, and a new one takes it", func(s *scene) { s.pod("b", "w1", "n net1 10.1.0.5") }, func(s *server, k *scene) {
			k.pod("z", "w1", "n net1 10.1.0.5")
			k.claim("sys", "rail", "10.1.0.5", "w1", "z")
			s.put(k)
		}, "AddressOnTwoPods 10.1.0.5: 2 pods answer on it: ns/b, ns/z; by allocation rail.10.1.0.5 it is pod ns/z's"},
		{"another allocation is leaked meanwhile", func(s *scene) {
			s.pod("a", "w1", "n net1 10.1.0.5")
			s.pod("b", "w1", "n net1 10.1.0.5")
			s.claim("sys", "rail", "10.1.0.5", "w1", "a")
		}, func(s *server, _ *scene) {
			delete(s.has, "/api/v1/namespaces/ns/pods/a")
			delete(s.has, "/api/v1/namespaces/ns/pods/b")
		}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := newServer(t)
			k, later := newScene(), newScene()
			for _, k := range []*scene{k, later} {
				k.pool("sys", "rail", "10.1.0.0/24", "w1")
				k.network("n", `"poolName": "rail"`)
				tc.first(k)
			}
			s.put(k)
			tc.now(s, later)
			k.judge()
			k.confirm(t.Context(), c)
			var got []string
			for _, f := range k.report.Findings {
				got = append(got, f.Class+" "+f.Subject+": "+f.Message)
			}
			if all := strings.Join(got, "\n"); !strings.HasPrefix(all, tc.finds) || (all == "") != (tc.finds == "") || len(got) > 1 || len(k.report.Skipped) > 0 {
				t.Errorf("found %s, skipped %q", all, k.report.Skipped)
			}
		})
	}
}

// A second look is bounded: the others are reported, and it is said.
func TestConfirmIsBounded(t *testing.T) {
	s, c := newServer(t)
	k := newScene()
	k.pool("sys", "rail", "10.0.0.0/8", "w1")
	for i := range maxSuspects + 50 {
		k.claim("sys", "rail", fmt.Sprintf("10.1.%d.%d", i/250, i%250+1), "w1", fmt.Sprint("p", i))
	}
	k.judge()
	k.confirm(t.Context(), c) // all are gone
	if len(k.report.Findings) != 50 || len(k.report.Skipped) != 1 || !strings.Contains(k.report.Skipped[0], "50 more than 200") {
		t.Errorf("%d findings, skipped %q", len(k.report.Findings), k.report.Skipped)
	}
	if len(s.asked) != 2*maxSuspects {
		t.Errorf("%d requests", len(s.asked))
	}
}

func TestStillLeak(t *testing.T) {
	s, c := newServer(t)
	k := newScene()
	k.pool("sys", "rail", "10.1.0.0/24", "w1")
	for _, address := range []string{"10.1.0.2", "10.1.0.3"} {
		k.claim("sys", "rail", address, "w1", "gone")
	}
	s.put(k)
	delete(s.has, "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/sys/ipallocations/rail.10.1.0.2")
	got, err := c.stillLeak(t.Context(), k.record, k.leaks("rail"))
	if err != nil || len(got) != 1 || got[0].Address != "10.1.0.3" {
		t.Errorf("%v, %v", got, err)
	}
}

// A leak that is still there is found again, though what shows it is another allocation now: the
// text is that of the second look.
func TestConfirmSaysWhatIsThere(t *testing.T) {
	s, c := newServer(t)
	k := newScene()
	k.pool("sys", "rail", "10.1.0.0/24", "w1")
	k.pod("a", "w1")
	for i := range 3 {
		at := metav1.NewMicroTime(time.Unix(int64(1000+i*100), 0))
		k.claim("sys", "rail", fmt.Sprintf("10.1.0.%d", i), "w1", "a", func(s *v1alpha1.IPAllocationSpec) {
			s.ContainerID, s.AddStartedAt = fmt.Sprint("c", i), &at
		})
		all := k.at("sys").allocations
		all[i].CreationTimestamp = metav1.NewTime(at.Add(time.Second))
	}
	s.put(k)
	delete(s.has, "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/sys/ipallocations/rail.10.1.0.1")
	k.judge()
	leaks, err := c.stillLeak(t.Context(), k.record, k.leaks("rail"))
	if err != nil || len(leaks) != 1 || leaks[0].Address != "10.1.0.0" || !strings.Contains(leaks[0].Verdict.Message, "c2") {
		t.Errorf("leaks %v, %v", leaks, err)
	}
	k.confirm(t.Context(), c)
	if found := k.report.Findings; len(found) != 1 || found[0].Subject != "rail.10.1.0.0" || !strings.Contains(found[0].Message, "c2") {
		t.Errorf("found %v", found)
	}
}

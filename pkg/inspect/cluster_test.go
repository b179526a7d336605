// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// server answers with what it has by path and query, and else that there is none.
type server struct {
	mu    sync.Mutex
	has   map[string]any
	asked []string
}

func (s *server) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, req.URL.String())
	answer, found := s.has[req.URL.String()]
	if !found {
		answer = &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: metav1.StatusReasonNotFound, Code: http.StatusNotFound}
	}
	w.Header().Set("Content-Type", "application/json")
	if status, is := answer.(*metav1.Status); is {
		w.WriteHeader(int(status.Code))
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func newServer(t *testing.T) (*server, *Cluster) {
	t.Helper()
	s := &server{has: map[string]any{}}
	h := httptest.NewServer(s)
	t.Cleanup(h.Close)
	c, err := Connect(&rest.Config{Host: h.URL})
	if err != nil {
		t.Fatal(err)
	}
	return s, c
}

func failure(code int32, reason metav1.StatusReason, next string) *metav1.Status {
	return &metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, ListMeta: metav1.ListMeta{Continue: next}, Status: metav1.StatusFailure, Code: code, Reason: reason, Message: "said",
	}
}

// A list whose further pages the API server has dropped goes on where it was.
func TestExpiredList(t *testing.T) {
	expired := func(next string) *metav1.Status { return failure(http.StatusGone, metav1.StatusReasonExpired, next) }
	page := func(next, version string, items ...string) any {
		list := &v1alpha1.IPAllocationList{ListMeta: metav1.ListMeta{Continue: next, ResourceVersion: version}}
		for _, name := range items {
			list.Items = append(list.Items, v1alpha1.IPAllocation{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPAllocationSpec{Address: name}})
		}
		return list
	}
	const path = "/apis/nv-ipam.nvidia.com/v1alpha1/ipallocations?"
	for _, tc := range []struct {
		name string
		has  map[string]any
		want string
	}{
		{name: "on the second page", has: map[string]any{
			"continue=&limit=1000": page("old", "7", "a"), "continue=old&limit=1000": expired("on"), "continue=on&limit=1000": page("", "9", "b"),
		}, want: "a b 7"},
		{name: "twice", has: map[string]any{
			"continue=&limit=1000": page("old", "7", "a"), "continue=old&limit=1000": expired("on"), "continue=on&limit=1000": page("old2", "9", "b"),
			"continue=old2&limit=1000": expired("on2"), "continue=on2&limit=1000": page("", "11", "c"),
		}, want: "a b c 7"},
		{name: "without saying how to go on", has: map[string]any{
			"continue=&limit=1000": page("old", "7", "a"), "continue=old&limit=1000": expired(""),
		}, want: "listing allocations: said"},
		{name: "again and again", has: map[string]any{
			"continue=&limit=1000": page("old", "7", "a"), "continue=old&limit=1000": expired("old"),
		}, want: "listing allocations: said"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, c := newServer(t)
			for query, answer := range tc.has {
				s.has[path+query] = answer
			}
			var got []string
			all := func(*v1alpha1.IPAllocation) bool { return true }
			version, err := c.list(t.Context(), nil, all, func(a *v1alpha1.IPAllocation) { got = append(got, a.Name) })
			if got = append(got, version); err != nil {
				got = []string{err.Error()}
			}
			if strings.Join(got, " ") != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
	t.Run("of nodes", func(t *testing.T) {
		s, c := newServer(t)
		s.has["/api/v1/nodes?limit=1000"] = &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, ListMeta: metav1.ListMeta{Continue: "old"}, Items: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "a"}}}}
		s.has["/api/v1/nodes?continue=old&limit=1000"] = expired("on")
		s.has["/api/v1/nodes?continue=on&limit=1000"] = &corev1.NodeList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NodeList"}, Items: []corev1.Node{{ObjectMeta: metav1.ObjectMeta{Name: "b"}}}}
		nodes := map[string]*corev1.Node{}
		if err := c.readNodes(t.Context(), nodes); err != nil || len(nodes) != 2 {
			t.Errorf("%v, %v", nodes, err)
		}
	})
}

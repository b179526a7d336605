// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/pkg/ledger"
)

// A request about one object tells the API server how long the client waits. A list has all the
// time of its call: one that takes longer would be thrown away, and asked again and again.
func TestTimeOfRequests(t *testing.T) {
	var asked string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.URL.Query().Get("timeout")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"apiVersion": "nv-ipam.nvidia.com/v1alpha1", "kind": "IPAllocationList", "metadata": {}, "items": []}`))
	}))
	defer server.Close()
	client, err := clientFor(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	l := ledger.Ledger{Client: client, Namespace: "pools", Node: "worker-1"}
	for _, tc := range []struct {
		name string
		ask  func() error
		want string
	}{
		{"one object", func() error {
			_, err := l.Client.IPAllocations("pools").Get(t.Context(), "a", metav1.GetOptions{})
			return err
		}, ledger.RequestTime.String()},
		{"a change", func() error {
			_, err := l.Client.IPAllocations("pools").Patch(t.Context(), "a", types.MergePatchType, []byte("{}"), metav1.PatchOptions{})
			return err
		}, ledger.RequestTime.String()},
		{"what a node holds", func() error { _, _, _, err := l.OfNode(t.Context()); return err }, ""},
		{"what is held in a window", func() error {
			_, err := l.HeldInWindow(t.Context(), "rail1", netip.MustParseAddr("10.0.0.1"))
			return err
		}, ""},
		{"what is held in a domain", func() error { _, err := l.Held(t.Context(), "rail1"); return err }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			asked = "nothing"
			if err := tc.ask(); err != nil {
				t.Fatal(err)
			}
			if asked != tc.want {
				t.Errorf("the request has timeout=%q, want %q", asked, tc.want)
			}
		})
	}
}

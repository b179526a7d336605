// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// The role is all that the nodes' group gets from this project: the server is
// asked about each verb of each resource that it has. The user is none that the
// node authorizer knows, so that a kubelet's own rights do not count.
func TestNothingElse(t *testing.T) {
	c := newCluster(t)
	other := env.Namespace(t)
	_, lists, err := c.Kube.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	var allowed []string
	asked := 0
	for _, list := range lists {
		gv, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, resource := range list.APIResources {
			name, sub, _ := strings.Cut(resource.Name, "/")
			namespaces := []string{""} // all, or none
			if resource.Namespaced {
				namespaces = []string{c.NS, other, ""}
			}
			for _, ns := range namespaces {
				for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} {
					asked++
					if c.may(t, &authorizationv1.ResourceAttributes{Namespace: ns, Verb: verb, Group: gv.Group, Version: gv.Version, Resource: name, Subresource: sub}) {
						allowed = append(allowed, fmt.Sprintf("%s %s in %s", verb, resource.Name, strings.ReplaceAll(ns, c.NS, "pools")))
					}
				}
			}
		}
	}
	if asked < 1000 {
		t.Fatalf("only %d questions", asked)
	}
	wanted := []string{
		"create ipallocations in pools", "delete ipallocations in pools", "get cidrpools in pools", "get ipallocations in pools",
		"get ippools in pools", "list ipallocations in pools", "patch ipallocations in pools",
	}
	sort.Strings(allowed)
	if !slices.Equal(allowed, wanted) {
		t.Errorf("allowed:\n%s\nwant:\n%s", strings.Join(allowed, "\n"), strings.Join(wanted, "\n"))
	}
}

func (c *cluster) may(t *testing.T, what *authorizationv1.ResourceAttributes) bool {
	t.Helper()
	answer, err := c.Kube.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "somebody", Groups: []string{testenv.NodesGroup}, ResourceAttributes: what},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Allowed
}

// A pool whose nodeSelector uses a label of this prefix does not go to a node that
// labels itself: which labels a kubelet may set is the API server's to say.
func TestKubeletLabels(t *testing.T) {
	c := newCluster(t)
	core, err := kubernetes.NewForConfig(nodeConfig(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	for label, refused := range map[string]bool{
		"example.com/rack": false, "rack": false, "topology.kubernetes.io/zone": false, "node.kubernetes.io/rack": false,
		"node-restriction.kubernetes.io/rack": true, "rack.node-restriction.kubernetes.io/a": true,
	} {
		for _, value := range []string{`"a"`, "null"} {
			body := []byte(`{"metadata":{"labels":{"` + label + `":` + value + `}}}`)
			if _, err := c.Kube.CoreV1().Nodes().Patch(t.Context(), "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"`+label+`":"b"}}}`), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
			if _, err := core.CoreV1().Nodes().Patch(t.Context(), "a", types.MergePatchType, body, metav1.PatchOptions{}); apierrors.IsForbidden(err) != refused {
				t.Errorf("%s: %s: got %v, refused: %t", label, value, err, refused)
			}
		}
	}
}

// Applied again, nothing changes: neither kubectl nor a GitOps tool finds drift.
func TestApplyAgain(t *testing.T) {
	c := newCluster(t)
	dir := rig.Kustomization(t, map[string]any{"namespace": c.NS, "resources": []string{"base/plugin", "base/policy"}})
	for range 2 {
		out, err := env.Kubectl(t.Context(), "apply", "-k", dir)
		if err != nil || strings.Count(out, " unchanged\n") != 8 || strings.Count(out, "\n") != 8 {
			t.Errorf("got %v:\n%s", err, out)
		}
	}
	generation := func() string {
		t.Helper()
		out, err := env.Kubectl(t.Context(), "get", "validatingadmissionpolicies", role, "-o", "jsonpath={.metadata.generation}")
		if err != nil || out == "" {
			t.Fatal(err, out)
		}
		return out
	}
	before := generation()
	// Without force: what the server has completed must be no conflict either.
	if out, err := env.Kubectl(t.Context(), "apply", "--server-side", "-k", dir); err != nil || generation() != before {
		t.Errorf("generation %s, before %s, %v:\n%s", generation(), before, err, out)
	}
}

// A node with a real certificate, by request.
func TestReading(t *testing.T) {
	c := newCluster(t)
	ctx, other := t.Context(), env.Namespace(t)
	for _, ns := range []string{c.NS, other} {
		rig.IPPool(t, c.IPAM, ns, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 100}, "a")
		if _, err := c.Kube.CoreV1().Secrets(ns).Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "s"}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	c.put(t, allocation("p", "10.0.0.1", "b"))
	config, err := env.UserConfig("system:node:a", testenv.NodesGroup)
	if err != nil {
		t.Fatal(err)
	}
	core, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	a := rig.Client(t, config)
	for name, request := range map[string]func() error{
		"a pool":                  func() error { _, err := a.IPPools(c.NS).Get(ctx, "p", metav1.GetOptions{}); return err },
		"another's allocation":    func() error { _, err := a.IPAllocations(c.NS).Get(ctx, "p.10.0.0.1", metav1.GetOptions{}); return err },
		"the list of allocations": func() error { _, err := a.IPAllocations(c.NS).List(ctx, metav1.ListOptions{}); return err },
	} {
		if err := request(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, request := range map[string]func() error{
		"pools":                         func() error { _, err := a.IPPools(c.NS).List(ctx, metav1.ListOptions{}); return err },
		"pool in another namespace":     func() error { _, err := a.IPPools(other).Get(ctx, "p", metav1.GetOptions{}); return err },
		"allocations elsewhere":         func() error { _, err := a.IPAllocations(other).List(ctx, metav1.ListOptions{}); return err },
		"allocations of all namespaces": func() error { _, err := a.IPAllocations("").List(ctx, metav1.ListOptions{}); return err },
		"watch":                         func() error { _, err := a.IPAllocations(c.NS).Watch(ctx, metav1.ListOptions{}); return err },
		"watch of pools":                func() error { _, err := a.IPPools(c.NS).Watch(ctx, metav1.ListOptions{}); return err },
		"deletecollection": func() error {
			return a.IPAllocations(c.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
		},
		"pool's deletion": func() error { return a.IPPools(c.NS).Delete(ctx, "p", metav1.DeleteOptions{}) },
		"secret":          func() error { _, err := core.CoreV1().Secrets(c.NS).Get(ctx, "s", metav1.GetOptions{}); return err },
		"secrets":         func() error { _, err := core.CoreV1().Secrets(other).List(ctx, metav1.ListOptions{}); return err },
	} {
		if err := request(); !apierrors.IsForbidden(err) {
			t.Errorf("%s: got %v, want Forbidden", name, err)
		}
	}
}

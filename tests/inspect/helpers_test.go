// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"encoding/json"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// flagsOfTest are those that this test was started with.
func flagsOfTest() []string { return os.Args[1:] }

// newHouseBeside is another namespace with the same pool.
func newHouseBeside(t *testing.T) *house {
	t.Helper()
	h := &house{rig.NewCluster(t, env)}
	t.Cleanup(func() { h.clear(t) })
	rig.IPPool(t, h.IPAM, h.NS, "rail1", v1alpha1.IPPoolSpec{Subnet: "10.1.0.0/24", PerNodeBlockSize: 16}, "worker-1")
	return h
}

func (h *house) taint(t *testing.T, node, key string) {
	t.Helper()
	patch, err := json.Marshal(map[string]any{"spec": map[string]any{"taints": []corev1.Taint{{Key: key, Effect: corev1.TaintEffectNoExecute}}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Kube.CoreV1().Nodes().Patch(t.Context(), node, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// nextSecond waits until what is created now has another creation time than before.
func (h *house) nextSecond(t *testing.T) {
	t.Helper()
	now := func() metav1.Time {
		ns, err := h.Kube.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "clock"}}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		return ns.CreationTimestamp
	}
	first := now()
	rig.Until(t, func() string {
		if n := now(); !first.Before(&n) {
			return "the server's clock stands still"
		}
		return ""
	})
}

// user returns the kubeconfig of somebody with a cluster role.
func (h *house) user(t *testing.T, name, role string) string {
	t.Helper()
	var r rbacv1.ClusterRole
	if err := json.Unmarshal([]byte(role), &r); err != nil {
		t.Fatal(err)
	}
	r.Name = h.NS + "-" + name
	if _, err := h.Kube.RbacV1().ClusterRoles().Create(t.Context(), &r, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: r.Name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: r.Name},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: r.Name}},
	}
	if _, err := h.Kube.RbacV1().ClusterRoleBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	kubeconfig, err := env.UserKubeconfig(r.Name)
	if err != nil {
		t.Fatal(err)
	}
	return kubeconfig
}

func (h *house) patchPod(t *testing.T, name, patch string, subresources ...string) {
	t.Helper()
	if _, err := h.Kube.CoreV1().Pods(h.NS).Patch(t.Context(), name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, subresources...); err != nil {
		t.Fatal(err)
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package attack plays those who have some rights and want more: a node, somebody
// who writes pods, somebody who writes pools. They try what docs/security.md names,
// on a real API server with an overlay of manifests/ applied, while a controller
// runs with the rights that the overlay gives it.
package attack

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{NoCRDs: true})) }

// UIDs of pods.
const (
	gone   = rig.GoneUID
	static = rig.StaticUID
)

// cluster is a namespace with an overlay, and one for the pods of its users.
type cluster struct {
	*rig.Cluster

	tenant string
}

// newCluster applies the overlay for the server's version, waits until its policy is
// in force, and makes ready nodes.
func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env), tenant: env.Namespace(t)}
	overlay := "overlays/default"
	if env.Minor < 31 {
		overlay = "overlays/k8s-1.30"
	}
	c.Apply(t, overlay)
	if out, err := env.Kubectl(t.Context(), "wait", "--for=condition=Established", "crd", "--all"); err != nil {
		t.Fatal(err, out)
	}
	c.AwaitPolicy(t)
	c.RemoveNodes(t)
	for _, name := range nodes {
		c.Node(t, name, nil)
		if _, err := c.Kube.CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType,
			[]byte(`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// user returns the configuration of somebody with a certificate.
func user(t *testing.T, name string, groups ...string) *rest.Config {
	t.Helper()
	config, err := env.UserConfig(name, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func nodeUser(t *testing.T, name string) *rest.Config {
	t.Helper()
	return user(t, "system:node:"+name, testenv.NodesGroup)
}

// node returns a client with a certificate like that of the node's kubelet.
func (c *cluster) node(t *testing.T, name string) clientv1alpha1.NvIpamV1alpha1Interface {
	t.Helper()
	return rig.Client(t, nodeUser(t, name))
}

// run runs a controller as its service account until the end of the test, and
// returns where its metrics are.
func (c *cluster) run(t *testing.T, opts controller.Options) *prometheus.Registry {
	t.Helper()
	metrics := prometheus.NewRegistry()
	opts.Metrics, opts.Usage = metrics, time.Millisecond
	c.RunController(context.Background(), t, rig.ControllerClients(t, c.As(t, "nv-ipam-controller"), nil), opts)
	return metrics
}

// allocation is one that the node's plugin makes for the sandbox of a pod.
func allocation(pool, address, node string, pod v1alpha1.PodReference) *v1alpha1.IPAllocation {
	return rig.Allocation(pool, address, node, pod, "sandbox-"+pod.Name)
}

// names are those of all allocations.
func (c *cluster) names(t *testing.T) (out []string) {
	t.Helper()
	for _, a := range c.Allocations(t) {
		out = append(out, a.Name)
	}
	return out
}

// author returns the configuration of a user who may do everything with some
// resources of a namespace, and nothing else.
func (c *cluster) author(t *testing.T, namespace, group string, resources ...string) *rest.Config {
	t.Helper()
	const name = "mallory"
	_, err := c.Kube.RbacV1().Roles(namespace).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{group}, Resources: resources, Verbs: []string{"*"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Kube.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return user(t, name)
}

// wantReady waits until a pool is Ready and has these blocks.
func (c *cluster) wantReady(t *testing.T, name string, want ...string) {
	t.Helper()
	rig.Until(t, func() string {
		p := c.GetPool(t, name)
		ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil || ready.Status != metav1.ConditionTrue || ready.ObservedGeneration != p.Generation || !slices.Equal(rig.Blocks(p), want) {
			return fmt.Sprintf("pool %s is %+v with blocks %q, want Ready and %q", name, p.Status.PoolStatus, rig.Blocks(p), want)
		}
		return ""
	})
}

// wantCondition waits until a pool's condition says something.
func (c *cluster) wantCondition(t *testing.T, name, condition, says string) {
	t.Helper()
	rig.Until(t, func() string {
		found := meta.FindStatusCondition(c.GetPool(t, name).Status.Conditions, condition)
		if found == nil || !strings.Contains(found.Message, says) {
			return fmt.Sprintf("pool %s has %s %+v, want %q", name, condition, found, says)
		}
		return ""
	})
}

// wantGone waits until an allocation has been reclaimed.
func (c *cluster) wantGone(t *testing.T, name string) {
	t.Helper()
	rig.Until(t, func() string {
		if slices.Contains(c.names(t), name) {
			return name + " is still held"
		}
		return ""
	})
}

// wantHeld checks that allocations are there.
func (c *cluster) wantHeld(t *testing.T, names ...string) {
	t.Helper()
	held := c.names(t)
	for _, name := range names {
		if !slices.Contains(held, name) {
			t.Errorf("%s was freed; held are %q", name, held)
		}
	}
}

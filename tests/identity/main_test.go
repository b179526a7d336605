// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package identity tests who may do what, with this project's role and admission
// policy on a real API server: nodes with real certificates, service accounts
// with real tokens, and bin/nv-ipam with each of them.
package identity

import (
	"fmt"
	"os"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const (
	role = "crd-ipam-node"
	// pluginAccount is the service account that stands in for the kubelet's
	// credentials.
	pluginAccount = "crd-ipam-plugin"
	// installerAccount is that of the installer's pods.
	installerAccount = "nv-ipam-node"
	// nodeBoundMinor is the first minor version that binds tokens to nodes.
	nodeBoundMinor = 31
	// nodesApartMinor is the first that lets a kubelet read no Node but its own.
	nodesApartMinor = 32
)

var env *testenv.Env

func TestMain(m *testing.M) {
	testenv.Isolate()
	os.Exit(testenv.Run(m, &env, testenv.Options{}))
}

// cluster is a namespace with what an administrator applies for the plugin.
type cluster struct{ *rig.Cluster }

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{rig.NewCluster(t, env)}
	for _, node := range []string{"a", "b"} {
		c.addNode(t, node)
	}
	c.Apply(t, "base/plugin", "base/policy")
	c.AwaitPolicy(t)
	return c
}

func (c *cluster) addNode(t *testing.T, name string) {
	t.Helper()
	_, err := c.Kube.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
}

func (c *cluster) user(t *testing.T, name string, groups ...string) clientv1alpha1.NvIpamV1alpha1Interface {
	t.Helper()
	config, err := env.UserConfig(name, groups...)
	if err != nil {
		t.Fatal(err)
	}
	return rig.Client(t, config)
}

func (c *cluster) node(t *testing.T, name string) clientv1alpha1.NvIpamV1alpha1Interface {
	t.Helper()
	return c.user(t, "system:node:"+name, testenv.NodesGroup)
}

// withToken returns a client that has no certificate.
func withToken(t *testing.T, token string) clientv1alpha1.NvIpamV1alpha1Interface {
	t.Helper()
	return rig.Client(t, rig.WithToken(env, token))
}

// put stores an allocation as an administrator does.
func (c *cluster) put(t *testing.T, a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	t.Helper()
	return c.Claim(t, c.IPAM, a)
}

func (c *cluster) held(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(c.Held(t))
}

// bind gives subjects the rights of a cluster role in the namespace.
func (c *cluster) bind(t *testing.T, clusterRole string, subjects ...rbacv1.Subject) {
	t.Helper()
	_, err := c.Kube.RbacV1().RoleBindings(c.NS).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: clusterRole},
		Subjects:   subjects,
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

// account makes a service account that has the rights of a cluster role, if any.
func (c *cluster) account(t *testing.T, name, clusterRole string) {
	t.Helper()
	_, err := c.Kube.CoreV1().ServiceAccounts(c.NS).Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if clusterRole != "" {
		c.bind(t, clusterRole, rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Name: name, Namespace: c.NS})
	}
}

// nodeToken returns a token that is bound to a node, and skips the test where the
// server has none.
func (c *cluster) nodeToken(t *testing.T, account, node string) string {
	t.Helper()
	obj, err := c.Kube.CoreV1().Nodes().Get(t.Context(), node, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t, account, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: obj.UID})
	if err != nil && env.Minor < nodeBoundMinor {
		t.Skipf("1.%d binds no tokens to nodes: %v", env.Minor, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// podToken returns the token that a pod on the node has.
func (c *cluster) podToken(t *testing.T, account, node string) string {
	t.Helper()
	pod, err := c.Kube.CoreV1().Pods(c.NS).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "pod-"},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: account, Containers: []corev1.Container{{Name: "x", Image: "x"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token, err := c.Token(t, account, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// allocation is one that node's plugin makes; a reservation for no node where
// node is empty.
func allocation(pool, address, node string) *v1alpha1.IPAllocation {
	a := &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: pool + "." + address},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool},
			Address: address,
			PodRef:  v1alpha1.PodReference{Namespace: "ml", Name: "train-0"},
		},
	}
	if node != "" {
		a.Labels = map[string]string{
			v1alpha1.LabelPool: v1alpha1.LabelValue(pool), v1alpha1.LabelNode: v1alpha1.LabelValue(node), v1alpha1.LabelContainer: v1alpha1.ContainerLabel("c1"),
		}
		a.Spec.NodeName, a.Spec.ContainerID, a.Spec.InterfaceName = node, "c1", "net1"
	}
	return a
}

// want checks that err is a refusal with these words; that there is none, where
// words are empty.
func want(t *testing.T, err error, words string) {
	t.Helper()
	switch {
	case words == "" && err != nil:
		t.Errorf("refused: %v", err)
	case words != "" && err == nil:
		t.Errorf("allowed, want %q", words)
	case words != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), words)):
		t.Errorf("got %v\nwant Forbidden with %q", err, words)
	}
}

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
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/generated/clientset/versioned"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/fixture"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{NoCRDs: true})) }

// gone is the UID of a pod that the API server may have had, static is of the kind
// that a kubelet gives to static pods.
const (
	gone   = "7d0c9a3e-1111-4222-8333-444455556666"
	static = "0123456789abcdef0123456789abcdef"
)

// cluster is a namespace with an overlay, and one for the pods of its users.
type cluster struct {
	ns, tenant string
	kube       kubernetes.Interface // the administrator's
	ipam       clientv1alpha1.NvIpamV1alpha1Interface
}

// newCluster applies the overlay for the server's version, and makes ready nodes.
func newCluster(t *testing.T, nodes ...string) *cluster {
	t.Helper()
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{ns: env.Namespace(t), tenant: env.Namespace(t), kube: kube, ipam: fixture.Client(t, env.Config)}
	c.install(t)
	t.Cleanup(func() {
		if err := kube.CoreV1().Nodes().DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
	for _, name := range nodes {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := kube.CoreV1().Nodes().Create(t.Context(), node, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := kube.CoreV1().Nodes().Patch(t.Context(), name, types.StrategicMergePatchType,
			[]byte(`{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// install applies the overlay in the cluster's namespace, and waits until its policy
// is in force.
func (c *cluster) install(t *testing.T) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	overlay := "default"
	if env.Minor < 31 {
		overlay = "k8s-1.30"
	}
	dir := t.TempDir()
	path, err := filepath.Rel(dir, filepath.Join(root, "manifests", "overlays", overlay))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte("namespace: "+c.ns+"\nresources:\n- "+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"apply", "-k", dir}, {"wait", "--for=condition=Established", "crd", "--all"}} {
		if out, err := env.Kubectl(t.Context(), args...); err != nil {
			t.Fatal(err, out)
		}
	}
	canary := c.node(t, "canary").IPAllocations(c.ns)
	until(t, func() string {
		_, err := canary.Create(t.Context(), allocation("canary", "10.9.9.9", "another", v1alpha1.PodReference{}), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'crd-ipam-node'") {
			return fmt.Sprint("the policy is not in force: ", err)
		}
		return ""
	})
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
	return fixture.Client(t, nodeUser(t, name))
}

// author returns the configuration of a user who may do everything with some
// resources of a namespace, and nothing else.
func (c *cluster) author(t *testing.T, namespace, group string, resources ...string) *rest.Config {
	t.Helper()
	const name = "mallory"
	_, err := c.kube.RbacV1().Roles(namespace).Create(t.Context(), &rbacv1.Role{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{group}, Resources: resources, Verbs: []string{"*"}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.kube.RbacV1().RoleBindings(namespace).Create(t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return user(t, name)
}

// run runs a controller as its service account until the end of the test, and
// returns where its metrics are.
func (c *cluster) run(t *testing.T, opts controller.Options) *prometheus.Registry {
	t.Helper()
	token, err := c.kube.CoreV1().ServiceAccounts(c.ns).CreateToken(t.Context(), "nv-ipam-controller", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(env.Config)
	config.BearerToken, config.QPS = token.Status.Token, -1
	clients := controller.Clients{}
	if clients.IPAM, err = versioned.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if clients.Kube, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if clients.Metadata, err = metadata.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	opts.Namespace, opts.Metrics, opts.Usage = c.ns, metrics, time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- controller.New(clients, opts).Run(ctx) }()
	t.Cleanup(sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}))
	return metrics
}

// until waits until check says "".
func until(t *testing.T, check func() string) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		missing := check()
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(missing)
		}
		time.Sleep(20 * time.Millisecond) // between two polls
	}
}

// allocation is one that the node's plugin makes.
func allocation(pool, address, node string, pod v1alpha1.PodReference) *v1alpha1.IPAllocation {
	now := metav1.NowMicro()
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: pool + "." + address, Labels: map[string]string{
			v1alpha1.LabelPool: pool, v1alpha1.LabelNode: node, v1alpha1.LabelContainer: v1alpha1.ContainerLabel("sandbox-" + pod.Name),
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: pool}, Address: address, NodeName: node,
			PodRef: pod, ContainerID: "sandbox-" + pod.Name, InterfaceName: "net1", AddStartedAt: &now,
		},
	}
}

// claim stores an allocation as the node itself does.
func (c *cluster) claim(t *testing.T, as clientv1alpha1.NvIpamV1alpha1Interface, a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	t.Helper()
	out, err := as.IPAllocations(c.ns).Create(t.Context(), a, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// startPod creates a pod that no kubelet looks after.
func startPod(t *testing.T, as kubernetes.Interface, namespace, name, node string, edit ...func(*corev1.Pod)) v1alpha1.PodReference {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, e := range edit {
		e(p)
	}
	p, err := as.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return v1alpha1.PodReference{Namespace: namespace, Name: name, UID: p.UID}
}

func (c *cluster) pool(t *testing.T, name string, spec v1alpha1.IPPoolSpec) {
	t.Helper()
	if _, err := c.ipam.IPPools(c.ns).Create(t.Context(), &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) getPool(t *testing.T, name string) *v1alpha1.IPPool {
	t.Helper()
	p, err := c.ipam.IPPools(c.ns).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// blocks are a pool's, as "node first last".
func blocks(p *v1alpha1.IPPool) (out []string) {
	for _, a := range p.Status.Allocations {
		out = append(out, a.NodeName+" "+a.StartIP+" "+a.EndIP)
	}
	return out
}

// wantReady waits until a pool is Ready and has these blocks.
func (c *cluster) wantReady(t *testing.T, name string, want ...string) {
	t.Helper()
	until(t, func() string {
		p := c.getPool(t, name)
		ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if ready == nil || ready.Status != metav1.ConditionTrue || ready.ObservedGeneration != p.Generation || !slices.Equal(blocks(p), want) {
			return fmt.Sprintf("pool %s is %+v with blocks %q, want Ready and %q", name, p.Status.PoolStatus, blocks(p), want)
		}
		return ""
	})
}

// wantCondition waits until a pool's condition says something.
func (c *cluster) wantCondition(t *testing.T, name, condition, says string) {
	t.Helper()
	until(t, func() string {
		found := meta.FindStatusCondition(c.getPool(t, name).Status.Conditions, condition)
		if found == nil || !strings.Contains(found.Message, says) {
			return fmt.Sprintf("pool %s has %s %+v, want %q", name, condition, found, says)
		}
		return ""
	})
}

func (c *cluster) wantEvent(t *testing.T, reason, says string) {
	t.Helper()
	until(t, func() string {
		list, err := c.kube.CoreV1().Events(c.ns).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, e := range list.Items {
			if e.Reason == reason && strings.Contains(e.Message, says) {
				return ""
			}
			all = append(all, e.Reason+": "+e.Message)
		}
		return fmt.Sprintf("no event %s with %q in %q", reason, says, all)
	})
}

// names are those of all allocations.
func (c *cluster) names(t *testing.T) (out []string) {
	t.Helper()
	list, err := c.ipam.IPAllocations(c.ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		out = append(out, a.Name)
	}
	return out
}

// wantGone waits until an allocation has been reclaimed.
func (c *cluster) wantGone(t *testing.T, name string) {
	t.Helper()
	until(t, func() string {
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

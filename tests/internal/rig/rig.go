// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package rig has what the test packages have in common: a namespace of a real
// cluster with clients, this project's manifests in it, its controller, calls of
// its plugin, a proxy that fails, and pools as the controller would leave them.
//
// The servers themselves are testenv's.
package rig

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// UIDs of pods. GoneUID is one that the API server may have had; StaticUID and
// AnotherUID are of the kind that a kubelet gives to static pods.
const (
	GoneUID    = "7d0c9a3e-1111-4222-8333-444455556666"
	StaticUID  = "0123456789abcdef0123456789abcdef"
	AnotherUID = "fedcba9876543210fedcba9876543210"
)

// Cluster is a namespace of a server, with an administrator's clients.
type Cluster struct {
	Env  *testenv.Env
	NS   string
	Kube kubernetes.Interface
	IPAM clientv1alpha1.NvIpamV1alpha1Interface
}

// NewCluster makes a namespace.
func NewCluster(t testing.TB, env *testenv.Env) *Cluster {
	t.Helper()
	return &Cluster{Env: env, NS: env.Namespace(t), Kube: Kube(t, env.Config), IPAM: Client(t, env.Config)}
}

// Client returns a typed client for this project's API group.
func Client(t testing.TB, config *rest.Config) *clientv1alpha1.NvIpamV1alpha1Client {
	t.Helper()
	return must(clientv1alpha1.NewForConfig(config))(t)
}

// Kube returns a client for all that is Kubernetes' own.
func Kube(t testing.TB, config *rest.Config) *kubernetes.Clientset {
	t.Helper()
	return must(kubernetes.NewForConfig(config))(t)
}

// must returns the value, and ends the test where there is an error.
func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// Until waits until check returns "", for up to 90 s; else the test ends with what
// it returned last.
func Until(t testing.TB, check func() string) {
	t.Helper()
	deadline := time.Now().Add(90 * time.Second)
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

// Eventually is Until done returns true.
func Eventually(t testing.TB, what string, done func() bool) {
	t.Helper()
	Until(t, func() string {
		if done() {
			return ""
		}
		return "not within 90 s: " + what
	})
}

// Node makes a Node object.
func (c *Cluster) Node(t testing.TB, name string, labels map[string]string) *corev1.Node {
	t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	return must(c.Kube.CoreV1().Nodes().Create(t.Context(), n, metav1.CreateOptions{}))(t)
}

// RemoveNodes deletes all Node objects at the end of the test.
func (c *Cluster) RemoveNodes(t testing.TB) {
	t.Cleanup(func() {
		if err := c.Kube.CoreV1().Nodes().DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// Pod creates a pod on a node, "" for none, that no kubelet looks after.
func Pod(t testing.TB, as kubernetes.Interface, namespace, name, node string, edit ...func(*corev1.Pod)) v1alpha1.PodReference {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	for _, e := range edit {
		e(p)
	}
	p = must(as.CoreV1().Pods(namespace).Create(t.Context(), p, metav1.CreateOptions{}))(t)
	return v1alpha1.PodReference{Namespace: namespace, Name: name, UID: p.UID}
}

// Pool creates an IPPool, which a controller carves.
func (c *Cluster) Pool(t testing.TB, name string, spec v1alpha1.IPPoolSpec) {
	t.Helper()
	p := &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}
	must(c.IPAM.IPPools(c.NS).Create(t.Context(), p, metav1.CreateOptions{}))(t)
}

// GetPool reads an IPPool.
func (c *Cluster) GetPool(t testing.TB, name string) *v1alpha1.IPPool {
	t.Helper()
	return must(c.IPAM.IPPools(c.NS).Get(t.Context(), name, metav1.GetOptions{}))(t)
}

// Blocks are an IPPool's, as "node first last".
func Blocks(p *v1alpha1.IPPool) (out []string) {
	for _, a := range p.Status.Allocations {
		out = append(out, a.NodeName+" "+a.StartIP+" "+a.EndIP)
	}
	return out
}

// Allocations are all of the namespace, in the order of their names.
func (c *Cluster) Allocations(t testing.TB) []v1alpha1.IPAllocation {
	t.Helper()
	return must(c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{}))(t).Items
}

// Held are the addresses of all allocations of the namespace.
func (c *Cluster) Held(t testing.TB) (out []string) {
	t.Helper()
	for _, a := range c.Allocations(t) {
		out = append(out, a.Spec.Address)
	}
	return out
}

// Claim stores an allocation as somebody.
func (c *Cluster) Claim(t testing.TB, as clientv1alpha1.NvIpamV1alpha1Interface, a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	t.Helper()
	return must(as.IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{}))(t)
}

// Events are all of the namespace, as "Warning IPPool/p Reason: message".
func (c *Cluster) Events(t testing.TB) (out []string) {
	t.Helper()
	for _, e := range must(c.Kube.CoreV1().Events(c.NS).List(t.Context(), metav1.ListOptions{}))(t).Items {
		out = append(out, fmt.Sprintf("%s %s/%s %s: %s", e.Type, e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return out
}

// WantEvent waits for an event that has all the parts.
func (c *Cluster) WantEvent(t testing.TB, parts ...string) {
	t.Helper()
	Until(t, func() string {
		all := c.Events(t)
		for _, e := range all {
			if containsAll(e, parts) {
				return ""
			}
		}
		return fmt.Sprintf("no event with %q in %q", parts, all)
	})
}

func containsAll(s string, parts []string) bool {
	for _, p := range parts {
		if !strings.Contains(s, p) {
			return false
		}
	}
	return true
}

// Token is one of a service account of the namespace, bound to an object where that
// is not nil.
func (c *Cluster) Token(t testing.TB, account string, bound *authenticationv1.BoundObjectReference) (string, error) {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	answer, err := c.Kube.CoreV1().ServiceAccounts(c.NS).CreateToken(t.Context(), account, request, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// As is the configuration of one of the namespace's service accounts.
func (c *Cluster) As(t testing.TB, account string) *rest.Config {
	t.Helper()
	return WithToken(c.Env, must(c.Token(t, account, nil))(t))
}

// WithToken is a client configuration that has a token and no certificate.
func WithToken(env *testenv.Env, token string) *rest.Config {
	config := rest.AnonymousClientConfig(env.Config)
	config.BearerToken, config.QPS = token, -1
	return config
}

// ControllerClients are what a controller needs, over client; nil makes one.
func ControllerClients(t testing.TB, config *rest.Config, client *http.Client) controller.Clients {
	t.Helper()
	if client == nil {
		client = must(rest.HTTPClientFor(config))(t)
	}
	return must(controller.ClientsFor(config, client))(t)
}

// RunController runs a controller for the namespace until stop, or the end of the
// test, which fails where the controller does.
func (c *Cluster) RunController(ctx context.Context, t testing.TB, clients controller.Clients, opts controller.Options) (stop func()) {
	opts.Namespace = c.NS
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- controller.New(clients, opts).Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

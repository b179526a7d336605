// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// pluginTokens asks for the plugin's tokens as the installer on a node would, and
// claims addresses with the one that is issued.
func pluginTokens(t *testing.T, env *testenv.Env, o overlay) {
	nodes := twoNodes(t, env)
	ours := kube(t, installerOn(t, env, o.namespace, "node-a"))
	seconds := func(n int64) *int64 { return &n }
	// Somebody gives the installer more than its role.
	kubectl(t, env, "create", "rolebinding", "more", "-n", o.namespace, "--clusterrole=admin", "--serviceaccount="+o.namespace+":"+installer)
	kubectl(t, env, "create", "clusterrole", "any-token", "--verb=create", "--resource=serviceaccounts/token")
	kubectl(t, env, "create", "rolebinding", "any-token", "-n", o.namespace, "--clusterrole=any-token", "--serviceaccount="+o.namespace+":"+installer)
	kubectl(t, env, "create", "serviceaccount", "other", "-n", o.namespace)
	homeless := kube(t, as(t, env, o.namespace, installer, nil)) // its token names no node
	bound := func(node string) *authenticationv1.BoundObjectReference {
		return &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: nodes[node]}
	}
	for _, tc := range []struct {
		name    string
		client  kubernetes.Interface
		account string
		spec    authenticationv1.TokenRequestSpec
		refused string
	}{
		{"its own node", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a")}, ""},
		{"as the installer asks by default", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a"), ExpirationSeconds: seconds(86400)}, ""},
		{"another node", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-b")}, "must be bound to Node node-a"},
		{"not bound", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{}, "must be bound to Node node-a"},
		{"bound to its pod", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{
			BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: "some-pod"}}, "must be bound to Node node-a"},
		{"no pod on a node", homeless, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a")}, "only to a pod on a node"},
		{"a hundred years", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a"), ExpirationSeconds: seconds(100 * 365 * 24 * 3600)}, "for 86400 seconds at most"},
		{"a second too long", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a"), ExpirationSeconds: seconds(86401)}, "for 86400 seconds at most"},
		{"another audience", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a"), Audiences: []string{"vault"}}, "for the API server only"},
		{"another audience beside the API server", ours, "crd-ipam-plugin", authenticationv1.TokenRequestSpec{
			BoundObjectRef: bound("node-a"), Audiences: []string{"https://kubernetes.default.svc.cluster.local", "vault"}}, "for the API server only"},
		{"another account", ours, "other", authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a")}, "of service account crd-ipam-plugin only, not of other"},
		{"the controller's account", ours, account, authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a")}, "of service account crd-ipam-plugin only"},
		{"the installer's own account", ours, installer, authenticationv1.TokenRequestSpec{BoundObjectRef: bound("node-a")}, "of service account crd-ipam-plugin only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := &authenticationv1.TokenRequest{Spec: tc.spec}
			req, err := tc.client.CoreV1().ServiceAccounts(o.namespace).CreateToken(t.Context(), tc.account, req, metav1.CreateOptions{})
			if tc.refused != "" {
				if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.refused) {
					t.Fatalf("got %v, want to be refused with %q", err, tc.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			claims(t, env, o.namespace, rig.WithToken(env, req.Status.Token))
		})
	}
}

// twoNodes makes sure of node-a and node-b, and returns their UIDs.
func twoNodes(t *testing.T, env *testenv.Env) map[string]types.UID {
	t.Helper()
	uids := map[string]types.UID{}
	admin := kube(t, env.Config)
	for _, name := range []string{"node-a", "node-b"} {
		_, err := admin.CoreV1().Nodes().Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
		node, err := admin.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		uids[name] = node.UID
	}
	return uids
}

// installerClaims claims as an installer that migrates would: for its own node,
// and in vain for another one, or without a node in its token.
func installerClaims(t *testing.T, env *testenv.Env, o overlay) {
	twoNodes(t, env)
	onA := rig.Client(t, installerOn(t, env, o.namespace, "node-a"))
	homeless := rig.Client(t, as(t, env, o.namespace, installer, nil))
	if err := claim(t, onA, o.namespace, "192.168.8.2", "node-a"); err != nil {
		t.Errorf("own node: %v", err)
	}
	if err := onA.IPAllocations(o.namespace).Delete(t.Context(), "claimed.192.168.8.2", metav1.DeleteOptions{}); err != nil {
		t.Errorf("own node, release: %v", err)
	}
	if err := claim(t, rig.Client(t, env.Config), o.namespace, "192.168.8.5", "node-b"); err != nil {
		t.Fatal(err)
	}
	if err := onA.IPAllocations(o.namespace).Delete(t.Context(), "claimed.192.168.8.5", metav1.DeleteOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another node, release: %v", err)
	}
	if err := claim(t, onA, o.namespace, "192.168.8.3", "node-b"); !apierrors.IsForbidden(err) {
		t.Errorf("another node: %v", err)
	}
	if err := claim(t, homeless, o.namespace, "192.168.8.4", "node-a"); !apierrors.IsForbidden(err) {
		t.Errorf("no node: %v", err)
	}
}

func claim(t *testing.T, client clientv1alpha1.NvIpamV1alpha1Interface, namespace, address, node string) error {
	t.Helper()
	_, err := client.IPAllocations(namespace).Create(t.Context(), &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: "claimed." + address, Labels: map[string]string{
			v1alpha1.LabelPool: "claimed", v1alpha1.LabelNode: node, v1alpha1.LabelContainer: v1alpha1.ContainerLabel("c"),
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "claimed"}, Address: address, NodeName: node,
			PodRef: v1alpha1.PodReference{Namespace: "default", Name: "p"}, ContainerID: "c", InterfaceName: "net1",
		},
	}, metav1.CreateOptions{})
	return err
}

// installerOn is the installer's identity in its pod on a node.
func installerOn(t *testing.T, env *testenv.Env, namespace, node string) *rest.Config {
	t.Helper()
	pod, err := kube(t, env.Config).CoreV1().Pods(namespace).Create(t.Context(), &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "installer-"},
		Spec: corev1.PodSpec{
			ServiceAccountName: installer, NodeName: node,
			Containers: []corev1.Container{{Name: "c", Image: "i"}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return as(t, env, namespace, installer, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID})
}

// claims uses the token of node-a as the plugin would, and as it may not.
func claims(t *testing.T, env *testenv.Env, namespace string, config *rest.Config) {
	client := rig.Client(t, config)
	if err := claim(t, client, namespace, "192.168.9.2", "node-a"); err != nil {
		t.Errorf("own claim: %v", err)
	}
	if err := client.IPAllocations(namespace).Delete(t.Context(), "claimed.192.168.9.2", metav1.DeleteOptions{}); err != nil {
		t.Errorf("own release: %v", err)
	}
	if err := claim(t, client, namespace, "192.168.9.3", "node-b"); !apierrors.IsForbidden(err) {
		t.Errorf("claim for another node: %v", err)
	}
	if _, err := kube(t, config).CoreV1().Pods("").List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing pods: %v", err)
	}
	// For the labels in a poolName.
	if _, err := kube(t, config).CoreV1().Nodes().Get(t.Context(), "node-a", metav1.GetOptions{}); err != nil {
		t.Errorf("reading its node: %v", err)
	}
	if _, err := kube(t, config).CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("listing nodes: %v", err)
	}
	// The kubelet's certificate is no longer good for that here.
	node, err := env.UserConfig("system:node:node-a", testenv.NodesGroup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rig.Client(t, node).IPAllocations(namespace).List(t.Context(), metav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("a kubelet lists allocations: %v", err)
	}
}

func kube(t *testing.T, config *rest.Config) kubernetes.Interface {
	t.Helper()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const (
	account   = "nv-ipam-controller"
	installer = "nv-ipam-node"

	poolManifest = `
apiVersion: v1
kind: Node
metadata:
  name: node-a
---
apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPPool
metadata:
  name: pool1
  namespace: NAMESPACE
spec:
  subnet: 192.168.0.0/24
  perNodeBlockSize: 10
  gateway: 192.168.0.1
---
apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: CIDRPool
metadata:
  name: pool2
  namespace: NAMESPACE
spec:
  cidr: 10.0.0.0/16
  perNodeNetworkPrefix: 24
`
	// Of a pod that does not exist.
	leakManifest = `
apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPAllocation
metadata:
  name: pool1.192.168.0.2
  namespace: NAMESPACE
  labels:
    nv-ipam.nvidia.com/pool: pool1
spec:
  poolRef: {kind: IPPool, name: pool1}
  address: 192.168.0.2
  nodeName: node-a
  podRef: {namespace: default, name: gone, uid: 7d0c9a3e-1111-2222-3333-444455556666}
  containerID: c0ffee
  interfaceName: net1
`
)

// controllerWorks runs the controller as its service account, with the arguments
// of the overlay's Deployment, through all that it has rights for.
func controllerWorks(t *testing.T, env *testenv.Env, o overlay) {
	probes := rig.FreePort(t)
	args := append(controllerArgs(t, o), "--reclaim-grace=1s", "--reclaim-grace-ready-node=1s", "--health-probe-bind-address="+probes, "--metrics-bind-address=0",
		"--kubeconfig="+writeKubeconfig(t, as(t, env, o.namespace, account, nil)))
	out := runCommand(t, "ipam-controller", args...)

	in := func(manifest string) string { return strings.ReplaceAll(manifest, "NAMESPACE", o.namespace) }
	apply(t, env, in(poolManifest))
	client := rig.Client(t, env.Config)
	rig.Until(t, func() string {
		p1, err := client.IPPools(o.namespace).Get(t.Context(), "pool1", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		p2, err := client.CIDRPools(o.namespace).Get(t.Context(), "pool2", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if len(p1.Status.Allocations) != 1 || len(p2.Status.Allocations) != 1 {
			return fmt.Sprintf("blocks: %+v, %+v", p1.Status, p2.Status)
		}
		return ""
	})

	apply(t, env, in(leakManifest))
	rig.Until(t, func() string {
		if held := rig.Addresses(t, client, o.namespace); len(held) > 0 {
			return fmt.Sprintf("not reclaimed: %v", held)
		}
		return ""
	})
	rig.Until(t, func() string {
		events := kubectl(t, env, "get", "events", "-n", o.namespace)
		if !strings.Contains(events, "reclaimed 192.168.0.2") {
			return "no event on the reclaim:\n" + events
		}
		return ""
	})
	for _, path := range []string{"/healthz", "/readyz"} {
		resp, err := http.Get("http://" + probes + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, resp.Status)
		}
	}
	if lease := kubectl(t, env, "get", "lease", "-n", o.namespace, "-o", "name"); !strings.Contains(lease, "dd1643cf.nvidia.com") {
		t.Errorf("leases: %q", lease)
	}
	if strings.Contains(out.String(), "orbidden") {
		t.Error("the controller was refused something")
	}
}

// controllerArgs are those of the overlay's Deployment; network-operator has its
// own, which are these.
func controllerArgs(t *testing.T, o overlay) []string {
	t.Helper()
	for _, c := range containers(t, o) {
		if c.Command[0] == "/ipam-controller" {
			return expand(c, o)
		}
	}
	if o.name != "network-operator" {
		t.Fatal("no controller")
	}
	return []string{"--leader-elect=true", "--leader-elect-namespace=" + o.namespace, "--ippools-namespace=" + o.namespace, "--webhook=true"}
}

// What the accounts may do, of everything that could be of interest, in the pools'
// namespace; in another one, or for the whole cluster, what is marked with a *.
// Under network-operator they have the operator's generous rights, and from us
// only those on pods and allocations and the installer's events.
var (
	controllerMay = []string{
		"nodes get*", "nodes list*", "nodes watch*",
		"ippools get", "ippools list", "ippools watch", "ippools/status patch",
		"cidrpools get", "cidrpools list", "cidrpools watch", "cidrpools/status patch",
		"events create", "events patch", "events list*", "events watch*", "leases create",
		"pods get*", "pods list*", "pods watch*",
		"ipallocations get", "ipallocations list", "ipallocations watch", "ipallocations create", "ipallocations patch", "ipallocations delete",
		"ipreservations get", "ipreservations list", "ipreservations watch", "ipreservations/status patch",
		"statefulsets get*", "ipamclaims get*", "ipamclaims/status patch*",
	}
	installerMay = []string{
		"ippools get", "cidrpools get", "events create",
		"ipallocations get", "ipallocations list", "ipallocations create", "ipallocations patch", "ipallocations delete",
	}
	operatorsControllerMay = []string{
		"nodes get*", "nodes list*", "nodes watch*", "nodes update*", "nodes patch*",
		"ippools get*", "ippools list*", "ippools watch*", "ippools create*",
		"ippools/status get*", "ippools/status update*", "ippools/status patch*",
		"cidrpools get*", "cidrpools list*", "cidrpools watch*", "cidrpools create*",
		"cidrpools/status get*", "cidrpools/status update*", "cidrpools/status patch*",
		"events create*", "events patch*", "events list*", "events watch*",
		"leases get*", "leases list*", "leases watch*", "leases create*", "leases update*", "leases patch*", "leases delete*",
		"configmaps get*", "configmaps list*", "configmaps watch*", "configmaps delete*",
		"pods get*", "pods list*", "pods watch*",
		"ipallocations get", "ipallocations list", "ipallocations watch", "ipallocations create", "ipallocations patch", "ipallocations delete",
		"ipreservations get", "ipreservations list", "ipreservations watch", "ipreservations/status patch",
		"statefulsets get*", "ipamclaims get*", "ipamclaims/status patch*",
	}
	operatorsInstallerMay = []string{
		"pods get*", "pods list*", "pods watch*", "events create",
		"ippools get*", "ippools list*", "ippools watch*", "cidrpools get*", "cidrpools list*", "cidrpools watch*",
		"ipallocations get", "ipallocations list", "ipallocations create", "ipallocations patch", "ipallocations delete",
	}
)

func exactRights(t *testing.T, env *testenv.Env, o overlay) {
	want := map[string][]string{account: controllerMay, installer: installerMay}
	switch o.name {
	case "network-operator":
		want = map[string][]string{account: operatorsControllerMay, installer: operatorsInstallerMay}
	case "serviceaccount":
		// The plugin's rights; and a token of the plugin's account, by its name: pluginTokens
		// asks for that.
		want["crd-ipam-plugin"] = []string{
			"ippools get", "cidrpools get", "ipallocations get", "ipallocations list",
			"ipallocations create", "ipallocations patch", "ipallocations delete", "nodes get*",
		}
		want[installer] = append([]string{"nodes get*"}, installerMay...)
	}
	for account, want := range want {
		got := rights(t, env, o.namespace, account)
		slices.Sort(got)
		want = slices.Sorted(slices.Values(want))
		if !slices.Equal(got, want) {
			t.Errorf("%s may\n%s\nwant\n%s", account, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

// rights asks the server what a service account may do.
func rights(t *testing.T, env *testenv.Env, namespace, account string) (may []string) {
	t.Helper()
	client, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	resources := []authorizationv1.ResourceAttributes{
		{Resource: "nodes"}, {Resource: "nodes", Subresource: "status"}, {Resource: "nodes", Subresource: "proxy"},
		{Resource: "pods"}, {Resource: "pods", Subresource: "status"}, {Resource: "pods", Subresource: "exec"},
		{Resource: "secrets"}, {Resource: "configmaps"}, {Resource: "events"}, {Resource: "namespaces"},
		{Resource: "serviceaccounts"}, {Resource: "serviceaccounts", Subresource: "token"},
		{Group: "nv-ipam.nvidia.com", Resource: "ippools"}, {Group: "nv-ipam.nvidia.com", Resource: "ippools", Subresource: "status"},
		{Group: "nv-ipam.nvidia.com", Resource: "cidrpools"}, {Group: "nv-ipam.nvidia.com", Resource: "cidrpools", Subresource: "status"},
		{Group: "nv-ipam.nvidia.com", Resource: "ipallocations"},
		{Group: "nv-ipam.nvidia.com", Resource: "ipreservations"}, {Group: "nv-ipam.nvidia.com", Resource: "ipreservations", Subresource: "status"},
		{Group: "apps", Resource: "statefulsets"},
		{Group: "k8s.cni.cncf.io", Resource: "ipamclaims"}, {Group: "k8s.cni.cncf.io", Resource: "ipamclaims", Subresource: "status"},
		{Group: "coordination.k8s.io", Resource: "leases"},
		{Group: "rbac.authorization.k8s.io", Resource: "clusterroles"}, {Group: "rbac.authorization.k8s.io", Resource: "rolebindings"},
		{Group: "admissionregistration.k8s.io", Resource: "validatingadmissionpolicies"},
		{Group: "apiextensions.k8s.io", Resource: "customresourcedefinitions"},
	}
	user := "system:serviceaccount:" + namespace + ":" + account
	for _, a := range resources {
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"} {
			a.Verb = verb
			what := strings.TrimSuffix(a.Resource+"/"+a.Subresource, "/") + " " + verb
			if ask(t, client, user, a, namespace) {
				if ask(t, client, user, a, "default") {
					what += "*"
				}
				may = append(may, what)
			}
		}
	}
	return may
}

func ask(t *testing.T, client kubernetes.Interface, user string, a authorizationv1.ResourceAttributes, namespace string) bool {
	t.Helper()
	a.Namespace = namespace
	review, err := client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User: user, Groups: []string{"system:serviceaccounts", "system:authenticated"}, ResourceAttributes: &a,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

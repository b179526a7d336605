// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// Each overlay, on a server that has never seen it: applied, by client and by
// server, applied again without a change, what is in it works, and it leaves
// without a trace.
func TestOverlays(t *testing.T) {
	for n, o := range overlays {
		t.Run(o.name, func(t *testing.T) {
			t.Parallel() // it waits for kubectl and the server most of the time
			env := servers.Get(t)
			if env.Minor < o.from || env.Minor > o.to {
				t.Skipf("not for 1.%d", env.Minor)
			}
			if o.name == "network-operator" {
				installNetworkOperator(t, env, o.namespace)
			}
			for _, part := range []overlay{o.record(), o} {
				for i, how := range [][]string{nil, {"--server-side"}} {
					if testing.Short() && i != n%2 { // each part in one of the two ways
						continue
					}
					t.Run(part.name+" twice"+strings.Join(how, ""), func(t *testing.T) { applyTwice(t, env, part, how) })
					t.Run(part.name+" by another manager", func(t *testing.T) { applyByAnother(t, env, part) })
					t.Run(part.name+" leaves no trace", func(t *testing.T) { removeAll(t, env, part) })
				}
				kubectl(t, env, "apply", "-k", part.dir(t))
			}
			kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
			t.Run("controller", func(t *testing.T) { controllerWorks(t, env, o) })
			t.Run("rights", func(t *testing.T) { exactRights(t, env, o) })
			t.Run("pool elsewhere", func(t *testing.T) { warnsOfPoolElsewhere(t, env, o) })
			t.Run("installer", func(t *testing.T) { installerClaims(t, env, o) })
			if o.name == "openshift" {
				t.Run("constraints", func(t *testing.T) { usesConstraints(t, env, o) })
			}
			if o.name == "serviceaccount" {
				t.Run("queues", func(t *testing.T) { pluginQueues(t, env, o) })
				t.Run("token", func(t *testing.T) { pluginTokens(t, env, o) })
			}
		})
	}
}

func applyTwice(t *testing.T, env *testenv.Env, o overlay, how []string) {
	args := append([]string{"apply", "-k", o.dir(t)}, how...)
	t.Logf("first:\n%s", kubectl(t, env, args...))
	before := versions(t, env, o)
	again := strings.TrimSpace(kubectl(t, env, args...))
	for _, line := range strings.Split(again, "\n") {
		// kubectl says of a server-side apply only that it has happened; and it sends
		// a disruption budget's selector each time, because that is replaced and
		// never merged, and calls it configured though the server writes nothing.
		budget := line == "poddisruptionbudget.policy/nv-ipam-controller configured"
		if how == nil && !budget && !strings.HasSuffix(line, " unchanged") {
			t.Errorf("second apply: %s", line)
		}
	}
	if after := versions(t, env, o); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("second apply has written:\nbefore %v\nafter  %v", before, after)
	}
	if diff, err := env.Kubectl(t.Context(), append([]string{"diff", "-k", o.dir(t)}, how...)...); err != nil || diff != "" {
		t.Errorf("kubectl diff: %v\n%s", err, diff)
	}
}

// versions are the resource versions of all that an overlay has, as kubectl lists
// them. A CRD's status is the server's own to write, so it is compared by
// generation.
func versions(t *testing.T, env *testenv.Env, o overlay) []string {
	t.Helper()
	var got unstructured.Unstructured
	if err := yaml.Unmarshal([]byte(kubectl(t, env, "get", "-k", o.dir(t), "-o", "yaml")), &got); err != nil {
		t.Fatal(err)
	}
	items := []unstructured.Unstructured{got} // kubectl makes no list of one object
	if got.IsList() {
		list, err := got.ToList()
		if err != nil {
			t.Fatal(err)
		}
		items = list.Items
	}
	var out []string
	for _, u := range items {
		version := u.GetResourceVersion()
		if u.GetKind() == "CustomResourceDefinition" {
			version = fmt.Sprint("generation ", u.GetGeneration())
		}
		out = append(out, u.GetKind()+"/"+u.GetName()+" "+version)
	}
	if len(out) != len(render(t, o.dir(t))) {
		t.Fatalf("%d objects are there, %d in the overlay", len(out), len(render(t, o.dir(t))))
	}
	return out
}

// applyByAnother applies an overlay that is there as somebody else would, without a
// conflict about a value, and by the client again.
func applyByAnother(t *testing.T, env *testenv.Env, o overlay) {
	for _, how := range [][]string{{"--server-side", "--field-manager=argocd-controller"}, {"--server-side", "--field-manager=kustomize-controller"}, nil, {"--server-side"}} {
		if out, err := env.Kubectl(t.Context(), append([]string{"apply", "-k", o.dir(t)}, how...)...); err != nil {
			t.Errorf("apply %v: %v\n%s", how, err, out)
		}
	}
}

// warnsOfPoolElsewhere checks that whoever writes a pool where no controller looks is told
// so, and nobody else.
func warnsOfPoolElsewhere(t *testing.T, env *testenv.Env, o overlay) {
	path := filepath.Join(t.TempDir(), "pool.yaml")
	create := func(namespace string) error {
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(poolManifest, "NAMESPACE", namespace)), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := env.Kubectl(t.Context(), "apply", "--dry-run=server", "--warnings-as-errors", "-f", path)
		return err
	}
	rig.Until(t, func() string { // a policy takes effect some time after it was applied
		const words = "no nv-ipam-controller runs in namespace default: the pool has no effect"
		if err := create("default"); err == nil || !strings.Contains(err.Error(), words) {
			return fmt.Sprintf("a pool elsewhere: %v, want %q", err, words)
		}
		return ""
	})
	if err := create(o.namespace); err != nil {
		t.Errorf("a pool in the controller's namespace: %v", err)
	}
}

func removeAll(t *testing.T, env *testenv.Env, o overlay) {
	// The server sets up a CRD's storage at the first request for one of its objects.
	// Where that is the server's own, to delete them with the CRD, it fails ("storage
	// is (re)initializing"), and now and then it is tried again only after minutes.
	crds := strings.Fields(kubectl(t, env, "get", "crd", "-o", "jsonpath={.items[*].spec.names.plural}"))
	for _, plural := range crds {
		rig.Until(t, func() string {
			if _, err := env.Kubectl(t.Context(), "get", "--raw", "/apis/nv-ipam.nvidia.com/v1alpha1/"+plural+"?resourceVersion=0"); err != nil {
				return err.Error()
			}
			return ""
		})
	}
	kubectl(t, env, "delete", "-k", o.dir(t), "--wait=false")
	for _, u := range render(t, o.dir(t)) {
		if u.GetKind() == "Namespace" {
			finalize(t, env, u.GetName())
		}
	}
	kubectl(t, env, "delete", "-k", o.dir(t), "--ignore-not-found") // waits
	if left := kubectl(t, env, "get", "-k", o.dir(t), "--ignore-not-found"); left != "" {
		t.Errorf("left after kubectl delete -k:\n%s", left)
	}
}

// usesConstraints checks whose pods OpenShift's security context constraints admit: the
// installer's by the privileged ones, in its namespace, and nobody else's by any.
func usesConstraints(t *testing.T, env *testenv.Env, o overlay) {
	client := rig.Kube(t, env.Config)
	for _, name := range []string{"privileged", "anyuid"} {
		for _, namespace := range []string{o.namespace, "default"} {
			for _, who := range []string{installer, account} {
				use := authorizationv1.ResourceAttributes{Verb: "use", Group: "security.openshift.io", Resource: "securitycontextconstraints", Name: name}
				want := name == "privileged" && namespace == o.namespace && who == installer
				if got := ask(t, client, "system:serviceaccount:"+o.namespace+":"+who, use, namespace); got != want {
					t.Errorf("%s may use %s in %s: %v", who, name, namespace, got)
				}
			}
		}
	}
}

// finalize ends a namespace that was deleted, which takes a controller that is not here.
func finalize(t *testing.T, env *testenv.Env, name string) {
	namespaces := rig.Kube(t, env.Config).CoreV1().Namespaces()
	ns, err := namespaces.Get(t.Context(), name, metav1.GetOptions{})
	if err == nil {
		ns.Spec.Finalizers = nil
		_, err = namespaces.Finalize(t.Context(), ns, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What network-operator's own deployment has, as far as it concerns us: the
// accounts, their rights, and CRDs of the pools that know no more than nv-ipam's.
func installNetworkOperator(t *testing.T, env *testenv.Env, namespace string) {
	t.Helper()
	manifest, err := os.ReadFile(filepath.Join("testdata", "network-operator.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, env, "create", "namespace", namespace)
	apply(t, env, strings.ReplaceAll(string(manifest), "NAMESPACE", namespace))
	for _, plural := range []string{"ippools", "cidrpools"} {
		data, err := os.ReadFile(filepath.Join(rig.Root(t), "manifests", "base", "crds", "nv-ipam.nvidia.com_"+plural+".yaml"))
		if err != nil {
			t.Fatal(err)
		}
		var crd unstructured.Unstructured
		if err := yaml.Unmarshal(data, &crd.Object); err != nil {
			t.Fatal(err)
		}
		versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
		status := []string{"schema", "openAPIV3Schema", "properties", "status", "properties"}
		fields, found, _ := unstructured.NestedMap(versions[0].(map[string]any), status...)
		if !found {
			t.Fatalf("the CRD of %s has no status", plural)
		}
		fields = map[string]any{"allocations": fields["allocations"]}
		if err := unstructured.SetNestedMap(versions[0].(map[string]any), fields, status...); err != nil {
			t.Fatal(err)
		}
		if err := unstructured.SetNestedSlice(crd.Object, versions, "spec", "versions"); err != nil {
			t.Fatal(err)
		}
		data, err = yaml.Marshal(crd.Object)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, env, string(data))
	}
	kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
}

// With the component, what a node asks of this API group is in a queue of its own,
// its lists are in another one, and what else it asks is in neither.
func TestPriorityAndFairness(t *testing.T) {
	t.Parallel()
	env := servers.Get(t)
	dir := t.TempDir()
	rel, err := filepath.Rel(dir, filepath.Join(rig.Root(t), "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	kustomization := "resources: [" + rel + "/overlays/k8s-1.30, " + rel + "/overlays/crds-k8s-1.30]\ncomponents: [" + rel + "/components/priority-and-fairness]\n"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, env, "apply", "-k", dir)
	for _, line := range strings.Split(kubectl(t, env, "apply", "-k", dir), "\n") {
		if strings.Contains(line, "flowcontrol") && !strings.HasSuffix(line, " unchanged") {
			t.Errorf("second apply: %s", line)
		}
	}
	node, err := env.UserConfig("system:node:node-a", testenv.NodesGroup)
	if err != nil {
		t.Fatal(err)
	}
	queues(t, env, node, "kube-system")
}

// queues checks in which queues the server puts what a plugin asks for, whatever it
// answers.
func queues(t *testing.T, env *testenv.Env, plugin *rest.Config, namespace string) {
	t.Helper()
	client, err := rest.HTTPClientFor(plugin)
	if err != nil {
		t.Fatal(err)
	}
	const schema, level = "Flowschema", "Prioritylevel"
	uid := func(kind, name string) string {
		return kubectl(t, env, "get", map[string]string{schema: "flowschema", level: "prioritylevelconfiguration"}[kind], name, "-o", "jsonpath={.metadata.uid}")
	}
	in := func(method, path, kind string) string {
		req, err := http.NewRequestWithContext(t.Context(), method, plugin.Host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.Header.Get("X-Kubernetes-Pf-" + kind + "-Uid")
	}
	allocations := "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/" + namespace + "/ipallocations"
	for _, request := range []struct{ method, path, name string }{
		{http.MethodGet, allocations, "crd-ipam-lists"},
		{http.MethodGet, allocations + "?limit=500&labelSelector=a%3Db", "crd-ipam-lists"},
		{http.MethodPost, allocations, "crd-ipam"},
		{http.MethodGet, allocations + "/p.10.0.0.1", "crd-ipam"},
		{http.MethodDelete, allocations + "/p.10.0.0.1", "crd-ipam"},
		{http.MethodGet, strings.TrimSuffix(allocations, "ipallocations") + "ippools/p", "crd-ipam"},
	} {
		for _, kind := range []string{schema, level} {
			want := uid(kind, request.name)
			rig.Until(t, func() string {
				if got := in(request.method, request.path, kind); got != want {
					return fmt.Sprintf("%s %s: %s %s, want %s", request.method, request.path, kind, got, want)
				}
				return ""
			})
		}
	}
	for _, path := range []string{"/api/v1/nodes/node-a", "/api/v1/namespaces/" + namespace + "/pods", "/api/v1/secrets"} {
		if got := in(http.MethodGet, path, schema); got == uid(schema, "crd-ipam") || got == uid(schema, "crd-ipam-lists") {
			t.Errorf("%s is in the plugin's queue", path)
		}
	}
}

// Where the plugin is a service account, its requests are in queues of their own, and
// no other account's are.
func pluginQueues(t *testing.T, env *testenv.Env, o overlay) {
	queues(t, env, as(t, env, o.namespace, "crd-ipam-plugin", nil), o.namespace)
	for _, other := range []string{account, installer} {
		config := as(t, env, o.namespace, other, nil)
		client, err := rest.HTTPClientFor(config)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Get(config.Host + "/apis/nv-ipam.nvidia.com/v1alpha1/namespaces/" + o.namespace + "/ipallocations")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got := resp.Header.Get("X-Kubernetes-Pf-Flowschema-Uid")
		for _, name := range []string{"crd-ipam", "crd-ipam-lists"} {
			if got == kubectl(t, env, "get", "flowschema", name, "-o", "jsonpath={.metadata.uid}") {
				t.Errorf("%s is in flow schema %s", other, name)
			}
		}
	}
}

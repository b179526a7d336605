// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// exampleAdds are the addresses that a container gets on node-a, by example; args are
// what multus passes for the pod's annotation.
var exampleAdds = map[string]struct {
	args string
	want []string
	pod  string // that the example is about
}{
	"rail.yaml":            {want: []string{"10.10.1.1/24"}},
	"shared-subnet.yaml":   {want: []string{"in 10.20.0.0/22"}},
	"dual-stack.yaml":      {want: []string{"10.30.0.2/16", "fd00:30::2/64"}},
	"cidrpool.yaml":        {want: []string{"10.40.200.2/24"}},
	"static-address.yaml":  {args: ";IP=10.50.0.7", want: []string{"10.50.0.7/24"}},
	"racks.yaml":           {want: []string{"10.60.1.1/24"}},
	"overflow.yaml":        {want: []string{"10.70.0.1/24"}},
	"sticky.yaml":          {want: []string{"10.81.0.1/24"}},
	"virtual-machine.yaml": {want: []string{"in 10.84.0.0/16"}, pod: "vm1-launcher"},
	"reservation.yaml":     {args: ";IP=10.80.0.7", want: []string{"10.80.0.7/24"}, pod: "database"},
}

// Each example is applied to a server with the installation's CRDs and policies, its pools
// become ready, and its network gives what it says.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(rig.Root(t), "manifests", "examples", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(exampleAdds) {
		t.Fatalf("%d examples, and %d are tested", len(files), len(exampleAdds))
	}
	readme := string(readFile(t, filepath.Join(rig.Root(t), "manifests", "examples", "README.md")))
	env := servers.Get(t)
	o := overlays[slices.IndexFunc(overlays, func(o overlay) bool { return o.from <= env.Minor && o.namespace == "kube-system" })]
	kubectl(t, env, "apply", "-k", o.record().dir(t))
	kubectl(t, env, "apply", "-f", filepath.Join(rig.Root(t), "tests/whereabouts/testdata/network-attachment-definitions.yaml"))
	kubectl(t, env, "wait", "--for=condition=Established", "crd", "--all")
	kubectl(t, env, "apply", "-k", o.dir(t))
	c := &rig.Cluster{Env: env, NS: o.namespace, Kube: rig.Kube(t, env.Config), IPAM: rig.Client(t, env.Config)}
	rig.InstallIPAMClaims(t, c.Kube.CoreV1().RESTClient(), rig.OwnerPodIsAnObject)
	c.Node(t, "node-a", map[string]string{"topology.kubernetes.io/rack": "r1"})
	c.Node(t, "node-b", map[string]string{"topology.kubernetes.io/rack": "r2"})
	c.RunController(t.Context(), t, rig.ControllerClients(t, env.Config, nil), controller.Options{})

	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(readme, "| ["+name+"]("+name+") |") {
				t.Errorf("manifests/examples/README.md does not have it")
			}
			kubectl(t, env, "apply", "--validate=strict", "-f", file)
			for _, kind := range []string{"ippools", "cidrpools", "ipreservations"} {
				if kubectl(t, env, "-n", c.NS, "get", kind, "-o", "name") != "" {
					kubectl(t, env, "-n", c.NS, "wait", "--for=condition=Ready", "--timeout=60s", kind, "--all")
				}
			}
			pod := v1alpha1.PodReference{Name: exampleAdds[name].pod}
			if pod.Name == "" {
				pod = rig.Pod(t, c.Kube, "default", "of-"+strings.TrimSuffix(name, ".yaml"), "node-a")
			}
			got := exampleAdd(t, env, c, file, pod.Name, exampleAdds[name].args)
			for i, want := range exampleAdds[name].want {
				_, subnet, within := strings.Cut(want, "in ")
				_, length, _ := strings.Cut(subnet, "/")
				if i >= len(got) || !within && got[i] != want || within && !strings.HasSuffix(got[i], "/"+length) {
					t.Errorf("the container has %q, want %q", got, exampleAdds[name].want)
				}
			}
		})
	}
}

// exampleAdd calls the plugin as the example's network says.
func exampleAdd(t *testing.T, env *testenv.Env, c *rig.Cluster, file, pod, args string) []string {
	t.Helper()
	networks := kubectl(t, env, "get", "-f", file, "-o", `jsonpath={range .items[?(@.kind=="NetworkAttachmentDefinition")]}{.spec.config}{end}`)
	var conf map[string]any
	if err := json.Unmarshal([]byte(networks), &conf); err != nil {
		t.Fatalf("%q: %v", networks, err)
	}
	dir := t.TempDir()
	settings, err := json.Marshal(map[string]any{"kubeconfig": env.Kubeconfig, "poolsNamespace": c.NS, "nodeName": "node-a", "dataDir": filepath.Join(dir, "data"), "logFile": filepath.Join(dir, "log")})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "nv-ipam.conf"), settings, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf["ipam"].(map[string]any)["confDir"] = dir
	stdin, err := json.Marshal(conf)
	if err != nil {
		t.Fatal(err)
	}
	plugin := rig.Binary(t, "nv-ipam")
	out, said := rig.Call{Verb: "ADD", Container: "c-" + pod, Pod: pod, Args: args, Stdin: stdin}.Run(t, exec.CommandContext(t.Context(), plugin), plugin)
	if said != nil {
		t.Fatal(said)
	}
	got, err := rig.Given(out)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

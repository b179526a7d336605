// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package whereabouts tests the migration from whereabouts on state that the real
// whereabouts has written: its plugin and its controller of node slices run here,
// against a real API server with its CRDs.
package whereabouts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) { os.Exit(testenv.Run(m, &env, testenv.Options{})) }

// theirs is whereabouts' namespace: the one that its plugin takes if the kubeconfig
// names none.
const theirs = "kube-system"

var networks = schema.GroupVersionResource{Group: "k8s.cni.cncf.io", Version: "v1", Resource: "network-attachment-definitions"}

// cluster has whereabouts installed, and a namespace for pools, pods and networks.
type cluster struct {
	*rig.Cluster
	dir    string // of whereabouts' parts
	dyn    dynamic.Interface
	config string // of both plugins
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env), dir: rig.Part(t, "WHEREABOUTS", "whereabouts"), config: t.TempDir()}
	c.RemoveNodes(t)
	var err error
	if c.dyn, err = dynamic.NewForConfig(env.Config); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "--server-side", "-f", "testdata/network-attachment-definitions.yaml", "-f", filepath.Join(c.dir, "crds"))
	c.kubectl(t, "wait", "--for=condition=Established", "crd", "--all")
	t.Cleanup(func() { // the networks and whereabouts' pools are those of the cluster
		if out, err := env.Kubectl(context.Background(), "-n", c.NS, "delete", "network-attachment-definitions", "--all"); err != nil {
			t.Error(err, out)
		}
		for _, kind := range []string{"ippools", "overlappingrangeipreservations", "nodeslicepools"} {
			if out, err := env.Kubectl(context.Background(), "-n", theirs, "delete", kind+".whereabouts.cni.cncf.io", "--all"); err != nil {
				t.Error(err, out)
			}
		}
	})
	return c
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := env.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatalf("kubectl %q: %v\n%s", args, err, out)
	}
	return out
}

// network makes a NetworkAttachmentDefinition. Whereabouts' controller reads the file of
// every one.
func (c *cluster) network(t *testing.T, name, ipam string) {
	t.Helper()
	ipam = strings.Replace(ipam, "{", `{"configuration_path":"`+c.flatFile(t)+`",`, 1)
	config := `{"cniVersion":"1.0.0","name":"` + name + `","type":"macvlan","ipam":` + ipam + `}`
	u := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition",
		"metadata": map[string]any{"name": name}, "spec": map[string]any{"config": config},
	}}
	if _, err := c.dyn.Resource(networks).Namespace(c.NS).Create(t.Context(), u, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// attachment is an interface of a pod's container on a node.
type attachment struct{ network, node, pod, container string }

// call calls the IPAM plugin that the network names now, as multus and the main plugin
// do on the attachment's node.
func (c *cluster) call(ctx context.Context, t testing.TB, verb string, a attachment) (addresses []string, plugin string, err error) {
	config, err := c.configOf(ctx, a.network)
	if err != nil {
		return nil, "", err
	}
	return c.callWith(ctx, t, verb, a, config)
}

// configOf is the CNI configuration that a network has now.
func (c *cluster) configOf(ctx context.Context, network string) (string, error) {
	u, err := c.dyn.Resource(networks).Namespace(c.NS).Get(ctx, network, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	config, _, err := unstructured.NestedString(u.Object, "spec", "config")
	return config, err
}

func (c *cluster) callWith(ctx context.Context, t testing.TB, verb string, a attachment, config string) (addresses []string, plugin string, err error) {
	var conf map[string]any
	if err := json.Unmarshal([]byte(config), &conf); err != nil {
		return nil, "", err
	}
	ipam := conf["ipam"].(map[string]any)
	plugin = ipam["type"].(string)
	path := filepath.Join(c.dir, "whereabouts")
	switch plugin {
	case "whereabouts":
		ipam["kubernetes"] = map[string]any{"kubeconfig": env.Kubeconfig}
	case "nv-ipam":
		path = rig.Binary(t, "nv-ipam")
		ipam["confDir"] = c.confDir(t, a.node)
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return nil, plugin, err
	}
	call := rig.Call{Verb: verb, Container: a.container, Pod: a.pod, Stdin: stdin}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = append(call.Environ(path), "NODENAME="+a.node, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+c.NS+";K8S_POD_NAME="+a.pod+";K8S_POD_INFRA_CONTAINER_ID="+a.container)
	out, err := call.On(cmd, path)
	if err != nil || verb != "ADD" {
		return nil, plugin, err
	}
	given, err := rig.Given(out)
	return given, plugin, err
}

// flatFile is whereabouts' own configuration, without which it does nothing.
func (c *cluster) flatFile(t testing.TB) string {
	path := filepath.Join(c.config, "whereabouts.conf")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if err := os.WriteFile(path+".new", []byte(`{"kubernetes":{"kubeconfig":"`+env.Kubeconfig+`"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil && !errors.Is(err, os.ErrNotExist) { // another call has
		t.Fatal(err)
	}
	return path
}

// confDir is a node's, for this project's plugin.
func (c *cluster) confDir(t testing.TB, node string) string {
	dir := filepath.Join(c.config, node)
	data, err := json.Marshal(map[string]any{"kubeconfig": env.Kubeconfig, "poolsNamespace": c.NS, "nodeName": node, "dataDir": filepath.Join(dir, "data"), "logFile": filepath.Join(dir, "log")})
	if err := errors.Join(err, os.MkdirAll(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	// A rename, since another call may be reading it.
	path := filepath.Join(dir, "nv-ipam.conf")
	if _, err := os.Stat(path); err == nil {
		return dir
	}
	tmp, err := os.CreateTemp(dir, "new")
	if err == nil {
		_, err = tmp.Write(data)
	}
	if err := errors.Join(err, tmp.Close(), os.Rename(tmp.Name(), path)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// add starts a pod with the network on a node, and returns its addresses.
func (c *cluster) add(t *testing.T, network, node, pod string) []string {
	t.Helper()
	rig.Pod(t, c.Kube, c.NS, pod, node)
	got, _, err := c.call(t.Context(), t, "ADD", attachment{network, node, pod, "c-" + pod})
	if err != nil {
		t.Fatalf("%s: %v", pod, err)
	}
	return got
}

// migrate runs the command, which has to succeed.
func (c *cluster) migrate(t *testing.T, do string, flags ...string) string {
	t.Helper()
	out, err := c.tryMigrate(t, do, flags...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", do, err, out)
	}
	return out
}

func (c *cluster) tryMigrate(t *testing.T, do string, flags ...string) (string, error) {
	args := append([]string{"migrate", "whereabouts", do, "--kubeconfig=" + env.Kubeconfig, "-n", c.NS}, flags...)
	cmd := exec.CommandContext(t.Context(), rig.Binary(t, "kubectl-ipam"), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return string(out), err
}

// applyPools applies what the command prints.
func (c *cluster) applyPools(t *testing.T, flags ...string) string {
	t.Helper()
	pools := c.migrate(t, "pools", flags...)
	if pools == "" {
		return ""
	}
	path := filepath.Join(t.TempDir(), "pools.yaml")
	if err := os.WriteFile(path, []byte(pools), 0o600); err != nil {
		t.Fatal(err)
	}
	c.kubectl(t, "apply", "-f", path)
	return pools
}

// patchNetworks runs the commands that the command prints, for those networks or all.
func (c *cluster) patchNetworks(t *testing.T, only ...string) {
	t.Helper()
	script := ""
	for _, line := range strings.SplitAfter(c.migrate(t, "patches"), "\n") {
		if len(only) == 0 || slices.ContainsFunc(only, func(n string) bool { return strings.Contains(line, " patch network-attachment-definitions "+n+" ") }) {
			script += line
		}
	}
	cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+env.Kubeconfig, "PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, script, out)
	}
}

// held lists who has what: "DOMAIN ADDRESS POOL NODE POD".
func (c *cluster) held(t *testing.T) (out []string) {
	t.Helper()
	for _, a := range c.Allocations(t) {
		out = append(out, fmt.Sprintf("%s %s %s %s %s", a.DomainOf(), a.Spec.Address, a.Spec.PoolRef.Name, a.Spec.NodeName, a.Spec.PodRef.Name))
	}
	slices.Sort(out)
	return out
}

// versions are the resource versions of all that a run might write.
func (c *cluster) versions(t *testing.T) string {
	t.Helper()
	const format = `jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}`
	// The controller may write a pool's status at any time, so all else of a pool is compared.
	const ofPools = `jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.generation} {.metadata.labels} {.metadata.annotations} {.metadata.finalizers} {.metadata.ownerReferences} {.spec}{"\n"}{end}`
	pools := c.kubectl(t, "-n", c.NS, "get", "ippools.nv-ipam.nvidia.com", "-o", ofPools)
	all := c.kubectl(t, "-n", c.NS, "get", "ipallocations,network-attachment-definitions", "-o", format)
	return pools + all + c.kubectl(t, "-n", theirs, "get", "ippools.whereabouts.cni.cncf.io,overlappingrangeipreservations,nodeslicepools", "-o", format)
}

// disabled are the names of the pools that give nothing.
func (c *cluster) disabled(t *testing.T) (out []string) {
	t.Helper()
	list, err := c.IPAM.IPPools(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list.Items {
		if p.Spec.Disabled {
			out = append(out, p.Name)
		}
	}
	return out
}

// awaitCarved waits until a controller has seen the pools.
func (c *cluster) awaitCarved(t *testing.T) {
	t.Helper()
	rig.Until(t, func() string {
		list, err := c.IPAM.IPPools(c.NS).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err.Error()
		}
		for _, p := range list.Items {
			if !slices.ContainsFunc(p.Status.Conditions, func(c metav1.Condition) bool { return c.Type == v1alpha1.ConditionReady }) || p.Status.ObservedGeneration != p.Generation {
				return "pool " + p.Name + " is not carved"
			}
		}
		return ""
	})
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package loss deletes the record, or sets etcd back, under containers that live on:
// the real plugin, a real API server, and the real installer's look.
package loss

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) {
	testenv.Isolate()
	os.Exit(testenv.Run(m, &env, testenv.Options{}))
}

// cluster is a namespace with pool "p", 10.0.0.0/24 in blocks of 16, and nodes.
type cluster struct {
	*rig.Cluster

	names []string
	nodes map[string]*node
}

func newCluster(t *testing.T, names ...string) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env), names: names, nodes: map[string]*node{}}
	for _, name := range names {
		c.nodes[name] = newNode(t, c, name)
	}
	c.pool(t)
	return c
}

var spec = v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 16}

func (c *cluster) pool(t *testing.T) {
	t.Helper()
	rig.IPPool(t, c.IPAM, c.NS, "p", spec, c.names...)
}

// node is a node's disk, and what runs there: the address of each container.
type node struct {
	c    *cluster
	name string
	dir  string
	boot string // a file that stands for the kernel's boot ID; empty for the real one
	live map[string]string
}

func newNode(t *testing.T, c *cluster, name string) *node {
	t.Helper()
	n := &node{c: c, name: name, dir: t.TempDir(), live: map[string]string{}}
	data, err := json.Marshal(map[string]any{
		"kubeconfig": env.Kubeconfig, "poolsNamespace": c.NS, "nodeName": name,
		"dataDir": filepath.Join(n.dir, "data"), "logFile": filepath.Join(n.dir, "log"), "logLevel": "debug",
	})
	if err == nil {
		err = os.WriteFile(filepath.Join(n.dir, "nv-ipam.conf"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// reboot ends all that runs on the node. From then on the kernel has another boot ID.
func (n *node) reboot(t *testing.T) {
	t.Helper()
	n.live = map[string]string{}
	n.boot = filepath.Join(n.dir, "boot_id")
	if err := os.WriteFile(n.boot, []byte("11111111-2222-4333-8444-555555555555\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// command runs a program as the node sees its kernel.
func (n *node) command(name string, args ...string) *exec.Cmd {
	if n.boot == "" {
		return exec.Command(name, args...)
	}
	const script = `mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"`
	return exec.Command("unshare", append([]string{"--mount", "sh", "-c", script, n.boot, name}, args...)...)
}

// run calls the plugin.
func (n *node) run(t *testing.T, verb, container, requested string) ([]byte, error) {
	t.Helper()
	plugin := rig.Binary(t, "nv-ipam")
	call := rig.Call{
		Verb: verb, Container: container, Pod: "pod-of-" + container, Args: ";K8S_POD_INFRA_CONTAINER_ID=" + container,
		Stdin: rig.NetConf(t, "1.1.0", map[string]any{"confDir": n.dir, "poolName": "p"}, nil),
	}
	if requested != "" {
		call.Args += ";IP=" + requested
	}
	cmd := n.command(plugin)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, failed := call.Run(t, cmd, plugin)
	if failed != nil {
		return nil, failed
	}
	return out, nil
}

// add starts a container, and fails if the address that it is given is in use.
func (n *node) add(t *testing.T, container, requested string) (string, error) {
	t.Helper()
	out, err := n.run(t, "ADD", container, requested)
	if err != nil {
		return "", err
	}
	given, err := rig.Given(out)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := strings.Cut(given[0], "/")
	for _, other := range n.c.nodes {
		for holder, held := range other.live {
			if held == addr {
				t.Errorf("DOUBLE: %s was given to %s on %s, and %s on %s answers there", addr, container, n.name, holder, other.name)
			}
		}
	}
	n.live[container] = addr
	return addr, nil
}

func (n *node) mustAdd(t *testing.T, container, requested string) string {
	t.Helper()
	addr, err := n.add(t, container, requested)
	if err != nil {
		t.Fatalf("ADD of %s on %s: %v", container, n.name, err)
	}
	return addr
}

func (n *node) mustDel(t *testing.T, container string) {
	t.Helper()
	delete(n.live, container)
	if _, err := n.run(t, "DEL", container, ""); err != nil {
		t.Fatalf("DEL of %s on %s: %v", container, n.name, err)
	}
}

// look runs the installer's look once.
func (n *node) look(t *testing.T) string {
	t.Helper()
	cmd := n.command(rig.Binary(t, "ipam-node"), "--restore-only", "--node-name="+n.name, "--ippools-namespace="+n.c.NS, "--kubeconfig="+env.Kubeconfig,
		"--cni-data-dir="+filepath.Join(n.dir, "data"), "--health-probe-bind-address=")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("installer on %s: %v\n%s", n.name, err, out)
	}
	return string(out)
}

func (n *node) log(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(n.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// record is what the API server has: container by address.
func (c *cluster) record(t *testing.T) map[string]v1alpha1.IPAllocation {
	t.Helper()
	out := map[string]v1alpha1.IPAllocation{}
	for _, a := range c.Allocations(t) {
		out[a.Spec.Address] = a
	}
	return out
}

// want checks that the record has what lives on these nodes, and tells how much of that
// was written again.
func (c *cluster) want(t *testing.T, nodes ...*node) {
	t.Helper()
	record := c.record(t)
	restored := 0
	for _, n := range nodes {
		for container, addr := range n.live {
			a, ok := record[addr]
			if !ok || a.Spec.ContainerID != container || a.Spec.NodeName != n.name || a.Spec.PodRef.Name != "pod-of-"+container {
				t.Errorf("%s of %s on %s is not in the record: %+v", addr, container, n.name, a.Spec)
			}
			if a.Spec.Restored {
				restored++
			}
		}
	}
	t.Logf("in the record: %d, of them asserted again: %d", len(record), restored)
}

// remakePool deletes pool "p", and makes it again.
func (c *cluster) remakePool(t *testing.T) {
	t.Helper()
	err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "p", metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	rig.Gone(t, c.IPAM, c.NS, "p")
	c.pool(t)
}

// remakeCRDs deletes this project's CRDs, and with them the record, and applies them
// again, as `kubectl delete -k` and `kubectl apply -k` do.
func remakeCRDs(t *testing.T) {
	t.Helper()
	crds := filepath.Join(rig.Root(t), "manifests", "base", "crds")
	for _, args := range [][]string{
		{"delete", "--wait", "-k", crds},
		{"apply", "-k", crds},
		{"wait", "--for=condition=Established", "--timeout=60s", "crd/ippools.nv-ipam.nvidia.com", "crd/cidrpools.nv-ipam.nvidia.com", "crd/ipallocations.nv-ipam.nvidia.com"},
	} {
		if _, err := env.Kubectl(t.Context(), args...); err != nil {
			t.Fatal(err)
		}
	}
}

// served waits until the API server serves the CRDs again: it says "established" before.
func (c *cluster) served(t *testing.T) {
	t.Helper()
	rig.Until(t, func() string {
		_, err1 := c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{})
		_, err2 := c.IPAM.IPPools(c.NS).List(t.Context(), metav1.ListOptions{})
		if err := errors.Join(err1, err2); err != nil {
			return err.Error()
		}
		return ""
	})
}

// blockOf are the addresses of a node's block, "" if it has none.
func (c *cluster) blockOf(t *testing.T, name string) string {
	t.Helper()
	for _, b := range rig.Blocks(c.GetPool(t, "p")) {
		if node, block, _ := strings.Cut(b, " "); node == name {
			return block
		}
	}
	return ""
}

func has(text, words string) bool { return strings.Contains(text, words) }

// empty deletes the record.
func (c *cluster) empty(t *testing.T) {
	t.Helper()
	if err := c.IPAM.IPAllocations(c.NS).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := c.IPAM.IPPools(c.NS).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
}

// seen waits until plugins see the pool as it is.
func (c *cluster) seen(t *testing.T) { t.Helper(); rig.Seen(t, c.IPAM, c.NS, "p") }

// lastOf is the address of a container that the record has.
func (c *cluster) lastOf(t *testing.T, container string) string {
	t.Helper()
	for addr, a := range c.record(t) {
		if a.Spec.ContainerID == container {
			return addr
		}
	}
	return ""
}

// forget makes the hint incomplete.
func (n *node) forget(t *testing.T) {
	t.Helper()
	marks, err := filepath.Glob(filepath.Join(n.dir, "data", "*", "claims", "@complete"))
	if err != nil || len(marks) != 1 {
		t.Fatal(marks, err)
	}
	if err := os.Remove(marks[0]); err != nil {
		t.Fatal(err)
	}
}

// afterGrace makes it long ago that the node found a loss.
func (n *node) afterGrace(t *testing.T) {
	t.Helper()
	marks, err := filepath.Glob(filepath.Join(n.dir, "data", "*", "lost"))
	if err != nil || len(marks) != 1 {
		t.Fatal("the node has found no loss: ", marks, err)
	}
	if err := os.Remove(marks[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("1000000000", marks[0]); err != nil {
		t.Fatal(err)
	}
}

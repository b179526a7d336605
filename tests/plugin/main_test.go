// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package plugin tests bin/nv-ipam as a runtime runs it: a process for each call,
// a real API server behind it.
package plugin

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

// siteID is how a hint calls a node of the cluster.
func siteID(node string) string {
	id, err := ledger.SiteOf(env.Config, node)
	if err != nil {
		panic(err)
	}
	return id
}

func TestMain(m *testing.M) {
	testenv.Isolate()
	// Calls that wait for a server that does not answer need no processor.
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	os.Exit(testenv.Run(m, &env, testenv.Options{Audit: true}))
}

// cluster is a namespace with pools.
type cluster struct{ *rig.Cluster }

func newCluster(t *testing.T) *cluster {
	t.Helper()
	return &cluster{rig.NewCluster(t, env)}
}

func (c *cluster) held(t *testing.T) string {
	t.Helper()
	return fmt.Sprint(c.Held(t))
}

// host is a node's disk: its configuration, its log, its data.
type host struct {
	plugin  string
	dir     string
	name    string
	ns      string // of the pools
	root    string // what it has in place of /, see command
	version string // cniVersion of the network configuration
	// environment is what the runtime has in its own, beyond CNI's.
	environment []string
}

func (c *cluster) host(t *testing.T, name string) *host {
	t.Helper()
	h := &host{plugin: rig.Binary(t, "nv-ipam"), dir: t.TempDir(), name: name, ns: c.NS, version: "1.1.0"}
	h.configure(t, h.settings())
	return h
}

// defaultHost is a node with a root directory of its own, where all is in its default
// place: a call that is told nothing finds the kubelet's credentials and the
// node's data.
func (c *cluster) defaultHost(t *testing.T, name string) *host {
	t.Helper()
	h := &host{plugin: rig.Binary(t, "nv-ipam"), root: t.TempDir(), name: name, ns: c.NS, version: "1.1.0"}
	h.dir = filepath.Join(h.root, "etc/cni/net.d/nv-ipam.d")
	for _, dir := range []string{h.dir, filepath.Join(h.root, "etc/kubernetes"), filepath.Join(h.root, "var/lib"), filepath.Join(h.root, "var/log")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	h.restoreCredentials(t)
	h.configure(t, h.settings())
	return h
}

// kubelet is the path of the kubelet's kubeconfig.
func (h *host) kubelet() string { return filepath.Join(h.root, "etc/kubernetes/kubelet.conf") }

func (h *host) restoreCredentials(t *testing.T) {
	t.Helper()
	// Whatever else it may do, it says whose it is.
	path, err := env.UserKubeconfig("system:node:"+h.name, "system:masters")
	var data []byte
	if err == nil {
		data, err = os.ReadFile(path)
	}
	if err == nil {
		err = os.WriteFile(h.kubelet(), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// settings are what nv-ipam.conf says on a node where all is well.
func (h *host) settings() map[string]any {
	if h.root != "" {
		return map[string]any{"poolsNamespace": h.ns, "nodeName": h.name}
	}
	return map[string]any{
		"kubeconfig": env.Kubeconfig, "poolsNamespace": h.ns, "nodeName": h.name,
		"dataDir": filepath.Join(h.dir, "data"), "logFile": filepath.Join(h.dir, "log"), "logLevel": "debug",
	}
}

func (h *host) configure(t *testing.T, settings map[string]any) {
	t.Helper()
	data, err := json.Marshal(settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(h.dir, "nv-ipam.conf"), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// call is one call of the plugin.
type call struct {
	verb      string
	container string
	ifName    string         // net1 where empty
	args      string         // further CNI_ARGS
	ipam      map[string]any // further keys of "ipam"
	conf      map[string]any // further top-level keys
}

// command runs the plugin; on a host with a root of its own it sees that one's /etc,
// /var/lib and /var/log.
func (h *host) command() *exec.Cmd {
	if h.root == "" {
		return exec.Command(h.plugin)
	}
	const script = `mount --bind "$1/etc" /etc && mount --bind "$1/var/lib" /var/lib && mount --bind "$1/var/log" /var/log && exec "$0"`
	return exec.Command("unshare", "--mount", "sh", "-c", script, h.plugin, h.root)
}

// run runs the plugin and returns what it printed and its CNI error.
func (h *host) run(t testing.TB, c call) ([]byte, *types.Error) {
	t.Helper()
	ipam := map[string]any{"confDir": h.dir, "poolName": "p"}
	if h.root != "" {
		delete(ipam, "confDir")
	}
	rig.Merge(ipam, c.ipam)
	args := ";K8S_POD_INFRA_CONTAINER_ID=" + c.container
	if c.args != "" {
		args += ";" + c.args
	}
	cmd := h.command()
	cmd.Env = h.environment
	hangs := time.AfterFunc(2*ends, func() { _ = cmd.Process.Kill() })
	out, cniErr := rig.Call{
		Verb: c.verb, Container: c.container, Interface: c.ifName, Args: args, Stdin: rig.NetConf(t, h.version, ipam, c.conf),
	}.Run(t, cmd, h.plugin)
	if !hangs.Stop() {
		t.Fatalf("%s %s had to be killed after %s", c.verb, c.container, 2*ends)
	}
	return out, cniErr
}

func (h *host) mustRun(t testing.TB, c call) []byte {
	t.Helper()
	out, cniErr := h.run(t, c)
	if cniErr != nil {
		t.Fatalf("%s %s: %v", c.verb, c.container, cniErr)
	}
	return out
}

// wantError runs the plugin and checks the code and the words of its error.
func (h *host) wantError(t *testing.T, c call, code uint, words ...string) {
	t.Helper()
	_, cniErr := h.run(t, c)
	if cniErr == nil || cniErr.Code != code {
		t.Errorf("%s %s: error %+v, want code %d", c.verb, c.container, cniErr, code)
		return
	}
	for _, w := range words {
		if !strings.Contains(cniErr.Error(), w) {
			t.Errorf("%s %s: error %q does not say %q", c.verb, c.container, cniErr, w)
		}
	}
}

// mustAdd runs ADD and returns the addresses with their prefix lengths.
func (h *host) mustAdd(t *testing.T, c call) []string {
	t.Helper()
	c.verb = "ADD"
	return parseResult(t, h.mustRun(t, c))
}

func parseResult(t *testing.T, out []byte) []string {
	t.Helper()
	addrs, err := rig.Given(out)
	if err != nil {
		t.Fatal(err)
	}
	return addrs
}

// blocks makes pool "p": 10.0.0.0/16, blocks of 100, gateway .1.
func (c *cluster) blocks(t *testing.T, nodes ...string) {
	t.Helper()
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 100, Gateway: "10.0.0.1"}, nodes...)
}

// age makes all allocations old: no ADD is under way any more that may have made
// them.
func (c *cluster) age(t *testing.T) {
	t.Helper()
	list, err := c.IPAM.IPAllocations(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		c.startedAt(t, a.Name, &metav1.MicroTime{Time: time.Now().Add(-time.Hour)})
	}
}

// gc is a GC to which these containers are valid.
func gc(valid ...string) call {
	list := []map[string]string{}
	for _, c := range valid {
		list = append(list, map[string]string{"containerID": c, "ifname": "net1"})
	}
	return call{verb: "GC", conf: map[string]any{"cni.dev/valid-attachments": list}}
}

func contains(err error, words string) bool { return strings.Contains(err.Error(), words) }

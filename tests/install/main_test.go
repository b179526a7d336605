// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package install tests bin/ipam-node with the real plugin and a real API server:
// what it puts on a host, what it takes over from nv-ipam, and the plugin's token.
package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
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

// cluster is a namespace with nv-ipam's pools, and somebody who may do in it what
// ipam-node needs and nothing else.
type cluster struct {
	*rig.Cluster

	kubeconfig string // the installer's
}

// installerRules is all that ipam-node needs, in the pools' namespace.
var installerRules = []rbacv1.PolicyRule{
	{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"ippools", "cidrpools"}, Verbs: []string{"get"}},
	{APIGroups: []string{v1alpha1.GroupName}, Resources: []string{"ipallocations"}, Verbs: []string{"get", "list", "create", "delete"}},
	{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create"}},
}

// tokenRules is what it needs beyond, in the service account's namespace, and of
// the cluster to read its Node.
func tokenRules(account string) []rbacv1.PolicyRule {
	return []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"serviceaccounts/token"}, ResourceNames: []string{account}, Verbs: []string{"create"}}}
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env)}
	user := "installer-" + c.NS
	var err error
	if c.kubeconfig, err = env.UserKubeconfig(user); err != nil {
		t.Fatal(err)
	}
	c.allow(t, "installer", rbacv1.Subject{Kind: "User", APIGroup: rbacv1.GroupName, Name: user}, installerRules)

	// The pools and blocks of the sample store.
	nodes := []string{"kind-control-plane", "kind-worker", "node-b", "node-c"}
	rig.IPPool(t, c.IPAM, c.NS, "pool1", v1alpha1.IPPoolSpec{
		Subnet: "192.168.0.0/16", PerNodeBlockSize: 100, Gateway: "192.168.0.1",
		Exclusions: []v1alpha1.ExcludeRange{{StartIP: "192.168.0.0", EndIP: "192.168.0.10"}},
	}, nodes...)
	rig.IPPool(t, c.IPAM, c.NS, "pool6", v1alpha1.IPPoolSpec{Subnet: "fd52:2eb5:44::/48", PerNodeBlockSize: 500, Gateway: "fd52:2eb5:44::1"}, nodes...)
	rig.CIDRPool(t, c.IPAM, c.NS, "rail1", v1alpha1.CIDRPoolSpec{CIDR: "10.60.0.0/16", PerNodeNetworkPrefix: 24, GatewayIndex: new(int32(1))}, nodes...)
	return c
}

// allow binds rules in the namespace.
func (c *cluster) allow(t *testing.T, name string, subject rbacv1.Subject, rules []rbacv1.PolicyRule) {
	t.Helper()
	_, err := c.Kube.RbacV1().Roles(c.NS).Create(t.Context(), &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: rules}, metav1.CreateOptions{})
	if err == nil {
		_, err = c.Kube.RbacV1().RoleBindings(c.NS).Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Subjects: []rbacv1.Subject{subject},
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
		}, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// held lists who has what: "pool1 192.168.0.5 kind-worker default/static-ip-pod1".
func (c *cluster) held(t *testing.T) string {
	t.Helper()
	var lines []string
	for _, a := range c.Allocations(t) {
		s := a.Spec
		lines = append(lines, fmt.Sprintf("%s %s %s %s/%s", s.PoolRef.Name, s.Address, s.NodeName, s.PodRef.Namespace, s.PodRef.Name))
	}
	return strings.Join(lines, "\n")
}

func (c *cluster) wantHeld(t *testing.T, want ...string) {
	t.Helper()
	if got := c.held(t); got != strings.Join(want, "\n") {
		t.Errorf("held\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func (c *cluster) events(t *testing.T) []corev1.Event {
	t.Helper()
	list, err := c.Kube.CoreV1().Events(c.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// nvIpam is what stands in for nv-ipam's plugin on a host.
const nvIpam = "#!/bin/sh\nexit 1\n"

// host is one node's disk.
type host struct {
	*cluster
	name string
	dir  string
	// kubeconfig of the installer.
	kubeconfig string
}

// host makes a node with nv-ipam's plugin and, where it is not empty, a store.
func (c *cluster) host(t *testing.T, name, store string) *host {
	t.Helper()
	h := &host{cluster: c, name: name, dir: t.TempDir(), kubeconfig: c.kubeconfig}
	for _, dir := range []string{"bin", "conf", "data"} {
		if err := os.Mkdir(h.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.write(t, "bin/nv-ipam", nvIpam, 0o755)
	h.write(t, "conf/nv-ipam.conf", `{"daemonSocket":"unix:///x"}`, 0o600)
	h.write(t, "bin/macvlan", "another's", 0o755)
	if store != "" {
		h.write(t, "data/store", store, 0o644)
	}
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) write(t *testing.T, name, text string, mode fs.FileMode) {
	t.Helper()
	// As nv-ipam and everybody else does: nobody reads half a file.
	tmp := h.path(name) + ".new"
	if err := errors.Join(os.WriteFile(tmp, []byte(text), mode), os.Rename(tmp, h.path(name))); err != nil {
		t.Fatal(err)
	}
}

func (h *host) read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(h.path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// disk is every file of the host and its content.
func (h *host) disk(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(h.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if d.Type()&fs.ModeSymlink != 0 {
			text, linkErr := os.Readlink(path)
			data, err = []byte(text), linkErr
		}
		fmt.Fprintf(&b, "%s %x\n", path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// ipamNode is the command, not started.
func (h *host) ipamNode(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	all := append([]string{
		"--node-name=" + h.name, "--ippools-namespace=" + h.NS, "--kubeconfig=" + h.kubeconfig, "--health-probe-bind-address=0",
		"--cni-nv-ipam-bin-file=" + rig.Binary(t, "nv-ipam"), "--cni-bin-dir=" + h.path("bin"), "--cni-conf-dir=" + h.path("conf"),
		"--cni-data-dir=" + h.path("data"), "--store-file=" + h.path("data/store"), "--cni-log-file=" + h.path("log"), "--cni-log-level=debug",
		"--cni-kubeconfig=" + env.Kubeconfig, "--migrate-settle=1ms",
	}, args...)
	return exec.CommandContext(t.Context(), rig.Binary(t, "ipam-node"), all...)
}

// run runs it to its end and returns what it printed and what it logged.
func (h *host) run(t *testing.T, args ...string) (stdout, log string, err error) {
	t.Helper()
	cmd := h.ipamNode(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func (h *host) mustRun(t *testing.T, args ...string) (stdout, log string) {
	t.Helper()
	stdout, log, err := h.run(t, args...)
	if err != nil {
		t.Fatalf("ipam-node %q: %v\n%s", args, err, log)
	}
	return stdout, log
}

func (h *host) isInstalled(t *testing.T) bool {
	t.Helper()
	return h.read(t, "bin/nv-ipam") != nvIpam
}

// call runs the plugin that is on the host, and returns the addresses of an ADD.
func (h *host) call(ctx context.Context, verb, container, args string, poolName, poolType string) (string, error) {
	plugin := h.path("bin/nv-ipam")
	stdin, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "net", "type": "macvlan",
		"ipam": map[string]any{"type": "nv-ipam", "confDir": h.path("conf"), "poolName": poolName, "poolType": poolType},
	})
	if err != nil {
		return "", err
	}
	out, err := rig.Call{Verb: verb, Container: container, Args: args, Stdin: stdin}.On(exec.CommandContext(ctx, plugin), plugin)
	if err != nil || verb != "ADD" {
		return "", err
	}
	addrs, err := rig.Given(out)
	for i := range addrs {
		addrs[i], _, _ = strings.Cut(addrs[i], "/")
	}
	return strings.Join(addrs, ","), err
}

func (h *host) add(t *testing.T, container, args string) string {
	t.Helper()
	got, err := h.call(t.Context(), "ADD", container, args, "pool1", "ippool")
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (h *host) del(t *testing.T, container string) {
	t.Helper()
	if _, err := h.call(t.Context(), "DEL", container, "", "pool1", "ippool"); err != nil {
		t.Fatal(err)
	}
}

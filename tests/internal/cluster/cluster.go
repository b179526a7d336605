// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package cluster runs a Kubernetes cluster of three nodes on one Linux machine,
// as root, out of the real programs: etcd, kube-apiserver,
// kube-controller-manager, kube-scheduler, and on each node kubelet, containerd,
// runc and multus. No Docker, no virtual machine, no registry.
//
// A node is a set of namespaces (machine.go) with an init (init.go), a network
// link (network.go), a cgroup (cgroup.go) and a directory for a disk. All state is
// below one directory.
//
// A program that links this package must not do anything before main that it does
// not want done as a node's init.
package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// nodes are the walkthrough's.
var nodes = []struct {
	name  string
	roles []string
}{
	{"kind-control-plane", []string{"control-plane", "worker"}},
	{"kind-worker", []string{"worker"}},
	{"kind-worker2", []string{"worker"}},
}

// Cluster is one that runs, or may be started.
type Cluster struct {
	// Nodes by number, in the order of their names.
	Nodes []*Node

	dir     string
	control *machine
	foreign bool
}

// Foreign returns a cluster that is not this machine's: the one of the environment's
// KUBECONFIG, with the nodes that are in it. Only Kubectl, Nodes and their names are
// of use then.
func Foreign(ctx context.Context) (*Cluster, error) {
	c := &Cluster{foreign: true}
	out, err := c.Kubectl(ctx, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	for i, name := range strings.Fields(out) {
		c.Nodes = append(c.Nodes, &Node{Name: name, cluster: c, index: i})
	}
	return c, err
}

// Open returns the cluster whose state is below the directory that CLUSTER_DIR
// names, by default /var/tmp/crd-ipam-cluster.
func Open() *Cluster {
	dir := os.Getenv("CLUSTER_DIR")
	if dir == "" {
		dir = "/var/tmp/crd-ipam-cluster"
	}
	c := &Cluster{dir: dir, control: &machine{name: "control-plane", dir: filepath.Join(dir, "control-plane")}}
	for i, n := range nodes {
		c.Nodes = append(c.Nodes, &Node{Name: n.name, cluster: c, index: i,
			machine: &machine{name: n.name, dir: filepath.Join(dir, n.name)}})
	}
	return c
}

func (c *Cluster) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// Dir is where the cluster's state is.
func (c *Cluster) Dir() string { return c.dir }

// Kubeconfig is the path of an administrator's kubeconfig file.
func (c *Cluster) Kubeconfig() string { return c.path("admin.kubeconfig") }

// Node returns a node by its name, nil where there is none.
func (c *Cluster) Node(name string) *Node {
	i := slices.IndexFunc(c.Nodes, func(n *Node) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return c.Nodes[i]
}

// Running reports whether the control plane runs.
func (c *Cluster) Running() bool { return c.control.pid() != 0 }

// programs are the directories of the programs that the cluster is made of: those
// of CLUSTER_PATH, or those that it was brought up with.
func (c *Cluster) programs() string {
	if dirs := os.Getenv("CLUSTER_PATH"); dirs != "" {
		return dirs
	}
	dirs, _ := os.ReadFile(c.path("programs")) // nothing is found then, which is an error
	return string(dirs)
}

func (c *Cluster) program(name string) (string, error) {
	dirs := c.programs()
	for _, dir := range filepath.SplitList(dirs) {
		if path := filepath.Join(dir, name); isFile(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not in CLUSTER_PATH=%q, which make cluster sets", name, dirs)
}

// thick reports whether the cluster has multus as a daemon: there is no thin one among its
// programs.
func (c *Cluster) thick() bool {
	_, err := c.program("multus")
	return err != nil
}

// containerdConfig is for the version of containerd that the cluster has.
func (c *Cluster) containerdConfig(runc string) (string, error) {
	path, err := c.program("containerd")
	if err != nil {
		return "", err
	}
	// "containerd MODULE VERSION REVISION", of which Debian's has no revision
	version, err := output(exec.Command(path, "--version"))
	if err != nil {
		return "", err
	}
	if fields := strings.Fields(version); len(fields) > 2 && strings.HasPrefix(strings.TrimPrefix(fields[2], "v"), "1.") {
		return oldContainerdConfig(runc), nil
	}
	return newContainerdConfig(runc), nil
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// Up brings the cluster up, or whatever of it does not run, and returns when all
// nodes are ready. It says on out what it does.
func (c *Cluster) Up(ctx context.Context, out io.Writer) error {
	if os.Getuid() != 0 {
		return errors.New("a cluster needs root, for namespaces, mounts and cgroups")
	}
	server, err := c.program("kube-apiserver")
	if err != nil {
		return err
	}
	if err := c.visible(server); err != nil {
		return err
	}
	if !c.Running() {
		if err := c.Down(); err != nil { // what an earlier one may have left
			return err
		}
		fmt.Fprintf(out, "cluster: control plane, %s\n", server)
		if err := c.create(server); err != nil {
			return errors.Join(err, c.Down())
		}
	} else if running, err := os.ReadFile(c.path("kube-apiserver")); err != nil || string(running) != server {
		return fmt.Errorf("the cluster runs %s, not %s: take it down first (make cluster-down)", running, server)
	}
	if err := c.awaitAPIServer(ctx); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if n.pid() != 0 {
			continue
		}
		fmt.Fprintf(out, "cluster: node %s\n", n.Name)
		if err := n.Start(); err != nil {
			return err
		}
	}
	if err := c.applyBasics(ctx); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.AwaitReady(ctx); err != nil {
			return err
		}
	}
	if c.thick() {
		return c.awaitThick(ctx)
	}
	return nil
}

// awaitThick waits until all nodes start pods through multus' daemon.
func (c *Cluster) awaitThick(ctx context.Context) error {
	if _, err := c.Kubectl(ctx, "rollout", "status", "-n", "kube-system", "--timeout=3m", "daemonset/kube-multus-ds"); err != nil {
		return err
	}
	return poll(ctx, time.Minute, "multus' configuration", func() error {
		for _, n := range c.Nodes {
			if !isFile(n.Disk(multusConf)) {
				return fmt.Errorf("%s has none", n.Name)
			}
		}
		return nil
	})
}

// visible checks that nothing the nodes need is below a directory that they have
// of their own.
func (c *Cluster) visible(program string) error {
	for _, path := range []string{c.dir, program} {
		for _, hidden := range append(slices.Clone(ownDirs), "/run", "/proc", "/sys") {
			if strings.HasPrefix(path, hidden+"/") {
				return fmt.Errorf("%s is below %s, of which each node has its own: set CLUSTER_DIR or XDG_CACHE_HOME to another place", path, hidden)
			}
		}
	}
	return nil
}

// create makes certificates, disks and images, and starts the control plane.
func (c *Cluster) create(server string) error {
	if err := write(c.path("kube-apiserver"), server); err != nil {
		return err
	}
	if err := write(c.path("programs"), c.programs()); err != nil {
		return err
	}
	ca, err := newAuthority()
	if err != nil {
		return err
	}
	if err := c.writeControlPlane(ca); err != nil {
		return err
	}
	for _, n := range c.Nodes {
		if err := n.writeDisk(ca); err != nil {
			return err
		}
	}
	if err := c.publishImages(); err != nil {
		return err
	}
	services, err := c.controlPlaneServices()
	if err != nil {
		return err
	}
	return c.control.start(spec{Services: services}, func(pid int) error { return connectControlPlane(pid, len(nodes)) })
}

func (c *Cluster) writeControlPlane(ca *authority) error {
	if err := write(c.path("pki/ca.crt"), string(ca.certPEM)); err != nil {
		return err
	}
	for _, cert := range []struct {
		file, user string
		groups     []string
		ips        []net.IP
	}{
		{"apiserver", "kube-apiserver", nil, []net.IP{net.ParseIP(controlIP), net.ParseIP(serviceIP), net.IPv4(127, 0, 0, 1)}},
		{"kubelet-client", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil},
		{"service-account", "service-account", nil, nil},
	} {
		certPEM, keyPEM, err := ca.issue(cert.user, cert.groups, cert.ips...)
		if err != nil {
			return err
		}
		err = errors.Join(write(c.path("pki", cert.file+".crt"), string(certPEM)), write(c.path("pki", cert.file+".key"), string(keyPEM)))
		if err != nil {
			return err
		}
	}
	return ca.kubeconfig(c.Kubeconfig(), "admin", "system:masters")
}

// Down ends all that runs, and removes all that there is of the cluster but its
// parts in the cache. A cluster that is not there is fine.
func (c *Cluster) Down() error {
	var errs []error
	for _, n := range c.Nodes {
		errs = append(errs, n.kill())
	}
	errs = append(errs, c.control.kill(), removeCgroups())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := removeLink(hostLink); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

func (c *Cluster) awaitAPIServer(ctx context.Context) error {
	return poll(ctx, 3*time.Minute, "the API server", func() error {
		out, err := c.Kubectl(ctx, "get", "--raw", "/readyz")
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// applyBasics applies what a cluster has before anybody installs something.
func (c *Cluster) applyBasics(ctx context.Context) error {
	operator, err := c.program("network-operator")
	if err != nil {
		return err
	}
	crds := filepath.Join(filepath.Dir(operator), "crds")
	if err := write(c.path("basics.yaml"), multusRBAC); err != nil {
		return err
	}
	paths := []string{crds, c.path("basics.yaml")}
	if c.thick() {
		daemon, err := c.program("multus-daemon")
		if err != nil {
			return err
		}
		paths = []string{crds, filepath.Join(filepath.Dir(daemon), "multus-daemonset-thick.yml")}
	}
	for _, path := range paths {
		if _, err := c.Kubectl(ctx, "apply", "--server-side", "-f", path); err != nil {
			return err
		}
	}
	// The controller manager makes it; without it no pod can be created.
	return poll(ctx, time.Minute, "the service account default", func() error {
		_, err := c.Kubectl(ctx, "get", "serviceaccount", "default")
		return err
	})
}

// Kubectl runs kubectl as an administrator. The output is returned with an error,
// too, which then has it in its text.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	path, err := c.program("kubectl")
	if err != nil {
		return "", err
	}
	if !c.foreign {
		args = append([]string{"--kubeconfig", c.Kubeconfig()}, args...)
	}
	return output(exec.CommandContext(ctx, path, args...))
}

// output runs a command, and returns what it writes on stdout. An error has what
// it writes on stderr.
func output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		name := filepath.Base(cmd.Path)
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(cmd.Args[1:], " "), err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// StopAPIServer kills the API server, and StartAPIServer lets it start again.
func (c *Cluster) StopAPIServer() error { return c.control.stop("kube-apiserver") }

// StartAPIServer returns when the API server is ready.
func (c *Cluster) StartAPIServer(ctx context.Context) error {
	if err := c.control.resume("kube-apiserver"); err != nil {
		return err
	}
	return c.awaitAPIServer(ctx)
}

// Load imports an image archive on all nodes.
func (c *Cluster) Load(ctx context.Context, archive string) error {
	for _, n := range c.Nodes {
		if err := n.Load(ctx, archive); err != nil {
			return err
		}
	}
	return nil
}

// CollectLogs copies what all parts have logged to a directory, with what the API
// server tells about the cluster.
func (c *Cluster) CollectLogs(ctx context.Context, to string) error {
	var errs []error
	for _, m := range append([]*machine{c.control}, machines(c.Nodes)...) {
		errs = append(errs, copyDir(m.path("logs"), filepath.Join(to, m.name)))
	}
	for _, n := range c.Nodes {
		errs = append(errs, copyDir(n.path("disk/var/log"), filepath.Join(to, n.Name, "var-log")))
	}
	for file, args := range map[string][]string{
		"objects.yaml": {"get", "-o", "yaml", "-A", "nodes,pods,daemonsets,deployments,network-attachment-definitions,ippools,cidrpools,ipallocations,ipreservations"},
		"events.txt":   {"get", "events", "-A", "--sort-by=.lastTimestamp"},
		"pods.txt":     {"get", "pods", "-A", "-o", "wide"},
	} {
		out, err := c.Kubectl(ctx, args...)
		errs = append(errs, err, write(filepath.Join(to, file), out))
	}
	return errors.Join(errs...)
}

func machines(nodes []*Node) (out []*machine) {
	for _, n := range nodes {
		out = append(out, n.machine)
	}
	return out
}

func copyDir(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return exec.Command("cp", "-r", from+"/.", to).Run()
}

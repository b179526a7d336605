// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Node is a machine with a kubelet.
type Node struct {
	Name string
	*machine

	cluster *Cluster
	index   int
}

// Crash ends the node at once, as if its power had gone: what is on its disk stays.
func (n *Node) Crash() error { return n.kill() }

// Start boots the node, for the first time or after a crash. It does not wait.
func (n *Node) Start() error {
	// There are none after a boot.
	if err := removeCgroups(n.Name); err != nil {
		return err
	}
	if err := makeCgroup(n.Name); err != nil {
		return err
	}
	services, err := n.services()
	if err != nil {
		return err
	}
	return n.start(spec{Disk: n.path("disk"), Services: services}, func(pid int) error {
		return connectNode(pid, n.cluster.control.pid(), n.index, len(n.cluster.Nodes))
	})
}

// AwaitReady waits until the node is ready for pods, and gives it the labels that
// a kubelet must not give itself.
func (n *Node) AwaitReady(ctx context.Context) error {
	args := []string{"label", "--overwrite", "node", n.Name}
	for _, role := range nodes[n.index].roles {
		args = append(args, "node-role.kubernetes.io/"+role+"=")
	}
	err := poll(ctx, 3*time.Minute, "node "+n.Name, func() error {
		_, err := n.cluster.Kubectl(ctx, args...)
		return err
	})
	if err != nil {
		return err
	}
	_, err = n.cluster.Kubectl(ctx, "wait", "--for=condition=Ready", "--timeout=3m", "node/"+n.Name)
	return err
}

// Exec runs a command on the node and returns its output.
func (n *Node) Exec(ctx context.Context, args ...string) (string, error) {
	cmd, err := n.Command(ctx, args...)
	if err != nil {
		return "", err
	}
	return output(cmd)
}

// Command returns a command that will run on the node, with the cluster's own
// programs in its PATH.
func (n *Node) Command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	cmd, err := n.command(ctx, args...)
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), n.env()...)
	return cmd, nil
}

func (n *Node) env() []string {
	return []string{"PATH=" + n.cluster.programs() + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// Load imports an image archive, once containerd answers.
func (n *Node) Load(ctx context.Context, archive string) error {
	return poll(ctx, time.Minute, "image "+archive+" on "+n.Name, func() error {
		file, err := os.Open(archive)
		if err != nil {
			return err
		}
		defer file.Close()
		cmd, err := n.Command(ctx, "ctr", "--namespace", "k8s.io", "images", "import", "-")
		if err != nil {
			return err
		}
		cmd.Stdin = file
		_, err = output(cmd)
		return err
	})
}

// Disk returns the path, on the host, of one that the node has on its disk: below
// /etc, /opt, /var/lib or /var/log.
func (n *Node) Disk(path string) string { return n.path("disk", path) }

// passwd is an /etc/passwd.
const passwd = "root:x:0:0:root:/root:/bin/sh\n"

// multusConf is the runtime's configuration, of both kinds of multus.
const multusConf = "/etc/cni/net.d/00-multus.conf"

// writeDisk makes the node's disk as an installation of Kubernetes leaves it.
func (n *Node) writeDisk(ca *authority) error {
	for _, dir := range append(ownDirs, "/opt/cni/bin", "/var/log/pods", "/var/log/containers") {
		if err := os.MkdirAll(n.Disk(dir), 0o755); err != nil {
			return err
		}
	}
	runc, err := n.cluster.program("runc")
	if err != nil {
		return err
	}
	files := map[string]string{
		"/etc/hosts":         "127.0.0.1 localhost\n::1 localhost\n" + nodeIP(n.index) + " " + n.Name + "\n",
		"/etc/hostname":      n.Name + "\n",
		"/etc/machine-id":    fmt.Sprintf("%032x\n", n.index+1),
		"/etc/passwd":        passwd,
		"/etc/group":         "root:x:0:\n",
		"/etc/nsswitch.conf": "hosts: files\n",
		"/etc/resolv.conf":   "",
		"/etc/containerd/certs.d/_default/hosts.toml": hostsTOML,
		"/etc/kubernetes/kubelet.yaml":                kubeletConfig(n.Name),
		"/etc/kubernetes/pki/ca.crt":                  string(ca.certPEM),
	}
	files["/etc/containerd/config.toml"], err = n.cluster.containerdConfig(runc)
	if err != nil {
		return err
	}
	if n.cluster.thick() {
		files["/etc/cni/net.d/10-kindnet.conf"] = clusterNetwork(podSubnet(n.index)) + "\n"
	} else {
		files[multusConf] = multusConfig(podSubnet(n.index))
	}
	for path, content := range files {
		if err := write(n.Disk(path), content); err != nil {
			return err
		}
	}
	return errors.Join(
		n.copyPlugins(),
		ca.kubeletCredentials(n.path("disk"), n.Name),
		ca.kubeconfig(n.Disk("/etc/cni/net.d/multus.d/multus.kubeconfig"), "multus"),
	)
}

func (n *Node) copyPlugins() error {
	names := []string{
		"loopback", "ptp", "host-local", // of the cluster's network
		"macvlan", "ipvlan", "vlan", "bridge", "host-device", "tuning", "sbr", "bandwidth", "firewall",
	}
	if !n.cluster.thick() {
		names = append(names, "multus")
	}
	for _, name := range names {
		path, err := n.cluster.program(name)
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(n.Disk("/opt/cni/bin"), name), content, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) services() ([]service, error) {
	containerd, err := n.cluster.program("containerd")
	if err != nil {
		return nil, err
	}
	kubelet, err := n.cluster.program("kubelet")
	if err != nil {
		return nil, err
	}
	return []service{
		{Name: "containerd", Args: []string{containerd}, Env: n.env()},
		// It ends where containerd does not answer yet, and is started again.
		{Name: "kubelet", Env: n.env(), Args: strings.Fields(kubelet +
			" --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.conf" +
			" --hostname-override=" + n.Name + " --node-ip=" + nodeIP(n.index))},
	}, nil
}

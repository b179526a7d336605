// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/crd-ipam/crd-ipam/tests/internal/simnode"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// poolsNamespace is where network-operator has its pools.
const poolsNamespace = "nvidia-network-operator"

// cluster is what the demo runs.
type cluster struct {
	root       string // of the source tree
	env        *testenv.Env
	client     kubernetes.Interface
	controller *simnode.Process
	nodes      []*simnode.Node
	undo       []func() error
}

func (c *cluster) node(name string) *simnode.Node {
	for _, n := range c.nodes {
		if n.Name == name {
			return n
		}
	}
	panic("no node " + name)
}

func (c *cluster) startCluster(ctx context.Context) (err error) {
	if c.root, err = testenv.Root(); err != nil {
		return err
	}
	// First, because it is quick to say what is missing.
	l2, err := simnode.NewSwitch()
	if errors.Is(err, syscall.EPERM) {
		return fmt.Errorf("%w: root needs CAP_SYS_ADMIN and CAP_NET_ADMIN here", err)
	}
	if err != nil {
		return err
	}
	c.undo = append(c.undo, l2.Close)

	if c.env, err = testenv.Start(testenv.Options{}); err != nil {
		return err
	}
	c.undo = append(c.undo, c.env.Stop)
	if c.client, err = kubernetes.NewForConfig(c.env.Config); err != nil {
		return err
	}
	if err := c.createObjects(ctx); err != nil {
		return err
	}
	if err := c.startController(); err != nil {
		return err
	}
	for _, name := range []string{"kind-control-plane", "kind-worker", "kind-worker2"} {
		if err := c.startNode(ctx, name, l2); err != nil {
			return fmt.Errorf("node %s: %w", name, err)
		}
	}
	return nil
}

// createObjects creates what is there before the walkthrough begins.
func (c *cluster) createObjects(ctx context.Context) error {
	_, err := c.client.CoreV1().Namespaces().Create(ctx,
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: poolsNamespace}}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	_, err = c.quietly(ctx, "kubectl apply -f tests/demo/testdata/rbac.yaml")
	return err
}

func (c *cluster) startController() error {
	binary, err := testenv.Binary("ipam-controller")
	if err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(c.env.Dir, "controller.log"))
	if err != nil {
		return err
	}
	defer log.Close() // the controller has its own
	cmd := exec.Command(binary,
		"--kubeconfig="+c.env.Kubeconfig,
		"--ippools-namespace="+poolsNamespace,
		"--leader-elect=true", "--leader-elect-namespace="+poolsNamespace,
		// Their ports may be somebody else's on this machine.
		"--health-probe-bind-address=0", "--metrics-bind-address=0")
	cmd.Stdout, cmd.Stderr = log, log
	c.controller, err = simnode.StartProcess(cmd)
	if err != nil {
		return err
	}
	c.undo = append(c.undo, func() error {
		if err := c.controller.Stop(); err != nil {
			return fmt.Errorf("stopping the controller: %w", err)
		}
		return nil
	})
	return nil
}

// startNode makes a Node object and the node behind it, which has a kubelet's
// credentials.
func (c *cluster) startNode(ctx context.Context, name string, l2 *simnode.Switch) error {
	obj := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			"kubernetes.io/hostname":         name,
			"node-role.kubernetes.io/worker": "",
		}},
		Status: corev1.NodeStatus{
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "Demo"}},
		},
	}
	if name == "kind-control-plane" {
		obj.Labels["node-role.kubernetes.io/control-plane"] = ""
	}
	if _, err := c.client.CoreV1().Nodes().Create(ctx, obj, metav1.CreateOptions{}); err != nil {
		return err
	}
	kubeconfig, err := c.env.NodeKubeconfig(name)
	if err != nil {
		return err
	}
	plugin, err := testenv.Binary("nv-ipam")
	if err != nil {
		return err
	}
	macvlan, err := testenv.CNIPlugins()
	if err != nil {
		return err
	}
	n, err := simnode.NewNode(simnode.NodeOptions{
		Name: name, Dir: filepath.Join(c.env.Dir, name), Switch: l2, Kubeconfig: kubeconfig,
		PoolsNamespace: poolsNamespace, Plugins: []string{macvlan, filepath.Dir(plugin)},
	})
	if err != nil {
		return err
	}
	c.nodes = append(c.nodes, n)
	c.undo = append(c.undo, n.Close)
	return nil
}

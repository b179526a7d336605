// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// A node crashes under running pods and boots again.
func TestNodeReboot(t *testing.T) {
	needsOwnCluster(t, "it crashes a node")
	s := newScene(t)
	s.pool("reboot", "10.12.0.0/16", "10.12.0.1")
	s.network("reboot", `"poolName": "reboot"`)
	const pods = 6
	s.deployment("d", "kind-worker2", "reboot", pods)
	s.pod("static", "kind-worker2", `[{"name": "reboot", "ips": ["10.12.0.5"]}]`)
	kubectl(t, "rollout", "status", "-n", s.name, "--timeout=3m", "deployment/d")
	s.running("static")
	before := allocations(t, s.name)

	node := c.Node("kind-worker2")
	if err := node.Crash(); err != nil {
		t.Fatal(err)
	}
	notReady(t, node.Name)
	if held := allocations(t, s.name); len(held) != len(before) {
		t.Errorf("before the crash %d allocations, after it %d", len(before), len(held))
	}
	boot(t, node.Name)

	// New sandboxes, with or without the old addresses: the old ones are given back.
	s.podsMatchAllocations(pods + 1)
	eventually(t, "all sandboxes to be new", func() error {
		held, err := listAllocations(s.name)
		for address, a := range held {
			if old, ok := before[address]; ok && old.Spec.ContainerID == a.Spec.ContainerID {
				err = fmt.Errorf("%s is held for the container of before the crash", address)
			}
		}
		return err
	})
	s.podsMatchAllocations(pods + 1)
	if addresses := s.addresses("static", "net1"); addresses[0] != "10.12.0.5" {
		t.Errorf("static has %v", addresses)
	}
}

// notReady waits until the cluster has noticed that a node is away.
func notReady(t *testing.T, node string) {
	t.Helper()
	kubectl(t, "wait", "--for=condition=Ready=Unknown", "--timeout=3m", "node/"+node)
}

// boot starts a node that crashed and waits until it is ready.
func boot(t *testing.T, node string) {
	t.Helper()
	if err := c.Node(node).Start(); err != nil {
		t.Fatal(err)
	}
	// Of before the crash it may still be said that it is.
	eventually(t, "kubelet of "+node, func() error {
		_, err := c.Node(node).Exec(t.Context(), "test", "-S", "/run/containerd/containerd.sock")
		return err
	})
	if err := c.Node(node).AwaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// A pod is deleted by force while its node is down: its container may be running,
// for all that anybody knows, so its address stays.
func TestForceDelete(t *testing.T) {
	needsOwnCluster(t, "it crashes a node")
	s := newScene(t)
	s.pool("force", "10.13.0.0/16", "10.13.0.1")
	s.network("force", `"poolName": "force"`)
	node := c.Node("kind-worker2")
	t.Run("until the node is back", func(t *testing.T) {
		s.loseNode(t, "a")
		boot(t, node.Name)
		s.nothingAllocated()
	})
	t.Run("until the node is out of service", func(t *testing.T) {
		s.loseNode(t, "b")
		kubectl(t, "taint", "node", node.Name, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
		s.nothingAllocated()
		boot(t, node.Name)
		kubectl(t, "taint", "node", node.Name, "node.kubernetes.io/out-of-service-")
	})
}

// loseNode starts a pod on kind-worker2, crashes that, deletes the pod by force, and
// waits until the controller has said that it holds the address.
func (s *scene) loseNode(t *testing.T, pod string) {
	t.Helper()
	s.pod(pod, "kind-worker2", "force")
	s.running(pod)
	held := allocations(t, s.name)
	if err := c.Node("kind-worker2").Crash(); err != nil {
		t.Fatal(err)
	}
	notReady(t, "kind-worker2")
	kubectl(t, "delete", "pod", "-n", s.name, pod, "--force", "--grace-period=0")
	eventually(t, "the controller to hold the address", func() error {
		for _, log := range controllerLogs(t) {
			if strings.Contains(log, `"Allocation is held"`) && strings.Contains(log, s.name+"/"+pod) {
				return nil
			}
		}
		return fmt.Errorf("it does not say so")
	})
	if now := allocations(t, s.name); len(now) != 1 || len(held) != 1 {
		t.Errorf("held with the pod: %v, without it: %v", slices.Collect(maps.Keys(held)), slices.Collect(maps.Keys(now)))
	}
}

// controllerLogs are the lines that all controllers which can be asked have written.
func controllerLogs(t *testing.T) []string {
	t.Helper()
	var lines []string
	for _, pod := range strings.Fields(kubectl(t, "get", "pods", "-n", poolsNamespace, "-l", "name=nv-ipam-controller", "-o", "name")) {
		if out, err := c.Kubectl(t.Context(), "logs", "-n", poolsNamespace, pod); err == nil {
			lines = append(lines, strings.Split(out, "\n")...)
		}
	}
	return lines
}

// The API server is down for a minute while pods end: their addresses are owed on
// the nodes, and free afterwards, without anybody doing anything.
func TestAPIServerDown(t *testing.T) {
	needsOwnCluster(t, "it stops the API server and reads the nodes' disks")
	s := newScene(t)
	s.pool("down", "10.14.0.0/16", "10.14.0.1")
	s.network("down", `"poolName": "down"`)
	const pods = 6
	var names []string
	for i := range pods {
		names = append(names, fmt.Sprintf("p%d", i))
		s.pod(names[i], c.Nodes[i%len(c.Nodes)].Name, "down")
	}
	s.running(names...)
	s.podsMatchAllocations(pods)

	kubectl(t, append([]string{"delete", "pods", "-n", s.name, "--wait=false"}, names...)...)
	if err := c.StopAPIServer(); err != nil {
		t.Fatal(err)
	}
	outage := time.NewTimer(time.Minute)
	eventually(t, "pending releases", func() error {
		if n := pendingReleases(t, "down"); n == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	<-outage.C
	t.Logf("pending on the nodes after a minute: %d of %d", pendingReleases(t, "down"), pods)
	if err := c.StartAPIServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The next call on each node carries them out. Without one the controller would, when
	// a node that is ready has had its time.
	for _, node := range c.Nodes {
		s.pod("after-"+node.Name, node.Name, "down")
	}
	for _, node := range c.Nodes {
		s.running("after-" + node.Name)
	}
	s.deletePods()
	s.nothingAllocated()
}

// pendingReleases counts the releases of a pool that are noted on the nodes' disks.
func pendingReleases(t *testing.T, pool string) (n int) {
	t.Helper()
	for _, node := range c.Nodes {
		notes, err := filepath.Glob(node.Disk("/var/lib/cni/nv-ipam/*@*/releases/" + pool + ".*"))
		if err != nil {
			t.Fatal(err)
		}
		n += len(notes)
	}
	return n
}

// Neither the installer nor the controller is needed for a pod to start and to end.
func TestNobodyButTheAPIServer(t *testing.T) {
	s := newScene(t)
	s.pool("alone", "10.15.0.0/16", "10.15.0.1")
	s.network("alone", `"poolName": "alone"`)
	defer func() {
		if err := install(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	kubectl(t, "delete", "-n", poolsNamespace, "daemonset/nv-ipam-node", "--cascade=foreground", "--timeout=3m")
	kubectl(t, "scale", "-n", poolsNamespace, "deployment/nv-ipam-controller", "--replicas=0")
	kubectl(t, "wait", "-n", poolsNamespace, "--for=delete", "--timeout=3m", "pods", "-l", "app=nv-ipam")
	for _, node := range c.Nodes {
		s.pod("on-"+node.Name, node.Name, "alone")
	}
	for _, node := range c.Nodes {
		s.running("on-" + node.Name)
	}
	s.podsMatchAllocations(len(c.Nodes))
	s.deletePods()
	s.nothingAllocated()
}

// A node that the pool's selector no longer matches keeps its block as long as a
// pod there holds an address of it.
func TestNodeLeavesSelector(t *testing.T) {
	s := newScene(t)
	s.pool("leaving", "10.16.0.0/16", "10.16.0.1")
	s.network("leaving", `"poolName": "leaving"`)
	s.pod("a", "kind-worker2", "leaving")
	s.running("a")
	const label = "node-role.kubernetes.io/worker"
	kubectl(t, "label", "node", "kind-worker2", label+"-")
	defer kubectl(t, "label", "--overwrite", "node", "kind-worker2", label+"=")
	s.pool("later", "10.17.0.0/16", "10.17.0.1") // its blocks show that the controller has noticed
	if got := s.blockHolders("later"); len(got) != 2 {
		t.Errorf("nodes with a block of a new pool: %v", got)
	}
	if got := s.blockHolders("leaving"); !slices.Contains(got, "kind-worker2") {
		t.Errorf("nodes with a block: %v", got)
	}
	s.deletePods()
	eventually(t, "block to be given back", func() error {
		if got := s.blockHolders("leaving"); slices.Contains(got, "kind-worker2") {
			return fmt.Errorf("nodes with a block: %v", got)
		}
		return nil
	})
	s.pod("b", "kind-worker2", "leaving")
	failure(t, s.name, "b", `configuration for pool "leaving", poolType "ippool" not found`)
	kubectl(t, "label", "node", "kind-worker2", label+"=")
	s.running("b")
}

func (s *scene) blockHolders(pool string) []string {
	s.t.Helper()
	return strings.Fields(kubectl(s.t, "get", "-n", poolsNamespace, "ippool", pool, "-o", "jsonpath={.status.allocations[*].nodeName}"))
}

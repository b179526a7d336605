// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e runs pods on a real cluster (tests/internal/cluster) on which
// crd-ipam is installed by its own manifests and image. make e2e runs it.
//
// Each test has a namespace, networks and pools of its own; the walkthrough's are
// the walkthrough's. After each, nothing may be allocated any more.
//
// Where KUBECONFIG is set, the tests run on the cluster that it names, and what needs
// the cluster's nodes or its API server under its hands is skipped: docs/cluster.md.
package e2e

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/tests/internal/cluster"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// poolsNamespace is where crd-ipam is installed, and the pools are.
const poolsNamespace = "nvidia-network-operator"

var (
	c *cluster.Cluster
	// walkthroughOnly is for clusters of a version that the other tests are not for.
	walkthroughOnly = os.Getenv("E2E_WALKTHROUGH_ONLY") != ""
	// foreign says that the cluster is not this machine's.
	foreign = os.Getenv("KUBECONFIG") != ""
)

func TestMain(m *testing.M) {
	if os.Getenv("CLUSTER_PATH") == "" {
		fmt.Println("SKIP: tests on a real cluster are run by make e2e, which sets CLUSTER_PATH")
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	runs := run
	if foreign {
		runs = runForeign
	}
	code := runs(ctx, m)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, m *testing.M) int {
	c = cluster.Open()
	keep := c.Running() || os.Getenv("KEEP") == "1"
	code := 1
	err := setUp(ctx)
	if err == nil {
		code = m.Run()
	} else {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
	}
	if code != 0 {
		to := filepath.Join(logs(), "e2e-"+time.Now().Format("20060102-150405"))
		fmt.Fprintf(os.Stderr, "the logs of all parts are in %s (%v)\n", to, c.CollectLogs(ctx, to))
	}
	if keep {
		fmt.Printf("The cluster still runs: export KUBECONFIG=%s\n", c.Kubeconfig())
		return code
	}
	defer phase("cluster down")()
	if err := takeDown(); err != nil {
		fmt.Fprintln(os.Stderr, "FAIL: taking the cluster down:", err)
		return 1
	}
	return code
}

// runForeign runs the tests on the cluster of KUBECONFIG, on which the image is
// already, and leaves crd-ipam installed there.
func runForeign(ctx context.Context, m *testing.M) int {
	fmt.Printf("The cluster is that of KUBECONFIG=%s\n", os.Getenv("KUBECONFIG"))
	var err error
	if c, err = cluster.Foreign(ctx); err == nil {
		err = fits(ctx)
	}
	if err == nil {
		err = install(ctx)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "FAIL:", err)
		return 1
	}
	return m.Run()
}

// fits says what a cluster lacks that the tests need.
func fits(ctx context.Context) error {
	for _, name := range []string{"kind-control-plane", "kind-worker", "kind-worker2"} {
		label, err := c.Kubectl(ctx, "get", "node", name, "-o", "jsonpath={.metadata.labels}")
		if err != nil {
			return fmt.Errorf("the tests need a node %s: %w", name, err)
		}
		if !strings.Contains(label, `"node-role.kubernetes.io/worker"`) {
			return fmt.Errorf("node %s has no label: kubectl label node %s node-role.kubernetes.io/worker=", name, name)
		}
	}
	if _, err := c.Kubectl(ctx, "get", "crd", "network-attachment-definitions.k8s.cni.cncf.io"); err != nil {
		return fmt.Errorf("the tests need multus in the cluster: %w", err)
	}
	return nil
}

// needsOwnCluster skips a test on a cluster that is not this machine's.
func needsOwnCluster(t *testing.T, why string) {
	t.Helper()
	if foreign {
		t.Skip(why + ", which takes this machine's own cluster: run make e2e without KUBECONFIG")
	}
}

// logs is the directory for the logs of runs that failed: E2E_LOGS, or bin.
func logs() string {
	if dir := os.Getenv("E2E_LOGS"); dir != "" {
		return dir
	}
	root, err := testenv.Root()
	if err != nil {
		return os.TempDir()
	}
	return filepath.Join(root, "bin")
}

// phase prints how long something took.
func phase(name string) func() {
	start := time.Now()
	return func() { fmt.Printf("e2e: %s: %.0f s\n", name, time.Since(start).Seconds()) }
}

func setUp(ctx context.Context) error {
	done := phase("cluster up")
	if err := c.Up(ctx, os.Stdout); err != nil {
		return err
	}
	done()
	defer phase("crd-ipam installed")()
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	if err := c.Load(ctx, filepath.Join(root, "bin", "image-"+runtime.GOARCH+".docker.tar")); err != nil {
		return err
	}
	return install(ctx)
}

// install applies this project's manifests and waits until all of it runs.
func install(ctx context.Context) error {
	if out, err := c.Kubectl(ctx, "create", "namespace", poolsNamespace); err != nil && !strings.Contains(err.Error(), "AlreadyExists") {
		return fmt.Errorf("%w\n%s", err, out)
	}
	for _, dir := range []string{crds(), overlay()} {
		if _, err := c.Kubectl(ctx, "apply", "-k", dir); err != nil {
			return err
		}
	}
	return installed(ctx)
}

// oldest reports whether the cluster is of the oldest version, which has manifests of its own.
func oldest() bool {
	return walkthroughOnly || cell != nil && strings.HasPrefix(cell.Kubernetes, "1.30.")
}

func overlay() string {
	if oldest() {
		return "testdata/install-1.30"
	}
	return "testdata/install"
}

func crds() string {
	if oldest() {
		return "../../manifests/overlays/crds-k8s-1.30"
	}
	return "../../manifests/overlays/crds"
}

func installed(ctx context.Context) error {
	for _, workload := range []string{"daemonset/nv-ipam-node", "deployment/nv-ipam-controller"} {
		if _, err := c.Kubectl(ctx, "rollout", "status", "-n", poolsNamespace, "--timeout=3m", workload); err != nil {
			return err
		}
	}
	return nil
}

// takeDown ends the cluster and looks for what is left of it.
func takeDown() error {
	if err := c.Down(); err != nil {
		return err
	}
	if _, err := os.Stat(c.Dir()); err == nil {
		return fmt.Errorf("%s is still there", c.Dir())
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	cgroups, err := filepath.Glob("/sys/fs/cgroup/*/crd-ipam-cluster")
	if err != nil {
		return err
	}
	processes, err := processesOf(c.Dir())
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), c.Dir()) || len(cgroups) > 0 || len(processes) > 0 {
		return fmt.Errorf("left behind: cgroups %v, processes %v, or mounts:\n%s", cgroups, processes, mounts)
	}
	return nil
}

// processesOf are the command lines that name the cluster's directory, or one of
// its programs that run on nodes.
func processesOf(dir string) (found []string, err error) {
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range paths {
		line, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		text := strings.ReplaceAll(string(line), "\x00", " ")
		if strings.Contains(text, dir) || strings.Contains(text, "containerd-shim-runc-v2 -namespace k8s.io") || strings.Contains(text, "/kubelet --config=") {
			found = append(found, text)
		}
	}
	return found, err
}

// ctx is for what is done when a test's own context has ended.
func ctx() context.Context { return context.Background() }

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// What the real command serves is what there is, and what the document says.
func TestMetrics(t *testing.T) {
	c := seedCluster(t)
	c.patchNode(t, "kind-worker2", `{"status":{"conditions":[{"type":"Ready","status":"Unknown"}]}}`, "status")
	// Room for two of three workers, with one address and none beside the gateway.
	c.Pool(t, "small", v1alpha1.IPPoolSpec{Subnet: "192.168.9.0/30", PerNodeBlockSize: 1, NodeSelector: workers()})
	c.Pool(t, "wrong", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10, Gateway: "10.0.1.1"})
	_, err := c.IPAM.CIDRPools(c.NS).Create(t.Context(), &v1alpha1.CIDRPool{
		ObjectMeta: metav1.ObjectMeta{Name: "huge"}, Spec: v1alpha1.CIDRPoolSpec{CIDR: "fd00::/48", PerNodeNetworkPrefix: 64, NodeSelector: workers()},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.hold(t, "pool1", "192.168.0.101", "kind-worker", c.startPod(t, "alive", nil))
	c.hold(t, "pool1", "192.168.0.102", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "leaked", UID: gone})
	c.hold(t, "pool1", "192.168.0.103", "kind-worker", v1alpha1.PodReference{Namespace: c.NS, Name: "unknown", UID: static})
	c.hold(t, "pool1", "192.168.0.201", "kind-worker2", v1alpha1.PodReference{Namespace: c.NS, Name: "lost", UID: gone})
	c.hold(t, "small", "192.168.9.1", "kind-control-plane", c.startPodOn(t, "kind-control-plane", "full", nil))
	// What the plugin would not take: outside of the node's block, and of the subnet.
	for _, a := range []string{"192.168.9.3", "1.2.3.4"} {
		c.hold(t, "small", a, "kind-worker", c.startPod(t, "hostile-"+a, nil))
	}
	c.Pool(t, "shared", v1alpha1.IPPoolSpec{Subnet: "10.20.0.0/24"})
	c.hold(t, "shared", "10.20.0.9", "kind-worker", c.startPod(t, "sharing", nil))
	c.hold(t, "deleted", "10.9.9.9", "kind-worker", c.startPod(t, "orphan", nil))

	leader := c.startCommand(t, "leader")
	want := map[string]float64{
		`crd_ipam_leader`: 1,
		`crd_ipam_pool_ready{kind="IPPool",pool="pool1",reason="BlocksAssigned"}`: 1,
		`crd_ipam_pool_capacity{kind="IPPool",pool="pool1"}`:                      290, // without 192.168.0.1 to .10
		`crd_ipam_pool_used{kind="IPPool",pool="pool1"}`:                          3,
		`crd_ipam_pool_blocks{kind="IPPool",pool="pool1"}`:                        3,
		`crd_ipam_pool_blocks_full{kind="IPPool",pool="pool1"}`:                   0,
		`crd_ipam_pool_nodes_without_block{kind="IPPool",pool="pool1"}`:           0,
		`crd_ipam_pool_overlaps{kind="IPPool",pool="pool1"}`:                      1,
		`crd_ipam_pool_addresses_outside_block{kind="IPPool",pool="pool1"}`:       0,
		`crd_ipam_pool_foreign_addresses{kind="IPPool",pool="pool1"}`:             0,

		`crd_ipam_pool_ready{kind="IPPool",pool="small",reason="NoFreeRanges"}`: 0,
		`crd_ipam_pool_capacity{kind="IPPool",pool="small"}`:                    2,
		`crd_ipam_pool_used{kind="IPPool",pool="small"}`:                        3,
		`crd_ipam_pool_addresses_outside_block{kind="IPPool",pool="small"}`:     1,
		`crd_ipam_pool_foreign_addresses{kind="IPPool",pool="small"}`:           1,
		`crd_ipam_pool_blocks{kind="IPPool",pool="small"}`:                      2,
		`crd_ipam_pool_blocks_full{kind="IPPool",pool="small"}`:                 1,
		`crd_ipam_pool_nodes_without_block{kind="IPPool",pool="small"}`:         1,
		`crd_ipam_pool_overlaps{kind="IPPool",pool="small"}`:                    1,

		`crd_ipam_pool_ready{kind="IPPool",pool="wrong",reason="InvalidSpec"}`: 0,
		`crd_ipam_pool_used{kind="IPPool",pool="wrong"}`:                       0,
		`crd_ipam_pool_capacity{kind="CIDRPool",pool="huge"}`:                  1<<53 - 1,

		`crd_ipam_pool_top_node_used{kind="IPPool",node="kind-worker",pool="shared"}`: 1,
		`crd_ipam_allocations_without_pool`:                                           1,
		`crd_ipam_held{reason="node_unreachable"}`:                                    1,
		`crd_ipam_held{reason="node_not_ready"}`:                                      0,
		`crd_ipam_held{reason="pod_unknown"}`:                                         1,
		`crd_ipam_held{reason="reclaim_disabled"}`:                                    0,
		`crd_ipam_held{reason="sandbox_unclear"}`:                                     0,
		`crd_ipam_leak_candidates{reason="pod_gone"}`:                                 0,
		`crd_ipam_reclaimed_total{reason="pod_gone"}`:                                 1,
		`crd_ipam_reclaimed_total{reason="pod_replaced"}`:                             0,
		`crd_ipam_errors_total{queue="allocations"}`:                                  0,
		`crd_ipam_errors_total{queue="nodes"}`:                                        0,
		`crd_ipam_workqueue_depth{name="allocations"}`:                                0,
		`crd_ipam_workqueue_retries_total{name="allocations"}`:                        0, // looks that are due later are none
	}
	var all map[string]float64
	rig.Until(t, func() string {
		all, err = scrape(leader)
		if err != nil {
			return err.Error()
		}
		for name, value := range want {
			if got, found := all[name]; !found || got != value {
				return fmt.Sprintf("%s is %v (%v), want %v", name, got, found, value)
			}
		}
		return ""
	})
	for name := range all {
		if strings.HasPrefix(name, "crd_ipam_pool_capacity{") && strings.Contains(name, "wrong") {
			t.Errorf("%s: its specification is invalid", name)
		}
	}
	for _, name := range []string{`crd_ipam_api_requests_total{code="200",method="GET"}`, "go_goroutines", "process_resident_memory_bytes"} {
		if all[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
	documented(t, all)

	// One that stands by says so, and nothing of what it does not see.
	standby := c.startCommand(t, "standby")
	rig.Until(t, func() string {
		if all, err = scrape(standby); err != nil {
			return err.Error()
		}
		return ""
	})
	if got, found := all["crd_ipam_leader"]; !found || got != 0 {
		t.Errorf("standby: crd_ipam_leader is %v", got)
	}
	for name := range all {
		if strings.HasPrefix(name, "crd_ipam_pool_") || strings.HasPrefix(name, "crd_ipam_held") {
			t.Errorf("standby serves %s", name)
		}
	}
}

// documented checks that docs/metrics.md has the metrics that are served, and no
// others.
func documented(t *testing.T, all map[string]float64) {
	t.Helper()
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	histogram := regexp.MustCompile(`(_seconds)_(bucket|sum|count)$`)
	served := map[string]bool{}
	for name := range all {
		name, _, _ = strings.Cut(name, "{")
		if strings.HasPrefix(name, "crd_ipam_") {
			served[histogram.ReplaceAllString(name, "$1")] = true
		}
	}
	inTable, named := map[string]bool{}, map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(crd_ipam_[a-z_]+)`").FindAllStringSubmatch(string(doc), -1) {
		inTable[m[1]] = true
	}
	for _, m := range regexp.MustCompile(`crd_ipam_[a-z_]+`).FindAllString(string(doc), -1) {
		named[m] = true
	}
	wantNames := slices.Sorted(maps.Keys(served))
	for what, got := range map[string]map[string]bool{"the table has": inTable, "the document names": named} {
		if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, wantNames) {
			t.Errorf("docs/metrics.md: %s\n%q, served are\n%q", what, names, wantNames)
		}
	}
	reason := regexp.MustCompile(`reason="([a-z_]+)"`)
	for name := range all {
		if m := reason.FindStringSubmatch(name); m != nil && !strings.Contains(string(doc), "\n| `"+m[1]+"` |") {
			t.Errorf("docs/metrics.md does not explain the reason %s", m[1])
		}
	}
}

// startCommand runs bin/ipam-controller until the end of the test and returns the
// address of its metrics.
func (c *cluster) startCommand(t *testing.T, name string) string {
	t.Helper()
	binary := rig.Binary(t, "ipam-controller")
	address := rig.FreePort(t)
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "--kubeconfig="+env.Kubeconfig, "--ippools-namespace="+c.NS, "--reclaim-grace=1s", "--reclaim-grace-ready-node=1s",
		"--leader-elect=true", "--leader-elect-namespace="+c.NS, "--health-probe-bind-address=0", "--metrics-bind-address="+address)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		err := cmd.Wait()
		if out, _ := os.ReadFile(log.Name()); err != nil || t.Failed() {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		_ = log.Close()
	})
	return address
}

// scrape returns the value of each series, by its name and labels.
func scrape(address string) (map[string]float64, error) {
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return nil, fmt.Errorf("%s: %s", resp.Status, body)
	}
	out := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		line := lines.Text()
		if strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if out[line[:i]], err = strconv.ParseFloat(line[i+1:], 64); err != nil {
			return nil, fmt.Errorf("%q: %w", line, err)
		}
	}
	return out, nil
}

// The pool's status counts, seldom writes only for that, and what a node has
// read of the pool still holds.
func TestUsage(t *testing.T) {
	c := seedCluster(t)
	const seldom = 2 * time.Second
	w, stop := c.run(t, controller.Options{Usage: seldom, Settle: time.Millisecond})
	c.wantPool(t, "pool1", "BlocksAssigned", seedBlocks...)
	c.wantUsage(t, "pool1", 290, 0)
	before, _ := manager(t, c.GetPool(t, "pool1"))
	generation := c.GetPool(t, "pool1").Generation
	writes, start := len(w.of("ippools")), time.Now()

	pod := c.startPod(t, "p", nil)
	for i := range 50 {
		c.hold(t, "pool1", fmt.Sprintf("192.168.0.%d", 101+i), "kind-worker", pod)
		// All pools are reconciled for that.
		c.patchNode(t, "not-a-worker", fmt.Sprintf(`{"metadata":{"labels":{"n":"%d"}}}`, i))
	}
	c.wantUsage(t, "pool1", 290, 50)
	if n, most := len(w.of("ippools"))-writes, int(time.Since(start)/(seldom-time.Second))+2; n > most { // the time of a write is to the second
		t.Errorf("%d writes for 50 allocations, want at most %d", n, most)
	}
	after, owners := manager(t, c.GetPool(t, "pool1"))
	if after != before || !slices.Equal(owners, []string{before}) || c.GetPool(t, "pool1").Generation != generation {
		t.Errorf("counting made the owners of the blocks %q, had %q", owners, before)
	}

	patch := []byte(`{"spec":{"exclusions":[{"startIP":"192.168.0.0","endIP":"192.168.0.10"},{"startIP":"192.168.0.199","endIP":"192.168.0.202"}]}}`)
	if _, err := c.IPAM.IPPools(c.NS).Patch(t.Context(), "pool1", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	c.wantUsage(t, "pool1", 286, 50)

	stop() // who starts again knows when the counts were written
	c.hold(t, "pool1", "192.168.0.151", "kind-worker", pod)
	w, _ = c.run(t, controller.Options{Usage: time.Hour, Settle: time.Millisecond})
	c.Pool(t, "later", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 2})
	c.wantPool(t, "later", "BlocksAssigned",
		"kind-control-plane 10.0.0.1 10.0.0.2", "kind-worker 10.0.0.3 10.0.0.4", "kind-worker2 10.0.0.5 10.0.0.6", "not-a-worker 10.0.0.7 10.0.0.8")
	if all := w.of("ippools/pool1"); len(all) > 0 {
		t.Errorf("writes %q after a start, want none", all)
	}
}

func (c *cluster) wantUsage(t *testing.T, name string, capacity, used int64) {
	t.Helper()
	rig.Until(t, func() string {
		s := c.GetPool(t, name).Status
		if s.Capacity == nil || *s.Capacity != capacity || s.Used == nil || *s.Used != used {
			return fmt.Sprintf("pool %s: %+v, want capacity %d and %d used", name, s.PoolStatus, capacity, used)
		}
		return ""
	})
}

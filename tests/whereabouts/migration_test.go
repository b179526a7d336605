// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// settled is an inFlight that is over at once: nothing is under way in these tests.
const settled = "--settle=1ns"

// All that whereabouts can have, step by step, as docs/migration.md says it.
func TestMigration(t *testing.T) {
	c := newCluster(t)
	for _, n := range []string{"node-a", "node-b"} {
		c.Node(t, n, nil)
	}
	c.startSlices(t)
	for name, ipam := range map[string]string{
		"plain": `{"type":"whereabouts","range":"10.1.0.0/24","range_start":"10.1.0.20","range_end":"10.1.0.99","exclude":["10.1.0.20/31"],"gateway":"10.1.0.1"}`,
		"wide":  `{"type":"whereabouts","range":"10.1.0.0/16"}`, // overlaps with plain
		"dual":  `{"type":"whereabouts","ipRanges":[{"range":"10.3.0.0/24"},{"range":"fd00:3::/64"}]}`,
		"named": `{"type":"whereabouts","range":"10.1.0.0/24","network_name":"blue"}`, // unique in blue alone
		"alone": `{"type":"whereabouts","range":"10.1.0.0/24","network_name":"green","enable_overlapping_ranges":false}`,
		"slice": `{"type":"whereabouts","range":"10.5.0.0/24","node_slice_size":"/27","network_name":"sliced"}`,
		"dns":   `{"type":"whereabouts","range":"10.6.0.0/24","dns":{"nameservers":["10.6.0.1"]}}`,
	} {
		c.network(t, name, ipam)
	}
	given := map[string][]string{}
	for _, a := range []attachment{
		{network: "plain", node: "node-a", pod: "plain-a"}, {network: "plain", node: "node-b", pod: "plain-b"}, {network: "wide", node: "node-b", pod: "wide-b"},
		{network: "dual", node: "node-a", pod: "dual-a"}, {network: "named", node: "node-a", pod: "named-a"}, {network: "alone", node: "node-b", pod: "alone-b"},
		{network: "dns", node: "node-a", pod: "dns-a"},
	} {
		given[a.pod] = c.add(t, a.network, a.node, a.pod)
	}
	c.awaitSlices(t)
	given["slice-b"] = c.add(t, "slice", "node-b", "slice-b")
	c.add(t, "plain", "node-a", "stale") // its pod goes, and no DEL comes
	c.kubectl(t, "-n", c.NS, "delete", "pod", "stale", "--grace-period=0", "--force")

	// The dry run says it all, and writes nothing.
	before := c.versions(t)
	plan := c.migrate(t, "plan", settled)
	for _, words := range []string{
		"network " + c.NS + "/dns: dns: there is nothing like it", "IPPool 10.1.0.0-24: 10.1.0.24 of pod " + c.NS + "/stale: the pod does not exist",
		"OverlappingRangeIPReservation 10.1.0.24", "9 addresses: 9 to claim, 0 already claimed, 0 obsolete, 0 conflicts; 3 cannot be mapped",
		"# disabled: network " + c.NS + "/plain still uses whereabouts",
	} {
		if !strings.Contains(plan, words) {
			t.Errorf("the plan does not say %q:\n%s", words, plan)
		}
	}
	if after := c.versions(t); after != before {
		t.Errorf("the dry run has written:\n%s\nbefore\n%s", after, before)
	}

	// Without the pools it claims nothing.
	if out, err := c.tryMigrate(t, "apply", settled); err == nil || !strings.Contains(err.Error(), "apply them first") {
		t.Errorf("claims without pools: %v\n%s", err, out)
	}
	c.RunController(t.Context(), t, rig.ControllerClients(t, env.Config, nil), controller.Options{})
	c.applyPools(t, settled)
	if out := c.migrate(t, "apply", settled); !strings.Contains(out, "9 allocations were created") {
		t.Errorf("apply says\n%s", out)
	}
	slice, _, _ := strings.Cut(given["slice-b"][0], "/") // which node has the first one, whereabouts does not say
	want := []string{
		"blue 10.1.0.1 blue-10.1.0.0-24 node-a named-a",
		"green-10.1.0.0-24 10.1.0.1 green-10.1.0.0-24 node-b alone-b",
		"sliced " + slice + " sliced-10.5.0.0-24 node-b slice-b",
		"whereabouts 10.1.0.1 10.1.0.0-16 node-b wide-b",
		"whereabouts 10.1.0.22 10.1.0.0-24 node-a plain-a",
		"whereabouts 10.1.0.23 10.1.0.0-24 node-b plain-b",
		"whereabouts 10.3.0.1 10.3.0.0-24 node-a dual-a",
		"whereabouts 10.6.0.1 10.6.0.0-24 node-a dns-a",
		"whereabouts fd00:3::1 fd00-3---64 node-a dual-a",
	}
	if got := c.held(t); !slices.Equal(got, want) {
		t.Errorf("held\n%s\nwant\n%s\ngiven were %v", strings.Join(got, "\n"), strings.Join(want, "\n"), given)
	}

	// A second run changes nothing.
	before = c.versions(t)
	if out := c.migrate(t, "apply", settled); !strings.Contains(out, "0 allocations were created") || !strings.Contains(out, "0 to claim, 9 already claimed") {
		t.Errorf("the second run says\n%s", out)
	}
	if after := c.versions(t); after != before {
		t.Errorf("the second run has written:\n%s\nbefore\n%s", after, before)
	}

	// Switched, but not enabled yet: nobody gives anything in these ranges.
	c.patchNetworks(t)
	rig.Pod(t, c.Kube, c.NS, "early", "node-a")
	if got, plugin, err := c.call(t.Context(), t, "ADD", attachment{"plain", "node-a", "early", "c-early"}); err == nil || plugin != "nv-ipam" || !strings.Contains(err.Error(), "disabled") {
		t.Errorf("%s gives %v, %v in a pool that is not enabled", plugin, got, err)
	}
	// Not before an ADD of whereabouts that is under way is over.
	if pools := c.migrate(t, "pools"); pools != "" {
		t.Errorf("right after the switch there are pools to enable:\n%s", pools)
	}
	c.applyPools(t, settled)
	if got := c.disabled(t); !slices.Equal(got, []string{"10.6.0.0-24"}) {
		t.Errorf("disabled are %q, want the one whose network cannot be switched", got)
	}
	c.awaitCarved(t)
	for pod, a := range map[string]attachment{
		"10.1.0.0/24": {network: "plain"}, "10.1.0.0/16": {network: "wide"}, "10.3.0.0/24,fd00:3::/64": {network: "dual"}, "blue": {network: "named"}, "sliced": {network: "slice"},
	} {
		name := "new-" + a.network
		got := c.add(t, a.network, "node-a", name)
		for _, address := range got {
			for other, theirs := range given {
				if slices.Contains(theirs, address) && a.network != "named" {
					t.Errorf("%s: %s has %s, which %s has", pod, name, address, other)
				}
			}
		}
	}
	// A pod that whereabouts has served ends: its DEL goes by the new configuration.
	if _, _, err := c.call(t.Context(), t, "DEL", attachment{"plain", "node-b", "plain-b", "c-plain-b"}); err != nil {
		t.Error(err)
	}
	rig.Until(t, func() string {
		if slices.ContainsFunc(c.held(t), func(s string) bool { return strings.HasSuffix(s, " plain-b") }) {
			return "the DEL has not released what was claimed for the pod"
		}
		return ""
	})
}

// An address that somebody else has by now is a finding, and everything else about the other
// pods is done.
func TestConflict(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "node-a", nil)
	c.network(t, "plain", `{"type":"whereabouts","range":"10.9.0.0/24"}`)
	first, second := c.add(t, "plain", "node-a", "first"), c.add(t, "plain", "node-a", "second")
	c.applyPools(t, settled)
	address := strings.TrimSuffix(first[0], "/24")
	a := rig.Allocation("10.9.0.0-24", address, "node-a", rig.Pod(t, c.Kube, c.NS, "other", "node-a"), "c-other")
	a.Name, a.Spec.Domain = "whereabouts."+address, "whereabouts"
	c.Claim(t, c.IPAM, a)

	out, err := c.tryMigrate(t, "apply", settled)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(err.Error(), "addresses are held twice: 1 of them") || !strings.Contains(out, "CONFLICT") {
		t.Errorf("%v\n%s", err, out)
	}
	if held := c.held(t); !slices.Contains(held, "whereabouts "+strings.TrimSuffix(second[0], "/24")+" 10.9.0.0-24 node-a second") {
		t.Errorf("held %q, the second pod has %q", held, second)
	}
}

// What cannot be is refused, in words that name it.
func TestRefusals(t *testing.T) {
	for want, args := range map[string][]string{
		"-n has to name the namespace of the pools":                             {},
		`the step must be one of plan, pools, patches, apply, not "everything"`: {"-n", "ml", "everything"},
		"--settle must not be negative: -1s":                                    {"-n", "ml", "--settle=-1s"},
		"-o json is not for migrate":                                            {"-n", "ml", "-o", "json"},
	} {
		cmd := exec.CommandContext(t.Context(), rig.Binary(t, "kubectl-ipam"), append([]string{"migrate", "whereabouts", "--kubeconfig=" + env.Kubeconfig}, args...)...)
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v: %s, want %q", args, err, out, want)
		}
	}
}

// startSlices runs whereabouts' controller of node slices until the end of the test.
func (c *cluster) startSlices(t *testing.T) {
	t.Helper()
	log := &rig.Log{}
	cmd := exec.CommandContext(t.Context(), filepath.Join(c.dir, "nodeslicecontroller"), "-kubeconfig="+env.Kubeconfig)
	cmd.Env = []string{"WHEREABOUTS_NAMESPACE=" + theirs}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Wait() // it was killed
		if t.Failed() {
			t.Logf("node slice controller:\n%s", log)
		}
	})
}

func (c *cluster) awaitSlices(t *testing.T) {
	t.Helper()
	rig.Until(t, func() string {
		out, err := env.Kubectl(t.Context(), "-n", theirs, "get", "nodeslicepools", "sliced", "-o", "jsonpath={.status.allocations[*].nodeName}")
		if err != nil || !strings.Contains(out, "node-b") {
			return "no slice for node-b: " + out
		}
		return ""
	})
}

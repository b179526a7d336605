// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/matrix"
)

// cell is the cell of the matrix that the cluster is, by its number in E2E_CELL; nil where
// that is not set.
var cell = cellOf(os.Getenv("E2E_CELL"))

func cellOf(number string) *matrix.Cell {
	if number == "" {
		return nil
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || n >= len(matrix.Cells) {
		panic(fmt.Sprintf("E2E_CELL=%q is no number of a cell", number))
	}
	return &matrix.Cells[n]
}

// What a user needs in any case, on each kind of network that the cell has. The networks are
// there side by side, and their pods mostly wait.
func TestCell(t *testing.T) {
	if cell == nil {
		t.Skip("make e2e-matrix runs it, which sets E2E_CELL")
	}
	needsOwnCluster(t, "it crashes a node")
	var scenes []*cellScene
	for i, n := range cell.Networks {
		scenes = append(scenes, newCellScene(t, i, n))
	}
	each := func(step string, run func(*cellScene, *testing.T)) {
		t.Run(step, func(t *testing.T) {
			for _, s := range scenes {
				t.Run(s.Name(), func(t *testing.T) {
					t.Parallel()
					run(s, t)
				})
			}
		})
	}
	each("static", (*cellScene).static)
	each("StatefulSet", (*cellScene).statefulSet)
	for _, s := range scenes {
		s.beforeReboot(t)
	}
	crashAndBoot(t, secondNode)
	each("reboot", (*cellScene).afterReboot)
	each("GC", (*cellScene).collect)
	each("observed", (*cellScene).observe)
}

// cellScene has a network of the cell, whose pods get an address of each pool, and another
// one that notes what the IPAM plugin is called with.
type cellScene struct {
	*scene
	matrix.Network
	cell, seen string // the networks
	pools      []string
	requested  []string // an address of each

	held    map[string]v1alpha1.IPAllocation // before the reboot
	members map[string][]string              // the StatefulSet's pods and their addresses then
}

const (
	seenLog      = "/var/log/recorder.log"
	firstNode    = "kind-worker"
	secondNode   = "kind-worker2"
	members      = 2
	recorderFile = "/opt/cni/bin/recorder"
)

// recorder is an IPAM plugin that notes how it was called, and lets nv-ipam answer.
const recorder = `#!/bin/sh
input=$(cat)
printf '%s\t%s\t%s\n' "$CNI_COMMAND" "$CNI_ARGS" "$(printf %s "$input" | tr '\n\t' '  ')" >>` + seenLog + `
printf %s "$input" | /opt/cni/bin/nv-ipam
`

func newCellScene(t *testing.T, i int, n matrix.Network) *cellScene {
	t.Helper()
	s := &cellScene{scene: newSceneIn(t, "cell-"+n.Name()), Network: n, cell: fmt.Sprint("cell-", i), seen: fmt.Sprint("seen-", i)}
	for _, pool := range []struct{ family, name, subnet, requested string }{
		{matrix.IPv4, "four", fmt.Sprintf("10.6%d.0.0/16", i), fmt.Sprintf("10.6%d.0.5", i)},
		{matrix.IPv6, "six", fmt.Sprintf("fd00:6%d::/64", i), fmt.Sprintf("fd00:6%d::5", i)},
	} {
		if n.Family == pool.family || n.Family == matrix.Dual {
			name := fmt.Sprintf("%s-%d", pool.name, i)
			s.customPool("IPPool", name, "subnet: "+pool.subnet+"\n  perNodeBlockSize: 64\n  sticky: [StatefulSet]")
			s.pools, s.requested = append(s.pools, name), append(s.requested, pool.requested)
		}
	}
	for name, ipam := range map[string]string{s.cell: "nv-ipam", s.seen: "recorder"} {
		s.networkConfig(name, s.config(name, ipam))
	}
	for _, node := range []string{firstNode, secondNode} {
		if err := os.WriteFile(c.Node(node).Disk(recorderFile), []byte(recorder), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(c.Node(node).Disk(seenLog)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// config of a network with an IPAM plugin.
func (s *cellScene) config(name, ipam string) string {
	return fmt.Sprintf(`{"cniVersion": %q, "name": %q, "type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": %q, "poolName": %q}}`,
		s.CNIVersion, name, ipam, strings.Join(s.pools, ","))
}

// of is the scene for a subtest.
func (s *cellScene) of(t *testing.T) *scene { return &scene{t: t, name: s.name} }

// A requested address is another node's pod's: the pod waits, is told whose it is, and gets
// it when that has gone.
func (s *cellScene) static(t *testing.T) {
	sub := s.of(t)
	networks := fmt.Sprintf(`[{"name": %q, "ips": ["%s"]}]`, s.cell, strings.Join(s.requested, `", "`))
	sub.pod("holds", firstNode, networks)
	sub.running("holds")
	sub.pod("waits", secondNode, networks)
	failure(t, s.name, "waits", `requested IP is already reserved in the pool "`+s.pools[0])
	failure(t, s.name, "waits", s.name+"/holds")
	kubectl(t, "delete", "pod", "-n", s.name, "holds", "--timeout=3m")
	sub.running("waits")
	if got := sub.addresses("waits", "net1"); !slices.Equal(got, s.requested) {
		t.Errorf("waits has %v, asked for %v", got, s.requested)
	}
	kubectl(t, "delete", "pod", "-n", s.name, "waits", "--timeout=3m")
}

// The pods of a StatefulSet keep their addresses when they start again, there and elsewhere.
func (s *cellScene) statefulSet(t *testing.T) {
	sub := s.of(t)
	sub.statefulSet(s.cell, firstNode, members)
	before := sub.memberAddresses(members)
	kubectl(t, "delete", "pod", "-n", s.name, "member-1", "--timeout=3m")
	sub.membersRun(firstNode, members)
	if now := sub.memberAddresses(members); !maps.EqualFunc(now, before, slices.Equal) {
		t.Errorf("after a restart they have %v, before it %v", now, before)
	}
	sub.moveMembers(secondNode)
	sub.membersRun(secondNode, members)
	if now := sub.memberAddresses(members); !maps.EqualFunc(now, before, slices.Equal) {
		t.Errorf("elsewhere they have %v, before it %v", now, before)
	}
	for pod, addresses := range before {
		if len(addresses) != len(s.pools) {
			t.Errorf("%s has %v", pod, addresses)
		}
	}
}

// beforeReboot notes what is held, by the pods of the node that is going to crash and by others.
func (s *cellScene) beforeReboot(t *testing.T) {
	s.held, s.members = allocations(t, s.name), s.of(t).memberAddresses(members)
}

// crashAndBoot has a node crash and start again.
func crashAndBoot(t *testing.T, node string) {
	t.Helper()
	if err := c.Node(node).Crash(); err != nil {
		t.Fatal(err)
	}
	notReady(t, node)
	boot(t, node)
}

// The node of those pods has crashed and booted: all that was held is given back or taken over.
func (s *cellScene) afterReboot(t *testing.T) {
	eventually(t, "all sandboxes to be new", func() error {
		held, err := listAllocations(s.name)
		if err != nil {
			return err
		}
		if len(held) != len(s.held) {
			return fmt.Errorf("%v are held, before the crash %v", slices.Sorted(maps.Keys(held)), slices.Sorted(maps.Keys(s.held)))
		}
		for address, a := range held {
			if old, ok := s.held[address]; ok && old.Spec.ContainerID == a.Spec.ContainerID {
				return fmt.Errorf("%s is held for the container of before the crash", address)
			}
		}
		return nil
	})
	sub := s.of(t)
	sub.membersRun(secondNode, members)
	if now := sub.memberAddresses(members); !maps.EqualFunc(now, s.members, slices.Equal) {
		t.Errorf("after the crash they have %v, before it %v", now, s.members)
	}
}

// GC frees what a container left behind that the runtime has forgotten, and nothing else. The
// runtime here does not call it for networks of multus, and main plugins do not pass it on
// (TestWhatMainPluginsPassOn), so this calls the IPAM plugin itself.
func (s *cellScene) collect(t *testing.T) {
	if s.CNIVersion != "1.1.0" {
		t.Skip("GC came with CNI 1.1.0")
	}
	sub := s.of(t)
	sub.pod("forgotten", secondNode, "") // a node may read its own pods only
	sub.running("forgotten")
	held := allocations(t, s.name)
	var valid []map[string]string
	for _, a := range held {
		if a.Spec.NodeName == secondNode {
			valid = append(valid, map[string]string{"containerID": a.Spec.ContainerID, "ifname": a.Spec.InterfaceName})
		}
	}
	config := map[string]any{}
	if err := json.Unmarshal([]byte(s.config(s.cell, "nv-ipam")), &config); err != nil {
		t.Fatal(err)
	}
	callPlugin(t, secondNode, config, "CNI_COMMAND=ADD", "CNI_CONTAINERID=forgotten", "CNI_IFNAME=net1",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE="+s.name+";K8S_POD_NAME=forgotten")
	if now := allocations(t, s.name); len(now) != len(held)+len(s.pools) {
		t.Fatalf("with one container more %v are held", slices.Sorted(maps.Keys(now)))
	}
	config["cni.dev/valid-attachments"] = valid
	// One that has begun a moment ago may be missing in a list that is older.
	eventually(t, "what is left to be freed", func() error {
		callPlugin(t, secondNode, config, "CNI_COMMAND=GC")
		if now := allocations(t, s.name); !slices.Equal(slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(held))) {
			return fmt.Errorf("held are %v, before it %v", slices.Sorted(maps.Keys(now)), slices.Sorted(maps.Keys(held)))
		}
		return nil
	})
}

// observe notes with what a pod's start and end, and a reboot, have called the IPAM plugin:
// for the table in docs/compatibility-matrix.md.
func (s *cellScene) observe(t *testing.T) {
	sub := s.of(t)
	sub.pod("seen", firstNode, s.seen)
	sub.running("seen")
	kubectl(t, "delete", "pod", "-n", s.name, "seen", "--timeout=3m")
	log := c.Node(firstNode).Disk(seenLog)
	type seen struct{ uid, prevResult bool }
	calls := map[string]seen{}
	eventually(t, "ADD and DEL", func() error {
		data, err := os.ReadFile(log)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			fields := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
			if len(fields) == 3 && !strings.Contains(fields[1], "K8S_POD_NAMESPACE="+s.name+";") {
				continue // of the other network
			}
			var input struct {
				CNIVersion string          `json:"cniVersion"`
				PrevResult json.RawMessage `json:"prevResult"`
			}
			if len(fields) != 3 || json.Unmarshal([]byte(fields[2]), &input) != nil {
				return fmt.Errorf("%s has the line %q", filepath.Base(log), line)
			}
			if input.CNIVersion != s.CNIVersion {
				t.Errorf("%s has cniVersion %s", fields[0], input.CNIVersion)
			}
			calls[fields[0]] = seen{strings.Contains(fields[1], "K8S_POD_UID="), input.PrevResult != nil}
		}
		for _, verb := range []string{"ADD", "DEL"} {
			if _, ok := calls[verb]; !ok {
				return fmt.Errorf("no %s in %s", verb, data)
			}
		}
		return nil
	})
	verbs := slices.Sorted(maps.Keys(calls))
	with := func(has func(seen) bool) string {
		var list []string
		for _, verb := range verbs {
			if has(calls[verb]) {
				list = append(list, verb)
			}
		}
		if len(list) == 0 {
			return "none"
		}
		return strings.Join(list, ", ")
	}
	t.Attr("calls", strings.Join(verbs, ", "))
	t.Attr("K8S_POD_UID", with(func(s seen) bool { return s.uid }))
	t.Attr("prevResult", with(func(s seen) bool { return s.prevResult }))
}

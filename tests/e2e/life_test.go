// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// An address rests after its pod: kubectl shows until when, another pod that asks for it is
// told, and gets it when the cooldown is over.
func TestCooldown(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "rests", "subnet: 10.44.0.0/16\n  perNodeBlockSize: 64\n  releaseCooldown: 20s")
	s.network("rests", `"poolName": "rests"`)
	s.pod("first", "kind-worker", `[{"name": "rests", "ips": ["10.44.0.9"]}]`)
	s.running("first")
	kubectl(t, "delete", "pod", "-n", s.name, "first")
	eventually(t, "the address rests", func() error {
		out, err := c.Kubectl(t.Context(), "get", "ipallocations", "-n", poolsNamespace, "-l", "nv-ipam.nvidia.com/released", "--no-headers")
		if err == nil && !strings.Contains(out, "10.44.0.9") {
			err = fmt.Errorf("kubectl get shows %q", out)
		}
		return err
	})
	s.pod("second", "kind-worker2", `[{"name": "rests", "ips": ["10.44.0.9"]}]`)
	failure(t, s.name, "second", "10.44.0.9 is released by pod "+s.name+"/first on node kind-worker")
	s.running("second")
	if got := s.addresses("second", "net1"); strings.Join(got, " ") != "10.44.0.9" {
		t.Errorf("second has %v", got)
	}
}

// A reserved address is its pod's only, on whatever node it starts; and it is kept when the
// pod ends.
func TestReservation(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "kept", "subnet: 10.45.0.0/16\n  perNodeBlockSize: 64")
	s.network("kept", `"poolName": "kept"`)
	apply(t, fmt.Sprintf(`apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPReservation
metadata:
  name: kept
  namespace: %s
spec:
  poolRef: {kind: IPPool, name: kept}
  addresses: ["10.45.0.7", "10.45.0.1-10.45.0.62", "10.45.0.65-10.45.0.126"]
  pod: {namespace: %s, name: database}
  reason: a test
`, poolsNamespace, s.name))
	t.Cleanup(func() {
		if _, err := c.Kubectl(ctx(), "delete", "ipreservation", "-n", poolsNamespace, "kept"); err != nil {
			t.Error(err)
		}
	})
	kubectl(t, "wait", "-n", poolsNamespace, "--for=condition=Ready", "--timeout=1m", "ipreservation/kept")
	s.pod("thief", "kind-worker", `[{"name": "kept", "ips": ["10.45.0.7"]}]`)
	failure(t, s.name, "thief", "10.45.0.7 is reserved for pod "+s.name+"/database")
	s.pod("other", "kind-worker", "kept")
	s.running("other")
	if got := strings.Join(s.addresses("other", "net1"), " "); !slices.Contains([]string{"10.45.0.63", "10.45.0.64", "10.45.0.127", "10.45.0.128"}, got) { // all others of each block are kept
		t.Errorf("other has %v", got)
	}
	for _, node := range []string{"kind-worker", "kind-worker2"} {
		s.pod("database", node, `[{"name": "kept", "ips": ["10.45.0.7"]}]`)
		s.running("database")
		if got := s.addresses("database", "net1"); strings.Join(got, " ") != "10.45.0.7" {
			t.Errorf("database has %v on %s", got, node)
		}
		kubectl(t, "delete", "pod", "-n", s.name, "database")
	}
	failure(t, s.name, "thief", "10.45.0.7 is released at ")
}

// The pods of a StatefulSet have their addresses again: after a restart, on another node, and
// after a scale-down and up, during which kubectl shows them. They are free when it goes.
func TestStatefulSet(t *testing.T) {
	s := newScene(t)
	s.customPool("IPPool", "members", "subnet: 10.46.0.0/16\n  perNodeBlockSize: 64\n  sticky: [StatefulSet]")
	s.network("members", `"poolName": "members"`)
	s.statefulSet("members", "kind-worker", 3)
	has := map[string]string{}
	same := func(step, node string) {
		t.Helper()
		defer phase(t.Name() + " " + step)()
		s.membersRun(node, 3)
		for pod, addresses := range s.memberAddresses(3) {
			addr := addresses[0]
			if before := has[pod]; before != "" && before != addr {
				t.Errorf("%s: %s has %s, and had %s", step, pod, addr, before)
			}
			has[pod] = addr
		}
		if held := s.held(); len(held) != 3 {
			t.Errorf("%s: allocated %v", step, held)
		}
	}
	same("start", "kind-worker")
	kubectl(t, "delete", "pod", "-n", s.name, "member-1", "--timeout=3m")
	same("restart", "kind-worker")
	s.moveMembers("kind-worker2")
	same("move", "kind-worker2")
	kubectl(t, "scale", "statefulset", "-n", s.name, "member", "--replicas=0")
	kubectl(t, "wait", "-n", s.name, "--for=delete", "--timeout=3m", "pod/member-0", "pod/member-1", "pod/member-2")
	eventually(t, "the addresses are kept", func() error {
		out, err := c.Kubectl(t.Context(), "get", "ipallocations", "-n", poolsNamespace, "-l", "nv-ipam.nvidia.com/released", "-o", "wide", "--no-headers")
		for _, addr := range has {
			if err == nil && !strings.Contains(out, addr+" ") {
				err = fmt.Errorf("kubectl get shows %q without %s", out, addr)
			}
		}
		return err
	})
	kubectl(t, "scale", "statefulset", "-n", s.name, "member", "--replicas=3")
	same("scale", "kind-worker2")
	kubectl(t, "delete", "statefulset", "-n", s.name, "member", "--timeout=3m")
}

// statefulSet creates one of the name "member", whose pods are on a node.
func (s *scene) statefulSet(networks, node string, replicas int) {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: member
  namespace: %s
spec:
  serviceName: member
  podManagementPolicy: Parallel
  replicas: %d
  selector:
    matchLabels: {app: member}
  template:
    metadata:
      labels: {app: member}
      annotations:
        k8s.v1.cni.cncf.io/networks: %s
    spec:%s`, s.name, replicas, networks, strings.ReplaceAll(fmt.Sprintf(podSpec, onNode(node)), "\n    ", "\n      ")))
	s.membersRun(node, replicas)
}

// moveMembers lets the StatefulSet's pods start on another node, one after the other.
func (s *scene) moveMembers(node string) {
	s.t.Helper()
	kubectl(s.t, "patch", "statefulset", "-n", s.name, "member", "--type=merge", "-p",
		`{"spec":{"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"`+node+`"}}}}}`)
}

// membersRun waits until all pods of the StatefulSet run on a node.
func (s *scene) membersRun(node string, replicas int) {
	s.t.Helper()
	kubectl(s.t, "rollout", "status", "-n", s.name, "--timeout=3m", "statefulset/member")
	for i := range replicas {
		pod := fmt.Sprintf("member-%d", i)
		s.running(pod)
		if on := kubectl(s.t, "get", "pod", "-n", s.name, pod, "-o", "jsonpath={.spec.nodeName}"); on != node {
			s.t.Errorf("%s is on %s", pod, on)
		}
	}
}

// memberAddresses are the addresses of the StatefulSet's pods.
func (s *scene) memberAddresses(replicas int) map[string][]string {
	s.t.Helper()
	has := map[string][]string{}
	for i := range replicas {
		pod := fmt.Sprintf("member-%d", i)
		has[pod] = s.addresses(pod, "net1")
	}
	return has
}

// machines makes a network on which pods keep addresses, and returns the annotation of the pods
// of machine vm1.
func (s *scene) machines(subnet string) (networks string) {
	s.t.Helper()
	apply(s.t, rig.IPAMClaimCRD(rig.OwnerPodIsAnObject))
	kubectl(s.t, "wait", "--for=condition=Established", "crd/ipamclaims.k8s.cni.cncf.io")
	s.customPool("IPPool", "machines", "subnet: "+subnet+"\n  perNodeBlockSize: 64")
	s.network("machines", `"poolName": "machines", "allowPersistentIPs": true`)
	return `[{"name": "machines", "interface": "net1", "ipam-claim-reference": "vm1.machines"}]`
}

// claim makes the claim of machine vm1.
func (s *scene) claim() {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: k8s.cni.cncf.io/v1alpha1
kind: IPAMClaim
metadata:
  name: vm1.machines
  namespace: %s
spec:
  network: machines
  interface: ""`, s.name))
}

// A machine moves to another node and back, and then a migration fails. Both of its pods have
// its address meanwhile, and it is never free.
func TestLiveMigration(t *testing.T) {
	s := newScene(t)
	networks := s.machines("10.48.0.0/16")
	kubectl(t, "apply", "-f", filepath.Join(rig.Root(t), "manifests/components/persistent-addresses/rbac.yaml"))
	s.claim()
	s.pod("launcher-0", "kind-worker", networks)
	s.running("launcher-0")
	addr := s.addresses("launcher-0", "net1")[0]
	moves := func(to, node string) {
		t.Helper()
		s.pod(to, node, networks, "kubevirt.io/migrationJobUID: "+to)
		s.running(to)
		if got := s.addresses(to, "net1"); got[0] != addr {
			t.Errorf("the target has %v, the machine has %s", got, addr)
		}
	}
	recorded := func(want string) {
		t.Helper()
		got, err := c.Kubectl(t.Context(), "get", "ipa", "-n", poolsNamespace, "machines."+addr, "-o", "jsonpath={.spec.podRef.name} {.spec.next.podRef.name} {.spec.releasedAt}")
		if err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s is of %q, %v, want %q", addr, got, err, want)
		}
	}
	for i, node := range []string{"kind-worker2", "kind-worker"} {
		source, target := fmt.Sprint("launcher-", i), fmt.Sprint("launcher-", i+1)
		moves(target, node)
		recorded(source + " " + target)
		kubectl(t, "delete", "pod", "-n", s.name, source, "--timeout=3m")
		recorded(target)
	}
	moves("fails", "kind-worker2")
	recorded("launcher-2 fails")
	kubectl(t, "delete", "pod", "-n", s.name, "fails", "--timeout=3m")
	recorded("launcher-2")
	s.have(map[string]string{"launcher-2": addr})
	kubectl(t, "delete", "ipamclaim", "-n", s.name, "vm1.machines")
}

// The pods of a machine keep its address by an IPAMClaim, from node to node, until the claim
// is gone.
func TestIPAMClaim(t *testing.T) {
	s := newScene(t)
	networks := s.machines("10.47.0.0/16")
	s.pod("launcher-1", "kind-worker", networks)
	failure(t, s.name, "launcher-1", "IPAMClaim "+s.name+"/vm1.machines") // it is not allowed to read it, and there is none
	kubectl(t, "apply", "-f", filepath.Join(rig.Root(t), "manifests/components/persistent-addresses/rbac.yaml"))
	s.claim()
	status := func(want string) {
		t.Helper()
		eventually(t, "the claim says "+want, func() error {
			got, err := c.Kubectl(t.Context(), "get", "ipamclaim", "-n", s.name, "vm1.machines", "-o", "jsonpath={.status.ips[0]} {.status.ownerPod.name}")
			if err == nil && got != want {
				err = fmt.Errorf("it says %q", got)
			}
			return err
		})
	}
	s.running("launcher-1")
	addr := s.addresses("launcher-1", "net1")[0]
	status(addr + "/16 launcher-1")
	s.pod("launcher-2", "kind-worker2", networks)
	failure(t, s.name, "launcher-2", addr+" is held by pod "+s.name+"/launcher-1")
	kubectl(t, "delete", "pod", "-n", s.name, "launcher-1", "--timeout=3m")
	s.running("launcher-2")
	if got := s.addresses("launcher-2", "net1"); got[0] != addr {
		t.Errorf("the second pod has %v, the first one had %s", got, addr)
	}
	status(addr + "/16 launcher-2")
	kubectl(t, "delete", "pod", "-n", s.name, "launcher-2", "--timeout=3m")
	status(addr + "/16 ")
	if held := s.held(); len(held) != 1 {
		t.Errorf("allocated %v", held)
	}
	s.pod("launcher-3", "kind-worker", networks)
	s.running("launcher-3")
	if got := s.addresses("launcher-3", "net1"); got[0] != addr {
		t.Errorf("the third pod has %v, the first one had %s", got, addr)
	}
	kubectl(t, "delete", "ipamclaim", "-n", s.name, "vm1.machines")
	s.have(map[string]string{"launcher-3": addr}) // until it ends
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/matrix"
)

// The walkthrough for nv-ipam's static addresses, with its own files and commands.
func TestWalkthrough(t *testing.T) {
	if _, err := c.Kubectl(t.Context(), "get", "crd", "macvlannetworks.mellanox.com"); err != nil && foreign {
		t.Skip("the walkthrough's network is a MacvlanNetwork, which needs network-operator: ", err)
	}
	defer phase(t.Name())()
	t.Run("ranges", walkRanges)
	t.Run("network", walkNetwork)
	t.Run("dynamic addresses", walkDynamic)
	t.Run("static address", walkStatic)
	t.Run("wrong address", walkWrong)
	t.Run("reach", walkReach)
	t.Run("address of another pod", walkTaken)
	t.Run("delete", walkDelete)
}

const demoData = "../demo/testdata/"

var blocks = map[string][2]string{
	"kind-control-plane": {"192.168.0.1", "192.168.0.100"},
	"kind-worker":        {"192.168.0.101", "192.168.0.200"},
	"kind-worker2":       {"192.168.0.201", "192.168.1.44"},
}

func walkRanges(t *testing.T) {
	kubectl(t, "apply", "-f", demoData+"ippool.yaml")
	kubectl(t, "wait", "-n", poolsNamespace, "--for=condition=Ready", "--timeout=1m", "ippool/pool1")
	out := kubectl(t, "get", "ippools.nv-ipam.nvidia.com", "-A", "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"} {range .status.allocations[*]}{"\t"}{.nodeName} => Start IP: {.startIP} End IP: {.endIP}{"\n"}{end}{"\n"}{end}`)
	want := "pool1\n " +
		"\tkind-control-plane => Start IP: 192.168.0.1 End IP: 192.168.0.100\n" +
		"\tkind-worker => Start IP: 192.168.0.101 End IP: 192.168.0.200\n" +
		"\tkind-worker2 => Start IP: 192.168.0.201 End IP: 192.168.1.44\n\n"
	if out != want {
		t.Errorf("ranges:\n%s\nexpected:\n%s", out, want)
	}
}

func walkNetwork(t *testing.T) {
	kubectl(t, "apply", "-f", "testdata/macvlannetwork.yaml")
	const config = `{ "cniVersion":"0.3.1", "name":"example-macvlannetwork", "type":"macvlan","master": "eth0","mode" : "bridge","mtu" : 1500,"ipam":{"type":"nv-ipam","poolName":"pool1"} }`
	eventually(t, "network-operator's NetworkAttachmentDefinition", func() error {
		out, err := c.Kubectl(t.Context(), "get", "network-attachment-definitions", "example-macvlannetwork", "-o", "jsonpath={.spec.config}")
		if err == nil && out != config {
			err = fmt.Errorf("its configuration is %s", out)
		}
		return err
	})
}

func walkDynamic(t *testing.T) {
	for _, pod := range []string{"dynamic-ip-pod1", "dynamic-ip-pod2"} {
		kubectl(t, "apply", "-f", demoData+pod+".yaml")
		kubectl(t, "wait", "--for=condition=Ready", "--timeout=3m", "pod/"+pod)
		node := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.spec.nodeName}")
		within(t, walkAddress(t, pod), blocks[node][0], blocks[node][1])
	}
	if address := walkAddress(t, "dynamic-ip-pod1"); address == "192.168.0.1" {
		t.Errorf("%s is the gateway", address)
	} else {
		within(t, address, "192.168.0.11", "192.168.0.100") // 192.168.0.0 to .10 are excluded
	}
}

// walkAddress is the address that the network-status annotation shows.
func walkAddress(t *testing.T, pod string) string {
	t.Helper()
	all := attachments(t, "default", pod)
	if len(all) != 1 || all[0].Name != "default/example-macvlannetwork" || all[0].Interface != "net1" || len(all[0].IPs) != 1 {
		t.Fatalf("network-status of %s: %+v", pod, all)
	}
	return all[0].IPs[0]
}

func walkStatic(t *testing.T) {
	kubectl(t, "apply", "-f", demoData+"static-ip-pod1.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=3m", "pod/static-ip-pod1")
	if address := walkAddress(t, "static-ip-pod1"); address != "192.168.0.5" {
		t.Errorf("static-ip-pod1 has %s", address)
	}
	if node := kubectl(t, "get", "pod", "static-ip-pod1", "-o", "jsonpath={.spec.nodeName}"); node != "kind-worker2" {
		t.Errorf("static-ip-pod1 is on %s", node)
	}
}

func walkWrong(t *testing.T) {
	kubectl(t, "apply", "-f", demoData+"static-ip-pod2-wrong-ip.yaml")
	said := `plugin type="multus" name="multus-cni-network" failed (add): [default/static-ip-pod2-wrong-ip/`
	if cell != nil && cell.Multus == matrix.Thick { // whose shim says it, with more around it
		said = `plugin type="multus-shim" name="multus-cni-network" failed (add): CmdAdd (shim): CNI request failed with status 400: `
	}
	failure(t, "default", "static-ip-pod2-wrong-ip", said)
	failure(t, "default", "static-ip-pod2-wrong-ip",
		"not all requested static IPs can be allocated from the ranges available on the node, ip 10.10.10.10 has no matching Pool")
	kubectl(t, "delete", "pod", "static-ip-pod2-wrong-ip")
}

func walkReach(t *testing.T) {
	ping(t, "default", "dynamic-ip-pod1", "192.168.0.5")
	ping(t, "default", "static-ip-pod1", walkAddress(t, "dynamic-ip-pod1"))
}

// A pod on another node waits for the address, is told who has it, and gets it
// when that pod goes.
func walkTaken(t *testing.T) {
	kubectl(t, "apply", "-f", demoData+"static-ip-pod3.yaml")
	for _, text := range []string{`requested IP is already reserved in the pool "pool1", poolType "ippool"`, "default/static-ip-pod1", "kind-worker2"} {
		failure(t, "default", "static-ip-pod3", text)
	}
	if phase := kubectl(t, "get", "pod", "static-ip-pod3", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("static-ip-pod3 is %s", phase)
	}
	kubectl(t, "delete", "pod", "static-ip-pod1")
	kubectl(t, "wait", "--for=condition=Ready", "--timeout=3m", "pod/static-ip-pod3")
	if address := walkAddress(t, "static-ip-pod3"); address != "192.168.0.5" {
		t.Errorf("static-ip-pod3 has %s", address)
	}
	ping(t, "default", "dynamic-ip-pod1", "192.168.0.5")
}

func walkDelete(t *testing.T) {
	audit := kubectl(t, "get", "ipallocations", "-n", poolsNamespace)
	for _, pod := range []string{"dynamic-ip-pod1", "dynamic-ip-pod2", "static-ip-pod3"} {
		if !strings.Contains(audit, pod) {
			t.Errorf("%s is not in the audit:\n%s", pod, audit)
		}
	}
	kubectl(t, "delete", "pods", "--all", "--timeout=3m")
	eventually(t, "no allocations", func() error {
		out, err := c.Kubectl(t.Context(), "get", "ipallocations", "-A", "-o", "name")
		if err == nil && out != "" {
			err = fmt.Errorf("allocated:\n%s", out)
		}
		return err
	})
	kubectl(t, "delete", "-f", "testdata/macvlannetwork.yaml")
	eventually(t, "the pool's count, by which it may be deleted", func() error {
		_, err := c.Kubectl(t.Context(), "delete", "-f", demoData+"ippool.yaml")
		return err
	})
}

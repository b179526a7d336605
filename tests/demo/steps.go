// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/crd-ipam/crd-ipam/tests/internal/simnode"
)

// demo is what the steps share.
type demo struct {
	cluster
	pods     map[string]*pod
	order    []*pod // in which they were made
	terminal bool
}

type step struct {
	title string
	run   func(context.Context) error
}

func (d *demo) steps() []step {
	last := step{"Delete the Pods", d.deletePods}
	if os.Getenv("KEEP") == "1" {
		last = step{"Keep all of it until Ctrl-C, because of KEEP=1", d.keep}
	}
	return []step{
		{"A cluster: an API server, the controller, three nodes", d.start},
		{"Create the pool", d.createPool},
		{"Check the ranges that the nodes got", d.checkBlocks},
		{"Create the first Pod with a dynamic IP", d.dynamicPod1},
		{"Create the second Pod with a dynamic IP", d.dynamicPod2},
		{"Create a Pod with a static IP", d.staticPod},
		{"Ask for an IP that is not in the pool", d.wrongIP},
		{"Ask for an IP that a Pod on another node has", d.takenIP},
		{"See who has what", d.showAllocations},
		{"Ping from one node's Pod to another's", d.ping},
		last,
	}
}

func (d *demo) start(ctx context.Context) error {
	say("Each node is a network namespace; eth0 of all three is on one Layer 2 network.")
	if err := d.startCluster(ctx); err != nil {
		return err
	}
	out, err := d.shell(ctx, "kubectl get nodes")
	if err != nil {
		return err
	}
	return checkRows("the nodes", out, []string{
		"kind-control-plane Ready control-plane,worker",
		"kind-worker Ready worker",
		"kind-worker2 Ready worker",
	})
}

func (d *demo) createPool(ctx context.Context) error {
	for _, line := range []string{
		"cat tests/demo/testdata/ippool.yaml",
		"kubectl apply -f tests/demo/testdata/ippool.yaml",
		"kubectl wait --for=condition=Ready --timeout=30s -n nvidia-network-operator ippool/pool1",
	} {
		if _, err := d.shell(ctx, line); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) checkBlocks(ctx context.Context) error {
	out, err := d.shell(ctx, `kubectl get ippools.nv-ipam.nvidia.com -A -o jsonpath='{range .items[*]}{.metadata.name}{"\n"} {range .status.allocations[*]}{"\t"}{.nodeName} => Start IP: {.startIP} End IP: {.endIP}{"\n"}{end}{"\n"}{end}'`)
	if err != nil {
		return err
	}
	return checkRows("the nodes' ranges", out, []string{
		"pool1",
		"kind-control-plane => Start IP: 192.168.0.1 End IP: 192.168.0.100",
		"kind-worker => Start IP: 192.168.0.101 End IP: 192.168.0.200",
		"kind-worker2 => Start IP: 192.168.0.201 End IP: 192.168.1.44",
	})
}

func (d *demo) dynamicPod1(ctx context.Context) error {
	say("The network is what network-operator makes of the walkthrough's MacvlanNetwork, and a")
	say("confDir, so that nothing is read from or written to this machine's /etc and /var.")
	fmt.Println(networkConfig("<node's directory>"))
	return d.attach(ctx, "dynamic-ip-pod1", "kind-control-plane", "", "192.168.0.11/16")
}

func (d *demo) dynamicPod2(ctx context.Context) error {
	return d.attach(ctx, "dynamic-ip-pod2", "kind-worker", "", "192.168.0.101/16")
}

func (d *demo) staticPod(ctx context.Context) error {
	say("192.168.0.5 is excluded from what is handed out, which makes it free to be asked for.")
	return d.attach(ctx, "static-ip-pod1", "kind-worker2", "192.168.0.5", "192.168.0.5/16")
}

func (d *demo) wrongIP(ctx context.Context) error {
	return d.refuse(ctx, "static-ip-pod2-wrong-ip", "kind-worker", "10.10.10.10",
		"not all requested static IPs can be allocated from the ranges available on the node, ip 10.10.10.10 has no matching Pool")
}

func (d *demo) takenIP(ctx context.Context) error {
	say("nv-ipam knows only of its own node here, and would give the address out twice.")
	return d.refuse(ctx, "static-ip-pod3", "kind-worker", "192.168.0.5",
		"requested IP is already reserved", "pod default/static-ip-pod1", "node kind-worker2")
}

func (d *demo) showAllocations(ctx context.Context) error {
	out, err := d.shell(ctx, "kubectl get ippools,ipallocations -n nvidia-network-operator")
	if err != nil {
		return err
	}
	const pool, allocation = "ippool.nv-ipam.nvidia.com/", "ipallocation.nv-ipam.nvidia.com/"
	return checkRows("the pools and allocations", out, []string{
		pool + "pool1 192.168.0.0/16 192.168.0.1 100",
		allocation + "pool1.192.168.0.101 192.168.0.101 pool1 kind-worker default dynamic-ip-pod2 net1",
		allocation + "pool1.192.168.0.11 192.168.0.11 pool1 kind-control-plane default dynamic-ip-pod1 net1",
		allocation + "pool1.192.168.0.5 192.168.0.5 pool1 kind-worker2 default static-ip-pod1 net1 true",
	})
}

func (d *demo) ping(ctx context.Context) error {
	from, to := d.pods["dynamic-ip-pod1"], d.pods["static-ip-pod1"]
	say("%s on %s pings %s on %s.", from.Name, from.node.Name, to.Name, to.node.Name)
	times, err := from.Netns.Ping(ctx, netip.MustParseAddr("192.168.0.5"), 3)
	for i, t := range times {
		fmt.Printf("answer from 192.168.0.5: icmp_seq=%d time=%s\n", i+1, short(t))
	}
	return err
}

func (d *demo) deletePods(ctx context.Context) error {
	if _, err := d.shell(ctx, "kubectl delete pods --all --wait=false"); err != nil {
		return err
	}
	say("Each pod's runtime detaches it (DEL); only that gives its address back.")
	for _, p := range d.order {
		if err := d.detach(ctx, p); err != nil {
			return err
		}
	}
	out, err := d.shell(ctx, "kubectl get ipallocations -n nvidia-network-operator")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(out, "No resources found") {
		return mismatch("the allocations after all pods are gone", "No resources found", out)
	}
	if out, err = d.quietly(ctx, "kubectl get pods -A"); err == nil && !strings.HasPrefix(out, "No resources found") {
		err = mismatch("the pods after they were deleted", "No resources found", out)
	}
	return err
}

// errKept ends the walk where KEEP=1 has it end.
var errKept = errors.New("kept until interrupted")

func (d *demo) keep(ctx context.Context) error {
	say("In another terminal, as root, for example:")
	fmt.Printf("export KUBECONFIG=%s PATH=%s:$PATH\n", d.env.Kubeconfig, os.Getenv("KUBEBUILDER_ASSETS"))
	fmt.Println("kubectl get ipa -A")
	fmt.Println("kubectl get ipa -A --field-selector spec.nodeName=kind-worker # servers from 1.31 on")
	fmt.Println("kubectl describe ippool pool1 -n nvidia-network-operator")
	fmt.Println("kubectl delete pod dynamic-ip-pod2 --force # without a DEL: the controller takes the address back after a minute")
	for _, p := range d.order {
		fmt.Printf("nsenter --net=%s ip -4 addr # in %s\n", p.Netns.Path(), p.Name)
	}
	for _, n := range d.nodes {
		fmt.Printf("nsenter --net=%s ip link # on %s; the plugin's log there: %s\n", n.Netns.Path(), n.Name, n.Log())
	}
	select {
	case <-ctx.Done():
		return errKept
	case <-d.controller.Done():
		return mismatch("the controller", "running", "it has ended")
	}
}

// pod is a Pod with what its node keeps of it.
type pod struct {
	simnode.Pod
	node *simnode.Node
}

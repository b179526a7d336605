// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// Whatever comes on stdin or in CNI_ARGS ends in an error or in a request that
// the rest can rely on.
func checkRequest(t *testing.T, stdin []byte, cniArgs string) {
	t.Helper()
	n, err := parseNetwork(stdin)
	if err != nil {
		return
	}
	req, err := n.request(&skel.CmdArgs{ContainerID: "c1", IfName: "net1", Args: cniArgs})
	if err != nil {
		return
	}
	if len(req.Pools) == 0 || len(req.Pools) > maxPools {
		t.Errorf("%d pools", len(req.Pools))
	}
	for _, ref := range req.Pools {
		if err := checkName(ref.Name); err != nil {
			t.Errorf("pool %q: %v", ref.Name, err)
		}
	}
	if req.Pod.Name == "" || req.Pod.Namespace == "" {
		t.Errorf("pod %+v", req.Pod)
	}
	asked := 0
	if len(req.Want.Addresses) > 0 {
		asked++
	}
	if req.Want.DefaultGateway {
		asked++
	}
	if req.Want.Index != nil {
		asked++
		if *req.Want.Index < 0 {
			t.Errorf("index %d", *req.Want.Index)
		}
	}
	if asked > 1 {
		t.Errorf("asked for in %d ways: %+v", asked, req.Want)
	}
	for _, a := range req.Want.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			t.Errorf("address %q is not canonical", a)
		}
	}
}

func FuzzConfiguration(f *testing.F) {
	for _, seed := range []string{
		`{ "cniVersion":"0.3.1", "name":"example-macvlannetwork", "type":"macvlan","master": "eth0","mode" : "bridge","mtu" : 1500,"ipam":{"type":"nv-ipam","poolName":"pool1"} }`,
		`{"cniVersion":"1.1.0","name":"n","ipam":{"type":"nv-ipam","poolName":"a,b","poolType":"cidrpool"},"runtimeConfig":{"ips":["10.0.0.1/24","fd00::1"]}}`,
		`{"name":"n","args":{"cni":{"ips":["10.0.0.1"],"poolNames":["a"],"poolType":"ippool","allocateDefaultGateway":true,"allocateIPWithIndex":3}}}`,
		`{"name":"n","cni.dev/valid-attachments":[{"containerID":"c","ifname":"i"}]}`,
		`{"name":"n","ipam":{"type":"nv-ipam","poolName":"rail1-{topology.kubernetes.io/rack},{a}{b}"}}`,
		`{"ipam":null}`, `[]`, `{"name":"../x","ipam":{"poolName":","}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, stdin []byte) { checkRequest(t, stdin, podArgs) })
}

func FuzzCNIArgs(f *testing.F) {
	for _, seed := range []string{
		podArgs, podArgs + ";IP=10.0.0.1,fd00::1/64", "K8S_POD_NAME=a;K8S_POD_NAMESPACE=b", "IgnoreUnknown=1;;", "IP=", "K8S_POD_NAME==;IP=%",
	} {
		f.Add(seed)
	}
	conf := []byte(`{"name":"n","ipam":{"type":"nv-ipam","confDir":"/nonexistent"}}`)
	f.Fuzz(func(t *testing.T, cniArgs string) { checkRequest(t, conf, cniArgs) })
}

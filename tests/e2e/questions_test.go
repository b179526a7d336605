// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// Ten faults, each planted alone on a cluster that runs, and each explained by one command.
func TestQuestions(t *testing.T) {
	if _, err := testenv.Binary("kubectl-ipam"); err != nil {
		t.Fatal(err)
	}
	s := newScene(t)
	s.pool("questions", "10.46.0.0/16", "10.46.0.1")
	s.network("good", `"poolName": "questions"`)
	waits := "Failed to create pod sandbox"
	why := func(pod string) []string { return []string{"why", "-n", s.name, pod} }
	for _, fault := range []struct {
		name  string
		plant func(t *testing.T)
		asks  []string // the command
		says  []string
		mends []string // the command that it says, if the fault does not go with the pods
	}{
		{"the pool's name is misspelled", func(t *testing.T) {
			s.network("misspelled", `"poolName": "question"`)
			s.pod("a", "kind-worker", "misspelled")
			failure(t, s.name, "a", `"question"`)
		}, why("a"), []string{"BROKEN Pool", "there is no IPPool nvidia-network-operator/question", "correct poolName"}, nil},
		{"the network's configuration is torn", func(t *testing.T) {
			s.networkConfig("torn", `{"cniVersion": "1.0.0", "name": "torn", "type": "macvlan"`)
			s.pod("b", "kind-worker", "torn")
			failure(t, s.name, "b", waits)
		}, why("b"), []string{"BROKEN Network", "network configuration is not valid", "kubectl edit net-attach-def"}, nil},
		{"the node lacks the label in the pool's name", func(t *testing.T) {
			s.network("racks", `"poolName": "questions-{example.com/rack}"`)
			s.pod("c", "kind-worker", "racks")
			failure(t, s.name, "c", "has no label example.com/rack")
		}, why("c"), []string{"BROKEN Pool", "node kind-worker has no label example.com/rack"}, nil},
		{"the pool has no room for the node", func(t *testing.T) {
			s.applyPool("IPPool", "narrow", "subnet: 10.47.0.0/29\n  perNodeBlockSize: 6")
			kubectl(t, "wait", "-n", poolsNamespace, "--for=condition=Ready=False", "--timeout=1m", "ippool/narrow")
			s.network("narrow", `"poolName": "narrow"`)
			s.pod("d", "kind-worker2", "narrow")
			failure(t, s.name, "d", waits)
		}, why("d"), []string{"BROKEN Block", "IPPool narrow has no block for node kind-worker2: NoFreeRanges"}, nil},
		{"the node's block is full", func(t *testing.T) {
			s.customPool("IPPool", "single", "subnet: 10.47.1.0/24\n  perNodeBlockSize: 1")
			s.network("single", `"poolName": "single"`)
			s.pod("first", "kind-worker", "single")
			s.running("first")
			s.pod("e", "kind-worker", "single")
			failure(t, s.name, "e", "no free addresses")
		}, why("e"), []string{"BROKEN Allocation", "IPPool single is exhausted: no free address in node kind-worker's block", "1 of 1 are held", "said", "no free addresses in the pool"}, nil},
		{"another pod has the address that it asks for", func(t *testing.T) {
			s.pod("has", "kind-worker2", `[{"name": "good", "ips": ["10.46.0.77"]}]`)
			s.running("has")
			s.pod("f", "kind-worker", `[{"name": "good", "ips": ["10.46.0.77"]}]`)
			failure(t, s.name, "f", "10.46.0.77")
		}, why("f"), []string{"BROKEN Allocation", "10.46.0.77, which the pod asks for, is held by pod " + s.name + "/has on node kind-worker2", "InUse", "kubectl delete pod -n " + s.name + " has"}, nil},
		{"its namespace may not use the pool", func(t *testing.T) {
			s.customPool("IPPool", "private", "subnet: 10.47.2.0/24\n  perNodeBlockSize: 8\n  allowedNamespaces: [team-a]")
			s.network("private", `"poolName": "private"`)
			s.pod("g", "kind-worker", "private")
			failure(t, s.name, "g", "allowedNamespaces")
		}, why("g"), []string{"BROKEN Access", "gives no addresses to pods of namespace", `has only "team-a"`}, nil},
		{"the nodes have lost their rights", func(t *testing.T) {
			kubectl(t, "delete", "rolebinding", "-n", poolsNamespace, "crd-ipam-node")
			t.Cleanup(func() { reinstall(t) })
			s.pod("h", "kind-worker", "good")
			failure(t, s.name, "h", "is forbidden")
		}, why("h"), []string{"BROKEN Allocation", "the node's credentials may not", `User "system:node:kind-worker" cannot`}, nil},
		{"an allocation of a pod that never was", func(t *testing.T) {
			apply(t, `apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: IPAllocation
metadata:
  name: questions.10.46.0.99
  namespace: `+poolsNamespace+`
  labels: {nv-ipam.nvidia.com/pool: questions, nv-ipam.nvidia.com/node: kind-worker, nv-ipam.nvidia.com/container: `+v1alpha1.ContainerLabel("byhand")+`}
spec:
  poolRef: {kind: IPPool, name: questions}
  address: 10.46.0.99
  nodeName: kind-worker
  containerID: byhand
  interfaceName: net1
  podRef: {namespace: `+s.name+`, name: never}
`)
		}, []string{"check"}, []string{"AllocationWithoutPod questions.10.46.0.99", "pod is gone", "kubectl ipam release -n " + poolsNamespace + " questions.10.46.0.99"}, []string{"release", "-n", poolsNamespace, "questions.10.46.0.99", "--yes"}},
		{"two pods have the address that another plugin gave", func(*testing.T) {
			s.networkConfig("before", `{"cniVersion": "1.0.0", "name": "before", "type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.46.0.0/16", "rangeStart": "10.46.200.9", "rangeEnd": "10.46.200.9"}]]}}`)
			s.pod("twin-1", "kind-worker", "before")
			s.pod("twin-2", "kind-worker2", "before")
			s.running("twin-1", "twin-2")
			s.network("before", `"poolName": "questions"`)
		}, []string{"check"}, []string{"AddressOnTwoPods 10.46.200.9", s.name + "/twin-1", s.name + "/twin-2"}, nil},
	} {
		t.Run(fault.name, func(t *testing.T) {
			defer func(whole *testing.T) { s.t = whole }(s.t)
			s.t = t
			fault.plant(t)
			eventually(t, strings.Join(fault.asks, " "), func() error {
				out, code, err := ask(t.Context(), fault.asks...)
				if err != nil {
					return err
				}
				missing := []error{}
				for _, text := range fault.says {
					if !strings.Contains(out, text) {
						missing = append(missing, errors.New("it does not say "+text))
					}
				}
				if code != 1 {
					missing = append(missing, errors.New("the exit code is not 1"))
				}
				if len(missing) > 0 {
					return errors.Join(append(missing, errors.New(out))...)
				}
				t.Logf("kubectl ipam %s:\n%s", strings.Join(fault.asks, " "), out)
				return nil
			})
			if fault.mends != nil {
				if out, code, err := ask(t.Context(), fault.mends...); code != 0 || err != nil {
					t.Errorf("%v: %d, %v: %s", fault.mends, code, err, out)
				}
			}
			s.deletePods()
			s.nothingAllocated()
		})
	}
}

// ask runs kubectl ipam, which has found something if its exit code is 1.
func ask(ctx context.Context, args ...string) (out string, code int, err error) {
	path, err := testenv.Binary("kubectl-ipam")
	if err != nil {
		return "", 0, err
	}
	if !foreign {
		args = append(args, "--kubeconfig", c.Kubeconfig())
	}
	all, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = exit.ExitCode(), nil
	}
	return string(all), code, err
}

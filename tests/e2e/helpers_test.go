// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// kubectl runs kubectl, which has to succeed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// apply applies a manifest, or what args choose of it.
func apply(t *testing.T, manifest string, args ...string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "manifest.yaml")
	if err := os.WriteFile(path, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, append([]string{"apply", "-f", path}, args...)...)
}

// eventually calls f until it returns nil.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	const timeout = 3 * time.Minute
	deadline := time.Now().Add(timeout)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, timeout, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// scene is the namespace of a test, with a pool and a network of the test's name.
type scene struct {
	t    *testing.T
	name string
}

// newScene makes a namespace, to be removed with all pods in it. In the end nothing
// may be allocated to one of them.
func newScene(t *testing.T) *scene {
	t.Helper()
	return newSceneIn(t, strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(t.Name(), "Test")), "/", "-"))
}

// newSceneIn is newScene for one of several scenes of a test.
func newSceneIn(t *testing.T, namespace string) *scene {
	t.Helper()
	if walkthroughOnly {
		t.Skip("only the walkthrough is run, because of E2E_WALKTHROUGH_ONLY")
	}
	s := &scene{t: t, name: namespace}
	done := phase(t.Name() + " in " + namespace)
	kubectl(t, "create", "namespace", s.name)
	// The controller manager makes it, and no pod can be created without.
	eventually(t, "service account default", func() error {
		_, err := c.Kubectl(t.Context(), "get", "serviceaccount", "-n", s.name, "default")
		return err
	})
	t.Cleanup(func() {
		defer done()
		if t.Failed() { // whoever looks into it finds everything
			return
		}
		s.deletePods()
		s.nothingAllocated()
		if _, err := c.Kubectl(ctx(), "delete", "namespace", "--wait=false", s.name); err != nil {
			t.Error(err)
		}
	})
	return s
}

// pool makes an IPPool of which each worker has a block of 64 addresses.
func (s *scene) pool(name, subnet, gateway string) {
	s.t.Helper()
	s.customPool("IPPool", name, fmt.Sprintf("subnet: %s\n  gateway: %s\n  perNodeBlockSize: 64", subnet, gateway))
}

// customPool makes a pool for the workers, removes it in the end, and waits until
// it is ready.
func (s *scene) customPool(kind, name, spec string) {
	s.t.Helper()
	s.applyPool(kind, name, spec)
	kubectl(s.t, "wait", "-n", poolsNamespace, "--for=condition=Ready", "--timeout=1m", kind+"/"+name)
}

// applyPool is customPool for a pool that does not become ready.
func (s *scene) applyPool(kind, name, spec string) {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: nv-ipam.nvidia.com/v1alpha1
kind: %s
metadata:
  name: %s
  namespace: %s
spec:
  %s
  nodeSelector:
    nodeSelectorTerms:
    - matchExpressions:
      - {key: node-role.kubernetes.io/worker, operator: Exists}
`, kind, name, poolsNamespace, spec))
	s.t.Cleanup(func() {
		// Its pods may still be there, and the count of its addresses a minute old.
		for _, args := range [][]string{{"annotate", kind, name, "nv-ipam.nvidia.com/allow-deletion=true"}, {"delete", kind, name}} {
			if _, err := c.Kubectl(ctx(), append(args, "-n", poolsNamespace)...); err != nil {
				s.t.Error(err)
			}
		}
	})
}

// network makes a macvlan network whose ipam section has these keys.
func (s *scene) network(name, ipam string) {
	s.t.Helper()
	s.networkConfig(name, fmt.Sprintf(`{"cniVersion": "1.0.0", "name": "%s", "type": "macvlan", "master": "eth0", "mode": "bridge", "ipam": {"type": "nv-ipam", %s}}`, name, ipam))
}

// networkConfig makes a network with this configuration.
func (s *scene) networkConfig(name, config string) {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata:
  name: %s
  namespace: %s
spec:
  config: '%s'
`, name, s.name, config))
}

// podSpec is the pod that the walkthrough has.
const podSpec = `
    terminationGracePeriodSeconds: 1
    nodeSelector: %s
    containers:
    - name: test
      image: centos/tools
      command: ["/bin/bash", "-c", "--"]
      args: ["while true; do sleep 300; done;"]
`

func onNode(node string) string {
	if node == "" {
		return "{}"
	}
	return "{kubernetes.io/hostname: " + node + "}"
}

// pod creates a pod on a node with this annotation for its networks, and labels ("key: value").
func (s *scene) pod(name, node, networks string, labels ...string) {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: %s
  namespace: %s
  labels: {%s}
  annotations:
    k8s.v1.cni.cncf.io/networks: '%s'
spec:%s`, name, s.name, strings.Join(labels, ", "), networks, strings.ReplaceAll(fmt.Sprintf(podSpec, onNode(node)), "\n    ", "\n  ")))
}

// deployment creates one whose pods are on a node, or anywhere.
func (s *scene) deployment(name, node, networks string, replicas int) {
	s.t.Helper()
	apply(s.t, fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata:
  name: %[1]s
  namespace: %[2]s
spec:
  replicas: %[3]d
  selector:
    matchLabels: {app: %[1]s}
  template:
    metadata:
      labels: {app: %[1]s}
      annotations:
        k8s.v1.cni.cncf.io/networks: '%[4]s'
    spec:%[5]s`, name, s.name, replicas, networks, strings.ReplaceAll(fmt.Sprintf(podSpec, onNode(node)), "\n    ", "\n      ")))
}

func (s *scene) running(pods ...string) {
	s.t.Helper()
	for _, p := range pods {
		kubectl(s.t, "wait", "-n", s.name, "--for=condition=Ready", "--timeout=3m", "pod/"+p)
	}
}

func (s *scene) deletePods() {
	s.t.Helper()
	for _, args := range [][]string{{"deployments,statefulsets"}, {"pods"}} {
		if _, err := c.Kubectl(ctx(), append([]string{"delete", "-n", s.name, "--all", "--timeout=3m"}, args...)...); err != nil {
			s.t.Error(err)
		}
	}
}

// attachment is what multus says of a pod's interface.
type attachment struct {
	Name, Interface string
	IPs             []string
}

// attachments reads a pod's network-status, without the cluster network.
func attachments(t *testing.T, namespace, pod string) []attachment {
	t.Helper()
	out := kubectl(t, "get", "pod", "-n", namespace, pod, "-o", `jsonpath={.metadata.annotations.k8s\.v1\.cni\.cncf\.io/network-status}`)
	var all []attachment
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		t.Fatalf("network-status of %s: %v: %s", pod, err, out)
	}
	return slices.DeleteFunc(all, func(a attachment) bool { return a.Interface == "eth0" })
}

// addresses of a pod's interface, which has to have them itself, too.
func (s *scene) addresses(pod, link string) []string {
	s.t.Helper()
	for _, a := range attachments(s.t, s.name, pod) {
		if a.Interface != link {
			continue
		}
		has := kubectl(s.t, "exec", "-n", s.name, pod, "--", "ip", "addr", "show", link)
		for _, ip := range a.IPs {
			if !strings.Contains(has, ip+"/") {
				s.t.Errorf("%s of %s does not have %s:\n%s", link, pod, ip, has)
			}
		}
		return a.IPs
	}
	s.t.Fatalf("%s has no %s", pod, link)
	return nil
}

// allocations are those that pods of a namespace hold, by address.
func allocations(t *testing.T, namespace string) map[string]v1alpha1.IPAllocation {
	t.Helper()
	list, err := listAllocations(namespace)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func listAllocations(namespace string) (map[string]v1alpha1.IPAllocation, error) {
	out, err := c.Kubectl(ctx(), "get", "ipallocations", "-n", poolsNamespace, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list v1alpha1.IPAllocationList
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, err
	}
	held := map[string]v1alpha1.IPAllocation{}
	for _, a := range list.Items {
		if a.Spec.PodRef.Namespace == namespace {
			held[a.Spec.PoolRef.Name+" "+a.Spec.Address] = a
		}
	}
	return held, nil
}

// nothingAllocated waits until nothing is allocated to a pod of the scene. A release that the
// API server was too slow for is carried out within two and a half minutes.
func (s *scene) nothingAllocated() {
	s.t.Helper()
	eventually(s.t, "no allocation in "+s.name, func() error {
		held, err := listAllocations(s.name)
		if err == nil && len(held) > 0 {
			err = fmt.Errorf("allocated: %v", slices.Sorted(maps.Keys(held)))
		}
		return err
	})
}

// failure waits for an event about a pod that could not be started, and whose
// message contains the text.
func failure(t *testing.T, namespace, pod, text string) {
	t.Helper()
	eventually(t, "event about "+pod, func() error {
		out, err := c.Kubectl(t.Context(), "get", "events", "-n", namespace, "-o", `jsonpath={range .items[*]}{.message}{"\n"}{end}`,
			"--field-selector", "reason=FailedCreatePodSandBox,involvedObject.name="+pod)
		if err == nil && !strings.Contains(out, text) {
			err = fmt.Errorf("no event has %q, but:\n%s", text, out)
		}
		return err
	})
}

// ping pings from a pod.
func ping(t *testing.T, namespace, pod, address string) {
	t.Helper()
	eventually(t, pod+" reaches "+address, func() error {
		_, err := c.Kubectl(t.Context(), "exec", "-n", namespace, pod, "--", "ping", "-c", "1", "-W", "2", address)
		return err
	})
}

// within fails the test unless the address is between the two.
func within(t *testing.T, address, first, last string) {
	t.Helper()
	a := netip.MustParseAddr(address)
	if a.Less(netip.MustParseAddr(first)) || netip.MustParseAddr(last).Less(a) {
		t.Errorf("%s is not between %s and %s", address, first, last)
	}
}

// callPlugin runs nv-ipam on a node, as a main plugin does. It enters no network namespace, and
// so any is good enough.
func callPlugin(t *testing.T, node string, config map[string]any, environ ...string) {
	t.Helper()
	input, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	cmd, err := c.Node(node).Command(t.Context(), "/opt/cni/bin/nv-ipam")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, append(environ, "CNI_PATH=/opt/cni/bin", "CNI_NETNS=/proc/1/ns/net", "CNI_NETNS_OVERRIDE=1")...)
	cmd.Stdin = bytes.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", environ, err, out)
	}
}

// reinstall installs the project as TestMain has, for whoever comes next, whatever has
// failed.
func reinstall(t *testing.T) {
	t.Helper()
	if err := install(ctx()); err != nil {
		t.Error(err)
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// failure is an ADD that fails.
type failure struct {
	ipam   map[string]any // of the network
	args   string         // CNI_ARGS
	nobody bool           // with a kubeconfig of somebody who may do nothing
	series string         // the labels of what counts it, beside the reason
	reason string
}

// The real plugin fails for each reason, the kubelet makes an event of what it says, in what
// multus and the runtime say, and the controller counts it by pool and reason.
func TestFailedADDs(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "node-a", nil)
	pools := map[string]v1alpha1.IPPoolSpec{
		"tiny":     {Subnet: "10.1.0.0/24", PerNodeBlockSize: 1},
		"roomy":    {Subnet: "10.2.0.0/24", PerNodeBlockSize: 10},
		"nowhere":  {Subnet: "10.3.0.0/24", PerNodeBlockSize: 10, NodeSelector: labelled("nobody-has-this")},
		"disabled": {Subnet: "10.4.0.0/24", PerNodeBlockSize: 10, PoolAccess: v1alpha1.PoolAccess{Disabled: true}},
		"others":   {Subnet: "10.5.0.0/24", PerNodeBlockSize: 10, PoolAccess: v1alpha1.PoolAccess{AllowedNamespaces: []string{"others"}}},
		"manual":   {Subnet: "10.6.0.0/24", PerNodeBlockSize: 10, Assignment: v1alpha1.AssignmentManual},
		"all":      {Subnet: "10.7.0.0/24", NodeSelector: labelled("nobody-has-this")},
	}
	for name, spec := range pools {
		c.Pool(t, name, spec)
	}
	leader := c.startCommand(t, "leader")
	c.wantPool(t, "tiny", "BlocksAssigned", "node-a 10.1.0.1 10.1.0.1")
	c.wantPool(t, "roomy", "BlocksAssigned", "node-a 10.2.0.1 10.2.0.10")
	for _, name := range []string{"disabled", "others", "manual"} {
		rig.Until(t, func() string {
			if len(c.GetPool(t, name).Status.Allocations) == 0 {
				return "pool " + name + " has no blocks"
			}
			return ""
		})
	}
	holder := c.startPodOn(t, "node-a", "holder", nil)
	c.hold(t, "tiny", "10.1.0.1", "node-a", holder)
	c.hold(t, "roomy", "10.2.0.5", "node-a", holder)
	c.awaitCounting(t, leader)

	in := func(pool string) string { return `kind="IPPool",pool="` + pool + `",` }
	named := func(pool string) map[string]any { return map[string]any{"poolName": pool} }
	const nowhere = `kind="",pool="",`
	want := map[string]float64{}
	for i, f := range []failure{
		{ipam: named("tiny"), series: in("tiny"), reason: "exhausted"},
		{ipam: named("roomy"), args: ";IP=10.2.0.5", series: in("roomy"), reason: "in_use"},
		{ipam: named("none"), series: nowhere, reason: "no_pool"},
		{ipam: named("nowhere"), series: in("nowhere"), reason: "no_block"},
		{ipam: named("all"), series: in("all"), reason: "no_block"},
		{ipam: named("disabled"), series: in("disabled"), reason: "not_allowed"},
		{ipam: named("others"), series: in("others"), reason: "not_allowed"},
		{ipam: named("manual"), series: in("manual"), reason: "not_allowed"},
		{ipam: named("roomy"), args: ";IP=10.99.0.5", series: nowhere, reason: "not_allowed"},
		{ipam: named("roomy"), args: ";IP=10.2.0.255", series: in("roomy"), reason: "not_allowed"},
		{ipam: named("roomy"), nobody: true, series: nowhere, reason: "refused"},
		{ipam: map[string]any{"poolName": "roomy", "kubeconfig": "/does/not/exist"}, series: nowhere, reason: "refused"},
	} {
		c.kubeletSays(t, fmt.Sprintf("pod-%d", i), c.add(t, f))
		want[`crd_ipam_failed_adds_total{`+f.series+`reason="`+f.reason+`"}`]++
	}
	// What takes the plugin longer to say.
	c.kubeletSays(t, "slow-1", fmt.Sprintf("claiming 10.2.0.1: %s: context deadline exceeded (server https://10.0.0.1:6443, from /etc/kubernetes/kubelet.conf)", ledger.ErrUnavailable))
	want[`crd_ipam_failed_adds_total{`+nowhere+`reason="unavailable"}`]++
	c.kubeletSays(t, "slow-2", fmt.Sprintf("claiming 10.2.0.1: %s: this node found that", claim.ErrRecordLost))
	want[`crd_ipam_failed_adds_total{`+nowhere+`reason="record_lost"}`]++
	c.kubeletSays(t, "slow-3", `reading IPAMClaim ml/vm.net: ipamclaims.k8s.cni.cncf.io "vm.net" not found`)
	want[`crd_ipam_failed_adds_total{`+nowhere+`reason="ipam_claim"}`]++
	// Not ours.
	c.kubeletSays(t, "other", `failed to find plugin "macvlan" in path [/opt/cni/bin]`)

	rig.Until(t, func() string {
		all, err := scrape(leader)
		if err != nil {
			return err.Error()
		}
		for name, value := range all {
			if strings.HasPrefix(name, "crd_ipam_failed_adds_total") && !strings.Contains(name, `reason="other"`) && value != want[name] {
				return fmt.Sprintf("%s is %v, want %v", name, value, want[name])
			}
		}
		for name := range want {
			if _, found := all[name]; !found {
				return "there is no " + name
			}
		}
		return ""
	})
}

// awaitCounting waits until the controller counts: what happens before its first list it does
// not.
func (c *cluster) awaitCounting(t *testing.T, leader string) {
	t.Helper()
	n := 0
	rig.Until(t, func() string {
		n++
		c.kubeletSays(t, fmt.Sprintf("canary-%d", n), `something about poolType "x"`)
		all, err := scrape(leader)
		if err != nil {
			return err.Error()
		}
		if all[`crd_ipam_failed_adds_total{kind="",pool="",reason="other"}`] == 0 {
			return "no canary is counted"
		}
		return ""
	})
}

// add has the plugin on node-a fail, and returns what it says.
func (c *cluster) add(t *testing.T, f failure) string {
	t.Helper()
	dir := t.TempDir()
	kubeconfig := env.Kubeconfig
	if f.nobody {
		var err error
		if kubeconfig, err = env.UserKubeconfig("system:node:node-a", testenv.NodesGroup); err != nil {
			t.Fatal(err)
		}
	}
	settings, err := json.Marshal(map[string]any{"kubeconfig": kubeconfig, "poolsNamespace": c.NS, "nodeName": "node-a", "dataDir": filepath.Join(dir, "data"), "logFile": filepath.Join(dir, "log")})
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "nv-ipam.conf"), settings, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	ipam := map[string]any{"confDir": dir}
	rig.Merge(ipam, f.ipam)
	plugin := rig.Binary(t, "nv-ipam")
	out, said := rig.Call{Verb: "ADD", Container: "c1", Args: f.args, Stdin: rig.NetConf(t, "1.0.0", ipam, nil)}.Run(t, exec.CommandContext(t.Context(), plugin), plugin)
	if said == nil {
		t.Fatalf("%+v: it gives %s", f, out)
	}
	return said.Error()
}

// kubeletSays records the kubelet's event of a pod whose network the runtime could not set up.
func (c *cluster) kubeletSays(t *testing.T, pod, why string) {
	t.Helper()
	e := &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{Name: pod + ".1", Namespace: c.NS},
		InvolvedObject: corev1.ObjectReference{Kind: "Pod", Namespace: c.NS, Name: pod},
		Reason:         "FailedCreatePodSandBox", Count: 1, Type: corev1.EventTypeWarning, Source: corev1.EventSource{Component: "kubelet", Host: "node-a"},
		Message: fmt.Sprintf(`Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "0af3": plugin type="multus" name="multus-cni-network" failed (add): [%s/%s/1b2c:net]: error adding container to network "net": %s`, c.NS, pod, why),
	}
	if _, err := c.Kube.CoreV1().Events(c.NS).Create(t.Context(), e, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

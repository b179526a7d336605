// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// How often things go wrong: once in so many calls.
const (
	killOneIn = 25
	loseOneIn = 25
	// longestLife is within which a plugin that is to be killed is: an ADD takes
	// some tens of milliseconds.
	longestLife = 150 * time.Millisecond
)

// atOnce is how many pods a kubelet looks after at the same time.
const atOnce = 3

// kubelet is a node: kubelet, runtime and disk.
type kubelet struct {
	*cluster
	node    string
	version atomic.Pointer[version] // of its plugin
	stdin   []byte
	// installer is a look of the node's installer.
	installer []string
	pods      []*pod
}

// pod is one pod of a node, and its container while it is live.
type pod struct {
	name      string
	requested string // its static address, if any
	keeps     bool   // its address: it is of the StatefulSet
	kept      string // that address, once it has one
	random    *rand.Rand

	uid       string
	sandboxes int
	address   string
}

func (c *cluster) startKubelets(ctx context.Context, t *testing.T, v *version) []*kubelet {
	t.Helper()
	first := c.blocks(ctx, t)
	var all []*kubelet
	for i := range nodes {
		k := &kubelet{cluster: c, node: nodeName(i)}
		k.version.Store(v)
		k.configure(t)
		// The static addresses are in the next node's block, past what that one
		// hands out itself.
		size := *attachments / nodes
		static := first[nodeName((i+1)%nodes)]
		for range size - size/10 {
			static = static.Next()
		}
		for j := range size {
			p := &pod{name: fmt.Sprintf("pod-%d-%d", i, j), random: random(uint64(1 + i*size + j))}
			if j < size/10 {
				p.requested = static.String()
				static = static.Next()
			} else if *kept && j%3 == 0 {
				p.name, p.keeps = fmt.Sprintf("%s-%d", setName, i*size+j), true
			}
			k.pods = append(k.pods, p)
		}
		all = append(all, k)
	}
	return all
}

func (k *kubelet) configure(t *testing.T) {
	t.Helper()
	kubeconfig, err := k.Env.NodeKubeconfig(k.node)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	k.installer = []string{
		k.version.Load().program("ipam-node"), "--restore-only", "--node-name=" + k.node, "--ippools-namespace=" + k.NS, "--kubeconfig=" + kubeconfig,
		"--cni-data-dir=" + filepath.Join(dir, "data"),
	}
	k.stdin, err = json.Marshal(map[string]any{
		"cniVersion": "1.1.0", "name": "net", "type": "macvlan",
		"ipam": map[string]any{
			"type": "nv-ipam", "poolName": poolName, "confDir": dir, "kubeconfig": kubeconfig, "poolsNamespace": k.NS,
			"dataDir": filepath.Join(dir, "data"), "logFile": filepath.Join(dir, "log"), "lossGrace": lossGrace,
		},
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forAll calls f with all pods, in random order, some of them at once.
func (k *kubelet) forAll(f func(*pod)) {
	queue := make(chan *pod)
	var workers sync.WaitGroup
	for range atOnce {
		workers.Go(func() {
			for p := range queue {
				f(p)
			}
		})
	}
	for _, i := range k.pods[0].random.Perm(len(k.pods)) {
		queue <- k.pods[i]
	}
	close(queue)
	workers.Wait()
}

// start makes a pod and tries until it has an address, each time in a new
// sandbox.
func (k *kubelet) start(ctx context.Context, t *testing.T, p *pod) {
	if err := k.createPod(ctx, p); err != nil {
		t.Errorf("pod %s was not created: %v", p.name, err)
		return
	}
	for backoff := 200 * time.Millisecond; ; backoff = min(2*backoff, 3*time.Second) {
		p.sandboxes++
		address, err := k.add(p)
		if err == nil {
			k.counts.claimed.Add(1)
			if p.requested != "" && address != p.requested {
				t.Errorf("%s asked for %s and got %s", p.name, p.requested, address)
			}
			if p.keeps && p.kept != "" && address != p.kept {
				t.Errorf("%s on %s got %s, and had %s", p.name, k.node, address, p.kept)
			}
			p.kept = address
			if other := k.live.up(address, p.container()); other != "" {
				t.Errorf("%s was given to %s while %s answers on it", address, p.container(), other)
			}
			p.address = address
			return
		}
		k.counts.addFailed.Add(1)
		if notTemporary(err) || !k.remove(ctx, t, p) || !pause(ctx, pick(p.random, backoff/2, backoff)) {
			t.Errorf("%s on %s has no address: %v", p.name, k.node, err)
			return
		}
	}
}

// notTemporary reports whether a runtime that asks again would hear the same: also if a policy
// refuses, for a node may have to wait for the plugin that the policy is made for.
func notTemporary(err error) bool {
	var cniErr *types.Error
	return errors.As(err, &cniErr) && (cniErr.Code != types.ErrTryAgainLater || strings.Contains(cniErr.Msg+cniErr.Details, "denied request"))
}

// stop deletes a pod. Some DELs never get through and are not repeated, as
// happens with multus in between.
func (k *kubelet) stop(ctx context.Context, t *testing.T, p *pod) {
	if p.address == "" {
		return // has been reported
	}
	k.live.down(p.address)
	p.address = ""
	if p.random.IntN(loseOneIn) == 0 {
		k.counts.lostDELs.Add(1)
	} else if k.remove(ctx, t, p) {
		k.counts.released.Add(1)
	}
	err := insist(ctx, func() error {
		err := k.Kube.CoreV1().Pods(k.NS).Delete(ctx, p.name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Errorf("pod %s was not deleted: %v", p.name, err)
	}
}

// remove removes a pod's sandbox: DEL until it succeeds.
func (k *kubelet) remove(ctx context.Context, t *testing.T, p *pod) bool {
	for {
		_, err := k.call("DEL", p)
		if err == nil {
			return true
		}
		k.counts.delFailed.Add(1)
		if notTemporary(err) || !pause(ctx, pick(p.random, 100*time.Millisecond, time.Second)) {
			t.Errorf("DEL of %s on %s: %v", p.container(), k.node, err)
			return false
		}
	}
}

// createPod makes the pod's object, bound to the node.
func (k *kubelet) createPod(ctx context.Context, p *pod) error {
	pods := k.Kube.CoreV1().Pods(k.NS)
	return insist(ctx, func() error {
		var owner []metav1.OwnerReference
		if p.keeps {
			owner = []metav1.OwnerReference{*metav1.NewControllerRef(k.set, appsv1.SchemeGroupVersion.WithKind("StatefulSet"))}
		}
		obj, err := pods.Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: p.name, OwnerReferences: owner},
			Spec:       corev1.PodSpec{NodeName: k.node, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
		}, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // made by a request whose answer was lost
			obj, err = pods.Get(ctx, p.name, metav1.GetOptions{})
		}
		if err == nil {
			p.uid = string(obj.UID)
		}
		return err
	})
}

// look is one look of the node's installer.
func (k *kubelet) look(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, k.installer[0], k.installer[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// container is the ID of the pod's latest sandbox.
func (p *pod) container() string { return fmt.Sprintf("%s-%d", p.name, p.sandboxes) }

func (k *kubelet) add(p *pod) (string, error) {
	out, err := k.call("ADD", p)
	if err != nil {
		return "", err
	}
	addrs, err := rig.Given(out)
	if err == nil && len(addrs) != 1 {
		err = fmt.Errorf("%d addresses: %s", len(addrs), out)
	}
	if err != nil {
		return "", err
	}
	address, _, _ := strings.Cut(addrs[0], "/")
	return address, nil
}

var errKilled = errors.New("plugin was killed")

// call runs the plugin, and kills some of its processes.
func (k *kubelet) call(verb string, p *pod) ([]byte, error) {
	args := "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + k.NS + ";K8S_POD_NAME=" + p.name + ";K8S_POD_UID=" + p.uid + ";K8S_POD_INFRA_CONTAINER_ID=" + p.container()
	if p.requested != "" && verb == "ADD" {
		args += ";IP=" + p.requested
	}
	plugin := k.version.Load().program("nv-ipam")
	cmd := exec.Command(plugin)
	// The plugin alone, without the main plugin that enters the container's
	// namespace: skel has to be told that this is no mistake.
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.container(), "CNI_IFNAME=net1", "CNI_ARGS=" + args,
		"CNI_NETNS=/proc/self/ns/net", "CNI_NETNS_OVERRIDE=1", "CNI_PATH=" + filepath.Dir(plugin),
	}
	cmd.Stdin = bytes.NewReader(k.stdin)
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if p.random.IntN(killOneIn) == 0 {
		defer time.AfterFunc(pick(p.random, 0, longestLife), func() { _ = cmd.Process.Kill() }).Stop()
	}
	err := cmd.Wait()
	if err == nil {
		return out.Bytes(), nil
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		k.counts.killed.Add(1)
		return nil, errKilled
	}
	cniErr := &types.Error{}
	if json.Unmarshal(out.Bytes(), cniErr) != nil {
		return nil, fmt.Errorf("no CNI error: %q, stderr %q", out.String(), stderr.String())
	}
	return nil, cniErr
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const (
	// namespace of all pools and allocations, where nodes have their role and
	// admission policy.
	namespace = "bench"
	// hostCount is how many nodes call the plugin.
	hostCount = 10
	// patience is how long anything may take that is waited for.
	patience = 10 * time.Minute
)

type bench struct {
	options

	ctx     context.Context
	started time.Time
	env     *testenv.Env
	kube    kubernetes.Interface
	ipam    clientv1alpha1.NvIpamV1alpha1Interface
	// metadata is for lists of which only names are read.
	metadata metadata.Interface
	http     *http.Client // to the API server, as an administrator
	report   report

	floorPath, peakPath string
	installerPath       string
	kubeconfigs         []string // of the nodes that call the plugin
	containers          int      // that have been made
	floors              int      // addresses that are the floor's so far
	copied              int      // allocations that were made by copying one
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: %4.0f s: %s\n", time.Since(b.started).Seconds(), fmt.Sprintf(format, args...))
}

// start runs a server and prepares it.
func start(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{options: o, ctx: ctx, started: time.Now()}
	if err := b.findPrograms(); err != nil {
		return nil, err
	}
	b.say("starting etcd and the API server")
	b.env, err = testenv.Start(testenv.Options{Durable: true})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.stop())
		}
	}()
	b.env.Config.WarningHandler = rest.NoWarnings{} // its pools are in a namespace of their own
	if b.kube, err = kubernetes.NewForConfig(b.env.Config); err != nil {
		return nil, err
	}
	if b.ipam, err = clientv1alpha1.NewForConfig(b.env.Config); err != nil {
		return nil, err
	}
	if b.metadata, err = metadata.NewForConfig(b.env.Config); err != nil {
		return nil, err
	}
	if b.http, err = rest.HTTPClientFor(b.env.Config); err != nil {
		return nil, err
	}
	if err := errors.Join(b.describeMachine(), b.favourServers(), b.installPrograms()); err != nil {
		return nil, err
	}
	for i := range hostCount {
		kubeconfig, err := b.env.NodeKubeconfig(hostName(i))
		if err != nil {
			return nil, err
		}
		b.kubeconfigs = append(b.kubeconfigs, kubeconfig)
	}
	return b, b.install()
}

func (b *bench) stop() error { return b.env.Stop() }

// findPrograms finds what is measured, and the helpers beside this program.
func (b *bench) findPrograms() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	b.floorPath = filepath.Join(filepath.Dir(self), "floor")
	b.peakPath = filepath.Join(filepath.Dir(self), "peak")
	if b.plugin == "" {
		if b.plugin, err = testenv.Binary("nv-ipam"); err != nil {
			return err
		}
	}
	if b.options.controller == "" {
		if b.options.controller, err = testenv.Binary("ipam-controller"); err != nil {
			return err
		}
	}
	if b.installerPath, err = testenv.Binary("ipam-node"); err != nil {
		return err
	}
	for _, path := range []string{b.installerPath, b.floorPath, b.peakPath, b.plugin, b.options.controller} {
		if _, err := os.Stat(path); err != nil {
			return fmt.Errorf("%w: run make bench", err)
		}
	}
	return nil
}

// installPrograms copies what is started for each call.
func (b *bench) installPrograms() (err error) {
	if b.floorPath, err = b.copyOf(b.floorPath); err != nil {
		return err
	}
	b.plugin, err = b.copyOf(b.plugin)
	return err
}

// copyOf copies a program, as the installer does on a node. The kernel has it in memory in larger
// pieces then than what the linker has written, and a process that starts from it needs a sixth less
// CPU time.
func (b *bench) copyOf(path string) (string, error) {
	dir, err := os.MkdirTemp(b.env.Dir, "installed-")
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, filepath.Base(path))
	return to, os.WriteFile(to, data, 0o700)
}

// install applies role and policy as an administrator would, and waits until a
// node is allowed to claim and the policy is in force.
func (b *bench) install() error {
	if err := b.createNamespace(namespace); err != nil {
		return err
	}
	root, err := testenv.Root()
	if err != nil {
		return err
	}
	overlay := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nnamespace: " + namespace + "\nresources:\n"
	for _, part := range []string{"plugin", "policy"} {
		path, err := filepath.Rel(b.env.Dir, filepath.Join(root, "manifests", "base", part))
		if err != nil {
			return err
		}
		overlay += "- " + path + "\n"
	}
	if err := os.WriteFile(filepath.Join(b.env.Dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
		return err
	}
	if out, err := b.env.Kubectl(b.ctx, "apply", "-k", b.env.Dir); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	config, err := b.env.UserConfig("system:node:"+hostName(0), testenv.NodesGroup)
	if err != nil {
		return err
	}
	node, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return err
	}
	return b.until("role and policy are in force", func() (bool, error) {
		dry := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
		_, own := node.IPAllocations(namespace).Create(b.ctx, canary(hostName(0)), dry)
		_, other := node.IPAllocations(namespace).Create(b.ctx, canary(hostName(1)), dry)
		return own == nil && other != nil, nil
	})
}

func canary(node string) *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: "canary.10.9.9.9", Labels: map[string]string{
			v1alpha1.LabelPool: "canary", v1alpha1.LabelNode: node, v1alpha1.LabelContainer: v1alpha1.ContainerLabel("c"),
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "canary"},
			Address: "10.9.9.9", NodeName: node, ContainerID: "c", InterfaceName: "net1",
			PodRef: v1alpha1.PodReference{Namespace: "default", Name: "canary"},
		},
	}
}

func (b *bench) createNamespace(name string) error {
	_, err := b.kube.CoreV1().Namespaces().Create(b.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	return err
}

// until polls for something that happens by itself.
func (b *bench) until(what string, done func() (bool, error)) error {
	return b.poll(20*time.Millisecond, what, done)
}

// rarely is until for what takes seconds and where to look is work for the API
// server.
func (b *bench) rarely(what string, done func() (bool, error)) error {
	return b.poll(time.Second, what, done)
}

func (b *bench) poll(interval time.Duration, what string, done func() (bool, error)) error {
	err := wait.PollUntilContextTimeout(b.ctx, interval, patience, true, func(context.Context) (bool, error) { return done() })
	if err != nil {
		return fmt.Errorf("waiting until %s: %w", what, err)
	}
	return nil
}

var (
	allocationsResource = v1alpha1.Resource("ipallocations").WithVersion(v1alpha1.GroupVersion.Version)
	poolsResource       = v1alpha1.Resource("ippools").WithVersion(v1alpha1.GroupVersion.Version)
)

func hostName(i int) string { return fmt.Sprintf("node-%05d", i) }

func hostNames(n int) []string {
	var out []string
	for i := range n {
		out = append(out, hostName(i))
	}
	return out
}

// pool creates an IPPool and carves it for the nodes, as the controller does.
func (b *bench) pool(name string, spec v1alpha1.IPPoolSpec, nodes []string) error {
	obj, err := b.ipam.IPPools(namespace).Create(b.ctx, &v1alpha1.IPPool{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	p, errs := pool.ObjectOf(obj).Parse()
	if len(errs) > 0 {
		return errs.ToAggregate()
	}
	blocks, unserved := p.Carve(nil, nodes, nil)
	if len(unserved) > 0 {
		return fmt.Errorf("pool %s has no room for %d nodes", name, len(unserved))
	}
	return b.writeBlocks(name, pool.ObjectOf(obj).AllocationsFor(blocks).([]v1alpha1.Allocation))
}

// sharedPool creates an IPPool of which all hosts have one and the same block.
func (b *bench) sharedPool(name string, spec v1alpha1.IPPoolSpec) error {
	if err := b.pool(name, spec, hostNames(1)); err != nil {
		return err
	}
	obj, err := b.ipam.IPPools(namespace).Get(b.ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var all []v1alpha1.Allocation
	for i := range hostCount {
		block := obj.Status.Allocations[0]
		block.NodeName = hostName(i)
		all = append(all, block)
	}
	return b.writeBlocks(name, all)
}

func (b *bench) writeBlocks(name string, blocks []v1alpha1.Allocation) error {
	body, err := json.Marshal(map[string]any{
		"apiVersion": v1alpha1.GroupVersion.String(), "kind": "IPPool",
		"metadata": map[string]any{"name": name, "namespace": namespace},
		"status":   map[string]any{"allocations": blocks},
	})
	if err != nil {
		return err
	}
	force := true
	_, err = b.ipam.IPPools(namespace).Patch(b.ctx, name, types.ApplyPatchType, body,
		metav1.PatchOptions{FieldManager: pool.BlocksManager(pool.ObjectOf(&v1alpha1.IPPool{Status: v1alpha1.IPPoolStatus{Allocations: blocks}}).Blocks()), Force: &force}, "status")
	return err
}

// joinPool gives one more node a block of a pool, and waits until the API server's memory has it.
func (b *bench) joinPool(name, node string) error {
	obj, err := b.ipam.IPPools(namespace).Get(b.ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	last := obj.Status.Allocations[len(obj.Status.Allocations)-1]
	to, err := netip.ParseAddr(last.EndIP)
	if err != nil {
		return err
	}
	block := v1alpha1.Allocation{NodeName: node, StartIP: to.Next().String(), EndIP: to.Next().String()}
	if err := b.writeBlocks(name, append(obj.Status.Allocations, block)); err != nil {
		return err
	}
	return b.poll(10*time.Millisecond, "the API server has seen the blocks", func() (bool, error) {
		seen, err := b.ipam.IPPools(namespace).Get(b.ctx, name, metav1.GetOptions{ResourceVersion: "0"})
		return err == nil && len(seen.Status.Allocations) > len(obj.Status.Allocations), err
	})
}

// blocksOf is a pool for the hosts.
func blocksOf(subnet string, size int) v1alpha1.IPPoolSpec {
	gateway := netip.MustParsePrefix(subnet).Addr().Next()
	return v1alpha1.IPPoolSpec{Subnet: subnet, PerNodeBlockSize: size, Gateway: gateway.String()}
}

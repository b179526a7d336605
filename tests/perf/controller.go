// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/simnode"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

const (
	leaks = 1000
	// grace is shorter than anybody would have it, so that it does not hide what
	// the controller itself takes.
	grace = 5 * time.Second
	// After its start, a controller has settleTime to check everything once. Then it is watched for
	// restTime, while nothing happens.
	settleTime = time.Minute
	restTime   = 30 * time.Second

	firstStart   = "start, until in sync with allocations and pods"
	carve        = "carve the pools"
	nodeJoins    = "a node joins"
	reclaimLeaks = "reclaim 1,000 leaks"
	startAnew    = "start anew, until in sync with all of it"
	afterStart   = "the minute after that"
	atRest       = "at rest"
)

// manager is a running controller.
type manager struct {
	process *simnode.Process
	pid     int
	probes  string
	started time.Time

	// What step found at the end of the last one.
	ended time.Time
	used  time.Duration // of the CPU
	sent  requests
}

// controller measures the controller in a large cluster.
func (b *bench) controller() error {
	installer, err := b.startInstaller()
	if err != nil {
		return err
	}
	defer func() { _ = installer.process.Stop() }() // again, if all went well
	if err := b.populate(); err != nil {
		return err
	}
	if err := installer.begin(); err != nil {
		return err
	}
	t := b.table("Controller", fmt.Sprintf("%s nodes, %d pools with a block for each of them, %s allocations and as many pods. The time to reclaim counts from the end of the grace period. Writes are those to pools, allocations and events; the controller's lease is renewed every 2 s beside them.",
		thousands(b.nodes), poolCount, thousands(b.total)),
		"seconds", "CPU s", "resident MiB", "peak MiB", "API writes")
	m, err := b.startController()
	if err != nil {
		return err
	}
	defer func() { _ = m.process.Stop() }() // again, where all went well

	steps := []struct {
		name  string
		run   func(*manager) error
		check func() error // after what is measured
	}{
		{firstStart, b.ready, nil},
		{carve, func(*manager) error { return b.carvePools() }, func() error { return b.complete(b.nodes) }},
		{nodeJoins, func(*manager) error { return b.join() }, func() error { return b.complete(b.nodes + 1) }},
		{reclaimLeaks, func(*manager) error { return b.leak() }, b.onlyLeaks},
	}
	for _, s := range steps {
		err := b.step(t, s.name, m, s.run)
		if err == nil && s.check != nil {
			err = s.check()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
	}
	if err := m.process.Stop(); err != nil {
		return fmt.Errorf("the controller ended with: %w", err)
	}
	if m, err = b.startController(); err != nil {
		return err
	}
	defer func() { _ = m.process.Stop() }() // it is not needed any more
	if err := b.step(t, startAnew, m, b.ready); err != nil {
		return err
	}
	for _, s := range []struct {
		name  string
		pause func() error
	}{
		{afterStart, func() error { return b.pause(settleTime - time.Since(m.ended)) }},
		{atRest, func() error { return b.pause(restTime) }},
	} {
		if err := b.step(t, s.name, m, func(*manager) error { return s.pause() }); err != nil {
			return err
		}
	}
	b.controllerTargets(t)
	return b.installerAtRest(installer)
}

// populate makes the nodes, pods and allocations of the large cluster.
func (b *bench) populate() error {
	if err := b.haveAllocations(b.total); err != nil {
		return err
	}
	if err := b.leaveTheCluster(); err != nil {
		return err
	}
	b.say("creating %d nodes and %d pods", b.nodes, b.total)
	if err := b.createNodes(b.nodes); err != nil {
		return err
	}
	if err := b.createPods(b.total); err != nil {
		return err
	}
	return b.calm()
}

// controllerTargets compares the steps with what they are to take.
func (b *bench) controllerTargets(t *table) {
	const seconds, cpu, peak, writes = 0, 1, 3, 4 // columns
	of := func(name string, column int) float64 {
		i := slices.IndexFunc(t.Rows, func(r row) bool { return r.Name == name })
		return *t.Rows[i].Values[column]
	}
	b.target("controller, carve the pools", of(carve, seconds), 30, " s")
	b.target("controller, a node joins", of(nodeJoins, seconds), 20, " s")
	b.target("controller, a node joins, writes", of(nodeJoins, writes), 110, "")
	b.target("controller, reclaim 1,000 leaks", of(reclaimLeaks, seconds), 25, " s")
	b.target("controller, start anew, CPU", of(startAnew, cpu), 10, " s")
	b.target("controller, start anew, writes then and in the minute after", of(startAnew, writes)+of(afterStart, writes), 0, "")
	pods := thousands(b.total) + " allocations and pods"
	b.target("controller, "+pods+", peak memory", of(firstStart, peak), 450, " MiB") // before it has pools
	most := 0.0                                                                      // of both processes
	for _, r := range t.Rows {
		most = max(most, *r.Values[peak])
	}
	b.target("controller, "+pods+" and all the rest, peak memory", most, 450, " MiB")
	b.target("controller, CPU at rest", 100*of(atRest, cpu)/restTime.Seconds(), 1, " %")
}

// leaveTheCluster removes what other phases have left beside the large cluster's
// allocations: the controller would carve and reclaim it.
func (b *bench) leaveTheCluster() error {
	if err := b.ipam.IPPools(namespace).DeleteCollection(b.ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return err
	}
	return b.drop("floor")
}

// step measures what the controller needs for one thing.
func (b *bench) step(t *table, name string, m *manager, run func(*manager) error) error {
	before, err := b.requests()
	if err != nil {
		return err
	}
	cpu, err := cpuTime(m.pid)
	if err != nil {
		return err
	}
	begin := time.Now()
	if name == afterStart { // it is at work while requests are counted
		before, cpu, begin = m.sent, m.used, m.ended
	}
	if err := run(m); err != nil {
		return err
	}
	m.ended = time.Now()
	elapsed := m.ended.Sub(begin)
	if name == reclaimLeaks {
		elapsed -= grace
	}
	used, err := cpuTime(m.pid)
	if err != nil {
		return err
	}
	after, err := b.requests()
	if err != nil {
		return err
	}
	m.used, m.sent = used, after
	sent := after.since(before)
	now, peak, err := memory(m.pid)
	if err != nil {
		return err
	}
	// Pools are made by this program.
	t.add(name, elapsed.Seconds(), (used - cpu).Seconds(), now, peak, float64(sent.writes("")-sent.sum("POST", "ippools")))
	b.say("%s: %.1f s, %.2f s of CPU, %.0f MiB, %v", name, elapsed.Seconds(), (used - cpu).Seconds(), now, sent)
	return nil
}

func (b *bench) startController() (*manager, error) {
	probe, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		return nil, err
	}
	m := &manager{probes: probe.Addr().String(), started: time.Now()}
	probe.Close()
	log, err := os.OpenFile(filepath.Join(b.env.Dir, "controller.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the controller has its own
	cmd := exec.Command(b.options.controller, "--kubeconfig="+b.env.Kubeconfig, "--ippools-namespace="+namespace,
		"--leader-elect=true", "--leader-elect-namespace="+namespace, "--reclaim-grace="+grace.String(), "--reclaim-grace-ready-node="+grace.String(),
		"--health-probe-bind-address="+m.probes, "--metrics-bind-address=0")
	cmd.Stdout, cmd.Stderr = log, log
	limit, err := memoryLimit()
	if err != nil {
		return nil, err
	}
	cmd.Env = append(os.Environ(), "GOMEMLIMIT="+limit)
	if m.process, err = simnode.StartProcess(cmd); err != nil {
		return nil, err
	}
	m.pid = cmd.Process.Pid
	return m, nil
}

// memoryLimit returns the GOMEMLIMIT of the controller's manifest.
func memoryLimit() (string, error) {
	root, err := testenv.Root()
	if err != nil {
		return "", err
	}
	path := filepath.Join(root, "manifests", "base", "controller", "deployment.yaml")
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	var d appsv1.Deployment
	if err := yaml.Unmarshal(data, &d); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	for _, c := range d.Spec.Template.Spec.Containers {
		for _, e := range c.Env {
			if e.Name == "GOMEMLIMIT" {
				return e.Value, nil
			}
		}
	}
	return "", fmt.Errorf("%s has no GOMEMLIMIT", path)
}

// ready waits until the controller leads and has seen the cluster.
func (b *bench) ready(m *manager) error {
	return b.until("the controller is in sync", func() (bool, error) {
		resp, err := http.Get("http://" + m.probes + "/readyz")
		if err != nil { // not listening yet
			return false, m.alive()
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return false, m.alive()
		}
		// While it waits for the lease it is ready, too.
		lease, err := b.kube.CoordinationV1().Leases(namespace).List(b.ctx, metav1.ListOptions{})
		if err != nil {
			return false, err
		}
		for _, l := range lease.Items {
			if l.Spec.RenewTime != nil && l.Spec.RenewTime.After(m.started) {
				return true, nil
			}
		}
		return false, nil
	})
}

func (m *manager) alive() error {
	select {
	case <-m.process.Done():
		return errors.New("the controller has ended")
	default:
		return nil
	}
}

func (b *bench) createNodes(n int) error {
	_, _, err := atOnce(30, n, func(i int) (sample, error) { return sample{}, b.createNode(hostName(i)) })
	return err
}

func (b *bench) createNode(name string) error {
	_, err := b.kube.CoreV1().Nodes().Create(b.ctx, &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{
			corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64",
			corev1.LabelTopologyZone: "zone-1", corev1.LabelInstanceTypeStable: "large",
		}},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady"}}},
	}, metav1.CreateOptions{})
	return err
}

func podKey(i int) string { return "/registry/pods/" + namespace + "/" + podName(i) }

// createPods makes the pods that hold the allocations: one through the API, the
// others are copies of it in etcd, for a pod's UID is not ours to choose.
func (b *bench) createPods(n int) error {
	pod, err := b.kube.CoreV1().Pods(namespace).Create(b.ctx, examplePod(), metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if err := b.kube.CoreV1().Pods(namespace).Delete(b.ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
		return err
	}
	pod.ResourceVersion = ""
	pod.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Pod"))
	encoder := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme)
	err = b.store(n, func(i int) (kv, error) {
		node, _, _ := place(i)
		p := pod.DeepCopy()
		p.Name, p.UID, p.Spec.NodeName = podName(i), types.UID(podUID(i)), node
		p.Status.Phase = corev1.PodRunning
		var value bytes.Buffer
		err := encoder.Encode(p, &value)
		return kv{Key: []byte(podKey(i)), Value: value.Bytes()}, err
	})
	if err != nil {
		return err
	}
	return b.until("the API server has seen the pods", func() (bool, error) {
		list, err := b.metadata.Resource(corev1.SchemeGroupVersion.WithResource("pods")).Namespace(namespace).List(b.ctx, metav1.ListOptions{Limit: 1})
		return err == nil && list.RemainingItemCount != nil && int(*list.RemainingItemCount) == n-1, err
	})
}

func examplePod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name:   "example",
			Labels: map[string]string{"app": "example", "pod-template-hash": "5d4f8c7b9d"},
			Annotations: map[string]string{
				"k8s.v1.cni.cncf.io/networks":       "net",
				"k8s.v1.cni.cncf.io/network-status": strings.Repeat(`{"name":"net","interface":"net1","ips":["10.0.0.1"],"mac":"02:00:00:00:00:01","dns":{}}`, 4),
			},
		},
		Spec: corev1.PodSpec{
			NodeName: hostName(0),
			Containers: []corev1.Container{{
				Name: "main", Image: "registry.example.com/team/application:v1.2.3",
				Env: []corev1.EnvVar{{Name: "ONE", Value: "1"}, {Name: "TWO", Value: "2"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
					corev1.ResourceCPU: resource.MustParse("100m"), corev1.ResourceMemory: resource.MustParse("128Mi"),
				}},
			}},
		},
	}
}

// carvePools creates the pools and waits until each node has its block in all, and their status says
// so.
func (b *bench) carvePools() error {
	_, _, err := atOnce(10, poolCount, func(p int) (sample, error) {
		_, err := b.ipam.IPPools(namespace).Create(b.ctx, &v1alpha1.IPPool{
			ObjectMeta: metav1.ObjectMeta{Name: poolName(p)},
			Spec:       v1alpha1.IPPoolSpec{Subnet: fmt.Sprintf("10.%d.0.0/15", 2*p), PerNodeBlockSize: podsPerNode},
		}, metav1.CreateOptions{})
		return sample{}, err
	})
	if err != nil {
		return err
	}
	_, err = b.carved(nil)
	return err
}

// join adds a node and waits until it has its block in all pools.
func (b *bench) join() error {
	before, err := b.carved(nil)
	if err != nil {
		return err
	}
	if err := b.createNode(hostName(b.nodes)); err != nil {
		return err
	}
	_, err = b.carved(before)
	return err
}

// carved waits until the controller has written the blocks of all pools, after those before, and
// the rest of their status at any time. It returns what the controller calls the blocks, by pool.
// It follows their metadata: the blocks themselves are 37 MB, which the API server would have to
// write and this program to read while it is measured.
func (b *bench) carved(before map[string]string) (map[string]string, error) {
	w, err := b.metadata.Resource(poolsResource).Namespace(namespace).Watch(b.ctx, metav1.ListOptions{ResourceVersion: "0", TimeoutSeconds: new(int64(patience.Seconds()))})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	now := map[string]string{}
	for event := range w.ResultChan() {
		p, ok := event.Object.(*metav1.PartialObjectMetadata)
		if !ok {
			return nil, fmt.Errorf("watching pools: %v", event.Object)
		}
		carving, rest := "", false
		for _, f := range p.ManagedFields {
			if strings.HasPrefix(f.Manager, v1alpha1.BlocksManagerPrefix) {
				carving = f.Manager
			} else if f.Subresource == "status" {
				rest = true
			}
		}
		if rest && carving != before[p.Name] {
			now[p.Name] = carving
		}
		if len(now) == poolCount {
			return now, nil
		}
	}
	return nil, fmt.Errorf("%d of %d pools were carved in %s", len(now), poolCount, patience)
}

// complete checks that every pool is ready and has a block for each node.
func (b *bench) complete(nodes int) error {
	for p := range poolCount {
		obj, err := b.ipam.IPPools(namespace).Get(b.ctx, poolName(p), metav1.GetOptions{ResourceVersion: "0"})
		if err != nil {
			return err
		}
		if got := len(obj.Status.Allocations); got != nodes {
			return fmt.Errorf("pool %s has %d blocks for %d nodes", obj.Name, got, nodes)
		}
		if !meta.IsStatusConditionTrue(obj.Status.Conditions, "Ready") {
			return fmt.Errorf("pool %s is not ready", obj.Name)
		}
	}
	return nil
}

func (b *bench) pause(d time.Duration) error {
	select {
	case <-b.ctx.Done():
		return b.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// leak takes pods away and waits until as many addresses are free.
func (b *bench) leak() error {
	for i := range leaks {
		var answer struct{}
		if err := b.etcd("deleterange", kv{Key: []byte(podKey(i))}, &answer); err != nil {
			return err
		}
	}
	return b.rarely("the leaks are reclaimed", func() (bool, error) {
		held, err := b.count()
		if err == nil && held < b.total-leaks {
			err = fmt.Errorf("%d allocations are left, want %d", held, b.total-leaks)
		}
		return held == b.total-leaks, err
	})
}

// onlyLeaks checks which addresses are left: those of all other pods. It asks etcd for their keys, so
// that the API server, which is measured again, need not list them.
func (b *bench) onlyLeaks() error {
	prefix := allocationKey(namespace, "")
	to := []byte(prefix)
	to[len(to)-1]++
	var answer struct {
		KVs []kv `json:"kvs"`
	}
	if err := b.etcd("range", map[string]any{"key": []byte(prefix), "range_end": to, "keys_only": true}, &answer); err != nil {
		return err
	}
	left := make(map[string]bool, len(answer.KVs))
	for _, found := range answer.KVs {
		left[string(found.Key)] = true
	}
	for i := range b.total {
		_, pool, addr := place(i)
		key := allocationKey(namespace, v1alpha1.AllocationName(pool, addr))
		switch held := left[key]; {
		case held && i < leaks:
			return fmt.Errorf("%s is left, and its pod is gone", key)
		case !held && i >= leaks:
			return fmt.Errorf("%s was freed, and its pod is there", key)
		}
	}
	if len(left) != b.total-leaks {
		return fmt.Errorf("%d allocations are left, want %d", len(left), b.total-leaks)
	}
	return nil
}

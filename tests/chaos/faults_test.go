// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// controllers are two replicas, each started again whenever it ends, as a
// Deployment's are.
type controllers struct {
	log    string
	counts *counts
	end    context.CancelFunc
	all    sync.WaitGroup

	version atomic.Pointer[version]

	mu      sync.Mutex
	running []*os.Process // by replica
}

func (c *cluster) startControllers(t *testing.T, v *version) *controllers {
	t.Helper()
	const replicas = 2
	ctx, end := context.WithCancel(context.Background())
	cs := &controllers{log: filepath.Join(t.TempDir(), "controllers.log"), counts: &c.counts, end: end, running: make([]*os.Process, replicas)}
	cs.version.Store(v)
	for i := range replicas {
		cs.all.Go(func() {
			for ctx.Err() == nil {
				v := cs.version.Load()
				cs.run(ctx, t, i, v.program("ipam-controller"), append(v.controller, "--kubeconfig="+c.Env.Kubeconfig, "--ippools-namespace="+c.NS,
					"--leader-elect", "--leader-elect-namespace="+c.NS, "--reclaim-grace=2s", "--health-probe-bind-address=0", "--metrics-bind-address=0")...)
				pause(ctx, 500*time.Millisecond) // CrashLoopBackOff begins with ten seconds
			}
		})
	}
	t.Cleanup(func() { cs.stop(t) })
	return cs
}

// run runs one replica until it ends, one way or another.
func (cs *controllers) run(ctx context.Context, t *testing.T, replica int, binary string, args ...string) {
	log, err := os.OpenFile(cs.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Error(err)
		return
	}
	defer log.Close()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	cs.set(replica, cmd.Process)
	err = cmd.Wait()
	cs.set(replica, nil)
	if exit := (*exec.ExitError)(nil); ctx.Err() == nil && errors.As(err, &exit) && exit.Exited() {
		cs.counts.controllerEnd.Add(1) // its lease was lost
	}
}

func (cs *controllers) set(replica int, p *os.Process) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.running[replica] = p
}

func (cs *controllers) kill(r *rand.Rand) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if p := cs.running[r.IntN(len(cs.running))]; p != nil && p.Kill() == nil {
		cs.counts.controllerKills.Add(1)
	}
}

// roll ends the replicas one after the other, which start again with another version.
func (cs *controllers) roll(v *version) {
	cs.version.Store(v)
	for i := range cs.running {
		cs.mu.Lock()
		if p := cs.running[i]; p != nil {
			_ = p.Signal(syscall.SIGTERM)
		}
		cs.mu.Unlock()
	}
}

func (cs *controllers) stop(t *testing.T) {
	t.Helper()
	cs.end()
	cs.all.Wait()
	if data, err := os.ReadFile(cs.log); t.Failed() && err == nil {
		t.Logf("the controllers said:\n%s", data[max(0, len(data)-20_000):])
	}
}

// reclaimed returns how many addresses the controllers say that they have taken
// back.
func (cs *controllers) reclaimed(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(cs.log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(data), "msg=Reclaimed ")
}

// disturb kills a controller, restarts or kills the API server, in turn and at
// random times, until ctx ends; the API server runs then. In between there has
// to be time for a new leader now and then: a lease lasts fifteen seconds, and
// a full pool waits for what only the leader takes back.
func (c *cluster) disturb(ctx context.Context, t *testing.T, cs *controllers) {
	r := random(0)
	for n := 0; pause(ctx, pick(r, 5*time.Second, 15*time.Second)); n++ {
		switch n % 4 {
		case 0, 2:
			cs.kill(r)
		case 1:
			c.restart(ctx, t, r, c.Env.StopAPIServer, &c.counts.serverRestarts)
		case 3:
			c.restart(ctx, t, r, c.Env.KillAPIServer, &c.counts.serverKills)
		}
	}
}

func (c *cluster) restart(ctx context.Context, t *testing.T, r *rand.Rand, stop func() error, count *atomic.Int64) {
	if err := stop(); err != nil {
		t.Error(err)
	}
	pause(ctx, pick(r, 0, 3*time.Second))
	if err := c.Env.StartAPIServer(); err != nil {
		t.Error(err)
	}
	count.Add(1)
}

// lossGrace is the controllers' and the plugins': they have found the loss together.
const lossGrace = "5s"

// lose deletes the record and the pool under all that lives, and makes the pool again.
// Every other node finds that by an ADD, and all by their installers' looks. Afterwards
// everything is held as before.
func (c *cluster) lose(ctx context.Context, t *testing.T, kubelets []*kubelet) {
	t.Helper()
	c.losing.Lock() // what lives is not held meanwhile
	defer c.losing.Unlock()
	must := func(f func() error) {
		t.Helper()
		if err := insist(ctx, f); err != nil {
			t.Fatal(err)
		}
	}
	pools := c.IPAM.IPPools(c.NS)
	must(func() error {
		return c.IPAM.IPAllocations(c.NS).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{})
	})
	must(func() error { return pools.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}) })
	must(func() error {
		_, err := pools.Create(ctx, fullPool(*attachments), metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // by a request whose answer was lost
			return nil
		}
		return err
	})
	each(kubelets, func(k *kubelet) {
		if p := k.pods[0]; p.random.IntN(2) == 0 {
			_, _ = k.add(p)
		}
		if err := insist(ctx, func() error { return k.look(ctx) }); err != nil {
			t.Errorf("the installer's look on %s: %v", k.node, err)
		}
	})
	c.blocks(ctx, t)
	c.wantAllHeld(ctx, t)
	c.counts.restored.Add(c.restored(ctx, t))
}

// restored is how many allocations were written again.
func (c *cluster) restored(ctx context.Context, t *testing.T) (n int64) {
	t.Helper()
	err := insist(ctx, func() error {
		list, err := c.IPAM.IPAllocations(c.NS).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		n = 0
		for _, a := range list.Items {
			if a.Spec.Restored {
				n++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

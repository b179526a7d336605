// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// version is a build of all programs, with its manifests.
type version struct {
	name string
	bin  string // directories
	root string
	// controller are arguments that not every version's controller has.
	controller []string
}

func (v *version) program(name string) string { return filepath.Join(v.bin, name) }

// current is what make build has built.
func current(t *testing.T) *version {
	t.Helper()
	return &version{"this version", filepath.Dir(rig.Binary(t, "nv-ipam")), rig.Root(t), []string{"--reclaim-grace-ready-node=2s", "--loss-grace=" + lossGrace}}
}

// before builds the version before.
func before(t *testing.T) *version {
	t.Helper()
	dir := t.TempDir()
	if err := testenv.Checkout(t.Context(), testenv.Before, dir); err != nil {
		t.Skip(err)
	}
	v := &version{name: "the version before", bin: filepath.Join(dir, "bin"), root: dir}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", v.bin+"/", "./cmd/...")
	build.Dir, build.Env = dir, append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return v
}

// install applies the CRDs of a version, and the nodes' role and policies.
func (c *cluster) install(ctx context.Context, t *testing.T, v *version) {
	t.Helper()
	var resources []string
	for _, part := range []string{"crds", "plugin", "policy"} {
		resources = append(resources, filepath.Join(v.root, "manifests", "base", part))
	}
	dir := rig.Kustomization(t, map[string]any{"namespace": c.NS, "resources": resources})
	for _, args := range [][]string{{"apply", "-k", dir}, {"wait", "--for=condition=Established", "crd", "--all"}} {
		err := insist(ctx, func() error {
			out, err := c.Env.Kubectl(ctx, args...)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// change goes over to another version under load: node after node, the controllers, and the
// CRDs with role and policies, in random order.
func (c *cluster) change(ctx context.Context, t *testing.T, stream uint64, v *version, controllers *controllers, kubelets []*kubelet) {
	steps := map[string]func(){
		"controllers": func() { controllers.roll(v) },
		"manifests":   func() { c.install(ctx, t, v) },
	}
	names := []string{"controllers", "manifests"}
	for _, k := range kubelets {
		steps[k.node] = func() { k.version.Store(v) }
		names = append(names, k.node)
	}
	r := random(stream)
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	t.Logf("to %s: %v", v.name, names)
	for _, name := range names {
		if !pause(ctx, pick(r, time.Second, 4*time.Second)) {
			return
		}
		steps[name]()
	}
}

// While plugins, controllers, CRDs and policies become those of this version and again those
// of the version before, in any order, every moment is as in TestChaos.
func TestVersions(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the version before, and takes minutes")
	}
	old, v := before(t), current(t)
	own, err := testenv.Start(testenv.Options{NoCRDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := own.Stop(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), *limit)
	defer cancel()
	c := newCluster(ctx, t, own, old)
	controllers := c.startControllers(t, old)
	kubelets := c.startKubelets(ctx, t, old)

	calm, end := context.WithCancel(ctx)
	var background, changes sync.WaitGroup
	background.Go(func() { c.disturb(calm, t, controllers) })
	background.Go(func() { c.watch(calm, t) })
	changed := make(chan struct{})
	changes.Go(func() {
		defer close(changed)
		for i, to := range []*version{v, old, v} {
			c.change(ctx, t, uint64(1_000_000+i), to, controllers, kubelets)
		}
	})
	for round, done := 1, false; !done && !t.Failed(); round++ {
		select {
		case <-changed:
			done = true // after one more round
		default:
		}
		each(kubelets, func(k *kubelet) { k.forAll(func(p *pod) { k.start(ctx, t, p) }) })
		c.wantAllHeld(ctx, t)
		each(kubelets, func(k *kubelet) { k.forAll(func(p *pod) { k.stop(ctx, t, p) }) })
		t.Logf("round %d is over: %v", round, &c.counts)
	}
	if t.Failed() {
		cancel()
	}
	changes.Wait()
	end()
	background.Wait()
	c.wantNoneHeld(ctx, t)
	controllers.stop(t)
}

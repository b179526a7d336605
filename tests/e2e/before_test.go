// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// From an earlier version to this one and back, twice, under pods that run.
func TestVersionBefore(t *testing.T) {
	needsOwnCluster(t, "it loads an image onto the nodes")
	s := newScene(t)
	byBefore := state{"the version before", applied(buildBefore(t)), ownFiles, true}
	s.pool("versions", "10.32.0.0/16", "10.32.0.1")
	s.network("versions", `"poolName": "versions"`)
	defer reinstall(t)
	uninstall(t)
	w := &walk{scene: s, network: "versions", has: map[string]string{}, at: uninstalled.name}
	w.through(byBefore)
	s.pod("static", "kind-worker2", `[{"name": "versions", "ips": ["10.32.0.5"]}]`)
	w.running("static")
	w.through(byDefault, byBefore, byDefault)
}

// buildBefore loads the image of the version before onto the nodes, and returns a
// kustomization that installs it.
func buildBefore(t *testing.T) string {
	t.Helper()
	defer phase(t.Name() + " image")()
	dir := t.TempDir()
	if err := testenv.Checkout(t.Context(), testenv.Before, dir); err != nil {
		t.Skip(err)
	}
	build := exec.CommandContext(t.Context(), "hack/image.sh")
	build.Dir = dir
	build.Env = append(os.Environ(), "IMAGE=registry.example.com/crd-ipam:before", "VERSION=before", "OUT=bin", "IMAGE_USER=65532:65532")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := c.Load(t.Context(), filepath.Join(dir, "bin", "image-"+runtime.GOARCH+".docker.tar")); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, "install")
	kustomization := fmt.Sprintf(`namespace: %s
resources: [../manifests/overlays/default]
images: [{name: ghcr.io/crd-ipam/crd-ipam, newName: registry.example.com/crd-ipam, newTag: before}]
`, poolsNamespace)
	if err := os.Mkdir(to, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, "kustomization.yaml"), []byte(kustomization), 0o600); err != nil {
		t.Fatal(err)
	}
	return to
}

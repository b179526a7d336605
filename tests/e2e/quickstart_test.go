// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// README's way from the source to a pod with an address, word for word, on a cluster
// that has nothing of it.
func TestQuickStart(t *testing.T) {
	if walkthroughOnly {
		t.Skip("only the walkthrough is run, because of E2E_WALKTHROUGH_ONLY")
	}
	needsOwnCluster(t, "it deletes the CRDs, and pushes to the cluster's registry")
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	commands, manifests := blocksOf(string(readme), "## Install", "## Use")
	if len(commands) != 2 || len(manifests) != 1 {
		t.Fatalf("README has %d blocks of commands and %d manifests there", len(commands), len(manifests))
	}
	nothingInstalled(t)
	reader := newReader(t, root)
	defer func() {
		kubectl(t, "delete", "pod", "first", "--ignore-not-found", "--grace-period=1", "--timeout=3m")
		eventually(t, "the pool's count, by which it may be deleted", func() error {
			_, err := c.Kubectl(ctx(), "delete", "-f", filepath.Join(root, "first.yaml"), "--ignore-not-found")
			return err
		})
		for _, name := range []string{"first.yaml", "layout"} {
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				t.Error(err)
			}
		}
		reinstall(t)
	}()

	done := phase(t.Name() + " as README says, from the source to a pod")
	reader.run(commands[0])
	if err := os.WriteFile(filepath.Join(root, "first.yaml"), []byte(manifests[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	out := reader.run(commands[1])
	done()
	if !regexp.MustCompile(`(?m)^nvidia-network-operator +pool1\.192\.168\.0\.5 +192\.168\.0\.5 +pool1 +\S+ +default +first +net1 +true `).MatchString(out) {
		t.Errorf("the allocation is not in\n%s", out)
	}
	if ip := kubectl(t, "exec", "first", "--", "ip", "addr", "show", "net1"); !strings.Contains(ip, "192.168.0.5/16") {
		t.Errorf("the pod has not the address:\n%s", ip)
	}
}

// blocksOf are the fenced blocks in sections of a document: of commands, and of YAML.
func blocksOf(document string, sections ...string) (commands, manifests []string) {
	section, block := "", ""
	var to *[]string
	for _, line := range strings.Split(document, "\n") {
		switch {
		case to != nil && line == "```":
			if slices.Contains(sections, section) {
				*to = append(*to, block)
			}
			to, block = nil, ""
		case to != nil:
			block += line + "\n"
		case line == "```yaml":
			to = &manifests
		case line == "```":
			to = &commands
		case strings.HasPrefix(line, "## "):
			section = line
		}
	}
	return commands, manifests
}

// nothingInstalled removes all of it, and the record.
func nothingInstalled(t *testing.T) {
	t.Helper()
	uninstall(t)
	eventually(t, "the end of the policy that protects the CRDs", func() error {
		_, err := c.Kubectl(t.Context(), "delete", "-k", "../../manifests/overlays/crds", "--ignore-not-found", "--timeout=1m")
		return err
	})
	kubectl(t, "delete", "namespace", poolsNamespace, "--timeout=3m")
}

// reader of README types its commands into a shell.
type reader struct {
	t    *testing.T
	root string
	env  []string
}

// newReader has kubectl for the cluster, and a crane that pushes into its registry.
func newReader(t *testing.T, root string) *reader {
	t.Helper()
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(bin, "cluster"), "../cluster")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	const crane = "#!/bin/sh\n[ \"$1\" = push ] && exec \"$(dirname \"$0\")/cluster\" push \"$2\" \"$3\"\n"
	if err := os.WriteFile(filepath.Join(bin, "crane"), []byte(crane), 0o700); err != nil {
		t.Fatal(err)
	}
	// What make e2e has set is none of its business.
	env := slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return slices.Contains([]string{"MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "IMAGE", "NAMESPACE", "OVERLAY", "OUT"}, name)
	})
	return &reader{t, root, append(env, "KUBECONFIG="+c.Kubeconfig(), fmt.Sprintf("PATH=%s:%s:%s", bin, os.Getenv("CLUSTER_PATH"), os.Getenv("PATH")))}
}

// run runs a block of commands, and returns what they say.
func (r *reader) run(block string) string {
	r.t.Helper()
	cmd := exec.CommandContext(r.t.Context(), "bash", "-euxo", "pipefail", "-c", block)
	cmd.Dir, cmd.Env = r.root, r.env
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

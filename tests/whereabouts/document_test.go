// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// The commands of docs/migration.md, word for word and in their order: in the end the
// network is switched, and its pool gives.
func TestDocument(t *testing.T) {
	c := newCluster(t)
	c.Node(t, "node-a", nil)
	c.network(t, "plain", `{"type":"whereabouts","range":"10.9.0.0/24"}`)
	before := c.add(t, "plain", "node-a", "before")

	doc, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "migration.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, found := strings.Cut(string(doc), "\n# From whereabouts ")
	commands := regexp.MustCompile(`(?m)^       ((?:kubectl|bash) .*)$`).FindAllStringSubmatch(chapter, -1)
	if !found || len(commands) != 9 {
		t.Fatalf("%d commands were found", len(commands))
	}
	dir := t.TempDir()
	for _, m := range commands {
		// Nothing is under way here, so that nobody has to wait for it.
		command := strings.ReplaceAll(m[1], "NAMESPACE", c.NS+" --settle=1ns")
		cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", command)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "KUBECONFIG="+env.Kubeconfig, "PATH="+filepath.Join(rig.Root(t), "bin")+":"+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", command, err, out)
		}
	}
	if got := c.held(t); !slices.Equal(got, []string{"whereabouts " + strings.TrimSuffix(before[0], "/24") + " 10.9.0.0-24 node-a before"}) {
		t.Errorf("held %q, given was %q", got, before)
	}
	if got := c.disabled(t); len(got) > 0 {
		t.Errorf("disabled are still %q", got)
	}
	if after := c.add(t, "plain", "node-a", "after"); slices.Equal(after, before) {
		t.Errorf("%q is given twice", after)
	}
}

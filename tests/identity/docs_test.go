// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// split cuts a session after the first line that ends a command: one in which no
// quotation is left open.
func split(session string) (command, says string) {
	lines := strings.SplitAfter(session, "\n")
	for i, line := range lines {
		if command += line; strings.Count(command, "'")%2 == 0 {
			return strings.TrimSpace(command), strings.TrimSpace(strings.Join(lines[i+1:], ""))
		}
	}
	return command, ""
}

// The commands in docs/security.md say what it says that they say.
func TestSecurityDocument(t *testing.T) {
	root, err := testenv.Root()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile(filepath.Join(root, "docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	c := newCluster(t)
	c.addNode(t, "worker-1")
	ran := 0
	for i, block := range strings.Split(string(doc), "\n```console\n") {
		if i == 0 {
			continue
		}
		block, _, _ = strings.Cut(block, "\n```\n")
		for _, session := range strings.Split("\n"+block, "\n$ ")[1:] {
			command, says := split(session)
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.ReplaceAll(command, "kube-system", c.NS))
			cmd.Env = append(os.Environ(), "KUBECONFIG="+env.Kubeconfig, "HOME="+env.Dir,
				"PATH="+os.Getenv("KUBEBUILDER_ASSETS")+":"+os.Getenv("PATH"))
			out, _ := cmd.CombinedOutput() // can-i fails where it says no
			got, _, _ := strings.Cut(strings.TrimSpace(string(out)), " - ")
			if says, _, _ := strings.Cut(says, " - "); got != says {
				t.Errorf("$ %s\n%s\nwant\n%s", command, got, says)
			}
			ran++
		}
	}
	if ran < 11 {
		t.Errorf("ran only %d commands", ran)
	}
}

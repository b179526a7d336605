// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// tree returns all files below a directory, with their modes.
func tree(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	files := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files[path] = info.Mode()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// Names that come from outside lead nowhere but into the node's data.
func TestNamesLeadNowhere(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c0"})
	before := tree(t, h.dir)
	for _, name := range []string{"../../x", "..", ".", "/etc/x", "a/../../x", "a/b", "x\x00y", "x y", "x\ny"} {
		for what, tc := range map[string]call{
			"container": {container: name},
			"interface": {ifName: name},
			"network":   {conf: map[string]any{"name": name}},
			"pool":      {ipam: map[string]any{"poolName": name}},
			"pools":     {conf: map[string]any{"args": map[string]any{"cni": map[string]any{"poolNames": []string{name}}}}},
			"namespace": {ipam: map[string]any{"poolsNamespace": name}},
		} {
			if strings.Contains(name, "\x00") && (what == "container" || what == "interface") {
				continue // no environment can have it
			}
			t.Run(what+" "+strings.ReplaceAll(name, "/", "_"), func(t *testing.T) {
				if tc.container == "" {
					tc.container = "c1"
				}
				for _, verb := range []string{"ADD", "CHECK"} {
					tc.verb = verb
					if _, cniErr := h.run(t, tc); cniErr == nil {
						t.Errorf("%s of %s %q succeeds", verb, what, name)
					}
				}
				tc.verb = "DEL"
				_, _ = h.run(t, tc) // whatever it says
			})
		}
	}
	for path := range tree(t, h.dir) {
		if _, ok := before[path]; !ok && filepath.Base(path) != "log" && !strings.HasPrefix(path, h.data()+"/") {
			t.Errorf("%s was made", path)
		}
	}
	if got := c.held(t); got != "[10.0.0.2]" {
		t.Errorf("held %s", got)
	}
}

// Where a relative path leads depends on where the runtime was started.
func TestRelativePathsAreRefused(t *testing.T) {
	c := newCluster(t)
	h := c.host(t, "a")
	for _, key := range []string{"confDir", "kubeconfig", "dataDir"} {
		h.wantError(t, call{verb: "ADD", container: "c1", ipam: map[string]any{key: "../x"}}, 7, "ipam."+key, "is not an absolute path")
	}
}

func TestLargeInputIsRefused(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c0"})
	megabyte := strings.Repeat("x", 1_000_000)
	h.wantError(t, call{verb: "ADD", container: "c1", conf: map[string]any{"x": megabyte}}, 7, "network configuration has 1000", "bytes, more than 524288")
	// The kernel itself refuses one string of 128 KiB in an environment.
	h.wantError(t, call{verb: "ADD", container: "c1", args: "X=" + strings.Repeat("x", 100_000)}, 7, "CNI_ARGS has 100", "bytes, more than 65536")
	h.wantError(t, call{verb: "ADD", container: strings.Repeat("c", 257)}, 7, "CNI_CONTAINERID has 257 characters, more than 256")
	h.mustRun(t, call{verb: "DEL", container: strings.Repeat("c", 10_000)})
	dir := t.TempDir()
	path := filepath.Join(dir, "nv-ipam.conf")
	if err := os.WriteFile(path, []byte(`{"x":"`+megabyte+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.wantError(t, call{verb: "ADD", container: "c1", ipam: map[string]any{"confDir": dir}}, 7, path, "more than 524288 bytes")
	if got := c.held(t); got != "[10.0.0.2]" {
		t.Errorf("held %s", got)
	}
}

// The name of a pool may be longer than what fits into an allocation's.
func TestLongPoolNames(t *testing.T) {
	c := newCluster(t)
	h := c.host(t, "a")
	for _, n := range []int{213, 214, 253} {
		name := strings.Repeat("p", n)
		if n <= 213 { // a longer one is refused today
			rig.IPPool(t, c.IPAM, c.NS, name, v1alpha1.IPPoolSpec{Subnet: "fd00::/64", PerNodeBlockSize: 10}, "a")
		}
		ask := call{verb: "ADD", container: "c1", ipam: map[string]any{"poolName": name}}
		if n > 213 {
			h.wantError(t, ask, 7, "characters: with more than 213 there is no room for an address", "give the pool a shorter one")
			continue
		}
		h.mustRun(t, ask)
		ask.verb = "CHECK"
		h.mustRun(t, ask)
		ask.verb = "DEL"
		h.mustRun(t, ask)
		if got := c.held(t); got != "[]" {
			t.Errorf("held %s", got)
		}
		if n := h.warnings(t); len(n) > 0 {
			t.Errorf("the hint has no room for the name: %v", n)
		}
	}
}

// Nothing that the plugin makes can be read or written by others, whatever the
// runtime's umask is. (An entry is a symbolic link: its mode means nothing, and its
// directory is root's.)
func TestFilesAreRootsAlone(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	defer unix.Umask(unix.Umask(0)) // which children inherit
	h.mustAdd(t, call{container: "c1"})
	h.mustAdd(t, call{container: "c2"})
	deadKubeconfig(t, filepath.Join(h.dir, "dead"))
	h.use(t, c, filepath.Join(h.dir, "dead"))
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	made := tree(t, h.data())
	for path, mode := range made {
		if mode&fs.ModeSymlink == 0 && mode.Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", path, mode)
		}
	}
	if len(made) < 10 {
		t.Errorf("only %d files were made: %v", len(made), made)
	}
	log, err := os.Stat(filepath.Join(h.dir, "log"))
	if err != nil || log.Mode() != 0o600 {
		t.Errorf("the log has mode %v, %v", log.Mode(), err)
	}
}

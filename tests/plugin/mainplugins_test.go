// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// What main plugins pass on to their IPAM plugin: STATUS, but not GC. If this fails for GC, a
// newer version does, and docs/design.md says otherwise.
func TestWhatMainPluginsPassOn(t *testing.T) {
	mains, err := testenv.CNIPlugins()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"macvlan", "ipvlan", "bridge", "host-device", "ptp", "vlan"} {
		for verb, want := range map[string]string{"STATUS": "STATUS\n", "GC": ""} {
			dir := t.TempDir()
			said := filepath.Join(dir, "said")
			recorder := "#!/bin/sh\necho $CNI_COMMAND >>" + said + "\n"
			if err := os.WriteFile(filepath.Join(dir, "nv-ipam"), []byte(recorder), 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(filepath.Join(mains, name))
			cmd.Env = []string{"CNI_COMMAND=" + verb, "CNI_PATH=" + dir, "PATH=/usr/bin:/bin"}
			cmd.Stdin = strings.NewReader(`{"cniVersion":"1.1.0","name":"net","type":"` + name + `","master":"lo","device":"lo","ipam":{"type":"nv-ipam","poolName":"p"},"cni.dev/valid-attachments":[]}`)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s of %s: %v: %s", verb, name, err, out)
			}
			if got, _ := os.ReadFile(said); string(got) != want {
				t.Errorf("%s of %s: the IPAM plugin is called with %q, want %q", verb, name, got, want)
			}
		}
	}
}

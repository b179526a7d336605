// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

func TestInstallOnce(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "")
	before := h.disk(t)
	// A host that never had nv-ipam needs no rights at all.
	h.kubeconfig = "/nonexistent"
	h.mustRun(t, "--once")
	var settings cni.Settings
	if err := json.Unmarshal([]byte(h.read(t, "conf/nv-ipam.conf")), &settings); err != nil {
		t.Fatal(err)
	}
	if settings.PoolsNamespace != h.NS || settings.NodeName != h.name || settings.Kubeconfig != env.Kubeconfig || settings.ForcePoolName == nil || *settings.ForcePoolName {
		t.Errorf("nv-ipam.conf %+v", settings)
	}
	for name, mode := range map[string]os.FileMode{"bin/nv-ipam": 0o755, "conf/nv-ipam.conf": 0o600} {
		if info, err := os.Stat(h.path(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got := h.add(t, "c1", ""); got != "192.168.0.101" {
		t.Errorf("the plugin gives %s", got)
	}
	h.del(t, "c1")
	h.mustRun(t, "--once")

	h.mustRun(t, "--uninstall")
	for _, name := range []string{"bin/nv-ipam", "conf/nv-ipam.conf", "data/installed.json"} {
		if _, err := os.Stat(h.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	for _, line := range strings.Split(before, "\n") {
		if !strings.Contains(line, "nv-ipam") && !strings.Contains(h.disk(t), line) {
			t.Errorf("gone or changed: %.100s", line)
		}
	}
}

func TestStayRepairs(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", sampleStore(t))
	probes := rig.FreePort(t)
	cmd := h.start(t, "--check-interval=50ms", "--health-probe-bind-address="+probes)
	ready := func() bool { return status(probes, "readyz") == http.StatusOK }
	rig.Eventually(t, "installed and ready", ready)
	if status(probes, "healthz") != http.StatusOK {
		t.Error("not healthy")
	}
	plugin, conf := h.read(t, "bin/nv-ipam"), h.read(t, "conf/nv-ipam.conf")

	// nv-ipam's DaemonSet comes back, puts its plugin in place and gives an address.
	h.write(t, "data/store", withEntry(t, sampleStore(t), "late", "192.168.0.104"), 0o644)
	h.write(t, "conf/nv-ipam.conf", "{}", 0o644)
	h.write(t, "bin/nv-ipam", nvIpam, 0o755)
	rig.Eventually(t, "repaired", func() bool { return h.read(t, "bin/nv-ipam") == plugin && h.read(t, "conf/nv-ipam.conf") == conf })
	rig.Eventually(t, "ready again", ready)
	if !strings.Contains(h.held(t), "pool1 192.168.0.104 kind-worker default/late") {
		t.Errorf("what nv-ipam gave meanwhile is not claimed:\n%s", h.held(t))
	}
	if err := os.Remove(h.path("bin/nv-ipam")); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "repaired", func() bool { _, err := os.Stat(h.path("bin/nv-ipam")); return err == nil })

	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	// No ADD needs it.
	if got := h.add(t, "c1", ""); got != "192.168.0.105" {
		t.Errorf("without the installer the plugin gives %s", got)
	}
}

func TestStayIsNotReadyUntilInstalled(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "{half a store")
	probes := rig.FreePort(t)
	cmd := h.start(t, "--check-interval=50ms", "--health-probe-bind-address="+probes)
	rig.Eventually(t, "alive", func() bool { return status(probes, "healthz") == http.StatusOK })
	if status(probes, "readyz") != http.StatusServiceUnavailable || h.isInstalled(t) {
		t.Error("ready, or installed, though the store cannot be read")
	}
	h.write(t, "data/store", sampleStore(t), 0o644)
	rig.Eventually(t, "ready once the store is whole", func() bool { return status(probes, "readyz") == http.StatusOK })
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

func status(address, path string) int {
	answer, err := http.Get(fmt.Sprintf("http://%s/%s", address, path))
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	return answer.StatusCode
}

// Ready is only who has installed a plugin that can claim addresses, and the reason is
// the plugin's own.
func TestStayIsReadyByThePluginsStatus(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "")
	socket := "unix:" + h.path("probes")
	kubeconfig := h.path("kubelet.conf")
	cmd := h.start(t, "--host-root=/", "--check-interval=50ms", "--health-probe-bind-address="+socket, "--cni-kubeconfig="+kubeconfig)
	probe := func() (string, error) {
		out, err := exec.Command(rig.Binary(t, "ipam-node"), "--probe=readyz", "--health-probe-bind-address="+socket).CombinedOutput()
		return string(out), err
	}
	says := func(words string) func() bool {
		return func() bool {
			out, err := probe()
			return (err == nil) == (words == "ok") && strings.Contains(out, words)
		}
	}
	rig.Eventually(t, "no credentials", says("STATUS of "+h.path("bin/nv-ipam")+": ipam.kubeconfig: open "+kubeconfig+": no such file or directory"))
	admin, err := os.ReadFile(env.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	h.write(t, "kubelet.conf", string(admin), 0o600)
	rig.Eventually(t, "ready", says("ok"))
	// What is repaired is asked about again.
	h.write(t, "kubelet.conf", "spoilt", 0o600)
	h.write(t, "bin/nv-ipam", nvIpam, 0o755)
	rig.Eventually(t, "credentials that are broken", says(kubeconfig+" is not a kubeconfig"))
	if text := h.read(t, "installer.log"); !strings.Contains(text, "not ready") || !strings.Contains(text, "is not a kubeconfig") {
		t.Errorf("the log does not say why:\n%s", text)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	if out, err := probe(); err == nil {
		t.Errorf("nobody is there, and is ready: %s", out)
	}
}

// In the installer's place on a node: all is removed, and it stays, so that a DaemonSet
// does not start it again and again.
func TestUninstallAndStay(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "")
	h.mustRun(t, "--once")
	probes := rig.FreePort(t)
	cmd := h.start(t, "--uninstall", "--stay", "--health-probe-bind-address="+probes)
	rig.Eventually(t, "ready", func() bool { return status(probes, "readyz") == http.StatusOK })
	for _, name := range []string{"bin/nv-ipam", "conf/nv-ipam.conf", "data/installed.json"} {
		if _, err := os.Stat(h.path(name)); err == nil {
			t.Errorf("%s is still there", name)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
}

// start runs ipam-node until the test ends; its log is installer.log.
func (h *host) start(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	log, err := os.Create(h.path("installer.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // the process has its own
	cmd := h.ipamNode(t, args...)
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd
}

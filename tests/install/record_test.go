// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"encoding/pem"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// The record of a namespace is exported, lost and imported with kubectl, as
// docs/install.md has it. Its objects have other UIDs then. The pod that has the address
// keeps it, and its DEL frees it, although the node knows only the old UID.
func TestRecordIsImported(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "")
	h.mustRun(t, "--once")
	h.add(t, "live", "")
	h.add(t, "other", "")
	h.del(t, "other") // after it, the node goes by what it has noted
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := env.Kubectl(t.Context(), args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	const record = "ipallocations,ipreservations,ippools,cidrpools"
	if err := os.WriteFile(h.path("record.yaml"), []byte(kubectl("get", record, "-n", h.NS, "-o", "yaml")), 0o600); err != nil {
		t.Fatal(err)
	}
	before := h.held(t)
	uid := kubectl("get", "ipallocations", "-n", h.NS, "-o", "jsonpath={.items[*].metadata.uid}")
	kubectl("delete", record, "-n", h.NS, "--all")
	kubectl("create", "-f", h.path("record.yaml"))
	if h.held(t) != before || kubectl("get", "ipallocations", "-n", h.NS, "-o", "jsonpath={.items[*].metadata.uid}") == uid {
		t.Errorf("imported\n%s\nlost\n%s, with UID %s", h.held(t), before, uid)
	}
	if _, err := h.call(t.Context(), "CHECK", "live", "", "pool1", "ippool"); err != nil && !strings.Contains(err.Error(), "prevResult") {
		t.Errorf("CHECK of the live pod: %v", err)
	}
	h.del(t, "live")
	if left := h.held(t); left != "" {
		t.Errorf("after its DEL there are: %s", left)
	}
}

// The record of a namespace is lost while the installer runs. It finds that and writes
// again what the node's containers hold, although it knows the API server by other
// certificate authorities than the plugin, so that the plugin's hint is of another site.
func TestInstallerWritesTheLostRecordAgain(t *testing.T) {
	h := newCluster(t).host(t, "kind-worker", "")
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	more := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	admin := &clientcmdapi.AuthInfo{ClientCertificateData: env.Config.CertData, ClientKeyData: env.Config.KeyData}
	h.kubeconfig = h.path("bundle.kubeconfig")
	rig.WriteKubeconfig(t, h.kubeconfig, env.Config.Host, append(slices.Clone(env.Config.CAData), more...), admin)
	h.start(t, "--record-check-interval=200ms", "--loss-grace=5m")
	rig.Eventually(t, "installed", func() bool {
		return h.isInstalled(t) && strings.Contains(h.read(t, "conf/nv-ipam.conf"), `"lossGrace"`)
	})
	h.add(t, "live", "")
	before := h.held(t)
	if _, err := env.Kubectl(t.Context(), "delete", "ipallocations,ippools", "-n", h.NS, "--all"); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "written again", func() bool { return h.held(t) == before })
	_, err := h.call(t.Context(), "ADD", "next", "", "pool1", "ippool")
	if err == nil || !strings.Contains(err.Error(), "pool") {
		t.Errorf("an ADD of a pool that is gone: %v", err)
	}
	h.del(t, "live")
	h.wantHeld(t)
}

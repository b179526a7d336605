// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"os"
	"strings"
	"testing"
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
	const record = "ippools,cidrpools,ipallocations"
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

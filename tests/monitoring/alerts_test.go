// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// promtool finds nothing wrong with the rules, and each alert fires on the series of
// testdata/alerts.yaml that it is for, and not on those that it is not for.
func TestAlerts(t *testing.T) {
	promtool := filepath.Join(rig.Part(t, "PROMETHEUS", "prometheus"), "promtool")
	path, alerts := rulesFile(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), promtool, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	run("check", "rules", "--lint=all", "--lint-fatal", path)

	cases := filepath.Join(filepath.Dir(path), "alerts.yaml") // beside the rules that it names
	if err := os.WriteFile(cases, []byte(readText(t, "testdata/alerts.yaml")), 0o600); err != nil {
		t.Fatal(err)
	}
	run("test", "rules", cases)
	for _, a := range alerts {
		if fires, silent := tested(t, cases, a.Alert); !fires || !silent {
			t.Errorf("testdata/alerts.yaml: %s: fires %v, does not fire %v, want both", a.Alert, fires, silent)
		}
		for _, name := range []string{"summary", "action"} {
			if a.Annotations[name] == "" {
				t.Errorf("%s has no annotation %s", a.Alert, name)
			}
		}
		if s := a.Labels["severity"]; s != "warning" && s != "critical" {
			t.Errorf("%s has the severity %q", a.Alert, s)
		}
	}
}

// tested reports whether a file of promtool's has a test in which the alert fires, and
// one in which it does not.
func tested(t *testing.T, path, alert string) (fires, silent bool) {
	t.Helper()
	var file struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string `json:"alertname"`
				ExpAlerts []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	read(t, path, &file)
	for _, test := range file.Tests {
		for _, a := range test.AlertRuleTest {
			if a.Alertname == alert {
				fires = fires || len(a.ExpAlerts) > 0
				silent = silent || len(a.ExpAlerts) == 0
			}
		}
	}
	return fires, silent
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

// The command line that network-operator gives to nv-ipam's ipam-node, and the
// flags that it has beyond.
func TestFlagsOfNvIpam(t *testing.T) {
	o, err := parse([]string{
		"--node-name=worker", "--v=1", "--logging-format=json", "--bind-address=unix:///var/lib/cni/nv-ipam/daemon.sock",
		"--store-file=/s/store", "--cni-daemon-socket=unix:///s/daemon.sock", "--cni-daemon-call-timeout=7",
		"--cni-bin-dir=/b", "--cni-conf-dir=/c", "--cni-log-file=/l", "--cni-log-level=debug", "--ippools-namespace=ns",
		"--kubeconfig=/k", "--health-probe-bind-address=:9081", "--metrics-bind-address=:9080", "--cni-force-pool-name",
		"--cni-nv-ipam-bin-file=/p", "--cni-skip-nv-ipam-binary-copy=false", "--cni-skip-nv-ipam-config-creation=false",
		"--released-ip-cooldown=60s", "--stale-ip-check-interval=1m", "--stale-ip-check-count-before-release=3",
		"--feature-gates=LoggingAlphaOptions=true", "--vmodule=main=2,claim*=4", "--log-flush-frequency=5s", "--log-json-split-stream", "--log-json-info-buffer-size=1Mi",
	})
	if err != nil {
		t.Fatal(err)
	}
	h := o.install.NewHost()
	if h.Source != "/p" || h.Binary() != "/b/nv-ipam" || h.Confs()[0] != "/c/nv-ipam.conf" {
		t.Errorf("host %+v", h)
	}
	got, err := json.Marshal(h.Settings)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"forcePoolName":true,"logFile":"/l","logLevel":"debug","poolsNamespace":"ns","nodeName":"worker","dataDir":"/var/lib/cni/nv-ipam","releaseCooldown":"1m0s","daemonSocket":"unix:///s/daemon.sock","daemonCallTimeoutSeconds":7}`
	if string(got) != want {
		t.Errorf("nv-ipam.conf\n%s, want\n%s", got, want)
	}
	if got := fmt.Sprintf("%+v", o.migrate); got != "{DryRun:false store:/s/store mode:auto settle:8000000000}" {
		t.Errorf("options %s", got)
	}
	var log bytes.Buffer
	o.say(slog.New(slog.NewTextHandler(&log, nil)))
	for _, words := range []string{
		"--stale-ip-check-interval=1m", "--stale-ip-check-count-before-release=3", "--feature-gates=LoggingAlphaOptions=true", "--bind-address=unix", "--metrics-bind-address=:9080",
	} {
		if strings.Count(log.String(), words) != 1 {
			t.Errorf("the log does not say %q once:\n%s", words, log.String())
		}
	}
	log.Reset()
	if o, err = parse([]string{"--released-ip-cooldown=0"}); err != nil {
		t.Fatal(err)
	}
	if o.say(slog.New(slog.NewTextHandler(&log, nil))); log.Len() > 0 {
		t.Errorf("nothing to say: %s", log.String())
	}
	o, err = parse([]string{"--cni-skip-nv-ipam-binary-copy", "--cni-skip-nv-ipam-config-creation"})
	if err != nil {
		t.Fatal(err)
	}
	if h := o.install.NewHost(); h.Source != "" || h.Settings != nil {
		t.Errorf("skipped: %+v", h)
	}
}

// A value that is wrong is an error that names the flag and the value.
func TestFlagsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"more"}, {"--logging-format=xml"}, {"--migrate=maybe"}, {"--ippools-namespace="}, {"--check-interval=0"}, {"--once", "--uninstall"},
		{"--once", "--restore-only", "--node-name=n"}, {"--restore-only", "--node-name="}, {"--record-check-interval=-1s"}, {"--record-check-interval=3m0s"},
		{"--loss-grace=0"}, {"--loss-grace=1m"},
		{"--migrate-settle=-1s"}, {"--token-service-account=crd-ipam-plugin", "--node-name="}, {"--token-server=http://x"},
		{"--token-lifetime=1m0s"}, {"--token-lifetime=25h0m0s"}, {"--token-lifetime=876000h0m0s"}, {"--cni-daemon-call-timeout=-1"},
		{"--token-service-account=other"}, {"--token-service-account=ns/other"}, {"--token-service-account=/crd-ipam-plugin"}, {"--token-service-account=a/b/crd-ipam-plugin"},
		{"--released-ip-cooldown=-1s"}, {"--released-ip-cooldown=x"}, {"--stale-ip-check-interval=x"}, {"--stale-ip-check-interval=-1s"}, {"--stale-ip-check-count-before-release=-1"},
		{"--feature-gates=x"}, {"--feature-gates=A=maybe"}, {"--vmodule=main"}, {"--log-flush-frequency=5"}, {"--log-json-split-stream=7"}, {"--log-json-info-buffer-size=big"},
		{"--v=-1"}, {"--v=x"}, {"--unknown"},
	} {
		_, err := parse(append([]string{"--node-name=n"}, args...))
		if err == nil {
			t.Errorf("%q is accepted", args)
			continue
		}
		if name, value, ok := strings.Cut(args[0], "="); ok && len(args) == 1 && (!strings.Contains(err.Error(), name[1:]) || !strings.Contains(err.Error(), value)) {
			t.Errorf("%q: the error does not name flag and value: %v", args, err)
		}
	}
	if o, err := parse([]string{"--version"}); o != nil || err != nil {
		t.Errorf("--version: %v, %v", o, err)
	}
}

func TestTokenFlags(t *testing.T) {
	for _, account := range []string{"crd-ipam-plugin", "ns/crd-ipam-plugin"} {
		for _, lifetime := range []string{"10m", "24h"} {
			if _, err := parse([]string{"--node-name=n", "--token-service-account=" + account, "--token-lifetime=" + lifetime}); err != nil {
				t.Error(err)
			}
		}
	}
}

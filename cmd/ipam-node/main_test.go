// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"testing"
	"time"
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
	})
	if err != nil {
		t.Fatal(err)
	}
	h := o.host()
	if h.Source != "/p" || h.Binary() != "/b/nv-ipam" || h.Conf() != "/c/nv-ipam.conf" {
		t.Errorf("host %+v", h)
	}
	got, err := json.Marshal(h.Settings)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"forcePoolName":true,"logFile":"/l","logLevel":"debug","poolsNamespace":"ns","nodeName":"worker","dataDir":"/var/lib/cni/nv-ipam","daemonSocket":"unix:///s/daemon.sock","daemonCallTimeoutSeconds":7}`
	if string(got) != want {
		t.Errorf("nv-ipam.conf\n%s, want\n%s", got, want)
	}
	if o.storeFile != "/s/store" || o.settle != 8*time.Second || o.migrate != migrateAuto {
		t.Errorf("options %+v", o)
	}
	o, err = parse([]string{"--cni-skip-nv-ipam-binary-copy", "--cni-skip-nv-ipam-config-creation"})
	if err != nil {
		t.Fatal(err)
	}
	if h := o.host(); h.Source != "" || h.Settings != nil {
		t.Errorf("skipped: %+v", h)
	}
}

func TestFlagsRefused(t *testing.T) {
	for _, args := range [][]string{
		{"more"}, {"--logging-format=xml"}, {"--migrate=maybe"}, {"--ippools-namespace="}, {"--check-interval=0"}, {"--once", "--uninstall"},
		{"--migrate-settle=-1s"}, {"--token-service-account=a", "--node-name="}, {"--token-lifetime=1m"}, {"--token-server=http://x"},
	} {
		if _, err := parse(args); err == nil {
			t.Errorf("%q is accepted", args)
		}
	}
	if o, err := parse([]string{"--version"}); o != nil || err != nil {
		t.Errorf("--version: %v, %v", o, err)
	}
}

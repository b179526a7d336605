// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// Every flag that nv-ipam's manifests pass has to be taken.
func TestControllerFlags(t *testing.T) {
	o, err := parse([]string{
		"--leader-elect=true", "--leader-elect-namespace=ns", "--ippools-namespace=ns", "--webhook=true",
		"--kubeconfig=/k", "--health-probe-bind-address=:8081", "--metrics-bind-address=:8082", "--v=2", "--logging-format=json",
		"--feature-gates=LoggingAlphaOptions=true,ContextualLogging=true", "--vmodule=main=2", "--log-flush-frequency=5s", "--log-json-split-stream", "--log-json-info-buffer-size=1Mi",
	})
	if err != nil {
		t.Fatal(err)
	}
	if !o.elect || o.electNamespace != "ns" || o.Namespace != "ns" || o.kubeconfig != "/k" || o.probes != ":8081" || o.metrics != ":8082" || o.log.Verbosity != 2 {
		t.Errorf("options = %+v", o)
	}
	for _, bad := range [][]string{
		{"--logging-format=xml"}, {"--reclaim-grace=-1s"}, {"--reclaim-grace-ready-node=-1s"}, {"--loss-grace=0"}, {"--ippools-namespace="}, {"argument"}, {"--unknown"}, {"--webhook=maybe"}, {"--feature-gates=x"}, {"--v=-1"},
	} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
	if o, err := parse([]string{"--version"}); o != nil || err != nil {
		t.Errorf("--version: %v, %v", o, err)
	}
}

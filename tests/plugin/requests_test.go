// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"testing"

	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// One ADD is at most two requests, of which one is a write; one DEL at most one
// of each. They are counted where they arrive, in the API server's audit log.
func TestRequestsOfAddAndDel(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "warm-up"})
	h.mustRun(t, call{verb: "DEL", container: "warm-up"}) // a new node asks once what it holds

	count := func(run func()) testenv.Requests {
		t.Helper()
		mark, err := env.Mark()
		if err != nil {
			t.Fatal(err)
		}
		run()
		requests, err := env.Requests(mark)
		if err != nil {
			t.Fatal(err)
		}
		return requests.By("nv-ipam/")
	}
	for _, tc := range []struct {
		name          string
		run           func()
		reads, writes int
	}{
		{"ADD", func() { h.mustAdd(t, call{container: "c1"}) }, 1, 1},
		{"ADD of a requested address", func() { h.mustAdd(t, call{container: "c2", args: "IP=10.0.0.77"}) }, 1, 1},
		{"DEL", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) }, 0, 1},
		{"DEL again", func() { h.mustRun(t, call{verb: "DEL", container: "c1"}) }, 0, 0},
		{"CHECK", func() { h.mustRun(t, call{verb: "CHECK", container: "c2"}) }, 1, 0},
		{"STATUS", func() { h.mustRun(t, call{verb: "STATUS"}) }, 1, 0},
	} {
		requests := count(tc.run)
		writes := len(requests.Writes())
		reads := len(requests) - writes
		t.Logf("%s: %d requests, %d of them writes: %s", tc.name, len(requests), writes, requests)
		if reads > tc.reads || writes > tc.writes {
			t.Errorf("%s made %d reads and %d writes, want at most %d and %d", tc.name, reads, writes, tc.reads, tc.writes)
		}
		if len(requests) < tc.reads+tc.writes {
			t.Errorf("%s: only %d requests were seen: is the audit log read?", tc.name, len(requests))
		}
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// deadKubeconfig writes a kubeconfig of a server that nobody runs.
func deadKubeconfig(t *testing.T, path string) {
	t.Helper()
	const text = `apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
contexts: [{name: c, context: {cluster: c, user: c}}]
current-context: c
users: [{name: c, user: {token: t}}]
`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// together runs n processes at once, spread over the hosts, and returns how many
// got an address and who has which.
func together(t *testing.T, n int, hosts []*host, c func(i int) call) (owners map[string]string, errs []error) {
	t.Helper()
	owners = map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			one := c(i)
			one.verb, one.container = "ADD", fmt.Sprint("c", i)
			out, cniErr := hosts[i%len(hosts)].run(t, one)
			mu.Lock()
			defer mu.Unlock()
			if cniErr != nil {
				errs = append(errs, cniErr)
				return
			}
			addr := parseResult(t, out)[0]
			if other, ok := owners[addr]; ok {
				t.Errorf("%s was given to %s and to %s", addr, other, one.container)
			}
			owners[addr] = one.container
		})
	}
	wg.Wait()
	return owners, errs
}

func TestHundredProcessesOneStaticAddress(t *testing.T) {
	c := newCluster(t)
	nodes := []string{"a", "b", "c", "d"}
	c.blocks(t, nodes...)
	var hosts []*host
	for _, n := range nodes {
		hosts = append(hosts, c.host(t, n))
	}
	owners, errs := together(t, 100, hosts, func(int) call { return call{args: "IP=10.0.0.77"} })
	if len(owners) != 1 || owners["10.0.0.77/16"] == "" || len(errs) != 99 {
		t.Fatalf("%d winners %v and %d refused, want 1 and 99", len(owners), owners, len(errs))
	}
	winner := owners["10.0.0.77/16"]
	for _, err := range errs {
		if want := "is held by pod default/" + winner + " "; !contains(err, want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if got := c.held(t); got != "[10.0.0.77]" {
		t.Errorf("held %s", got)
	}
	for i := range 100 { // a runtime cleans up after each that failed
		if name := fmt.Sprint("c", i); name != winner {
			hosts[i%len(hosts)].mustRun(t, call{verb: "DEL", container: name})
		}
	}
	if got := c.held(t); got != "[10.0.0.77]" {
		t.Errorf("the losers' DELs took it from the winner: held %s", got)
	}
}

func TestHundredProcessesHundredAddresses(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/16", PerNodeBlockSize: 100}, "a")
	h := c.host(t, "a")
	owners, errs := together(t, 100, []*host{h}, func(int) call { return call{} })
	if len(owners) != 100 || len(errs) != 0 {
		t.Fatalf("%d addresses for 100 processes, errors %v", len(owners), errs)
	}
	h.wantError(t, call{verb: "ADD", container: "one-too-many"}, 11, `no free addresses in the pool "p", poolType "ippool"`)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() { h.mustRun(t, call{verb: "DEL", container: fmt.Sprint("c", i)}) })
	}
	wg.Wait()
	h.carryOut(t)
	if got := c.held(t); got != "[]" {
		t.Errorf("held %s", got)
	}
}

// carryOut makes calls until all releases that DELs left undone are carried out: a
// machine on which a hundred processes run may be so slow that they are.
func (h *host) carryOut(t *testing.T) {
	t.Helper()
	const calls = 20 // each carries out some
	for range calls {
		notes, err := filepath.Glob(filepath.Join(h.data(), "*@*", "releases", "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(notes) == 0 {
			return
		}
		h.mustRun(t, call{verb: "STATUS"})
	}
}

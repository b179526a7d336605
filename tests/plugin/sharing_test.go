// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package plugin

import (
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// Two nodes have a container of the same ID with the same interface, as cnitool makes
// them from a path. Each has its own address, and whatever one node does leaves the
// other's.
func TestOneContainerIDOnTwoNodes(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a", "b")
	rig.IPPool(t, c.IPAM, c.NS, "empty", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 1}, "a", "b")
	a, b := c.host(t, "a"), c.host(t, "b")
	same := call{verb: "ADD", container: "same"}
	const both = "[10.0.0.101 10.0.0.2]"
	if got := a.mustAdd(t, same)[0] + " " + b.mustAdd(t, same)[0]; got != "10.0.0.2/16 10.0.0.101/16" {
		t.Fatalf("got %s", got)
	}
	kept := func(after, want string) {
		t.Helper()
		if got := c.held(t); got != want {
			t.Errorf("after %s: held %s, want %s", after, got, want)
		}
	}
	for _, lost := range []bool{false, true} {
		if lost { // all they know comes from the API server
			remove(t, a.data())
			remove(t, b.data())
		}
		what := fmt.Sprintf("(hint lost: %v)", lost)
		for _, h := range []*host{a, b} {
			h.mustRun(t, call{verb: "CHECK", container: "same"})
		}
		b.wantError(t, call{verb: "ADD", container: "same", args: "IP=10.0.0.2"}, 11, "10.0.0.2 is held by pod default/same on node a")
		kept("an ADD that asks for the other's "+what, "[10.0.0.101 10.0.0.2]")

		b.mustAdd(t, call{container: "filler", ipam: map[string]any{"poolName": "empty"}})
		b.wantError(t, call{verb: "ADD", container: "same", ifName: "net2", ipam: map[string]any{"poolName": "p,empty"}}, 11, "no free addresses")
		b.mustRun(t, call{verb: "DEL", container: "same", ifName: "net2"})
		b.mustRun(t, call{verb: "DEL", container: "filler"})
		kept("an ADD that failed "+what, both)

		c.age(t)
		b.mustRun(t, gc("same"))
		kept("a GC that names it "+what, both)
	}
	b.mustRun(t, gc())
	kept("b's GC", "[10.0.0.2]")
	b.wantError(t, call{verb: "CHECK", container: "same"}, 100)
	b.mustRun(t, call{verb: "DEL", container: "same"})
	remove(t, b.data())
	b.mustRun(t, call{verb: "DEL", container: "same"})
	kept("b's DEL", "[10.0.0.2]")
	a.mustRun(t, call{verb: "CHECK", container: "same"})
	b.mustAdd(t, same)
	a.mustRun(t, call{verb: "DEL", container: "same"})
	kept("a's DEL", "[10.0.0.101]")
	b.mustRun(t, call{verb: "CHECK", container: "same"})
}

// A release that one node has noted takes nothing from the other, although both
// containers are called the same.
func TestPendingReleaseOfOneContainerIDOnTwoNodes(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a", "b")
	a, b := c.host(t, "a"), c.host(t, "b")
	a.mustAdd(t, call{container: "same", args: "IP=10.0.0.50"})
	settings := a.settings()
	settings["kubeconfig"] = filepath.Join(a.dir, "away")
	rig.WriteKubeconfig(t, settings["kubeconfig"].(string), "https://127.0.0.1:1", env.Config.CAData, token)
	a.configure(t, settings)
	a.reboot(t)
	a.mustRun(t, call{verb: "DEL", container: "same"})
	if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), "p.10.0.0.50", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	b.mustAdd(t, call{container: "same", args: "IP=10.0.0.50"})
	a.configure(t, a.settings())
	a.mustRun(t, call{verb: "STATUS"})
	a.mustRun(t, call{verb: "DEL", container: "same"})
	if got := c.held(t); got != "[10.0.0.50]" {
		t.Errorf("held %s", got)
	}
	b.mustRun(t, call{verb: "CHECK", container: "same"})
}

// A node that turned hostile has claimed the next addresses of another's block in the
// name of the other's container. That is not adopted: the container gets one that
// is its own.
func TestHostileClaimIsNotAdopted(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a", "b")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "victim"}) // .2
	for i := 3; i < 6; i++ {
		addr := fmt.Sprint("10.0.0.", i)
		_, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), &v1alpha1.IPAllocation{
			ObjectMeta: metav1.ObjectMeta{Name: "p." + addr, Labels: map[string]string{
				v1alpha1.LabelPool: "p", v1alpha1.LabelNode: "a", // a label can say anything
				v1alpha1.LabelContainer: v1alpha1.ContainerLabel("victim"),
			}},
			Spec: v1alpha1.IPAllocationSpec{
				PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, Address: addr,
				NodeName: "b", ContainerID: "victim", InterfaceName: "net2",
				PodRef: v1alpha1.PodReference{Namespace: "default", Name: "victim"},
			},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	hostile := []string{"10.0.0.3", "10.0.0.4", "10.0.0.5"}
	check := func(what, got string) {
		t.Helper()
		for _, addr := range hostile {
			if strings.HasPrefix(got, addr+"/") {
				t.Errorf("%s: %s of another node was adopted", what, addr)
			}
		}
	}
	second := call{verb: "ADD", container: "victim", ifName: "net2"}
	check("ADD", h.mustAdd(t, second)[0])
	remove(t, h.data())
	h.mustRun(t, call{verb: "DEL", container: "victim", ifName: "net2"})
	h.wantError(t, call{verb: "CHECK", container: "victim", ifName: "net2"}, 100)
	second.args = "IP=10.0.0.4"
	h.wantError(t, second, 11, "is held by", "on node b")
	second.args = ""
	check("ADD without a hint", h.mustAdd(t, second)[0])
	h.mustRun(t, call{verb: "DEL", container: "victim", ifName: "net2"})
	h.mustRun(t, call{verb: "DEL", container: "victim"})
	if got := c.held(t); got != fmt.Sprint(hostile) {
		t.Errorf("held %s, want what is b's: %v", got, hostile)
	}
}

// A GC waits for the API server, while its runtime starts containers: they are not
// in its list, and stay.
func TestGCThatWaitsSparesWhatStartedMeanwhile(t *testing.T) {
	t.Parallel()
	for name, args := range map[string]string{"any address": "", "a requested address": "IP=10.0.0.77"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			p := h.behindProxy(t, c)
			h.mustAdd(t, call{container: "gone"})
			c.age(t)
			arrived, release := make(chan struct{}), make(chan struct{})
			var once sync.Once
			p.Fail(func(w http.ResponseWriter, req *http.Request) {
				if req.Method == http.MethodGet && strings.HasSuffix(req.URL.Path, "/ipallocations") {
					once.Do(func() { close(arrived) })
					<-release
				}
				p.Forward.ServeHTTP(w, req)
			})
			var running sync.WaitGroup
			running.Go(func() { h.mustRun(t, gc()) })
			<-arrived
			got := h.mustAdd(t, call{container: "new", args: args})
			close(release)
			running.Wait()
			if held, want := c.held(t), "["+strings.TrimSuffix(got[0], "/16")+"]"; held != want {
				t.Errorf("held %s, want %s", held, want)
			}
			h.mustRun(t, call{verb: "CHECK", container: "new"})
		})
	}
}

// site is one namespace of one cluster, as a call is told of it.
type site struct {
	*cluster
	host       *host
	kubeconfig string
}

func (s site) call(verb, container string) call {
	return call{verb: verb, container: container, ipam: map[string]any{"poolsNamespace": s.NS, "kubeconfig": s.kubeconfig}}
}

// sites are two namespaces, in one cluster or in two as far as a node can tell,
// whose pods are on one node and share its data.
func sites(t *testing.T, clusters int) (one, two site) {
	t.Helper()
	c1, c2 := newCluster(t), newCluster(t)
	c1.blocks(t, "a")
	c2.blocks(t, "a")
	h := c1.host(t, "a")
	one, two = site{c1, h, env.Kubeconfig}, site{c2, h, env.Kubeconfig}
	if clusters == 2 {
		p := newProxy(t)
		two.kubeconfig = filepath.Join(h.dir, "second.kubeconfig")
		p.Kubeconfig(t, two.kubeconfig)
	}
	return one, two
}

// One cluster is known by two sets of certificate authorities, as to the installer and to
// the kubelet. What was claimed under one is found by a DEL under the other, whose hint
// was complete before.
func TestClaimUnderOtherAuthorities(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	more := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	file := filepath.Join(h.dir, "bundle.kubeconfig")
	admin := &clientcmdapi.AuthInfo{ClientCertificateData: env.Config.CertData, ClientKeyData: env.Config.KeyData}
	rig.WriteKubeconfig(t, file, env.Config.Host, append(slices.Clone(env.Config.CAData), more...), admin)
	h.mustAdd(t, call{container: "first"})
	h.mustRun(t, call{verb: "DEL", container: "first"}) // lists: the hint is complete
	h.mustAdd(t, site{c, h, file}.call("ADD", "second"))
	h.mustRun(t, call{verb: "DEL", container: "second"})
	if got := c.held(t); got != "[]" {
		t.Errorf("held %s", got)
	}
}

// Two namespaces, or two clusters, share a node and its data. What the node knows of
// one it does not believe of the other.
func TestTwoSitesShareANode(t *testing.T) {
	for _, clusters := range []int{1, 2} {
		t.Run(fmt.Sprintf("clusters: %d", clusters), func(t *testing.T) {
			one, two := sites(t, clusters)
			for name, forget := range map[string]func(){
				"with the hint":       func() {},
				"after a reboot":      func() { one.host.rebootAll(t) },
				"the hint is lost":    func() { remove(t, one.host.data()) },
				"its claims are lost": func() { one.host.emptyClaims(t) },
			} {
				t.Run(name, func(t *testing.T) {
					for _, s := range []site{one, two} {
						s.host.mustRun(t, s.call("ADD", "c1"))
						s.host.mustRun(t, s.call("ADD", "other-of-"+s.NS))
					}
					forget()
					for _, s := range []site{one, two} { // one makes the hint of its own namespace complete
						s.host.mustRun(t, s.call("DEL", "never-added"))
						s.host.mustRun(t, s.call("DEL", "other-of-"+s.NS))
						s.host.mustRun(t, s.call("CHECK", "c1"))
						if got := len(rig.Addresses(t, s.IPAM, s.NS)); got != 1 {
							t.Errorf("%d held, want that of c1", got)
						}
					}
					for _, s := range []site{one, two} {
						s.host.mustRun(t, s.call("DEL", "c1"))
						if got := s.held(t); got != "[]" {
							t.Errorf("held %s", got)
						}
					}
				})
			}
		})
	}
}

// rebootAll makes all hints below the node's data be of before its last start.
func (h *host) rebootAll(t *testing.T) {
	t.Helper()
	marks, _ := filepath.Glob(filepath.Join(h.data(), "*@*", "claims", "@complete"))
	if len(marks) == 0 {
		t.Log("no hint is complete")
	}
	for _, mark := range marks {
		remove(t, mark)
		if err := os.Symlink("1/an-earlier-one", mark); err != nil {
			t.Fatal(err)
		}
	}
}

// emptyClaims is rm -rf claims/*.
func (h *host) emptyClaims(t *testing.T) {
	t.Helper()
	all, _ := filepath.Glob(filepath.Join(h.data(), "*@*", "claims", "[^.]*")) // as a shell does
	if len(all) == 0 {
		t.Fatal("there are no claims")
	}
	for _, path := range all {
		remove(t, path)
	}
}

// A release that could not be carried out in one site is carried out there, and in
// no other.
func TestPendingReleasesOfTwoSites(t *testing.T) {
	t.Parallel()
	for _, clusters := range []int{1, 2} {
		for _, rebooted := range []bool{false, true} {
			t.Run(fmt.Sprintf("clusters: %d, rebooted: %v", clusters, rebooted), func(t *testing.T) {
				t.Parallel()
				one, two := sites(t, clusters)
				h := one.host
				for _, s := range []site{one, two} {
					h.mustRun(t, s.call("ADD", "c-"+s.NS))
				}
				if rebooted {
					h.rebootAll(t)
				}
				away := filepath.Join(h.dir, "away.kubeconfig")
				rig.WriteKubeconfig(t, away, "https://127.0.0.1:1", env.Config.CAData, token)
				del := one.call("DEL", "c-"+one.NS)
				del.ipam["kubeconfig"] = away
				h.mustRun(t, del)
				for range 3 {
					h.mustRun(t, two.call("STATUS", ""))
					h.mustRun(t, two.call("DEL", "never-added"))
					h.mustRun(t, two.call("CHECK", "c-"+two.NS))
				}
				if got := one.held(t) + two.held(t); got != "[10.0.0.2][10.0.0.2]" {
					t.Errorf("held %s: the other site has freed it, or forgotten that it has to be", got)
				}
				h.mustRun(t, one.call("STATUS", ""))
				if got := one.held(t) + two.held(t); got != "[][10.0.0.2]" {
					t.Errorf("held %s", got)
				}
			})
		}
	}
}

// losses are the ways in which a hint may lose a part of what it knows.
var losses = map[string]func(t *testing.T, h *host){
	"rm -rf claims/*":    func(t *testing.T, h *host) { h.emptyClaims(t) },
	"rm -rf claims":      func(t *testing.T, h *host) { remove(t, h.hint("claims")) },
	"rm -rf releases":    func(t *testing.T, h *host) { remove(t, h.hint("releases")) },
	"rm -rf pools":       func(t *testing.T, h *host) { remove(t, h.hint("pools")) },
	"rm -rf pools/*":     func(t *testing.T, h *host) { remove(t, h.hint("pools")); mkdir(t, h.hint("pools")) },
	"rm -rf HINT":        func(t *testing.T, h *host) { remove(t, h.hint()) },
	"rm -rf HINT/*":      func(t *testing.T, h *host) { remove(t, h.hint()); mkdir(t, h.hint()) },
	"rm -rf DATA":        func(t *testing.T, h *host) { remove(t, h.data()) },
	"rm lock":            func(t *testing.T, h *host) { remove(t, h.hint("lock")) },
	"rm claims/@*":       func(t *testing.T, h *host) { remove(t, h.hint("claims", "@complete")) },
	"mv claims and back": func(t *testing.T, h *host) { renameTwice(t, h.hint("claims")) },
}

func renameTwice(t *testing.T, path string) {
	t.Helper()
	for _, names := range [][2]string{{path, path + ".old"}, {path + ".old", path}} {
		if err := os.Rename(names[0], names[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// A hint of which something was deleted does not believe to be complete: the DEL of
// what it has forgotten frees the address.
func TestPartOfTheHintDeleted(t *testing.T) {
	for name, lose := range losses {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.blocks(t, "a")
			h := c.host(t, "a")
			h.mustRun(t, call{verb: "DEL", container: "never-added"}) // makes it complete
			h.mustAdd(t, call{container: "c1"})
			h.mustAdd(t, call{container: "c2"})
			lose(t, h)
			h.mustAdd(t, call{container: "c3"})
			h.mustRun(t, call{verb: "CHECK", container: "c1"})
			for _, container := range []string{"c1", "c2", "c3"} {
				h.mustRun(t, call{verb: "DEL", container: container})
			}
			if got := c.held(t); got != "[]" {
				t.Errorf("held %s", got)
			}
		})
	}
}

// Reads work and writes fail, as with an etcd that has no quorum. Each ADD that fails
// may have claimed something; but what the node notes is bounded by what can be
// held, and after the fault nothing of it is left.
func TestFailedADDsLeaveBoundedNotes(t *testing.T) {
	t.Parallel()
	for name, carriedOut := range map[string]bool{"nothing is carried out": false, "all is carried out": true} {
		for pool, size := range map[string]int{"one address": 1, "four addresses": 4} {
			t.Run(name+", "+pool, func(t *testing.T) {
				t.Parallel()
				c := newCluster(t)
				rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: size}, "a")
				h := c.host(t, "a")
				p := h.behindProxy(t, c)
				p.Fail(func(w http.ResponseWriter, req *http.Request) {
					switch {
					case req.Method == http.MethodGet:
						p.Forward.ServeHTTP(w, req)
					case carriedOut && req.Method == http.MethodPost:
						p.Forward.ServeHTTP(discard{http.Header{}}, req)
						fallthrough
					default:
						status(500, "InternalError", 0)(w, req)
					}
				})
				var calls sync.WaitGroup
				for i := range 8 {
					calls.Go(func() {
						if _, cniErr := h.run(t, call{verb: "ADD", container: fmt.Sprint("c", i)}); cniErr == nil {
							t.Error("an ADD succeeds though nothing can be written")
						}
						h.mustRun(t, call{verb: "DEL", container: fmt.Sprint("c", i)})
					})
				}
				calls.Wait()
				notes, err := filepath.Glob(filepath.Join(h.data(), "*@*", "releases", "*"))
				if err != nil || len(notes) > 2*size {
					t.Errorf("%d notes for %d addresses: %v, %v", len(notes), size, notes, err)
				}
				p.Fail(nil)
				h.settle(t)
				for range 10 { // each for a while: on a busy machine two do not suffice
					if h.mustRun(t, call{verb: "STATUS"}); c.held(t) == "[]" {
						break
					}
				}
				if got := c.held(t); got != "[]" {
					t.Errorf("held %s", got)
				}
				for i := range size { // nothing is in the way
					h.mustAdd(t, call{container: fmt.Sprint("after", i)})
				}
				if notes, _ := filepath.Glob(filepath.Join(h.data(), "*@*", "releases", "*")); len(notes) > 0 {
					t.Errorf("notes that are left: %v", notes)
				}
			})
		}
	}
}

// discard takes an answer that the plugin does not get.
type discard struct{ header http.Header }

func (d discard) Header() http.Header         { return d.header }
func (d discard) Write(p []byte) (int, error) { return len(p), nil }
func (d discard) WriteHeader(int)             {}

// What is kept of a pool goes with the pool, and what a dead process left half-made
// goes when the node lists what it holds.
func TestHintIsTidied(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	rig.IPPool(t, c.IPAM, c.NS, "q", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 1}, "a")
	h := c.host(t, "a")
	inQ := map[string]any{"poolName": "q"}
	h.mustAdd(t, call{container: "c1", ipam: inQ})
	h.wantError(t, call{verb: "ADD", container: "c2", ipam: inQ}, 11, "no free addresses")
	h.mustAdd(t, call{container: "c3"})
	if files, _ := filepath.Glob(h.hint("pools", "*.q.*")); len(files) < 2 {
		t.Fatalf("of the pool there are only %v", files)
	}
	h.mustRun(t, call{verb: "DEL", container: "c1", ipam: inQ})
	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "q", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Gone(t, c.IPAM, c.NS, "q")
	h.wantError(t, call{verb: "ADD", container: "c2", ipam: inQ}, 11, "not found")
	if files, _ := filepath.Glob(h.hint("pools", "*.q.*")); len(files) > 0 {
		t.Errorf("of a pool that is gone there are %v", files)
	}

	var dead []string
	for _, dir := range []string{"claims", "releases", "pools"} {
		mkdir(t, h.hint(dir))
		dead = append(dead, h.hint(dir, ".tmp1-1"))
	}
	dead = append(dead, h.hint("claims", "@rebuilding1-1"))
	for _, path := range dead {
		if err := os.Symlink("x", path); err != nil {
			t.Fatal(err)
		}
	}
	shift(t, h.data(), -time.Hour)
	h.reboot(t)
	h.mustRun(t, call{verb: "DEL", container: "never-added"})
	for _, path := range dead {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
}

// The node's data may be in a directory that others use, too. The plugin removes nothing of theirs,
// however long they have not written it.
func TestWhatOthersKeepBesideTheNodesDataStays(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	h := c.host(t, "a")
	foreign := filepath.Join(h.data(), "pgsql@14")
	mkdir(t, filepath.Join(foreign, "db"))
	write(t, filepath.Join(foreign, "db", "f"), "x")
	shift(t, foreign, -31*24*time.Hour)
	h.mustAdd(t, call{container: "c1"})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if _, err := os.Stat(filepath.Join(foreign, "db", "f")); err != nil {
		t.Error(err)
	}
}

// A pool that is gone and that nobody asks for any more leaves nothing either.
func TestFilesOfAForgottenPoolGo(t *testing.T) {
	c := newCluster(t)
	c.blocks(t, "a")
	rig.IPPool(t, c.IPAM, c.NS, "q", v1alpha1.IPPoolSpec{Subnet: "10.9.0.0/24", PerNodeBlockSize: 1}, "a")
	h := c.host(t, "a")
	h.mustAdd(t, call{container: "c1", ipam: map[string]any{"poolName": "q"}})
	h.mustRun(t, call{verb: "DEL", container: "c1"})
	if err := c.IPAM.IPPools(c.NS).Delete(t.Context(), "q", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Gone(t, c.IPAM, c.NS, "q")
	shift(t, h.data(), -60*24*time.Hour)
	h.reboot(t)
	h.mustRun(t, call{verb: "DEL", container: "never-added"})
	h.mustAdd(t, call{container: "c2"})
	if files, _ := filepath.Glob(h.hint("pools", "*.q.*")); len(files) > 0 {
		t.Errorf("of a pool that is gone there are %v", files)
	}
}

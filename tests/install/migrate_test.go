// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// sampleStore was written by nv-ipam for five pods on kind-worker.
func sampleStore(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "store.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What becomes of it.
var sampleHeld = []string{
	"pool1 192.168.0.101 kind-worker default/web-0",
	"pool1 192.168.0.102 kind-worker default/web-1",
	"pool1 192.168.0.103 kind-worker ml/train-0",
	"pool1 192.168.0.5 kind-worker default/static-ip-pod1",
	"pool6 fd52:2eb5:44::1f5 kind-worker ml/train-0",
	"rail1 10.60.1.2 kind-worker ml/train-0",
}

// Containers of the sample store.
const (
	web0   = "1128cbe33f6bf00d9d3b69d14acb0cd29eccaa9723be9d8ce6d62ddb4278f45c"
	static = "7750dc8f7bedfb9de2bcceb42f6b10b48a719a6342d6e2d5f60dc49d4ef133c9"
	train0 = "410f030c1a36ff6fb3a60a7d104ea8e816dff581e782efc71940e7d49e60abb6"
)

// withEntry adds a pod's address in pool1 to a store.
func withEntry(t *testing.T, store, pod, addr string) string {
	t.Helper()
	return withContainer(t, store, pod, "c-"+pod, addr, "2026-11-23T08:00:00Z")
}

func withContainer(t *testing.T, store, pod, container, addr, created string) string {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal([]byte(store), &root); err != nil {
		t.Fatal(err)
	}
	pools := root["pools"].(map[string]any)
	if pools["pool1"] == nil {
		pools["pool1"] = map[string]any{"name": "pool1", "entries": map[string]any{}}
	}
	pool := pools["pool1"].(map[string]any)
	pool["last_reserved_ip"] = addr
	pool["entries"].(map[string]any)[container+"_net1"] = map[string]any{
		"container_id": container, "interface_name": "net1", "ip_address": addr,
		"metadata": map[string]any{"create_time": created, "pod_uuid": "uid-" + pod, "pod_name": pod, "pod_namespace": "default"},
	}
	data, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const emptyStore = `{"version":1,"checksum":1,"pools":{}}`

// Three nodes, of which two have a static address in common.
func TestMigration(t *testing.T) {
	c := newCluster(t)
	worker := c.host(t, "kind-worker", sampleStore(t))
	b := c.host(t, "node-b", withEntry(t, withEntry(t, emptyStore, "db-b", "192.168.0.7"), "b-1", "192.168.0.221"))
	d := c.host(t, "node-c", withEntry(t, withEntry(t, emptyStore, "db-c", "192.168.0.7"), "c-1", "192.168.1.45"))

	for _, h := range []*host{worker, b} {
		if _, log := h.mustRun(t, "--once"); strings.Contains(log, "twice") {
			t.Errorf("%s: %s", h.name, log)
		}
	}
	_, log := d.mustRun(t, "--once")
	for _, words := range []string{"address is given twice", "192.168.0.7", "default/db-c", "held by pod default/db-b on node node-b", "2 entries: 1 claimed, 0 already claimed, 1 conflicts"} {
		if !strings.Contains(log, words) {
			t.Errorf("the log does not say %q:\n%s", words, log)
		}
	}
	events := c.events(t)
	if len(events) != 1 || events[0].Reason != "DuplicateAddress" || events[0].InvolvedObject.Name != "pool1" || events[0].InvolvedObject.UID == "" ||
		!strings.Contains(events[0].Message, "nv-ipam gave 192.168.0.7 twice: pod default/db-c on node node-c") {
		t.Errorf("events %+v", events)
	}
	all := []string{
		"pool1 192.168.0.101 kind-worker default/web-0",
		"pool1 192.168.0.102 kind-worker default/web-1",
		"pool1 192.168.0.103 kind-worker ml/train-0",
		"pool1 192.168.0.221 node-b default/b-1",
		"pool1 192.168.0.5 kind-worker default/static-ip-pod1",
		"pool1 192.168.0.7 node-b default/db-b",
		"pool1 192.168.1.45 node-c default/c-1",
		"pool6 fd52:2eb5:44::1f5 kind-worker ml/train-0",
		"rail1 10.60.1.2 kind-worker ml/train-0",
	}
	c.wantHeld(t, all...)

	// Again: nothing to do, and the conflict is still said.
	for _, h := range []*host{worker, b, d} {
		_, log := h.mustRun(t, "--once")
		if got := strings.Contains(log, "twice"); got != (h == d) || strings.Contains(log, "migrating") {
			t.Errorf("%s again: %s", h.name, log)
		}
		_, log = h.mustRun(t, "--once", "--migrate=force")
		if got := strings.Contains(log, "twice"); got != (h == d) || !strings.Contains(log, " 0 claimed") {
			t.Errorf("%s by force: %s", h.name, log)
		}
	}
	c.wantHeld(t, all...)
	if len(c.events(t)) != 1 {
		t.Errorf("%d events after more runs", len(c.events(t)))
	}

	// nv-ipam stopped at .103 and .221: it goes on from there, though .201 is free.
	if got := worker.add(t, "c1", ""); got != "192.168.0.104" {
		t.Errorf("kind-worker gives %s", got)
	}
	if got := b.add(t, "c2", ""); got != "192.168.0.222" {
		t.Errorf("node-b gives %s", got)
	}
	if _, err := d.call(t.Context(), "ADD", "c3", ";IP=192.168.0.7", "pool1", "ippool"); err == nil || !strings.Contains(err.Error(), "held by pod default/db-b on node node-b") {
		t.Errorf("a static address that is held: %v", err)
	}
	// The pod that has lost goes, and nobody else's address with it.
	d.del(t, "c-db-c")
	// The one that holds it goes: then it is free.
	b.del(t, "c-db-b")
	if got := d.add(t, "c4", ";IP=192.168.0.7"); got != "192.168.0.7" {
		t.Errorf("the static address is not free: %s", got)
	}
}

// The holder goes, and the other pod, which answers on the address still, is given
// it by force.
func TestConflictSolved(t *testing.T) {
	c := newCluster(t)
	b := c.host(t, "node-b", withEntry(t, emptyStore, "db-b", "192.168.0.7"))
	d := c.host(t, "node-c", withEntry(t, emptyStore, "db-c", "192.168.0.7"))
	b.mustRun(t, "--once")
	d.mustRun(t, "--once")
	b.del(t, "c-db-b")
	c.wantHeld(t, "")
	if _, log := d.mustRun(t, "--once", "--migrate=force"); !strings.Contains(log, "1 claimed") || !strings.Contains(log, " 0 conflicts") {
		t.Error(log)
	}
	c.wantHeld(t, "pool1 192.168.0.7 node-c default/db-c")
	d.del(t, "c-db-c")
	c.wantHeld(t, "")
}

// An allocation is made as the plugin makes them.
func TestMigratedAllocation(t *testing.T) {
	c := newCluster(t)
	h := c.host(t, "kind-worker", sampleStore(t))
	h.mustRun(t, "--once")
	a, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), "pool1.192.168.0.5", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := v1alpha1.IPAllocationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: "IPPool", Name: "pool1"}, Address: "192.168.0.5", NodeName: "kind-worker",
		PodRef:      v1alpha1.PodReference{Namespace: "default", Name: "static-ip-pod1", UID: "c1b14c02-7016-4211-9029-a727c276d3b8"},
		ContainerID: static, InterfaceName: "net1", Requested: true,
	}
	if a.Spec != want {
		t.Errorf("spec %+v, want %+v", a.Spec, want)
	}
	if a.Labels[v1alpha1.LabelNode] != "kind-worker" || a.Labels[v1alpha1.LabelPool] != "pool1" || a.Labels[v1alpha1.LabelContainer] != v1alpha1.ContainerLabel(static) {
		t.Errorf("labels %v", a.Labels)
	}
	if got := h.read(t, "data/store"); got != sampleStore(t) {
		t.Error("the store was changed")
	}
	h.hintHasAll(t)
	entry, err := os.Readlink(h.hint(t, "claims/pool1.192.168.0.5"))
	if want := static + "/net1/" + string(a.UID); err != nil || !strings.HasPrefix(entry, want+" ") { // and the record behind it
		t.Errorf("the hint has %q, %v, want %q", entry, err, want)
	}
}

// hint is a file of the hint of the one namespace and cluster that this node has.
func (h *host) hint(t *testing.T, name string) string {
	t.Helper()
	homes, err := filepath.Glob(h.path("data/*@*"))
	if err != nil || len(homes) != 1 {
		t.Fatalf("hints %v, %v, want one", homes, err)
	}
	return filepath.Join(homes[0], name)
}

// claimFile is the name of an allocation's entry: an IPv6 address has no separators
// in it.
func claimFile(spec v1alpha1.IPAllocationSpec) string {
	text := spec.Address
	if addr := netip.MustParseAddr(text); addr.Is6() {
		bytes := addr.As16()
		text = hex.EncodeToString(bytes[:])
	}
	return spec.PoolRef.Name + "." + text
}

// hintHasAll checks that the hint holds at least what the node holds.
func (h *host) hintHasAll(t *testing.T) {
	t.Helper()
	list, err := h.IPAM.IPAllocations(h.NS).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range list.Items {
		entry, err := os.Readlink(h.hint(t, "claims/"+claimFile(a.Spec)))
		if err != nil || !strings.HasPrefix(entry, a.Spec.ContainerID+"/net1/") {
			t.Errorf("the hint has %q, %v for %s", entry, err, a.Name)
		}
	}
}

// Pods that started under nv-ipam are released by the plugin's DEL, whatever it
// still knows.
func TestDelOfMigratedPods(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, h *host){
		"with the hint": func(*testing.T, *host) {},
		"without": func(t *testing.T, h *host) {
			if err := os.RemoveAll(h.hint(t, "")); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			h := c.host(t, "kind-worker", sampleStore(t))
			h.mustRun(t, "--once")
			lose(t, h)
			h.del(t, web0)
			h.del(t, web0)
			h.del(t, train0)
			h.del(t, static)
			c.wantHeld(t, "pool1 192.168.0.102 kind-worker default/web-1", "rail1 10.60.1.2 kind-worker ml/train-0")
			// Another run does not bring them back, though nv-ipam's store has them.
			h.mustRun(t, "--once")
			h.write(t, "bin/nv-ipam", nvIpam, 0o755)
			for _, how := range []string{"auto", "force"} {
				if _, log := h.mustRun(t, "--once", "--migrate="+how); !strings.Contains(log, "4 released since") {
					t.Errorf("%s: %s", how, log)
				}
			}
			c.wantHeld(t, "pool1 192.168.0.102 kind-worker default/web-1", "rail1 10.60.1.2 kind-worker ml/train-0")
		})
	}
}

func TestDryRunChangesNothing(t *testing.T) {
	c := newCluster(t)
	b := c.host(t, "node-b", withEntry(t, emptyStore, "db-b", "192.168.0.5"))
	b.mustRun(t, "--once")
	h := c.host(t, "kind-worker", sampleStore(t))
	disk, held := h.disk(t), c.held(t)
	out, _ := h.mustRun(t, "--migrate-dry-run")
	if h.disk(t) != disk || c.held(t) != held || len(c.events(t)) > 0 {
		t.Error("a dry run has changed something")
	}
	for _, want := range []string{
		"POOL    TYPE       ADDRESS             POD                      INTERFACE   CONTAINER      ACTION     REMARK",
		"pool1   ippool     192.168.0.5         default/static-ip-pod1   net1        7750dc8f7bed   CONFLICT   held by pod default/db-b on node node-b",
		"pool1   ippool     192.168.0.101       default/web-0            net1        1128cbe33f6b   claim",
		"rail1   cidrpool   10.60.1.2           ml/train-0               net1        523be61bdda3   claim",
		"would be: 6 entries: 5 claimed, 0 already claimed, 1 conflicts",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("no line %q in\n%s", want, out)
		}
	}
	h.mustRun(t, "--once")
	if out, _ := h.mustRun(t, "--migrate-dry-run"); !strings.Contains(out, "none: claimed") || !strings.Contains(out, "0 claimed, 5 already claimed, 1 conflicts") {
		t.Errorf("dry run afterwards\n%s", out)
	}
}

// What cannot be claimed keeps nv-ipam's plugin where it is.
func TestNothingIsSwitchedUnlessAllIsClaimed(t *testing.T) {
	c := newCluster(t)
	other := env.Namespace(t)
	nobody, err := env.UserKubeconfig("nobody")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		store string
		args  []string
		words string
	}{
		"wrong namespace":     {sampleStore(t), []string{"--ippools-namespace=" + other, "--kubeconfig=" + env.Kubeconfig}, "none of the 3 pools"},
		"no rights":           {sampleStore(t), []string{"--kubeconfig=" + nobody}, "forbidden"},
		"no node":             {sampleStore(t), []string{"--node-name="}, "--node-name"},
		"half a store":        {sampleStore(t)[:400], nil, "not valid"},
		"a newer store":       {`{"version":2,"pools":{}}`, nil, "version 2"},
		"no API server":       {sampleStore(t), []string{"--kubeconfig=" + unreachable(t)}, "refused"},
		"a node that is none": {sampleStore(t), []string{"--node-name=Kind_Worker"}, "spec.nodeName"},
	} {
		t.Run(name, func(t *testing.T) {
			h := c.host(t, "kind-worker", tc.store)
			_, log, err := h.run(t, append([]string{"--once"}, tc.args...)...)
			if err == nil || !strings.Contains(log, tc.words) {
				t.Errorf("%v, want %q\n%s", err, tc.words, log)
			}
			if h.isInstalled(t) || h.read(t, "conf/nv-ipam.conf") != `{"daemonSocket":"unix:///x"}` {
				t.Error("it was switched")
			}
			h.mustRun(t, "--once", "--migrate=never")
			if !h.isInstalled(t) {
				t.Error("--migrate=never does not install")
			}
		})
	}
}

// An entry of which no allocation can be made keeps nobody from the switch, and is told wherever a
// conflict is. What an allocation can do without is left out instead: the address is held.
func TestEntryThatTheAPIServerRefuses(t *testing.T) {
	long := strings.Repeat("long.", 45) + "name"
	for name, tc := range map[string]struct {
		pool, container, device, uid, pod string
		unsolved                          bool
		words                             string // in the log
	}{
		"a pool whose name is too long":    {pool: long, unsolved: true, words: "Too long: may not be more than 213"},
		"a container whose ID is too long": {container: strings.Repeat("c", 300), unsolved: true, words: "spec.containerID: Too long"},
		"a device ID with a space":         {device: "PF 0", words: `the API server refuses the device ID \"PF 0\": claimed without it`},
		"a pod's UID with a slash":         {uid: "a/b", words: `the API server refuses the pod's UID \"a/b\": claimed without it`},
		"a pod's name with a space":        {pod: "x y", words: `the API server refuses the pod's name \"default/x y\": claimed without it`},
		"both":                             {device: "PF 0", uid: "a/b", words: "the API server refuses"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			pool, container := cmp.Or(tc.pool, "pool1"), cmp.Or(tc.container, "c-x")
			h := c.host(t, "kind-worker", withOneMore(t, sampleStore(t), pool, map[string]any{
				"container_id": container, "interface_name": "net1", "ip_address": "192.168.0.150",
				"metadata": map[string]any{"create_time": "2026-11-23T08:00:00Z", "pod_uuid": cmp.Or(tc.uid, "uid-x"), "pod_name": cmp.Or(tc.pod, "x"), "pod_namespace": "default", "device_id": tc.device},
			}))
			_, log := h.mustRun(t, "--once")
			const cannot = "address cannot be recorded: this pod answers on it, and another one may be given it"
			summary := map[bool]string{false: "7 entries: 7 claimed, 0 already claimed, 0 conflicts, 0 obsolete, 0 released since, 0 refused, 0 unreadable",
				true: "7 entries: 6 claimed, 0 already claimed, 0 conflicts, 0 obsolete, 0 released since, 1 refused, 0 unreadable"}[tc.unsolved]
			for _, words := range []string{tc.words, summary} {
				if !strings.Contains(log, words) {
					t.Errorf("the log does not say %q:\n%s", words, log)
				}
			}
			if !h.isInstalled(t) {
				t.Error("it was not switched")
			}
			all := sampleHeld
			if !tc.unsolved {
				who := "default/x"
				if tc.pod != "" {
					who = "/"
				}
				all = append(slices.Clone(sampleHeld), "pool1 192.168.0.150 kind-worker "+who)
				slices.Sort(all)
			}
			c.wantHeld(t, all...)
			wantEvents := 0
			if tc.unsolved && tc.pool == "" { // there can be no such pool
				wantEvents = 1
			}
			for range 2 {
				if events := c.events(t); len(events) != wantEvents {
					t.Errorf("%d events, want %d", len(events), wantEvents)
				} else if wantEvents == 1 && (events[0].Reason != "AddressNotRecorded" || events[0].InvolvedObject.Name != pool || !strings.Contains(events[0].Message, "192.168.0.150")) {
					t.Errorf("event %+v", events[0])
				}
				// Again: nothing to do, and it is still said.
				if _, log := h.mustRun(t, "--once"); strings.Contains(log, cannot) != tc.unsolved || strings.Contains(log, "migrating") {
					t.Errorf("again: %s", log)
				}
				_, log := h.mustRun(t, "--once", "--migrate=force")
				if strings.Contains(log, cannot) != tc.unsolved || !strings.Contains(log, " 0 claimed") || !strings.Contains(log, " 0 released since") {
					t.Errorf("by force: %s", log)
				}
				c.wantHeld(t, all...)
			}
			h.hintHasAll(t)
			for _, e := range h.journal(t) {
				if want := map[bool]string{true: "refused", false: "already claimed"}[tc.unsolved && e.ContainerID == container]; e.Result != want {
					t.Errorf("the journal has %+v, want %s", e, want)
				}
			}
		})
	}
}

// journalEntry is what the journal says of an entry of the store.
type journalEntry struct{ ContainerID, Result string }

func (h *host) journal(t *testing.T) []journalEntry {
	t.Helper()
	var j struct{ Entries []journalEntry }
	if err := json.Unmarshal([]byte(h.read(t, "data/store.crd-ipam-migrated")), &j); err != nil || len(j.Entries) == 0 {
		t.Fatalf("journal %+v, %v", j, err)
	}
	return j.Entries
}

// withOneMore adds an entry to a pool of a store.
func withOneMore(t *testing.T, store, pool string, entry map[string]any) string {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal([]byte(store), &root); err != nil {
		t.Fatal(err)
	}
	pools := root["pools"].(map[string]any)
	if pools[pool] == nil {
		pools[pool] = map[string]any{"name": pool, "entries": map[string]any{}}
	}
	pools[pool].(map[string]any)["entries"].(map[string]any)["one more"] = entry
	data, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func unreachable(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	rig.WriteKubeconfig(t, path, "http://"+rig.FreePort(t), nil, &clientcmdapi.AuthInfo{})
	return path
}

// Pools that are gone or were edited: containers answer on the addresses all the
// same, and the pool may come back.
func TestUnknownPools(t *testing.T) {
	c := newCluster(t)
	store := withEntry(t, withEntry(t, emptyStore, "inside", "192.168.0.150"), "outside", "172.16.0.1")
	store = strings.Replace(store, `"pools":{`, `"pools":{"gone":{"entries":{"k":{"container_id":"c","interface_name":"net1","ip_address":"10.9.9.9"}}},"/":{"entries":{"k":{"container_id":"c","interface_name":"net1","ip_address":"10.9.9.9"}}},`, 1)
	h := c.host(t, "kind-worker", store)
	_, log := h.mustRun(t, "--once")
	for _, words := range []string{"there is no such pool", "address is outside of the pool's subnet 192.168.0.0/16", "cannot be claimed", "1 unreadable"} {
		if !strings.Contains(log, words) {
			t.Errorf("the log does not say %q:\n%s", words, log)
		}
	}
	c.wantHeld(t, "gone 10.9.9.9 kind-worker /", "pool1 172.16.0.1 kind-worker default/outside", "pool1 192.168.0.150 kind-worker default/inside")
}

// proxy stands between ipam-node and the API server, as the installer's user.
type proxy struct {
	kubeconfig string

	mu sync.Mutex
	// before and after are called with the name of each allocation that is to be
	// created: before the API server sees the request, and before the client sees
	// the answer.
	before, after func(name string)
}

func (c *cluster) proxy(t *testing.T) *proxy {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", c.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	front := rig.NewProxy(t, config)
	p := &proxy{kubeconfig: front.Kubeconfig(t, filepath.Join(t.TempDir(), "proxy.kubeconfig"))}
	front.Fail(func(w http.ResponseWriter, r *http.Request) { p.serve(front.Forward, w, r) })
	return p
}

func (p *proxy) serve(forward http.Handler, w http.ResponseWriter, r *http.Request) {
	name := ""
	if r.Method == http.MethodPost && strings.HasSuffix(r.URL.Path, "/ipallocations") {
		var alloc v1alpha1.IPAllocation
		body, err := io.ReadAll(r.Body)
		if err == nil {
			err = json.Unmarshal(body, &alloc)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body, name = io.NopCloser(bytes.NewReader(body)), alloc.Name
	}
	p.mu.Lock()
	before, after := p.before, p.after
	p.mu.Unlock()
	if name != "" && before != nil {
		before(name)
	}
	if name == "" || after == nil {
		forward.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	forward.ServeHTTP(answer, r)
	after(name)
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes())
}

func (p *proxy) set(before, after func(name string)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.before, p.after = before, after
}

// process can be sent signals from another goroutine than the one that runs it.
type process struct {
	cmd     *exec.Cmd
	started chan struct{}
}

func newProcess(cmd *exec.Cmd) *process { return &process{cmd: cmd, started: make(chan struct{})} }

func (p *process) run(t *testing.T) error {
	t.Helper()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	close(p.started)
	return p.cmd.Wait()
}

func (p *process) signal(s os.Signal) {
	<-p.started
	_ = p.cmd.Process.Signal(s)
}

// Killed at each create, before and after the API server has seen it, and run
// again: the end is as if nothing had happened.
func TestKilledAndRunAgain(t *testing.T) {
	for n := range sampleHeld {
		for _, when := range []string{"before", "after"} {
			t.Run(fmt.Sprintf("%s create %d", when, n+1), func(t *testing.T) {
				c := newCluster(t)
				h, p := c.host(t, "kind-worker", sampleStore(t)), c.proxy(t)
				h.kubeconfig = p.kubeconfig
				cmd := newProcess(h.ipamNode(t, "--once"))
				creates := 0
				kill := func(string) {
					if creates++; creates == n+1 {
						cmd.signal(os.Kill)
					}
				}
				if when == "before" {
					p.set(kill, nil)
				} else {
					p.set(nil, kill)
				}
				if err := cmd.run(t); err == nil {
					t.Fatal("it was not killed")
				}
				if h.isInstalled(t) {
					t.Error("it was switched before all was claimed")
				}
				h.hintHasAll(t)
				p.set(nil, nil)
				h.mustRun(t, "--once")
				c.wantHeld(t, sampleHeld...)
				if got := h.add(t, "c1", ""); got != "192.168.0.104" {
					t.Errorf("the next address is %s", got)
				}
			})
		}
	}
}

// nv-ipam gives one more address after its store was read, and the installer is
// killed when it has switched the plugin and claims that one.
func TestKilledAfterTheSwitch(t *testing.T) {
	c := newCluster(t)
	h, p := c.host(t, "kind-worker", sampleStore(t)), c.proxy(t)
	h.kubeconfig = p.kubeconfig
	cmd := newProcess(h.ipamNode(t, "--once"))
	p.set(func(name string) {
		if name == "pool1.192.168.0.104" {
			cmd.signal(os.Kill)
		}
	}, func(name string) {
		if name == "rail1.10.60.1.2" {
			return
		}
		h.write(t, "data/store", withEntry(t, sampleStore(t), "late", "192.168.0.104"), 0o644)
	})
	if err := cmd.run(t); err == nil || !h.isInstalled(t) {
		t.Fatalf("killed: %v, switched: %t", err, h.isInstalled(t))
	}
	// A migrated pod goes meanwhile, and its address must not come back.
	h.del(t, web0)
	// ADDs wait: nobody knows what is free.
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if got, err := h.call(ctx, "ADD", "c1", "", "pool1", "ippool"); err == nil {
		t.Errorf("an ADD was given %s while addresses were being taken over", got)
	}
	p.set(nil, nil)
	h.mustRun(t, "--once")
	c.wantHeld(t,
		"pool1 192.168.0.102 kind-worker default/web-1", "pool1 192.168.0.103 kind-worker ml/train-0", "pool1 192.168.0.104 kind-worker default/late",
		"pool1 192.168.0.5 kind-worker default/static-ip-pod1", "pool6 fd52:2eb5:44::1f5 kind-worker ml/train-0", "rail1 10.60.1.2 kind-worker ml/train-0")
	if got := h.add(t, "c1", ""); got != "192.168.0.105" {
		t.Errorf("the next address is %s", got)
	}
}

// As above, and the installer stays away for more than the two minutes that ADDs
// wait: they go on, and nobody is given what nv-ipam has given, also not what it gave
// after the installer has read its store for the last time.
func TestInstallerStaysAway(t *testing.T) {
	c := newCluster(t)
	h, p := c.host(t, "kind-worker", sampleStore(t)), c.proxy(t)
	h.kubeconfig = p.kubeconfig
	cmd := newProcess(h.ipamNode(t, "--once"))
	late := withEntry(t, sampleStore(t), "late", "192.168.0.104")
	p.set(func(name string) {
		if name == "pool1.192.168.0.104" {
			cmd.signal(os.Kill)
		}
	}, func(name string) {
		if name != "rail1.10.60.1.2" {
			h.write(t, "data/store", late, 0o644)
		}
	})
	if err := cmd.run(t); err == nil || !h.isInstalled(t) {
		t.Fatalf("killed: %v, switched: %t", err, h.isInstalled(t))
	}
	p.set(nil, nil)
	h.write(t, "data/store", withEntry(t, withEntry(t, late, "later", "192.168.0.105"), "static", "192.168.0.9"), 0o644)
	longAgo := time.Now().Add(-3 * time.Minute)
	if err := os.Chtimes(h.path("data/closed"), longAgo, longAgo); err != nil {
		t.Fatal(err)
	}

	if got := h.add(t, "c1", ""); got != "192.168.0.106" {
		t.Errorf("the next address is %s", got)
	}
	for _, addr := range []string{"192.168.0.104", "192.168.0.105", "192.168.0.9"} {
		_, err := h.call(t.Context(), "ADD", "c2", ";IP="+addr, "pool1", "ippool")
		if err == nil || !strings.Contains(err.Error(), "requested IP is already reserved in the pool") || !strings.Contains(err.Error(), addr+" is held in nv-ipam's store") {
			t.Errorf("a request for %s: %v", addr, err)
		}
	}
	if got := h.add(t, "c3", ";IP=192.168.0.8"); got != "192.168.0.8" {
		t.Errorf("an address that nv-ipam has not given: %s", got)
	}
	// What was migrated and released since is free, whatever nv-ipam's store says.
	h.del(t, static)
	if got := h.add(t, "c4", ";IP=192.168.0.5"); got != "192.168.0.5" {
		t.Errorf("an address that was given back: %s", got)
	}

	h.mustRun(t, "--once")
	if _, err := os.Stat(h.path("data/closed")); !os.IsNotExist(err) {
		t.Errorf("the node is not open: %v", err)
	}
	held := c.held(t)
	for _, line := range []string{"192.168.0.104 kind-worker default/late", "192.168.0.105 kind-worker default/later", "192.168.0.9 kind-worker default/static", "192.168.0.106 kind-worker default/c1"} {
		if !strings.Contains(held, line) {
			t.Errorf("not held: %s\nin\n%s", line, held)
		}
	}
	h.del(t, "c-late")
	if got := h.add(t, "c5", ";IP=192.168.0.104"); got != "192.168.0.104" {
		t.Errorf("after the migration: %s", got)
	}
}

// Killed at the very end, when all is claimed and the node is not open yet, or given
// up for good: nothing is kept from pods.
func TestNodeOpensWhereNothingIsLeftToMigrate(t *testing.T) {
	for _, how := range []string{"auto", "never"} {
		c := newCluster(t)
		h := c.host(t, "kind-worker", sampleStore(t))
		h.mustRun(t, "--once")
		h.write(t, "data/closed", `{"store":"store","held":["pool1.192.168.0.9 x/net1"]}`, 0o600)
		h.mustRun(t, "--once", "--migrate="+how)
		if got := h.add(t, "c1", ";IP=192.168.0.9"); got != "192.168.0.9" {
			t.Errorf("--migrate=%s: %s", how, got)
		}
	}
}

// While the installer claims what nv-ipam gave last, an ADD of the new plugin
// waits and does not take that address.
func TestAddDuringTheSwitch(t *testing.T) {
	c := newCluster(t)
	h, p := c.host(t, "kind-worker", sampleStore(t)), c.proxy(t)
	h.kubeconfig = p.kubeconfig
	type answer struct {
		addr string
		err  error
	}
	added := make(chan answer, 1)
	p.set(func(name string) {
		if name != "pool1.192.168.0.104" {
			return
		}
		go func() {
			addr, err := h.call(t.Context(), "ADD", "c1", "", "pool1", "ippool")
			added <- answer{addr, err}
		}()
		select {
		case a := <-added:
			t.Errorf("an ADD did not wait: %+v", a)
			added <- a
		case <-time.After(time.Second):
		}
	}, func(name string) {
		if name != "pool1.192.168.0.104" {
			h.write(t, "data/store", withEntry(t, sampleStore(t), "late", "192.168.0.104"), 0o644)
		}
	})
	h.mustRun(t, "--once")
	select {
	case a := <-added:
		if a.err != nil || a.addr != "192.168.0.105" {
			t.Errorf("the ADD was given %s, %v", a.addr, a.err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("what nv-ipam gave last was not claimed, or the ADD waits for ever")
	}
	if !strings.Contains(c.held(t), "pool1 192.168.0.104 kind-worker default/late") {
		t.Errorf("held\n%s", c.held(t))
	}
}

// SIGTERM after the switch does not leave the node closed.
func TestToldToStopDuringTheSwitch(t *testing.T) {
	c := newCluster(t)
	h, p := c.host(t, "kind-worker", sampleStore(t)), c.proxy(t)
	h.kubeconfig = p.kubeconfig
	cmd := newProcess(h.ipamNode(t, "--once"))
	p.set(func(name string) {
		if name == "pool1.192.168.0.104" {
			cmd.signal(syscall.SIGTERM)
		}
	}, func(name string) {
		if name != "pool1.192.168.0.104" {
			h.write(t, "data/store", withEntry(t, sampleStore(t), "late", "192.168.0.104"), 0o644)
		}
	})
	if err := cmd.run(t); err != nil {
		t.Error(err)
	}
	if got := h.add(t, "c1", ""); got != "192.168.0.105" {
		t.Errorf("the next address is %s", got)
	}
}

// A pod's sandbox is made anew while nv-ipam still serves, after its address was
// claimed for the former one.
func TestOtherSandboxOfThePod(t *testing.T) {
	holder := func(t *testing.T, c *cluster) string {
		t.Helper()
		a, err := c.IPAM.IPAllocations(c.NS).Get(t.Context(), "pool1.192.168.0.150", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return a.Spec.ContainerID
	}
	for name, tc := range map[string]struct{ created, want string }{
		"newer": {"2100-01-01T00:00:00Z", "second"},
		"older": {"2020-01-01T00:00:00Z", "first"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			h := c.host(t, "kind-worker", withContainer(t, emptyStore, "web", "first", "192.168.0.150", "2026-11-23T08:00:00Z"))
			h.mustRun(t, "--migrate=only")
			if h.isInstalled(t) || holder(t, c) != "first" {
				t.Fatalf("--migrate=only: installed %t, holder %s", h.isInstalled(t), holder(t, c))
			}
			h.write(t, "data/store", withContainer(t, emptyStore, "web", "second", "192.168.0.150", tc.created), 0o644)
			if out, _ := h.mustRun(t, "--migrate-dry-run"); strings.Contains(out, "CONFLICT") {
				t.Errorf("plan\n%s", out)
			}
			_, log := h.mustRun(t, "--once")
			if got := holder(t, c); got != tc.want || strings.Contains(log, "twice") {
				t.Errorf("held by %s, want %s\n%s", got, tc.want, log)
			}
			h.del(t, tc.want)
			c.wantHeld(t, "")
		})
	}
}

// Rolled back to nv-ipam, and forward again, as docs/migration.md says.
func TestRollback(t *testing.T) {
	c := newCluster(t)
	h := c.host(t, "kind-worker", sampleStore(t))
	h.mustRun(t, "--once")
	if got := h.add(t, "c1", ""); got != "192.168.0.104" {
		t.Errorf("the plugin gives %s", got)
	}
	ended := h.hint(t, "claims/pool1."+h.add(t, "c2", ""))
	h.mustRun(t, "--uninstall")
	if h.read(t, "data/store") != sampleStore(t) {
		t.Error("nv-ipam's store is not what it was")
	}
	// Somebody has tidied up, too early; the DEL of c2 goes to nv-ipam.
	for _, name := range []string{"pool1.192.168.0.101", filepath.Base(ended)} {
		if err := c.IPAM.IPAllocations(c.NS).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	h.write(t, "bin/nv-ipam", nvIpam, 0o755)
	h.write(t, "data/store", withEntry(t, sampleStore(t), "meanwhile", "192.168.0.110"), 0o644)
	h.mustRun(t, "--once")
	c.wantHeld(t, append([]string{
		"pool1 192.168.0.101 kind-worker default/web-0", "pool1 192.168.0.102 kind-worker default/web-1", "pool1 192.168.0.103 kind-worker ml/train-0",
		"pool1 192.168.0.104 kind-worker default/c1", "pool1 192.168.0.110 kind-worker default/meanwhile",
	}, sampleHeld[3:]...)...)
	// It would be written again when its pool is another one. What was entered within a
	// second before the list stays, since the list may be older.
	rig.Eventually(t, "the hint has forgotten c2", func() bool {
		_, err := os.Lstat(ended)
		if err == nil {
			h.mustRun(t, "--once", "--migrate=force")
		}
		return err != nil
	})
}

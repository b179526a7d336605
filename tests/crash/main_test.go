// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

// Package crash kills the plugin at every step of what it does and plays what a
// runtime does next.
//
// A step is the entry or the exit of a system call that changes something outside
// of the process: a file, a lock, a connection. They are found by tracing the
// plugin as it ships, so that nothing has to be built into it and no step can be
// forgotten.
//
// By default one of the ways in which things may go on is played for each step:
// CRASH_SEED, a number, chooses which. CRASH="power loss" plays that one for each
// step, CRASH=all plays them all, which takes six times as long, and CRASH=sample,
// the default with -short, kills at steps of different names only.
package crash

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cnitypes "github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

var env *testenv.Env

func TestMain(m *testing.M) {
	testenv.Isolate()
	os.Exit(testenv.Run(m, &env, testenv.Options{}))
}

// Sizes of a node's blocks in the pools p and q.
const (
	blockP = 6
	blockQ = 1
)

// cluster is a namespace with pools.
type cluster struct {
	*rig.Cluster

	plugin string // a copy: a build may replace the other under way
	dir    string

	mu sync.Mutex
	// carved are the blocks of all pools.
	carved map[string][]v1alpha1.Allocation
	// left are the machines on which something is left to the controller.
	left []*machine
}

// place is a node and its pair of pools.
type place struct {
	node, p, q string
	first      netip.Addr // of its block in p
}

// batch are places that nobody has yet: each run has one to itself.
type batch struct {
	access v1alpha1.PoolAccess
	free   []place
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Cluster: rig.NewCluster(t, env), dir: t.TempDir(), carved: map[string][]v1alpha1.Allocation{}}
	data, err := os.ReadFile(rig.Binary(t, "nv-ipam"))
	if err != nil {
		t.Fatal(err)
	}
	c.plugin = filepath.Join(c.dir, "nv-ipam")
	if err := os.WriteFile(c.plugin, data, 0o700); err != nil {
		t.Fatal(err)
	}
	return c
}

// carve makes a pair of pools for a few nodes: many in one would make each call read what
// all the others have.
func (c *cluster) carve(t *testing.T, b *batch) {
	t.Helper()
	const nodes = 32
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.carved) / 2
	p, q := fmt.Sprint("p", n), fmt.Sprint("q", n)
	var names []string
	for i := range nodes {
		names = append(names, fmt.Sprintf("n%d-%d", n, i))
	}
	c.pool(t, q, v1alpha1.IPPoolSpec{Subnet: fmt.Sprintf("11.%d.%d.0/24", n/256, n%256), PerNodeBlockSize: blockQ, PoolAccess: b.access}, names)
	c.pool(t, p, v1alpha1.IPPoolSpec{Subnet: fmt.Sprintf("10.%d.%d.0/24", n/256, n%256), PerNodeBlockSize: blockP, PoolAccess: b.access}, names)
	for _, a := range c.carved[p] {
		b.free = append(b.free, place{a.NodeName, p, q, netip.MustParseAddr(a.StartIP)})
	}
}

func (c *cluster) pool(t *testing.T, name string, spec v1alpha1.IPPoolSpec, nodes []string) {
	t.Helper()
	rig.IPPool(t, c.IPAM, c.NS, name, spec, nodes...)
	c.carved[name] = c.GetPool(t, name).Status.Allocations
}

// machine is a node: its disk, its pools, and what its runtime believes.
type machine struct {
	*cluster
	place
	dir  string
	hint *hint.Hint
	// live are the addresses that the plugin has told a container which is still
	// there.
	live map[string][]string
	// claims says that the subject's pod names an IPAMClaim: see launch.
	claims bool
	// moves says where the virtual machine of the subject's pod moves, if it does: from or to
	// the neighbour. Then uid is that of the pod.
	moves moves
	uid   types.UID
	// lost is true from when the API server has lost what lives until a call has to have
	// written it again.
	lost bool
}

type moves string

const (
	here moves = "here"
	away moves = "away"
)

func (c *cluster) machine(t *testing.T, b *batch) *machine {
	t.Helper()
	if len(b.free) == 0 {
		c.carve(t, b)
	}
	at := b.free[0]
	b.free = b.free[1:]
	m := &machine{cluster: c, place: at, dir: filepath.Join(c.dir, at.node), live: map[string][]string{}}
	if err := os.Mkdir(m.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	site, err := ledger.SiteOf(env.Config, m.node)
	if err != nil {
		t.Fatal(err)
	}
	m.hint = hint.Open(m.data(), site, c.NS, slog.New(slog.DiscardHandler))
	settings, err := json.Marshal(map[string]any{
		"kubeconfig": env.Kubeconfig, "poolsNamespace": c.NS, "nodeName": m.node,
		"dataDir": m.data(), "logFile": filepath.Join(m.dir, "log"), "logLevel": "info",
		"lossGrace": "1ns", // an ADD that finds a loss goes on
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "nv-ipam.conf"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	return m
}

// address returns one of the node's block in p.
func (m *machine) address(index int) netip.Addr {
	addr := m.first
	for range index {
		addr = addr.Next()
	}
	return addr
}

func (m *machine) data() string { return filepath.Join(m.dir, "data") }

// save keeps a copy of the hint as it is.
func (m *machine) save(t *testing.T) {
	t.Helper()
	if err := os.CopyFS(m.saved(), os.DirFS(m.data())); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

func (m *machine) saved() string { return filepath.Join(m.dir, "saved") }

// restore, as the verb of a call, is a look of the installer.
const restore = "ipam-node --restore-only"

// call is one call of the plugin.
type call struct {
	verb, container string
	pools           string // "p" where empty
	ip              string // requested
	valid           any    // attachments, for GC
}

// input is what a runtime gives the plugin for a call.
func (m *machine) input(t *testing.T, c call) rig.Call {
	t.Helper()
	pools := strings.NewReplacer("p", m.p, "q", m.q).Replace(c.pools)
	if pools == "" {
		pools = m.p
	}
	more := map[string]any{}
	if c.verb == "GC" {
		more["cni.dev/valid-attachments"] = c.valid
	}
	more["allowPersistentIPs"] = m.names(c.container)
	pod := m.pod(c.container)
	args := ";K8S_POD_UID=" + string(pod.UID)
	if c.ip != "" {
		args += ";IP=" + c.ip
	}
	return rig.Call{
		Verb: c.verb, Container: c.container, Pod: pod.Name, Args: args,
		Stdin: rig.NetConf(t, "1.1.0", map[string]any{"confDir": m.dir, "poolName": pools}, more),
	}
}

// podOf returns the name of a container's pod.
func podOf(container string) string {
	if container == earlier || container == next {
		return podOf(subject)
	}
	return "pod-of-" + container
}

// pod is a container's pod. One that names a claim is in the API server.
func (m *machine) pod(container string) v1alpha1.PodReference {
	ref := v1alpha1.PodReference{Namespace: "default", Name: podOf(container), UID: uidOf(container)}
	if m.names(container) {
		ref.Name, ref.UID = ref.Name+"-"+m.node, m.uid
	}
	return ref
}

// names reports whether a container's pod names an IPAMClaim.
func (m *machine) names(container string) bool { return m.claims && podOf(container) == podOf(subject) }

// launch makes the subject's pod, which names a claim that has an address of the node's block.
func (m *machine) launch(t *testing.T) *ledger.IPAMClaim {
	t.Helper()
	m.claims = true
	claim := rig.IPAMClaim(t, m.Kube.CoreV1().RESTClient(), "default", "vm-"+m.node, "net", m.address(2).String()+"/16")
	ref := m.pod(subject)
	made := rig.Pod(t, m.Kube, ref.Namespace, ref.Name, "", func(p *corev1.Pod) {
		p.Annotations = map[string]string{ledger.AnnotationNetworks: `[{"name": "net", "ipam-claim-reference": "` + claim.Metadata.Name + `"}]`}
		if m.moves == here {
			p.Labels = map[string]string{"kubevirt.io/migrationJobUID": "m"}
		}
	})
	if m.moves != "" {
		m.uid = made.UID
	}
	return claim
}

// moveHere makes the subject's pod that to which a machine moves, from the neighbour.
func (m *machine) moveHere(t *testing.T) {
	t.Helper()
	m.moves = here
	claim := m.launch(t)
	a := m.allocation(m.address(2), m.neighbour(), "foreign")
	a.Spec.NetworkName, a.Spec.Owner = "net", claim.Owner()
	m.create(t, a)
}

// moveAway lets a machine move from the subject's pod, which has its address, to the neighbour.
func (m *machine) moveAway(t *testing.T) {
	t.Helper()
	m.moves = away
	m.launch(t)
	m.hold(t, "p", subject)
	for _, a := range m.held(t) {
		if a.Spec.ContainerID == subject {
			target := m.allocation(m.address(2), m.neighbour(), "foreign").Spec
			target.PodRef = v1alpha1.PodReference{Namespace: "default", Name: "target", UID: uidOf("target")}
			a.Spec.Next = v1alpha1.NextOf(&target)
			if _, err := m.IPAM.IPAllocations(m.NS).Update(t.Context(), &a, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func uidOf(container string) types.UID { return types.UID("uid-of-" + podOf(container)) }

// crash runs the plugin and kills it at its n-th step, where it comes so far.
func (m *machine) crash(t *testing.T, c call, n int) outcome {
	t.Helper()
	if c.verb == "DEL" { // the container is going, whatever becomes of the call
		delete(m.live, c.container)
	}
	var out outcome
	if c.verb == restore {
		out = trace(t, m.installer(t), nil, nil, m.dir, n)
	} else {
		in := m.input(t, c)
		out = trace(t, []string{m.plugin}, in.Environ(m.plugin), in.Stdin, m.dir, n)
	}
	if !out.killed && out.code == 0 {
		m.done(t, c, out.stdout)
	}
	m.check(t)
	return out
}

// installer is a look of it at this node, and no more.
func (m *machine) installer(t *testing.T) []string {
	t.Helper()
	return []string{
		rig.Binary(t, "ipam-node"), "--restore-only", "--node-name=" + m.node, "--ippools-namespace=" + m.NS, "--kubeconfig=" + env.Kubeconfig,
		"--cni-data-dir=" + m.data(),
	}
}

// done is what follows from a call that has succeeded.
func (m *machine) done(t *testing.T, c call, stdout []byte) {
	t.Helper()
	if c.verb == "ADD" {
		m.told(t, c.container, stdout)
	}
	if c.verb == "ADD" || c.verb == restore {
		m.lost = false
	}
}

// lose lets the API server lose what the node holds, and its pools be others since.
func (m *machine) lose(t *testing.T) {
	t.Helper()
	m.clear(t, m.node)
	for _, ref := range m.pools("p,q") {
		m.hint.SetEpoch(ref, "another")
		m.hint.DropView(ref)
	}
	m.lost = true
}

// call runs the plugin to its end.
func (m *machine) call(t *testing.T, c call) *cnitypes.Error {
	t.Helper()
	if c.verb == "DEL" {
		delete(m.live, c.container)
	}
	if c.verb == restore {
		argv := m.installer(t)
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		m.done(t, c, nil)
		m.check(t)
		return nil
	}
	out, cniErr := m.input(t, c).Run(t, exec.Command(m.plugin), m.plugin)
	if cniErr == nil {
		m.done(t, c, out)
	}
	m.check(t)
	return cniErr
}

func (m *machine) mustRun(t *testing.T, c call) {
	t.Helper()
	if cniErr := m.call(t, c); cniErr != nil {
		t.Fatalf("%s %s: %v", c.verb, c.container, cniErr)
	}
}

func (m *machine) add(t *testing.T, containers ...string) {
	t.Helper()
	for _, c := range containers {
		m.mustRun(t, call{verb: "ADD", container: c})
	}
}

func (m *machine) del(t *testing.T, containers ...string) {
	t.Helper()
	for _, c := range containers {
		m.mustRun(t, call{verb: "DEL", container: c})
	}
}

// gc says which containers are there, long after the last of them was added.
func (m *machine) gc(t *testing.T) call {
	t.Helper()
	for _, a := range m.held(t) {
		env.Rewrite(t, m.NS, a.Name, func(spec map[string]any) {
			spec[testenv.Started] = &metav1.MicroTime{Time: time.Now().Add(-time.Hour)}
		})
	}
	valid := []map[string]string{}
	for c := range m.live {
		valid = append(valid, map[string]string{"containerID": c, "ifname": "net1"})
	}
	return call{verb: "GC", valid: valid}
}

// told notes the addresses that a container was told.
func (m *machine) told(t *testing.T, container string, stdout []byte) {
	t.Helper()
	given, err := rig.Given(stdout)
	if err != nil {
		t.Fatal(err)
	}
	m.live[container] = nil
	for _, prefix := range given {
		address, _, _ := strings.Cut(prefix, "/")
		m.live[container] = append(m.live[container], address)
	}
}

// held returns this node's allocations in the API server.
func (m *machine) held(t *testing.T) []v1alpha1.IPAllocation {
	t.Helper()
	list, err := m.IPAM.IPAllocations(m.NS).List(t.Context(), metav1.ListOptions{LabelSelector: selector(m.node)})
	if err != nil {
		t.Fatal(err)
	}
	if m.moves == here {
		a, err := ledger.Existing(m.IPAM.IPAllocations(m.NS).Get(t.Context(), v1alpha1.AllocationName(m.p, m.address(2)), metav1.GetOptions{}))
		if err != nil {
			t.Fatal(err)
		}
		if a != nil && a.Spec.Next != nil {
			list.Items = append(list.Items, *a.Promoted())
		}
	}
	return slices.DeleteFunc(list.Items, func(a v1alpha1.IPAllocation) bool { return !a.Spec.Held() })
}

func selector(node string) string { return labels.Set{v1alpha1.LabelNode: node}.String() }

// check fails where an address was told to two containers, or is not held by the
// container that was told it, unless it is lost.
func (m *machine) check(t *testing.T) {
	t.Helper()
	holder := map[string]string{}
	for _, a := range m.held(t) {
		holder[a.Spec.Address] = a.Spec.ContainerID + "/" + a.Spec.InterfaceName
	}
	owner := map[string]string{}
	for container, addrs := range m.live {
		for _, a := range addrs {
			if other, ok := owner[a]; ok {
				t.Fatalf("%s was told to %s and to %s", a, other, container)
			}
			owner[a] = container
			if holder[a] != container+"/net1" && !m.lost {
				t.Fatalf("%s was told %s, which the API server says is held by %q", container, a, holder[a])
			}
		}
	}
}

// entries walks the links of the hint, which are its entries.
func (m *machine) entries(t *testing.T, f func(path, text string)) {
	t.Helper()
	err := rig.Links(m.data(), func(path, text string) error {
		f(path, text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hintAndAPI is what the hint and the API server have of a container.
func (m *machine) hintAndAPI(t *testing.T, container string, held []v1alpha1.IPAllocation) string {
	t.Helper()
	in := map[string]bool{}
	m.entries(t, func(path, text string) {
		if !strings.HasPrefix(text, container+"/") || strings.Contains(path, ".tmp") {
			return
		}
		what := filepath.Base(filepath.Dir(path))
		if what == "claims" && strings.Contains(filepath.Base(path), "@") {
			what = "beside" // of another's entry
		}
		if claim, _, _ := strings.Cut(text, " "); strings.HasSuffix(claim, "/") {
			what += " without UID"
		}
		in[what] = true
	})
	n := 0
	for _, a := range held {
		if a.Spec.ContainerID == container {
			n++
		}
	}
	return fmt.Sprintf("hint [%s], API %d", strings.Join(slices.Sorted(maps.Keys(in)), ", "), n)
}

// notes returns the allocations that the hint says have to be deleted.
func (m *machine) notes(t *testing.T) map[string]bool {
	t.Helper()
	noted := map[string]bool{}
	m.entries(t, func(path, _ string) {
		name, _, _ := strings.Cut(filepath.Base(path), "@")
		if filepath.Base(filepath.Dir(path)) == "releases" && name != "" {
			noted[name] = true
		}
	})
	return noted
}

// since is the time in the note of a release: at its begin or at its end.
var since = regexp.MustCompile(`(^|/)[0-9]+(;|$)`)

// age makes everything in the hint older than any call can be.
func (m *machine) age(t *testing.T) {
	t.Helper()
	ago := time.Now().Add(-time.Hour)
	old := unix.NsecToTimeval(ago.UnixNano())
	m.entries(t, func(path, text string) {
		var err error
		if filepath.Base(filepath.Dir(path)) == "releases" { // says since when
			aged := since.ReplaceAllString(text, fmt.Sprint("${1}", ago.Unix(), "${2}"))
			if parts := strings.Split(text, "/"); len(parts) == 5 { // and of what it is kept
				parts[3] = fmt.Sprint(ago.Unix())
				aged = strings.Join(parts, "/")
			}
			err = rig.Relink(path, aged)
		}
		if err := errors.Join(err, unix.Lutimes(path, []unix.Timeval{old, old})); err != nil {
			t.Fatal(err)
		}
	})
}

// reboot makes the hint one of before the node's last start.
func (m *machine) reboot(t *testing.T) {
	t.Helper()
	if err := rig.Reboot(m.data()); err != nil {
		t.Fatal(err)
	}
	m.age(t)
}

// claimer does what the plugin does, in this process: for what comes before a call
// that is killed, and after all that matters.
func (m *machine) claimer() *claim.Claimer {
	return &claim.Claimer{
		Ledger: ledger.Ledger{Client: m.IPAM, Namespace: m.NS, Node: m.node},
		Hint:   m.hint, Log: slog.New(slog.DiscardHandler), LossGrace: 1,
	}
}

func attachment(container string) hint.Attachment {
	return hint.Attachment{ContainerID: container, Interface: "net1"}
}

// pools returns the pools of "p", "q" or "p,q".
func (m *machine) pools(names string) (refs []v1alpha1.PoolReference) {
	for name := range strings.SplitSeq(names, ",") {
		refs = append(refs, v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: map[string]string{"p": m.p, "q": m.q}[name]})
	}
	return refs
}

// forgetLost is what nobody can know: addresses of which neither the API server nor the
// node's disk knows anything.
func (m *machine) forgetLost(t *testing.T) {
	t.Helper()
	held := map[string]string{}
	for _, a := range m.held(t) {
		held[a.Spec.Address] = a.Spec.ContainerID
	}
	for container, addrs := range m.live {
		m.live[container] = slices.DeleteFunc(addrs, func(addr string) bool { return m.lost && held[addr] != container })
		if len(m.live[container]) == 0 {
			delete(m.live, container)
		}
	}
	m.lost = false
}

// hold lets containers have addresses.
func (m *machine) hold(t *testing.T, pools string, containers ...string) {
	t.Helper()
	for _, c := range containers {
		claims, err := m.claimer().Allocate(t.Context(), claim.Request{
			Attachment: attachment(c), Pools: m.pools(pools), Network: "net", Persistent: m.names(c), Pod: m.pod(c),
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, cl := range claims {
			m.live[c] = append(m.live[c], cl.Address.String())
		}
	}
}

// release ends all containers.
func (m *machine) release(t *testing.T) {
	t.Helper()
	for c := range m.live {
		if err := m.claimer().Release(t.Context(), attachment(c)); err != nil {
			t.Fatal(err)
		}
	}
	clear(m.live)
}

// fill checks that every address of the node's blocks can be given: nothing in
// the hint is in the way. It expects that nothing is held, and leaves it so.
func (m *machine) fill(t *testing.T) {
	t.Helper()
	m.clear(t, m.node) // what rests
	for name, size := range map[string]int{"p": blockP, "q": blockQ} {
		for i := range size {
			_, err := m.claimer().Allocate(t.Context(), claim.Request{Attachment: attachment(fmt.Sprint("fill", i)), Pools: m.pools(name)})
			if err != nil {
				t.Errorf("%d of %d addresses of %s could be given: %v", i, size, name, err)
				break
			}
		}
	}
	m.clear(t, m.node)
}

// clear deletes what a node holds, behind the plugin's back.
func (m *machine) clear(t *testing.T, node string) {
	t.Helper()
	err := m.IPAM.IPAllocations(m.NS).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selector(node)})
	if err != nil {
		t.Fatal(err)
	}
}

// reclaim runs the controller until it has freed all that was left to it.
func (c *cluster) reclaim(t *testing.T) {
	t.Helper()
	stop := c.RunController(t.Context(), t, rig.ControllerClients(t, env.Config, nil), controller.Options{ReclaimGrace: time.Second})
	defer stop()
	rig.Until(t, func() string {
		for _, a := range c.Allocations(t) {
			if a.Spec.Held() {
				return "the controller has not freed " + a.Name
			}
		}
		return ""
	})
}

// recarve gives the nodes their blocks back, which the controller has taken: it
// knows of no such nodes.
func (c *cluster) recarve(t *testing.T) {
	t.Helper()
	for name, blocks := range c.carved {
		rig.ApplyBlocks(t, c.IPAM, c.NS, name, blocks)
	}
}

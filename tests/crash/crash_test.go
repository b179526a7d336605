// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package crash

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// sample, as CRASH, is for one way to go on after each step of another name, once or more
// in each of a half of the scenarios, which CRASH_SEED chooses: what -short does.
const sample = "sample"

// subject is the container that the killed call is about. Its pod has had an
// earlier one, or will have a next.
const (
	subject = "c1"
	earlier = "c0-of-the-pod"
	next    = "c2"
)

// scenario is a call that is killed at every step.
type scenario struct {
	name string
	// ahead is done on all machines long before anything is killed.
	ahead  func(t *testing.T, c *cluster, b *batch)
	before func(t *testing.T, m *machine)
	killed func(t *testing.T, m *machine) call
	// access is that of the node's pools.
	access v1alpha1.PoolAccess
	// refused says that the call, left alone, ends with an error.
	refused bool
	// pending are containers whose release is pending, and forgotten are those whose
	// DEL was lost.
	pending, forgotten []string
	// steps and states are some that must have been reached; see hintAndAPI.
	steps, states []string
}

// What the hint and the API server may have of a container: see hintAndAPI.
const (
	nothing    = "hint [], API 0"
	entered    = "hint [claims without UID], API 0"
	unanswered = "hint [claims without UID], API 1"
	claimed    = "hint [claims], API 1"
	noted      = "hint [claims, releases], API 1"
	releasing  = "hint [releases], API 1"
	released   = "hint [releases], API 0"
)

var scenarios = []scenario{
	{
		name:   "ADD",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0") },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps: []string{"openat log", "symlinkat hint/claims/p.ADDRESS", "connect socket", "write socket: data",
			"renameat hint/claims/p.ADDRESS", "renameat hint/pools/ippool.p.last", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "ADD with an empty hint",
		before: func(*testing.T, *machine) {},
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"renameat hint/pools/ippool.p.json", "symlinkat hint/claims/p.ADDRESS"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "ADD of a requested address",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0") },
		killed: requested,
		steps:  []string{"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name: "ADD of a requested address whose entry is another's",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p", "c0")
			if m.hint.Claiming(hint.Entry{Attachment: attachment("died"), Domain: m.p, Address: m.address(2)}) {
				t.Fatal("the entry is taken")
			}
		},
		killed: requested,
		steps:  []string{"symlinkat hint/claims/p.ADDRESS@HASH", "renameat hint/claims/p.ADDRESS", "unlinkat hint/claims/p.ADDRESS@HASH"},
		states: []string{"hint [beside without UID], API 0", "hint [beside without UID], API 1", "hint [beside without UID, claims], API 1", claimed},
	},
	{
		name:   "ADD with two pools",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0") },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject, pools: "p,q"} },
		steps:  []string{"symlinkat hint/claims/p.ADDRESS", "symlinkat hint/claims/q.ADDRESS", "renameat hint/claims/q.ADDRESS"},
		states: []string{"hint [claims, claims without UID], API 1", "hint [claims, claims without UID], API 2", "hint [claims], API 2"},
	},
	{
		name: "ADD where the second pool is exhausted",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p", "c0")
			m.hold(t, "q", "all-of-q")
		},
		killed:  func(*testing.T, *machine) call { return call{verb: "ADD", container: subject, pools: "p,q"} },
		refused: true,
		steps:   []string{"symlinkat hint/releases/p.ADDRESS@HASH", "unlinkat hint/claims/p.ADDRESS", "unlinkat hint/releases/p.ADDRESS@HASH"},
		states:  []string{unanswered, claimed, noted, releasing, released, nothing},
	},
	{
		name: "ADD among addresses that others hold",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p", "c0")
			m.foreign(t, 3)
		},
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"unlinkat hint/claims/p.ADDRESS", "symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name: "ADD that carries out pending releases",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p", "c0", "d1", "d2")
			m.leave(t, "d1", "d2")
		},
		killed:  func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		pending: []string{"d1", "d2"},
		steps:   []string{"unlinkat hint/releases/p.ADDRESS@HASH", "symlinkat hint/claims/p.ADDRESS"},
		states:  []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "DEL",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0", subject) },
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps: []string{"symlinkat hint/releases/p.ADDRESS@HASH", "unlinkat hint/claims/p.ADDRESS", "connect socket", "write socket: data",
			"unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name: "DEL of two addresses",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p,q", subject)
		},
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps:  []string{"symlinkat hint/releases/p.ADDRESS@HASH", "symlinkat hint/releases/q.ADDRESS@HASH"},
		states: []string{"hint [claims], API 2", "hint [claims, releases], API 2", claimed, released, nothing},
	},
	{
		name: "GC",
		before: func(t *testing.T, m *machine) {
			m.hold(t, "p", "c0", subject)
			delete(m.live, subject) // its DEL was lost
		},
		killed: func(t *testing.T, m *machine) call { return m.gc(t) },
		steps: []string{"symlinkat hint/releases/p.ADDRESS@HASH",
			"unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name:   "CHECK",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0", subject) },
		killed: func(*testing.T, *machine) call { return call{verb: "CHECK", container: subject} },
		steps:  []string{"write socket: data"},
		states: []string{claimed},
	},
	{
		name:   "ADD that takes over from an earlier container",
		ahead:  claimForEarlier,
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0"); m.awaitAge(t) },
		killed: requested,

		forgotten: []string{earlier},
		steps:     []string{"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS"},
		states:    []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "DEL of an address that rests",
		access: rests,
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0", subject) },
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps: []string{"symlinkat hint/releases/p.ADDRESS@HASH", "unlinkat hint/claims/p.ADDRESS", "write socket: data",
			"symlinkat hint/claims/p.ADDRESS", "unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name:   "ADD of the pod whose address rests",
		access: rests,
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0", earlier); m.give(t, earlier) },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"symlinkat hint/claims/p.ADDRESS@HASH", "renameat hint/claims/p.ADDRESS", "unlinkat hint/claims/p.ADDRESS@HASH", "write stdout"},
		states: []string{nothing, "hint [beside without UID], API 0", "hint [beside without UID], API 1", claimed},
	},
	{
		name:   "ADD of a requested address that has rested",
		access: rests,
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0"); m.rested(t, m.address(2)) },
		killed: requested,
		steps:  []string{"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "ADD of a pod that names an IPAMClaim",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0"); m.launch(t) },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name: "ADD of the next pod that names an IPAMClaim",
		before: func(t *testing.T, m *machine) {
			m.launch(t)
			m.hold(t, "p", "c0", earlier)
			m.give(t, earlier)
		},
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"renameat hint/claims/p.ADDRESS", "write stdout"},
		states: []string{nothing, claimed},
	},
	{
		name:   "DEL of a pod that names an IPAMClaim",
		before: func(t *testing.T, m *machine) { m.launch(t); m.hold(t, "p", "c0", subject) },
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps:  []string{"symlinkat hint/releases/p.ADDRESS@HASH", "write socket: data", "unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name:   "ADD of a pod to which a machine moves",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0"); m.moveHere(t) },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps:  []string{"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/p.ADDRESS", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "DEL of a pod to which a machine moves",
		before: func(t *testing.T, m *machine) { m.moveHere(t); m.hold(t, "p", "c0", subject) },
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps:  []string{"symlinkat hint/releases/p.ADDRESS@HASH", "write socket: data", "unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name:   "DEL of a pod from which a machine moves",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0"); m.moveAway(t) },
		killed: func(*testing.T, *machine) call { return call{verb: "DEL", container: subject} },
		steps:  []string{"symlinkat hint/releases/p.ADDRESS@HASH", "write socket: data", "unlinkat hint/releases/p.ADDRESS@HASH"},
		states: []string{claimed, noted, releasing, released, nothing},
	},
	{
		name:   "ADD after a loss",
		before: func(t *testing.T, m *machine) { m.hold(t, "p", "c0", "d0"); m.lose(t) },
		killed: func(*testing.T, *machine) call { return call{verb: "ADD", container: subject} },
		steps: []string{"renameat hint/claims/p.ADDRESS", "renameat hint/lost", "renameat hint/pools/ippool.p.epoch",
			"symlinkat hint/claims/p.ADDRESS", "renameat hint/claims/@complete", "write stdout"},
		states: []string{nothing, entered, unanswered, claimed},
	},
	{
		name:   "ipam-node --restore-only",
		before: func(t *testing.T, m *machine) { m.hold(t, "p,q", "c0"); m.hold(t, "p", subject); m.lose(t) },
		killed: func(*testing.T, *machine) call { return call{verb: restore} },
		steps:  []string{"renameat hint/claims/p.ADDRESS", "renameat hint/claims/q.ADDRESS", "renameat hint/lost"},
		states: []string{"hint [claims], API 0", entered, unanswered, claimed},
	},
}

var rests = v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Hour}}

// give ends containers.
func (m *machine) give(t *testing.T, containers ...string) {
	t.Helper()
	for _, c := range containers {
		delete(m.live, c)
		if err := m.claimer().Release(t.Context(), attachment(c)); err != nil {
			t.Fatal(err)
		}
	}
}

// rested lets another node have released an address long ago.
func (m *machine) rested(t *testing.T, addr netip.Addr) {
	t.Helper()
	a := m.allocation(addr, m.neighbour(), "foreign")
	a.Spec.ReleaseCooldown, a.Spec.ReleasedAt = &metav1.Duration{Duration: time.Second}, &metav1.Time{Time: time.Now().Add(-time.Hour)}
	a.Labels[v1alpha1.LabelReleased] = "true"
	m.create(t, a)
}

func requested(_ *testing.T, m *machine) call {
	return call{verb: "ADD", container: subject, ip: m.address(2).String()}
}

// claimForEarlier lets an earlier container of the subject's pod hold, on each
// node, the address that the subject will ask for.
func claimForEarlier(t *testing.T, c *cluster, b *batch) {
	t.Helper()
	const nodes = 500 // more than there are runs
	for len(b.free) < nodes {
		c.carve(t, b)
	}
	for _, at := range b.free {
		m := &machine{cluster: c, place: at}
		a := m.allocation(m.address(2), m.node, earlier)
		a.Spec.NetworkName = "net"
		a.Spec.PodRef = v1alpha1.PodReference{Namespace: "default", Name: podOf(earlier), UID: uidOf(earlier)}
		a.Spec.AddStartedAt = &metav1.MicroTime{Time: time.Now()}
		m.create(t, a)
	}
}

// awaitAge waits until no call for the earlier container can be under way any more.
func (m *machine) awaitAge(t *testing.T) {
	t.Helper()
	for _, a := range m.held(t) {
		if a.Spec.ContainerID == earlier {
			time.Sleep(time.Until(a.CreationTimestamp.Add(45 * time.Second)))
		}
	}
}

// foreign lets another node claim addresses of this one's block, right after
// those that it holds.
func (m *machine) foreign(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		m.create(t, m.allocation(m.address(1+i), m.neighbour(), "foreign"))
	}
}

func (m *machine) allocation(addr netip.Addr, node, container string) *v1alpha1.IPAllocation {
	return &v1alpha1.IPAllocation{
		ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AllocationName(m.p, addr), Labels: map[string]string{
			v1alpha1.LabelPool: m.p, v1alpha1.LabelNode: node,
		}},
		Spec: v1alpha1.IPAllocationSpec{
			PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: m.p}, Address: addr.String(),
			NodeName: node, ContainerID: container, InterfaceName: "net1",
		},
	}
}

func (m *machine) create(t *testing.T, a *v1alpha1.IPAllocation) {
	t.Helper()
	if _, err := m.IPAM.IPAllocations(m.NS).Create(t.Context(), a, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) neighbour() string { return "neighbour-of-" + m.node }

// leave leaves the release of what the containers hold to the next call, as a DEL
// does when the API server is away.
func (m *machine) leave(t *testing.T, containers ...string) {
	t.Helper()
	for _, c := range containers {
		delete(m.live, c)
		held, _ := m.hint.Holding(attachment(c))
		if len(held) != 1 {
			t.Fatalf("%s holds %v", c, held)
		}
		if !m.hint.Releasing(held[0]) || !m.hint.NotReleased(held[0]) {
			t.Fatal("a release could not be noted")
		}
	}
}

// run is one call that was killed, and what is known after it.
type run struct {
	*machine
	scenario
	n   int
	out outcome
	// after are the allocations that this node had after the kill, and state is
	// what the hint and the API server had of the subject.
	after map[string]bool
	state string
	// noted are the allocations that the hint then said have to be deleted.
	noted map[string]bool
	// abandoned are containers of which the runtime will not speak again.
	abandoned map[string]bool
	// again says that the killed call was repeated.
	again bool
}

// sequels are the ways in which things may go on.
type sequel struct {
	name string
	play func(t *testing.T, r *run)
}

var sequels = []sequel{
	{"DEL, and a new container", func(t *testing.T, r *run) {
		r.del(t, subject)
		r.replace(t)
	}},
	{"the same call again", func(t *testing.T, r *run) {
		r.again = true
		c := r.killed(t, r.machine)
		if err := r.call(t, c); (err != nil) != r.refused {
			t.Fatalf("again, %s %s: %v", c.verb, c.container, err)
		}
		r.del(t, subject)
	}},
	{"calls of others only", func(t *testing.T, r *run) {
		if _, alive := r.live[subject]; !alive {
			r.abandoned[subject] = true
		}
		r.add(t, "o1")
		r.del(t, "o1")
		r.age(t)
		r.add(t, "o2")
		r.del(t, "o2")
		// Else it is left to the controller. The test lets an ADD have begun long ago for the
		// GC, behind the plugin's back; a release tests when it began.
		if r.n%2 == 0 && r.access.ReleaseCooldown == nil && !r.claims {
			r.mustRun(t, r.gc(t))
			r.abandoned = nil
		}
	}},
	{"reboot", func(t *testing.T, r *run) {
		r.reboot(t)
		if r.state == unanswered {
			r.forgetMove()
		}
		r.del(t, append(slices.Sorted(maps.Keys(r.live)), subject)...)
		r.replace(t)
	}},
	{"the hint is lost", func(t *testing.T, r *run) {
		if err := os.RemoveAll(r.data()); err != nil {
			t.Fatal(err)
		}
		r.noted = nil
		r.forgetLost(t)
		for _, d := range r.pending {
			r.abandoned[d] = true
		}
		r.forgetMove()
		r.del(t, subject)
		r.replace(t)
	}},
	{"power loss", func(t *testing.T, r *run) {
		// Nothing of what the call wrote had reached the disk.
		if err := os.RemoveAll(r.data()); err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(r.data(), os.DirFS(r.saved())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		r.reboot(t)
		r.noted = r.notes(t)
		r.forgetMove()
		r.del(t, append(slices.Sorted(maps.Keys(r.live)), subject)...)
		r.replace(t)
	}},
}

// forgetMove leaves to the controller what only this node's disk knew: an address that it
// shares with the node that holds it.
func (r *run) forgetMove() {
	if r.moves == here {
		r.abandoned[subject] = true
	}
}

// replace adds the pod's next container, unless that has no place: the machine is elsewhere, or
// an earlier container of the pod has not left.
func (r *run) replace(t *testing.T) {
	t.Helper()
	if r.moves == away || r.moves == here && r.abandoned[subject] {
		return
	}
	c := r.killed(t, r.machine)
	if c.verb != "ADD" || r.refused {
		c = call{verb: "ADD"}
	}
	c.container = next
	r.mustRun(t, c)
}

// tally counts what happened.
type tally struct {
	mu             sync.Mutex
	faults, runs   int
	steps, states  map[string]int
	late, deserted int
}

func (y *tally) note(r *run) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.runs++
	if !r.out.killed {
		return
	}
	y.faults++
	last := r.out.steps[len(r.out.steps)-1]
	y.steps[last.String()]++
	y.states[r.state]++
}

func newTally() *tally { return &tally{steps: map[string]int{}, states: map[string]int{}} }

func (y *tally) add(o *tally) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.faults += o.faults
	y.runs += o.runs
	y.late += o.late
	y.deserted += o.deserted
	for step, n := range o.steps {
		y.steps[step] += n
	}
}

func lines(m map[string]int) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%5d %s\n", m[k], k)
	}
	return b.String()
}

// The plugin is killed at every step of every call. Whatever happens next, no
// address is given twice; none is lost that is not the controller's to find; and
// none stays blocked by what the dead process left in the hint.
func TestKilledAtEveryStep(t *testing.T) {
	seed, _ := strconv.ParseUint(os.Getenv("CRASH_SEED"), 10, 64)
	which := os.Getenv("CRASH")
	known := func(q sequel) bool { return q.name == which }
	if which == "" && testing.Short() {
		which = sample
	}
	if which != "" && which != "all" && which != sample && !slices.ContainsFunc(sequels, known) {
		t.Fatalf("CRASH=%q is no sequel", which)
	}
	chosen := func(n, sequel int) bool {
		if which == "" || which == sample {
			return rand.New(rand.NewPCG(seed, uint64(n))).IntN(len(sequels)) == sequel
		}
		return which == "all" || which == sequels[sequel].name
	}
	t.Logf("CRASH=%q CRASH_SEED=%d", which, seed)
	c, total := newCluster(t), newTally()
	rig.InstallIPAMClaims(t, c.Kube.CoreV1().RESTClient(), rig.OwnerPodIsAnObject)
	otherHalf := func(i int) bool { return which == sample && (uint64(i)+seed)%2 == 1 }
	batches := make([]*batch, len(scenarios))
	for i, s := range scenarios {
		if otherHalf(i) {
			continue
		}
		batches[i] = &batch{access: s.access}
		if s.ahead != nil {
			s.ahead(t, c, batches[i])
		}
	}
	t.Run("plugin", func(t *testing.T) {
		for i, s := range scenarios {
			t.Run(s.name, func(t *testing.T) {
				if otherHalf(i) {
					t.Skip("it is in the other half of the sample: CRASH_SEED one more")
				}
				t.Parallel()
				y := newTally()
				if which == sample {
					c.sampleSteps(t, batches[i], s, y, seed, chosen)
				} else {
					c.everyStep(t, batches[i], s, y, chosen)
				}
				total.add(y)
				t.Logf("killed %d times, at %d different steps\n%sleft behind:\n%s", y.faults, len(y.steps), lines(y.steps), lines(y.states))
				if missed := s.missed(y); len(missed) > 0 && !t.Failed() {
					t.Errorf("was never killed at, or so that it left, %q", missed)
				}
			})
		}
	})
	t.Run("controller", func(t *testing.T) {
		c.reclaim(t)
		c.recarve(t)
		for _, m := range c.left {
			m.clear(t, m.neighbour()) // what is kept for the machine that has moved there
			m.age(t)
			m.fill(t)
		}
	})
	t.Logf("%d runs, %d of them killed, at %d different steps; %d addresses were left to the controller, and %d creates were carried out late",
		total.runs, total.faults, len(total.steps), total.deserted, total.late)
}

// missed are the steps at which the call was not killed, and the states that no kill
// has left.
func (s scenario) missed(y *tally) (out []string) {
	for _, step := range s.steps {
		if y.steps[step] == 0 {
			out = append(out, step)
		}
	}
	for _, state := range s.states {
		if y.states[state] == 0 {
			out = append(out, state)
		}
	}
	return out
}

// everyStep kills the scenario's call at its first step, at its second, and so
// on until it ends before that.
func (c *cluster) everyStep(t *testing.T, b *batch, s scenario, y *tally, chosen func(n, sequel int) bool) {
	t.Helper()
	for n, ended := 1, false; !ended; n++ {
		for i, q := range sequels {
			if chosen(n, i) {
				ended = !c.killAt(t, b, s, y, n, q).killed || ended
			}
			if t.Failed() {
				return
			}
		}
	}
}

// sampleSteps kills the scenario's call at the first or at the last step of each name, by
// what an undisturbed call has done, and lets one end. Threads take turns as they like, so
// that a step may come earlier or later, and some states are left by few steps: where one was
// missed, the call is killed at any step, in random order, until none is.
func (c *cluster) sampleSteps(t *testing.T, b *batch, s scenario, y *tally, seed uint64, chosen func(n, sequel int) bool) {
	t.Helper()
	const never = 1 << 20
	whole := c.killAt(t, b, s, y, never, sequels[0])
	first, last := map[string]int{}, map[string]int{}
	for i, step := range whole.steps {
		if _, seen := first[step.String()]; !seen {
			first[step.String()] = i + 1
		}
		last[step.String()] = i + 1
	}
	s.steps = slices.AppendSeq(slices.Clone(s.steps), maps.Keys(first))
	random := rand.New(rand.NewPCG(seed, uint64(len(whole.steps))))
	var steps []int
	for _, name := range slices.Sorted(maps.Keys(first)) {
		steps = append(steps, []int{first[name], last[name]}[random.IntN(2)])
	}
	taken := len(steps)
	for _, i := range random.Perm(len(whole.steps)) {
		steps = append(steps, i+1)
	}
	for n, at := range steps {
		if t.Failed() || n >= taken && len(s.missed(y)) == 0 {
			return
		}
		for i, q := range sequels {
			if chosen(at, i) && !t.Failed() {
				c.killAt(t, b, s, y, at, q)
			}
		}
	}
}

// killAt kills the scenario's call at its n-th step and plays a sequel. It
// returns how the call ended, perhaps before that.
func (c *cluster) killAt(t *testing.T, b *batch, s scenario, y *tally, n int, q sequel) outcome {
	t.Helper()
	r := &run{machine: c.machine(t, b), scenario: s, n: n, after: map[string]bool{}, abandoned: map[string]bool{}}
	defer func() {
		if t.Failed() {
			t.Logf("at step %d, after %v, which left %s; then %s", n, r.out.steps[max(0, len(r.out.steps)-4):], r.state, q.name)
		}
	}()
	for _, f := range s.forgotten {
		r.abandoned[f] = true
	}
	s.before(t, r.machine)
	r.save(t)
	r.out = r.crash(t, s.killed(t, r.machine), n)
	if !r.out.killed && (r.out.code != 0) != s.refused {
		t.Fatalf("left alone: exit code %d, %s", r.out.code, r.out.stdout)
	}
	held := r.held(t)
	for _, a := range held {
		r.after[a.Name] = true
	}
	r.state = r.hintAndAPI(t, subject, held)
	r.noted = r.notes(t)
	if !r.out.killed && s.refused && r.state != nothing {
		t.Errorf("left alone, it was refused and left %s", r.state)
	}
	y.note(r)
	q.play(t, r)
	r.end(t, y)
	return r.out
}

// end deletes what lives and looks at what is left.
func (r *run) end(t *testing.T, y *tally) {
	t.Helper()
	r.release(t)
	left := r.held(t)
	if slices.ContainsFunc(left, r.late) {
		y.late++
		r.mustRun(t, r.gc(t))
		left = r.held(t)
	}
	for _, a := range left {
		if !r.abandoned[a.Spec.ContainerID] || r.noted[a.Name] {
			t.Errorf("%s of %s is left", a.Name, a.Spec.ContainerID)
		}
	}
	y.deserted += len(left)
	r.clear(t, r.neighbour())
	if len(left) > 0 { // to the controller
		r.mu.Lock()
		defer r.mu.Unlock()
		r.left = append(r.left, r.machine)
		return
	}
	r.fill(t)
	if err := os.RemoveAll(r.dir); err != nil {
		t.Error(err)
	}
}

// late reports whether an allocation was made after the kill by the dead process,
// whose request was on its way: nobody else has asked for it. It may have been about to
// write a lost one again.
func (r *run) late(a v1alpha1.IPAllocation) bool {
	return (a.Spec.ContainerID == subject || a.Spec.Restored) && !r.again && !r.after[a.Name] && !r.abandoned[subject]
}

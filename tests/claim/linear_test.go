// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package claim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

var (
	histories  = flag.Int("histories", 5, "how many concurrent histories are checked for linearizability, at least")
	linearSeed = flag.Uint64("linear.seed", 0, "of their random choices; 0 takes a new one")
)

// An address is a register that holds a container or nothing; or it rests, after its
// release by a container: "~" and its name. How long, the model does not say.
type (
	verb    string
	outcome string

	call struct {
		verb      verb
		address   string
		container string // who calls
		held      bool   // of a release: the container was told that it has the address
		rests     bool   // the pool has a cooldown
	}
)

const (
	claims   verb = "claim"
	releases verb = "release"
	reads    verb = "read"

	yes   outcome = "yes"
	no    outcome = "no"    // somebody else has it
	maybe outcome = "maybe" // nobody has learned
)

// register says what each call may make of an address. The output of a read is
// the holder.
var register = porcupine.NondeterministicModel{
	Init: func() []any { return []any{""} },
	Step: func(state, input, output any) []any {
		holder, c := state.(string), input.(call)
		freed := holder
		if holder == c.container {
			freed = ""
			if c.rests {
				freed = "~" + holder
			}
		}
		free := holder == "" || strings.HasPrefix(holder, "~")
		switch {
		case c.verb == reads && (holder == output || free && output == ""),
			c.verb == claims && output == no && holder != "" && holder != c.container:
			return []any{holder}
		case c.verb == claims && output == yes && free:
			return []any{c.container}
		case c.verb == claims && output == maybe && free:
			return []any{holder, c.container}
		case c.verb == claims && output == maybe:
			return []any{holder}
		case c.verb == releases && output == yes && (!c.held || holder == c.container):
			return []any{freed}
		case c.verb == releases && output == maybe:
			return []any{holder, freed}
		}
		return nil
	},
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		by := map[string][]porcupine.Operation{}
		for _, op := range history {
			address := op.Input.(call).address
			by[address] = append(by[address], op)
		}
		var out [][]porcupine.Operation
		for _, ops := range by {
			out = append(out, ops)
		}
		return out
	},
	DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %v", input, output) },
}

// TestRegister keeps the checker from being blind: these are histories of one
// address after the other, by containers a and b.
func TestRegister(t *testing.T) {
	claimed := func(c string, o outcome) porcupine.Operation {
		return porcupine.Operation{Input: call{verb: claims, container: c}, Output: o}
	}
	released := func(c string, held bool) porcupine.Operation {
		return porcupine.Operation{Input: call{verb: releases, container: c, held: held}, Output: yes}
	}
	resting := func(c string) porcupine.Operation {
		return porcupine.Operation{Input: call{verb: releases, container: c, rests: true}, Output: yes}
	}
	read := func(holder string) porcupine.Operation {
		return porcupine.Operation{Input: call{verb: reads}, Output: holder}
	}
	for _, row := range []struct {
		name  string
		legal bool
		ops   []porcupine.Operation
	}{
		{"one after the other", true, []porcupine.Operation{claimed("a", yes), claimed("b", no), released("a", true), claimed("b", yes), read("b")}},
		{"twice", false, []porcupine.Operation{claimed("a", yes), claimed("b", yes)}},
		{"refused though free", false, []porcupine.Operation{claimed("a", no)}},
		{"freed by another", false, []porcupine.Operation{claimed("a", yes), released("b", false), read("")}},
		{"lost though held", false, []porcupine.Operation{claimed("a", yes), read(""), released("a", true)}},
		{"released though lost before", false, []porcupine.Operation{claimed("a", yes), released("a", true), released("a", true)}},
		{"not freed", false, []porcupine.Operation{claimed("a", yes), released("a", true), read("a")}},
		{"refused while it rests, then given", true, []porcupine.Operation{claimed("a", yes), resting("a"), claimed("b", no), claimed("b", yes), read("b")}},
		{"given while it rests, then refused to another", true, []porcupine.Operation{claimed("a", yes), resting("a"), read(""), claimed("b", yes), claimed("c", no)}},
		{"given twice after it has rested", false, []porcupine.Operation{claimed("a", yes), resting("a"), claimed("b", yes), claimed("c", yes)}},
		{"freed by a late release of who had it before", false, []porcupine.Operation{claimed("a", yes), resting("a"), claimed("b", yes), resting("a"), read("")}},
		{"unknown, and it was", true, []porcupine.Operation{claimed("a", maybe), read("a"), released("a", false), read("")}},
		{"unknown, and it was not", true, []porcupine.Operation{claimed("a", maybe), read(""), claimed("b", yes)}},
	} {
		for i := range row.ops {
			row.ops[i].Call, row.ops[i].Return = int64(2*i), int64(2*i+1)
		}
		if got := porcupine.CheckOperations(register.ToModel(), row.ops); got != row.legal {
			t.Errorf("%s: linearizable is %v, want %v", row.name, got, row.legal)
		}
	}
}

// TestLinearizable has plugins on three nodes claim and release a few addresses
// at once, over connections that lose, delay and repeat, and checks every
// history: for each address there is an order of all calls, each within its
// time, in which a claim is granted only of what is free and a release frees
// only one's own.
func TestLinearizable(t *testing.T) {
	if *linearSeed == 0 {
		*linearSeed = rand.Uint64()
	}
	t.Logf("seed %d", *linearSeed)
	total := map[string]int{}
	began := time.Now()
	for i := 0; i < *histories || !soaked(began); i++ {
		h := newHistory(t, i)
		h.play()
		result := porcupine.CheckOperationsTimeout(register.ToModel(), h.operations, 2*time.Minute)
		for _, op := range h.operations {
			total[fmt.Sprintf("%s %s", op.Input.(call).verb, kindOf(op.Output))]++
		}
		switch result {
		case porcupine.Ok:
			total["histories linearizable"]++
		case porcupine.Unknown: // no verdict is none against it
			total["histories undecided"]++
		default:
			t.Fatalf("history %d is not linearizable:\n%s\nwhat the plugins said:\n%s", i, h.illegal(), &h.log)
		}
	}
	t.Log(total)
	if total["histories linearizable"] == 0 || total["claim yes"] == 0 || total["claim no"] == 0 || total["claim maybe"]+total["release maybe"] == 0 {
		t.Errorf("nothing was contended, lost, or decided: %v", total)
	}
}

// kindOf counts all holders as one.
func kindOf(output any) string {
	if o, ok := output.(outcome); ok {
		return string(o)
	}
	return ""
}

// history records calls while they are made.
type history struct {
	t       *testing.T
	number  int
	cluster *cluster
	pools   []string // names
	log     rig.Log
	began   time.Time
	late    sync.WaitGroup // requests that have not arrived

	mu         sync.Mutex
	operations []porcupine.Operation
	ended      map[string]bool // containers that will not call any more
}

// The addresses are node a's block.
var contended = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3"}

// contendedPools are the pools of the histories, in turns. In all but the first, every node
// may be given any of the addresses: in the third, node a has one of them as its block.
var contendedPools = []shape{
	{"p": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 3}},
	{"p": {Subnet: "10.0.0.0/29", Ranges: []string{"10.0.0.1-10.0.0.3"}}},
	{"p": {Subnet: "10.0.0.0/29", PerNodeBlockSize: 1, Overflow: v1alpha1.OverflowSubnet, Ranges: []string{"10.0.0.1-10.0.0.3"}}},
	{"p": {Subnet: "10.0.0.0/29", Ranges: []string{"10.0.0.1-10.0.0.3"}}, "q": {Subnet: "10.0.0.0/24", PerNodeBlockSize: 3, PoolAccess: v1alpha1.PoolAccess{Domain: "p"}}},
	{"p": {Subnet: "10.0.0.0/29", Ranges: []string{"10.0.0.1-10.0.0.3"}, PoolAccess: rests}},
}

// rests reports whether addresses rest after their release.
func (h *history) rests() bool {
	return contendedPools[h.number%len(contendedPools)]["p"].ReleaseCooldown != nil
}

func newHistory(t *testing.T, number int) *history {
	h := &history{t: t, number: number, cluster: emptyCluster(t), began: time.Now(), ended: map[string]bool{}}
	h.pools = contendedPools[number%len(contendedPools)].make(t, h.cluster, nodeNames...)
	return h
}

func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) record(client int, c call, output any, from, to int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.operations = append(h.operations, porcupine.Operation{ClientId: client, Input: c, Output: output, Call: from, Return: to})
}

// forever is the end of what may still happen when nobody waits for it any more.
const forever = int64(time.Hour)

// play has two processes at a time on each node, and one that looks and cleans
// up behind everybody.
func (h *history) play() {
	const processes, containers = 6, 8
	var all sync.WaitGroup
	dirs := map[string]*node{}
	for i := range processes {
		name := nodeNames[i%len(nodeNames)]
		n := newNode(h.t, h.cluster.ns, name)
		n.Log = slog.New(slog.NewTextHandler(&h.log, nil)).With("node", name)
		if first, ok := dirs[name]; ok {
			n.dir = first.dir
		}
		dirs[name] = n
		c := &client{history: h, node: n, id: i, random: rand.New(rand.NewPCG(*linearSeed, uint64(h.number*100+i)))}
		n.wire.next = &badLine{next: n.wire.next, client: c}
		all.Go(func() {
			for j := range containers {
				c.container = fmt.Sprintf("c%d-%d", i, j)
				c.live(h.t.Context())
			}
		})
	}
	done := make(chan struct{})
	var janitor sync.WaitGroup
	janitor.Go(func() { h.cleanUp(processes, done) })
	all.Wait()
	h.late.Wait()
	close(done)
	janitor.Wait()
}

// client is one process after the other on a node.
type client struct {
	*history
	node      *node
	id        int
	container string

	mu       sync.Mutex // requests may be made by several goroutines of a process
	random   *rand.Rand
	repeated string // the last container of which a create is delivered late
}

// live is the life of a container: ADD, and DEL until it succeeds.
func (c *client) live(ctx context.Context) {
	c.node.restart()
	att := hint.Attachment{ContainerID: c.container, Interface: "net1"}
	name := c.pools[c.random.IntN(len(c.pools))]
	req := claim.Request{Attachment: att, Pools: ippool(name), Network: "net",
		Pod: v1alpha1.PodReference{Namespace: "default", Name: c.container, UID: types.UID(c.container)}}
	candidates := contended
	if c.node.Ledger.Node != "a" && (c.number%len(contendedPools) == 0 || name == "q") || c.random.IntN(2) == 0 {
		candidates = contended[c.random.IntN(len(contended)):][:1]
		req.Want.Addresses = []netip.Addr{netip.MustParseAddr(candidates[0])}
	}
	called := c.now()
	add, cancel := context.WithTimeout(ctx, 10*time.Second)
	got, err := c.node.Allocate(add, req)
	cancel()
	answer := maybe
	switch {
	case err == nil:
		answer = yes
		candidates = []string{got[0].Address.String()}
		c.record(c.id, c.call(claims, candidates[0]), yes, called, c.now())
	case asInUse(err) != nil:
		answer = no
		c.record(c.id, c.call(claims, candidates[0]), no, called, c.now())
	case errors.Is(err, claim.ErrExhausted): // of each address at another moment
		answer = no
	default: // and what was claimed may have been given back
		for _, address := range candidates {
			c.record(c.id, c.call(claims, address), maybe, called, c.now())
			c.record(c.id, c.call(releases, address), maybe, called, c.now())
		}
	}
	if answer == yes {
		c.wait(50 * time.Millisecond) // while others want the address
	}
	c.die(ctx, att, candidates, answer)
}

// wait spreads calls over time.
func (c *client) wait(most time.Duration) {
	c.mu.Lock()
	d := time.Duration(c.random.Int64N(int64(most)))
	c.mu.Unlock()
	time.Sleep(d)
}

// die is the DEL of a container whose claim was answered so. One that was refused
// holds nothing: a create of it that comes late is not the node's to take back.
func (c *client) die(ctx context.Context, att hint.Attachment, candidates []string, answer outcome) {
	for {
		called := c.now()
		c.node.restart()
		err := c.node.Release(ctx, att)
		released, to := yes, c.now()
		if c.owed(att) { // some later call on the node carries it out
			released, to = maybe, forever
		}
		if err != nil || answer == no {
			released = maybe
		}
		for _, address := range candidates {
			op := c.call(releases, address)
			op.held = answer == yes
			c.record(c.id, op, released, called, to)
		}
		if c.repeats() { // a create that has arrived late, of whichever address, is ended if the call finds it
			for _, address := range contended {
				c.record(c.id, c.call(releases, address), maybe, called, to)
			}
		}
		if err == nil {
			break
		}
	}
	c.history.mu.Lock()
	defer c.history.mu.Unlock()
	c.ended[c.container] = true
}

func (c *client) call(v verb, address string) call {
	return call{verb: v, address: address, container: c.container, rests: c.rests()}
}

func (c *client) owed(att hint.Attachment) bool {
	releases, whole := c.node.hint().Pending()
	return slices.Contains(whole, att) || slices.ContainsFunc(releases, func(r hint.Release) bool { return r.Due && r.Attachment == att })
}

// badLine is a client's connection: it delays, loses on the way and on the way
// back, and may deliver what it has reported as lost, much later.
type badLine struct {
	next   http.RoundTripper
	client *client
}

func (l *badLine) RoundTrip(req *http.Request) (*http.Response, error) {
	c := l.client
	c.mu.Lock()
	fault := c.random.IntN(16)
	c.mu.Unlock()
	c.wait(20 * time.Millisecond) // how requests overtake each other
	if fault == 0 {
		return nil, errLost
	}
	if fault == 1 && req.Method != http.MethodGet {
		l.deliverLater(req)
		return nil, errLost
	}
	resp, err := l.next.RoundTrip(req)
	if fault == 2 && err == nil {
		_ = resp.Body.Close()
		return nil, errLost
	}
	return resp, err
}

// repeats reports whether a create of the container may arrive late.
func (c *client) repeats() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.repeated == c.container
}

// deliverLater sends a request that the client takes for lost. Its effect is
// recorded as a call of its own.
func (l *badLine) deliverLater(req *http.Request) {
	c, sent, req := l.client, l.client.now(), again(req)
	container := c.container
	if req.Method == http.MethodPost {
		c.mu.Lock()
		c.repeated = container
		c.mu.Unlock()
	}
	c.late.Go(func() {
		c.wait(400 * time.Millisecond) // this is what makes it late
		op := call{verb: releases, container: container, rests: c.rests()}
		if resp, err := l.next.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
		if req.Method == http.MethodPost || req.Header.Get("Content-Type") == string(types.MergePatchType) { // a takeover
			op.verb = claims
		}
		for _, op.address = range contended { // whichever it was for
			c.record(c.id, op, maybe, sent, c.now())
		}
	})
}

// cleanUp looks at the addresses, and takes back what a container holds that has
// ended: a create that came late. At the end it looks once more.
func (h *history) cleanUp(id int, done <-chan struct{}) {
	api := h.cluster.client.IPAllocations(h.cluster.ns)
	for last := false; ; {
		select {
		case <-done:
			last = true
		case <-time.After(20 * time.Millisecond): // how often it looks
		}
		h.mu.Lock()
		ended := maps.Clone(h.ended)
		h.mu.Unlock()
		for _, address := range contended {
			called := h.now()
			a, err := api.Get(h.t.Context(), "p."+address, metav1.GetOptions{})
			if err != nil && !apierrors.IsNotFound(err) {
				h.t.Error(err)
				return
			}
			holder := ""
			if err == nil && a.Spec.Held() {
				holder = a.Spec.ContainerID
			}
			h.record(id, call{verb: reads, address: address}, holder, called, h.now())
			if !ended[holder] {
				continue
			}
			called = h.now()
			err = api.Delete(h.t.Context(), a.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &a.UID, ResourceVersion: &a.ResourceVersion}})
			if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
				h.t.Error(err)
				return
			}
			h.record(id, call{verb: releases, address: address, container: holder}, yes, called, h.now())
		}
		if last {
			return
		}
	}
}

// illegal are the calls of the first address for which there is no order, by the
// times at which they began.
func (h *history) illegal() string {
	for _, ops := range register.Partition(h.operations) {
		if porcupine.CheckOperationsTimeout(register.ToModel(), ops, 2*time.Minute) != porcupine.Illegal {
			continue
		}
		slices.SortFunc(ops, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		var b strings.Builder
		for _, op := range ops {
			fmt.Fprintf(&b, "%10v %10v  %s\n", time.Duration(op.Call).Round(time.Microsecond), time.Duration(op.Return).Round(time.Microsecond), register.DescribeOperation(op.Input, op.Output))
		}
		return b.String()
	}
	return ""
}

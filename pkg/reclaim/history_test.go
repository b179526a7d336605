// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// history is what happens to the pods of one node, as the kubelet, the authors of
// pods, an operator and the network have it, and what the API knows of it.
type history struct {
	*rand.Rand

	log  []string
	now  time.Time     // by the API server's clock
	skew time.Duration // of the node's clock
	next int

	noUID bool // the runtime gives none
	late  bool // creates may come late; else the node's clock may be set back: not both at once

	node    *Node // in the API
	machine bool  // is on
	renewed bool  // the Node object was deleted and made again while the machine was on

	api         map[string]*Pod // by name
	pods        []*workload     // what the kubelet runs
	sandboxes   map[string]*sandbox
	allocations []*v1alpha1.IPAllocation
	creates     []*v1alpha1.IPAllocation // under way
}

type workload struct {
	name    string
	uid     types.UID
	static  bool
	sandbox string // the latest
}

type sandbox struct {
	running bool
	ending  bool // the kubelet runs it down: its pod is gone
	static  bool
}

func (h *history) say(format string, args ...any) {
	h.log = append(h.log, fmt.Sprintf(format, args...))
}

func (h *history) odds(n int) bool { return h.IntN(n) == 0 }

func (h *history) id() string { h.next++; return fmt.Sprint("c", h.next) }

func (h *history) apiUID() types.UID {
	h.next++
	return types.UID(fmt.Sprintf("7d0c9a3e-1111-4222-8333-%012x", h.next))
}

func (h *history) hash() types.UID { h.next++; return types.UID(fmt.Sprintf("%032x", h.next)) }

// newPod is a pod of the API that is bound to the node.
func (h *history) newPod() {
	name := fmt.Sprint("pod", h.IntN(2))
	if h.api[name] != nil || !h.machine {
		return
	}
	p := &Pod{UID: h.apiUID(), Created: metav1.NewTime(h.now.Truncate(time.Second)), Placed: true, Node: "node"}
	h.api[name] = p
	w := &workload{name: name, uid: p.UID}
	h.pods = append(h.pods, w)
	h.say("pod %s %s", name, p.UID)
	h.add(w)
}

// newStatic is a static pod, or another version of it; sometimes it has no mirror.
func (h *history) newStatic() {
	if !h.machine {
		return
	}
	for _, w := range slices.Clone(h.pods) {
		if w.static {
			h.stop(w)
			h.pods = slices.DeleteFunc(h.pods, func(o *workload) bool { return o == w })
		}
	}
	w := &workload{name: "static", uid: h.hash(), static: true}
	h.pods = append(h.pods, w)
	h.say("static pod %s", w.uid)
	h.mirror(w)
	h.add(w)
}

// mirror is what a kubelet does about the mirror: it deletes what is none, and
// makes its own; both may fail where a runtime tells UIDs.
func (h *history) mirror(w *workload) {
	if p := h.api["static"]; p != nil && p.Mirrors != w.uid {
		if p.Deleting = true; h.odds(3) {
			return // a finalizer keeps it
		}
		delete(h.api, "static")
	}
	if h.noUID || !h.odds(3) {
		h.api["static"] = &Pod{UID: h.apiUID(), Created: metav1.NewTime(h.now.Truncate(time.Second)), Mirrors: w.uid, Placed: true, Node: "node"}
		h.say("mirror of %s", w.uid)
	}
}

// add starts a new sandbox of a pod: the kubelet stops the one before.
func (h *history) add(w *workload) {
	h.stop(w)
	w.sandbox = h.id()
	s := &sandbox{running: true, static: w.static}
	h.sandboxes[w.sandbox] = s
	for i := range 1 + h.IntN(2) {
		a := &v1alpha1.IPAllocation{Spec: v1alpha1.IPAllocationSpec{
			NodeName: "node", ContainerID: w.sandbox, InterfaceName: fmt.Sprint("net", i),
			PodRef:       v1alpha1.PodReference{Namespace: "default", Name: w.name, UID: w.uid},
			AddStartedAt: &metav1.MicroTime{Time: h.now.Add(h.skew)},
		}}
		if h.noUID {
			a.Spec.PodRef.UID = ""
		}
		if h.late && h.odds(6) { // the ADD fails, and so does the sandbox
			h.say("ADD %s/%d of %s is under way", w.sandbox, i, w.name)
			h.creates = append(h.creates, a)
			s.running = false
			return
		}
		h.create(a)
		h.pass(2 * time.Second)
	}
}

func (h *history) create(a *v1alpha1.IPAllocation) {
	a.CreationTimestamp = metav1.NewTime(h.now.Truncate(time.Second))
	a.Name = fmt.Sprint(a.Spec.ContainerID, ".", a.Spec.InterfaceName)
	h.allocations = append(h.allocations, a)
	h.say("created %s of %s at %v, started %v", a.Name, a.Spec.PodRef, a.CreationTimestamp.Unix(), a.Spec.AddStartedAt.Unix())
}

// stop ends a pod's sandbox; its DEL may be lost.
func (h *history) stop(w *workload) {
	s := h.sandboxes[w.sandbox]
	if s == nil {
		return
	}
	s.running = false
	lost := h.odds(2)
	h.say("stopped %s, DEL lost: %v", w.sandbox, lost)
	if !lost {
		h.allocations = slices.DeleteFunc(h.allocations, func(a *v1alpha1.IPAllocation) bool { return a.Spec.ContainerID == w.sandbox })
	}
	h.pass(3 * time.Second)
}

func (h *history) pass(most time.Duration) { h.now = h.now.Add(time.Duration(h.Int64N(int64(most)))) }

// any is some pod of the kubelet's, nil if it has none or is off.
func (h *history) any() *workload {
	if len(h.pods) == 0 || !h.machine {
		return nil
	}
	return h.pods[h.IntN(len(h.pods))]
}

func (h *history) drop(w *workload) {
	h.pods = slices.DeleteFunc(h.pods, func(o *workload) bool { return o == w })
}

// step is one thing that happens.
func (h *history) step() {
	w := h.any()
	switch what := h.IntN(14); {
	case what == 0:
		h.newPod()
	case what == 1:
		h.newStatic()
	case what == 2 && w != nil:
		h.add(w)
	case what == 3 && w != nil && !w.static: // deleted as it should be
		h.stop(w)
		h.drop(w)
		delete(h.api, w.name)
	case what == 4 && w != nil && !w.static: // by force: the container has its time
		h.say("pod %s deleted by force", w.name)
		h.drop(w)
		delete(h.api, w.name)
		if s := h.sandboxes[w.sandbox]; s != nil {
			s.ending = true
		}
	case what == 5 && !h.noUID && h.api["static"] == nil: // which would keep away the mirror
		h.api["static"] = h.madeUp()
	case what == 6 && h.machine: // reboot, without any DEL
		h.say("reboot")
		h.off()
		h.machine = true
		for _, w := range h.pods {
			h.add(w)
		}
	case what == 7:
		h.changeNode()
	case what == 8 && len(h.creates) > 0:
		h.create(h.creates[0])
		h.creates = h.creates[1:]
	case what == 9 && !h.late:
		h.skew += time.Duration(h.Int64N(int64(20*time.Second))) - 10*time.Second
		h.say("clock of the node is off by %v", h.skew)
	case what == 10:
		for _, s := range h.sandboxes {
			if s.ending {
				s.running = false
			}
		}
	default:
		h.pass(20 * time.Second)
	}
}

// madeUp is a pod with the annotations of a mirror, which may say anything.
func (h *history) madeUp() *Pod {
	p := &Pod{UID: h.apiUID(), Created: metav1.NewTime(h.now.Truncate(time.Second)), Mirrors: h.hash(), Placed: true}
	for _, w := range h.pods {
		if w.static && h.odds(2) {
			p.Mirrors = w.uid
		}
	}
	p.Node = []string{"", "node", "other"}[h.IntN(3)]
	h.say("a mirror of %s is made up on %q", p.Mirrors, p.Node)
	return p
}

func (h *history) off() {
	h.machine = false
	for _, s := range h.sandboxes {
		s.running = false
	}
}

// changeNode changes what is known of the node. An operator deletes a Node, or
// taints it, if the machine is off; or deletes it by mistake, and it comes back.
func (h *history) changeNode() {
	made := metav1.NewTime(h.now.Truncate(time.Second))
	switch {
	case !h.machine && h.odds(2):
		h.node = nil
	case !h.machine && h.node != nil && h.odds(2):
		h.node.State = OutOfService
	case !h.machine: // it comes back
		h.node, h.machine = &Node{Created: made}, true
		for _, w := range h.pods {
			h.add(w)
		}
	case h.odds(4):
		h.off()
		h.node.State = Unreachable
	case h.odds(3):
		h.node, h.renewed = &Node{Created: made}, true
	default:
		h.node.State = NodeState(h.IntN(3)) // a partition, a runtime that is away
	}
	h.say("machine %v, node %+v", h.machine, h.node)
}

// wrong says which verdict frees what may answer, "" if none does.
func (h *history) wrong() string {
	for _, a := range h.allocations {
		e := Evidence{Node: h.node, Others: h.allocations}
		if p := h.api[a.Spec.PodRef.Name]; p != nil {
			copied := *p
			if h.odds(2) { // not asked yet
				copied.Placed, copied.Node = false, ""
			}
			e.Pod = &copied
		}
		v, s := Decide(a, e), h.sandboxes[a.Spec.ContainerID]
		if v.Action != Candidate || !s.running {
			continue
		}
		// A node that is ready has the longer grace to run down what it has to, and
		// to make the mirrors of its static pods when it has registered again.
		known := s.ending || s.static && h.renewed
		if v.Prompt || !known || h.node.State != Answers {
			return fmt.Sprintf("%s: %+v, and its container runs", a.Name, v)
		}
	}
	return ""
}

// Whatever happens, no address is freed while its container may run, but for one
// that its kubelet is running down, which has the longer grace to do it.
func TestNeverFreedWhileItRuns(t *testing.T) {
	candidates := 0
	for seed := range uint64(1000) {
		h := &history{
			Rand: rand.New(rand.NewPCG(seed, 0)), now: claimed, machine: true, node: &Node{Created: metav1.NewTime(before)},
			api: map[string]*Pod{}, sandboxes: map[string]*sandbox{},
		}
		h.noUID, h.late = h.odds(3), h.odds(2)
		for range 60 {
			h.step()
			if wrong := h.wrong(); wrong != "" {
				t.Fatalf("seed %d, no UID %v: %s\n%s", seed, h.noUID, wrong, strings.Join(h.log, "\n"))
			}
		}
		for _, a := range h.allocations {
			if Decide(a, Evidence{Node: h.node, Others: h.allocations, Pod: h.api[a.Spec.PodRef.Name]}).Action == Candidate {
				candidates++
			}
		}
	}
	if candidates < 500 {
		t.Errorf("only %d leak candidates: the histories show little", candidates)
	}
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package reclaim

import (
	"strings"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
)

// Action is what is to be done about an allocation.
//
//  1. It has no attachment: a reservation                      Keep
//  2. A later sandbox of the same pod is on the node: the
//     kubelet stops a sandbox before it makes the next         Candidate, prompt
//  3. Its pod is in the API and on its node                    Keep
//     another sandbox of the pod is there, and which of the
//     two is later cannot be told                              Hold
//     the pod has ended (Succeeded, Failed), and the node is
//     gone or out of service                                   Candidate, prompt
//     the pod has ended, and a machine moves from it           Candidate
//
// Otherwise its pod is not there. That alone does not prove that nothing answers
// on the address: somebody may have deleted the pod by force, and the kubelet is
// still stopping it. So it depends on the node:
//
//  4. The node is gone or out of service                       Candidate, prompt
//  5. The node does not answer, or is not ready, so that it
//     may be unable to stop the container                      Hold
//  6. The pod is a static one, which needs no object in the
//     API, and the node is the one of then                     Hold
//     unless a later static pod of the name has a sandbox      Candidate
//  7. The node is ready, and had the time to say DEL itself    Candidate
//
// And whatever would be a candidate
//
//  8. in a pool whose owner has disabled reclaim               Hold
//
// An allocation that is released is no leak: no container uses it.
//
//  9. It rests, and the cooldown is not over                   Keep
//     the cooldown is over                                     Delete
//     an owner keeps it                                        Keep
//     the owner is gone, or keeps it no more; so also of 1     Delete
//     a workload's pod holds another one; also of 1            Delete
//     a workload reserved it, and no container took it; of 1   Delete
//
// What a machine moves to (spec.next) is decided about beside its holder: see DecideNext.
//
//  10. The holder is a candidate: next takes its place         Candidate
//  11. The holder's pod is there, and the next one is not,
//     or has ended, or ends and its node does not answer:
//     next leaves                                             Candidate
//     anything else                                           Keep
//
// A leak candidate is freed if it was one twice, a grace period apart, is older than
// that, and the API server confirms everything that the verdict rests on. The grace
// period of a prompt one is short. Nothing here rests on what the author of a pod can
// write: an annotation, a name or a finalizer may keep an address while a pod object
// is on its node, and frees none.
type Action int

// The actions.
const (
	Keep Action = iota
	Hold
	Candidate
	// Delete is for what nobody holds and nothing keeps. The delete carries the resource
	// version, so that needs no second look.
	Delete
)

// Verdict is what is to be done about an allocation, and why.
type Verdict struct {
	Action Action
	// Reason is the value of a metric's label, one of those below.
	Reason string
	// Message says the same in a sentence, for logs and events.
	Message string
	// Prompt is set if the container is known not to run, or an operator says so: a
	// short grace period is enough.
	Prompt bool
}

// The reasons are values of a metric's label: docs/metrics.md.
const (
	inUse = "in_use"
	rests = "rests"
	kept  = "kept"

	cooldownOver = "cooldown_over"
	ownerGone    = "owner_gone"
	superseded   = "superseded"
	untaken      = "untaken"

	podEnded        = "pod_ended"
	podElsewhere    = "pod_elsewhere"
	podGone         = "pod_gone"
	podInvalid      = "pod_invalid"
	podReplaced     = "pod_replaced"
	sandboxReplaced = "sandbox_replaced"

	nodeNotReady    = "node_not_ready"
	nodeUnreachable = "node_unreachable"
	podUnknown      = "pod_unknown"
	reclaimDisabled = "reclaim_disabled"
	sandboxUnclear  = "sandbox_unclear"
)

// The reasons of each action, sorted.
var (
	HoldReasons      = []string{nodeNotReady, nodeUnreachable, podUnknown, reclaimDisabled, sandboxUnclear}
	DeleteReasons    = []string{cooldownOver, ownerGone, superseded, untaken}
	CandidateReasons = []string{podElsewhere, podEnded, podGone, podInvalid, podReplaced, sandboxReplaced}
)

// Until says what ends a hold, in words for an operator; "" for other reasons. It advises no
// delete where a machine moves: its pod on the other node has the address as well.
func Until(a *v1alpha1.IPAllocation, reason string) string {
	out := until(reason)
	if a.Spec.Next != nil {
		out, _, _ = strings.Cut(out, "; if you know")
	}
	return out
}

func until(reason string) string {
	const node = "the node is ready, its Node object is deleted, or it has the taint node.kubernetes.io/out-of-service"
	switch reason {
	case nodeNotReady, nodeUnreachable:
		return node
	case podUnknown:
		return "its DEL comes, another static pod of the name starts on the node, the Node object is deleted, " +
			"or the node has the taint node.kubernetes.io/out-of-service; if you know that the container is gone: kubectl delete ipa NAME"
	case reclaimDisabled:
		return "the annotation " + v1alpha1.AnnotationReclaim + " is removed from the pool; if you know that the container is gone: kubectl delete ipa NAME"
	case sandboxUnclear:
		return "the pod ends, or has yet another sandbox; if you know that the container is gone: kubectl delete ipa NAME"
	}
	return ""
}

// Decide returns the verdict on an allocation.
func Decide(a *v1alpha1.IPAllocation, e Evidence) Verdict {
	if !a.Spec.Held() {
		return notHeld(a, e) // 1, 9
	}
	v := decide(a, e)
	if v.Action == Candidate && e.OptOut != "" { // 8
		return Verdict{Action: Hold, Reason: reclaimDisabled, Message: v.Message + ", but the pool has " + e.OptOut}
	}
	return v
}

func notHeld(a *v1alpha1.IPAllocation, e Evidence) Verdict {
	switch owner := a.Spec.Owner; {
	case owner != nil && e.OwnerGone:
		return Verdict{Action: Delete, Reason: ownerGone, Message: owner.Kind + " " + owner.Name + " keeps it no more"}
	case e.Instead(a) != nil:
		return Verdict{Action: Delete, Reason: superseded, Message: owner.Kind + " " + owner.Name + " keeps " + e.Instead(a).Spec.Address + " for the pod"}
	case owner != nil && e.Untaken && a.Spec.IsReserved():
		return Verdict{Action: Delete, Reason: untaken, Message: "no container has taken what was reserved for " + owner.Kind + " " + owner.Name}
	case !a.Spec.Released() && owner != nil:
		return Verdict{Action: Keep, Reason: inUse, Message: "reserved by " + owner.Kind + " " + owner.Name}
	case !a.Spec.Released():
		return Verdict{Action: Keep, Reason: inUse, Message: "reservation"}
	case owner != nil:
		return Verdict{Action: Keep, Reason: kept, Message: "kept for " + owner.Kind + " " + owner.Name}
	case e.Rested:
		return Verdict{Action: Delete, Reason: cooldownOver, Message: "cooldown is over"}
	}
	return Verdict{Action: Keep, Reason: rests, Message: "rests after its release"}
}

func decide(a *v1alpha1.IPAllocation, e Evidence) Verdict {
	other, order := e.otherSandbox(a)
	if order == replaced { // 2
		return Verdict{
			Action: Candidate, Reason: sandboxReplaced, Message: "pod has a later sandbox, " + other.Spec.ContainerID,
			// Without a UID it may be the sandbox of an earlier pod of the name.
			Prompt: a.Spec.PodRef.UID != "" && other.Spec.PodRef.UID != "",
		}
	}
	own := e.Pod.own(a)
	if own == "" || e.Pod.elsewhere(a) {
		return withoutPod(a, e)
	}
	if e.Pod.Ended && e.Node.dead() { // 3
		return Verdict{Action: Candidate, Reason: podEnded, Message: "pod has ended, and its node is " + e.Node.state(), Prompt: true}
	}
	if e.Pod.Ended && a.Spec.Next != nil { // 3: nothing is freed by that
		return Verdict{Action: Candidate, Reason: podEnded, Message: "pod has ended, and a machine has moved from it"}
	}
	if order == unclear { // 3
		return Verdict{Action: Hold, Reason: sandboxUnclear, Message: "pod has another sandbox, " + other.Spec.ContainerID + ", and which is the later cannot be told"}
	}
	return Verdict{Action: Keep, Reason: inUse, Message: own} // 3
}

// DecideNext decides about the next attachment of an allocation, which leaves if it is a
// candidate. The evidence is that for the holder, and for the allocation as it would be
// (IPAllocation.Promoted). Nothing is freed by that, since the holder keeps the address. So its
// pod has to be there, but the node of the next one need not answer: a failed migration must
// not keep the machine from the next.
func DecideNext(a *v1alpha1.IPAllocation, holder, next Evidence) Verdict {
	promoted := a.Promoted()
	if holder.Pod.own(a) == "" || holder.Pod.elsewhere(a) || holder.Pod.Deleting || holder.Pod.Ended { // 10, or soon
		return Verdict{Action: Keep, Reason: inUse, Message: "takes the place of the holder when that has ended"}
	}
	v := decide(promoted, next)
	switch v.Reason {
	case nodeUnreachable, nodeNotReady:
		v.Action = Candidate
		v.Reason, v.Message = missing(promoted, next.Pod)
	case inUse:
		if answers := !next.Node.dead() && next.Node.State == Answers; next.Pod.Ended || next.Pod.Deleting && !answers {
			v = Verdict{Action: Candidate, Reason: podEnded, Message: "pod ends", Prompt: next.Node.dead()}
		}
	}
	if v.Action == Candidate && next.OptOut != "" { // 8
		return Verdict{Action: Hold, Reason: reclaimDisabled, Message: v.Message + ", but the pool has " + next.OptOut}
	}
	return v
}

// withoutPod decides about an allocation whose pod is not on its node.
func withoutPod(a *v1alpha1.IPAllocation, e Evidence) Verdict {
	reason, message := missing(a, e.Pod)
	candidate := Verdict{Action: Candidate, Reason: reason, Message: message, Prompt: e.Node.dead()}
	switch {
	case e.Node.dead(): // 4
		return candidate
	case e.Node.State == Unreachable: // 5
		return Verdict{Action: Hold, Reason: nodeUnreachable, Message: message + ", but its node does not answer"}
	case e.Node.State == NotReady: // 5
		return Verdict{Action: Hold, Reason: nodeNotReady, Message: message + ", but its node is not ready and may be unable to stop the container"}
	case !static(a.Spec.PodRef.UID) || e.Node.youngerThan(a) || !Possible(a.Spec.PodRef): // 7
		return candidate
	}
	if next := e.nextStatic(a); next != nil { // 6
		candidate.Reason, candidate.Message = podReplaced, "another static pod of the name has a later sandbox, "+next.Spec.ContainerID
		return candidate
	}
	return Verdict{Action: Hold, Reason: podUnknown, Message: message + ", but it is a static pod, which may run without an object in the API"} // 6
}

// missing says in what way the pod of an allocation is not there.
func missing(a *v1alpha1.IPAllocation, pod *Pod) (reason, message string) {
	uid := a.Spec.PodRef.UID
	switch {
	case !Possible(a.Spec.PodRef):
		return podInvalid, "no pod can have this name and namespace"
	case pod.own(a) != "":
		return podElsewhere, "pod is not on this node"
	case uid != "" && !fromAPI(uid) && !static(uid):
		return podInvalid, "no pod can have this UID"
	case pod == nil:
		return podGone, "pod is gone"
	case uid == "":
		return podReplaced, "pod of the name was created later"
	}
	return podReplaced, "pod of the name has another UID"
}

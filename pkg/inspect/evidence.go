// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"context"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// The states of a held address, as reclaim decides.
const (
	stateInUse    = "InUse"
	stateReserved = "Reserved"
	stateCooling  = "Cooling" // it was released, and rests
	stateKept     = "Kept"    // it was released, and an owner keeps it
	stateLeaked   = "LooksLeaked"
	stateHeld     = "Held" // it may be leaked, and is not reclaimed
	stateUnknown  = "Unknown"
)

// judgement is what reclaim says about an allocation.
type judgement struct {
	State string `json:"state"`
	// Reason is one of those of docs/metrics.md, "in_use" where nothing is wrong.
	Reason string `json:"reason,omitempty"`
	// Message says why.
	Message string `json:"message,omitempty"`
	// Until says what ends it, if it is not in use.
	Until string `json:"until,omitempty"`
	// Since is when it cannot have begun before.
	Since metav1.Time `json:"since"`

	// wornBy is who has the address by its network-status, if it is of no pod that is known; nil
	// if that is nobody, or was not looked at.
	wornBy *wearer
}

func verdictOn(a *v1alpha1.IPAllocation, e reclaim.Evidence, node *corev1.Node) judgement {
	reusable := a.Spec.ReusableAt()
	e.Rested = !reusable.IsZero() && !time.Now().Before(reusable)
	d := reclaim.Decide(a, e)
	v := judgement{State: stateInUse, Reason: d.Reason, Message: d.Message, Since: a.CreationTimestamp}
	switch {
	case a.Spec.ContainerID == "":
		v.State = stateReserved
	case a.Spec.Rests():
		v.State, v.Since, v.Until = stateCooling, *a.Spec.ReleasedAt, "the controller deletes it after "+reusable.UTC().Format(time.RFC3339)
	case a.Spec.Released():
		v.State, v.Since, v.Until = stateKept, *a.Spec.ReleasedAt, "a container of its owner takes it, or the owner is gone"
	case d.Action == reclaim.Hold:
		v.State, v.Until = stateHeld, strings.ReplaceAll(reclaim.Until(a, d.Reason), "kubectl delete ipa NAME", releaseCommand(a)+" --force")
	case d.Action == reclaim.Candidate:
		v.State, v.Until = stateLeaked, "the controller reclaims it, after its --reclaim-grace, or --reclaim-grace-ready-node if the node is ready"
	}
	if next := a.Spec.Next; next != nil {
		v.Message += fmt.Sprintf("; a machine moves to pod %s on node %s", podKey(next.PodRef), next.NodeName)
		if v.State == stateLeaked {
			v.Until = "the controller gives its place to that pod"
		}
	}
	if v.State == stateHeld || v.State == stateLeaked {
		v.Since = latest(v.Since, began(a, e, node))
	}
	return v
}

// began returns when something happened without which the verdict would be another one;
// zero if the API server does not say when.
func began(a *v1alpha1.IPAllocation, e reclaim.Evidence, node *corev1.Node) metav1.Time {
	if later := e.LaterSandbox(a); later != nil {
		return later.CreationTimestamp
	}
	if e.Node != nil && (e.Node.State == reclaim.Unreachable || e.Node.State == reclaim.NotReady) {
		for _, condition := range readiness(node) {
			return condition.LastTransitionTime
		}
	}
	return metav1.Time{}
}

func latest(a, b metav1.Time) metav1.Time {
	if a.Before(&b) {
		return b
	}
	return a
}

// releaseCommand frees one allocation.
func releaseCommand(a *v1alpha1.IPAllocation) string {
	return fmt.Sprintf("kubectl ipam release -n %s %s", a.Namespace, a.Name)
}

// freeing says how an address becomes free. Where a machine moves, nobody should delete what it
// moves to, or release what it has there.
func freeing(a *v1alpha1.IPAllocation, v judgement) string {
	release := releaseCommand(a)
	if a.Spec.Next != nil {
		switch v.State {
		case stateHeld:
			return "wait until " + v.Until
		case stateLeaked:
			return "wait: " + v.Until
		default:
			return "wait until the machine has moved, or ask for another address"
		}
	}
	if w := v.wornBy; w != nil {
		return w.says() + ", so do not release it, but start that pod again: " + w.end()
	}
	switch v.State {
	case stateInUse:
		return "ask for another address, or end the pod that has it: " + deletePod(podKey(a.Spec.PodRef))
	case stateLeaked:
		return "wait: " + v.Until + "; or at once: " + release
	case stateHeld:
		if strings.Contains(v.Until, release) {
			return "wait until " + v.Until
		}
		return "wait until " + v.Until + "; if you know that the container is gone: " + release + " --force"
	case stateCooling:
		return "wait: " + v.Until + "; or at once: " + release
	case stateKept, stateReserved:
		if reservation := reservationOf(a); reservation != "" {
			return "ask for another address, or take this one out of the reservation: kubectl edit ipr -n " + a.Namespace + " " + reservation
		}
		if v.State == stateKept || a.Spec.IsSticky() {
			return "ask for another address; or, if what it is kept for may get another one: " + release + " --force"
		}
		return "ask for another address; or, if it need not be reserved any more: " + release
	}
	return "ask for another address, or see who has this one: kubectl ipam who " + a.Spec.Address
}

// reservationOf returns the name of the IPReservation that keeps an address, in the namespace
// of the allocation; "" if none does.
func reservationOf(a *v1alpha1.IPAllocation) string {
	if o := a.Spec.Owner; o != nil && o.Kind == v1alpha1.KindIPReservation && o.APIGroup == v1alpha1.GroupVersion.Group {
		return o.Name
	}
	return ""
}

// verdict decides about an allocation by the record.
func (r *record) verdict(s *site, a *v1alpha1.IPAllocation) judgement {
	v := verdictOn(a, r.evidence(s, a), r.nodes[a.Spec.NodeName])
	if promoted := a.Promoted(); promoted != nil {
		v.leaves(reclaim.DecideNext(a, r.evidence(s, a), r.evidence(s, promoted)))
	}
	return v
}

func (r *record) evidence(s *site, a *v1alpha1.IPAllocation) reclaim.Evidence {
	e := reclaim.Evidence{Others: s.byPod[podKey(a.Spec.PodRef)], OptOut: optOut(s.inDomain(a.DomainOf()))}
	if p := r.pods[podKey(a.Spec.PodRef)]; p != nil {
		e.Pod = &p.Pod
	}
	e.Node = nodeEvidence(r.nodes[a.Spec.NodeName])
	return e
}

// leaves adds the verdict on what a machine moves to, if that has ended.
func (v *judgement) leaves(next reclaim.Verdict) {
	if next.Action == reclaim.Candidate {
		v.Message += " (" + next.Message + ": the controller ends the move)"
	}
}

func optOut(pools []*pool.Object) string {
	for _, p := range pools {
		if out := reclaim.OptOutOf(p.Meta.Annotations); out != "" {
			return out
		}
	}
	return ""
}

// nodeEvidence returns nil where there is no node.
func nodeEvidence(n *corev1.Node) *reclaim.Node {
	if n == nil {
		return nil
	}
	ready := ""
	for _, condition := range readiness(n) {
		ready = string(condition.Status)
	}
	var taints []string
	for _, t := range n.Spec.Taints {
		taints = append(taints, t.Key)
	}
	return &reclaim.Node{Created: n.CreationTimestamp, State: reclaim.StateOf(ready, taints)}
}

// readiness returns the condition Ready of a node, if it has one.
func readiness(n *corev1.Node) []corev1.NodeCondition {
	for _, condition := range n.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return []corev1.NodeCondition{condition}
		}
	}
	return nil
}

// live decides about single allocations by asking for what the verdict rests on.
type live struct {
	*Cluster

	pools  []*pool.Object
	pods   map[string]*pod
	nodes  map[string]*corev1.Node
	others map[string][]*v1alpha1.IPAllocation // by the pod that they name
}

func (c *Cluster) live(pools []*pool.Object) *live {
	return &live{Cluster: c, pools: pools, pods: map[string]*pod{}, nodes: map[string]*corev1.Node{}, others: map[string][]*v1alpha1.IPAllocation{}}
}

func (l *live) verdict(ctx context.Context, a *v1alpha1.IPAllocation) (judgement, error) {
	e, node, err := l.evidence(ctx, a)
	if err != nil {
		return judgement{}, err
	}
	v := verdictOn(a, e, node)
	if promoted := a.Promoted(); promoted != nil {
		next, _, err := l.evidence(ctx, promoted)
		if err != nil {
			return judgement{}, err
		}
		v.leaves(reclaim.DecideNext(a, e, next))
	}
	return v, nil
}

func (l *live) evidence(ctx context.Context, a *v1alpha1.IPAllocation) (reclaim.Evidence, *corev1.Node, error) {
	p, err := l.pod(ctx, a.Spec.PodRef)
	if err != nil {
		return reclaim.Evidence{}, nil, err
	}
	node, err := l.node(ctx, a.Spec.NodeName)
	if err != nil {
		return reclaim.Evidence{}, nil, err
	}
	e := reclaim.Evidence{Node: nodeEvidence(node)}
	if p != nil {
		e.Pod = &p.Pod
	}
	all, err := l.ofPod(ctx, a.Spec.PodRef)
	for _, o := range all {
		if o.Namespace == a.Namespace {
			e.Others = append(e.Others, o)
		}
	}
	var domain []*pool.Object
	for _, p := range l.pools {
		if p.Domain == a.DomainOf() && p.Meta.Namespace == a.Namespace {
			domain = append(domain, p)
		}
	}
	e.OptOut = optOut(domain)
	return e, node, err
}

// tell is verdict for whoever may not see pods or nodes: it says so.
func (l *live) tell(ctx context.Context, a *v1alpha1.IPAllocation) judgement {
	v, err := l.verdict(ctx, a)
	if err != nil {
		return judgement{State: stateUnknown, Message: err.Error(), Since: a.CreationTimestamp}
	}
	return v
}

// wornBy sets who has the address of an allocation that looks leaked or may be. Any pod may: so
// all are looked at.
func (l *live) wornBy(ctx context.Context, a *v1alpha1.IPAllocation, v *judgement) error {
	if v.State != stateLeaked && v.State != stateHeld {
		return nil
	}
	k := &checking{record: newRecord()}
	if err := l.readPods(ctx, k.record.pods); err != nil {
		return err
	}
	for key, p := range k.record.pods {
		switch {
		case !strings.Contains(p.status, a.Spec.Address): // most of them
			delete(k.record.pods, key)
		case p.Deleting:
			n, err := l.node(ctx, p.Node)
			if err != nil {
				return err
			}
			if n != nil {
				k.nodes[p.Node] = n
			}
		}
	}
	if err := l.allocations(ctx, fields.Set{fieldAddress: a.Spec.Address}, func(o *v1alpha1.IPAllocation) { k.at(o.Namespace).add(o) }); err != nil {
		return err
	}
	k.index()
	v.wornBy = k.wornBy(a)
	return nil
}

// ofPod returns the allocations that name a pod.
func (l *live) ofPod(ctx context.Context, ref v1alpha1.PodReference) ([]*v1alpha1.IPAllocation, error) {
	if known, found := l.others[podKey(ref)]; found {
		return known, nil
	}
	var all []*v1alpha1.IPAllocation
	err := l.allocations(ctx, fields.Set{fieldPodNamespace: ref.Namespace, fieldPod: ref.Name}, func(o *v1alpha1.IPAllocation) { all = append(all, o) })
	if err == nil {
		l.others[podKey(ref)] = all
	}
	return all, err
}

func (l *live) pod(ctx context.Context, ref v1alpha1.PodReference) (*pod, error) {
	if known, found := l.pods[podKey(ref)]; found {
		return known, nil
	}
	if !reclaim.Possible(ref) { // the API server would refuse the question
		return nil, nil
	}
	p, err := ledger.Existing(l.kube.CoreV1().Pods(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{}))
	if err != nil {
		return nil, fmt.Errorf("reading pod %s: %w", podKey(ref), err)
	}
	if l.pods[podKey(ref)] = nil; p != nil {
		l.pods[podKey(ref)] = podOf(p)
	}
	return l.pods[podKey(ref)], nil
}

func (l *live) node(ctx context.Context, name string) (*corev1.Node, error) {
	if known, found := l.nodes[name]; found || len(validation.IsDNS1123Subdomain(name)) > 0 {
		return known, nil
	}
	n, err := ledger.Existing(l.kube.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{}))
	if err != nil {
		return nil, fmt.Errorf("reading node %s: %w", name, err)
	}
	l.nodes[name] = n
	return n, nil
}

// refused reports whether whoever asks may not.
func refused(err error) bool { return apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) }

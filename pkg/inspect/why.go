// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/reclaim"
)

// The links of the chain from a pod to its address, in their order.
const (
	linkPod        = "Pod"
	linkAnnotation = "Annotation"
	linkNetwork    = "Network" // the NetworkAttachmentDefinition
	linkPool       = "Pool"
	linkAccess     = "Access" // who may use the pool, and what may be asked for
	linkBlock      = "Block"
	linkAllocation = "Allocation"
	linkStatus     = "NetworkStatus"
)

// Link is one link of the chain.
type Link struct {
	Link string `json:"link"`
	// OK is false where the chain is broken: it ends there.
	OK      bool   `json:"ok"`
	Message string `json:"message"`
	// Mend is the command that mends it, or what to do.
	Mend string `json:"mend,omitempty"`
}

// Chain is how one interface of a pod gets its address, up to where it does not.
type Chain struct {
	Pod string `json:"pod"` // NAMESPACE/NAME
	// Network is "" if the pod itself is what is wrong.
	Network   string `json:"network,omitempty"`
	Interface string `json:"interface,omitempty"`
	Links     []Link `json:"links"`
	// Event is what the runtime said last about the pod's sandbox, and with it the plugin
	// and the API server.
	Event *event `json:"event,omitempty"`
}

// event is the last of its kind.
type event struct {
	Message string      `json:"message"`
	Count   int32       `json:"count"`
	Last    metav1.Time `json:"last"`
}

// Broken returns the link at which the chain ends, nil if the interface has its address.
func (c *Chain) Broken() *Link {
	if n := len(c.Links); n > 0 && !c.Links[n-1].OK {
		return &c.Links[n-1]
	}
	return nil
}

func (c *Chain) ok(link, format string, args ...any) {
	c.Links = append(c.Links, Link{Link: link, OK: true, Message: fmt.Sprintf(format, args...)})
}

func (c *Chain) broken(link, message, mend string) {
	c.Links = append(c.Links, Link{Link: link, Message: message, Mend: mend})
}

// keeps makes a note of the break: the pod has its address, and whatever the pool has become
// since is about later sandboxes.
func (c *Chain) keeps() {
	last := &c.Links[len(c.Links)-1]
	last.OK, last.Mend = true, ""
	last.Message += "; the pod keeps what it holds, and its next sandbox would get nothing"
}

// Why follows the chain of each network of a pod to its address, and stops at the link that
// is broken. Cluster.Namespace is that of the pools; if it is "", it is found.
func (c *Cluster) Why(ctx context.Context, namespace, name string) ([]Chain, error) {
	p, err := ledger.Existing(c.kube.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{}))
	if err != nil {
		return nil, fmt.Errorf("reading pod %s/%s: %w", namespace, name, err)
	}
	start := Chain{Pod: namespace + "/" + name}
	if p == nil {
		start.broken(linkPod, "there is no such pod", "kubectl get pods -A --field-selector metadata.name="+name)
		return []Chain{start}, nil
	}
	if start.Event, err = c.sandboxEvent(ctx, p); err != nil {
		return nil, err
	}
	w := &why{Cluster: c, pod: p, status: parseStatus(p.Annotations[annotationStatus])}
	if w.record, err = c.read(ctx, parts{}); err != nil { // first: it finds out which namespaces may be listed
		return nil, err
	}
	if err := w.listHeld(ctx); err != nil {
		return nil, err
	}
	if ended(p) && len(w.holds) == 0 && c.Limited() != "" {
		return nil, c.elsewhere("the pod has ended, and may hold an address")
	}
	if !start.pod(p, w.holds) {
		return []Chain{start}, nil
	}
	selections, ok := start.annotation(p)
	if !ok {
		return []Chain{start}, nil
	}
	if w.node, err = ledger.Existing(c.kube.CoreV1().Nodes().Get(ctx, p.Spec.NodeName, metav1.GetOptions{})); err != nil {
		return nil, fmt.Errorf("reading node %s: %w", p.Spec.NodeName, err)
	}
	if w.node != nil {
		w.record.nodes[w.node.Name] = w.node
	}
	names := interfaces(selections, w.status)
	var out []Chain
	for i, s := range selections {
		one := start
		one.Network, one.Interface, one.Links = s.String(), names[i], slices.Clone(start.Links)
		if one.Interface != s.Interface {
			one.ok(linkAnnotation, "it names no interface, and by annotation %s that is %s: the runtime has networks of its own (multus: defaultNetworks)", annotationStatus, one.Interface)
		}
		if err := w.follow(ctx, &one, s); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
}

// interfaces returns the name of each network's interface. Where the annotation has none,
// that is what the pod's status has for the network, if it has anything.
func interfaces(selections []ledger.Selection, worn []status) (names []string) {
	used := map[string]bool{}
	for _, s := range selections {
		used[s.Interface] = used[s.Interface] || !s.Assumed
	}
	for _, s := range selections {
		name := s.Interface
		if s.Assumed {
			var of []string
			for _, st := range worn {
				if st.Name == s.String() && st.Interface != "" && !used[st.Interface] {
					of = append(of, st.Interface)
				}
			}
			if len(of) > 0 && !slices.Contains(of, name) {
				name = of[0]
			}
			used[name] = true
		}
		names = append(names, name)
	}
	return names
}

// sandboxEvent returns what was said last about the pod's sandbox.
func (c *Cluster) sandboxEvent(ctx context.Context, p *corev1.Pod) (*event, error) {
	list, err := c.kube.CoreV1().Events(p.Namespace).List(ctx, metav1.ListOptions{FieldSelector: fields.Set{
		"involvedObject.uid": string(p.UID), "reason": "FailedCreatePodSandBox",
	}.String()})
	if err != nil {
		return nil, fmt.Errorf("listing the events of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	var out *event
	for _, e := range list.Items {
		last := e.LastTimestamp
		if last.IsZero() {
			last = metav1.Time{Time: cmp.Or(e.EventTime.Time, e.CreationTimestamp.Time)}
		}
		if out == nil || out.Last.Before(&last) {
			out = &event{Message: e.Message, Count: max(e.Count, 1), Last: last}
		}
	}
	return out, nil
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// elsewhere is the error that something may be in a namespace that could not be looked at.
func (c *Cluster) elsewhere(what string) error {
	return fmt.Errorf("%s in another namespace, and only %s was looked at: name the namespace of the pools with --pools-namespace", what, c.Limited())
}

// pod says whether the pod is one that gets addresses. held is what it holds.
func (c *Chain) pod(p *corev1.Pod, held []*v1alpha1.IPAllocation) bool {
	switch {
	case ended(p) && len(held) > 0:
		c.broken(linkPod, fmt.Sprintf("the pod has ended (%s), and still holds %s: node %s gives that back when it stops the pod's sandbox", p.Status.Phase, addressesOf(held), p.Spec.NodeName),
			deletePod(p.Namespace+"/"+p.Name))
	case ended(p):
		c.broken(linkPod, fmt.Sprintf("the pod has ended (%s): it has given back its addresses", p.Status.Phase), "")
	case p.DeletionTimestamp != nil && len(held) == 0:
		c.broken(linkPod, fmt.Sprintf("the pod is being deleted since %s, and holds no address: its node has given them back, or never asked", p.DeletionTimestamp.UTC().Format(time.RFC3339)), "")
	case p.Spec.NodeName == "":
		message := "no node was chosen for the pod"
		for _, condition := range p.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Message != "" {
				message += ": " + condition.Message
			}
		}
		c.broken(linkPod, message, fmt.Sprintf("kubectl describe pod -n %s %s", p.Namespace, p.Name))
	case p.Spec.HostNetwork:
		c.broken(linkPod, "the pod has spec.hostNetwork: it gets no other networks", "")
	default:
		c.ok(linkPod, "on node %s, %s", p.Spec.NodeName, p.Status.Phase)
		return true
	}
	return false
}

func (c *Chain) annotation(p *corev1.Pod) ([]ledger.Selection, bool) {
	text, found := p.Annotations[ledger.AnnotationNetworks]
	if !found && p.Annotations[annotationDefault] == "" {
		c.broken(linkAnnotation, "the pod has no annotation "+ledger.AnnotationNetworks+": it asks for no other network", "set it in the pod's template: it is read when the pod starts")
		return nil, false
	}
	all, err := ledger.ParseNetworks(text, p.Namespace)
	first, _ := ledger.ParseNetworks(p.Annotations[annotationDefault], multusNamespace) // one that cannot be read says nothing
	for _, s := range first {
		s.Interface, s.Assumed = defaultInterface, false
		all = slices.Insert(all, 0, s)
	}
	switch {
	case err != nil:
		c.broken(linkAnnotation, err.Error(), "correct it in the pod's template")
		return nil, false
	case len(all) == 0:
		c.broken(linkAnnotation, "annotation "+ledger.AnnotationNetworks+" names no network", "set it in the pod's template")
		return nil, false
	}
	for _, s := range all {
		if !reclaim.Possible(v1alpha1.PodReference{Namespace: s.Namespace, Name: s.Name}) {
			c.broken(linkAnnotation, fmt.Sprintf("annotation %s names %q, and no network can be called that", ledger.AnnotationNetworks, s), "correct it in the pod's template")
			return nil, false
		}
	}
	c.ok(linkAnnotation, "%d networks", len(all))
	return all, true
}

// why is one question.
type why struct {
	*Cluster

	record *record
	pod    *corev1.Pod
	node   *corev1.Node
	status []status
	// holds is what the pod holds, and not what an earlier pod of its name does.
	holds []*v1alpha1.IPAllocation
}

func (w *why) listHeld(ctx context.Context) error {
	where := fields.Set{fieldPodNamespace: w.pod.Namespace, fieldPod: w.pod.Name}
	return w.attachments(ctx, where, func(a *v1alpha1.IPAllocation) {
		for _, a := range []*v1alpha1.IPAllocation{a, a.Promoted()} {
			if a != nil && a.Spec.Held() && w.isHolder(a) {
				w.holds = append(w.holds, a)
				return
			}
		}
	})
}

// isHolder reports whether an allocation is for the pod, and not for an earlier one of its name.
func (w *why) isHolder(a *v1alpha1.IPAllocation) bool {
	p := reclaim.PodOf(w.pod)
	p.Placed, p.Node = true, w.pod.Spec.NodeName
	return a.Spec.PodRef.Namespace == w.pod.Namespace && a.Spec.PodRef.Name == w.pod.Name && p.Holds(a)
}

// follow goes from the network to the address. What the pod holds is looked for first: the
// pod keeps it, whatever the network and the pool have become since.
func (w *why) follow(ctx context.Context, c *Chain, s ledger.Selection) error {
	has := w.has(c)
	n, err := w.network(ctx, c, s)
	switch {
	case err != nil, n == nil && (len(has) == 0 || c.Broken() == nil):
		return err
	case n == nil:
		w.keeps(c, has)
		return nil
	}
	held := w.heldOn(c.Interface, n)
	if slices.Contains(held, nil) && len(has) > 0 {
		c.ok(linkNetwork, "the pod has its address from before the network named what it does now")
		held = has
	}
	if slices.Contains(held, nil) && n.PoolsNamespace == "" && w.Limited() != "" {
		return w.elsewhere("the network names no namespace of its pools, and the pod may hold an address")
	}
	asks, err := w.asks(c, n, held)
	if err != nil {
		return err
	}
	if !slices.Contains(held, nil) {
		w.keeps(c, held)
		return nil
	}
	for i, q := range asks {
		if held[i] != nil {
			c.holds(held[i])
		} else if err := w.allocation(ctx, c, s, q); err != nil || c.Broken() != nil {
			return err
		}
	}
	return nil
}

// keeps ends the chain of an interface that holds its addresses: a break before is about later
// sandboxes.
func (w *why) keeps(c *Chain, held []*v1alpha1.IPAllocation) {
	if c.Broken() != nil {
		c.keeps()
	}
	for _, a := range held {
		c.holds(a)
	}
	w.compare(c, held)
}

func (c *Chain) holds(a *v1alpha1.IPAllocation) {
	c.ok(linkAllocation, "%s is held since %s (%s)", a.Spec.Address, ledger.Since(a).UTC().Format(time.RFC3339), a.Name)
}

func addressesOf(held []*v1alpha1.IPAllocation) string {
	var out []string
	for _, a := range held {
		out = append(out, a.Spec.Address)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

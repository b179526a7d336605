// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
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
	if !start.pod(p) {
		return []Chain{start}, nil
	}
	selections, ok := start.annotation(p)
	if !ok {
		return []Chain{start}, nil
	}
	w := &why{Cluster: c, pod: p}
	if w.record, err = c.read(ctx, parts{}); err != nil {
		return nil, err
	}
	if w.node, err = ledger.Existing(c.kube.CoreV1().Nodes().Get(ctx, p.Spec.NodeName, metav1.GetOptions{})); err != nil {
		return nil, fmt.Errorf("reading node %s: %w", p.Spec.NodeName, err)
	}
	if err := w.held(ctx); err != nil {
		return nil, err
	}
	var out []Chain
	for _, s := range selections {
		one := start
		one.Network, one.Interface, one.Links = s.String(), s.Interface, slices.Clone(start.Links)
		if err := w.follow(ctx, &one, s); err != nil {
			return nil, err
		}
		out = append(out, one)
	}
	return out, nil
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

// pod says whether the pod is one that gets addresses.
func (c *Chain) pod(p *corev1.Pod) bool {
	switch {
	case p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed:
		c.broken(linkPod, fmt.Sprintf("the pod has ended (%s): it has given back its addresses", p.Status.Phase), "")
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
	if !found {
		c.broken(linkAnnotation, "the pod has no annotation "+ledger.AnnotationNetworks+": it asks for no other network", "set it in the pod's template: it is read when the pod starts")
		return nil, false
	}
	all, err := ledger.ParseNetworks(text, p.Namespace)
	switch {
	case err != nil:
		c.broken(linkAnnotation, err.Error(), "correct it in the pod's template")
		return nil, false
	case len(all) == 0:
		c.broken(linkAnnotation, "annotation "+ledger.AnnotationNetworks+" names no network", "set it in the pod's template")
		return nil, false
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
	holds  []*v1alpha1.IPAllocation // what the pod holds
}

func (w *why) held(ctx context.Context) error {
	where := fields.Set{fieldPodNamespace: w.pod.Namespace, fieldPod: w.pod.Name}
	return w.attachments(ctx, where, func(a *v1alpha1.IPAllocation) {
		if promoted := a.Promoted(); promoted != nil && podKey(a.Spec.PodRef) != w.pod.Namespace+"/"+w.pod.Name {
			a = promoted
		}
		w.holds = append(w.holds, a)
	})
}

func (w *why) follow(ctx context.Context, c *Chain, s ledger.Selection) error {
	n, err := w.network(ctx, c, s)
	if n == nil || err != nil {
		return err
	}
	objects, ok, err := w.pools(ctx, c, n)
	if !ok || err != nil {
		return err
	}
	blocks, ok, err := w.blocks(c, objects)
	if !ok || err != nil {
		return err
	}
	wanted, err := pool.Match(blocks, n.Want)
	if err != nil {
		c.broken(linkAccess, err.Error(), "correct what the pod asks for, in its template")
		return nil
	}
	for i, o := range objects {
		if ok, err := w.allocation(ctx, c, s, o, blocks[i], wanted[i]); !ok || err != nil {
			return err
		}
	}
	w.status(c, s)
	return nil
}

// network reads the NetworkAttachmentDefinition; nil ends the chain.
func (w *why) network(ctx context.Context, c *Chain, s ledger.Selection) (*cni.Network, error) {
	nad, err := w.foreignOne(ctx, resourceNAD, s.Namespace, s.Name)
	if err != nil {
		return nil, err
	}
	if nad == nil {
		return nil, w.noNetwork(ctx, c, s)
	}
	if configOf(nad) == "" {
		c.broken(linkNetwork, fmt.Sprintf("NetworkAttachmentDefinition %s has no spec.config: its configuration is a file on node %s", s, w.pod.Spec.NodeName), "")
		return nil, nil
	}
	n, err := networkOf(nad, s)
	switch {
	case err != nil:
		c.broken(linkNetwork, fmt.Sprintf("NetworkAttachmentDefinition %s: %s", s, err), fmt.Sprintf("kubectl edit net-attach-def -n %s %s", s.Namespace, s.Name))
		return nil, nil
	case n == nil:
		c.ok(linkNetwork, "NetworkAttachmentDefinition %s gets its addresses from another plugin", s)
		return nil, nil
	}
	c.ok(linkNetwork, "NetworkAttachmentDefinition %s names %s", s, poolNames(n.Pools))
	return n, nil
}

func poolNames(refs []v1alpha1.PoolReference) string {
	var out []string
	for _, ref := range refs {
		out = append(out, string(ref.Kind)+" "+ref.Name)
	}
	return strings.Join(out, " and ")
}

func (w *why) noNetwork(ctx context.Context, c *Chain, s ledger.Selection) error {
	message, mend := fmt.Sprintf("there is no NetworkAttachmentDefinition %s", s), "apply it, or name another one in annotation "+ledger.AnnotationNetworks
	all, known, err := w.foreign(ctx, resourceNAD, "")
	switch {
	case err == nil && !known:
		message, mend = "the cluster has no NetworkAttachmentDefinitions: multus, or its CRD, is not installed", "install multus"
	case err == nil:
		for _, nad := range all {
			if nad.Metadata.Name == s.Name {
				message += ", but one in namespace " + nad.Metadata.Namespace
				mend = fmt.Sprintf("write %s/%s in the annotation", nad.Metadata.Namespace, nad.Metadata.Name)
			}
		}
	case !refused(err):
		return err
	}
	c.broken(linkNetwork, message, mend)
	return nil
}

// pools finds the pools that a network names.
func (w *why) pools(_ context.Context, c *Chain, n *cni.Network) (found []*pool.Object, ok bool, err error) {
	site := w.record.site(cmp.Or(w.record.poolsOn(n, w.pod.Spec.NodeName, w.holds), w.Namespace))
	for _, ref := range n.Pools {
		if pool.HasLabels(ref.Name) {
			labels := map[string]string{}
			if w.node != nil {
				labels = w.node.Labels
			}
			name, err := pool.ExpandName(ref.Name, w.pod.Spec.NodeName, labels)
			if err != nil {
				c.broken(linkPool, fmt.Sprintf("poolName %q: %s", ref.Name, err), "kubectl label node "+w.pod.Spec.NodeName+" LABEL=VALUE")
				return nil, false, nil
			}
			ref.Name = name
		}
		i := slices.IndexFunc(site.pools, func(p *pool.Object) bool { return p.Ref == ref })
		if only := w.Limited(); i < 0 && only != "" && only != n.PoolsNamespace {
			return nil, false, fmt.Errorf("%s %s is not in namespace %s, and may be in another: name the namespace of the pools with --pools-namespace", ref.Kind, ref.Name, only)
		}
		if i < 0 {
			w.noPool(c, ref, site.namespace)
			return nil, false, nil
		}
		found = append(found, site.pools[i])
	}
	return found, true, nil
}

// noPool says where the pool may be instead.
func (w *why) noPool(c *Chain, ref v1alpha1.PoolReference, namespace string) {
	message, mend := fmt.Sprintf("there is no %s %s/%s", ref.Kind, namespace, ref.Name), "apply it there, or correct poolName in the network's configuration"
	for _, s := range w.record.sites {
		for _, p := range s.pools {
			switch {
			case p.Ref.Name != ref.Name:
			case s.namespace == namespace:
				message += fmt.Sprintf(", but a %s of that name", p.Ref.Kind)
				mend = "set poolType to " + pool.Type(p.Ref.Kind) + " in the network's configuration"
			case p.Ref.Kind == ref.Kind:
				message += ", but one in namespace " + s.namespace + ", where nobody looks"
				mend = fmt.Sprintf("kubectl get %s -n %s %s -o yaml, and apply it in namespace %s", pool.Resource(ref.Kind).Resource, s.namespace, ref.Name, namespace)
			}
		}
	}
	c.broken(linkPool, message, mend)
}

// blocks returns the node's block of each pool, if the pod may use it.
func (w *why) blocks(c *Chain, objects []*pool.Object) (blocks []*pool.Block, ok bool, err error) {
	for _, o := range objects {
		parsed, errs := o.Parse()
		if err := pool.Invalid(o.Ref, errs); err != nil {
			c.broken(linkPool, err.Error(), edit(o))
			return nil, false, nil
		}
		c.ok(linkPool, "%s %s/%s, %s", o.Ref.Kind, o.Meta.Namespace, o.Ref.Name, o.Subnet)
		b, has := parsed.BlockOf(o.Blocks(), w.pod.Spec.NodeName)
		selected := w.node != nil && parsed.Selects(w.node)
		switch {
		case has && parsed.Shared && !selected:
			c.broken(linkBlock, fmt.Sprintf("%s does not select node %s: its nodeSelector is %s", o.Ref.Name, w.pod.Spec.NodeName, parsed.SelectorText()), "kubectl label node "+w.pod.Spec.NodeName+" LABEL=VALUE, or "+edit(o))
			return nil, false, nil
		case !has:
			message, mend := w.noBlock(o, parsed, selected)
			c.broken(linkBlock, message, mend)
			return nil, false, nil
		}
		if err := b.Admit(w.pod.Namespace); err != nil {
			c.broken(linkAccess, err.Error(), edit(o))
			return nil, false, nil
		}
		blocks = append(blocks, b)
	}
	return blocks, true, nil
}

func edit(o *pool.Object) string {
	return fmt.Sprintf("kubectl edit %s -n %s %s", pool.Resource(o.Ref.Kind).Resource, o.Meta.Namespace, o.Ref.Name)
}

// noBlock says why a node has no block.
func (w *why) noBlock(o *pool.Object, p *pool.Pool, selected bool) (message, mend string) {
	node := w.pod.Spec.NodeName
	message = fmt.Sprintf("%s %s has no block for node %s", o.Ref.Kind, o.Ref.Name, node)
	switch {
	case w.node == nil:
		return message + ", and there is no Node object of that name", "kubectl get node " + node
	case !selected:
		return message + ": it does not select it, its nodeSelector is " + p.SelectorText(), "kubectl label node " + node + " LABEL=VALUE, or " + edit(o)
	}
	for _, condition := range o.Status.Conditions {
		if condition.Type == v1alpha1.ConditionReady && condition.Status == metav1.ConditionFalse {
			mend = "larger subnet or smaller blocks: " + edit(o)
			if condition.Reason == v1alpha1.ReasonRecordLost {
				mend = "wait"
			}
			return message + ": " + condition.Reason + ": " + condition.Message, mend
		}
	}
	if o.Allocations == nil {
		return message + ": no controller has given any blocks of it", "kubectl get pods -A -l component=nv-ipam-controller, and see the log of the one that leads"
	}
	return message + ": the controller has not given it one yet, or there is no room", "kubectl ipam show --blocks " + o.Ref.Name
}

// allocation says whether the pod holds an address of a pool; if it does not, why.
func (w *why) allocation(ctx context.Context, c *Chain, s ledger.Selection, o *pool.Object, b *pool.Block, wanted netip.Addr) (ok bool, err error) {
	for _, a := range w.holds {
		if a.Namespace == o.Meta.Namespace && a.Spec.PoolRef == o.Ref && a.Spec.InterfaceName == c.Interface && a.Spec.Held() {
			c.ok(linkAllocation, "%s is held since %s (%s)", a.Spec.Address, a.CreationTimestamp.UTC().Format(time.RFC3339), a.Name)
			return true, nil
		}
	}
	if !wanted.IsValid() && s.IPAMClaim != "" { // of the whole subnet: the plugin says which one, and why not
		w.notYet(c)
		return false, nil
	}
	if !wanted.IsValid() {
		c.ok(linkBlock, "%s", b.Range)
		return false, w.anyAddress(ctx, c, o, b)
	}
	holder, err := ledger.Existing(w.ipam.IPAllocations(o.Meta.Namespace).Get(ctx, v1alpha1.AllocationName(o.Domain, wanted), metav1.GetOptions{}))
	if err != nil {
		return false, err
	}
	if holder != nil && podKey(holder.Spec.PodRef) != c.Pod {
		v := w.live(w.record.site(o.Meta.Namespace).pools).tell(ctx, holder)
		c.broken(linkAllocation, fmt.Sprintf("%s, which the pod asks for, is %s (%s: %s)", wanted, ledger.HeldBy(holder), v.State, v.Message), w.freeing(holder, v))
		return false, nil
	}
	w.notYet(c)
	return false, nil
}

// freeing says how a held address becomes free.
func (w *why) freeing(a *v1alpha1.IPAllocation, v judgement) string {
	if v.State == stateInUse {
		return fmt.Sprintf("ask for another address, or end the pod that has it: kubectl delete pod %s", podName(a.Spec.PodRef))
	}
	return releaseCommand(a)
}

// anyAddress says why the pod has not got any address of a block.
func (w *why) anyAddress(ctx context.Context, c *Chain, o *pool.Object, b *pool.Block) error {
	site := &site{namespace: o.Meta.Namespace, byPod: map[string][]*v1alpha1.IPAllocation{}, byDomain: map[string][]*v1alpha1.IPAllocation{}}
	reader := *w.Cluster
	reader.Namespace = o.Meta.Namespace
	if err := reader.allocations(ctx, nil, site.add); err != nil {
		return err
	}
	held := map[netip.Addr]bool{}
	for _, h := range site.heldIn(o) {
		held[h.Addr] = true
	}
	spaces := append([]*pool.Block{b}, b.Overflow...)
	last := freeIn(refOf(o), w.pod.Spec.NodeName, spaces[len(spaces)-1], held)
	first := freeIn(refOf(o), w.pod.Spec.NodeName, b, held)
	if first.Free > 0 || last.Free > 0 {
		w.notYet(c)
		return nil
	}
	where := fmt.Sprintf("node %s's block", w.pod.Spec.NodeName)
	if b.Shared || len(b.Overflow) > 0 {
		where = "the subnet"
	}
	message := fmt.Sprintf("%s %s is exhausted: no free address in %s %s, %d of %d are held", o.Ref.Kind, o.Ref.Name, where, last.Range, last.Size-last.Free, last.Size)
	if last.Size == 0 {
		message = fmt.Sprintf("%s %s gives no address automatically in %s %s: all are excluded, or of an earlier specification", o.Ref.Kind, o.Ref.Name, where, last.Range)
	}
	c.broken(linkAllocation, message, "end pods there, see what leaks (kubectl ipam leaks "+o.Ref.Name+"), or give more room: "+edit(o))
	return nil
}

// notYet says that nothing here keeps the pod from its address: what the runtime said does.
func (w *why) notYet(c *Chain) {
	if c.Event == nil {
		c.broken(linkAllocation, "no address is held, and nothing in the record speaks against one: the node has not asked yet, or asks in another cluster or namespace",
			fmt.Sprintf("kubectl describe pod -n %s %s; and /var/log/nv-ipam-cni.log on node %s", w.pod.Namespace, w.pod.Name, w.pod.Spec.NodeName))
		return
	}
	reason, mend := explain(c.Event.Message)
	c.broken(linkAllocation, reason, mend)
}

// status compares the address with what the pod says that it has.
func (w *why) status(c *Chain, s ledger.Selection) {
	text := w.pod.Annotations[annotationStatus]
	var have []netip.Addr
	for _, st := range parseStatus(text) {
		if st.Interface == c.Interface || st.Name == s.String() && st.Interface == "" {
			have = append(have, st.addresses()...)
		}
	}
	if len(have) == 0 {
		message, mend := "the address is held, and annotation "+annotationStatus+" does not have it: the sandbox is not ready yet, or another network of the pod fails", fmt.Sprintf("kubectl describe pod -n %s %s", w.pod.Namespace, w.pod.Name)
		if c.Event != nil {
			reason, more := explain(c.Event.Message)
			message, mend = "the address is held, and the pod does not have it: "+reason, more
		}
		c.broken(linkStatus, message, mend)
		return
	}
	for _, addr := range have {
		if !slices.ContainsFunc(w.holds, func(a *v1alpha1.IPAllocation) bool {
			return a.Spec.Address == addr.String() && a.Spec.InterfaceName == c.Interface
		}) {
			c.broken(linkStatus, fmt.Sprintf("annotation %s has %s, which the pod does not hold", annotationStatus, addr), "kubectl ipam who "+addr.String()+"; kubectl ipam check")
			return
		}
	}
	c.ok(linkStatus, "the pod has %s", joinAddrs(have))
}

func joinAddrs(addrs []netip.Addr) string {
	var out []string
	for _, a := range addrs {
		out = append(out, a.String())
	}
	return strings.Join(out, ", ")
}

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

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/cni"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

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

// ask is what a network asks for in one of its pools.
type ask struct {
	network *cni.Network
	pool    *pool.Object
	block   *pool.Block
	wanted  netip.Addr // zero is any
}

// asks finds what the network asks for in each of its pools; none if the chain is broken
// before. held is what the interface holds.
func (w *why) asks(c *Chain, n *cni.Network, held []*v1alpha1.IPAllocation) (out []ask, err error) {
	objects, ok, err := w.pools(c, n, held)
	if !ok || err != nil {
		return nil, err
	}
	blocks, ok := w.blocks(c, objects)
	if !ok {
		return nil, nil
	}
	wanted, err := pool.Match(blocks, n.Want)
	if err != nil {
		c.broken(linkAccess, err.Error(), "correct what the pod asks for, in its template")
		return nil, nil
	}
	for i, o := range objects {
		out = append(out, ask{n, o, blocks[i], wanted[i]})
	}
	return out, nil
}

// pools finds the pools that a network names.
func (w *why) pools(c *Chain, n *cni.Network, held []*v1alpha1.IPAllocation) (found []*pool.Object, ok bool, err error) {
	held = slices.DeleteFunc(slices.Clone(held), func(a *v1alpha1.IPAllocation) bool { return a == nil })
	site := w.record.site(cmp.Or(w.record.poolsOn(n, w.pod.Spec.NodeName, held), w.Namespace))
	for _, named := range n.Pools {
		ref, err := w.record.expand(named, w.pod.Spec.NodeName)
		if err != nil {
			c.broken(linkPool, fmt.Sprintf("poolName %q: %s", named.Name, err), "kubectl label node "+w.pod.Spec.NodeName+" LABEL=VALUE")
			return nil, false, nil
		}
		i := slices.IndexFunc(site.pools, func(p *pool.Object) bool { return p.Ref == ref })
		if of := n.PoolsNamespace; i < 0 && of != "" && w.Namespace != "" && of != w.Namespace {
			return nil, false, fmt.Errorf("the network has its pools in namespace %s, and only %s was looked at: --pools-namespace %s", of, w.Namespace, of)
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
	if namespace == "" {
		message, mend = fmt.Sprintf("there is no %s %s in any namespace", ref.Kind, ref.Name), "apply it in the controller's namespace, or correct poolName in the network's configuration"
	}
	for _, s := range w.record.sites {
		for _, p := range s.pools {
			switch {
			case p.Ref.Name != ref.Name:
			case s.namespace == namespace || namespace == "":
				message += fmt.Sprintf(", but a %s of that name", p.Ref.Kind)
				mend = "set poolType to " + pool.Type(p.Ref.Kind) + " in the network's configuration"
			case p.Ref.Kind == ref.Kind:
				message += ", but one in namespace " + s.namespace + ", where nobody looks"
				mend = fmt.Sprintf("kubectl get %s -n %s %s -o yaml, and apply it in namespace %s", pool.Resource(ref.Kind).GroupResource(), s.namespace, ref.Name, namespace)
			}
		}
	}
	c.broken(linkPool, message, mend)
}

// blocks returns the node's block of each pool, if the pod may use it.
func (w *why) blocks(c *Chain, objects []*pool.Object) (blocks []*pool.Block, ok bool) {
	for _, o := range objects {
		parsed, errs := o.Parse()
		if err := pool.Invalid(o.Ref, errs); err != nil {
			c.broken(linkPool, err.Error(), edit(o))
			return nil, false
		}
		c.ok(linkPool, "%s %s/%s, %s", o.Ref.Kind, o.Meta.Namespace, o.Ref.Name, o.Subnet)
		b, has := parsed.BlockOf(o.Blocks(), w.pod.Spec.NodeName)
		selected := w.node != nil && parsed.Selects(w.node)
		switch {
		case has && parsed.Shared && !selected:
			c.broken(linkBlock, fmt.Sprintf("%s does not select node %s: its nodeSelector is %s", o.Ref.Name, w.pod.Spec.NodeName, parsed.SelectorText()), "kubectl label node "+w.pod.Spec.NodeName+" LABEL=VALUE, or "+edit(o))
			return nil, false
		case !has:
			message, mend := w.noBlock(o, parsed, selected)
			c.broken(linkBlock, message, mend)
			return nil, false
		}
		if err := b.Admit(w.pod.Namespace); err != nil {
			c.broken(linkAccess, err.Error(), edit(o))
			return nil, false
		}
		blocks = append(blocks, b)
	}
	return blocks, true
}

func edit(o *pool.Object) string {
	return fmt.Sprintf("kubectl edit %s -n %s %s", pool.Resource(o.Ref.Kind).GroupResource(), o.Meta.Namespace, o.Ref.Name)
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

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// The classes of findings.
const (
	classNoPool        = "AllocationWithoutPool"
	classNoPod         = "AllocationWithoutPod"
	classNotRecorded   = "AddressNotRecorded"
	classTwoPods       = "AddressOnTwoPods"
	classTwoOfOne      = "AttachmentHoldsTwo"
	className          = "NameDisagrees"
	classLabels        = "WrongLabels"
	classBlocks        = "BlocksOverlap"
	classDomains       = "DomainsOverlap"
	classOtherManager  = "HeldByOtherManager"
	classOtherInstance = "PoolsOfTwoNamespaces"
)

// Classes are the classes of findings, in the order in which they are reported.
var Classes = []string{
	classTwoPods, classNotRecorded, classOtherManager, classBlocks, classDomains, classOtherInstance,
	className, classTwoOfOne, classNoPool, classNoPod, classLabels,
}

// finding is something that is wrong.
type finding struct {
	Class     string `json:"class"`
	Namespace string `json:"namespace"`
	// Subject is what it is about: an allocation, an address, a pool, a domain.
	Subject string `json:"subject"`
	// Message says what is wrong, Proof by which objects that can be seen.
	Message string `json:"message"`
	Proof   string `json:"proof"`
	// Mend is the command that mends it, or what to do.
	Mend string `json:"mend"`
	// judgement of reclaim, for AllocationWithoutPod.
	Verdict *judgement `json:"verdict,omitempty"`

	suspect *suspect // nil if no second look is needed
}

func (f finding) compare(o finding) int {
	return cmp.Or(cmp.Compare(slices.Index(Classes, f.Class), slices.Index(Classes, o.Class)),
		strings.Compare(f.Namespace, o.Namespace), strings.Compare(f.Subject, o.Subject), strings.Compare(f.Message, o.Message))
}

// Report is the result of Check.
type Report struct {
	Findings []finding `json:"findings"`
	// Allocations, Pods and Pools is how many were looked at.
	Allocations int `json:"allocations"`
	Pods        int `json:"pods"`
	Pools       int `json:"pools"`
	// Namespace of the pools and allocations; "" is all.
	Namespace string `json:"namespace,omitempty"`
	// Skipped is what could not be looked at, and why.
	Skipped []string `json:"skipped,omitempty"`
}

// Check looks for whatever is wrong with pools, allocations and pods.
func (c *Cluster) Check(ctx context.Context) (*Report, error) {
	r, err := c.read(ctx, parts{allocations: true, nodes: true, pods: true})
	if err != nil {
		return nil, err
	}
	if err := c.isUsed(r); err != nil {
		return nil, err
	}
	k := &checking{record: r, report: &Report{Pods: len(r.pods), Namespace: c.Namespace}}
	for _, s := range r.sites {
		k.report.Allocations += len(s.allocations)
		k.report.Pools += len(s.pools)
	}
	if only := c.Limited(); only != "" {
		k.skip("other namespaces than "+only, errors.New("you may not list the pools of all"))
	}
	k.readNetworks(ctx, c)
	k.judge()
	k.others(ctx, c)
	k.confirm(ctx, c)
	slices.SortFunc(k.report.Findings, finding.compare)
	return k.report, nil
}

// checking is one Check.
type checking struct {
	*record

	report   *Report
	networks networks
	held     map[*site]held
	// all are those who have an address, and worn those by where it is recorded.
	all  map[netip.Addr][]wearer
	worn map[place][]wearer
	seen map[wearing]bool // what worn has
}

// wearing is who has an address, and where that is recorded.
type wearing struct {
	place
	wearer
}

// judge finds what the record shows.
func (k *checking) judge() {
	k.index()
	k.wear()
	for _, s := range k.sites {
		k.allocations(s)
		k.attachments(s)
		k.blocks(s)
		k.domains(s)
	}
	k.namespaces()
	k.pods()
}

func (k *checking) find(class, namespace, subject, message, proof, mend string) *finding {
	k.report.Findings = append(k.report.Findings, finding{Class: class, Namespace: namespace, Subject: subject, Message: message, Proof: proof, Mend: mend})
	return &k.report.Findings[len(k.report.Findings)-1]
}

func (k *checking) skip(what string, err error) {
	k.report.Skipped = append(k.report.Skipped, fmt.Sprintf("%s: %s", what, err))
}

// allocations looks at each allocation by itself, and at its pool and pod.
func (k *checking) allocations(s *site) {
	orphans := map[string][]*v1alpha1.IPAllocation{}
	for _, a := range s.allocations {
		if problem := nameProblem(a); problem != "" {
			k.find(className, s.namespace, a.Name, problem, proofOf(a), "kubectl get ipa -n "+a.Namespace+" "+a.Name+" -o yaml; if no pod has the address: "+releaseCommand(a))
		}
		if a.Labels != nil { // see thin
			if wrong := wrongLabels(a); len(wrong) > 0 {
				k.find(classLabels, s.namespace, a.Name, "selectors do not find it: "+strings.Join(wrong, ", "), proofOf(a), relabel(a))
			}
		}
		if len(s.inDomain(a.DomainOf())) == 0 {
			orphans[a.DomainOf()] = append(orphans[a.DomainOf()], a)
		}
		if v := k.verdict(s, a); v.State == stateHeld || v.State == stateLeaked {
			k.withoutPod(s, a, v)
		}
	}
	for domain, all := range orphans {
		slices.SortFunc(all, func(a, b *v1alpha1.IPAllocation) int { return strings.Compare(a.Name, b.Name) })
		ref := all[0].Spec.PoolRef
		k.find(classNoPool, s.namespace, domain, fmt.Sprintf("%d addresses are held in a domain that no pool has; no other pod gets one there", len(all)),
			fmt.Sprintf("ipallocation %s names %s %s, which does not exist", all[0].Name, ref.Kind, ref.Name),
			fmt.Sprintf("apply %s %s of namespace %s again, or another pool with spec.domain %s", ref.Kind, ref.Name, s.namespace, domain))
	}
}

func (k *checking) withoutPod(s *site, a *v1alpha1.IPAllocation, v judgement) {
	v.wornBy = k.wornBy(a)
	f := k.find(classNoPod, s.namespace, a.Name, v.Reason+": "+v.Message, proofOf(a), freeing(a, v))
	f.Verdict, f.suspect = &v, suspectOf(a)
}

// proofOf names the object that shows it.
func proofOf(a *v1alpha1.IPAllocation) string {
	if a.Spec.IsReserved() {
		return fmt.Sprintf("ipallocation %s (uid %s): address %s, %s", a.Name, a.UID, a.Spec.Address, ledger.Describe(a))
	}
	return fmt.Sprintf("ipallocation %s (uid %s): address %s, pod %s, node %s, container %s", a.Name, a.UID, a.Spec.Address, podKey(a.Spec.PodRef), a.Spec.NodeName, a.Spec.ContainerID)
}

// nameProblem says how an allocation's name and address disagree; "" if they agree.
func nameProblem(a *v1alpha1.IPAllocation) string {
	addr, err := pool.ParseAddr(a.Spec.Address)
	if err != nil {
		return fmt.Sprintf("spec.address %q is not an address", a.Spec.Address)
	}
	domain := cmp.Or(a.Spec.Domain, a.Spec.PoolRef.Name)
	if want := v1alpha1.AllocationName(domain, addr); want != a.Name {
		return fmt.Sprintf("spec.domain and spec.address make the name %s: the name protects another address than the pod has", want)
	}
	return ""
}

// rightLabels returns the labels that an allocation should have, as far as it has to.
func rightLabels(a *v1alpha1.IPAllocation) map[string]string {
	out := v1alpha1.AllocationLabels(&a.Spec)
	if a.Labels[v1alpha1.LabelWindow] == "" { // not all have to have it
		delete(out, v1alpha1.LabelWindow)
	}
	return out
}

// wrongLabels says which labels are wrong. A reservation needs none.
func wrongLabels(a *v1alpha1.IPAllocation) (out []string) {
	for key, want := range rightLabels(a) {
		have, found := a.Labels[key]
		if have != want && (found || a.Spec.ContainerID != "") {
			out = append(out, fmt.Sprintf("label %s is %q, want %q", key, have, want))
		}
	}
	slices.Sort(out)
	return out
}

func relabel(a *v1alpha1.IPAllocation) string {
	out := "kubectl label --overwrite ipa -n " + a.Namespace + " " + a.Name
	var labels []string
	for key, want := range rightLabels(a) {
		labels = append(labels, key+"="+want)
	}
	slices.Sort(labels)
	return out + " " + strings.Join(labels, " ")
}

// attachment is what has one address of a pool.
type attachment struct {
	node, container, iface string
	pool                   v1alpha1.PoolReference
}

func attachmentOf(a *v1alpha1.IPAllocation) attachment {
	return attachment{a.Spec.NodeName, a.Spec.ContainerID, a.Spec.InterfaceName, a.Spec.PoolRef}
}

// used returns the one allocation of an attachment whose address the pod has by its
// network-status; nil if that is none of them, or more than one.
func (p *pod) used(of []*v1alpha1.IPAllocation) (out *v1alpha1.IPAllocation) {
	if p == nil {
		return nil
	}
	has := map[string]bool{}
	for _, st := range parseStatus(p.status) {
		for _, addr := range st.addresses() {
			has[st.Interface+" "+addr.String()] = true
		}
	}
	for _, a := range of {
		switch {
		case !has[a.Spec.InterfaceName+" "+a.Spec.Address]:
		case out != nil:
			return nil
		default:
			out = a
		}
	}
	return out
}

// attachments looks for two allocations of one attachment in one pool.
func (k *checking) attachments(s *site) {
	first := map[attachment]*v1alpha1.IPAllocation{}
	many := map[attachment][]*v1alpha1.IPAllocation{}
	for _, a := range s.allocations {
		if !a.Spec.Held() {
			continue
		}
		at := attachmentOf(a)
		switch {
		case first[at] == nil:
			first[at] = a
		case many[at] == nil:
			many[at] = []*v1alpha1.IPAllocation{first[at], a}
		default:
			many[at] = append(many[at], a)
		}
	}
	for _, all := range many {
		ref := all[0].Spec.PodRef
		p := k.record.pods[podKey(ref)]
		if p == nil || !p.Holds(all[0]) { // it is gone: each of them is without a pod
			continue
		}
		used := p.used(all)
		keep := cmp.Or(used, all[0])
		for _, a := range all {
			if a == keep {
				continue
			}
			mend := "its network-status does not say which one it uses: start the pod again, which releases both: " + deletePod(podKey(ref))
			if used != nil {
				mend = "by its network-status the pod has " + used.Spec.Address + ", so release the other: " + releaseCommand(a) + " --force"
			}
			k.find(classTwoOfOne, s.namespace, a.Name, fmt.Sprintf("interface %s of pod %s has %s of the same pool as well: it uses one of them", a.Spec.InterfaceName, podKey(ref), keep.Name),
				proofOf(keep)+"; "+proofOf(a), mend)
		}
	}
}

// blocks looks for blocks of a pool that overlap.
func (k *checking) blocks(s *site) {
	for _, p := range s.pools {
		for _, pair := range overlaps(sorted(p.Blocks())) {
			a, b := pair[0], pair[1]
			k.find(classBlocks, s.namespace, p.Ref.Name, fmt.Sprintf("the blocks of nodes %s and %s overlap: they take addresses from each other", a.Node, b.Node),
				fmt.Sprintf("status.allocations of %s %s: %s has %s, %s has %s", p.Ref.Kind, p.Ref.Name, a.Node, a.Range, b.Node, b.Range),
				"only the controller should write status.allocations: see who does with "+showManagers(p)+"; the controller corrects it when the pool changes")
		}
	}
}

// overlaps returns each block, of those sorted by their first address, that overlaps one before
// it of another node, with the one of these that reaches furthest.
func overlaps(blocks []pool.Assignment) (out [][2]pool.Assignment) {
	var far, other pool.Assignment // that reach furthest, of two nodes
	beyond := func(a, b pool.Assignment) bool { return b.Node == "" || b.Range.To().Less(a.Range.To()) }
	for _, b := range blocks {
		before := far
		if far.Node == b.Node {
			before = other
		}
		if before.Node != "" && before.Range.Overlaps(b.Range) {
			out = append(out, [2]pool.Assignment{before, b})
		}
		switch {
		case far.Node == b.Node:
			if beyond(b, far) {
				far = b
			}
		case beyond(b, far):
			far, other = b, far
		case beyond(b, other):
			other = b
		}
	}
	return out
}

func showManagers(p *pool.Object) string {
	return fmt.Sprintf("kubectl get %s -n %s %s -o yaml --show-managed-fields", pool.Resource(p.Ref.Kind).GroupResource(), p.Meta.Namespace, p.Ref.Name)
}

// domains looks for pools of other domains with addresses in common.
func (k *checking) domains(s *site) {
	for i, p := range s.pools {
		for _, q := range s.pools[i+1:] {
			if p.Domain != q.Domain && p.Overlaps(q) {
				k.find(classDomains, s.namespace, p.Ref.Name+", "+q.Ref.Name,
					fmt.Sprintf("%s (%s) and %s (%s) have addresses in common and are of different domains: if both are one network, an address is given twice", p.Ref.Name, p.Subnet, q.Ref.Name, q.Subnet),
					fmt.Sprintf("spec.domain of %s %s is %s, of %s %s is %s", p.Ref.Kind, p.Ref.Name, p.Domain, q.Ref.Kind, q.Ref.Name, q.Domain),
					"make one of them again with the other's spec.domain, which is immutable; or change a subnet; nothing if the networks never meet")
			}
		}
	}
}

// namespaces looks for pools in other namespaces that have addresses in common and give
// some: each namespace is a record of its own. That is also what NVIDIA's nv-ipam looks
// like, which has its reservations on the nodes.
func (k *checking) namespaces() {
	for i, s := range k.sites {
		for _, t := range k.sites[i+1:] {
			for _, p := range s.pools {
				for _, q := range t.pools {
					if !p.Overlaps(q) {
						continue
					}
					if here, there := s.gives(p), t.gives(q); here != "" && there != "" {
						k.find(classOtherInstance, s.namespace, p.Ref.Name+", "+t.namespace+"/"+q.Ref.Name,
							fmt.Sprintf("%s/%s (%s) and %s/%s (%s) have addresses in common, and nodes take addresses from both: two records, so an address is given twice", s.namespace, p.Ref.Name, p.Subnet, t.namespace, q.Ref.Name, q.Subnet),
							fmt.Sprintf("%s; %s; namespace %s has %d allocations, %s has %d (none: its reservations are nv-ipam's, on the nodes)", here, there, s.namespace, len(s.allocations), t.namespace, len(t.allocations)),
							"stop one of the two controllers, and keep the pools of one namespace: docs/migration.md")
					}
				}
			}
		}
	}
}

// gives says by what nodes have addresses of a pool, or take some; "" if nothing says so.
func (s *site) gives(p *pool.Object) string {
	name := s.namespace + "/" + p.Ref.Name
	if p.Disabled {
		if n := len(s.heldIn(p)); n > 0 {
			return fmt.Sprintf("%s is disabled, and %d of its addresses are held", name, n)
		}
		return ""
	}
	if n := len(p.Blocks()); n > 0 {
		return fmt.Sprintf("%s has %d blocks in its status", name, n)
	}
	if parsed, errs := p.Parse(); len(errs) == 0 && parsed.Shared {
		return "of " + name + " every node uses the whole subnet"
	}
	return ""
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/jsonmergepatch"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// The states of an allocation, as docs/design.md has them.
var states = map[string]func() *v1alpha1.IPAllocation{
	"nothing":  nil,
	"held":     func() *v1alpha1.IPAllocation { return allocation("p", "10.0.0.1", "a") },
	"held+":    func() *v1alpha1.IPAllocation { return cools(allocation("p", "10.0.0.1", "a")) }, // with a cooldown
	"held*":    func() *v1alpha1.IPAllocation { return ownedBy(allocation("p", "10.0.0.1", "a")) },
	"released": func() *v1alpha1.IPAllocation { return gaveUp(cools(allocation("p", "10.0.0.1", "a"))) },
	"kept":     func() *v1alpha1.IPAllocation { return gaveUp(ownedBy(allocation("p", "10.0.0.1", "a"))) }, // released, with an owner
	"reserved": func() *v1alpha1.IPAllocation { return ownedBy(allocation("p", "10.0.0.1", "")) },
	"proposed": func() *v1alpha1.IPAllocation { return proposed("a") }, // reserved by a node, for an interface of a pod of a StatefulSet
	"claimed":  func() *v1alpha1.IPAllocation { return claimed("a") },  // held, with an IPAMClaim as owner
	"moving":   func() *v1alpha1.IPAllocation { return moving("b") },   // the same, with a next attachment
	"moved":    func() *v1alpha1.IPAllocation { return moving("b").Promoted() },
}

// claimed is held on node a, by a pod of a virtual machine.
func claimed(node string) *v1alpha1.IPAllocation {
	a := ownedBy(allocation("p", "10.0.0.1", node))
	ofClaim(a.Spec.Owner)
	label(v1alpha1.LabelOwner, v1alpha1.OwnerLabel("u"))(a)
	return a
}

// moving is what a machine on node a moves from, to another node.
func moving(to string) *v1alpha1.IPAllocation {
	a := claimed("a")
	a.Spec.Next = &v1alpha1.NextAttachment{
		NodeName: to, PodRef: v1alpha1.PodReference{Namespace: "ml", Name: "launcher-2", UID: "u2"}, ContainerID: "c9", InterfaceName: "net1", NetworkName: "net",
		AddStartedAt: &metav1.MicroTime{Time: time.Date(2026, 1, 2, 3, 4, 5, 678000, time.UTC)},
	}
	return a
}

func proposed(node string) *v1alpha1.IPAllocation {
	a := ownedBy(allocation("p", "10.0.0.1", node))
	a.Spec.ContainerID = ""
	label(v1alpha1.LabelContainer, "")(a)
	label(v1alpha1.LabelOwner, v1alpha1.OwnerLabel("u"))(a)
	return a
}

func cools(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.ReleaseCooldown = &metav1.Duration{Duration: time.Minute}
	return a
}

func ownedBy(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.Owner = &v1alpha1.AllocationOwner{APIGroup: "apps", Kind: "StatefulSet", Namespace: "ml", Name: "train", UID: "u"}
	return a
}

func gaveUp(a *v1alpha1.IPAllocation) *v1alpha1.IPAllocation {
	a.Spec.ReleasedAt = &metav1.Time{Time: time.Now()}
	label(v1alpha1.LabelReleased, "true")(a)
	return a
}

// transitions are all that each writer may do; a pair that is not here is refused. What a
// writer holds after a transition is a container of its own, of the same pod.
var transitions = map[string][]string{
	"own node": {
		"nothing>held", "nothing>held+", "held>nothing", "held+>released", "held*>kept",
		"released>held", "released>held+", "kept>held*", "reserved>held*",
		"nothing>proposed", "proposed>held*", "proposed>nothing", "reserved>nothing",
		"moving>moved",
	},
	"other node": {
		"nothing>held", "nothing>held+",
		"released>held", "released>held+", "kept>held*", "reserved>held*",
		"nothing>proposed", "proposed>held*", "proposed>nothing", "reserved>nothing",
		"claimed>moving", "moving>claimed", "moving>moving",
	},
	// It never holds an address itself.
	"controller": {
		"held>nothing", "held+>nothing", "held*>nothing", "released>nothing", "kept>nothing", "reserved>nothing",
		"held+>released", "held*>kept", "released>reserved", "kept>reserved",
		"nothing>reserved",
		"nothing>proposed", "proposed>nothing", "released>proposed", "kept>proposed", "proposed>reserved", "reserved>proposed",
		"claimed>nothing", "moving>nothing", "moved>nothing", "moving>claimed", "moving>moved",
	},
	"nobody": nil,
}

// Every pair of states, for each kind of writer.
func TestTransitions(t *testing.T) {
	c := newCluster(t)
	c.Apply(t, "base/controller")
	c.persistentAddresses(t, "default", "persistent-addresses")
	c.account(t, "other", "")
	writers := map[string]struct {
		as   clientv1alpha1.NvIpamV1alpha1Interface
		node string
	}{
		"own node":   {c.node(t, "a"), "a"},
		"other node": {c.node(t, "b"), "b"},
		"controller": {clientOf(t, c), "a"},
		"nobody":     {c.user(t, "somebody"), "a"},
	}
	for writer, w := range writers {
		for from, before := range states {
			for to, after := range states {
				if from == to && !strings.HasPrefix(to, "held") && to != "moving" {
					continue
				}
				pair := from + ">" + to
				t.Run(writer+" "+pair, func(t *testing.T) {
					err := c.transition(t, w.as, w.node, before, after)
					allowed := slices.Contains(transitions[writer], pair)
					switch {
					case allowed && err != nil:
						t.Errorf("refused: %v", err)
					case !allowed && err == nil:
						t.Error("allowed")
					case !allowed && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err):
						t.Errorf("neither forbidden nor invalid: %v", err)
					}
				})
			}
		}
	}
}

// clientOf is the controller, with its service account and role.
func clientOf(t *testing.T, c *cluster) clientv1alpha1.NvIpamV1alpha1Interface {
	t.Helper()
	token, err := c.Token(t, "nv-ipam-controller", nil)
	if err != nil {
		t.Fatal(err)
	}
	return withToken(t, token)
}

// transition has a writer make one state of another.
func (c *cluster) transition(t *testing.T, as clientv1alpha1.NvIpamV1alpha1Interface, node string, before, after func() *v1alpha1.IPAllocation) error {
	t.Helper()
	const name = "p.10.0.0.1"
	ctx, client := t.Context(), as.IPAllocations(c.NS)
	defer c.remove(t, name)
	var stored *v1alpha1.IPAllocation
	if before != nil {
		stored = c.put(t, before())
	}
	if after == nil {
		return client.Delete(ctx, name, metav1.DeleteOptions{})
	}
	wanted := after()
	if isMove(stored, wanted) { // the attachments stay as they are
		wanted.ResourceVersion = stored.ResourceVersion
		if next := wanted.Spec.Next; next != nil && stored.Spec.Next != nil {
			next.ContainerID = "c10" // a later sandbox
		}
		_, err := client.Patch(ctx, name, types.MergePatchType, difference(t, stored, wanted), metav1.PatchOptions{})
		return err
	}
	if wanted.Spec.NodeName != "" && !wanted.Spec.Released() { // of the writer, and another container
		wanted.Spec.NodeName = node
		wanted.Labels[v1alpha1.LabelNode] = node
	}
	if wanted.Spec.Held() {
		wanted.Spec.ContainerID = "c2"
		if stored != nil && stored.Labels[v1alpha1.LabelOwner] != "" {
			wanted.Labels[v1alpha1.LabelOwner] = stored.Labels[v1alpha1.LabelOwner]
		}
	}
	if before == nil {
		_, err := client.Create(ctx, wanted, metav1.CreateOptions{})
		return err
	}
	wanted.ResourceVersion = stored.ResourceVersion
	if wanted.Spec.Released() && stored.Spec.Held() {
		wanted.Spec.ContainerID = stored.Spec.ContainerID
	}
	patch := difference(t, stored, wanted)
	_, err := client.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// isMove reports whether one allocation of a machine is made of another, with a next attachment
// on either side.
func isMove(stored, wanted *v1alpha1.IPAllocation) bool {
	return stored != nil && stored.Spec.Owner.IsIPAMClaim() && wanted.Spec.Owner.IsIPAMClaim() && (stored.Spec.Next != nil || wanted.Spec.Next != nil)
}

// difference is the merge patch from one to the other, spec and labels only.
func difference(t *testing.T, from, to *v1alpha1.IPAllocation) []byte {
	t.Helper()
	part := func(a *v1alpha1.IPAllocation) []byte {
		data, err := json.Marshal(map[string]any{"metadata": map[string]any{"labels": a.Labels}, "spec": a.Spec})
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	patch, err := jsonmergepatch.CreateThreeWayJSONMergePatch(part(from), part(to), part(from))
	if err != nil {
		t.Fatal(err)
	}
	return patch
}

// What a node may not do on the way of an allowed transition.
func TestTransitionsWithMore(t *testing.T) {
	c := newCluster(t)
	c.bind(t, "cluster-admin", rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: testenv.NodesGroup})
	type alloc = v1alpha1.IPAllocation
	own := func(a *alloc) {
		a.Spec.NodeName, a.Spec.ContainerID, a.Spec.InterfaceName, a.Spec.ReleasedAt = "a", "c2", "net1", nil
		for key, value := range map[string]string{
			v1alpha1.LabelNode: "a", v1alpha1.LabelPool: "p", v1alpha1.LabelContainer: v1alpha1.ContainerLabel("c2"), v1alpha1.LabelReleased: "",
		} {
			label(key, value)(a)
		}
	}
	give := func(a *alloc) { gaveUp(a) }
	const (
		keptFor = "node a may take over an address that is reserved, or kept for an owner, only for the pod that it is kept for"
		noLabel = "node a may change no label of an allocation that it releases"
		noMeta  = "node a may not change the annotations, ownerReferences or finalizers"
	)
	annotatedState := func(state string) func() *alloc {
		return func() *alloc {
			a := states[state]()
			annotated(a)
			label("of", "mine")(a)
			return a
		}
	}
	ofClaimNow := func(state string) func() *alloc {
		return func() *alloc { a := states[state](); ofClaim(a.Spec.Owner); return a }
	}
	on := func(holder, next string) func() *alloc {
		return func() *alloc {
			a := claimed(holder)
			if next != "" {
				a.Spec.Next = moving(next).Spec.Next
			}
			return a
		}
	}
	joins := func(next string) edit {
		return func(a *alloc) {
			if a.Spec.Next = nil; next != "" {
				a.Spec.Next = moving(next).Spec.Next
			}
		}
	}
	promote := func(a *alloc) {
		promoted := a.Promoted()
		a.Spec, a.Labels = promoted.Spec, promoted.Labels
	}
	c.persistentAddresses(t, "default", "persistent-addresses")
	for _, tc := range []struct {
		name   string
		before func() *alloc
		edit   edit
		says   string
	}{
		{"take over released", states["released"], own, ""},
		{"take over released with annotations", annotatedState("released"), own, ""},
		{"take over reserved with annotations", annotatedState("reserved"), own, ""},
		{"take over released for another pod", states["released"], both(own, pod(v1alpha1.PodReference{Namespace: "x", Name: "y", UID: "z"})), ""},
		{"take over kept for another pod", states["kept"], both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-1"})), keptFor},
		{"take over reserved for another pod", states["reserved"], both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-1"})), keptFor},
		{"take over reserved for a pod of another namespace", states["reserved"], both(own, pod(v1alpha1.PodReference{Namespace: "x", Name: "train-0"})), keptFor},
		{"take over reserved for nobody", func() *alloc { a := states["reserved"](); a.Spec.PodRef = v1alpha1.PodReference{}; return a }, both(own, pod(v1alpha1.PodReference{Namespace: "x", Name: "y"})), keptFor},
		{"take over reserved for another UID", func() *alloc { a := states["reserved"](); a.Spec.PodRef.UID = "u1"; return a }, both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-0", UID: "u2"})), keptFor},
		{"take over kept for an IPAMClaim, for another pod", ofClaimNow("kept"), both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "launcher-2", UID: "u2"})), ""},
		{"take over kept for an IPAMClaim, on another interface", ofClaimNow("kept"), both(own, func(a *alloc) { a.Spec.InterfaceName = "net9" }), ""},
		{"take over proposed for an IPAMClaim, for another pod", ofClaimNow("proposed"), both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "launcher-2", UID: "u2"})), ""},
		{"take over kept for an IPAMClaim, for a pod of another namespace", ofClaimNow("kept"), both(own, pod(v1alpha1.PodReference{Namespace: "x", Name: "launcher"})), keptFor},
		{"take over for no pod", states["released"], both(own, pod(v1alpha1.PodReference{})), namesBoth},
		{"take over for another node", states["released"], both(own, node("b")), "only with its own name as spec.nodeName"},
		{"take over with another's label", states["released"], both(own, label(v1alpha1.LabelNode, "b")), mustLabel},
		{"take over without a label", states["released"], both(own, label(v1alpha1.LabelContainer, "")), mustLabel},
		{"take over with a label more", states["released"], both(own, label("x", "y")), mustLabel},
		{"take over and stay released by label", states["released"], both(own, label(v1alpha1.LabelReleased, "true")), mustLabel},
		{"take over and annotate", states["released"], both(own, annotated), noMeta},
		{"take over and add a finalizer", states["released"], both(own, finalizer("example.com/stay")), noMeta},
		{"take over and give an owner", states["released"], both(own, owned), noMeta},
		{"take over proposed", states["proposed"], own, ""},
		{"take over proposed without the owner's label", states["proposed"], both(own, label(v1alpha1.LabelOwner, "")), mustLabel},
		{"take over proposed with another owner's label", states["proposed"], both(own, label(v1alpha1.LabelOwner, v1alpha1.OwnerLabel("v"))), mustLabel},
		{"take over proposed for another pod", states["proposed"], both(own, pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-1"})), keptFor},
		{"take over proposed for another interface", states["proposed"], both(own, func(a *alloc) { a.Spec.InterfaceName = "net2" }), keptFor},
		{"take over kept on another network", states["kept"], both(own, func(a *alloc) { a.Spec.NetworkName = "evil" }), keptFor},
		{"release", states["held+"], give, ""},
		{"release and annotate", states["held+"], both(give, annotated), noMeta},
		{"release and add a finalizer", states["held+"], both(give, finalizer("example.com/stay")), noMeta},
		{"release with a label more", states["held+"], both(give, label("x", "y")), noLabel},
		{"release with a label less", states["held+"], both(give, label(v1alpha1.LabelNode, "")), noLabel},
		{"release with another value", states["held+"], both(give, label(v1alpha1.LabelReleased, strings.Repeat("x", 60))), noLabel},
		{"release another's", func() *alloc { return cools(allocation("p", "10.0.0.1", "b")) }, give, mayChange},
		{"release again", states["released"], func(*alloc) {}, ""},
		{"join", on("b", ""), joins("a"), ""},
		{"join again, with a later sandbox", on("b", "a"), both(joins("a"), func(a *alloc) { a.Spec.Next.ContainerID = "c10" }), ""},
		{"join for another node", on("b", ""), joins("c"), mayChange},
		{"join for a pod of another namespace", on("b", ""), both(joins("a"), func(a *alloc) { a.Spec.Next.PodRef.Namespace = "x" }), mayChange},
		{"join in the place of another node", on("b", "c"), joins("a"), mayChange},
		{"join and change a label", on("b", ""), both(joins("a"), label(v1alpha1.LabelNode, "a")), noLabel},
		{"join and annotate", on("b", ""), both(joins("a"), annotated), noMeta},
		{"leave", on("b", "a"), joins(""), ""},
		{"leave and change a label", on("b", "a"), both(joins(""), label("x", "y")), noLabel},
		{"let another node leave", on("b", "c"), joins(""), mayChange},
		{"take the holder's place", on("b", "a"), promote, mayChange},
		{"give the place to the next", on("a", "b"), promote, ""},
		{"give the place to the next under the own label", on("a", "b"), both(promote, label(v1alpha1.LabelNode, "a")), mustLabel},
		{"give the place to the next and annotate", on("a", "b"), both(promote, annotated), noMeta},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stored, err := c.IPAM.IPAllocations(c.NS).Create(t.Context(), tc.before(), metav1.CreateOptions{FieldManager: "kubectl"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.remove(t, stored.Name)
			wanted := stored.DeepCopy()
			tc.edit(wanted)
			_, err = c.node(t, "a").IPAllocations(c.NS).Update(t.Context(), wanted, metav1.UpdateOptions{})
			want(t, err, tc.says)
		})
	}
	t.Run("managed fields of its own making", func(t *testing.T) {
		stored := c.put(t, states["released"]())
		defer c.remove(t, stored.Name)
		wanted := stored.DeepCopy()
		own(wanted)
		wanted.ManagedFields = append(wanted.ManagedFields, metav1.ManagedFieldsEntry{
			Manager: "x", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "nv-ipam.nvidia.com/v1alpha1", FieldsType: "FieldsV1",
			FieldsV1: metav1.NewFieldsV1(`{"f:metadata":{"f:annotations":{"f:` + strings.Repeat("x", 1000) + `":{}}}}`),
		})
		_, err := c.node(t, "a").IPAllocations(c.NS).Update(t.Context(), wanted, metav1.UpdateOptions{})
		want(t, err, "may not write an allocation with managedFields of its own making")
	})
}

// nodeHost is a node's disk with its kubelet's credentials.
func (c *cluster) nodeHost(t *testing.T, node string, settings map[string]string) *host {
	t.Helper()
	config, h := nodeConfig(t, node), c.host(t, settings)
	h.kubeconfig(t, &clientcmdapi.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData})
	return h
}

// With the rights of the manifests a node releases its own, and another one takes over
// what has rested.
func TestCooldownOnTwoNodes(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/30", PoolAccess: v1alpha1.PoolAccess{ReleaseCooldown: &metav1.Duration{Duration: time.Second}}})
	a, b := c.nodeHost(t, "a", nil), c.nodeHost(t, "b", nil)
	a.mustRun(t, "ADD", "c1")
	a.mustRun(t, "ADD", "c2")
	b.wantError(t, "ADD", 11, "no free addresses")
	a.mustRun(t, "DEL", "c1")
	a.mustRun(t, "DEL", "c2")
	rig.Eventually(t, "node b has an address", func() bool {
		if err := os.RemoveAll(filepath.Join(b.dir, "data")); err != nil { // it believes for ten seconds that the pool is full
			t.Fatal(err)
		}
		return b.run(t, "ADD", "c3") == nil
	})
	of := map[string]int{}
	for _, now := range c.Allocations(t) {
		if now.Spec.Held() {
			of[now.Spec.NodeName+" "+now.Spec.ContainerID]++
		} else {
			of["released"]++
		}
	}
	if of["b c3"] != 1 || of["released"] != 1 {
		t.Errorf("have %v", of)
	}
	a.mustRun(t, "DEL", "c1")
	b.mustRun(t, "CHECK", "c3")
}

// Role and policy are of an earlier version, which knows no release: the DEL deletes. Then
// the role is, and the policy is not: the release is left to the controller.
func TestCooldownWithAnEarlierRole(t *testing.T) {
	c := newCluster(t)
	rig.IPPool(t, c.IPAM, c.NS, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 10}, "a")
	h := c.nodeHost(t, "a", map[string]string{"releaseCooldown": "1h"})
	role, err := c.Kube.RbacV1().ClusterRoles().Get(t.Context(), role, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range role.Rules {
		role.Rules[i].Verbs = slices.DeleteFunc(role.Rules[i].Verbs, func(verb string) bool { return verb == "patch" })
	}
	if _, err := c.Kube.RbacV1().ClusterRoles().Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "the role has no patch", func() bool {
		return !c.may(t, &authorizationv1.ResourceAttributes{Namespace: c.NS, Verb: "patch", Group: v1alpha1.GroupVersion.Group, Resource: "ipallocations"})
	})
	h.mustRun(t, "ADD", "c1")
	h.mustRun(t, "DEL", "c1")
	left := c.Allocations(t)
	if len(left) != 1 || !left[0].Spec.Held() {
		t.Fatalf("refused, and yet %v", left)
	}
	if _, err := env.Kubectl(t.Context(), "delete", "validatingadmissionpolicybinding", role.Name); err != nil {
		t.Fatal(err)
	}
	rig.Eventually(t, "it is released by a later call", func() bool {
		h.mustRun(t, "STATUS", "c1")
		return len(c.Allocations(t)) == 0
	})
}

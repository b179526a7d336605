// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// What the policy says to node a.
const (
	mayCreate  = `node a may create only allocations whose spec.nodeName is its own name, this one has "`
	mayChange  = "node a may change an allocation only to release its own (spec.releasedAt), to take over one that is released or reserved, or for itself to join or leave one that moves (spec.next)"
	mayDelete  = `node a may delete only allocations whose spec.nodeName is its own name, this one has "`
	namesBoth  = "node a may claim only allocations that name a container and a pod with its namespace"
	mustLabel  = "node a must label an allocation with nv-ipam.nvidia.com/pool and nv-ipam.nvidia.com/node"
	ownerOnly  = "node a may not create an allocation with spec.releasedAt or spec.next, nor with spec.owner unless that is the StatefulSet of a pod for which the address is reserved"
	nothingNew = "node a may not create an allocation with annotations, ownerReferences or finalizers"
)

type edit func(*v1alpha1.IPAllocation)

// write is one request of node a.
type write struct {
	name string
	// before is what there is, nil for a create; edit makes of it what is asked
	// for, nil for a delete.
	before *v1alpha1.IPAllocation
	edit   edit
	// says is the refusal; empty where the request is allowed.
	says string
}

func take(node string) edit {
	return func(a *v1alpha1.IPAllocation) {
		a.Spec.NodeName, a.Spec.ContainerID, a.Spec.InterfaceName = node, "c2", "net1"
	}
}

// label sets a label, or removes it where value is empty.
func label(key, value string) edit {
	return func(a *v1alpha1.IPAllocation) {
		if a.Labels == nil {
			a.Labels = map[string]string{}
		}
		if a.Labels[key] = value; value == "" {
			delete(a.Labels, key)
		}
	}
}

// six makes it an IPv6 address.
func six(a *v1alpha1.IPAllocation) {
	a.Spec.Address = "fd00::1:aabb"
	a.Name = v1alpha1.AllocationName("p", netip.MustParseAddr(a.Spec.Address))
}

func annotated(a *v1alpha1.IPAllocation) { a.Annotations = map[string]string{"x": "y"} }

// asked is what an earlier plugin notes: when its ADD began.
func asked(text string) edit {
	return func(a *v1alpha1.IPAllocation) {
		if a.Annotations == nil {
			a.Annotations = map[string]string{}
		}
		a.Annotations["nv-ipam.nvidia.com/asked"] = text
	}
}

func owned(a *v1alpha1.IPAllocation) {
	a.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "gone", UID: "u"}}
}

func finalizer(name string) edit {
	return func(a *v1alpha1.IPAllocation) { a.Finalizers = append(a.Finalizers, name) }
}

func node(name string) edit {
	return func(a *v1alpha1.IPAllocation) { a.Spec.NodeName = name }
}

func owner(of func(*v1alpha1.AllocationOwner)) edit {
	return func(a *v1alpha1.IPAllocation) { of(a.Spec.Owner) }
}

func pod(ref v1alpha1.PodReference) edit {
	return func(a *v1alpha1.IPAllocation) { a.Spec.PodRef = ref }
}

func both(edits ...edit) edit {
	return func(a *v1alpha1.IPAllocation) {
		for _, e := range edits {
			e(a)
		}
	}
}

func ofClaim(o *v1alpha1.AllocationOwner) {
	*o = v1alpha1.AllocationOwner{APIGroup: v1alpha1.IPAMClaimGroup, Kind: v1alpha1.KindIPAMClaim, Namespace: "ml", Name: "vm.net", UID: "u"}
}

// planned is a reservation for a node, without an attachment.
func planned(nodeName string) *v1alpha1.IPAllocation {
	a := allocation("p", "10.0.0.1", "")
	a.Spec.NodeName = nodeName
	return a
}

func writes() []write {
	const addr = "10.0.0.1"
	own, foreign, nobodys := allocation("p", addr, "a"), allocation("p", addr, "b"), allocation("p", addr, "")
	// create is a create of own, with edits.
	create := func(name, says string, edits ...edit) write {
		return write{name: "create " + name, says: says, edit: both(append([]edit{func(b *v1alpha1.IPAllocation) { *b = *own.DeepCopy() }}, edits...)...)}
	}
	as := func(a *v1alpha1.IPAllocation) edit { return func(b *v1alpha1.IPAllocation) { *b = *a.DeepCopy() } }
	return []write{
		create("own", ""),
		create("own of a domain", "", func(a *v1alpha1.IPAllocation) { a.Spec.PoolRef.Name, a.Spec.Domain = "q", "p" }, label(v1alpha1.LabelPool, "q")),
		create("own that was lost", "", func(a *v1alpha1.IPAllocation) { a.Spec.Restored = true }),
		create("own with a domain", "", func(a *v1alpha1.IPAllocation) { a.Spec.Domain = "p" }),
		create("a proposal", "", as(proposed("a"))),
		create("a proposal of another node", mayCreate+`b"`, as(proposed("b"))),
		create("a proposal for another workload", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.Kind = "Deployment" })),
		create("a proposal for a reservation", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.APIGroup, o.Kind = v1alpha1.GroupName, "IPReservation" })),
		create("a proposal without the UID", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.UID = "" })),
		create("a proposal of another namespace", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.Namespace = "x" })),
		create("a proposal for another StatefulSet's pod", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.Name = "trai" })),
		create("a proposal for no pod of a StatefulSet", ownerOnly, as(proposed("a")), pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-x"})),
		create("a proposal for one pod of the name", ownerOnly, as(proposed("a")), pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-0", UID: "x"})),
		create("a proposal without a pod", ownerOnly, as(proposed("a")), pod(v1alpha1.PodReference{})),
		create("a proposal without the owner's label", mustLabel, as(proposed("a")), label(v1alpha1.LabelOwner, "")),
		create("a proposal with another text for a label", mustLabel, as(proposed("a")), label(v1alpha1.LabelOwner, "u")),
		create("a proposal with a container's label", mustLabel, as(proposed("a")), label(v1alpha1.LabelContainer, v1alpha1.ContainerLabel("c1"))),
		create("a proposal for an IPAMClaim that it may not read", ownerOnly, as(proposed("a")), owner(ofClaim), pod(v1alpha1.PodReference{Namespace: "ml", Name: "launcher"})),
		create("a proposal for another group's IPAMClaim", ownerOnly, as(proposed("a")), owner(func(o *v1alpha1.AllocationOwner) { o.Kind = "IPAMClaim" })),
		create("own with an owner", ownerOnly, func(a *v1alpha1.IPAllocation) { ownedBy(a) }),
		create("own with an owner's label", mustLabel, label(v1alpha1.LabelOwner, v1alpha1.OwnerLabel("u"))),
		create("own with a UID", "", pod(v1alpha1.PodReference{Namespace: "ml", Name: "a.b", UID: "0123456789abcdef0123456789abcdef"})),
		create("another's", mayCreate+`b"`, as(foreign)),
		create("nobody's", mayCreate+`"`, as(nobodys)),
		create("own reservation", namesBoth, as(planned("a"))),
		create("own for no pod", namesBoth, pod(v1alpha1.PodReference{})),
		create("own for a pod without a name", namesBoth, pod(v1alpha1.PodReference{Namespace: "ml", UID: "u"})),
		create("own for a pod without a namespace", namesBoth, pod(v1alpha1.PodReference{Name: "train-0", UID: "u"})),

		create("own without labels", mustLabel, func(a *v1alpha1.IPAllocation) { a.Labels = nil }),
		create("own without the pool's label", mustLabel, label(v1alpha1.LabelPool, "")),
		create("own without the node's label", mustLabel, label(v1alpha1.LabelNode, "")),
		create("own without the container's label", mustLabel, label(v1alpha1.LabelContainer, "")),
		create("own with another's label", mustLabel, label(v1alpha1.LabelNode, "b")),
		create("own with another pool's label", mustLabel, label(v1alpha1.LabelPool, "q")),
		create("own with a hash for the pool", mustLabel, label(v1alpha1.LabelPool, v1alpha1.ContainerLabel("p"))),
		create("own with a hash for the node", mustLabel, label(v1alpha1.LabelNode, v1alpha1.ContainerLabel("a"))),
		create("own with a container's name for its label", mustLabel, label(v1alpha1.LabelContainer, "c1")),
		create("own with a label more", mustLabel, label("x", "y")),
		create("own with a label more and the window", mustLabel, label("x", "y"), label(v1alpha1.LabelWindow, "10.0.0.0-24")),
		create("own with its window", "", label(v1alpha1.LabelWindow, "10.0.0.0-24")),
		create("own with another window", mustLabel, label(v1alpha1.LabelWindow, "10.0.1.0-24")),
		create("own with its window in place of one", mustLabel, label(v1alpha1.LabelWindow, "10.0.0.0-24"), label(v1alpha1.LabelPool, "")),
		create("own of IPv6 with its window", "", six, label(v1alpha1.LabelWindow, v1alpha1.WindowLabel(netip.MustParseAddr("fd00::1:aabb")))),
		create("own of IPv6 with another window", mustLabel, six, label(v1alpha1.LabelWindow, v1alpha1.WindowLabel(netip.MustParseAddr("fd00::1:abbb")))),
		create("own with another label in place of one", mustLabel, label(v1alpha1.LabelContainer, ""), label("x", v1alpha1.ContainerLabel("c1"))),

		create("own with an annotation", nothingNew, annotated),
		create("own with when its ADD began, as an earlier plugin", "", asked("2026-11-23T17:38:02.123456789Z")),
		create("own with more than that", nothingNew, annotated, asked("2026-11-23T17:38:02.123456789Z")),
		create("own with a longer text there", nothingNew, asked(strings.Repeat("2", 41))),
		create("own with an owner", nothingNew, owned),
		create("own with a finalizer", nothingNew, finalizer("example.com/stay")),

		{name: "label own", before: own, edit: label("x", "y"), says: mayChange},
		{name: "label own for another", before: own, edit: label(v1alpha1.LabelNode, "b"), says: mayChange},
		{name: "label own for another pool", before: own, edit: label(v1alpha1.LabelPool, "q"), says: mayChange},
		{name: "take the label off own", before: own, edit: label(v1alpha1.LabelPool, ""), says: mayChange},
		{name: "annotate own", before: own, edit: annotated, says: mayChange},
		{name: "give own an owner", before: own, edit: owned, says: mayChange},
		{name: "add a finalizer to own", before: own, edit: finalizer("example.com/stay"), says: mayChange},
		{name: "update what is planned for it", before: planned("a"), edit: pod(v1alpha1.PodReference{Namespace: "ml", Name: "train-1"}), says: mayChange},
		{name: "take up what is planned for it", before: planned("a"), edit: take("a"), says: mustLabel},
		{name: "take up what is planned for another", before: planned("b"), edit: take("a"), says: mustLabel},
		{name: "take up nobody's", before: nobodys, edit: both(take("a"), label(v1alpha1.LabelNode, "a")), says: mustLabel},
		{name: "give own away", before: planned("a"), edit: node("b"), says: mayChange},
		{name: "give own up", before: planned("a"), edit: node(""), says: mayChange},
		{name: "update another's", before: foreign, edit: label("x", "y"), says: mayChange},
		{name: "update nobody's", before: nobodys, edit: label("x", "y"), says: mayChange},

		{name: "delete own", before: own},
		{name: "delete what is planned for it", before: planned("a"), says: "node a may not delete an allocation that is reserved"},
		{name: "delete another's", before: foreign, says: mayDelete + `b"`},
		{name: "delete what is planned for another", before: planned("b"), says: mayDelete + `b"`},
		{name: "delete nobody's", before: nobodys, says: mayDelete + `"`},
	}
}

// try makes the request and removes what it leaves behind.
func (c *cluster) try(t *testing.T, w write, as clientv1alpha1.NvIpamV1alpha1Interface) {
	t.Helper()
	ctx, client := t.Context(), as.IPAllocations(c.NS)
	stored := &v1alpha1.IPAllocation{}
	if w.before != nil {
		stored = c.put(t, w.before.DeepCopy())
	}
	name := "p.10.0.0.1"
	defer func() { c.remove(t, name) }()
	var err error
	switch {
	case w.edit == nil:
		err = client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &stored.UID}})
	case w.before == nil:
		w.edit(stored)
		name = stored.Name
		_, err = client.Create(ctx, stored, metav1.CreateOptions{})
	default:
		wanted := stored.DeepCopy()
		w.edit(wanted)
		_, err = client.Update(ctx, wanted, metav1.UpdateOptions{})
	}
	want(t, err, w.says)
	if w.says == "" {
		return
	}
	now, err := c.IPAM.IPAllocations(c.NS).Get(ctx, name, metav1.GetOptions{})
	if w.before == nil && !apierrors.IsNotFound(err) || w.before != nil && (err != nil || now.ResourceVersion != stored.ResourceVersion) {
		t.Errorf("refused and yet done: %+v, %v", now, err)
	}
}

func (c *cluster) remove(t *testing.T, name string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	_, err := c.IPAM.IPAllocations(c.NS).Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err == nil {
		err = c.IPAM.IPAllocations(c.NS).Delete(ctx, name, metav1.DeleteOptions{})
	}
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
}

func (c *cluster) tryAll(t *testing.T, as clientv1alpha1.NvIpamV1alpha1Interface) {
	t.Helper()
	for _, w := range writes() {
		t.Run(w.name, func(t *testing.T) { c.try(t, w, as) })
	}
}

// Whatever makes a client node a, it may do the same. Its rights are more than the
// role's, so that it is the policy that refuses.
func TestOwnAllocationsOnly(t *testing.T) {
	c := newCluster(t)
	c.bind(t, "cluster-admin", rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: testenv.NodesGroup},
		rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:serviceaccounts:" + c.NS})
	c.account(t, pluginAccount, role)
	t.Run("kubelet's certificate", func(t *testing.T) { c.tryAll(t, c.node(t, "a")) })
	t.Run("token bound to the node", func(t *testing.T) {
		c.tryAll(t, withToken(t, c.nodeToken(t, pluginAccount, "a")))
	})
	c.account(t, installerAccount, role)
	t.Run("installer's token", func(t *testing.T) { c.tryAll(t, withToken(t, c.podToken(t, installerAccount, "a"))) })
	t.Run("token of a pod on the node", func(t *testing.T) {
		c.tryAll(t, withToken(t, c.podToken(t, pluginAccount, "a")))
	})
}

// Rights that somebody else adds do not get a node past the policy.
func TestPolicyHoldsWithMoreRights(t *testing.T) {
	c := newCluster(t)
	c.bind(t, "cluster-admin", rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: testenv.NodesGroup})
	allocs := c.node(t, "a").IPAllocations(c.NS)
	ctx := t.Context()
	c.put(t, allocation("p", "10.0.0.1", "a"))
	c.put(t, allocation("p", "10.0.0.2", "b"))
	c.put(t, allocation("p", "10.0.0.3", ""))

	for _, name := range []string{"p.10.0.0.1", "p.10.0.0.2", "p.10.0.0.3"} {
		_, err := allocs.Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
		want(t, err, mayChange)
	}
	_, err := allocs.Patch(ctx, "p.10.0.0.4", types.ApplyPatchType,
		[]byte(`{"apiVersion":"nv-ipam.nvidia.com/v1alpha1","kind":"IPAllocation","metadata":{"name":"p.10.0.0.4"},"spec":{"poolRef":{"kind":"IPPool","name":"p"},"address":"10.0.0.4","nodeName":"b"}}`),
		metav1.PatchOptions{FieldManager: "x"})
	want(t, err, mayCreate+`b"`)

	for selector, says := range map[string]string{
		v1alpha1.LabelNode + "=b":      mayDelete + `b"`,
		"!" + v1alpha1.LabelNode:       mayDelete + `"`,
		"":                             mayDelete,
		v1alpha1.LabelNode + " in (a)": "",
	} {
		err := allocs.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: selector})
		want(t, err, says)
	}
	if got := c.held(t); got != "[10.0.0.2 10.0.0.3]" {
		t.Errorf("held %s", got)
	}
}

// Nodes and service accounts that the API server cannot place, and those whom the
// policy must leave alone.
func TestOthers(t *testing.T) {
	c := newCluster(t)
	const all = "cluster-admin" // so that it is not RBAC that refuses
	c.account(t, pluginAccount, all)
	c.account(t, "controller", all)
	c.account(t, "pod", "")
	for _, group := range []string{"operators", testenv.NodesGroup} {
		c.bind(t, all, rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: group})
	}
	unbound, err := c.Token(t, pluginAccount, nil)
	if err != nil {
		t.Fatal(err)
	}
	const noNode = "may not write allocations: its credentials name no node"
	for _, tc := range []struct {
		name string
		as   clientv1alpha1.NvIpamV1alpha1Interface
		says string
	}{
		{"plugin's token of no node", withToken(t, unbound), "system:serviceaccount:" + c.NS + ":" + pluginAccount + " " + noNode},
		{"user in the nodes' group who is no node", c.user(t, "mallory", testenv.NodesGroup), "mallory " + noNode},
		{"node without a name", c.user(t, "system:node:", testenv.NodesGroup), "could not determine node"}, // NodeRestriction is first
		{"pod on the node", withToken(t, c.podToken(t, "pod", "a")), `cannot`},
		{"node's name without the group", c.user(t, "system:node:a"), `User "system:node:a" cannot`},
		{"administrator", c.IPAM, ""},
		{"operator", c.user(t, "olga", "operators"), ""},
		// Its token names a node, too.
		{"controller on the node", withToken(t, c.podToken(t, "controller", "a")), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			foreign := allocation("p", "10.0.0.1", "b")
			c.try(t, write{edit: func(a *v1alpha1.IPAllocation) { *a = *foreign.DeepCopy() }, says: tc.says}, tc.as)
			c.try(t, write{before: foreign, edit: label("x", "y"), says: tc.says}, tc.as)
			c.try(t, write{before: foreign, says: tc.says}, tc.as)
		})
	}
}

// The label of a long name is a hash, which the policy cannot check but for its
// form.
func TestLongNames(t *testing.T) {
	c := newCluster(t)
	long := strings.Repeat("n", 60) + ".example.com"
	mustLabel := strings.ReplaceAll(mustLabel, "node a", "node "+long)
	client := c.node(t, long)
	for _, key := range []string{v1alpha1.LabelNode, v1alpha1.LabelPool} {
		for value, says := range map[string]string{
			v1alpha1.LabelValue(long): "", "b": mustLabel, "": mustLabel, long[:63]: mustLabel, strings.Repeat("A", 40): mustLabel,
		} {
			a := allocation(long, "10.0.0.1", long)
			label(key, value)(a)
			_, err := client.IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			want(t, err, says)
		}
	}
}

// What docs/security.md says that a node can do all the same.
func TestWhatThePolicyCannotSee(t *testing.T) {
	c := newCluster(t)
	client := c.node(t, "a").IPAllocations(c.NS)
	for name, edit := range map[string]edit{
		"a pool that does not exist": func(*v1alpha1.IPAllocation) {},
		"a pod that does not exist":  pod(v1alpha1.PodReference{Namespace: "gone", Name: "gone"}),
		"any address":                func(a *v1alpha1.IPAllocation) { a.Name, a.Spec.Address = "p.192.0.2.1", "192.0.2.1" },
	} {
		a := allocation("p", "10.0.0.1", "a")
		edit(a)
		if _, err := client.Create(t.Context(), a, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Without the policy's binding the role alone counts, and the CRD.
func TestWithoutThePolicy(t *testing.T) {
	c := newCluster(t)
	if _, err := env.Kubectl(t.Context(), "delete", "validatingadmissionpolicybinding", role); err != nil {
		t.Fatal(err)
	}
	client, ctx := c.node(t, "a").IPAllocations(c.NS), t.Context()
	foreign := allocation("p", "10.0.0.1", "b")
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, time.Minute, true, func(ctx context.Context) (bool, error) {
		_, err := client.Create(ctx, foreign, metav1.CreateOptions{})
		return err == nil, nil
	})
	if err != nil {
		t.Fatal("the policy is still in force: ", err)
	}
	_, err = client.Update(ctx, foreign, metav1.UpdateOptions{})
	want(t, err, "cannot update")
	_, err = client.Patch(ctx, foreign.Name, types.MergePatchType, []byte(`{"spec":{"containerID":"c2"}}`), metav1.PatchOptions{})
	if !apierrors.IsInvalid(err) {
		t.Errorf("got %v, want Invalid", err)
	}
	misnamed := allocation("p", "10.0.0.2", "b")
	misnamed.Name = "p.10.0.0.3"
	if _, err := client.Create(ctx, misnamed, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("got %v, want Invalid", err)
	}
	want(t, client.Delete(ctx, foreign.Name, metav1.DeleteOptions{}), "")
}

// bloated is a create of node a with up to 1.2 MB more in it than it needs.
func bloated(t *testing.T, field string) []byte {
	t.Helper()
	data, err := json.Marshal(allocation("p", "10.0.0.1", "a"))
	if err != nil {
		t.Fatal(err)
	}
	var obj map[string]any
	if err := json.Unmarshal(data, &obj); err != nil {
		t.Fatal(err)
	}
	obj["apiVersion"], obj["kind"] = v1alpha1.GroupVersion.String(), "IPAllocation"
	metadata, spec := obj["metadata"].(map[string]any), obj["spec"].(map[string]any)
	large := strings.Repeat("x", 1200<<10)
	// fields are managed fields with the large name at a path.
	fields := func(path ...string) map[string]any {
		inner := map[string]any{"f:" + large: map[string]any{}}
		for _, p := range slices.Backward(path) {
			inner = map[string]any{p: inner}
		}
		return inner
	}
	managed := func(manager string, fields map[string]any) {
		metadata["managedFields"] = []any{map[string]any{
			"manager": manager, "operation": "Update", "apiVersion": v1alpha1.GroupVersion.String(), "time": "2026-01-01T00:00:00Z",
			"fieldsType": "FieldsV1", "fieldsV1": fields,
		}}
	}
	switch field {
	case "uid":
		spec["podRef"].(map[string]any)["uid"] = large
	case "annotations":
		metadata["annotations"] = map[string]any{"x": large[:250<<10]} // the server's own bound
	case "ownerReferences":
		metadata["ownerReferences"] = []any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": large, "uid": "u"}}
	case "finalizers":
		// Not more: to merge a long list takes the server time.
		all := []any{}
		for i := range 500 {
			all = append(all, fmt.Sprintf("example.com/%060d", i))
		}
		metadata["finalizers"] = all
	case "labels":
		for i := range 10000 {
			metadata["labels"].(map[string]any)[fmt.Sprintf("example.com/%050d", i)] = strings.Repeat("x", 63)
		}
	case "managedFields":
		managed("mine", fields("f:spec"))
	case "managedFields of the own manager":
		managed("large", fields("f:spec"))
	case "managedFields of metadata":
		managed("large", fields("f:metadata", "f:labels"))
	case "managedFields of a pod":
		managed("large", fields("f:spec", "f:podRef"))
	case "managedFields of a leaf":
		managed("large", fields("f:spec", "f:address"))
	case "managedFields of nothing":
		managed("large", fields())
	case "managedFields of a subresource":
		managed("large", fields("f:spec"))
		metadata["managedFields"].([]any)[0].(map[string]any)["subresource"] = large
	case "manager":
		managed(large, map[string]any{"f:spec": map[string]any{"f:address": map[string]any{}}})
	case "many managers":
		managed("x", nil)
		entry := func(i int) any {
			return map[string]any{
				"manager": fmt.Sprintf("%0100d", i), "operation": "Apply", "apiVersion": v1alpha1.GroupVersion.String(), "time": "2026-01-01T00:00:00Z",
				"fieldsType": "FieldsV1", "fieldsV1": map[string]any{"f:spec": map[string]any{"f:address": map[string]any{}}},
			}
		}
		all := []any{}
		for i := range 5000 {
			all = append(all, entry(i))
		}
		metadata["managedFields"] = all
	default: // a field that no allocation has
		third := large[:len(large)/3]
		obj[field], spec[field], metadata[field] = third, third, third
	}
	data, err = json.Marshal(obj)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// With all the managed fields that the policy lets pass, an allocation has less than
// 8 KiB, in which the longest names of node and pod have their place.
func TestLargestAllocation(t *testing.T) {
	c := newCluster(t)
	parts := strings.Fields(". f:labels f:poolRef f:address f:nodeName f:podRef f:containerID f:interfaceName f:networkName f:deviceID f:requested f:addStartedAt")
	leaves := strings.Fields(". f:nv-ipam.nvidia.com/container f:nv-ipam.nvidia.com/node f:nv-ipam.nvidia.com/pool f:kind f:name f:namespace f:uid")
	fields := map[string]any{}
	for _, top := range []string{"f:metadata", "f:spec"} {
		inner := map[string]any{}
		for _, part := range parts {
			leaf := map[string]any{}
			if part == "f:labels" || part == "f:poolRef" || part == "f:podRef" {
				for _, l := range leaves {
					leaf[l] = map[string]any{}
				}
			}
			inner[part] = leaf
		}
		fields[top] = inner
	}
	data, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	now := metav1.Now()
	managed := &metav1.FieldsV1{}
	managed.SetRawBytes(data)
	a := allocation("p", "10.0.0.1", "a")
	a.ManagedFields = []metav1.ManagedFieldsEntry{{
		Manager: "large", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: v1alpha1.GroupVersion.String(), Time: &now,
		FieldsType: "FieldsV1", FieldsV1: managed,
	}}
	stored, err := c.node(t, "a").IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{FieldManager: "large"})
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(stored)
	// What a spec with the longest of everything has, with its labels: TestAllocationIsSmall.
	const longest = 3300
	if err != nil || len(raw)+longest > 8192 || len(stored.ManagedFields) != 1 {
		t.Errorf("%d bytes, %v:\n%s", len(raw), err, raw)
	}
}

// No node stores more than an allocation needs, which TestAllocationIsSmall bounds:
// what is large is refused, or the server leaves it out.
func TestLargeAllocations(t *testing.T) {
	c := newCluster(t)
	client := c.node(t, "a").RESTClient()
	for field, refused := range map[string]bool{
		"uid": true, "annotations": true, "ownerReferences": true, "finalizers": true, "labels": true,
		"managedFields": true, "managedFields of the own manager": true, "managedFields of metadata": true, "managedFields of a pod": true,
		"managedFields of a leaf": true, "managedFields of nothing": true, "managedFields of a subresource": true,
		"manager": false, "many managers": false, "selfLink": false, "unknown": false, "status": false,
	} {
		t.Run(field, func(t *testing.T) {
			defer c.remove(t, "p.10.0.0.1")
			body := bloated(t, field)
			err := client.Post().Namespace(c.NS).Resource("ipallocations").Param("fieldManager", "large").Body(body).Do(t.Context()).Error()
			if refused && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
				t.Errorf("%d bytes: got %v", len(body), err)
			}
			raw, err := c.IPAM.RESTClient().Get().Namespace(c.NS).Resource("ipallocations").Name("p.10.0.0.1").Do(t.Context()).Raw()
			if refused && !apierrors.IsNotFound(err) || !refused && err != nil || err == nil && len(raw) > 4096 {
				t.Errorf("%d bytes are stored, %v", len(raw), err)
			}
		})
	}
}

// An empty name is none, which Go's types do not send.
func TestEmptyPodName(t *testing.T) {
	c := newCluster(t)
	body := `{"apiVersion":"nv-ipam.nvidia.com/v1alpha1","kind":"IPAllocation","metadata":{"name":"p.10.0.0.1"},"spec":{
		"poolRef":{"kind":"IPPool","name":"p"},"address":"10.0.0.1","nodeName":"a","containerID":"c1","interfaceName":"net1","podRef":{"name":"","namespace":"ml"}}}`
	err := c.node(t, "a").RESTClient().Post().Namespace(c.NS).Resource("ipallocations").Body([]byte(body)).Do(t.Context()).Error()
	want(t, err, namesBoth)
}

// What a node may write beside its own name is for the CRD to say, as for anybody.
func TestNamesAreTheCRDs(t *testing.T) {
	c := newCluster(t)
	a := allocation("p", "10.0.0.1", "a")
	a.Name = "p.10.0.0.2"
	if _, err := c.node(t, "a").IPAllocations(c.NS).Create(t.Context(), a, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("got %v, want Invalid", err)
	}
}

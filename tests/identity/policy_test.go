// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"context"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/testenv"
)

// What the policy says to node a.
const (
	mayCreate = `node a may create only allocations whose spec.nodeName is its own name, this one has "`
	mayUpdate = `node a may update only allocations whose spec.nodeName is and stays its own name, or take up one without: this one has "`
	mayDelete = `node a may delete only allocations whose spec.nodeName is its own name, this one has "`
)

const namesBoth = "node a may write only allocations that name a container and a pod"

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

func label(key, value string) edit {
	return func(a *v1alpha1.IPAllocation) {
		if a.Labels == nil {
			a.Labels = map[string]string{}
		}
		a.Labels[key] = value
	}
}

func nameless(a *v1alpha1.IPAllocation) { a.Spec.PodRef = v1alpha1.PodReference{} }

func finalizer(name string) edit {
	return func(a *v1alpha1.IPAllocation) { a.Finalizers = append(a.Finalizers, name) }
}

func node(name string) edit {
	return func(a *v1alpha1.IPAllocation) { a.Spec.NodeName = name }
}

func both(edits ...edit) edit {
	return func(a *v1alpha1.IPAllocation) {
		for _, e := range edits {
			e(a)
		}
	}
}

// planned is a reservation for a node, without an attachment.
func planned(nodeName string) *v1alpha1.IPAllocation {
	a := allocation("p", "10.0.0.1", "")
	a.Spec.NodeName = nodeName
	return a
}

func kept() *v1alpha1.IPAllocation {
	a := allocation("p", "10.0.0.1", "a")
	finalizer("example.com/stay")(a)
	return a
}

func writes() []write {
	const addr = "10.0.0.1"
	own, foreign, nobodys := allocation("p", addr, "a"), allocation("p", addr, "b"), allocation("p", addr, "")
	create := func(a *v1alpha1.IPAllocation) edit { return func(b *v1alpha1.IPAllocation) { *b = *a.DeepCopy() } }
	labelled := func(a *v1alpha1.IPAllocation, value string) *v1alpha1.IPAllocation {
		a = a.DeepCopy()
		a.Labels[v1alpha1.LabelNode] = value
		return a
	}
	return []write{
		{name: "create own", edit: create(own)},
		{name: "create own without labels", edit: both(create(own), func(a *v1alpha1.IPAllocation) { a.Labels = nil })},
		{name: "create another's", edit: create(foreign), says: mayCreate + `b"`},
		{name: "create nobody's", edit: create(nobodys), says: mayCreate + `"`},
		{name: "create own reservation", edit: create(planned("a")), says: namesBoth},
		{name: "create own for no pod", edit: both(create(own), nameless), says: namesBoth},
		{name: "create own with another's label", edit: create(labelled(own, "b")), says: "node a may not label an allocation nv-ipam.nvidia.com/node=b"},
		{name: "create own with a finalizer", edit: create(kept()), says: "node a may not add finalizers to an allocation"},

		{name: "update own", before: own, edit: label("x", "y")},
		{name: "update own that an administrator keeps", before: kept(), edit: label("x", "y")},
		{name: "take the pod off own", before: own, edit: nameless, says: namesBoth},
		{name: "update what is planned for it", before: planned("a"), edit: label("x", "y"), says: namesBoth},
		{name: "update another's", before: foreign, edit: label("x", "y"), says: mayUpdate + `b" and would have "b"`},
		{name: "update nobody's", before: nobodys, edit: label("x", "y"), says: mayUpdate + `" and would have ""`},
		{name: "take up nobody's", before: nobodys, edit: both(take("a"), label(v1alpha1.LabelNode, "a"))},
		{name: "take up nobody's for another", before: nobodys, edit: take("b"), says: mayUpdate + `" and would have "b"`},
		{name: "take up what is planned for it", before: planned("a"), edit: take("a")},
		{name: "take up what is planned for another", before: planned("b"), edit: take("a"), says: mayUpdate + `b" and would have "a"`},
		{name: "give own away", before: planned("a"), edit: node("b"), says: mayUpdate + `a" and would have "b"`},
		{name: "give own up", before: planned("a"), edit: node(""), says: mayUpdate + `a" and would have ""`},
		{name: "label own for another", before: own, edit: label(v1alpha1.LabelNode, "b"), says: "node a may not label an allocation nv-ipam.nvidia.com/node=b"},
		{name: "add a finalizer to own", before: own, edit: finalizer("example.com/stay"), says: "node a may not add finalizers to an allocation"},
		{name: "add another finalizer to own", before: kept(), edit: finalizer("example.com/longer"), says: "node a may not add finalizers to an allocation"},

		{name: "delete own", before: own},
		{name: "delete what is planned for it", before: planned("a")},
		{name: "delete another's", before: foreign, says: mayDelete + `b"`},
		{name: "delete what is planned for another", before: planned("b"), says: mayDelete + `b"`},
		{name: "delete nobody's", before: nobodys, says: mayDelete + `"`},
	}
}

// try makes the request and removes what it leaves behind.
func (c *cluster) try(t *testing.T, w write, as clientv1alpha1.NvIpamV1alpha1Interface) {
	t.Helper()
	ctx, client := t.Context(), as.IPAllocations(c.ns)
	stored := &v1alpha1.IPAllocation{}
	if w.before != nil {
		stored = c.put(t, w.before.DeepCopy())
	}
	name := "p.10.0.0.1"
	defer c.remove(t, name)
	var err error
	switch {
	case w.edit == nil:
		err = client.Delete(ctx, name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &stored.UID}})
	case w.before == nil:
		w.edit(stored)
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
	now, err := c.ipam.IPAllocations(c.ns).Get(ctx, name, metav1.GetOptions{})
	if w.before == nil && !apierrors.IsNotFound(err) || w.before != nil && (err != nil || now.ResourceVersion != stored.ResourceVersion) {
		t.Errorf("refused and yet done: %+v, %v", now, err)
	}
}

func (c *cluster) remove(t *testing.T, name string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	_, err := c.ipam.IPAllocations(c.ns).Patch(ctx, name, types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	if err == nil {
		err = c.ipam.IPAllocations(c.ns).Delete(ctx, name, metav1.DeleteOptions{})
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

// Whatever makes a client node a, it may do the same.
func TestOwnAllocationsOnly(t *testing.T) {
	c := newCluster(t)
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
	allocs := c.node(t, "a").IPAllocations(c.ns)
	ctx := t.Context()
	c.put(t, allocation("p", "10.0.0.1", "a"))
	c.put(t, allocation("p", "10.0.0.2", "b"))
	c.put(t, allocation("p", "10.0.0.3", ""))

	_, err := allocs.Patch(ctx, "p.10.0.0.2", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	want(t, err, mayUpdate+`b"`)
	_, err = allocs.Patch(ctx, "p.10.0.0.1", types.MergePatchType, []byte(`{"metadata":{"labels":{"x":"y"}}}`), metav1.PatchOptions{})
	want(t, err, "")
	_, err = allocs.Patch(ctx, "p.10.0.0.4", types.ApplyPatchType,
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
	c.account(t, pluginAccount, role)
	c.account(t, "controller", role)
	c.account(t, "pod", "")
	group := rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "operators"}
	c.bind(t, role, group)
	unbound, err := c.token(t, pluginAccount, nil)
	if err != nil {
		t.Fatal(err)
	}
	const noNode = "may not write allocations: its credentials name no node"
	for _, tc := range []struct {
		name string
		as   clientv1alpha1.NvIpamV1alpha1Interface
		says string
	}{
		{"plugin's token of no node", withToken(t, unbound), "system:serviceaccount:" + c.ns + ":" + pluginAccount + " " + noNode},
		{"user in the nodes' group who is no node", c.user(t, "mallory", testenv.NodesGroup), "mallory " + noNode},
		{"node without a name", c.user(t, "system:node:", testenv.NodesGroup), "could not determine node"}, // NodeRestriction is first
		{"pod on the node", withToken(t, c.podToken(t, "pod", "a")), `cannot`},
		{"node's name without the group", c.user(t, "system:node:a"), `User "system:node:a" cannot`},
		{"administrator", c.ipam, ""},
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

// The label of a node with a long name is a hash, which the policy cannot check
// but for its form.
func TestNodeWithALongName(t *testing.T) {
	c := newCluster(t)
	long := strings.Repeat("n", 60) + ".example.com"
	for value, says := range map[string]string{
		v1alpha1.LabelValue(long): "",
		"b":                       "may not label an allocation nv-ipam.nvidia.com/node=b",
	} {
		a := allocation("p", "10.0.0.1", long)
		a.Labels[v1alpha1.LabelNode] = value
		c.try(t, write{edit: func(b *v1alpha1.IPAllocation) { *b = *a }, says: says}, c.node(t, long))
	}
}

// An empty name is none, which Go's types do not send.
func TestEmptyPodName(t *testing.T) {
	c := newCluster(t)
	body := `{"apiVersion":"nv-ipam.nvidia.com/v1alpha1","kind":"IPAllocation","metadata":{"name":"p.10.0.0.1"},"spec":{
		"poolRef":{"kind":"IPPool","name":"p"},"address":"10.0.0.1","nodeName":"a","containerID":"c1","interfaceName":"net1","podRef":{"name":"","namespace":"ml"}}}`
	err := c.node(t, "a").RESTClient().Post().Namespace(c.ns).Resource("ipallocations").Body([]byte(body)).Do(t.Context()).Error()
	want(t, err, namesBoth)
}

// What a node may write beside its own name is for the CRD to say, as for anybody.
func TestNamesAreTheCRDs(t *testing.T) {
	c := newCluster(t)
	a := allocation("p", "10.0.0.1", "a")
	a.Name = "p.10.0.0.2"
	if _, err := c.node(t, "a").IPAllocations(c.ns).Create(t.Context(), a, metav1.CreateOptions{}); !apierrors.IsInvalid(err) {
		t.Errorf("got %v, want Invalid", err)
	}
}

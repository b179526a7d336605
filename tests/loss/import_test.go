// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package loss

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// exported is what docs/install.md exports, in its order.
func exported(t *testing.T) string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "install.md"))
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^kubectl get ([^ ]+) -A -o yaml > record\.yaml$`).FindSubmatch(doc)
	if m == nil {
		t.Fatal("docs/install.md exports nothing")
	}
	return string(m[1])
}

// export writes the record of the cluster's namespace to a file.
func (c *cluster) export(t *testing.T) (path string) {
	t.Helper()
	out, err := env.Kubectl(t.Context(), "get", exported(t), "-n", c.NS, "-o", "yaml")
	if err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "record.yaml")
	if err := os.WriteFile(path, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// reserve makes a reservation of pool "p", for a pod or for nobody.
func (c *cluster) reserve(t *testing.T, name, pod string, addresses ...string) {
	t.Helper()
	r := &v1alpha1.IPReservation{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.IPReservationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "p"}, Addresses: addresses,
	}}
	if pod != "" {
		r.Spec.Pod = &v1alpha1.ReservedPod{Namespace: "default", Name: pod}
	}
	if _, err := c.IPAM.IPReservations(c.NS).Create(t.Context(), r, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// awaitReservation waits until a reservation says so, and returns its UID.
func (c *cluster) awaitReservation(t *testing.T, name, reason string, kept int32) (uid string) {
	t.Helper()
	rig.Until(t, func() string {
		r, err := c.IPAM.IPReservations(c.NS).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		uid = string(r.UID)
		if told := meta.FindStatusCondition(r.Status.Conditions, v1alpha1.ConditionReady); told == nil || told.Reason != reason || r.Status.Kept != kept {
			return fmt.Sprintf("%s is %+v, want %s with %d kept", name, r.Status, reason, kept)
		}
		return ""
	})
	return uid
}

// A record is exported, lost and imported as docs/install.md has it, while the controller
// runs: every container keeps its address, though a reservation names it as well, every node
// its block, and every reservation what it has kept, which nobody frees meanwhile.
func TestRecordIsImportedUnderTheController(t *testing.T) {
	for name, restarted := range map[string]bool{"that remembers": false, "that was started again": true} {
		t.Run(name, func(t *testing.T) {
			c, blocks, stop := joined(t, 0)
			z := c.nodes["loss-z"]
			z.mustAdd(t, "static", "10.0.0.200")
			c.reserve(t, "kept", "", "10.0.0.200-10.0.0.203")
			c.awaitReservation(t, "kept", v1alpha1.ReasonHeldByOthers, 3)
			c.reserve(t, "own", "pod-of-own", "10.0.0.210", "10.0.0.211")
			c.awaitReservation(t, "own", v1alpha1.ReasonReserved, 2)
			z.mustAdd(t, "own", "10.0.0.210")

			path := c.export(t)
			if restarted {
				stop()
			}
			if err := c.IPAM.IPReservations(c.NS).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				t.Fatal(err)
			}
			c.empty(t)
			rig.Eventually(t, "lost", func() bool { return len(c.Allocations(t)) == 0 })
			if restarted {
				c.control(t, 0)
				rig.Eventually(t, "a controller leads", func() bool { return c.acts(t) })
			}
			if out, err := env.Kubectl(t.Context(), "create", "-f", path); err != nil {
				t.Errorf("%v\n%s", err, out)
			}

			c.want(t, z, c.nodes["loss-m"], c.nodes["loss-a"])
			for _, name := range c.names {
				if got := c.awaitBlock(t, name); got != blocks[name] {
					t.Errorf("%s has block %s, and had %s", name, got, blocks[name])
				}
			}
			uids := []string{c.awaitReservation(t, "kept", v1alpha1.ReasonHeldByOthers, 3), c.awaitReservation(t, "own", v1alpha1.ReasonReserved, 2)}
			for addr, a := range c.record(t) {
				if !slices.ContainsFunc(a.ManagedFields, func(m metav1.ManagedFieldsEntry) bool { return m.Manager == "kubectl-create" }) {
					t.Errorf("%s was freed, and kept again", addr)
				}
				if o := a.Spec.Owner; o != nil && !a.Spec.Held() && !slices.Contains(uids, string(o.UID)) {
					t.Errorf("%s is kept for %s of UID %s, want one of %v", addr, o.Name, o.UID, uids)
				}
			}

			z.mustDel(t, "own")
			rig.Eventually(t, "what the pod has released is kept for the reservation of now", func() bool {
				a := c.record(t)["10.0.0.210"]
				return a.Spec.Owner != nil && string(a.Spec.Owner.UID) == uids[1] && !a.Spec.Held()
			})
			for _, name := range []string{"kept", "own"} {
				if err := c.IPAM.IPReservations(c.NS).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			rig.Eventually(t, "what nobody keeps is free, and all else is held", func() bool { return len(c.record(t)) == 4 })
			c.want(t, z, c.nodes["loss-m"], c.nodes["loss-a"])
		})
	}
}

// acts reports whether a controller does its work: it says of a reservation that names no
// pool that there is none.
func (c *cluster) acts(t *testing.T) bool {
	t.Helper()
	probe := &v1alpha1.IPReservation{ObjectMeta: metav1.ObjectMeta{Name: "probe"}, Spec: v1alpha1.IPReservationSpec{
		PoolRef: v1alpha1.PoolReference{Kind: v1alpha1.PoolKindIPPool, Name: "none"}, Addresses: []string{"10.0.0.1"},
	}}
	if _, err := c.IPAM.IPReservations(c.NS).Create(t.Context(), probe, metav1.CreateOptions{}); err != nil && !strings.Contains(err.Error(), "already exists") {
		t.Fatal(err)
	}
	r, err := c.IPAM.IPReservations(c.NS).Get(t.Context(), "probe", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(r.Status.Conditions) > 0
}

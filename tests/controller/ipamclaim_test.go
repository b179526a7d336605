// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// claimed is what a claim keeps. Without a container it is a proposal.
func (c *cluster) claimed(t *testing.T, owner *ledger.IPAMClaim, pool string, pod v1alpha1.PodReference, container, address string, released bool) {
	t.Helper()
	a := c.allocation(time.Now(), container, pool, address, "a", pod)
	a.Spec.Owner = owner.Owner()
	a.Name = v1alpha1.AllocationName(pool, netip.MustParseAddr(address))
	a.Labels = v1alpha1.AllocationLabels(&a.Spec)
	if released {
		a.Spec.ReleasedAt = &metav1.Time{Time: time.Now()}
	}
	c.create(t, a)
}

// wantClaim waits until the status of a claim is what is wanted.
func (c *cluster) wantClaim(t *testing.T, name, want string) {
	t.Helper()
	rig.Until(t, func() string {
		claim, err := ledger.IPAMClaims{Client: c.core()}.Get(t.Context(), c.NS, name)
		if err != nil {
			return err.Error()
		}
		got := fmt.Sprint(claim.Status.IPs, " ", claim.Status.OwnerPod.Name)
		for _, condition := range claim.Status.Conditions {
			got += fmt.Sprint(" ", condition.Type, "=", condition.Status, " ", condition.Reason)
		}
		if got == want {
			return ""
		}
		return fmt.Sprintf("%s: %s, want %s", name, got, want)
	})
}

func (c *cluster) core() rest.Interface { return c.Kube.CoreV1().RESTClient() }

// The status of a claim says which addresses it keeps, and which pod has them, in the form of
// either version of the CRD. The addresses go with the claim, and not before.
func TestIPAMClaims(t *testing.T) {
	for name, form := range map[string]rig.OwnerPod{"object": rig.OwnerPodIsAnObject, "name": rig.OwnerPodIsAName} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			rig.InstallIPAMClaims(t, c.core(), form)
			c.Node(t, "a", nil)
			c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/24", PerNodeBlockSize: 254})
			c.Pool(t, "v6", v1alpha1.IPPoolSpec{Subnet: "fd00::/64", PerNodeBlockSize: 254})
			down, up := rig.IPAMClaim(t, c.core(), c.NS, "down.net", "net"), rig.IPAMClaim(t, c.core(), c.NS, "up.net", "net")
			foreign := rig.IPAMClaim(t, c.core(), c.NS, "foreign.net", "net", "10.0.0.9/24")
			none := rig.IPAMClaim(t, c.core(), c.NS, "none.net", "net")
			gonePod := func(name string) v1alpha1.PodReference {
				return v1alpha1.PodReference{Namespace: c.NS, Name: name, UID: gone}
			}
			runs := c.startPodOn(t, "a", "up-1", nil)
			c.claimed(t, down, "p", gonePod("down-1"), "c1", "10.0.0.1", true)
			c.claimed(t, up, "p", runs, "c2", "10.0.0.2", false)
			c.claimed(t, up, "v6", runs, "c2", "fd00::2", false)
			c.claimed(t, foreign, "p", gonePod("foreign-1"), "c3", "10.0.0.3", true) // the status is another address manager's
			c.claimed(t, none, "p", gonePod("none-1"), "", "10.0.0.4", false)        // nobody has taken it yet
			c.run(t, controller.Options{Resync: time.Second, ReclaimGraceReadyNode: time.Hour, ReclaimGrace: time.Hour})
			c.wantClaim(t, "down.net", "[10.0.0.1/24]  IPsAllocated=True SuccessfulAllocation")
			c.wantClaim(t, "up.net", "[10.0.0.2/24 fd00::2/64] up-1 IPsAllocated=True SuccessfulAllocation")
			c.wantClaim(t, "foreign.net", "[10.0.0.9/24]  IPsAllocated=False IPAddressConflict")
			c.wantClaim(t, "none.net", "[] ")

			for _, address := range []string{"p.10.0.0.2", "v6.fd00-0000-0000-0000-0000-0000-0000-0002"} {
				patch := fmt.Sprintf(`{"spec":{"releasedAt":%q}}`, time.Now().UTC().Format(time.RFC3339))
				if _, err := c.IPAM.IPAllocations(c.NS).Patch(t.Context(), address, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			c.wantClaim(t, "up.net", "[10.0.0.2/24 fd00::2/64]  IPsAllocated=True SuccessfulAllocation")
			rig.DeleteIPAMClaim(t, c.core(), c.NS, "down.net")
			rig.DeleteIPAMClaim(t, c.core(), c.NS, "up.net")
			rig.IPAMClaim(t, c.core(), c.NS, "up.net", "net") // another one, which inherits nothing
			c.wantHeld(t, "10.0.0.3", "10.0.0.4")
			rig.RemoveIPAMClaims(t, c.core()) // which proves nothing of those that it had
			c.nextSecond(t)
			c.nextSecond(t)
			c.wantHeld(t, "10.0.0.3", "10.0.0.4")
		})
	}
}

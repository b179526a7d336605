// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/controller"
	"github.com/crd-ipam/crd-ipam/tests/internal/rig"
)

// dies is a controller's connection that ends for good with its first write of an allocation:
// before the API server sees that, or after.
type dies struct {
	next  http.RoundTripper
	after bool
	dead  atomic.Bool
}

func (d *dies) RoundTrip(req *http.Request) (*http.Response, error) {
	errDead := errors.New("the controller was killed")
	if d.dead.Load() {
		return nil, errDead
	}
	if req.Method == http.MethodGet || !strings.Contains(req.URL.Path, "/ipallocations") {
		return d.next.RoundTrip(req)
	}
	if d.dead.Swap(true) {
		return nil, errDead
	}
	if d.after {
		if resp, err := d.next.RoundTrip(req); err == nil {
			_ = resp.Body.Close()
		}
	}
	return nil, errDead
}

// The controller is killed before and after each of its writes of an allocation: it creates
// what a reservation keeps, deletes, releases and moves. The next one goes on, nothing is done
// twice, and what lives is not touched.
func TestKilledAtEveryWrite(t *testing.T) {
	c := newCluster(t)
	rig.InstallIPAMClaims(t, c.core(), rig.OwnerPodIsAnObject)
	for _, node := range []string{"a", "b"} {
		c.Node(t, node, nil)
		c.patchNode(t, node, `{"status":{"conditions":[{"type":"Ready","status":"True"}]}}`, "status")
	}
	c.Pool(t, "p", v1alpha1.IPPoolSpec{Subnet: "10.0.0.0/28"})
	lost := func(name string) v1alpha1.PodReference {
		return v1alpha1.PodReference{Namespace: c.NS, Name: name, UID: gone}
	}
	rests := func(a *v1alpha1.IPAllocation, cooldown, ago time.Duration) {
		a.Spec.ReleaseCooldown = &metav1.Duration{Duration: cooldown}
		if ago > 0 {
			a.Spec.ReleasedAt = &metav1.Time{Time: time.Now().Add(-ago)}
		}
		c.create(t, a)
	}
	c.reservation(t, "r", "p", "10.0.0.1-10.0.0.3")
	rests(c.allocation(time.Now(), "c2", "p", "10.0.0.2", "a", lost("p2")), time.Hour, time.Second)
	c.hold(t, "p", "10.0.0.4", "a", c.startPodOn(t, "a", "lives", nil))
	c.hold(t, "p", "10.0.0.5", "a", lost("leaked"))
	rests(c.allocation(time.Now(), "c6", "p", "10.0.0.6", "a", lost("p6")), time.Hour, 0)
	rests(c.allocation(time.Now(), "c7", "p", "10.0.0.7", "a", lost("p7")), time.Second, time.Hour)
	vm := rig.IPAMClaim(t, c.core(), c.NS, "vm", "net")
	c.moving(t, vm, "10.0.0.8", lost("source"), c.startPodOn(t, "b", "target", nil), "a", "b")
	c.moving(t, vm, "10.0.0.9", c.startPodOn(t, "a", "stays", nil), lost("failed"), "a", "b")

	want := []string{"10.0.0.1 reserved", "10.0.0.2 reserved", "10.0.0.3 reserved", "10.0.0.4 of lives", "10.0.0.6 released", "10.0.0.8 of target", "10.0.0.9 of stays"}
	state := func() (out []string) {
		for _, a := range c.Allocations(t) {
			text := "of " + a.Spec.PodRef.Name
			switch {
			case a.Spec.Released():
				text = "released"
			case a.Spec.IsReserved():
				text = "reserved"
			case a.Spec.Next != nil:
				text = "moves"
			}
			out = append(out, a.Spec.Address+" "+text)
		}
		slices.Sort(out)
		return out
	}
	killed := 0
	for ; !slices.Equal(state(), want) && !t.Failed(); killed++ {
		d := &dies{after: killed%2 == 1}
		_, stop := c.runBehind(t, controller.Options{Resync: time.Second, ReclaimGrace: time.Millisecond}, func(next http.RoundTripper) http.RoundTripper {
			d.next = next
			return d
		})
		rig.Until(t, func() string {
			if d.dead.Load() {
				return ""
			}
			return fmt.Sprintf("controller %d makes no write, and the record is %q", killed, state())
		})
		stop()
	}
	t.Logf("%d controllers were killed", killed)
	if killed < 8 {
		t.Errorf("only %d: some write was not the last one of its controller", killed)
	}
	c.run(t, controller.Options{Resync: time.Second, ReclaimGrace: time.Millisecond})
	c.wantReservation(t, "r", "Reserved", 3, 3)
	c.wantMoving(t, "10.0.0.9", "stays")
	if got := state(); !slices.Equal(got, want) {
		t.Errorf("the record is %q, want %q", got, want)
	}
}

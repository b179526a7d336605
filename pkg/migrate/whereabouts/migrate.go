// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	clientv1alpha1 "github.com/crd-ipam/crd-ipam/generated/clientset/versioned/typed/nvipam/v1alpha1"
)

// What Migration.Do may be.
const (
	doPlan    = "plan"
	doPools   = "pools"
	doPatches = "patches"
	doApply   = "apply"
)

// actions are the values of Migration.Do.
var actions = []string{doPlan, doPools, doPatches, doApply}

// Usage of Migration.Do.
const Usage = "take over what whereabouts has given in the cluster. plan: print all that would be done; pools: print the pools, for kubectl apply; " +
	"patches: print the commands that switch the networks; apply: create the allocations. Nothing else is ever written"

// Migration is a run.
type Migration struct {
	// Do is plan, pools, patches or apply.
	Do string
	// From is whereabouts' namespace, To that of the pools.
	From, To string
	// Settle is for how long a network must not have changed before a pool of its may give
	// addresses; InFlight, unless nothing can be under way.
	Settle time.Duration
}

// Check returns an error that names what cannot be.
func (m *Migration) Check() error {
	switch {
	case !slices.Contains(actions, m.Do):
		return fmt.Errorf("must be one of %s, not %q", strings.Join(actions, ", "), m.Do)
	case m.Settle < 0:
		return fmt.Errorf("cannot settle for %v", m.Settle)
	}
	return nil
}

// Run does it with an administrator's rights, and prints what it does. It fails if
// addresses have been given twice, or cannot be claimed.
func (m *Migration) Run(ctx context.Context, config *rest.Config, w io.Writer) error {
	c, err := clientsOf(config)
	if err != nil {
		return err
	}
	s, err := c.read(ctx, m.From, m.To)
	if err != nil {
		return err
	}
	s.settle = m.Settle
	p := newPlan(s)
	switch m.Do {
	case doPools:
		return p.writePools(w)
	case doPatches:
		return p.writePatches(w)
	case doPlan:
		return p.writeAll(w)
	}
	err = p.apply(ctx, c)
	if tableErr := p.writeClaims(w); err == nil {
		err = tableErr
	}
	fmt.Fprintf(w, "%d allocations were created\n", p.created)
	if err != nil {
		return err
	}
	if n := p.conflicts(); n > 0 {
		return fmt.Errorf("%d addresses are held twice, see CONFLICT above: delete one of the two pods, and run this again", n)
	}
	return nil
}

func (p *plan) conflicts() (n int) {
	for _, c := range p.claims {
		if c.action == conflict {
			n++
		}
	}
	return n
}

func clientsOf(config *rest.Config) (*clients, error) {
	ipam, err := clientv1alpha1.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &clients{ipam: ipam, kube: kube, dynamic: dyn}, nil
}

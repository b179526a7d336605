// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"context"
	"errors"
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

// What a person has to solve.
var (
	// ErrConflicts says that addresses are held twice.
	ErrConflicts = errors.New("addresses are held twice")
	// ErrRefused says that no allocations can be made of addresses that are held.
	ErrRefused = errors.New("addresses cannot be recorded")
)

// What Migration.Do may be.
const (
	doPlan    = "plan"
	doPools   = "pools"
	doPatches = "patches"
	doApply   = "apply"
)

// Steps are the values of Migration.Do.
var Steps = []string{doPlan, doPools, doPatches, doApply}

// Migration is a run.
type Migration struct {
	// Do is one of Steps. "" stands for plan, the dry run.
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
	case m.Do != "" && !slices.Contains(Steps, m.Do):
		return fmt.Errorf("the step must be one of %s, not %q", strings.Join(Steps, ", "), m.Do)
	case m.Settle < 0:
		return fmt.Errorf("--settle must not be negative: %v", m.Settle)
	}
	return nil
}

// Run does it with an administrator's rights, and prints what it does. It returns
// ErrConflicts if addresses have been given twice, and ErrRefused if some cannot be recorded.
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
	case doPlan, "":
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
	return p.unsolved()
}

// unsolved says what a person has to do.
func (p *plan) unsolved() error {
	var errs []error
	if n := p.count()[conflict]; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %d of them, see CONFLICT above: delete one of the two pods, and run this again", ErrConflicts, n))
	}
	if n := p.count()[refused]; n > 0 {
		errs = append(errs, fmt.Errorf("%w: %d of them, see REFUSED above: their pools stay disabled until the pods are deleted, and this is run again", ErrRefused, n))
	}
	return errors.Join(errs...)
}

// count counts the entries by what is done about them.
func (p *plan) count() map[action]int {
	n := map[action]int{}
	for _, c := range p.claims {
		n[c.action]++
	}
	return n
}

func clientsOf(config *rest.Config) (*clients, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // one request at a time: the API server says if it is too much
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

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// planAll is what run would do to the store as it is, without doing it: claimed is
// what would be. It is nil where there is no store.
func (m *migrator) planAll(ctx context.Context) (*nodeJournal, error) {
	store, journal, err := m.read()
	if err != nil || store == nil {
		return nil, err
	}
	force := m.Force
	m.Force = true // a wrong namespace is seen in the table
	err = m.readPools(ctx, store)
	m.Force = force
	if err != nil {
		return nil, err
	}
	plan := &nodeJournal{Node: journal.Node, Namespace: journal.Namespace, Store: store.Sum, Unreadable: store.Unreadable}
	for _, e := range store.Entries {
		outcome, err := m.plan(ctx, e, journal)
		if err != nil {
			return nil, err
		}
		plan.Entries = append(plan.Entries, outcome)
	}
	return plan, nil
}

// plan is migrate without the doing.
func (m *migrator) plan(ctx context.Context, e entry, journal *nodeJournal) (entryOutcome, error) {
	out := entryOutcome{entry: e, Detail: m.odd(e), Result: claimed}
	if journal.Switched && m.released(e, journal) {
		out.Result = released
		return out, nil
	}
	holder, err := m.Claimer.Ledger.Client.IPAllocations(m.Claimer.Ledger.Namespace).Get(ctx, v1alpha1.AllocationName(m.domain(e), e.Address), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
	case err != nil:
		return out, fmt.Errorf("reading the allocation of %s: %w", e.Address, err)
	case hint.AttachmentOf(holder) == e.Attachment:
		out.Result = already
	case m.otherSandbox(e, holder) && e.Created.After(holder.CreationTimestamp.Time):
		out.Detail = "in place of the pod's former container " + holder.Spec.ContainerID
	case m.otherSandbox(e, holder):
		out.Result, out.Detail = obsolete, "container "+holder.Spec.ContainerID+" of the pod holds it"
	default:
		out.Result, out.Detail = conflict, ledger.Describe(holder)
	}
	return out, nil
}

// actions are the results in the words of a plan.
var actions = map[entryResult]string{
	claimed: "claim", already: "none: claimed", obsolete: "none: obsolete", released: "none: released since", conflict: "CONFLICT",
}

// writeTable writes a plan as a table for people.
func (j *nodeJournal) writeTable(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "POOL\tTYPE\tADDRESS\tPOD\tINTERFACE\tCONTAINER\tACTION\tREMARK")
	for _, o := range j.Entries {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s/%s\t%s\t%.12s\t%s\t%s\n", o.Pool.Name, pool.Type(o.Pool.Kind), o.Address,
			o.Pod.Namespace, o.Pod.Name, o.Interface, o.ContainerID, actions[o.Result], o.Detail)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, text := range j.Unreadable {
		fmt.Fprintln(w, "cannot be claimed:", text)
	}
	return nil
}

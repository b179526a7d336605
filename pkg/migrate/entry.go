// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package migrate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/claim"
	"github.com/crd-ipam/crd-ipam/pkg/hint"
	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// migrate claims one entry. What may stand in the way:
//
//  1. An allocation of this very attachment       done by an earlier run
//  2. One of the same pod and interface, from an
//     older sandbox that no longer is             given back, then claimed
//  3. … from a newer sandbox                      the entry is obsolete
//  4. Anybody else's                              conflict: the address is given twice
//
// And the API server may refuse what the entry says: then it is claimed without that, if an
// allocation can do without. If it cannot, the entry is refused, and the others go on.
//
// After the switch, an entry that was claimed before and is not in the hint any
// more was released by the plugin: nv-ipam's store never learns of that.
func (m *migrator) migrate(ctx context.Context, e entry, journal *nodeJournal) (entryOutcome, error) {
	out := entryOutcome{entry: e, Detail: m.odd(e)}
	if journal.Switched && m.released(e, journal) {
		out.Result = released
		return out, nil
	}
	created, err := m.adopt(ctx, e)
	if dropped := e.drop(ledger.InvalidFields(err)); len(dropped) > 0 {
		out.note("the API server refuses " + strings.Join(dropped, ", ") + ": claimed without it")
		created, err = m.adopt(ctx, e)
	}
	if holder := holderOf(err); holder != nil && m.otherSandbox(e, holder) {
		if !e.Created.After(holder.CreationTimestamp.Time) { // 3
			out.Result, out.Detail = obsolete, "container "+holder.Spec.ContainerID+" of the pod holds it"
			return out, nil
		}
		if err := m.Claimer.Release(ctx, hint.AttachmentOf(holder)); err != nil { // 2
			return out, fmt.Errorf("releasing what the pod's former container held: %w", err)
		}
		created, err = m.adopt(ctx, e)
		if holder := holderOf(err); holder != nil && m.otherSandbox(e, holder) {
			return out, fmt.Errorf("what the pod's former container held is not released yet: %w", err)
		}
	}
	switch holder := holderOf(err); {
	case holder != nil: // 4
		out.Result, out.Detail = conflict, ledger.Describe(holder)
	case isUnfit(err):
		out.Result, out.Detail = refused, pool.Cut(err.Error(), maxDetail)
	case err != nil:
		return out, err
	case created:
		out.Result = claimed
	default:
		out.Result = already // 1
	}
	return out, nil
}

// maxDetail bounds what is said of an entry that is refused, in bytes: its values may be long.
const maxDetail = 500

// isUnfit reports whether the API server refuses what an entry says. The node's name is none of
// it: if that is refused, no entry of the store can be claimed.
func isUnfit(err error) bool {
	fields := ledger.InvalidFields(err)
	return len(fields) > 0 && !slices.Contains(fields, "spec.nodeName")
}

// drop removes what the API server has refused of an entry if an allocation can do without it, and
// returns what that was. That the address is held counts more.
func (e *entry) drop(invalid []string) (dropped []string) {
	for _, field := range invalid {
		switch {
		case field == "spec.deviceID" && e.DeviceID != "":
			dropped = append(dropped, fmt.Sprintf("the device ID %.100q", e.DeviceID))
			e.DeviceID = ""
		case field == "spec.podRef.uid" && e.Pod.UID != "":
			dropped = append(dropped, fmt.Sprintf("the pod's UID %.100q", e.Pod.UID))
			e.Pod.UID = ""
		case (field == "spec.podRef.name" || field == "spec.podRef.namespace") && e.Pod.Name+e.Pod.Namespace != "":
			dropped = append(dropped, fmt.Sprintf("the pod's name %.100q", e.Pod.Namespace+"/"+e.Pod.Name))
			e.Pod = v1alpha1.PodReference{}
		}
	}
	return dropped
}

// entryTime is how long an API server that is away is waited for.
const entryTime = 15 * time.Second

func (m *migrator) adopt(ctx context.Context, e entry) (created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, entryTime)
	defer cancel()
	req := claim.Request{Attachment: e.Attachment, Pod: e.Pod, DeviceID: e.DeviceID}
	if e.Requested {
		req.Want.Addresses = []netip.Addr{e.Address}
	}
	return m.Claimer.Adopt(ctx, req, e.Pool, m.domain(e), e.Address)
}

// released reports whether the plugin has released what an earlier run claimed.
// Where the hint may lack something, nobody knows: then it is claimed again, and
// the controller takes it back if the pod is gone.
func (m *migrator) released(e entry, journal *nodeJournal) bool {
	before := journal.find(e)
	if before == nil || before.Result.unsolved() || !m.Claimer.Hint.Complete() {
		return false
	}
	for _, held := range m.Claimer.Hint.HoldingIn(m.domain(e), e.Attachment) {
		if held.Address == e.Address {
			return false
		}
	}
	return m.Claimer.Hint.Complete() // still: reading it may have failed
}

// otherSandbox reports whether an allocation is of the entry's own pod and
// interface on this node. A pod has one sandbox at a time.
func (m *migrator) otherSandbox(e entry, holder *v1alpha1.IPAllocation) bool {
	s := holder.Spec
	return s.NodeName == m.Claimer.Ledger.Node && s.PodRef == e.Pod && e.Pod.UID != "" &&
		s.InterfaceName == e.Interface && s.ContainerID != e.ContainerID
}

func holderOf(err error) *v1alpha1.IPAllocation {
	var inUse *ledger.InUseError
	if errors.As(err, &inUse) {
		return inUse.Holder
	}
	return nil
}

// poolState is what is known of a pool of the store.
type poolState struct {
	missing bool
	domain  string       // empty where it is missing
	subnet  netip.Prefix // zero where the pool is invalid
}

// readPools looks for the pools of the store. Where there is none of them, the
// namespace is likely to be the wrong one, and claims in it would protect
// nothing.
func (m *migrator) readPools(ctx context.Context, store *nodeStore) error {
	m.pools = map[v1alpha1.PoolReference]poolState{}
	found := false
	for _, e := range store.Entries {
		if _, ok := m.pools[e.Pool]; ok {
			continue
		}
		state, err := m.readPool(ctx, e.Pool)
		if err != nil {
			return fmt.Errorf("reading pool %s: %w", e.Pool.Name, err)
		}
		m.pools[e.Pool] = state
		found = found || !state.missing
	}
	if len(m.pools) > 0 && !found && !m.Force {
		return fmt.Errorf("namespace %s has none of the %d pools in nv-ipam's store: is it the pools' namespace?", m.Claimer.Ledger.Namespace, len(m.pools))
	}
	return nil
}

func (m *migrator) readPool(ctx context.Context, ref v1alpha1.PoolReference) (poolState, error) {
	obj, err := m.Claimer.Ledger.Pools().Get(ctx, ref)
	switch {
	case apierrors.IsNotFound(err):
		return poolState{missing: true}, nil
	case err != nil:
		return poolState{}, err
	}
	parsed, errs := obj.Parse()
	if len(errs) > 0 {
		return poolState{domain: obj.Domain}, nil
	}
	return poolState{domain: obj.Domain, subnet: parsed.Subnet}, nil
}

// domain returns the domain of an entry's pool.
func (m *migrator) domain(e entry) string { return cmp.Or(m.pools[e.Pool].domain, e.Pool.Name) }

// odd says what is odd about an entry's pool. It is claimed nevertheless: the
// container answers on the address, and the pool may come back.
func (m *migrator) odd(e entry) string {
	state := m.pools[e.Pool]
	switch {
	case state.missing:
		return "there is no such pool"
	case state.subnet.IsValid() && !state.subnet.Contains(e.Address):
		return "address is outside of the pool's subnet " + state.subnet.String()
	}
	return ""
}

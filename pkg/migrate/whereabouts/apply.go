// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/crd-ipam/crd-ipam/pkg/ledger"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// maxRemark bounds what is said of an entry that is refused, in bytes: its values may be long.
const maxRemark = 500

// apply creates what is to be claimed. An address that somebody else has by now is a
// conflict, and what no allocation can say is refused; any other error ends it, and the next
// run goes on.
func (p *plan) apply(ctx context.Context, c *clients) error {
	if missing := p.missing(); len(missing) > 0 {
		return fmt.Errorf("namespace %s does not have the pools %s: apply them first, or is it another namespace?", p.state.namespace, strings.Join(missing, ", "))
	}
	l := ledger.Ledger{Client: c.ipam, Namespace: p.state.namespace}
	for _, claim := range p.claims {
		if claim.action != create && claim.action != replace {
			continue
		}
		if claim.action == replace {
			if _, err := l.Delete(ctx, claim.holder.Name, claim.holder.UID); err != nil {
				return fmt.Errorf("releasing what an earlier run claimed: %w", err)
			}
		}
		_, created, err := l.Create(ctx, claim.alloc)
		switch {
		case ledger.IsInUse(err):
			claim.action, claim.remark = conflict, err.Error()
		case ledger.InvalidFields(err) != nil:
			claim.action, claim.remark = refused, pool.Cut(err.Error(), maxRemark)
		case err != nil:
			return fmt.Errorf("claiming %s: %w", claim.alloc.Name, err)
		case created:
			p.created++
		}
	}
	return nil
}

// missing are the pools that claims need and that do not exist.
func (p *plan) missing() (names []string) {
	for _, c := range p.claims {
		if (c.action == create || c.action == replace) && c.target.exists == nil && !slices.Contains(names, c.target.pool.Name) {
			names = append(names, c.target.pool.Name)
		}
	}
	return names
}

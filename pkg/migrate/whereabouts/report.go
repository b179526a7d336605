// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package whereabouts

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/apis/nvipam/v1alpha1"
	"github.com/crd-ipam/crd-ipam/pkg/pool"
)

// toApply are the pools that do not exist, or are to be disabled or enabled.
func (p *plan) toApply() (out []*target) {
	for _, t := range p.pools {
		if t.refused != "" {
			continue
		}
		if t.exists == nil || t.exists.Spec.Disabled != t.pool.Spec.Disabled {
			out = append(out, t)
		}
	}
	return out
}

// writePools writes YAML for kubectl apply, and what it leaves out.
func (p *plan) writePools(w io.Writer) error {
	for _, t := range p.pools {
		if t.refused != "" {
			fmt.Fprintf(w, "# pool %s is left out: %s\n", pool.Printable(t.pool.Name), pool.Printable(t.refused))
		}
	}
	for _, t := range p.toApply() {
		data, err := yaml.Marshal(map[string]any{
			"apiVersion": v1alpha1.GroupVersion.String(), "kind": t.ref().Kind, "spec": t.pool.Spec,
			"metadata": map[string]any{"name": t.pool.Name, "namespace": t.pool.Namespace, "annotations": map[string]string{annotationFrom: t.scope.String()}},
		})
		if err != nil {
			return err
		}
		fmt.Fprintln(w, "---")
		for _, reason := range t.held {
			fmt.Fprintln(w, "# disabled:", pool.Printable(reason))
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}

// writePatches writes commands that switch the networks.
func (p *plan) writePatches(w io.Writer) error {
	for _, patch := range p.patches {
		data, err := json.Marshal(map[string]any{"spec": map[string]any{"config": patch.config}})
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "kubectl -n %s patch network-attachment-definitions %s --type=merge -p %s\n", patch.network.Namespace, patch.network.Name, quote(pool.EscapeJSON(string(data), `\u%04x`)))
	}
	return nil
}

// quote quotes for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// writeAll writes everything for people to read.
func (p *plan) writeAll(w io.Writer) error {
	fmt.Fprintf(w, "# Pools to apply: %d\n", len(p.toApply()))
	if err := p.writePools(w); err != nil {
		return err
	}
	fmt.Fprintln(w, "\n# Addresses that whereabouts has given")
	if err := p.writeClaims(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n# Networks to switch, when the pools are applied and the addresses claimed: %d\n", len(p.patches))
	if err := p.writePatches(w); err != nil {
		return err
	}
	fmt.Fprintf(w, "\n# What cannot be mapped, and stays as it is: %d\n", len(p.cannot))
	for _, text := range p.cannot {
		fmt.Fprintln(w, pool.Printable(text))
	}
	return nil
}

func (p *plan) writeClaims(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "POOL\tADDRESS\tPOD\tNODE\tINTERFACE\tCONTAINER\tACTION\tREMARK")
	for _, c := range p.claims {
		s := c.alloc.Spec
		row := []string{s.PoolRef.Name, s.Address, podOf(c.alloc), s.NodeName, s.InterfaceName, fmt.Sprintf("%.12s", s.ContainerID), string(c.action), c.remark}
		for i := range row {
			row[i] = pool.Printable(row[i])
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, p)
	return nil
}

// String sums up.
func (p *plan) String() string {
	n := p.count()
	text := fmt.Sprintf("%d addresses: %d to claim, %d already claimed, %d obsolete, %d conflicts", len(p.claims), n[create]+n[replace], n[done], n[obsolete], n[conflict])
	if n[refused] > 0 { // only the API server says so
		text += fmt.Sprintf(", %d refused", n[refused])
	}
	return fmt.Sprintf("%s; %d cannot be mapped", text, len(p.cannot))
}

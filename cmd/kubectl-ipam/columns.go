// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

// named is how many nodes or addresses a line names before it only counts.
const named = 10

func (p *printer) pools(pools []inspect.Pool, namespace string, blocks, explain bool) {
	if len(pools) == 0 {
		fmt.Fprintf(p.out, "There are no pools%s.\n", in(namespace))
		return
	}
	var rows [][]cell
	for _, pool := range pools {
		capacity, percent := "?", ""
		if pool.Capacity != nil {
			capacity = strconv.FormatInt(*pool.Capacity, 10)
			if *pool.Capacity > 0 {
				percent = fmt.Sprintf("%d%%", int(float64(pool.Used)/float64(*pool.Capacity)*100))
			}
		}
		rows = append(rows, []cell{
			text(pool.Namespace), text(string(pool.Kind)), text(pool.Name), text(pool.Subnet), text(capacity), text(strconv.FormatInt(pool.Used, 10)), text(strconv.FormatInt(pool.Cooling, 10)), text(percent),
			text(strconv.Itoa(pool.BlockCount)), number(pool.FullBlocks), ready(pool), text(pool.Reason),
		})
	}
	p.table([]string{"NAMESPACE", "KIND", "NAME", "SUBNET", "CAPACITY", "USED", "COOLING", "USE", "BLOCKS", "FULL", "READY", "REASON"}, rows)
	for _, pool := range pools {
		if pool.Ready != "True" || explain {
			p.note(pool.Name, pool.Reason, pool.Message)
		}
		for _, n := range pool.Notices {
			p.note(pool.Name, n.Type, n.Message)
		}
	}
	if blocks {
		p.blocks(pools)
	}
}

// in names the namespace that was looked at, unless it is all.
func in(namespace string) string {
	if namespace == "" {
		return ""
	}
	return " in namespace " + namespace
}

func (p *printer) note(name, reason, message string) {
	if message != "" {
		p.printf("%s: %s: %s\n", name, reason, message)
	}
}

func (p *printer) blocks(pools []inspect.Pool) {
	var rows [][]cell
	for _, pool := range pools {
		for _, b := range pool.Blocks {
			earlier := ""
			if b.Earlier {
				earlier = "earlier specification"
			}
			rows = append(rows, []cell{text(pool.Name), text(b.Node), text(b.Range), text(strconv.FormatInt(b.Size, 10)), text(strconv.FormatInt(b.Used, 10)), text(strconv.FormatInt(b.Cooling, 10)), number64(b.Size - b.Used - b.Cooling), text(earlier)})
		}
	}
	fmt.Fprintln(p.out)
	p.table([]string{"POOL", "NODE", "BLOCK", "SIZE", "USED", "COOLING", "FREE", ""}, rows)
}

func number(n int) cell {
	if n > 0 {
		return cell{yellow, strconv.Itoa(n)}
	}
	return text("0")
}

func number64(free int64) cell {
	if free <= 0 {
		return cell{yellow, "0"}
	}
	return text(strconv.FormatInt(free, 10))
}

func ready(pool inspect.Pool) cell {
	if pool.Ready == "True" {
		return cell{green, pool.Ready}
	}
	return cell{red, pool.Ready}
}

func (p *printer) holders(holders []inspect.Holder) {
	if len(holders) == 0 {
		return
	}
	var rows [][]cell
	for _, h := range holders {
		requested := ""
		if h.Requested {
			requested = "requested"
		}
		rows = append(rows, []cell{text(h.Address), text(h.Pool.Name), text(whose(h)), text(h.Interface), text(h.Node), p.age(h.HeldSince), text(requested), stateOf(h), text(h.Verdict.Message)})
	}
	p.table([]string{"ADDRESS", "POOL", "POD", "INTERFACE", "NODE", "AGE", "REQUESTED", "STATE", "WHY"}, rows)
}

// whose is the pod that an address is for, and the owner that keeps it while no container has it.
func whose(h inspect.Holder) string {
	pod := h.Pod.Namespace + "/" + h.Pod.Name
	switch owner := h.Owner; {
	case owner != nil && (h.Pod.Name == "" || owner.IsIPAMClaim() && (h.Container == "" || h.ReleasedAt != nil)): // any pod may name a claim
		return owner.Kind + " " + owner.Namespace + "/" + owner.Name
	case h.Pod.Name == "":
		return ""
	case owner != nil && h.ReleasedAt != nil:
		return pod + " (" + owner.Kind + " " + owner.Name + ")"
	}
	return pod
}

func stateOf(h inspect.Holder) cell {
	switch h.Verdict.State {
	case "InUse":
		return cell{green, h.Verdict.State}
	case "LooksLeaked", "Held":
		return cell{yellow, h.Verdict.State}
	}
	return text(h.Verdict.State)
}

func (p *printer) leaks(leaks []inspect.Holder, namespace string) {
	if len(leaks) == 0 {
		fmt.Fprintf(p.out, "Nothing looks leaked%s.\n", in(namespace))
		return
	}
	var rows [][]cell
	for _, h := range leaks {
		rows = append(rows, []cell{
			text(h.Address), text(h.Pool.Name), text(whose(h)), text(h.Node), stateOf(h), text(h.Verdict.Reason),
			p.age(h.HeldSince), p.age(h.Verdict.Since), text(h.Verdict.Message + "; ends when " + h.Verdict.Until),
		})
	}
	p.table([]string{"ADDRESS", "POOL", "POD", "NODE", "STATE", "REASON", "HELD", "SINCE", "WHY"}, rows)
}

func (p *printer) free(free []inspect.Free) {
	var rows [][]cell
	for _, f := range free {
		ranges := strings.Join(f.Ranges, ", ")
		if f.More > 0 {
			ranges += fmt.Sprintf(" and %d ranges more", f.More)
		}
		if f.Disabled {
			ranges += " (the pool is disabled: nobody gets them)"
		}
		rows = append(rows, []cell{text(f.Name), text(f.Node), text(f.Range), text(strconv.FormatInt(f.Size, 10)), number64(f.Free), text(ranges)})
	}
	p.table([]string{"POOL", "NODE", "BLOCK", "SIZE", "FREE", "ADDRESSES"}, rows)
}

func (p *printer) findings(report *inspect.Report) {
	for _, f := range report.Findings {
		p.printf("%s %s (namespace %s)\n  what   %s\n  proof  %s\n  mend   %s\n", p.paint(red, f.Class), p.paint(bold, f.Subject), f.Namespace, f.Message, f.Proof, f.Mend)
	}
	for _, s := range report.Skipped {
		p.printf("%s %s\n", p.paint(yellow, "not looked at:"), s)
	}
	p.printf("%d findings in %d pools, %d allocations%s, %d pods\n", len(report.Findings), report.Pools, report.Allocations, in(report.Namespace), report.Pods)
}

func (p *printer) chains(chains []inspect.Chain) {
	for i, c := range chains {
		if i > 0 {
			fmt.Fprintln(p.out)
		}
		title := "pod " + c.Pod
		if c.Network != "" {
			title += ", " + c.Interface + " in network " + c.Network
		}
		p.printf("%s\n", p.paint(bold, title))
		for _, l := range c.Links {
			mark := p.paint(green, "ok    ")
			if !l.OK {
				mark = p.paint(red, "BROKEN")
			}
			p.printf("  %s %-13s %s\n", mark, l.Link, l.Message)
			if l.Mend != "" {
				p.printf("  mend   %-13s %s\n", "", l.Mend)
			}
		}
		if e := c.Event; e != nil && c.Broken() != nil {
			p.printf("  said   %-13s %s (%d times, last %s ago)\n", "", e.Message, e.Count, p.age(e.Last).text)
		}
	}
}

func (p *printer) plans(plans []inspect.Plan) {
	for _, plan := range plans {
		p.printf("%s\n", p.paint(bold, fmt.Sprintf("%s %s/%s", plan.Kind, plan.Namespace, plan.Name)))
		if plan.Refused != "" {
			p.printf("  %s %s\n", p.paint(red, "REFUSED "), plan.Refused)
		}
		p.printf("  capacity %d, now %d\n  blocks   %d, now %d\n", plan.CapacityAfter, plan.CapacityBefore, plan.BlocksAfter, plan.BlocksBefore)
		p.names("nodes that lose their block", red, plan.Lose)
		p.names("nodes without a block, for lack of room", red, plan.Without)
		p.names("nodes with another block", yellow, plan.Move)
		p.names("nodes that keep their present block until its addresses are given back", yellow, plan.Keep)
		p.names("overlaps with", red, plan.Overlaps)
		var stranded []string
		for _, s := range plan.Stranded {
			on := ""
			if s.Node != "" {
				on = " on node " + s.Node
			}
			stranded = append(stranded, fmt.Sprintf("%s%s (%s)", s.Address, on, s.Why))
		}
		p.names("namespaces whose pods would get no more addresses", red, plan.Barred)
		p.names("addresses that are held, kept or reserved, and that the pool would not give any more", red, stranded)
	}
}

func (p *printer) names(what, colour string, names []string) {
	if len(names) == 0 {
		return
	}
	more := ""
	if n := len(names) - named; n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	p.printf("  %s: %d: %s%s\n", p.paint(colour, what), len(names), strings.Join(names[:min(len(names), named)], ", "), more)
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

// asks returns what a command runs that asks about pools.
func (o *options) asks(question func(*cobra.Command, *inspect.Cluster, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := o.connect(false)
		if err != nil {
			return err
		}
		defer o.note(c)
		return question(cmd, c, args)
	}
}

// note says which namespace an answer is limited to, if it is.
func (o *options) note(c *inspect.Cluster) {
	if only := c.Limited(); only != "" {
		fmt.Fprintf(o.err, "only namespace %s was looked at: you may not list the pools of all namespaces\n", only)
	}
}

// asksOfPod is asks for a command that may ask about a pod, which is in this namespace if
// nothing else is said.
func (o *options) asksOfPod(question func(cmd *cobra.Command, c *inspect.Cluster, namespace string, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := o.connect(true)
		if err != nil {
			return err
		}
		namespace, _, err := o.namespace()
		if err != nil {
			return err
		}
		defer o.note(c)
		return question(cmd, c, namespace, args)
	}
}

func (o *options) show() *cobra.Command {
	blocks := false
	cmd := &cobra.Command{
		Use: "show [POOL]", Short: "Show how full the pools are", Args: cobra.MaximumNArgs(1), ValidArgsFunction: o.completePools,
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, args []string) error {
			pools, err := c.Show(cmd.Context(), strings.Join(args, ""), blocks)
			if err != nil {
				return err
			}
			return o.print("PoolList", pools, nil, func(p *printer) { p.pools(pools, c.Namespace, blocks, len(args) > 0) })
		}),
	}
	cmd.Flags().BoolVar(&blocks, "blocks", false, "Show the block of each node, and how full it is")
	return cmd
}

func (o *options) who() *cobra.Command {
	return &cobra.Command{
		Use: "who ADDRESS|ALLOCATION|POD|NODE", Short: "Show who holds an address, or what a pod or a node holds", Args: cobra.ExactArgs(1),
		Example: "  kubectl ipam who 192.168.0.5\n  kubectl ipam who -n default first\n  kubectl ipam who node/worker-1",
		RunE: o.asksOfPod(func(cmd *cobra.Command, c *inspect.Cluster, namespace string, args []string) error {
			who, err := inspect.ParseWho(args[0], namespace)
			if err != nil {
				return err
			}
			holders, err := c.Who(cmd.Context(), who)
			if err != nil {
				return err
			}
			if err := o.print("HolderList", holders, nil, func(p *printer) { p.holders(holders) }); err != nil || len(holders) > 0 {
				return err
			}
			return o.nobody(cmd, c, who, args[0])
		}),
	}
}

// nobody says that nobody holds it.
func (o *options) nobody(cmd *cobra.Command, c *inspect.Cluster, who inspect.Who, text string) error {
	if only := c.Limited(); only != "" {
		return fmt.Errorf("namespace %s has no allocation for %s, and another one may have: name the namespace of the pools with --pools-namespace", only, text)
	}
	if who.Allocation != "" {
		o.say("there is no allocation %s%s: the address is free, or the pool is in another namespace\n", text, in(c.Namespace))
		return exit(exitFindings)
	}
	if !who.Address.IsValid() {
		o.say("%s holds no address%s (or is in another namespace: -n)\n", text, in(c.Namespace))
		return exit(exitFindings)
	}
	all, err := c.PoolsOf(cmd.Context(), who.Address)
	if err != nil {
		return err
	}
	var names []string
	for _, p := range all {
		names = append(names, p.Namespace+"/"+p.Name)
	}
	pools := "no pool there has it"
	if c.Namespace == "" {
		pools = "no pool has it"
	}
	if len(names) > 0 {
		pools = "it is in " + strings.Join(names, ", ")
	}
	o.say("nobody holds %s%s; %s\n", who.Address, in(c.Namespace), pools)
	return exit(exitFindings)
}

func (o *options) free() *cobra.Command {
	return &cobra.Command{
		Use: "free POOL", Short: "Show which addresses of a pool are free", Args: cobra.ExactArgs(1), ValidArgsFunction: o.completePools,
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, args []string) error {
			free, err := c.Free(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return o.print("FreeList", free, nil, func(p *printer) { p.free(free) })
		}),
	}
}

func (o *options) leaks() *cobra.Command {
	return &cobra.Command{
		Use: "leaks [POOL]", Short: "Show addresses that look leaked or are held, why, since when, and what ends it", Args: cobra.MaximumNArgs(1), ValidArgsFunction: o.completePools,
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, args []string) error {
			leaks, err := c.Leaks(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			if err := o.print("HolderList", leaks, nil, func(p *printer) { p.leaks(leaks, c.Namespace) }); err != nil || len(leaks) == 0 {
				return err
			}
			return exit(exitFindings)
		}),
	}
}

func (o *options) check() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Look for whatever is wrong, what proves it, and the command that mends it", Args: cobra.NoArgs,
		Long: "Look for whatever is wrong. The classes of findings:\n\n  " + strings.Join(inspect.Classes, "\n  "),
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, _ []string) error {
			report, err := c.Check(cmd.Context())
			if err != nil {
				return err
			}
			err = o.print("FindingList", report.Findings, report, func(p *printer) { p.findings(report) })
			switch {
			case err != nil:
				return err
			case len(report.Findings) > 0:
				return exit(exitFindings)
			case len(report.Skipped) > 0:
				return exit(exitIncomplete)
			}
			return nil
		}),
	}
}

func (o *options) why() *cobra.Command {
	return &cobra.Command{
		Use: "why POD", Short: "Follow the chain from a pod to its addresses, and say where it is broken", Args: cobra.ExactArgs(1),
		Example: "  kubectl ipam why -n default first\n  kubectl ipam why pod/default/first",
		RunE: o.asksOfPod(func(cmd *cobra.Command, c *inspect.Cluster, namespace string, args []string) error {
			who, err := inspect.ParseWho(args[0], namespace)
			if err != nil {
				return err
			}
			namespace, name, found := strings.Cut(who.Pod, "/")
			if !found {
				return fmt.Errorf("%q is no pod: kubectl ipam who says whose it is", args[0])
			}
			chains, err := c.Why(cmd.Context(), namespace, name)
			if err != nil {
				return err
			}
			if err := o.print("ChainList", chains, nil, func(p *printer) { p.chains(chains) }); err != nil {
				return err
			}
			for _, chain := range chains {
				if chain.Broken() != nil {
					return exit(exitFindings)
				}
			}
			return nil
		}),
	}
}

// completePools completes the names of pools.
func (o *options) completePools(cmd *cobra.Command, args []string, prefix string) (names []string, _ cobra.ShellCompDirective) {
	c, err := o.connect(false)
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	pools, err := c.PoolNames(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	for _, p := range pools {
		if strings.HasPrefix(p, prefix) {
			names = append(names, p)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/crd-ipam/crd-ipam/pkg/migrate/whereabouts"
)

func (o *options) migrate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "migrate", Short: "Take over what another address manager has given", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }, // without it, cobra takes any argument
	}
	cmd.AddCommand(o.migrateWhereabouts())
	return cmd
}

func (o *options) migrateWhereabouts() *cobra.Command {
	m := &whereabouts.Migration{}
	cmd := &cobra.Command{
		Use: "whereabouts -n NAMESPACE [plan|pools|patches|apply]", Short: "Take over what whereabouts has given", Args: cobra.MaximumNArgs(1),
		ValidArgs: whereabouts.Steps,
		Long: `Take over what whereabouts has given in the cluster, while pods run. NAMESPACE is that of
the pools. Without a step, or with "plan", it is a dry run that prints all that would be done.

  pools    print the pools, for kubectl apply
  patches  print the commands that switch the networks
  apply    create the allocations, in pools that have been applied

Nothing but allocations is ever written. docs/migration.md has the order of the steps.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			m.Do = strings.Join(args, "")
			if err := o.migrateInto(m); err != nil {
				return err
			}
			config, err := o.kube.ToRESTConfig()
			if err != nil {
				return err
			}
			config.UserAgent = "kubectl-ipam/" + version
			err = m.Run(cmd.Context(), config, o.out)
			if errors.Is(err, whereabouts.ErrConflicts) || errors.Is(err, whereabouts.ErrRefused) {
				fmt.Fprintln(o.err, "error:", err)
				return exit(exitFindings)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&m.From, "whereabouts-namespace", "kube-system", "Namespace in which whereabouts keeps its pools")
	cmd.Flags().DurationVar(&m.Settle, "settle", whereabouts.InFlight, "For how long a network must not have changed before its pool is enabled; whereabouts' own limit for an ADD")
	return cmd
}

// migrateInto fills in where the pools are. Nothing but a person knows: the namespace of the
// current context seldom is theirs.
func (o *options) migrateInto(m *whereabouts.Migration) error {
	switch {
	case o.output != "":
		return fmt.Errorf("-o %s is not for migrate: it prints pools in YAML, commands or columns", o.output)
	case o.poolsNamespace != "":
		m.To = o.poolsNamespace
	default:
		m.To = *o.kube.Namespace
	}
	if m.To == "" {
		return errors.New("-n has to name the namespace of the pools")
	}
	return m.Check()
}

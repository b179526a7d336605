// Copyright The crd-ipam Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/crd-ipam/crd-ipam/pkg/inspect"
)

func (o *options) plan() *cobra.Command {
	file := ""
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Show what applying a pool would strand; nothing is written", Args: cobra.NoArgs,
		Example: "  kubectl get ippools.nv-ipam.nvidia.com -n kube-system pool1 -o yaml > pool1.yaml   # edit it\n  kubectl ipam plan -f pool1.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := o.open(file)
			if err != nil {
				return err
			}
			defer func() { _ = in.Close() }()
			pools, err := inspect.ParsePools(in)
			if err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			c, err := o.connect(false)
			if err != nil {
				return err
			}
			plans, err := c.Plan(cmd.Context(), pools)
			if err != nil {
				return err
			}
			if err := o.print("PlanList", plans, nil, func(p *printer) { p.plans(plans) }); err != nil {
				return err
			}
			o.note(c)
			for _, p := range plans {
				if p.Harms() {
					return exit(exitFindings)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "filename", "f", "", "File with pools, in YAML or JSON; - is standard input")
	_ = cmd.MarkFlagRequired("filename") // fails for unknown flags only
	return cmd
}

func (o *options) open(file string) (io.ReadCloser, error) {
	if file == "-" {
		return io.NopCloser(o.in), nil
	}
	return os.Open(file)
}

func (o *options) release() *cobra.Command {
	yes, force := false, false
	cmd := &cobra.Command{
		Use: "release ADDRESS|ALLOCATION", Short: "Release an address that no pod uses any more", Args: cobra.ExactArgs(1),
		Long: `Release an address that no pod uses any more. It is refused if a pod uses the address. It
asks before it does anything, unless --yes is set. What may still be in use, as "leaks" says
with the state Held, is only released with --force: do it if you know that the container is
gone. So is the address that a pod does not use of two that one of its interfaces holds, and
what is kept for a pod of a StatefulSet or for an IPAMClaim. What an IPReservation keeps is
released by an edit of the reservation.`,
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, args []string) error {
			r, err := c.Releasable(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if r.Refusal != "" {
				o.say("%s is not released: %s\n", r.Allocation, r.Refusal)
				return exit(exitFindings)
			}
			if r.Doubt != "" && !force {
				o.say("%s is not released: %s: --force\n", r.Allocation, r.Doubt)
				return exit(exitFindings)
			}
			if !yes {
				if err := o.ask(r); err != nil {
					return err
				}
			}
			if err := c.Release(cmd.Context(), r); err != nil {
				return fmt.Errorf("%s is not released: %w", r.Allocation, err)
			}
			return o.print("Released", []inspect.Holder{r.Holder}, nil, func(p *printer) { p.printf("%s is released\n", r.Allocation) })
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "Do not ask")
	cmd.Flags().BoolVar(&force, "force", false, "Release it although a container may still use it, or although it is kept for a StatefulSet or an IPAMClaim")
	return cmd
}

func (o *options) reserve() *cobra.Command {
	var r inspect.Reservation
	dryRun := false
	cmd := &cobra.Command{
		Use: "reserve ADDRESS|FIRST-LAST ... --pool POOL", Short: "Keep addresses from being given to pods, or for one pod", Args: cobra.MinimumNArgs(1),
		Long: `Keep addresses from being given to pods, or for one pod: makes an IPReservation. An address
that a pod has stays with it until the pod has ended. kubectl delete ipreservation ends it.`,
		Example: "  kubectl ipam reserve 10.0.0.9 10.0.0.20-10.0.0.29 --pool rail1 --reason printers\n  kubectl ipam reserve 10.0.0.7 --pool rail1 --pod ml/train-0 --dry-run > reservation.yaml",
		RunE: o.asks(func(cmd *cobra.Command, c *inspect.Cluster, args []string) error {
			if o.output != "" {
				return fmt.Errorf("-o %s is not for reserve: --dry-run prints the reservation in YAML", o.output)
			}
			r.Addresses = args
			res, err := c.Reservation(cmd.Context(), r)
			if err != nil {
				return err
			}
			if dryRun {
				text, err := yaml.Marshal(map[string]any{"apiVersion": res.APIVersion, "kind": res.Kind, "metadata": map[string]string{"name": res.Name, "namespace": res.Namespace}, "spec": res.Spec})
				if err == nil {
					_, err = o.out.Write(text)
				}
				return err
			}
			if err := c.Reserve(cmd.Context(), res); err != nil {
				return err
			}
			fmt.Fprintf(o.out, "ipreservation %s is made in namespace %s; kubectl get ipr -n %s %s says how many addresses are kept\n", res.Name, res.Namespace, res.Namespace, res.Name)
			return nil
		}),
	}
	cmd.Flags().StringVar(&r.Pool, "pool", "", "Pool of the addresses")
	cmd.Flags().StringVar(&r.Pod, "pod", "", "NAMESPACE/NAME of the pod that may have them")
	cmd.Flags().StringVar(&r.Reason, "reason", "", "Why they are kept, for whoever asks later")
	cmd.Flags().StringVar(&r.Name, "name", "", "Name of the IPReservation; by default that of the pool and the first address")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "Print it in place of making it")
	_ = cmd.MarkFlagRequired("pool") // fails for unknown flags only
	_ = cmd.RegisterFlagCompletionFunc("pool", o.completePools)
	return cmd
}

// ask returns an error unless the user says yes.
func (o *options) ask(r *inspect.Releasable) error {
	of := ""
	if who := whose(r.Holder); who != "" {
		of = " of " + who
	}
	if r.Node != "" {
		of += " on node " + r.Node
	}
	o.say("%s%s: %s %s\n", r.Address, of, r.Verdict.State, r.Verdict.Message)
	if r.Doubt != "" {
		o.say("%s, release it\n", r.Doubt)
	}
	o.say("Release it? [y/N] ")
	line, _ := bufio.NewReader(o.in).ReadString('\n') // an end of the input is no
	if answer := strings.ToLower(strings.TrimSpace(line)); answer != "y" && answer != "yes" {
		return errors.New("not released: say y, or set --yes")
	}
	return nil
}
